//! A whole image against a base: chunks encoded on all cores, written in order. The same images give the same bytes,
//! on however many cores.

use std::fs::File;
use std::io::{self, Write};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Mutex};

use serde::{Deserialize, Serialize};

use super::encode::{Aligned, ChunkEncoder, Encoded};
use super::explain::{Explanation, Labels, Shares};
use super::index::{BaseIndex, read_image};
use super::patch::Patcher;
use super::predict::Prediction;
use super::predict::ext4::Extent;
use super::predict::learn::learn;
use super::proof;
use super::repack::find::{self, FoundUnit};
use super::repack::plan::{Plan, number_of};
use super::repack::units::Units;
use super::table::Way;
use crate::layout;
use crate::limits::{BASE_BLOCK_BYTES, MAX_CHUNK_BYTES};

/// How a new image is cut and packed.
#[derive(Debug, Clone, Copy)]
pub struct DeltaSpec {
    /// Bytes of a chunk's output; must be that of the payload's chunk table.
    pub chunk_bytes: u32,
    /// The zstd level.
    pub level: i32,
    /// How many threads work; nothing of the result depends on it.
    pub workers: usize,
    /// What may be done beside.
    pub transforms: Transforms,
    /// Whether it is told where the bytes went.
    pub explain: bool,
}

/// What a delta may ask of a device beside patching, where that pays. All of it, but for devices whose agent does not
/// know how.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Transforms {
    /// References in executables are predicted.
    pub predict: bool,
    /// Compressed data are made of what they hold.
    pub repack: bool,
}

impl Default for Transforms {
    fn default() -> Self {
        Transforms { predict: true, repack: true }
    }
}

impl Transforms {
    /// None of them.
    pub const NONE: Self = Transforms { predict: false, repack: false };
}

impl DeltaSpec {
    /// On all cores.
    #[must_use]
    pub fn new(chunk_bytes: u32, level: i32) -> Self {
        let workers = std::thread::available_parallelism().map_or(1, usize::from);
        DeltaSpec { chunk_bytes, level, workers, transforms: Transforms::default(), explain: false }
    }
}

/// A delta without its blobs.
#[derive(Debug, Clone, PartialEq)]
pub struct EncodedImage {
    /// The delta table, not packed.
    pub table: Vec<u8>,
    /// Length of the blobs in bytes.
    pub blobs: u64,
    /// What the image is made of.
    pub tally: Tally,
    /// Where the bytes went, if that was asked.
    pub explanation: Option<Explanation>,
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
    /// In chunks that hold compressed data, and are made of what these hold.
    #[serde(default)]
    pub repacked: u64,
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
            Way::Packed => &mut self.repacked,
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
    let repacked = if image.spec.transforms.repack { Repacked::new(base, image)? } else { Repacked::default() };
    let aligned = image.align(base, progress)?;
    let prediction = match image.spec.transforms.predict {
        true => change(image.predict(base, &repacked, &aligned)?),
        false => Prediction::default(),
    };
    base.predict(&prediction);
    let prediction = Arc::new(prediction);
    image.encode(base, aligned, (&prediction, &repacked), blobs, progress)
}

/// What compressed data in both images hold; nothing, where one of them has none.
#[derive(Default)]
struct Repacked {
    /// Where units of the base image lie.
    units: Option<Units>,
    /// Files in their content, as the long image has them.
    files: Vec<Vec<Extent>>,
    /// How chunks of the new image are cut into parts.
    plan: Plan,
}

