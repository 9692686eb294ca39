//! Where separately compressed units lie in the base image, and reading their content.
//!
//! The content of the units follows the base image: that of the first begins where the image ends, each other one at
//! the next block behind the one before. What lies between is zeroes. So sources are ranges of one long image, and only
//! who reads them knows that a part of it is not stored as it is.

use std::io;
use std::ops::Range;

use super::{Codec, lz4, zstd};
use crate::delta::table::{BaseRange, Fault as TableFault};
use crate::delta::varint;
use crate::format::Fields;
use crate::limits::{BASE_BLOCK_BYTES, MAX_BLOCK_BYTES, MAX_UNIT_BYTES, MAX_UNITS};

/// Reads bytes of the base image at an offset, as many as the slice is long.
pub type ReadAt<'r> = dyn FnMut(u64, &mut [u8]) -> io::Result<()> + 'r;

/// Why the content of units cannot be read.
#[derive(Debug)]
pub enum Fault {
    /// The base image cannot be read.
    Read(io::Error),
    /// A unit is not what it should be; in words.
    Packed(&'static str),
}

/// A stretch of packed bytes in the base image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Stretch {
    pub(crate) start: u64,
    pub(crate) length: u32,
}

/// One unit.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Unit {
    codec: Codec,
    /// Where its content begins in the long image.
    at: u64,
    /// Length of its content in bytes.
    length: u32,
    /// Its stretches among all.
    stretches: Range<u32>,
}

/// The units of a base image: at most [`MAX_UNITS`], and as many stretches.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Units {
    start: u64,
    end: u64,
    units: Vec<Unit>,
    stretches: Vec<Stretch>,
}

const CUT_OFF: TableFault = TableFault::Rule("the units of a delta are cut off or a number in them too great");

/// Where the next block begins.
fn next_block(at: u64) -> u64 {
    at.saturating_add(BASE_BLOCK_BYTES - 1) / BASE_BLOCK_BYTES * BASE_BLOCK_BYTES
}

impl std::fmt::Display for Fault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Fault::Read(error) => write!(f, "{error}"),
            Fault::Packed(what) => write!(f, "compressed data in it are not as they were: {what}"),
        }
    }
}

impl Units {
    /// No units behind an image of `base_size` bytes, which are whole blocks.
    pub(crate) fn behind(base_size: u64) -> Self {
        Units { start: base_size, end: base_size, ..Units::default() }
    }

    /// Adds a unit, and tells where its content begins; `None` where there are too many.
    pub(crate) fn push(&mut self, codec: Codec, length: u32, stretches: &[Stretch]) -> Option<u64> {
        let before = self.stretches.len();
        let fits = self.units.len() < MAX_UNITS && before.saturating_add(stretches.len()) <= MAX_UNITS;
        let packed = stretches.iter().fold(0u64, |sum, stretch| sum.saturating_add(u64::from(stretch.length)));
        let (most, most_packed) = match codec {
            Codec::Zstd(_) => (MAX_BLOCK_BYTES, u64::from(length)),
            Codec::Plain | Codec::Lz4 => (MAX_UNIT_BYTES, u64::MAX),
        };
        if !fits || length == 0 || length > most || packed > most_packed {
            return None;
        }
        let at = self.end;
        self.stretches.extend_from_slice(stretches);
        let stretches = u32::try_from(before).ok()?..u32::try_from(self.stretches.len()).ok()?;
        self.units.push(Unit { codec, at, length, stretches });
        self.end = next_block(at.saturating_add(u64::from(length)));
        Some(at)
    }

    /// Where the base image ends and content of units begins.
    #[must_use]
    pub fn start(&self) -> u64 {
        self.start
    }

    /// Where the content of the last unit ends, rounded up to a whole block.
    #[must_use]
    pub fn end(&self) -> u64 {
        self.end
    }

