//! The chunk table: how each stretch of an image is made, in order, without a gap.

use bascule_core::Digest;

use crate::error::BundleError;
use crate::format::Fields;
use crate::limits::MAX_CHUNK_BYTES;

/// Length in bytes of a chunk record without its extension.
pub const RECORD_BYTES: usize = 56;

/// One way to make a chunk's output.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChunkKind {
    /// Only zero bytes; nothing is stored.
    Zeroes,
    /// Stored as it is.
    Raw,
    /// Stored as one zstd frame.
    Zstd,
}

impl ChunkKind {
    /// The number that stands for "copied from ranges of the booted slot", in format version 1 still refused.
    pub const RESERVED_COPIED: u8 = 3;
    /// The number that stands for "compressed against ranges of the booted slot", in version 1 still refused.
    pub const RESERVED_COMPRESSED_AGAINST: u8 = 4;

    fn number(self) -> u8 {
        match self {
            ChunkKind::Zeroes => 0,
            ChunkKind::Raw => 1,
            ChunkKind::Zstd => 2,
        }
    }
}

/// One chunk: what comes out, and from which stored bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Chunk {
    /// Place in the table, from 0.
    pub index: u64,
    /// Where the output begins in the image, in bytes.
    pub offset: u64,
    /// Length of the output in bytes: 1 to [`MAX_CHUNK_BYTES`].
    pub len: u32,
    /// How the output is made.
    pub kind: ChunkKind,
    /// Where the stored bytes begin, counted from the payload's first blob.
    pub stored_offset: u64,
    /// How many bytes are stored: 0 for zeroes, `len` for raw, fewer than `len` for zstd.
    pub stored_len: u32,
    /// SHA-256 of the output.
    pub digest: Digest,
}

impl Chunk {
    /// Appends the chunk's record to a table.
    pub fn push_to(&self, table: &mut Vec<u8>) {
        table.extend_from_slice(&[self.kind.number(), 0, 0, 0]);
        table.extend_from_slice(&self.len.to_le_bytes());
        table.extend_from_slice(&self.stored_offset.to_le_bytes());
        table.extend_from_slice(&self.stored_len.to_le_bytes());
        table.extend_from_slice(&[0; 4]);
        table.extend_from_slice(&self.digest.0);
    }
}

/// A whole chunk table, checked once and then read record by record from its own bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChunkTable {
    bytes: Vec<u8>,
    count: u64,
}

impl ChunkTable {
    /// Checks that the records tile an image of `size` bytes and its `blobs` bytes of stored data exactly, in order.
    ///
    /// # Errors
    /// [`BundleError::TableInvalid`] or [`BundleError::UnknownChunkKind`].
    pub fn parse(bytes: Vec<u8>, role: &str, size: u64, blobs: u64) -> Result<Self, BundleError> {
        let invalid = |what| BundleError::TableInvalid { role: role.to_owned(), what };
        let mut cursor = Cursor::default();
        while let Some(step) = cursor.step(&bytes) {
            let record = step.map_err(|fault| match fault {
                Fault::Rule(what) => invalid(what),
                Fault::Kind(kind) => BundleError::UnknownChunkKind { role: role.to_owned(), index: cursor.index, kind },
            })?;
            if cursor.offset > size || cursor.stored > blobs {
                return Err(invalid("the chunks are longer than the image or its blobs"));
            }
            debug_assert!(record.len > 0);
        }
        if cursor.offset != size || cursor.stored != blobs {
            return Err(invalid("the chunks do not fill the image and its blobs exactly"));
        }
        Ok(ChunkTable { bytes, count: cursor.index })
    }

    /// How many chunks there are.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.count
    }

    /// The chunk at `cursor`, which moves behind it; `None` at the end.
    pub(crate) fn next(&self, cursor: &mut Cursor) -> Option<Chunk> {
        cursor.step(&self.bytes)?.ok()
    }

    /// All chunks in order.
    pub fn chunks(&self) -> impl Iterator<Item = Chunk> + '_ {
        let mut cursor = Cursor::default();
        std::iter::from_fn(move || self.next(&mut cursor))
    }
}

/// A place in a table: the next record's, and where its output and stored bytes begin.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Cursor {
    at: usize,
    index: u64,
    offset: u64,
    stored: u64,
}

