//! Delta tables: how each chunk of an image is made when the booted slot holds a known other image.
//!
//! A delta table has one record per chunk of the payload's own chunk table, in the same order, and makes the same
//! outputs: length and SHA-256 of each are there. A record says only how.

use std::sync::Arc;

use bascule_core::Digest;

use super::predict::{Prediction, side};
use super::repack::{Codec, Part, Units};
use super::varint;
use crate::error::BundleError;
use crate::format::Fields;
use crate::limits::{
    BASE_BLOCK_BYTES, MAX_CHUNK_BYTES, MAX_PART_BYTES, MAX_PARTS, MAX_PAYLOAD_BYTES, MAX_RANGES, MAX_SOURCE_BYTES,
    MAX_UNPACKED_BYTES,
};
use crate::table::{Chunk, ChunkTable, Cursor};

/// How a chunk's output is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// Only zero bytes.
    Zeroes,
    /// Stored as it is.
    Raw,
    /// Stored as one zstd frame.
    Zstd,
    /// The source ranges, one after the other; their SHA-256 is the output's.
    Copied,
    /// A stored patch against the source ranges.
    Patched {
        /// SHA-256 of the source ranges, one after the other.
        source: Digest,
    },
    /// In parts, some of which are packed again.
    Packed,
}

impl Way {
    fn number(self) -> u8 {
        match self {
            Way::Zeroes => 0,
            Way::Raw => 1,
            Way::Zstd => 2,
            Way::Copied => 3,
            Way::Patched { .. } => 4,
            Way::Packed => 5,
        }
    }
}

/// What is done to a chunk's source, after it was found to be the right one and before a patch is applied.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Transform {
    /// Nothing.
    #[default]
    None,
    /// Its references are replaced by those that the table's [`Prediction`] expects.
    Predicted,
}

impl Transform {
    fn number(self) -> u8 {
        match self {
            Transform::None => 0,
            Transform::Predicted => 1,
        }
    }
}

/// A stretch of the base image: whole blocks of [`BASE_BLOCK_BYTES`], but for the image's last one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct BaseRange {
    /// Where it begins, in bytes.
    pub offset: u64,
    /// Its length in bytes.
    pub len: u64,
}

impl BaseRange {
    /// The byte behind it.
    #[must_use]
    pub fn end(&self) -> u64 {
        self.offset.saturating_add(self.len)
    }
}

/// One chunk of a delta.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeltaChunk {
    /// What comes out, as the payload's chunk table has it.
    pub output: Chunk,
    /// How it is made.
    pub way: Way,
    /// Where the stored bytes begin, counted from the delta's first blob.
    pub stored_offset: u64,
    /// How many bytes are stored.
    pub stored_len: u32,
    /// What is read of the base image, at most [`MAX_SOURCE_BYTES`]; of a patch in ascending order.
    pub source: Vec<BaseRange>,
    /// What is done to it before the patch is applied.
    pub transform: Transform,
    /// Of [`Way::Packed`] its parts, in order; otherwise none.
    pub parts: Vec<Part>,
}

impl DeltaChunk {
    /// The SHA-256 that the source ranges must have, where there are any.
    #[must_use]
    pub fn source_digest(&self) -> Option<Digest> {
        match self.way {
            Way::Copied => Some(self.output.digest),
            Way::Patched { source } => Some(source),
            Way::Zeroes | Way::Raw | Way::Zstd | Way::Packed => None,
        }
    }

    /// All that has source ranges: the chunk itself, or pieces of its parts.
    pub fn with_source(&self) -> impl Iterator<Item = &DeltaChunk> {
        let pieces = self.parts.iter().flat_map(|part| &part.pieces);
        std::iter::once(self).chain(pieces).filter(|chunk| !chunk.source.is_empty())
    }

    /// Length of the source ranges together, in bytes.
    #[must_use]
    pub fn source_len(&self) -> u64 {
        self.source.iter().fold(0, |sum, range| sum.saturating_add(range.len))
    }
}

