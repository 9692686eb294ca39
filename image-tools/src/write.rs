//! Makes a bundle: images cut into chunks and compressed on all cores, deltas against older images, then signed, then
//! put together in one file.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use bascule_core::Digest;
use jiff::Timestamp;
use sha2::{Digest as _, Sha256};

use crate::decode::zeroes_digest;
use crate::delta::file::check_chunk_bytes;
use crate::delta::image::{DeltaSpec, Tally, Transforms, encode_image};
use crate::delta::index::BaseIndex;
use crate::error::BundleError;
use crate::format::{Header, within};
use crate::keys::{KeyDir, KeysError};
use crate::limits::{FORMAT_VERSION, MAX_CHUNK_BYTES, MAX_DELTAS, MIN_CHUNK_BYTES, PLAIN_FORMAT_VERSION};
use crate::manifest::{BaseImage, BlobsPlace, BlobsRef, DeltaRef, Manifest, Payload, TableRef, sha256};
use crate::output::{Output, directory};
use crate::release::Release;
use crate::table::{Chunk, ChunkKind};

/// The zstd level of full images: every device with another system fetches them, and every release packs them anew.
pub const DEFAULT_LEVEL: i32 = 9;
/// The zstd level of deltas: they are small, and fetched by most devices.
pub const DEFAULT_DELTA_LEVEL: i32 = 19;

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
    /// Images that devices may run now: a delta is made against each.
    pub bases: Vec<BaseSpec>,
    /// The zstd level of the deltas.
    pub delta_level: i32,
    /// What the deltas may ask of a device beside patching.
    pub transforms: Transforms,
    /// Where the full data go.
    pub full: BlobsPlace,
}

/// An image that devices may run now.
#[derive(Debug, Clone)]
pub struct BaseSpec {
    /// The slot role whose payload is made against it.
    pub role: String,
    /// The image.
    pub image: PathBuf,
    /// The version whose image it is; `None`: devices find out by looking.
    pub version: Option<String>,
}

impl BundleSpec {
    /// A bundle of full images, packed and cut as is usual, signed at `now` until `expires`.
    #[must_use]
    pub fn new(release: Release, payloads: Vec<(String, PathBuf)>, now: Timestamp, expires: Timestamp) -> Self {
        let (bases, full) = (Vec::new(), BlobsPlace::Inside);
        let (level, chunk_bytes, delta_level) = (DEFAULT_LEVEL, MAX_CHUNK_BYTES, DEFAULT_DELTA_LEVEL);
        let transforms = Transforms::default();
        BundleSpec { release, payloads, level, chunk_bytes, now, expires, bases, delta_level, transforms, full }
    }

