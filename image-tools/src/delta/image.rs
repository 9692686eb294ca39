//! A whole image against a base: chunks encoded on all cores, written in order. The same images give the same bytes,
//! on however many cores.

use std::fs::File;
use std::io::{self, Write};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::Mutex;

use serde::{Deserialize, Serialize};

use super::encode::{Aligned, ChunkEncoder};
use super::index::BaseIndex;
use super::predict::Prediction;
use super::predict::learn::learn;
use super::table::{Transform, Way, push_record};

/// How a new image is cut and packed.
#[derive(Debug, Clone, Copy)]
pub struct DeltaSpec {
    /// Bytes of a chunk's output; must be that of the payload's chunk table.
    pub chunk_bytes: u32,
    /// The zstd level.
    pub level: i32,
    /// How many threads work; nothing of the result depends on it.
    pub workers: usize,
    /// Whether references in executables are predicted.
    pub predict: Predict,
}

/// Whether references in executables are predicted, where that pays.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Predict {
    /// They are.
    #[default]
    On,
    /// They are not: for devices whose agent does not know how.
    Off,
}

impl DeltaSpec {
    /// On all cores.
    #[must_use]
    pub fn new(chunk_bytes: u32, level: i32) -> Self {
        let predict = Predict::default();
        DeltaSpec { chunk_bytes, level, predict, workers: std::thread::available_parallelism().map_or(1, usize::from) }
    }
}

/// A delta without its blobs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EncodedImage {
    /// The delta table, not packed.
    pub table: Vec<u8>,
    /// Length of the blobs in bytes.
    pub blobs: u64,
    /// What the image is made of.
    pub tally: Tally,
}

/// Bytes of an image by the way they are made.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tally {
    /// In chunks of zeroes.
    pub zeroes: u64,
    /// In chunks copied from the base.
    pub copied: u64,
    /// In chunks patched from the base.
    pub patched: u64,
    /// In chunks that have nothing to do with the base.
    pub whole: u64,
}

impl Tally {
    /// Counts a chunk of `len` bytes.
    pub fn count(&mut self, way: Way, len: u64) {
        let place = match way {
            Way::Zeroes => &mut self.zeroes,
            Way::Copied => &mut self.copied,
            Way::Patched { .. } => &mut self.patched,
            Way::Raw | Way::Zstd => &mut self.whole,
        };
        *place = place.saturating_add(len);
    }
}

/// How many chunks are handed out together; their order is restored before the next ones.
const BATCH: usize = 64;

/// Encodes `new`, `size` bytes long, and writes the stored bytes to `blobs`. `progress` is told how many bytes of it
/// are done. `base` is afterwards that with references replaced.
///
/// # Errors
/// When `new` cannot be read, `blobs` not be written, or zstd fails.
pub fn encode_image(
    base: &mut BaseIndex,
    new: &File,
    size: u64,
    spec: DeltaSpec,
    blobs: &mut dyn Write,
    progress: &mut dyn FnMut(u64),
) -> io::Result<EncodedImage> {
    encode_predicting(base, &NewImage { file: new, size, spec }, blobs, progress, |prediction| prediction)
}

/// [`encode_image`] with what `change` makes of the prediction.
pub(super) fn encode_predicting(
    base: &mut BaseIndex,
    image: &NewImage<'_>,
    blobs: &mut dyn Write,
    progress: &mut dyn FnMut(u64),
    change: impl FnOnce(Prediction) -> Prediction,
) -> io::Result<EncodedImage> {
    let aligned = image.align(base, progress)?;
    let prediction = match image.spec.predict {
        Predict::On => change(image.predict(base, &aligned)?),
        Predict::Off => Prediction::default(),
    };
    base.predict(&prediction);
    image.encode(base, aligned, &prediction, blobs, progress)
}

/// An image to be made, chunk by chunk.
pub(super) struct NewImage<'n> {
    pub(super) file: &'n File,
    pub(super) size: u64,
    pub(super) spec: DeltaSpec,
}

