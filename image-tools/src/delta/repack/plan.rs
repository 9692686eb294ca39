//! Cuts a chunk that holds compressed data into parts, and tries each: what an encoder does not make again byte by byte
//! is left as it is. Only on the developer's host.
//!
//! A block of squashfs is packed as a whole, however little of it is wanted. One that the base image has too, byte by
//! byte, is better copied than packed.
//!
//! An encoder of LZ4 looks back 64 KiB. One that begins so much earlier than the bytes that are wanted soon finds the
//! matches that the first encoder found, and makes the same bytes of them.

#![allow(clippy::indexing_slicing, reason = "on the developer's host, over places that this module made itself")]

use std::collections::HashSet;
use std::hash::{DefaultHasher, Hasher as _};

use super::find::{Found, bytes_of};
use super::lz4::{self, Sequence};
use super::zstd;
use super::{Codec, Part};
use crate::limits::{BASE_BLOCK_BYTES, MAX_PART_BYTES, MAX_PARTS};

/// How much of what follows is packed along, tried one after the other: an encoder looks ahead a little.
const AHEAD: [usize; 3] = [256, 8 << 10, 64 << 10];
/// A run of packed bytes shorter than this is not worth a part.
const LEAST_RUN: usize = 256;

/// A number that two stretches of bytes hardly share.
pub(crate) fn number_of(bytes: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    hasher.write(bytes);
    hasher.finish()
}

/// A part of a chunk and its content. The part has no pieces yet.
#[derive(Debug, Clone)]
pub(crate) struct Planned {
    pub(crate) part: Part,
    pub(crate) content: Vec<u8>,
    /// Where the content begins in the image, or behind it in what the units hold.
    pub(crate) at: u64,
}

/// A stretch of the new image that holds a part of a unit.
struct Place {
    start: usize,
    length: usize,
    unit: usize,
    /// Where in the packed unit it begins.
    packed: usize,
}

/// The units of the new image, ready to cut chunks by.
#[derive(Default)]
pub(crate) struct Plan {
    found: Found,
    /// Where what the units hold begins, if it follows the image at a block.
    behind: u64,
    places: Vec<Place>,
    units: Vec<Unit>,
}

/// A unit, ready to be packed again.
struct Unit {
    packed: Vec<u8>,
    /// Of LZ4.
    sequences: Vec<Sequence>,
    /// The base image has the very same bytes.
    is_old: bool,
}

impl Plan {
    /// The plan of `image`, where `old` has the [`number_of`] the packed bytes of each unit of the base image.
    pub(crate) fn new(found: Found, image: &[u8], old: &HashSet<u64>) -> Self {
        let behind = (image.len() as u64).next_multiple_of(BASE_BLOCK_BYTES);
        let mut plan = Plan { places: Vec::new(), units: Vec::new(), found, behind };
        for (number, unit) in plan.found.units.iter().enumerate() {
            let mut packed = 0;
            for stretch in &unit.stretches {
                let (start, length) = (stretch.start as usize, stretch.length as usize);
                plan.places.push(Place { start, length, unit: number, packed });
                packed += length;
            }
            let packed = bytes_of(image, &unit.stretches);
            let is_lz4 = unit.codec == Codec::Lz4;
            let sequences = is_lz4.then(|| lz4::sequences(&packed)).flatten().unwrap_or_default();
            let is_old = old.contains(&number_of(&packed));
            plan.units.push(Unit { packed, sequences, is_old });
        }
        plan.places.sort_unstable_by_key(|place| place.start);
        plan
    }

    /// Where what the units hold begins.
    pub(crate) fn behind(&self) -> u64 {
        self.behind
    }

    /// What the units hold.
    pub(crate) fn found(&self) -> &Found {
        &self.found
    }

    /// The parts of the chunk `output` at `offset` of the image; `None` where nothing of it can be packed again.
    pub(crate) fn parts(&self, offset: usize, output: &[u8]) -> Option<Vec<Planned>> {
        let end = offset + output.len();
        let first = self.places.partition_point(|place| place.start + place.length <= offset);
        let mut parts = Parts { output, offset, made: Vec::new(), plain: 0 };
        let mut at = offset;
        for place in self.places[first..].iter().take_while(|place| place.start < end) {
            let (from, to) = (place.start.max(offset), (place.start + place.length).min(end));
            parts.plain += from - at;
            self.run(place.unit, place.packed + (from - place.start), place.packed + (to - place.start), &mut parts);
            at = to;
        }
        parts.plain += end - at;
        parts.flush();
        let is_packed = parts.made.iter().any(|planned| planned.part.codec != Codec::Plain);
        (is_packed && parts.made.len() as u64 <= MAX_PARTS).then_some(parts.made)
    }