    /// Appends all that [`parse`](Self::parse) reads.
    pub(crate) fn push_to(&self, bytes: &mut Vec<u8>) {
        let mut row = |numbers: &mut dyn Iterator<Item = u64>| numbers.for_each(|number| varint::push(bytes, number));
        row(&mut std::iter::once(self.units.len() as u64));
        row(&mut self.units.iter().map(|unit| u64::from(unit.codec.number())));
        row(&mut self.units.iter().map(|unit| u64::from(unit.length)));
        row(&mut self.units.iter().map(|unit| unit.stretches.len() as u64));
        row(&mut self.stretches.iter().map(|stretch| u64::from(stretch.length)));
        let mut end = 0i64;
        for stretch in &self.stretches {
            let start = stretch.start.cast_signed();
            varint::push_signed(bytes, start.wrapping_sub(end));
            end = start.wrapping_add(i64::from(stretch.length));
        }
    }

    /// Takes the units of a base image of `base_size` bytes.
    pub(crate) fn parse(fields: &mut Fields<'_>, base_size: u64) -> Result<Self, TableFault> {
        const TOO_MANY: TableFault = TableFault::Rule("a delta has more units than the limit, or longer ones");
        if !base_size.is_multiple_of(BASE_BLOCK_BYTES) {
            return Err(TableFault::Rule("a base image with units is not of whole blocks"));
        }
        let number = |fields: &mut Fields<'_>| varint::take(fields).ok_or(CUT_OFF);
        let count = usize::try_from(number(fields)?).ok().filter(|count| *count <= MAX_UNITS).ok_or(TOO_MANY)?;
        let mut row = |length: usize| (0..length).map(|_| number(fields)).collect::<Result<Vec<_>, _>>();
        let (codecs, lengths, counts) = (row(count)?, row(count)?, row(count)?);
        let all = counts.iter().fold(0u64, |sum, count| sum.saturating_add(*count));
        let all = usize::try_from(all).ok().filter(|all| *all <= MAX_UNITS).ok_or(TOO_MANY)?;
        let mut stretches = Vec::with_capacity(all);
        for length in row(all)? {
            let length = u32::try_from(length).ok().filter(|length| *length <= MAX_UNIT_BYTES).ok_or(TOO_MANY)?;
            stretches.push(Stretch { start: 0, length });
        }
        let mut end = 0u64;
        for stretch in &mut stretches {
            let gap = varint::take_signed(fields).ok_or(CUT_OFF)?;
            stretch.start = end.checked_add_signed(gap).ok_or(CUT_OFF)?;
            end = stretch.start.checked_add(u64::from(stretch.length)).ok_or(CUT_OFF)?;
            if end > base_size {
                return Err(TableFault::Rule("a unit is outside of the base image"));
            }
        }
        let mut made = Units::behind(base_size);
        let mut rest = stretches.as_slice();
        for ((codec, length), count) in codecs.into_iter().zip(lengths).zip(counts) {
            let codec = u8::try_from(codec).unwrap_or(u8::MAX);
            let codec = Codec::from_number(codec).ok_or(TableFault::Kind(codec))?;
            let (own, behind) = rest.split_at_checked(count as usize).ok_or(CUT_OFF)?;
            rest = behind;
            made.push(codec, u32::try_from(length).unwrap_or(u32::MAX), own).ok_or(TOO_MANY)?;
        }
        Ok(made)
    }

    /// What of which unit the ranges hold, in their order.
    fn windows(&self, ranges: &[BaseRange]) -> Vec<(usize, Window)> {
        let mut windows: Vec<(usize, Window)> = Vec::new();
        let mut place = 0usize;
        for range in ranges {
            let first =
                self.units.partition_point(|unit| unit.at.saturating_add(u64::from(unit.length)) <= range.offset);
            let touched = self.units.iter().enumerate().skip(first).take_while(|(_, unit)| unit.at < range.end());
            for (number, unit) in touched {
                let from = range.offset.max(unit.at);
                let to = range.end().min(unit.at.saturating_add(u64::from(unit.length)));
                let to_place = place.saturating_add(usize::try_from(from - range.offset).unwrap_or(usize::MAX));
                windows.push((number, Window { from: from - unit.at, to: to - unit.at, place: to_place }));
            }
            place = place.saturating_add(usize::try_from(range.len).unwrap_or(usize::MAX));
        }
        windows
    }