impl Repacked {
    /// Finds the units of both images, and adds the content of those of the base to it.
    fn new(base: &mut BaseIndex, image: &NewImage<'_>) -> io::Result<Self> {
        let size = base.bytes().len();
        if !size.is_multiple_of(BASE_BLOCK_BYTES as usize) {
            return Ok(Repacked::default());
        }
        let old = find::find(base.bytes());
        if old.units.is_empty() {
            return Ok(Repacked::default());
        }
        let bytes = image.bytes()?;
        let new = find::find(&bytes);
        let mut units = Units::behind(size as u64);
        let fits = old.units.iter().all(|unit| units.push(unit.codec, unit.length, &unit.stretches).is_some());
        if new.units.is_empty() || !fits {
            return Ok(Repacked::default());
        }
        let packed = |unit: &FoundUnit| number_of(&find::bytes_of(base.bytes(), &unit.stretches));
        let old_units = old.units.iter().map(packed).collect();
        let mut content = old.content;
        content.resize(content.len().next_multiple_of(BASE_BLOCK_BYTES as usize), 0);
        base.extend(&content, units.clone());
        Ok(Repacked {
            units: Some(units),
            files: old.files.iter().map(|file| file.behind(size as u64)).collect(),
            plan: Plan::new(new, &bytes, &old_units),
        })
    }
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

    /// What `work` makes of each chunk, in order.
    fn each<T: Send>(
        &self,
        batch: Range<usize>,
        work: impl Fn(usize, &[u8]) -> io::Result<T> + Sync,
    ) -> io::Result<Vec<T>> {
        let chunk = u64::from(self.spec.chunk_bytes);
        in_turn(self.spec.workers, batch, |number| {
            let offset = chunk.saturating_mul(number as u64);
            let mut output = vec![0; chunk.min(self.size.saturating_sub(offset)) as usize];
            self.file.read_exact_at(&mut output, offset)?;
            work(number, &output)
        })
    }

    /// The whole image.
    fn bytes(&self) -> io::Result<Vec<u8>> {
        read_image(self.file, self.size)
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
        (prediction, repacked): (&Arc<Prediction>, &Repacked),
        blobs: &mut dyn Write,
        progress: &mut dyn FnMut(u64),
    ) -> io::Result<EncodedImage> {
        let mut made = EncodedImage { table: Vec::new(), blobs: 0, tally: Tally::default(), explanation: None };
        let labels = if self.spec.explain { Some(self.labels(&repacked.plan)?) } else { None };
        let mut all = Shares::new();
        let (mut is_predicted, mut needs_units) = (false, false);
        let end = repacked.units.as_ref().map_or(u64::MAX, Units::start);
        for batch in self.batches() {
            let encode = |number: usize, output: &[u8]| {
                let aligned = aligned.get(number).cloned().unwrap_or(Aligned::Zeroes);
                let mut encoder = ChunkEncoder::new(base, self.spec.level)?.predicting(prediction);
                let mut encoded = encoder.encode_aligned(output, aligned)?;
                if encoded.stored_len(output.len()) > WORTH_PARTS
                    && let Some(parts) = repacked.plan.parts(number * self.spec.chunk_bytes as usize, output)
                {
                    let other = encoder.encode_parts(parts)?;
                    if other.cost(output.len()) < encoded.cost(output.len()) {
                        encoded = other;
                    }
                }
                let fill = |encoded: &mut Encoded| {
                    if encoded.way == Way::Raw {
                        encoded.stored = output.to_vec();
                    }
                };
                fill(&mut encoded);
                if !proof::makes(&encoded, output, base, prediction) {
                    debug_assert!(false, "chunk {number} does not come out");
                    encoded = encoder.encode_alone(output)?;
                    fill(&mut encoded);
                }
                let offset = number as u64 * u64::from(self.spec.chunk_bytes);
                let share = |labels: &Labels| labels.share(&encoded, offset, output.len(), &mut Patcher::default());
                let shares = labels.as_ref().map(share).unwrap_or_default();
                Ok((encoded, output.len(), shares))
            };
            for (encoded, len, shares) in self.each(batch, encode)? {
                shares.into_iter().for_each(|(label, bytes)| *all.entry(label).or_default() += bytes);
                blobs.write_all(&encoded.stored)?;
                is_predicted |= encoded.is_predicted();
                needs_units |= encoded.way == Way::Packed || encoded.source.iter().any(|range| range.end() > end);
                encoded.push_to(&mut made.table);
                made.blobs = made.blobs.saturating_add(encoded.stored.len() as u64);
                made.tally.count(encoded.way, len as u64);
                progress((len - len / 2) as u64);
            }
        }
        if let Some(units) = repacked.units.as_ref().filter(|_| needs_units) {
            units.push_to(&mut made.table);
        }
        if is_predicted {
            // Without units there is nothing behind the image that could be predicted.
            let end = if needs_units { u64::MAX } else { end };
            made.table.extend(prediction.until(end).to_bytes());
        }
        if let Some(labels) = labels {
            let table = layout::pack(&made.table)?.1.length;
            made.explanation = Some(labels.explain(&all, table));
        }
        Ok(made)
    }

