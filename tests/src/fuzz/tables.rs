//! Delta tables: valid ones, damaged ones, and what the agent reads in them.

use std::collections::HashSet;

use bascule_image::limits::{BASE_BLOCK_BYTES, MAX_RANGES, MAX_SOURCE_BYTES};
use bascule_image::{BundleError, Chunk, ChunkKind, ChunkTable, DeltaChunk, DeltaTable, Digest, Way};

use super::judge::{Finding, Outcome, timed};
use super::oracle;
use super::random::{Random, fold, push_number};

/// A record of a delta table as it is written.
#[derive(Debug, Clone, Default)]
pub(super) struct Record {
    pub(super) kind: u8,
    pub(super) transform: u8,
    pub(super) stored_len: u64,
    /// Where the count of ranges lies about them.
    pub(super) count: Option<u64>,
    /// Distance from the end of the range before, folded, and number of blocks.
    pub(super) ranges: Vec<(u64, u64)>,
    pub(super) digest: Vec<u8>,
}

impl Record {
    pub(super) fn push_to(&self, table: &mut Vec<u8>) {
        table.extend([self.kind, self.transform]);
        if matches!(self.kind, 2 | 4) {
            push_number(table, self.stored_len);
        }
        if self.kind >= 3 {
            push_number(table, self.count.unwrap_or(self.ranges.len() as u64));
            for (gap, blocks) in &self.ranges {
                push_number(table, *gap);
                push_number(table, *blocks);
            }
        }
        if self.kind >= 4 {
            table.extend_from_slice(&self.digest);
        }
    }

    /// How many bytes are stored of a chunk `len` bytes long.
    pub(super) fn stored(&self, len: u32) -> u64 {
        match self.kind {
            1 => u64::from(len),
            2 | 4 => self.stored_len,
            _ => 0,
        }
    }

    pub(super) fn damage(&mut self, random: &mut Random) {
        let at = random.place(self.ranges.len());
        match random.below(10) {
            0 => self.kind = random.below(7) as u8,
            1 => self.transform = random.instead_of(0) as u8,
            2 => self.stored_len = random.instead_of(self.stored_len),
            3 => self.count = Some(random.instead_of(self.ranges.len() as u64)),
            4 => random.damage(&mut self.digest),
            5 if at < self.ranges.len() => drop(self.ranges.remove(at)),
            6 => {
                let more = random.of_any_length(11);
                self.ranges.extend((0..more).map(|_| (0, 1)));
            }
            _ => {
                let folded = fold(random.instead_of(0) as i64);
                let Some((gap, blocks)) = self.ranges.get_mut(at) else { return };
                match random.below(4) {
                    0 => *gap = random.instead_of(*gap),
                    1 => *gap = folded,
                    2 => *blocks = random.instead_of(*blocks),
                    _ => *blocks = random.of_any_length(11),
                }
            }
        }
    }
}

/// A table and what it is for.
struct Table {
    outputs: Vec<u32>,
    base: u64,
    blobs: u64,
    records: Vec<Record>,
}

/// Makes a table, damages it most of the time, and compares what is read in it with what should be.
pub(super) fn run(random: &mut Random) -> Result<Outcome, Finding> {
    let mut table = Table::valid(random);
    let damaged = !random.once_in(16);
    if damaged {
        for _ in 0..=random.below(2) {
            table.damage(random);
        }
    }
    let mut bytes = Vec::new();
    table.records.iter().for_each(|record| record.push_to(&mut bytes));
    if damaged && random.once_in(12) {
        random.damage(&mut bytes);
    }
    judge(&bytes, &table)
}