    /// Parts for the bytes `from..to` of a packed unit.
    fn run(&self, unit: usize, from: usize, to: usize, parts: &mut Parts<'_>) {
        let mut at = from;
        while at < to {
            let (planned, end) = self.packed(unit, at, to);
            match planned {
                Some(planned) => parts.push(planned),
                None => parts.plain += end - at,
            }
            at = end;
        }
    }

    /// The longest part that begins at byte `at` of a packed unit and does not go beyond `to`, or `None` for bytes that
    /// are left as they are; and where it ends.
    fn packed(&self, unit: usize, at: usize, to: usize) -> (Option<Planned>, usize) {
        let found = &self.found.units[unit];
        let content = &self.found.content[found.at..][..found.length as usize];
        let Unit { packed, sequences, is_old } = &self.units[unit];
        match found.codec {
            Codec::Plain => return (None, to),
            Codec::Zstd(_) if *is_old || to - at < LEAST_RUN => return (None, to),
            Codec::Zstd(level) => {
                let is_same = || zstd::again(level, content).is_some_and(|again| again == *packed);
                let (skip, take, rest) = (at as u32, (to - at) as u32, (packed.len() - to) as u32);
                let part = Part { codec: found.codec, content: found.length, skip, take, rest, pieces: Vec::new() };
                let planned = || Planned { part, content: content.to_vec(), at: self.behind + found.at as u64 };
                return (is_same().then(planned), to);
            }
            Codec::Lz4 => {}
        }
        let Some(first) = sequences.partition_point(|(_, packed)| *packed as usize <= at).checked_sub(1) else {
            return (None, to);
        };
        let (begin, place) = (sequences[first].0 as usize, sequences[first].1 as usize);
        let start = begin.saturating_sub(lz4::REACH);
        let most = start + MAX_PART_BYTES as usize - AHEAD[AHEAD.len() - 1];
        let behind = sequences.partition_point(|(content, _)| (*content as usize) <= most);
        let next = |number: usize| sequences.get(number).map_or(packed.len(), |(_, packed)| *packed as usize);
        // Where the last sequence that fits ends is where the next one begins.
        let last = if content.len() <= most { sequences.len() } else { behind.saturating_sub(1) };
        let end = next(last).min(to);
        if last <= first || end - at < LEAST_RUN.min(to - at) {
            return (None, next(first + 1).min(to));
        }
        let reached = sequences.partition_point(|(_, packed)| (*packed as usize) < end);
        let reached = sequences.get(reached).map_or(content.len(), |(content, _)| *content as usize);
        for ahead in AHEAD {
            let content = &content[start..content.len().min(reached + ahead)];
            let wanted = &packed[at..end];
            if let Some(part) = tried(content, begin - start, at - place, wanted) {
                let at = self.behind + (found.at + start) as u64;
                return (Some(Planned { part, content: content.to_vec(), at }), end);
            }
        }
        (None, end)
    }
}

/// The part that packs `content` to something with `wanted` in it: `inside` bytes behind the sequence that begins at
/// `begin` of the content.
fn tried(content: &[u8], begin: usize, inside: usize, wanted: &[u8]) -> Option<Part> {
    if content.len() > MAX_PART_BYTES as usize {
        return None;
    }
    let mut packed = vec![0; MAX_PART_BYTES as usize];
    let length = lz4::pack(content, &mut packed)?;
    let sequences = lz4::sequences(&packed[..length])?;
    let place = sequences.binary_search_by_key(&(begin as u32), |(content, _)| *content).ok()?;
    let skip = sequences[place].1 as usize + inside;
    let is_same = packed[..length].get(skip..)?.starts_with(wanted);
    let (skip, take, rest) = (skip as u32, wanted.len() as u32, (length - skip - wanted.len()) as u32);
    let content = content.len() as u32;
    is_same.then_some(Part { codec: Codec::Lz4, content, skip, take, rest, pieces: Vec::new() })
}

/// The parts of a chunk so far.
struct Parts<'o> {
    output: &'o [u8],
    /// Where that is in the image.
    offset: usize,
    made: Vec<Planned>,
    /// Bytes behind these that are left as they are.
    plain: usize,
}

impl Parts<'_> {
    fn push(&mut self, planned: Planned) {
        self.flush();
        self.made.push(planned);
    }

    fn flush(&mut self) {
        if self.plain == 0 {
            return;
        }
        let done: usize = self.made.iter().map(|planned| planned.part.take as usize).sum();
        let content = self.output[done..done + self.plain].to_vec();
        let length = content.len() as u32;
        let part = Part { codec: Codec::Plain, content: length, skip: 0, take: length, rest: 0, pieces: Vec::new() };
        self.made.push(Planned { part, content, at: (self.offset + done) as u64 });
        self.plain = 0;
    }
}