/// Appends a chunk's record to a table.
pub(crate) fn push_record(table: &mut Vec<u8>, way: Way, transform: Transform, stored_len: u64, source: &[BaseRange]) {
    table.extend_from_slice(&[way.number(), transform.number()]);
    if matches!(way, Way::Zstd | Way::Patched { .. }) {
        varint::push(table, stored_len);
    }
    if matches!(way, Way::Zeroes | Way::Raw | Way::Zstd) {
        return;
    }
    varint::push(table, source.len() as u64);
    let mut end = 0i64;
    for range in source {
        let first = (range.offset / BASE_BLOCK_BYTES) as i64;
        let count = range.len.div_ceil(BASE_BLOCK_BYTES);
        varint::push_signed(table, first.wrapping_sub(end));
        varint::push(table, count);
        end = first.wrapping_add(count as i64);
    }
    if let Way::Patched { source } = way {
        table.extend_from_slice(&source.0);
    }
}

/// Appends the head of a packed chunk's record; each part follows.
pub(crate) fn push_packed(table: &mut Vec<u8>, parts: usize) {
    table.extend_from_slice(&[Way::Packed.number(), Transform::None.number()]);
    varint::push(table, parts as u64);
}

/// Appends the head of a part, whose pieces are not looked at. The records of these follow, each with the digest of its
/// source if it is copied.
pub(crate) fn push_part(table: &mut Vec<u8>, part: &Part) {
    table.push(part.codec.number());
    varint::push(table, u64::from(part.content));
    if part.codec != Codec::Plain {
        [part.skip, part.take, part.rest].into_iter().for_each(|length| varint::push(table, u64::from(length)));
    }
}

/// A whole delta table, checked once against the chunk table it belongs to, then read record by record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeltaTable {
    bytes: Vec<u8>,
    /// Where what can be a source ends: with the base image, or with the units behind it.
    end: u64,
    prediction: Option<Arc<Prediction>>,
    units: Option<Arc<Units>>,
}

impl DeltaTable {
    /// Checks that there is one record for each chunk of `full`, that every source range lies within a base image of
    /// `base_size` bytes, and that the stored bytes make up `blobs` bytes exactly.
    ///
    /// # Errors
    /// [`BundleError::TableInvalid`] or [`BundleError::UnknownChunkKind`].
    pub fn parse(
        bytes: Vec<u8>,
        role: &str,
        base_size: u64,
        blobs: u64,
        full: &ChunkTable,
    ) -> Result<Self, BundleError> {
        let invalid = |what| BundleError::TableInvalid { role: role.to_owned(), what };
        let refused = |index, fault| match fault {
            Fault::Rule(what) => invalid(what),
            Fault::Kind(kind) => BundleError::UnknownChunkKind { role: role.to_owned(), index, kind },
        };
        let mut table = DeltaTable { bytes, end: base_size, prediction: None, units: None };
        let plain = table.look(full);
        let looked = match plain {
            Ok(seen) if !seen.is_packed => Ok((seen, table.bytes.split_off(seen.end.min(table.bytes.len())))),
            // What breaks a rule may only lie behind the base image, in units.
            plain => match table.take_units(base_size, full) {
                Ok(behind) => table.look(full).map(|seen| (seen, behind)),
                Err(fault) => Err(plain.err().unwrap_or(fault)),
            },
        };
        let (seen, behind) = looked.map_err(|(index, fault)| refused(index, fault))?;
        if seen.is_predicted && behind.is_empty() {
            return Err(invalid("a chunk is predicted, and there is no prediction"));
        }
        if seen.stored != blobs || !behind.is_empty() && !seen.is_predicted {
            return Err(invalid("the delta's chunks do not fill its blobs, or are not those of the image"));
        }
        if seen.is_predicted {
            let parsed = Prediction::parse(&behind, table.end).map_err(|fault| match fault {
                side::Fault::Rule(what) => invalid(what),
                side::Fault::Kind(kind) => refused(seen.count, Fault::Kind(kind)),
            });
            table.prediction = Some(Arc::new(parsed?));
        }
        Ok(table)
    }