impl NewImage<'_> {
    /// Numbers of chunks that are worked on together.
    fn batches(&self) -> impl Iterator<Item = Range<usize>> + use<> {
        let chunks = self.size.div_ceil(u64::from(self.spec.chunk_bytes)) as usize;
        (0..chunks).step_by(BATCH).map(move |first| first..chunks.min(first + BATCH))
    }

    /// What `work` makes of each chunk, in order. Every worker takes the next chunk as soon as it is free: chunks differ
    /// a hundredfold in the work they are.
    fn each<T: Send>(
        &self,
        batch: Range<usize>,
        work: impl Fn(usize, &[u8]) -> io::Result<T> + Sync,
    ) -> io::Result<Vec<T>> {
        let left = Mutex::new(batch);
        let next = || left.lock().ok().and_then(|mut left| left.next());
        let chunk = u64::from(self.spec.chunk_bytes);
        let mut made = std::thread::scope(|scope| {
            let worker = || {
                let mut made = Vec::new();
                while let Some(number) = next() {
                    let offset = chunk.saturating_mul(number as u64);
                    let mut output = vec![0; chunk.min(self.size.saturating_sub(offset)) as usize];
                    self.file.read_exact_at(&mut output, offset)?;
                    made.push((number, work(number, &output)?));
                }
                Ok(made)
            };
            let tasks: Vec<_> = (0..self.spec.workers.max(1)).map(|_| scope.spawn(worker)).collect();
            let mut made = Vec::new();
            for task in tasks {
                made.extend(task.join().unwrap_or_else(|_| Err(io::Error::other("an encoding thread ended")))?);
            }
            Ok::<_, io::Error>(made)
        })?;
        made.sort_unstable_by_key(|(number, _)| *number);
        Ok(made.into_iter().map(|(_, made)| made).collect())
    }

    /// Finds out where each chunk comes from.
    fn align(&self, base: &BaseIndex, progress: &mut dyn FnMut(u64)) -> io::Result<Vec<Aligned>> {
        let mut all = Vec::new();
        for batch in self.batches() {
            for (aligned, len) in self.each(batch, |_, output| Ok((Aligned::new(base, output), output.len())))? {
                progress(len as u64 / 2);
                all.push(aligned);
            }
        }
        Ok(all)
    }

    /// Encodes each chunk against a base in which references were replaced.
    fn encode(
        &self,
        base: &BaseIndex,
        aligned: Vec<Aligned>,
        prediction: &Prediction,
        blobs: &mut dyn Write,
        progress: &mut dyn FnMut(u64),
    ) -> io::Result<EncodedImage> {
        let mut made = EncodedImage { table: Vec::new(), blobs: 0, tally: Tally::default() };
        let mut is_predicted = false;
        for batch in self.batches() {
            let encode = |number: usize, output: &[u8]| {
                let aligned = aligned.get(number).cloned().unwrap_or(Aligned::Zeroes);
                let mut encoder = ChunkEncoder::new(base, self.spec.level)?.predicting(prediction);
                let mut encoded = encoder.encode_aligned(output, aligned)?;
                if encoded.way == Way::Raw {
                    encoded.stored = output.to_vec();
                }
                Ok((encoded, output.len()))
            };
            for (encoded, len) in self.each(batch, encode)? {
                blobs.write_all(&encoded.stored)?;
                is_predicted |= encoded.transform == Transform::Predicted;
                let stored = encoded.stored.len() as u64;
                push_record(&mut made.table, encoded.way, encoded.transform, stored, &encoded.source);
                made.blobs = made.blobs.saturating_add(stored);
                made.tally.count(encoded.way, len as u64);
                progress((len - len / 2) as u64);
            }
        }
        if is_predicted {
            made.table.extend(prediction.to_bytes());
        }
        Ok(made)
    }

    /// What is to be predicted, as a device will read it.
    fn predict(&self, base: &BaseIndex, aligned: &[Aligned]) -> io::Result<Prediction> {
        let offsets = (0u64..).step_by(self.spec.chunk_bytes as usize);
        let moves: Vec<_> = aligned.iter().zip(offsets).flat_map(|(aligned, offset)| aligned.moves(offset)).collect();
        let mut new = vec![0; usize::try_from(self.size).map_err(io::Error::other)?];
        self.file.read_exact_at(&mut new, 0)?;
        let learned = learn(base.bytes(), &new, &moves);
        if learned.is_empty() {
            return Ok(learned);
        }
        let bytes = learned.to_bytes();
        let size = base.bytes().len() as u64;
        Prediction::parse(&bytes, size).map_err(|fault| io::Error::other(format!("a prediction is wrong: {fault:?}")))
    }
}