    /// The files of the image and of what its units hold.
    fn labels(&self, plan: &Plan) -> io::Result<Labels> {
        Ok(Labels::new(&self.bytes()?, plan.found(), plan.behind()))
    }

    /// What is to be predicted, as a device will read it.
    fn predict(&self, base: &BaseIndex, repacked: &Repacked, aligned: &[Aligned]) -> io::Result<Prediction> {
        let offsets = (0u64..).step_by(self.spec.chunk_bytes as usize);
        let mut moves: Vec<_> =
            aligned.iter().zip(offsets).flat_map(|(aligned, offset)| aligned.moves(offset)).collect();
        let mut new = self.bytes()?;
        new.resize(new.len().next_multiple_of(BASE_BLOCK_BYTES as usize), 0);
        let behind = new.len();
        let found = repacked.plan.found();
        let new_files: Vec<_> = found.files.iter().map(|file| file.behind(behind as u64)).collect();
        let content = &found.content;
        let pieces: Vec<_> = content.chunks(MAX_CHUNK_BYTES as usize).collect();
        let aligned = in_turn(self.spec.workers, 0..pieces.len(), |number| {
            Ok(pieces.get(number).map(|piece| Aligned::new(base, piece)))
        })?;
        let offsets = (behind as u64..).step_by(MAX_CHUNK_BYTES as usize);
        moves.extend(
            aligned.iter().zip(offsets).flat_map(|(one, offset)| one.iter().flat_map(move |one| one.moves(offset))),
        );
        new.extend_from_slice(content);
        let learned = learn((base.bytes(), &repacked.files), (&new, &new_files), &moves);
        if learned.is_empty() {
            return Ok(learned);
        }
        let bytes = learned.to_bytes();
        let size = base.bytes().len() as u64;
        Prediction::parse(&bytes, size).map_err(|fault| io::Error::other(format!("a prediction is wrong: {fault:?}")))
    }
}

/// A chunk that takes fewer stored bytes is not tried in parts.
const WORTH_PARTS: usize = 4 << 10;

/// What `work` makes of each number, in order. Every worker takes the next one as soon as it is free: chunks differ a
/// hundredfold in the work they are.
fn in_turn<T: Send>(
    workers: usize,
    numbers: Range<usize>,
    work: impl Fn(usize) -> io::Result<T> + Sync,
) -> io::Result<Vec<T>> {
    let left = Mutex::new(numbers);
    let next = || left.lock().ok().and_then(|mut left| left.next());
    let mut made = std::thread::scope(|scope| {
        let worker = || {
            let mut made = Vec::new();
            while let Some(number) = next() {
                made.push((number, work(number)?));
            }
            Ok(made)
        };
        let tasks: Vec<_> = (0..workers.max(1)).map(|_| scope.spawn(worker)).collect();
        let mut made = Vec::new();
        for task in tasks {
            made.extend(task.join().unwrap_or_else(|_| Err(io::Error::other("an encoding thread ended")))?);
        }
        Ok::<_, io::Error>(made)
    })?;
    made.sort_unstable_by_key(|(number, _)| *number);
    Ok(made.into_iter().map(|(_, made)| made).collect())
}
