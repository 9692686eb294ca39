//! The delta file: a delta between two images on its own, not signed, for the developer's host.
//!
//! ```text
//! header (32 bytes) | head (JSON) | packed digests of the outputs | packed delta table | blobs
//! ```
//! Table and blobs are those of a delta in a bundle. In place of a chunk table, there are only the SHA-256s of the
//! outputs: all chunks but the last are of one length, and there are no full data that it could tell of.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::error::DeltaError;
use super::predict::Prediction;
use super::repack::Units;
use super::table::{DeltaChunk, DeltaCursor, DeltaTable};
use crate::format::{Fields, HEADER_BYTES, within};
use crate::input::{BundleRead, Input};
use crate::limits::{
    DELTA_FILE_VERSION, MAX_CHUNK_BYTES, MAX_DELTA_HEAD_BYTES, MAX_PAYLOAD_BYTES, MAX_TABLES_BYTES, MIN_CHUNK_BYTES,
};
use crate::manifest::{DeltaRef, TableRef};
use crate::table::{Chunk, ChunkKind, ChunkTable, RECORD_BYTES};
use crate::{Digest, layout, strict_json};

/// The first eight bytes of a delta file. They do not survive a transfer as text.
pub const MAGIC: [u8; 8] = *b"\x89BSD\r\n\x1a\n";
/// Length of a SHA-256 in bytes.
const DIGEST_BYTES: u64 = 32;

/// What a delta file says of itself. Unknown keys are ignored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Head {
    /// Size of the new image in bytes.
    pub size: u64,
    /// SHA-256 of the new image.
    pub sha256: Digest,
    /// Bytes of every chunk's output but the last one's: a multiple of [`MIN_CHUNK_BYTES`] up to [`MAX_CHUNK_BYTES`].
    pub chunk_bytes: u32,
    /// The SHA-256s of the outputs, one after the other.
    pub outputs: TableRef,
    /// The delta.
    pub delta: DeltaRef,
}

impl Head {
    /// The start of a file: header, head and tables.
    pub(crate) fn to_file(&self, outputs: &[u8], table: &[u8]) -> Vec<u8> {
        let head = serde_json::to_vec(self).unwrap_or_default();
        let length = (head.len() as u64).to_le_bytes();
        [&MAGIC[..], &DELTA_FILE_VERSION.to_le_bytes(), &[0; 6], &length, &[0; 8], &head, outputs, table].concat()
    }

    /// Reads and checks a head.
    ///
    /// # Errors
    /// [`DeltaError::Damaged`], or [`DeltaError::Part`] for a length above its bound.
    pub fn parse(bytes: &[u8]) -> Result<Self, DeltaError> {
        let invalid = |error: serde_json::Error| DeltaError::Damaged(error.to_string());
        strict_json::check(bytes).map_err(invalid)?;
        let head: Head = serde_json::from_slice(bytes).map_err(invalid)?;
        head.check()?;
        Ok(head)
    }

    fn check(&self) -> Result<(), DeltaError> {
        check_chunk_bytes(self.chunk_bytes).map_err(|_| DeltaError::Damaged("its chunk size is none".into()))?;
        within("an image", self.size, MAX_PAYLOAD_BYTES)?;
        within("a base image", self.delta.base.size, MAX_PAYLOAD_BYTES)?;
        // A chunk is never stored longer than it is, so neither is an image.
        within("the blobs", self.delta.blobs, self.size)?;
        let (chunks, table) = (self.chunks(), &self.delta.table);
        let memory = chunks.saturating_mul(RECORD_BYTES as u64).saturating_add(table.memory());
        within("the tables", memory.max(self.outputs.length).max(table.length), MAX_TABLES_BYTES)?;
        let unpacked = self.outputs.unpacked.unwrap_or(self.outputs.length);
        if unpacked != chunks.saturating_mul(DIGEST_BYTES) {
            return Err(DeltaError::Damaged("it has not one digest for each chunk".into()));
        }
        Ok(())
    }

    fn chunks(&self) -> u64 {
        self.size.div_ceil(u64::from(self.chunk_bytes).max(1))
    }

    /// A chunk table of the outputs, as if each was stored as it is: nothing but place, length and digest is looked at.
    fn outputs(&self, digests: &[u8]) -> Result<ChunkTable, DeltaError> {
        let mut table = Vec::new();
        let mut offset = 0u64;
        let mut digests = Fields(digests);
        while offset < self.size {
            let left = self.size.saturating_sub(offset);
            let len = u32::try_from(left).map_or(self.chunk_bytes, |left| left.min(self.chunk_bytes));
            let (kind, digest) = (ChunkKind::Raw, Digest(digests.array()?));
            Chunk { index: 0, offset, len, kind, stored_offset: offset, stored_len: len, digest }.push_to(&mut table);
            offset = offset.saturating_add(u64::from(len));
        }
        Ok(ChunkTable::parse(table, "", self.size, self.size)?)
    }
}

