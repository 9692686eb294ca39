//! The encoder: one chunk of a new image as a record and stored bytes.

#![allow(clippy::indexing_slicing, reason = "on the developer's host, over places that this module made itself")]

use std::io;

use super::align::{Piece, align};
use super::index::{BaseIndex, is_zero};
use super::patch::Operation;
use super::predict::Prediction;
use super::predict::learn::Move;
use super::repack::Part;
use super::repack::plan::Planned;
use super::table::{BaseRange, DeltaChunk, Transform, Way, push_packed, push_part, push_record};
use super::varint;
use crate::Digest;
use crate::limits::{BASE_BLOCK_BYTES, MAX_CHUNK_BYTES, MAX_CONTROL_BYTES, MAX_RANGES, MAX_SOURCE_BYTES};
use crate::manifest::sha256;
use crate::table::Chunk;

/// A patch so many times shorter than the chunk packed alone in no time is taken: packed well it is not that much shorter.
const SURELY_LESS: usize = 4;
/// Fewer new bytes in a chunk are not worth another look at where they come from.
const WORTH_ALIGNING: usize = 1024;
/// The zstd level for that.
const QUICK_LEVEL: i32 = 1;

/// One chunk, as it will be stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Encoded {
    /// How its output is made.
    pub way: Way,
    /// What of the base is read.
    pub source: Vec<BaseRange>,
    /// What is stored; for [`Way::Raw`] nothing, because it is the output.
    pub stored: Vec<u8>,
    /// What is done to the source before.
    pub transform: Transform,
    /// Of [`Way::Packed`] its parts.
    pub parts: Vec<EncodedPart>,
}

/// A part of a packed chunk, as it will be stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EncodedPart {
    /// The part without its pieces.
    pub part: Part,
    /// Where its content begins in the new image, or behind it in what its units hold.
    pub at: u64,
    /// These, each with the SHA-256 of its output. Their stored bytes one after the other are the chunk's.
    pub pieces: Vec<(Encoded, Digest)>,
}

impl Encoded {
    fn new(way: Way, source: Vec<BaseRange>, stored: Vec<u8>, transform: Transform) -> Self {
        Encoded { way, source, stored, transform, parts: Vec::new() }
    }

    /// How many bytes are stored for an output of `len`.
    pub(super) fn stored_len(&self, len: usize) -> usize {
        if self.way == Way::Raw { len } else { self.stored.len() }
    }

    /// About how many bytes it takes for an output of `len`, with its record.
    pub(super) fn cost(&self, len: usize) -> usize {
        let mut record = Vec::new();
        self.push_to(&mut record);
        self.stored_len(len) + record.len()
    }

    /// Whether the prediction is applied to any source of it.
    pub(super) fn is_predicted(&self) -> bool {
        let mut pieces = self.parts.iter().flat_map(|part| &part.pieces);
        self.transform == Transform::Predicted || pieces.any(|(piece, _)| piece.is_predicted())
    }

    /// As a device reads it, where it makes `output`. Its blob is taken to be the only one.
    pub(super) fn chunk(&self, output: Chunk) -> DeltaChunk {
        let part = |part: &EncodedPart| {
            let mut left = part.part.content;
            let piece = |(piece, digest): &(Encoded, Digest)| {
                let len = left.min(MAX_CHUNK_BYTES);
                left -= len;
                piece.chunk(Chunk { len, digest: *digest, ..output })
            };
            Part { pieces: part.pieces.iter().map(piece).collect(), ..part.part.clone() }
        };
        let stored_len = self.stored_len(output.len as usize) as u32;
        DeltaChunk {
            output,
            way: self.way,
            stored_offset: 0,
            stored_len,
            source: self.source.clone(),
            transform: self.transform,
            parts: self.parts.iter().map(part).collect(),
        }
    }

    /// Appends its record to a table.
    pub(super) fn push_to(&self, table: &mut Vec<u8>) {
        if self.way != Way::Packed {
            return push_record(table, self.way, self.transform, self.stored.len() as u64, &self.source);
        }
        push_packed(table, self.parts.len());
        for part in &self.parts {
            push_part(table, &part.part);
            for (piece, digest) in &part.pieces {
                piece.push_to(table);
                if piece.way == Way::Copied {
                    table.extend_from_slice(&digest.0);
                }
            }
        }
    }
}

/// Where a chunk comes from, before any reference of the base is replaced.
#[derive(Debug, Clone)]
pub(super) enum Aligned {
    Zeroes,
    /// It is whole blocks of the base.
    Copied(Vec<BaseRange>),
    Pieces(Vec<Piece>),
}

impl Aligned {
    /// Finds where `new` comes from.
    pub(super) fn new(base: &BaseIndex, new: &[u8]) -> Self {
        if is_zero(new) {
            return Aligned::Zeroes;
        }
        let pieces = align(base, new);
        whole_blocks(base, new, &pieces).map_or(Aligned::Pieces(pieces), Aligned::Copied)
    }

