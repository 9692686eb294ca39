//! The base image in memory with two indexes: equal blocks anywhere, and seeds of alignments at any byte.
//!
//! Memory is the image, 4 bytes per 4 bytes of it that are not in a block of zeroes, and at most 1 GiB of heads for
//! images of 1 GiB and more: about 2.5 times what of the image is not zeroes.

#![allow(clippy::indexing_slicing, reason = "on the developer's host, over places that this module made itself")]

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Seek as _, SeekFrom};
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use super::predict::Prediction;
use super::repack::Units;
use super::table::BaseRange;
use crate::limits::MAX_UNPACKED_BYTES;

/// The unit of the block index in bytes.
pub(super) const BLOCK: usize = 4096;
/// Length of a seed in bytes.
pub(super) const SEED: usize = 12;
/// A seed begins at every such place of the base.
const STEP: usize = 4;
/// How many places of one seed are looked at, the last ones first.
const MAX_CHAIN: usize = 24;
/// Stands for no place.
const NONE: u32 = u32::MAX;

/// A base image that new images are compared with.
pub struct BaseIndex {
    bytes: Vec<u8>,
    /// From a block's hash to the first block that has it.
    blocks: HashMap<u64, u32>,
    /// From a seed's hash to the last sample that has it.
    heads: Vec<u32>,
    /// From a sample to the one before with the same hash. Samples of blocks of zeroes are left out.
    earlier: Vec<u32>,
    /// From a sample's number, in units of a block's samples, to its block.
    block_of: Vec<u32>,
    /// What the base image really holds in blocks whose references were replaced.
    originals: HashMap<u32, Box<[u8]>>,
    /// Where the content of units behind the image comes from.
    units: Option<Units>,
}

impl std::fmt::Debug for BaseIndex {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("BaseIndex").field("bytes", &self.bytes.len()).finish_non_exhaustive()
    }
}

impl BaseIndex {
    /// Reads and indexes an image.
    ///
    /// # Errors
    /// When it cannot be read, or is larger than 16 GiB.
    pub fn read(path: &Path) -> io::Result<Self> {
        let mut file = File::open(path)?;
        let size = file.seek(SeekFrom::End(0))?;
        Self::new(read_image(&file, size)?)
    }

    /// Indexes an image.
    ///
    /// # Errors
    /// When it is larger than 16 GiB.
    pub fn new(bytes: Vec<u8>) -> io::Result<Self> {
        if bytes.len() / STEP >= NONE as usize {
            return Err(io::Error::other("a base image of 16 GiB or more cannot be indexed"));
        }
        let full = bytes.chunks(BLOCK).filter(|block| !is_zero(block)).count();
        let bits = (full * BLOCK / STEP).next_power_of_two().ilog2().clamp(10, 28);
        let blocks = 0..bytes.len().div_ceil(BLOCK);
        let mut index = BaseIndex {
            blocks: HashMap::with_capacity(full),
            heads: vec![NONE; 1 << bits],
            earlier: Vec::with_capacity(full * BLOCK / STEP),
            block_of: Vec::with_capacity(full),
            originals: HashMap::new(),
            units: None,
            bytes,
        };
        blocks.for_each(|number| index.add(number, bits));
        Ok(index)
    }

    /// Adds what is in a block now.
    fn add(&mut self, number: usize, bits: u32) {
        let block = &self.bytes[number * BLOCK..self.bytes.len().min((number + 1) * BLOCK)];
        if is_zero(block) {
            return;
        }
        self.block_of.push(number as u32);
        if block.len() == BLOCK {
            self.blocks.entry(hash_block(block)).or_insert(number as u32);
        }
        for step in 0..BLOCK / STEP {
            let sample = self.earlier.len() as u32;
            self.earlier.push(NONE);
            let place = number * BLOCK + step * STEP;
            let Some(seed) = self.bytes.get(place..place + SEED) else { continue };
            if seed.iter().all(|&byte| byte == seed[0]) {
                continue;
            }
            let head = &mut self.heads[slot(seed, bits)];
            self.earlier[sample as usize] = *head;
            *head = sample;
        }
    }

    /// Adds what `units` behind the image hold, which is whole blocks long.
    pub(super) fn extend(&mut self, content: &[u8], units: Units) {
        self.units = Some(units);
        let bits = self.heads.len().ilog2();
        let first = self.bytes.len() / BLOCK;
        self.bytes.extend_from_slice(content);
        (first..self.bytes.len() / BLOCK).for_each(|number| self.add(number, bits));
    }