/// Refuses a chunk size that no device could write.
pub(crate) fn check_chunk_bytes(bytes: u32) -> Result<(), DeltaError> {
    let fits = (MIN_CHUNK_BYTES..=MAX_CHUNK_BYTES).contains(&bytes) && bytes.is_multiple_of(MIN_CHUNK_BYTES);
    if fits { Ok(()) } else { Err(DeltaError::ChunkSize(bytes)) }
}

/// A delta file, read forwards chunk by chunk: no part of it is kept but its tables.
pub struct DeltaFile {
    input: Input,
    head: Head,
    full: ChunkTable,
    table: DeltaTable,
    cursor: DeltaCursor,
    blobs: u64,
}

impl std::fmt::Debug for DeltaFile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DeltaFile").field("head", &self.head).finish_non_exhaustive()
    }
}

impl DeltaFile {
    /// Reads and checks everything but the blobs.
    ///
    /// # Errors
    /// Every [`DeltaError`] but those of old images.
    pub fn open(input: Box<dyn BundleRead>) -> Result<Self, DeltaError> {
        let mut input = Input::new(input);
        let head = Head::parse(&read_head(&mut input)?)?;
        let tables = head.outputs.length.saturating_add(head.delta.table.length);
        let blobs = input.at.saturating_add(tables);
        input.check_total(blobs.saturating_add(head.delta.blobs))?;
        let mut section = |about: &TableRef| {
            layout::unpack(input.section(about.length)?, about).map_err(|what| DeltaError::Damaged(what.into()))
        };
        let full = head.outputs(&section(&head.outputs)?)?;
        let delta = &head.delta;
        let table = DeltaTable::parse(section(&delta.table)?, "", delta.base.size, delta.blobs, &full)?;
        Ok(DeltaFile { input, head, full, table, cursor: DeltaCursor::default(), blobs })
    }

    /// What the file says of itself.
    #[must_use]
    pub fn head(&self) -> &Head {
        &self.head
    }

    /// What [`ChunkMaker`](super::ChunkMaker) needs to know of the old image's references.
    #[must_use]
    pub fn prediction(&self) -> Option<Arc<Prediction>> {
        self.table.prediction()
    }

    /// Where compressed data lie in the old image, if any chunk is packed again.
    #[must_use]
    pub fn units(&self) -> Option<Arc<Units>> {
        self.table.units()
    }

    /// All chunks in order, without their stored bytes.
    pub fn chunks(&self) -> impl Iterator<Item = DeltaChunk> + '_ {
        self.table.chunks(&self.full)
    }

    /// Reads the stored bytes of the next chunk into `stored`, which is reused. `None` after the last.
    ///
    /// # Errors
    /// [`DeltaError::Part`] when the file ends early or cannot be read.
    pub fn fetch_next(&mut self, stored: &mut Vec<u8>) -> Result<Option<DeltaChunk>, DeltaError> {
        let Some(chunk) = self.table.next(&self.full, &mut self.cursor) else { return Ok(None) };
        self.input.fetch(stored, self.blobs.saturating_add(chunk.stored_offset), chunk.stored_len)?;
        Ok(Some(chunk))
    }

    /// Checks that the input ends where the file does.
    ///
    /// # Errors
    /// [`DeltaError::Part`].
    pub fn finish(mut self) -> Result<(), DeltaError> {
        let end = self.blobs.saturating_add(self.head.delta.blobs);
        if self.input.at == end && self.input.read(&mut [0])? > 0 {
            return Err(crate::BundleError::TrailingBytes { at: end }.into());
        }
        Ok(())
    }
}

fn read_head(input: &mut Input) -> Result<Vec<u8>, DeltaError> {
    let mut magic = MAGIC;
    input.fill(&mut magic)?;
    if magic != MAGIC {
        return Err(DeltaError::NotADelta(magic.iter().map(|byte| format!("{byte:02x}")).collect()));
    }
    let mut rest = [0; HEADER_BYTES - MAGIC.len()];
    input.fill(&mut rest)?;
    let mut rest = Fields(&rest);
    let found = u16::from_le_bytes(rest.array()?);
    if found > DELTA_FILE_VERSION {
        return Err(DeltaError::FormatTooNew { found });
    }
    let reserved: [u8; 6] = rest.array()?;
    let length = u64::from_le_bytes(rest.array()?);
    if found == 0 || reserved != [0; 6] || rest.array()? != [0; 8] {
        return Err(DeltaError::Damaged("version 0, or a reserved field of the header is set".into()));
    }
    within("the head", length, MAX_DELTA_HEAD_BYTES)?;
    Ok(input.section(length)?)
}

#[cfg(test)]
mod tests;
