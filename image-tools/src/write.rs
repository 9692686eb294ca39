//! Makes a bundle: images cut into chunks and compressed on all cores, then signed, then put together in one file.

use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use bascule_core::Digest;
use jiff::Timestamp;
use sha2::{Digest as _, Sha256};

use crate::decode::zeroes_digest;
use crate::error::BundleError;
use crate::format::Header;
use crate::keys::{KeyDir, KeysError};
use crate::limits::{FORMAT_VERSION, MAX_CHUNK_BYTES, MIN_CHUNK_BYTES};
use crate::manifest::{BlobsRef, ChunkTableRef, Manifest, Payload, sha256};
use crate::release::Release;
use crate::table::{Chunk, ChunkKind};

/// What a bundle is made of.
#[derive(Debug, Clone)]
pub struct BundleSpec {
    /// What it is.
    pub release: Release,
    /// Slot roles and the images for them.
    pub payloads: Vec<(String, PathBuf)>,
    /// The zstd level.
    pub level: i32,
    /// Bytes of a chunk's output.
    pub chunk_bytes: u32,
    /// The time of signing.
    pub now: Timestamp,
    /// When the signatures expire.
    pub expires: Timestamp,
}

/// What came out.
#[derive(Debug, Clone)]
pub struct Summary {
    /// The manifest.
    pub manifest: Manifest,
    /// The bundle's identity.
    pub digest: Digest,
    /// Length of the bundle in bytes.
    pub bundle_bytes: u64,
}

/// Makes the bundle `output`, whole or not at all. `progress` is told how many bytes of the images are done.
///
/// # Errors
/// When an image cannot be read, the release breaks a rule of the manifest, or the bundle cannot be signed or written.
pub fn create_bundle(
    spec: &BundleSpec,
    keys: &KeyDir,
    output: &Path,
    progress: &mut dyn FnMut(u64),
) -> Result<Summary, WriteError> {
    if !(MIN_CHUNK_BYTES..=MAX_CHUNK_BYTES).contains(&spec.chunk_bytes) {
        return Err(WriteError::ChunkSize(spec.chunk_bytes));
    }
    let directory = output.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut blobs = tempfile::tempfile_in(directory).map_err(at("making a temporary file in", directory))?;
    let mut tables = Vec::new();
    let mut payloads = Vec::new();
    for (role, image) in &spec.payloads {
        let mut cutter = Cutter { spec, blobs: &mut blobs, done: 0, progress };
        let (payload, table) = cutter.payload(role, image)?;
        payloads.push(payload);
        tables.extend(table);
    }
    let manifest = manifest(&spec.release, payloads);
    manifest.check().map_err(WriteError::Rule)?;
    let bytes = manifest.to_bytes();
    crate::format::within("a manifest", bytes.len() as u64, crate::limits::MAX_MANIFEST_BYTES)
        .map_err(WriteError::Rule)?;
    let metadata = keys.sign_manifest(&manifest.target_name(), &bytes, spec.now, spec.expires)?;
    let metadata = metadata.to_bytes().map_err(WriteError::Rule)?;
    let header = Header { metadata: metadata.len() as u64, manifest: bytes.len() as u64 };
    let digest = sha256(&bytes);
    let head = [&header.to_bytes()[..], &metadata, &bytes, &tables].concat();
    let bundle_bytes = put_together(&head, blobs, directory, output)?;
    Ok(Summary { manifest, digest, bundle_bytes })
}

fn manifest(release: &Release, payloads: Vec<Payload>) -> Manifest {
    Manifest {
        product: release.product.clone(),
        version: release.version.clone(),
        order: release.order,
        compatible: release.compatible.clone(),
        requires: release.requires.clone(),
        security_epoch: release.security_epoch,
        payloads,
        critical: Vec::new(),
    }
}

fn put_together(head: &[u8], mut blobs: File, directory: &Path, output: &Path) -> Result<u64, WriteError> {
    let failed = at("writing", output);
    let mut whole = tempfile::Builder::new().prefix(".bundle-").tempfile_in(directory).map_err(&failed)?;
    let mut write = || {
        whole.write_all(head)?;
        blobs.seek(SeekFrom::Start(0))?;
        let copied = io::copy(&mut blobs, whole.as_file_mut())?;
        whole.as_file().set_permissions(fs::Permissions::from_mode(0o644))?;
        whole.as_file().sync_all()?;
        Ok(copied)
    };
    let copied: u64 = write().map_err(&failed)?;
    whole.persist(output).map_err(|error| failed(error.error))?;
    File::open(directory).and_then(|d| d.sync_all()).map_err(&failed)?;
    Ok(copied.saturating_add(head.len() as u64))
}

/// Cuts one image.
struct Cutter<'a> {
    spec: &'a BundleSpec,
    blobs: &'a mut File,
    done: u64,
    progress: &'a mut dyn FnMut(u64),
}

/// A chunk's output and, unless it is stored as it is, what is stored instead.
struct Made {
    output: Vec<u8>,
    digest: Digest,
    kind: ChunkKind,
    packed: Vec<u8>,
}

