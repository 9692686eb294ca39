//! Whole images: a delta file made of an old and a new one, and the new one made of the old one and the file.

use std::fs::File;
use std::io::{self, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use sha2::{Digest as _, Sha256};

use super::apply::{Base, ChunkMaker, source_matches};
use super::error::DeltaError;
use super::explain::Explanation;
use super::file::{DeltaFile, Head, check_chunk_bytes};
use super::image::{DeltaSpec, Tally, encode_image};
use super::index::BaseIndex;
use super::repack::{Fault, Units, read_ranges};
use super::table::{DeltaChunk, Way};
use crate::input::BundleRead;
use crate::limits::MAX_CHUNK_BYTES;
use crate::manifest::{BaseImage, DeltaRef, sha256};
use crate::output::{Output, directory};
use crate::{BundleError, Digest, layout};

/// What came out of [`create_delta`].
#[derive(Debug, Clone)]
pub struct Created {
    /// What the file says of itself.
    pub head: Head,
    /// Length of the file in bytes.
    pub bytes: u64,
    /// What the new image is made of.
    pub tally: Tally,
    /// Where the bytes went, if that was asked.
    pub explanation: Option<Explanation>,
}

/// Makes the delta file `output` that turns the image `old` into `new`, whole or not at all. The same images and `spec`
/// give the same bytes. `progress` is told how many bytes of the new image are done.
///
/// # Errors
/// When an image cannot be read, the file not be written, or something is above a bound.
pub fn create_delta(
    old: &Path,
    new: &Path,
    spec: DeltaSpec,
    output: &Path,
    progress: &mut dyn FnMut(u64),
) -> Result<Created, DeltaError> {
    check_chunk_bytes(spec.chunk_bytes)?;
    let reading = file("reading", new);
    let image = File::open(new).map_err(&reading)?;
    let mut index = BaseIndex::read(old).map_err(file("reading", old))?;
    let Outputs { digests, size, whole } = Outputs::read(&image, spec.chunk_bytes).map_err(&reading)?;
    let mut blobs = tempfile::tempfile_in(directory(output)).map_err(file("making a temporary file for", output))?;
    let base = BaseImage { version: None, size: index.bytes().len() as u64, sha256: sha256(index.bytes()) };
    let made = encode_image(&mut index, &image, size, spec, &mut blobs, progress);
    let made = made.map_err(file("making the delta of", new))?;
    let writing = file("writing", output);
    let (outputs, about_outputs) = layout::pack(&digests).map_err(&writing)?;
    let (table, about_table) = layout::pack(&made.table).map_err(&writing)?;
    let delta = DeltaRef { base, table: about_table, blobs: made.blobs };
    let head = Head { size, sha256: whole, chunk_bytes: spec.chunk_bytes, outputs: about_outputs, delta };
    let start = head.to_file(&outputs, &table);
    // What no reader would take is not left behind.
    Head::parse(&serde_json::to_vec(&head).unwrap_or_default())?;
    let mut write = || {
        let mut file = Output::begin(output)?;
        file.file().write_all(&start)?;
        blobs.seek(SeekFrom::Start(0))?;
        let copied = io::copy(&mut blobs, file.file())?;
        file.keep()?;
        Ok(copied.saturating_add(start.len() as u64))
    };
    let bytes = write().map_err(&writing)?;
    Ok(Created { head, bytes, tally: made.tally, explanation: made.explanation })
}

/// The SHA-256s of an image, chunk by chunk and of it whole.
struct Outputs {
    digests: Vec<u8>,
    size: u64,
    whole: Digest,
}

impl Outputs {
    fn read(image: &File, chunk_bytes: u32) -> io::Result<Self> {
        let (mut digests, mut size, mut whole) = (Vec::new(), 0u64, Sha256::new());
        let mut buffer = vec![0; chunk_bytes as usize];
        loop {
            let mut len = 0;
            while let Some(rest) = buffer.get_mut(len..).filter(|rest| !rest.is_empty()) {
                match image.read_at(rest, size.saturating_add(len as u64))? {
                    0 => break,
                    count => len = len.saturating_add(count),
                }
            }
            let output = buffer.get(..len).unwrap_or_default();
            if output.is_empty() {
                return Ok(Outputs { digests, size, whole: Digest(whole.finalize().into()) });
            }
            whole.update(output);
            digests.extend(Sha256::digest(output));
            size = size.saturating_add(len as u64);
        }
    }
}

/// Makes the image `output` of the image `old` and a delta file, whole or not at all, in memory of a few chunks.
/// `progress` is told how many bytes of it are done.
///
/// # Errors
/// When the delta file is not one, `old` is not its base, or `output` cannot be written.
pub fn apply_delta(
    old: &Path,
    delta: Box<dyn BundleRead>,
    output: &Path,
    progress: &mut dyn FnMut(u64),
) -> Result<Head, DeltaError> {
    let delta = DeltaFile::open(delta)?;
    apply_opened(old, delta, output, progress)
}

/// [`apply_delta`] with a delta file that was opened before.
///
/// # Errors
/// Those of [`apply_delta`].
pub fn apply_opened(
    old: &Path,
    mut delta: DeltaFile,
    output: &Path,
    progress: &mut dyn FnMut(u64),
) -> Result<Head, DeltaError> {
    let head = delta.head().clone();
    let mut base = BaseFile::open(old, head.delta.base.size, delta.units())?;
    let writing = file("writing", output);
    let mut image = Output::begin(output).map_err(&writing)?;
    image.file().set_len(head.size).map_err(&writing)?;
    let (mut maker, mut whole) = (ChunkMaker::new(delta.prediction()), Sha256::new());
    let (mut stored, mut out) = (Vec::new(), vec![0; MAX_CHUNK_BYTES as usize]);
    while let Some(chunk) = delta.fetch_next(&mut stored)? {
        let made = maker.make(&chunk, &stored, &mut base, &mut out).map_err(|error| base.cause(error))?;
        whole.update(made);
        // The file is all zeroes already.
        if chunk.way != Way::Zeroes {
            image.file().write_all_at(made, chunk.output.offset).map_err(&writing)?;
        }
        progress(made.len() as u64);
    }
    delta.finish()?;
    if Digest(whole.finalize().into()) != head.sha256 {
        return Err(DeltaError::Damaged("the image has another SHA-256 than its head says".into()));
    }
    image.keep().map_err(&writing)?;
    Ok(head)
}

/// An old image, read range by range.
#[derive(Debug)]
pub struct BaseFile<'p> {
    path: &'p Path,
    file: File,
    units: Option<Arc<Units>>,
    source: Vec<u8>,
    failed: Option<DeltaError>,
}