enum Fault {
    Rule(&'static str),
    Kind(u8),
}

impl From<BundleError> for Fault {
    fn from(_: BundleError) -> Fault {
        Fault::Rule("a record is cut off")
    }
}

impl Cursor {
    fn step(&mut self, table: &[u8]) -> Option<Result<Chunk, Fault>> {
        let rest = table.get(self.at..).filter(|rest| !rest.is_empty())?;
        Some(self.record(rest))
    }

    fn record(&mut self, rest: &[u8]) -> Result<Chunk, Fault> {
        let mut fields = Fields(rest);
        let [number, reserved, extension @ ..] = fields.array::<4>()?;
        let kind = match number {
            0 => ChunkKind::Zeroes,
            1 => ChunkKind::Raw,
            2 => ChunkKind::Zstd,
            _ => return Err(Fault::Kind(number)),
        };
        let len = u32::from_le_bytes(fields.array()?);
        let stored_offset = u64::from_le_bytes(fields.array()?);
        let stored_len = u32::from_le_bytes(fields.array()?);
        let padding: [u8; 4] = fields.array()?;
        let digest = Digest(fields.array()?);
        if reserved != 0 || extension != [0; 2] || padding != [0; 4] {
            return Err(Fault::Rule("a reserved field or the extension of a simple chunk is set"));
        }
        if len == 0 || len > MAX_CHUNK_BYTES {
            return Err(Fault::Rule("a chunk is empty or longer than the limit"));
        }
        let fits = match kind {
            ChunkKind::Zeroes => stored_len == 0,
            ChunkKind::Raw => stored_len == len,
            ChunkKind::Zstd => stored_len > 0 && stored_len < len,
        };
        if !fits || stored_offset != self.stored {
            return Err(Fault::Rule("a chunk's stored bytes are not where and as long as they must be"));
        }
        let chunk = Chunk { index: self.index, offset: self.offset, len, kind, stored_offset, stored_len, digest };
        let over = Fault::Rule("the lengths overflow");
        let (Some(offset), Some(stored)) =
            (self.offset.checked_add(u64::from(len)), self.stored.checked_add(u64::from(stored_len)))
        else {
            return Err(over);
        };
        *self =
            Cursor { at: self.at.saturating_add(RECORD_BYTES), index: self.index.saturating_add(1), offset, stored };
        Ok(chunk)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn record(kind: ChunkKind, len: u32, stored_offset: u64, stored_len: u32) -> Chunk {
        Chunk { index: 0, offset: 0, len, kind, stored_offset, stored_len, digest: Digest([9; 32]) }
    }

    fn table(records: &[Chunk]) -> Vec<u8> {
        let mut bytes = Vec::new();
        records.iter().for_each(|record| record.push_to(&mut bytes));
        bytes
    }

    fn parse(records: &[Chunk], size: u64, blobs: u64) -> Result<ChunkTable, BundleError> {
        ChunkTable::parse(table(records), "root", size, blobs)
    }

    #[test]
    fn a_table_reads_back_what_was_written() {
        let records = [
            record(ChunkKind::Zeroes, 100, 0, 0),
            record(ChunkKind::Raw, 50, 0, 50),
            record(ChunkKind::Zstd, 9, 50, 8),
        ];
        let read: Vec<_> = parse(&records, 159, 58).unwrap().chunks().collect();
        let places: Vec<_> = read.iter().map(|chunk| (chunk.index, chunk.offset, chunk.stored_offset)).collect();
        assert_eq!(places, [(0, 0, 0), (1, 100, 0), (2, 150, 50)]);
        assert!(read.iter().zip(records).all(|(a, b)| (a.kind, a.len, a.digest) == (b.kind, b.len, b.digest)));
    }

    #[test]
    fn gaps_overlaps_and_missing_or_further_bytes_are_refused() {
        let raw = |len, at| record(ChunkKind::Raw, len, at, len);
        assert!(parse(&[raw(10, 0), raw(10, 10)], 20, 20).is_ok());
        for (records, size, blobs) in [
            (vec![raw(10, 0), raw(10, 11)], 20, 21),
            (vec![raw(10, 0), raw(10, 9)], 20, 19),
            (vec![raw(10, 1)], 10, 11),
            (vec![raw(10, 0)], 11, 10),
            (vec![raw(10, 0)], 10, 11),
            (vec![raw(10, 0)], 9, 10),
            (vec![raw(10, 0)], 10, 9),
            (vec![], 1, 0),
            (vec![record(ChunkKind::Zeroes, 10, 0, 1)], 10, 1),
            (vec![record(ChunkKind::Raw, 10, 0, 9)], 10, 9),
            (vec![record(ChunkKind::Zstd, 10, 0, 10)], 10, 10),
            (vec![record(ChunkKind::Zstd, 10, 0, 0)], 10, 0),
            (vec![raw(0, 0)], 0, 0),
            (vec![raw(MAX_CHUNK_BYTES + 1, 0)], u64::from(MAX_CHUNK_BYTES) + 1, u64::from(MAX_CHUNK_BYTES) + 1),
        ] {
            assert_eq!(parse(&records, size, blobs).unwrap_err().code(), "bundle.table-invalid", "{records:?}");
        }
    }

    #[test]
    fn stored_offsets_at_the_edges_of_numbers_are_refused_without_overflow() {
        for edge in [1 << 31, (1 << 31) + 1, (1 << 32) - 1, 1 << 32, 1 << 63, u64::MAX - 9, u64::MAX] {
            assert!(parse(&[record(ChunkKind::Raw, 10, edge, 10)], 10, 10).is_err());
            assert!(parse(&[record(ChunkKind::Raw, 10, 0, 10)], edge, edge).is_err());
        }
    }

    #[test]
    fn reserved_and_unknown_kinds_are_refused_by_their_number() {
        let good = table(&[record(ChunkKind::Raw, 10, 0, 10)]);
        for kind in [ChunkKind::RESERVED_COPIED, ChunkKind::RESERVED_COMPRESSED_AGAINST, 5, 255] {
            let mut bytes = good.clone();
            bytes[0] = kind;
            let refused = ChunkTable::parse(bytes, "root", 10, 10).unwrap_err();
            assert_eq!(refused.code(), "bundle.unknown-chunk-kind");
        }
        for reserved in [1, 2, 3, 20, 23] {
            let mut bytes = good.clone();
            bytes[reserved] = 1;
            assert_eq!(ChunkTable::parse(bytes, "root", 10, 10).unwrap_err().code(), "bundle.table-invalid");
        }
        for cut in 1..RECORD_BYTES {
            assert!(ChunkTable::parse(good[..cut].to_vec(), "root", 10, 10).is_err());
        }
    }

    proptest! {
        /// The oracle is a map of bytes: each byte of image and blobs must be covered exactly once, in order.
        #[test]
        fn a_table_is_taken_exactly_when_its_chunks_cover_every_byte_once(
            records in proptest::collection::vec((0u8..3, 1u32..20, 0u64..40, 0u32..20), 0..8),
            straight in any::<bool>(),
            size in 0u64..100,
        ) {
            let mut stored = 0u64;
            let records: Vec<Chunk> = records.into_iter().map(|(kind, len, at, stored_len)| {
                let (kind, fitting) = match kind {
                    0 => (ChunkKind::Zeroes, 0),
                    1 => (ChunkKind::Raw, len),
                    _ => (ChunkKind::Zstd, len / 2),
                };
                let made = if straight { record(kind, len, stored, fitting) } else { record(kind, len, at, stored_len) };
                stored += u64::from(made.stored_len);
                made
            }).collect();
            let output: u64 = records.iter().map(|chunk| u64::from(chunk.len)).sum();
            let size = if straight { output } else { size };
            let mut covered = vec![0u8; usize::try_from(stored).unwrap()];
            let mut ordered = true;
            let mut last = 0;
            for chunk in &records {
                ordered &= chunk.stored_offset == last;
                last = chunk.stored_offset + u64::from(chunk.stored_len);
                for place in chunk.stored_offset..last {
                    match covered.get_mut(place as usize) {
                        Some(count) => *count += 1,
                        None => ordered = false,
                    }
                }
            }
            let fits = records.iter().all(|chunk| match chunk.kind {
                ChunkKind::Zeroes => chunk.stored_len == 0,
                ChunkKind::Raw => chunk.stored_len == chunk.len,
                ChunkKind::Zstd => chunk.stored_len > 0 && chunk.stored_len < chunk.len,
            });
            let right = ordered && fits && output == size && covered.iter().all(|&count| count == 1);
            prop_assert_eq!(parse(&records, size, stored).is_ok(), right);
        }

        #[test]
        fn any_bytes_are_parsed_without_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300), size: u64, blobs: u64) {
            let _ = ChunkTable::parse(bytes, "root", size, blobs);
        }
    }
}