    /// Takes the units behind the records, and returns what follows them. Only then is it known where sources may end, so
    /// the records are to be looked at again.
    fn take_units(&mut self, base_size: u64, full: &ChunkTable) -> Result<Vec<u8>, (u64, Fault)> {
        self.end = MOST_BASE_BYTES;
        let seen = self.look(full)?;
        let behind = self.bytes.split_off(seen.end.min(self.bytes.len()));
        let mut fields = Fields(&behind);
        let units = Units::parse(&mut fields, base_size).map_err(|fault| (seen.count, fault))?;
        self.end = units.end();
        self.units = Some(Arc::new(units));
        Ok(fields.0.to_vec())
    }

    /// Looks at every record; the number of the chunk, where one breaks a rule.
    fn look(&self, full: &ChunkTable) -> Result<Seen, (u64, Fault)> {
        let mut cursor = DeltaCursor::default();
        let mut seen = Seen::default();
        let unpacked = |chunk: &DeltaChunk| self.units.as_ref().map_or(0, |units| units.unpacked_for(&chunk.source));
        while let Some(step) = self.step(full, &mut cursor) {
            let chunk = step.map_err(|fault| (seen.count, fault))?;
            if chunk.with_source().any(|chunk| unpacked(chunk) > MAX_UNPACKED_BYTES) {
                return Err((seen.count, Fault::Rule("more is unpacked for a chunk's source than the limit")));
            }
            seen.count = seen.count.saturating_add(1);
            seen.is_packed |= chunk.way == Way::Packed;
            let is_predicted = |chunk: &DeltaChunk| chunk.transform == Transform::Predicted;
            seen.is_predicted |= is_predicted(&chunk) || chunk.with_source().any(is_predicted);
        }
        (seen.end, seen.stored) = (cursor.at, cursor.stored);
        Ok(seen)
    }

    /// What is predicted of the base image's references, if any chunk's source is transformed by it.
    #[must_use]
    pub fn prediction(&self) -> Option<Arc<Prediction>> {
        self.prediction.clone()
    }

    /// Where compressed data lie in the base image, if any chunk is packed again.
    #[must_use]
    pub fn units(&self) -> Option<Arc<Units>> {
        self.units.clone()
    }

    /// All chunks in order; `full` is the table it was checked against.
    pub fn chunks<'t>(&'t self, full: &'t ChunkTable) -> impl Iterator<Item = DeltaChunk> + 't {
        let mut cursor = DeltaCursor::default();
        std::iter::from_fn(move || self.next(full, &mut cursor))
    }

    /// The chunk at `cursor`, which moves behind it; `None` at the end.
    pub(crate) fn next(&self, full: &ChunkTable, cursor: &mut DeltaCursor) -> Option<DeltaChunk> {
        self.step(full, cursor)?.ok()
    }

    fn step(&self, full: &ChunkTable, cursor: &mut DeltaCursor) -> Option<Result<DeltaChunk, Fault>> {
        let output = full.next(&mut cursor.full)?;
        let rest = self.bytes.get(cursor.at..).unwrap_or_default();
        let mut fields = Fields(rest);
        let read = self.record(&mut fields, output, cursor.stored);
        cursor.at = self.bytes.len().saturating_sub(fields.0.len());
        if let Ok(chunk) = &read {
            cursor.stored = cursor.stored.saturating_add(u64::from(chunk.stored_len));
        }
        Some(read)
    }