    /// How many bytes are unpacked to read the ranges; see [`MAX_UNPACKED_BYTES`](crate::limits::MAX_UNPACKED_BYTES).
    pub(crate) fn unpacked_for(&self, ranges: &[BaseRange]) -> u64 {
        let windows = self.windows(ranges);
        let ends = windows.chunk_by(is_one_go).filter_map(|run| run.last().map(|(_, window)| window.to));
        ends.fold(0, u64::saturating_add)
    }

    /// Fills `out` with `ranges` behind the base image, one after the other.
    pub(super) fn read(&self, ranges: &[BaseRange], out: &mut [u8], read_at: &mut ReadAt<'_>) -> Result<(), Fault> {
        out.fill(0);
        let windows = self.windows(ranges);
        for run in windows.chunk_by(is_one_go) {
            let Some(unit) = run.first().and_then(|(number, _)| self.units.get(*number)) else { continue };
            let windows: Vec<_> = run.iter().map(|(_, window)| *window).collect();
            let mut wanted = Wanted { windows: &windows, out };
            let place = unit.stretches.start as usize..unit.stretches.end as usize;
            let stretches = self.stretches.get(place).unwrap_or_default();
            let mut packed = PackedBytes { stretches, read_at, buffer: Vec::new(), at: 0, taken: 0 };
            match unit.codec {
                Codec::Plain => plain(&mut packed, &mut wanted)?,
                Codec::Zstd(_) => zstd::unpack(&mut packed, u64::from(unit.length), &mut wanted)?,
                Codec::Lz4 => lz4::unpack(&mut packed, u64::from(unit.length), &mut wanted)?,
            }
            if !wanted.is_done() {
                return Err(Fault::Packed("it ends early"));
            }
        }
        Ok(())
    }
}

/// Fills `out` with `ranges` of a base image, one after the other, and of the content of `units` behind it.
///
/// # Errors
/// [`Fault`]; `out` then holds rubbish.
pub fn read_ranges(
    units: Option<&Units>,
    ranges: &[BaseRange],
    out: &mut [u8],
    read_at: &mut ReadAt<'_>,
) -> Result<(), Fault> {
    let mut rest = out;
    let mut ranges = ranges;
    while let Some((range, behind)) = ranges.split_first() {
        let stored = units.map_or(u64::MAX, Units::start).saturating_sub(range.offset).min(range.len);
        let plain = usize::try_from(stored).ok().and_then(|len| rest.split_off_mut(..len)).ok_or(TOO_SHORT)?;
        if !plain.is_empty() {
            read_at(range.offset, plain).map_err(Fault::Read)?;
        }
        ranges = behind;
        let Some(units) = units.filter(|_| stored < range.len) else { continue };
        // All that follows behind the image is read together: a unit is unpacked once for all that is wanted of it.
        let more = behind.iter().take_while(|next| next.offset >= units.start).count();
        let mut together = vec![BaseRange { offset: range.offset + stored, len: range.len - stored }];
        together.extend(behind.iter().take(more));
        ranges = behind.get(more..).unwrap_or_default();
        let length = together.iter().fold(0u64, |sum, range| sum.saturating_add(range.len));
        let place = usize::try_from(length).ok().and_then(|len| rest.split_off_mut(..len)).ok_or(TOO_SHORT)?;
        units.read(&together, place, read_at)?;
    }
    if rest.is_empty() { Ok(()) } else { Err(TOO_SHORT) }
}

/// Hands on a unit that is stored as it is: a block among packed ones that did not become shorter.
fn plain(input: &mut PackedBytes<'_, '_>, wanted: &mut Wanted<'_>) -> Result<(), Fault> {
    let mut at = 0u64;
    while !wanted.is_done() {
        let bytes = input.some(READ_BYTES)?;
        if bytes.is_empty() {
            break;
        }
        wanted.offer(at, bytes);
        at = at.saturating_add(bytes.len() as u64);
    }
    Ok(())
}