impl<'p> BaseFile<'p> {
    /// Opens the old image, or a block device that begins with it, of which `size` bytes are wanted, and the content of
    /// its `units`.
    ///
    /// # Errors
    /// [`DeltaError::OldTooShort`], or [`DeltaError::File`].
    pub fn open(path: &'p Path, size: u64, units: Option<Arc<Units>>) -> Result<Self, DeltaError> {
        let reading = file("reading", path);
        let mut file = File::open(path).map_err(&reading)?;
        // The end of a block device is found by going there: its metadata tell no length.
        let found = file.seek(SeekFrom::End(0)).map_err(&reading)?;
        if found < size {
            return Err(DeltaError::OldTooShort { old: path.to_owned(), found, wanted: size });
        }
        Ok(BaseFile { path, file, units, source: Vec::new(), failed: None })
    }

    /// Why a chunk could not be made: [`DeltaError::WrongBase`] or [`DeltaError::File`] if it was for its source, or else
    /// `error`.
    pub fn cause(&mut self, error: BundleError) -> DeltaError {
        self.failed.take().unwrap_or_else(|| error.into())
    }

    fn read(&mut self, chunk: &DeltaChunk) -> Result<(), DeltaError> {
        let bytes = chunk.source_len();
        self.source.resize(usize::try_from(bytes).unwrap_or(usize::MAX), 0);
        let mut read_at = |at, place: &mut [u8]| self.file.read_exact_at(place, at);
        match read_ranges(self.units.as_deref(), &chunk.source, &mut self.source, &mut read_at) {
            Ok(()) if source_matches(chunk, &self.source) => Ok(()),
            Err(Fault::Read(source)) => Err(file("reading", self.path)(source)),
            Ok(()) | Err(Fault::Packed(_)) => {
                let at = chunk.source.first().map_or(0, |range| range.offset);
                Err(DeltaError::WrongBase { old: self.path.to_owned(), index: chunk.output.index, at, bytes })
            }
        }
    }
}

impl Base for BaseFile<'_> {
    fn source(&mut self, chunk: &DeltaChunk) -> Option<&mut [u8]> {
        self.failed = self.read(chunk).err();
        if self.failed.is_none() { Some(&mut self.source) } else { None }
    }
}

fn file(what: &'static str, path: &Path) -> impl Fn(io::Error) -> DeltaError + use<> {
    let path = path.to_owned();
    move |source| DeltaError::File { what, path: path.clone(), source }
}