    fn record(&self, fields: &mut Fields<'_>, output: Chunk, stored_offset: u64) -> Result<DeltaChunk, Fault> {
        let [kind, transform] = fields.array::<2>().map_err(|_| Fault::Rule("the delta's records end early"))?;
        match (kind, transform) {
            (5, 0) => self.packed(fields, output, stored_offset),
            (5, _) => Err(Fault::Kind(kind)),
            _ => self.simple(fields, output, stored_offset, (kind, transform)),
        }
    }

    /// The rest of a record of the kinds that pieces have as well.
    fn simple(
        &self,
        fields: &mut Fields<'_>,
        output: Chunk,
        stored_offset: u64,
        (kind, transform): (u8, u8),
    ) -> Result<DeltaChunk, Fault> {
        let transform = match transform {
            0 => Transform::None,
            1 if kind == 4 => Transform::Predicted,
            _ => return Err(Fault::Kind(kind)),
        };
        if kind > 4 {
            return Err(Fault::Kind(kind));
        }
        let stored_len = match kind {
            1 => output.len,
            2 | 4 => varint::take(fields).and_then(|len| u32::try_from(len).ok()).ok_or(CUT_OFF)?,
            _ => 0,
        };
        if matches!(kind, 2 | 4) && (stored_len == 0 || stored_len >= output.len) {
            return Err(Fault::Rule("a chunk's stored bytes are none, or no fewer than its output's"));
        }
        let source = if kind > 2 { self.ranges(fields, kind == 4)? } else { Vec::new() };
        let way = match kind {
            0 => Way::Zeroes,
            1 => Way::Raw,
            2 => Way::Zstd,
            3 => Way::Copied,
            _ => Way::Patched { source: Digest(fields.array().map_err(|_| CUT_OFF)?) },
        };
        let chunk = DeltaChunk { output, way, stored_offset, stored_len, source, transform, parts: Vec::new() };
        if way == Way::Copied && chunk.source_len() != u64::from(output.len) {
            return Err(Fault::Rule("a copied chunk's source is not as long as the chunk"));
        }
        Ok(chunk)
    }

    /// The rest of a packed chunk's record.
    fn packed(&self, fields: &mut Fields<'_>, output: Chunk, stored_offset: u64) -> Result<DeltaChunk, Fault> {
        let count = varint::take(fields).ok_or(CUT_OFF)?;
        if count == 0 || count > MAX_PARTS {
            return Err(Fault::Rule("a packed chunk has no part, or more than the limit"));
        }
        let mut parts = Vec::new();
        let (mut made, mut stored) = (0u32, stored_offset);
        for _ in 0..count {
            let part = self.part(fields, output, &mut stored)?;
            made = made.saturating_add(part.take);
            parts.push(part);
        }
        if made != output.len {
            return Err(Fault::Rule("a packed chunk's parts are together of another length"));
        }
        let stored_len = u32::try_from(stored.saturating_sub(stored_offset)).map_err(|_| CUT_OFF)?;
        if stored_len >= output.len {
            return Err(Fault::Rule("a chunk's stored bytes are none, or no fewer than its output's"));
        }
        let (way, transform, source) = (Way::Packed, Transform::None, Vec::new());
        Ok(DeltaChunk { output, way, stored_offset, stored_len, source, transform, parts })
    }