    /// The stretches that are copied, of a chunk at `offset` of the new image.
    pub(super) fn moves(&self, offset: u64) -> Vec<Move> {
        let mut moves = Vec::new();
        let mut new = offset;
        match self {
            Aligned::Zeroes => {}
            Aligned::Copied(ranges) => {
                for range in ranges {
                    moves.push(Move { old: range.offset, new, length: range.len });
                    new += range.len;
                }
            }
            Aligned::Pieces(pieces) => {
                for piece in pieces {
                    let length = piece.len as u64;
                    moves.extend(piece.from.map(|from| Move { old: from as u64, new, length }));
                    new += length;
                }
            }
        }
        moves
    }
}

/// Encodes chunks one by one; each thread has its own.
pub struct ChunkEncoder<'b> {
    base: &'b BaseIndex,
    prediction: Option<&'b Prediction>,
    compressor: zstd::bulk::Compressor<'static>,
}

impl<'b> ChunkEncoder<'b> {
    /// Makes an encoder against `base` with a zstd level.
    ///
    /// # Errors
    /// When zstd does not take the level.
    pub fn new(base: &'b BaseIndex, level: i32) -> io::Result<Self> {
        Ok(ChunkEncoder { base, prediction: None, compressor: zstd::bulk::Compressor::new(level)? })
    }

    /// Goes by what `prediction` has replaced in the base.
    pub(super) fn predicting(self, prediction: &'b Prediction) -> Self {
        ChunkEncoder { prediction: Some(prediction), ..self }
    }

    /// Finds the smallest way to make `new`.
    ///
    /// # Errors
    /// When zstd fails.
    pub fn encode(&mut self, new: &[u8]) -> io::Result<Encoded> {
        self.encode_aligned(new, Aligned::new(self.base, new))
    }

    /// Finds the smallest way to make `new`, of which `aligned` says where it comes from.
    ///
    /// # Errors
    /// When zstd fails.
    pub(super) fn encode_aligned(&mut self, new: &[u8], aligned: Aligned) -> io::Result<Encoded> {
        let transform = Transform::None;
        let mut pieces = match aligned {
            Aligned::Zeroes => {
                return Ok(Encoded::new(Way::Zeroes, Vec::new(), Vec::new(), transform));
            }
            Aligned::Copied(source) => return Ok(Encoded::new(Way::Copied, source, Vec::new(), transform)),
            Aligned::Pieces(pieces) => pieces,
        };
        // What was new may be like what is in the base by now.
        let fresh: usize = pieces.iter().filter(|piece| piece.from.is_none()).map(|piece| piece.len).sum();
        let may_change = fresh >= WORTH_ALIGNING && self.prediction.is_some_and(|prediction| !prediction.is_empty());
        if may_change || self.base.is_predicted(&sources(&pieces, self.base.bytes().len() as u64)) {
            pieces = align(self.base, new);
        }
        let patched = self.patch(new, pieces)?;
        if let Some(patched) = &patched {
            let quick = zstd::bulk::compress(new, QUICK_LEVEL)?;
            if patched.stored.len() <= quick.len() / SURELY_LESS {
                return Ok(patched.clone());
            }
        }
        let alone = self.encode_alone(new)?;
        let alone_len = alone.stored_len(new.len());
        Ok(patched.filter(|patched| patched.stored.len() < alone_len).unwrap_or(alone))
    }

    /// Packs `new` without a look at the base.
    ///
    /// # Errors
    /// When zstd fails.
    pub(super) fn encode_alone(&mut self, new: &[u8]) -> io::Result<Encoded> {
        let packed = self.compressor.compress(new)?;
        let (way, stored) = if packed.len() < new.len() { (Way::Zstd, packed) } else { (Way::Raw, Vec::new()) };
        Ok(Encoded::new(way, Vec::new(), stored, Transform::None))
    }

    /// Makes the chunk in `parts`.
    ///
    /// # Errors
    /// When zstd fails.
    pub(super) fn encode_parts(&mut self, parts: Vec<Planned>) -> io::Result<Encoded> {
        let mut made = Encoded::new(Way::Packed, Vec::new(), Vec::new(), Transform::None);
        for Planned { part, content, at } in parts {
            let mut pieces = Vec::new();
            for content in content.chunks(MAX_CHUNK_BYTES as usize) {
                let piece = self.encode(content)?;
                made.stored.extend_from_slice(if piece.way == Way::Raw { content } else { &piece.stored });
                pieces.push((piece, sha256(content)));
            }
            made.parts.push(EncodedPart { part, at, pieces });
        }
        Ok(made)
    }