    /// Replaces references as `prediction` says. From here on all but [`real`](Self::real) is about the image after that.
    pub(super) fn predict(&mut self, prediction: &Prediction) {
        let bits = self.heads.len().ilog2();
        for area in &prediction.areas {
            let (start, end) = (area.start as usize, (area.end() as usize).min(self.bytes.len()));
            let mut bytes = self.bytes[start..end].to_vec();
            prediction.apply_to(area.start, &mut bytes);
            for number in start / BLOCK..end.div_ceil(BLOCK) {
                let block = number * BLOCK..self.bytes.len().min((number + 1) * BLOCK);
                let (from, to) = (block.start.max(start), block.end.min(end));
                if self.bytes[from..to] == bytes[from - start..to - start] {
                    continue;
                }
                let original = &self.bytes[block];
                self.originals.entry(number as u32).or_insert_with(|| original.into());
                self.bytes[from..to].copy_from_slice(&bytes[from - start..to - start]);
            }
        }
        let mut changed: Vec<_> = self.originals.keys().copied().collect();
        changed.sort_unstable();
        changed.into_iter().for_each(|number| self.add(number as usize, bits));
    }

    /// Whether a device may unpack all that it needs to read the ranges.
    pub(super) fn may_be_read(&self, ranges: &[BaseRange]) -> bool {
        self.units.as_ref().is_none_or(|units| units.unpacked_for(ranges) <= MAX_UNPACKED_BYTES)
    }

    /// Whether a reference in one of the ranges was replaced.
    pub(super) fn is_predicted(&self, ranges: &[BaseRange]) -> bool {
        let blocks = ranges.iter().flat_map(|range| range.offset / BLOCK as u64..range.end().div_ceil(BLOCK as u64));
        blocks.into_iter().any(|number| self.originals.contains_key(&(number as u32)))
    }

    /// What the base image really holds in ranges of whole blocks, one after the other.
    pub(super) fn real(&self, ranges: &[BaseRange]) -> Vec<u8> {
        let mut bytes = Vec::new();
        for range in ranges {
            for place in (range.offset as usize..range.end() as usize).step_by(BLOCK) {
                let block = &self.bytes[place..self.bytes.len().min(place + BLOCK)];
                bytes.extend_from_slice(self.originals.get(&((place / BLOCK) as u32)).map_or(block, |block| block));
            }
        }
        bytes
    }

    /// The image.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Where a block of the base begins that equals `block`.
    pub(super) fn equal_block(&self, block: &[u8]) -> Option<usize> {
        let place = *self.blocks.get(&hash_block(block))? as usize * BLOCK;
        (self.bytes.get(place..place + BLOCK)? == block).then_some(place)
    }

    /// Places of the base that begin with `seed`, a few of them.
    pub(super) fn places<'i>(&'i self, seed: &'i [u8]) -> impl Iterator<Item = usize> + 'i {
        let mut next = self.heads[slot(seed, self.heads.len().ilog2())];
        let samples = BLOCK / STEP;
        std::iter::from_fn(move || {
            let sample = next as usize;
            next = *self.earlier.get(sample)?;
            Some(self.block_of[sample / samples] as usize * BLOCK + sample % samples * STEP)
        })
        .take(MAX_CHAIN)
        .filter(move |&place| self.bytes.get(place..place + SEED) == Some(seed))
    }
}

/// The first `size` bytes of a file. Zeroes, which images are half made of, take no memory.
pub(super) fn read_image(file: &File, size: u64) -> io::Result<Vec<u8>> {
    let size = usize::try_from(size).map_err(io::Error::other)?;
    // Asked for like this, too much is an error; what is asked for below is zero before anything of it is touched.
    Vec::<u8>::new().try_reserve_exact(size).map_err(io::Error::other)?;
    let mut bytes = vec![0; size];
    let mut read = vec![0; READ];
    for (number, place) in bytes.chunks_mut(READ).enumerate() {
        let read = &mut read[..place.len()];
        file.read_exact_at(read, (number * READ) as u64)?;
        if !is_zero(read) {
            place.copy_from_slice(read);
        }
    }
    Ok(bytes)
}

/// How much of an image is read at a time.
const READ: usize = 64 << 10;

pub(super) fn is_zero(bytes: &[u8]) -> bool {
    bytes.iter().all(|&byte| byte == 0)
}

const MIX: u64 = 0x9e37_79b9_7f4a_7c15;

fn slot(seed: &[u8], bits: u32) -> usize {
    let word = |from: usize| seed[from..from + 4].iter().rev().fold(0u64, |sum, &byte| sum << 8 | u64::from(byte));
    let low = word(0) | word(4) << 32;
    let hash = (low ^ word(8).wrapping_mul(MIX).rotate_left(29)).wrapping_mul(MIX);
    ((hash ^ hash >> 32).wrapping_mul(MIX) >> (64 - bits)) as usize
}

fn hash_block(block: &[u8]) -> u64 {
    let (words, _) = block.as_chunks::<8>();
    words.iter().fold(0, |hash: u64, word| (hash ^ u64::from_le_bytes(*word)).wrapping_mul(MIX).rotate_left(31))
}