fn judge(bytes: &[u8], about: &Table) -> Result<Outcome, Finding> {
    let full = chunk_table(&about.outputs)?;
    let wanted = oracle::read_table(bytes, &about.outputs, about.base, about.blobs);
    let read = || DeltaTable::parse(bytes.to_vec(), "root", about.base, about.blobs, &full);
    let (found, took) = timed(bytes.len(), read)?;
    let outcome = |taken| Ok(Outcome { taken, bytes: bytes.len(), took });
    match (found, wanted) {
        (Ok(table), Ok(wanted)) => {
            let chunks: Vec<_> = table.chunks(&full).collect();
            tick_off(&chunks, about)?;
            if chunks.iter().map(in_words).eq(wanted) {
                outcome(true)
            } else {
                Err(Finding::new("read other records", ""))
            }
        }
        (Ok(_), Err(reason)) => Err(Finding::new("took a table that must be refused", reason)),
        (Err(error), Ok(_)) => Err(Finding::new("refused a table that is right", &error.to_string())),
        (Err(BundleError::TableInvalid { .. } | BundleError::UnknownChunkKind { .. }), Err(_)) => outcome(false),
        (Err(error), Err(_)) => Err(Finding::new("refused with another error", &error.to_string())),
    }
}

/// Holds every chunk that was read against maps of the output, the stored bytes and the base.
fn tick_off(chunks: &[DeltaChunk], about: &Table) -> Result<(), Finding> {
    let (mut output, mut stored) = (0u64, 0u64);
    for chunk in chunks {
        if chunk.output.offset != output || chunk.stored_offset != stored {
            return Err(Finding::new("a gap or an overlap", &format!("{chunk:?}")));
        }
        output += u64::from(chunk.output.len);
        stored += u64::from(chunk.stored_len);
        let mut blocks = HashSet::new();
        let mut total = 0u64;
        for range in &chunk.source {
            let inside = range.len > 0 && range.offset.checked_add(range.len).is_some_and(|end| end <= about.base);
            if !inside || range.offset % BASE_BLOCK_BYTES != 0 {
                return Err(Finding::new("a range outside of the base", &format!("{chunk:?}")));
            }
            total += range.len;
            let first = range.offset / BASE_BLOCK_BYTES;
            for block in first..first + range.len.div_ceil(BASE_BLOCK_BYTES) {
                if !blocks.insert(block) && matches!(chunk.way, Way::Patched { .. }) {
                    return Err(Finding::new("a patch reads a block twice", &format!("{chunk:?}")));
                }
            }
        }
        if total > MAX_SOURCE_BYTES || chunk.source.len() as u64 > MAX_RANGES || total != chunk.source_len() {
            return Err(Finding::new("a source above the limit", &format!("{chunk:?}")));
        }
        if chunk.stored_len > chunk.output.len {
            return Err(Finding::new("more is stored than comes out", &format!("{chunk:?}")));
        }
    }
    let wanted: u64 = about.outputs.iter().map(|len| u64::from(*len)).sum();
    if output == wanted && stored == about.blobs { Ok(()) } else { Err(Finding::new("bytes are left over", "")) }
}

fn in_words(chunk: &DeltaChunk) -> oracle::Record {
    let kind = match chunk.way {
        Way::Zeroes => 0,
        Way::Raw => 1,
        Way::Zstd => 2,
        Way::Copied => 3,
        Way::Patched { .. } => 4,
        Way::Packed => 5,
    };
    let source = chunk.source.iter().map(|range| (range.offset, range.len)).collect();
    oracle::Record { kind, stored_len: u64::from(chunk.stored_len), source }
}

fn chunk_table(outputs: &[u32]) -> Result<ChunkTable, Finding> {
    let (mut bytes, mut offset) = (Vec::new(), 0u64);
    for &len in outputs {
        let (kind, digest) = (ChunkKind::Raw, Digest([7; 32]));
        Chunk { index: 0, offset, len, kind, stored_offset: offset, stored_len: len, digest }.push_to(&mut bytes);
        offset += u64::from(len);
    }
    ChunkTable::parse(bytes, "root", offset, offset).map_err(|error| Finding::new("chunk table", &error.to_string()))
}