    fn patch(&mut self, new: &[u8], mut pieces: Vec<Piece>) -> io::Result<Option<Encoded>> {
        let mut shortest = 1;
        while pieces.iter().any(|piece| piece.from.is_some()) {
            let source = sources(&pieces, self.base.bytes().len() as u64);
            let real = self.base.real(&source);
            let digest = sha256(&real);
            let transform = if self.base.is_predicted(&source) { Transform::Predicted } else { Transform::None };
            let mut bytes = real;
            if let Some(prediction) = self.prediction.filter(|_| transform == Transform::Predicted) {
                prediction.apply(&source, &mut bytes);
            }
            let (control, differences, fresh) = streams(&bytes, new, &pieces, &source);
            let total: u64 = source.iter().map(|range| range.len).sum();
            let fits = total <= MAX_SOURCE_BYTES && source.len() as u64 <= MAX_RANGES;
            if fits && self.base.may_be_read(&source) && control.len() <= MAX_CONTROL_BYTES as usize {
                let stored = self.pack(&control, &differences, &fresh)?;
                return Ok(Some(Encoded::new(Way::Patched { source: digest }, source, stored, transform)));
            }
            shortest *= 2;
            for piece in &mut pieces {
                if piece.len < shortest {
                    piece.from = None;
                }
            }
        }
        Ok(None)
    }

    fn pack(&mut self, control: &[u8], differences: &[u8], fresh: &[u8]) -> io::Result<Vec<u8>> {
        let mut packed = |bytes: &[u8]| if bytes.is_empty() { Ok(Vec::new()) } else { self.compressor.compress(bytes) };
        let (control, differences, fresh) = (packed(control)?, packed(differences)?, packed(fresh)?);
        let mut patch = Vec::new();
        varint::push(&mut patch, control.len() as u64);
        varint::push(&mut patch, differences.len() as u64);
        for part in [control, differences, fresh] {
            patch.extend(part);
        }
        Ok(patch)
    }
}

/// The ranges to copy, where every piece is whole blocks of the base as it really is.
fn whole_blocks(base: &BaseIndex, new: &[u8], pieces: &[Piece]) -> Option<Vec<BaseRange>> {
    let size = base.bytes().len() as u64;
    let mut at = 0;
    let mut ranges = Vec::new();
    for (number, piece) in pieces.iter().enumerate() {
        let from = piece.from?;
        let range = BaseRange { offset: from as u64, len: piece.len as u64 };
        let whole = range.len.is_multiple_of(BASE_BLOCK_BYTES) || (range.end() == size && number + 1 == pieces.len());
        let equal = base.bytes().get(from..from + piece.len)? == &new[at..at + piece.len];
        if !range.offset.is_multiple_of(BASE_BLOCK_BYTES) || !whole || !equal {
            return None;
        }
        at += piece.len;
        ranges.push(range);
    }
    (base.may_be_read(&ranges) && !base.is_predicted(&ranges)).then_some(ranges)
}

/// The blocks that the pieces are copied from, in ascending order, put together where they touch.
fn sources(pieces: &[Piece], size: u64) -> Vec<BaseRange> {
    let block = BASE_BLOCK_BYTES;
    let spans = pieces.iter().filter_map(|piece| piece.from.map(|from| (from as u64, (from + piece.len) as u64)));
    let mut spans: Vec<_> =
        spans.map(|(from, to)| (from / block * block, to.next_multiple_of(block).min(size))).collect();
    spans.sort_unstable();
    let mut ranges: Vec<BaseRange> = Vec::new();
    for (from, to) in spans {
        match ranges.last_mut() {
            Some(last) if from <= last.end() => last.len = to.max(last.end()) - last.offset,
            _ => ranges.push(BaseRange { offset: from, len: to - from }),
        }
    }
    ranges
}

/// Control stream, differences and new bytes; `bytes` are those of the ranges, one after the other.
fn streams(bytes_of_source: &[u8], new: &[u8], pieces: &[Piece], source: &[BaseRange]) -> (Vec<u8>, Vec<u8>, Vec<u8>) {
    let mut starts = Vec::with_capacity(source.len());
    let mut sum = 0u64;
    for range in source {
        starts.push(sum);
        sum += range.len;
    }
    let place = |from: usize| {
        let number = source.partition_point(|range| range.offset <= from as u64) - 1;
        starts[number] + (from as u64 - source[number].offset)
    };
    let (mut control, mut differences, mut fresh) = (Vec::new(), Vec::new(), Vec::new());
    let mut operation: Option<Operation> = None;
    let (mut at, mut end) = (0, 0u64);
    for piece in pieces {
        let bytes = &new[at..at + piece.len];
        at += piece.len;
        let Some(from) = piece.from else {
            operation.get_or_insert_default().new += piece.len as u64;
            fresh.extend_from_slice(bytes);
            continue;
        };
        if let Some(done) = operation.take() {
            done.push_to(&mut control);
        }
        let start = place(from);
        operation = Some(Operation { seek: start as i64 - end as i64, copy: piece.len as u64, new: 0 });
        end = start + piece.len as u64;
        differences
            .extend(bytes.iter().zip(&bytes_of_source[start as usize..]).map(|(new, old)| new.wrapping_sub(*old)));
    }
    if let Some(done) = operation {
        done.push_to(&mut control);
    }
    (control, differences, fresh)
}