    fn part(&self, fields: &mut Fields<'_>, output: Chunk, stored: &mut u64) -> Result<Part, Fault> {
        let number = |fields: &mut Fields<'_>| {
            let number = varint::take(fields).and_then(|number| u32::try_from(number).ok()).ok_or(CUT_OFF)?;
            if number <= MAX_PART_BYTES { Ok(number) } else { Err(Fault::Rule("a part is longer than the limit")) }
        };
        let [codec] = fields.array().map_err(|_| CUT_OFF)?;
        let codec = Codec::from_number(codec).ok_or(Fault::Kind(5))?;
        let content = number(fields)?;
        let (skip, take, rest) = match codec {
            Codec::Plain => (0, content, 0),
            Codec::Lz4 | Codec::Zstd(_) => (number(fields)?, number(fields)?, number(fields)?),
        };
        if take == 0 || content == 0 {
            return Err(Fault::Rule("a part makes nothing"));
        }
        let mut part = Part { codec, content, skip, take, rest, pieces: Vec::new() };
        let mut left = content;
        while left > 0 {
            let len = left.min(MAX_CHUNK_BYTES);
            left -= len;
            let [kind, transform] = fields.array().map_err(|_| CUT_OFF)?;
            let output = Chunk { len, digest: Digest([0; 32]), ..output };
            let mut piece = self.simple(fields, output, *stored, (kind, transform))?;
            if piece.way == Way::Copied {
                piece.output.digest = Digest(fields.array().map_err(|_| CUT_OFF)?);
            }
            *stored = stored.saturating_add(u64::from(piece.stored_len));
            part.pieces.push(piece);
        }
        Ok(part)
    }

    fn ranges(&self, fields: &mut Fields<'_>, ascending: bool) -> Result<Vec<BaseRange>, Fault> {
        let count = varint::take(fields).ok_or(CUT_OFF)?;
        if count == 0 || count > MAX_RANGES {
            return Err(Fault::Rule("a chunk has no source range, or more than the limit"));
        }
        let mut ranges: Vec<BaseRange> = Vec::new();
        let (mut end, mut total) = (0u64, 0u64);
        for _ in 0..count {
            let gap = varint::take_signed(fields).ok_or(CUT_OFF)?;
            let blocks = varint::take(fields).ok_or(CUT_OFF)?;
            if ascending && gap < 0 {
                return Err(Fault::Rule("a patch's source ranges are not in ascending order"));
            }
            let outside = Fault::Rule("a source range is empty or outside of the base image");
            let first =
                end.checked_add_signed(gap).ok_or(Fault::Rule("a source range begins before the base image"))?;
            let range = self.range(first, blocks).ok_or(outside)?;
            if !ranges.is_empty() && total % BASE_BLOCK_BYTES != 0 {
                return Err(Fault::Rule("a range follows the base image's last block"));
            }
            total = total.saturating_add(range.len);
            if total > MAX_SOURCE_BYTES {
                return Err(Fault::Rule("a chunk's source is longer than the limit"));
            }
            end = range.end().div_ceil(BASE_BLOCK_BYTES);
            ranges.push(range);
        }
        Ok(ranges)
    }

    /// The bytes of `count` blocks from block `first` on, cut at the image's end; `None` where that is outside of it.
    fn range(&self, first: u64, count: u64) -> Option<BaseRange> {
        let last = first.checked_add(count)?;
        if count == 0 || last > self.end.div_ceil(BASE_BLOCK_BYTES) {
            return None;
        }
        let offset = first.saturating_mul(BASE_BLOCK_BYTES);
        let end = last.saturating_mul(BASE_BLOCK_BYTES).min(self.end);
        Some(BaseRange { offset, len: end.saturating_sub(offset) })
    }
}

/// No base image with its units is longer: the image is at most as long as a payload, and its units are not longer.
const MOST_BASE_BYTES: u64 = MAX_PAYLOAD_BYTES * 2;

/// What the records of a table are, together.
#[derive(Clone, Copy, Default)]
struct Seen {
    count: u64,
    end: usize,
    stored: u64,
    is_packed: bool,
    is_predicted: bool,
}

const CUT_OFF: Fault = Fault::Rule("a record of the delta is cut off or a number in it too great");

/// A place in a delta table and in the chunk table it belongs to.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct DeltaCursor {
    full: Cursor,
    at: usize,
    stored: u64,
}

/// Why a table is not one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    /// A rule of the format, in words.
    Rule(&'static str),
    /// A chunk, or what belongs to it, is of this kind, which is not known.
    Kind(u8),
}

#[cfg(test)]
mod tests;