impl Table {
    fn valid(random: &mut Random) -> Self {
        let outputs: Vec<u32> = (0..random.below(6)).map(|_| 1 + random.of_any_length(21) as u32 % (1 << 20)).collect();
        let mut base = random.of_any_length(42);
        if random.once_in(2) {
            // The last chunk can then end with the base's last block, which is not whole.
            base = base / BASE_BLOCK_BYTES * BASE_BLOCK_BYTES
                + outputs.last().map_or(0, |len| u64::from(*len) % BASE_BLOCK_BYTES);
        }
        let blocks = base.div_ceil(BASE_BLOCK_BYTES);
        let mut records: Vec<Record> = Vec::new();
        for &len in &outputs {
            let mut record = Record { kind: random.below(5) as u8, digest: random.bytes(32), ..Record::default() };
            if len < 2 && matches!(record.kind, 2 | 4) || blocks == 0 && record.kind > 2 {
                record.kind = 1;
            }
            record.stored_len = 1 + random.below(u64::from(len).saturating_sub(1));
            if record.kind == 3 {
                record.ranges = copied(len, base, random);
                record.kind = if record.ranges.is_empty() { 0 } else { 3 };
            }
            if record.kind == 4 {
                record.ranges = ascending(blocks, random);
            }
            records.push(record);
        }
        let mut table = Table { outputs, base, blobs: 0, records };
        table.fit();
        table
    }

    /// Makes the length of the blobs right again.
    fn fit(&mut self) {
        let stored = self.records.iter().zip(&self.outputs).map(|(record, len)| record.stored(*len));
        self.blobs = stored.fold(0, u64::saturating_add);
    }

    fn damage(&mut self, random: &mut Random) {
        let at = random.place(self.records.len());
        match random.below(12) {
            0 => self.base = random.instead_of(self.base) % (1 << 63),
            1 => self.base = random.of_any_length(24),
            2 => self.blobs = random.instead_of(self.blobs),
            3 if at < self.records.len() => drop(self.records.remove(at)),
            4 => self.records.extend(self.records.get(at).cloned()),
            _ => {
                if let Some(record) = self.records.get_mut(at) {
                    record.damage(random);
                }
            }
        }
        if random.once_in(2) {
            self.fit();
        }
    }
}

/// Ranges of `len` bytes together, anywhere; none where the base has no such.
fn copied(len: u32, base: u64, random: &mut Random) -> Vec<(u64, u64)> {
    let (whole, rest) = (u64::from(len) / BASE_BLOCK_BYTES, u64::from(len) % BASE_BLOCK_BYTES);
    let blocks = base / BASE_BLOCK_BYTES;
    if whole > blocks || rest > 0 && rest != base % BASE_BLOCK_BYTES {
        return Vec::new();
    }
    let (mut ranges, mut left, mut end) = (Vec::new(), whole, 0i64);
    while left > 0 {
        let count = 1 + random.below(left);
        let first = random.below(blocks - count + 1) as i64;
        ranges.push((fold(first - end), count));
        end = first + count as i64;
        left -= count;
    }
    if rest > 0 {
        ranges.push((fold(blocks as i64 - end), 1));
        if random.once_in(8) {
            // Once before the others, too: the length is right, the order is not.
            ranges.rotate_right(1);
            end = 0;
            for (gap, count) in &mut ranges {
                let first = random.below(blocks.saturating_sub(*count) + 1) as i64;
                let first = if end == 0 { blocks as i64 } else { first };
                *gap = fold(first - end);
                end = first + *count as i64;
            }
        }
    }
    if ranges.len() as u64 > MAX_RANGES { Vec::new() } else { ranges }
}

/// Ranges in ascending order within so many blocks, at least one, not longer than the limit.
fn ascending(blocks: u64, random: &mut Random) -> Vec<(u64, u64)> {
    let (mut ranges, mut at, mut total) = (Vec::new(), 0u64, 0u64);
    for _ in 0..=random.of_any_length(9) {
        let left = blocks.saturating_sub(at);
        let most = left.min(MAX_RANGES.saturating_sub(total)).min(40);
        if most == 0 {
            break;
        }
        let count = 1 + random.below(most);
        let gap = random.below(left - count + 1);
        ranges.push((fold(gap as i64), count));
        at += gap + count;
        total += count;
    }
    ranges
}
