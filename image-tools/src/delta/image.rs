//! A whole image against a base: chunks encoded on all cores, written in order. The same images give the same bytes,
//! on however many cores.

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::sync::Mutex;

use serde::{Deserialize, Serialize};

use super::encode::{ChunkEncoder, Encoded};
use super::index::BaseIndex;
use super::table::{Way, push_record};

/// How a new image is cut and packed.
#[derive(Debug, Clone, Copy)]
pub struct DeltaSpec {
    /// Bytes of a chunk's output; must be that of the payload's chunk table.
    pub chunk_bytes: u32,
    /// The zstd level.
    pub level: i32,
    /// How many threads work; nothing of the result depends on it.
    pub workers: usize,
}

impl DeltaSpec {
    /// On all cores.
    #[must_use]
    pub fn new(chunk_bytes: u32, level: i32) -> Self {
        DeltaSpec { chunk_bytes, level, workers: std::thread::available_parallelism().map_or(1, usize::from) }
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
/// are done.
///
/// # Errors
/// When `new` cannot be read, `blobs` not be written, or zstd fails.
pub fn encode_image(
    base: &BaseIndex,
    new: &File,
    size: u64,
    spec: DeltaSpec,
    blobs: &mut dyn Write,
    progress: &mut dyn FnMut(u64),
) -> io::Result<EncodedImage> {
    let chunk = u64::from(spec.chunk_bytes);
    let mut made = EncodedImage { table: Vec::new(), blobs: 0, tally: Tally::default() };
    let mut start = 0;
    while start < size {
        let end = size.min(start.saturating_add(chunk.saturating_mul(BATCH as u64)));
        let offsets = (start..end).step_by(spec.chunk_bytes as usize);
        let places = offsets.map(|offset| (offset, chunk.min(size - offset) as usize)).collect();
        for (output, encoded) in encode_batch(base, new, places, spec)? {
            let stored = if encoded.way == Way::Raw { &output } else { &encoded.stored };
            blobs.write_all(stored)?;
            push_record(&mut made.table, encoded.way, stored.len() as u64, &encoded.source);
            made.blobs = made.blobs.saturating_add(stored.len() as u64);
            made.tally.count(encoded.way, output.len() as u64);
            progress(output.len() as u64);
        }
        start = end;
    }
    Ok(made)
}

/// A chunk's output and what became of it.
type Made = (Vec<u8>, Encoded);

/// Every worker takes the next chunk as soon as it is free: chunks differ a hundredfold in the work they are.
fn encode_batch(base: &BaseIndex, new: &File, places: Vec<(u64, usize)>, spec: DeltaSpec) -> io::Result<Vec<Made>> {
    let work = Mutex::new(places.into_iter().enumerate());
    let next = || work.lock().ok().and_then(|mut work| work.next());
    let mut made = std::thread::scope(|scope| {
        let worker = || {
            let mut encoder = ChunkEncoder::new(base, spec.level)?;
            let mut made = Vec::new();
            while let Some((number, (offset, len))) = next() {
                let mut output = vec![0; len];
                new.read_exact_at(&mut output, offset)?;
                let encoded = encoder.encode(&output)?;
                made.push((number, (output, encoded)));
            }
            Ok(made)
        };
        let tasks: Vec<_> = (0..spec.workers.max(1)).map(|_| scope.spawn(worker)).collect();
        let mut made = Vec::new();
        for task in tasks {
            made.extend(task.join().unwrap_or_else(|_| Err(io::Error::other("an encoding thread ended")))?);
        }
        Ok::<_, io::Error>(made)
    })?;
    made.sort_unstable_by_key(|(number, _)| *number);
    Ok(made.into_iter().map(|(_, made)| made).collect())
}