const TOO_SHORT: Fault = Fault::Packed("its ranges are of another length");

/// What is wanted of one unit's content, and where it is to be put.
#[derive(Debug, Clone, Copy)]
struct Window {
    from: u64,
    to: u64,
    place: usize,
}

/// Whether both are read while their unit is unpacked once.
fn is_one_go(one: &(usize, Window), next: &(usize, Window)) -> bool {
    one.0 == next.0 && one.1.to <= next.1.from
}

/// Takes what is wanted of a unit's content as it comes by. Windows ascend.
pub(super) struct Wanted<'w> {
    windows: &'w [Window],
    out: &'w mut [u8],
}

impl Wanted<'_> {
    pub(super) fn is_done(&self) -> bool {
        self.windows.is_empty()
    }

    /// `bytes` are at `at` of the content; those before were offered already.
    pub(super) fn offer(&mut self, at: u64, bytes: &[u8]) {
        let end = at.saturating_add(bytes.len() as u64);
        while let Some((window, behind)) = self.windows.split_first() {
            let (from, to) = (window.from.max(at), window.to.min(end));
            if from < to {
                let place = |start: u64, of: u64| usize::try_from(of.saturating_sub(start)).unwrap_or(usize::MAX);
                let source = bytes.get(place(at, from)..place(at, to));
                let target = self.out.get_mut(window.place.saturating_add(place(window.from, from))..);
                if let (Some(source), Some(target)) = (source, target.and_then(|t| t.get_mut(..place(from, to)))) {
                    target.copy_from_slice(source);
                }
            }
            if window.to > end {
                return;
            }
            self.windows = behind;
        }
    }
}

/// How much is read at a time.
const READ_BYTES: usize = 64 << 10;

/// The packed bytes of one unit.
pub(super) struct PackedBytes<'p, 'r> {
    stretches: &'p [Stretch],
    read_at: &'p mut ReadAt<'r>,
    buffer: Vec<u8>,
    at: usize,
    /// How much of the first stretch was read.
    taken: usize,
}

impl PackedBytes<'_, '_> {
    /// The next bytes, at most `most`; none at the end.
    pub(super) fn some(&mut self, most: usize) -> Result<&[u8], Fault> {
        if self.at == self.buffer.len() {
            self.refill()?;
        }
        let left = self.buffer.get(self.at..).unwrap_or_default();
        let bytes = left.get(..most.min(left.len())).unwrap_or_default();
        self.at = self.at.saturating_add(bytes.len());
        Ok(bytes)
    }

    /// What was read and not taken yet; the unit may go on behind it.
    pub(super) fn left(&self) -> &[u8] {
        self.buffer.get(self.at..).unwrap_or_default()
    }

    /// Takes bytes that [`left`](Self::left) showed.
    pub(super) fn skip(&mut self, count: usize) {
        self.at = self.at.saturating_add(count).min(self.buffer.len());
    }

    /// The next byte; `None` at the end.
    pub(super) fn byte(&mut self) -> Result<Option<u8>, Fault> {
        if let Some(&byte) = self.buffer.get(self.at) {
            self.at = self.at.saturating_add(1);
            return Ok(Some(byte));
        }
        Ok(self.some(1)?.first().copied())
    }

    fn refill(&mut self) -> Result<(), Fault> {
        self.at = 0;
        self.buffer.clear();
        while let Some((stretch, behind)) = self.stretches.split_first() {
            let done = self.taken;
            let left = (stretch.length as usize).saturating_sub(done);
            if left == 0 {
                self.stretches = behind;
                self.taken = 0;
                continue;
            }
            self.buffer.resize(left.min(READ_BYTES), 0);
            let from = stretch.start.saturating_add(done as u64);
            self.taken = done.saturating_add(self.buffer.len());
            return (self.read_at)(from, &mut self.buffer).map_err(Fault::Read);
        }
        Ok(())
    }
}