/// How many chunks are worked on together.
const BATCH: usize = 32;

impl Cutter<'_> {
    fn payload(&mut self, role: &str, image: &Path) -> Result<(Payload, Vec<u8>), WriteError> {
        let failed = at("reading", image);
        let mut input = File::open(image).map_err(&failed)?;
        let mut whole = Sha256::new();
        let mut table = Vec::new();
        let mut next = Chunk {
            index: 0,
            offset: 0,
            len: 0,
            kind: ChunkKind::Zeroes,
            stored_offset: 0,
            stored_len: 0,
            digest: Digest([0; 32]),
        };
        loop {
            let outputs = self.read_batch(&mut input).map_err(&failed)?;
            if outputs.is_empty() {
                break;
            }
            for made in compress(outputs, self.spec.level, &mut whole).map_err(&failed)? {
                let stored = if made.kind == ChunkKind::Raw { &made.output } else { &made.packed };
                self.blobs.write_all(stored).map_err(at("writing a temporary file for", image))?;
                next.len = made.output.len() as u32;
                next.kind = made.kind;
                next.stored_len = stored.len() as u32;
                next.digest = made.digest;
                next.push_to(&mut table);
                next.offset = next.offset.saturating_add(u64::from(next.len));
                next.stored_offset = next.stored_offset.saturating_add(u64::from(next.stored_len));
                self.done = self.done.saturating_add(u64::from(next.len));
                (self.progress)(u64::from(next.len));
            }
        }
        let payload = Payload {
            role: role.to_owned(),
            size: next.offset,
            sha256: Digest(whole.finalize().into()),
            chunk_table: ChunkTableRef { length: table.len() as u64, sha256: sha256(&table) },
            blobs: BlobsRef { length: next.stored_offset },
        };
        Ok((payload, table))
    }

    fn read_batch(&self, input: &mut File) -> io::Result<Vec<Vec<u8>>> {
        let mut outputs = Vec::new();
        while outputs.len() < BATCH {
            let mut output = Vec::with_capacity(self.spec.chunk_bytes as usize);
            input.take(u64::from(self.spec.chunk_bytes)).read_to_end(&mut output)?;
            if output.is_empty() {
                break;
            }
            outputs.push(output);
        }
        Ok(outputs)
    }
}

/// Compresses a batch on all cores while the whole image's digest goes on here; the order stays.
fn compress(outputs: Vec<Vec<u8>>, level: i32, whole: &mut Sha256) -> io::Result<Vec<Made>> {
    let workers = std::thread::available_parallelism().map_or(1, usize::from);
    let share = outputs.len().div_ceil(workers).max(1);
    std::thread::scope(|scope| {
        let tasks: Vec<_> = outputs
            .chunks(share)
            .map(|part| {
                scope.spawn(move || {
                    let mut compressor = zstd::bulk::Compressor::new(level)?;
                    part.iter().map(|output| pack(output, &mut compressor)).collect::<io::Result<Vec<_>>>()
                })
            })
            .collect();
        outputs.iter().for_each(|output| whole.update(output));
        let mut packs = Vec::with_capacity(outputs.len());
        for task in tasks {
            packs.extend(task.join().unwrap_or_else(|_| Err(io::Error::other("a compressing thread ended")))?);
        }
        Ok(packs)
    })
    .map(|packs| {
        let whole = outputs.into_iter().zip(packs);
        whole.map(|(output, (digest, kind, packed))| Made { output, digest, kind, packed }).collect()
    })
}

fn pack(output: &[u8], compressor: &mut zstd::bulk::Compressor<'_>) -> io::Result<(Digest, ChunkKind, Vec<u8>)> {
    if output.iter().all(|&byte| byte == 0) {
        let len = u32::try_from(output.len()).map_err(io::Error::other)?;
        return Ok((zeroes_digest(len), ChunkKind::Zeroes, Vec::new()));
    }
    let packed = compressor.compress(output)?;
    let digest = sha256(output);
    if packed.len() < output.len() {
        Ok((digest, ChunkKind::Zstd, packed))
    } else {
        Ok((digest, ChunkKind::Raw, Vec::new()))
    }
}

fn at(what: &'static str, path: &Path) -> impl Fn(io::Error) -> WriteError + use<> {
    let path = path.to_owned();
    move |source| WriteError::File { what, path: path.clone(), source }
}

/// A bundle that could not be made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WriteError {
    /// The chunk size is out of bounds.
    #[error("a chunk size of {0} is not within {MIN_CHUNK_BYTES} to {MAX_CHUNK_BYTES} bytes")]
    ChunkSize(u32),
    /// A file cannot be read or written.
    #[error("{what} {path:?} failed")]
    File {
        /// What was being done.
        what: &'static str,
        /// To which file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The release or the images break a rule, so that no reader of format 1 would take the bundle.
    #[error("no bundle of format {FORMAT_VERSION} can be made of this")]
    Rule(#[source] BundleError),
    /// It could not be signed.
    #[error(transparent)]
    Keys(#[from] KeysError),
}