    /// What every agent reads, unless there is something in it that needs the newer format.
    fn format(&self) -> u16 {
        let plain = self.bases.is_empty() && self.full == BlobsPlace::Inside;
        if plain { PLAIN_FORMAT_VERSION } else { FORMAT_VERSION }
    }
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
    /// What each delta makes the image of, in the order of the manifest.
    pub deltas: Vec<Tally>,
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
    check_chunk_bytes(spec.chunk_bytes).map_err(|_| WriteError::ChunkSize(spec.chunk_bytes))?;
    for (role, _) in &spec.payloads {
        let deltas = spec.bases.iter().filter(|base| base.role == *role).count() as u64;
        within("the list of deltas", deltas, MAX_DELTAS as u64).map_err(WriteError::Rule)?;
    }
    let directory = directory(output);
    let mut blobs = tempfile::tempfile_in(directory).map_err(at("making a temporary file in", directory))?;
    let (mut tables, mut payloads) = (Vec::new(), Vec::new());
    let (mut beside, mut tallies) = (Vec::new(), Vec::new());
    for (role, image) in &spec.payloads {
        let mut delta_tables = Vec::new();
        let mut deltas = Vec::new();
        for base in spec.bases.iter().filter(|base| base.role == *role) {
            let (delta, table, tally) = delta(spec, base, image, &mut blobs, progress)?;
            deltas.push(delta);
            delta_tables.extend(table);
            tallies.push(tally);
        }
        let mut own = match spec.full {
            BlobsPlace::Inside => None,
            BlobsPlace::Beside | BlobsPlace::Absent => Some(begin(output)?),
        };
        let full = own.as_mut().map_or(&mut blobs, Output::file);
        let mut cutter = Cutter { spec, blobs: full, done: 0, progress };
        let (mut payload, table) = cutter.payload(role, image)?;
        payload.deltas = deltas;
        payloads.push(payload);
        tables.extend(table);
        tables.extend(delta_tables);
        beside.extend(own);
    }
    let manifest = manifest(&spec.release, payloads);
    manifest.check().map_err(WriteError::Rule)?;
    let bytes = manifest.to_bytes();
    within("a manifest", bytes.len() as u64, crate::limits::MAX_MANIFEST_BYTES).map_err(WriteError::Rule)?;
    let metadata = keys.sign_manifest(&manifest.target_name(), &bytes, spec.now, spec.expires)?;
    let metadata = metadata.to_bytes().map_err(WriteError::Rule)?;
    let header = Header { version: spec.format(), metadata: metadata.len() as u64, manifest: bytes.len() as u64 };
    let digest = sha256(&bytes);
    let head = [&header.to_bytes()[..], &metadata, &bytes, &tables].concat();
    if spec.full == BlobsPlace::Beside {
        for (payload, file) in manifest.payloads.iter().zip(beside) {
            let path = directory.join(manifest.full_data_name(&payload.role));
            file.keep_as(&path).map_err(at("writing", &path))?;
        }
    }
    let bundle_bytes = put_together(&head, blobs, output).map_err(at("writing", output))?;
    Ok(Summary { manifest, digest, bundle_bytes, deltas: tallies })
}

/// Makes the delta of `image` against one base: what the manifest says of it, its packed table, and what it is made of.
fn delta(
    spec: &BundleSpec,
    base: &BaseSpec,
    image: &Path,
    blobs: &mut File,
    progress: &mut dyn FnMut(u64),
) -> Result<(DeltaRef, Vec<u8>, Tally), WriteError> {
    let mut index = BaseIndex::read(&base.image).map_err(at("reading", &base.image))?;
    let failed = at("making the delta of", image);
    let new = File::open(image).map_err(&failed)?;
    let size = new.metadata().map_err(&failed)?.len();
    let cut = DeltaSpec { transforms: spec.transforms, ..DeltaSpec::new(spec.chunk_bytes, spec.delta_level) };
    let (base_size, base_digest) = (index.bytes().len() as u64, sha256(index.bytes()));
    let made = encode_image(&mut index, &new, size, cut, blobs, progress).map_err(&failed)?;
    let (table, about) = crate::layout::pack(&made.table).map_err(&failed)?;
    let base = BaseImage { version: base.version.clone(), size: base_size, sha256: base_digest };
    Ok((DeltaRef { base, table: about, blobs: made.blobs }, table, made.tally))
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

fn put_together(head: &[u8], mut blobs: File, output: &Path) -> io::Result<u64> {
    let mut whole = Output::begin(output)?;
    whole.file().write_all(head)?;
    blobs.seek(SeekFrom::Start(0))?;
    let copied = io::copy(&mut blobs, whole.file())?;
    whole.keep()?;
    Ok(copied.saturating_add(head.len() as u64))
}

fn begin(output: &Path) -> Result<Output, WriteError> {
    Output::begin(output).map_err(at("making a temporary file for", output))
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
        let (table, about) = if self.spec.format() == PLAIN_FORMAT_VERSION {
            let about = TableRef { length: table.len() as u64, sha256: sha256(&table), unpacked: None };
            (table, about)
        } else {
            crate::layout::pack(&table).map_err(&failed)?
        };
        let payload = Payload {
            role: role.to_owned(),
            size: next.offset,
            sha256: Digest(whole.finalize().into()),
            chunk_table: about,
            blobs: BlobsRef { length: next.stored_offset, place: self.spec.full },
            deltas: Vec::new(),
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
    #[error("a chunk size of {0} is not a multiple of {MIN_CHUNK_BYTES} up to {MAX_CHUNK_BYTES} bytes")]
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
    #[error("no bundle can be made of this")]
    Rule(#[source] BundleError),
    /// It could not be signed.
    #[error(transparent)]
    Keys(#[from] KeysError),
}
