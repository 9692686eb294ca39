//! One slot of the booted group, open for reading: what deltas are applied to.

use bascule_boot::disk::{Slot, Sysfs, open_booted};
use bascule_core::BootedGroup;
use std::io;
use std::sync::Arc;

use bascule_image::limits::MAX_SOURCE_BYTES;
use bascule_image::{Base, DeltaChunk, Units, read_ranges, source_matches};

use super::buffer::{ALIGN, Buffer};
use super::slot::{SlotFile, SlotPace};

/// An open slot of the booted group. Threads may read it at the same time.
pub(crate) struct BaseSlot {
    file: SlotFile,
    size: u64,
}

impl BaseSlot {
    /// Opens the slot, past the page cache where that is possible.
    ///
    /// # Errors
    /// Why it cannot be read, in one line.
    pub(super) fn open(
        slot: &Slot,
        booted: BootedGroup,
        sysfs: &Sysfs,
        pace: Option<SlotPace>,
    ) -> Result<Self, String> {
        let file = open_booted(slot, booted, sysfs).map_err(|error| error.to_string())?;
        let file = SlotFile::new(file, slot.size).map_err(|error| error.to_string())?.paced(pace);
        Ok(BaseSlot { file, size: slot.size })
    }

    /// A slot that is open already.
    #[cfg(test)]
    pub(super) fn of(file: SlotFile, size: u64) -> Self {
        BaseSlot { file, size }
    }

    /// Whether an image of `size` bytes can be in it.
    pub(super) fn can_hold(&self, size: u64) -> bool {
        size <= self.size
    }

    /// A reader of chunks' sources; `units` are those of the delta's table.
    pub(super) fn sources(&self, units: Option<Arc<Units>>) -> Sources<'_> {
        let buffer = Buffer::new(MAX_SOURCE_BYTES as usize + ALIGN);
        Sources { base: self, units, buffer, packed: None }
    }

    /// Reads the source ranges of `chunk` to the head of `buffer`; `None` where the slot cannot be read, or holds other
    /// bytes than the signed table says.
    pub(super) fn copy<'b>(&self, chunk: &DeltaChunk, buffer: &'b mut Buffer) -> Option<&'b mut [u8]> {
        let mut at = 0usize;
        for range in &chunk.source {
            let len = usize::try_from(range.len).ok()?;
            // All ranges but the last are whole blocks, so each begins on a boundary of the buffer.
            let place = buffer.head_mut(usize::MAX).get_mut(at..)?;
            let place = place.get_mut(..self.file.padded(range.offset, len))?;
            if let Err(error) = self.file.read(place, range.offset) {
                tracing::warn!(offset = range.offset, error = error.to_string(), "the booted slot cannot be read");
                return None;
            }
            at = at.saturating_add(len);
        }
        Some(buffer.head_mut(at)).filter(|source| source_matches(chunk, source))
    }

    /// Reads at any place, through `between`.
    fn read(&self, offset: u64, place: &mut [u8], between: &mut Buffer) -> io::Result<()> {
        let mut rest = place;
        let mut at = offset;
        while !rest.is_empty() {
            let before = usize::try_from(at % ALIGN as u64).unwrap_or(0);
            let count = rest.len().min(between.head(usize::MAX).len().saturating_sub(before));
            let start = at.saturating_sub(before as u64);
            let padded = self.file.padded(start, before.saturating_add(count));
            let read = between.head_mut(padded);
            self.file.read(read, start)?;
            let (piece, behind) = rest.split_at_mut(count);
            piece.copy_from_slice(read.get(before..).and_then(|read| read.get(..count)).ok_or(io::ErrorKind::Other)?);
            at = at.saturating_add(count as u64);
            rest = behind;
        }
        Ok(())
    }
}

/// Reads the sources of chunks one by one with reused memory: [`MAX_SOURCE_BYTES`], and little more for what is packed.
pub(crate) struct Sources<'b> {
    base: &'b BaseSlot,
    units: Option<Arc<Units>>,
    buffer: Buffer,
    /// What packed bytes are read through.
    packed: Option<Buffer>,
}

/// Packed bytes are read in pieces of at most this.
const PACKED_BYTES: usize = 128 << 10;

impl Sources<'_> {
    /// Whether the slot holds all sources of `chunk` as they are.
    pub(super) fn are_stored(&self, chunk: &DeltaChunk) -> bool {
        let end = self.units.as_ref().map_or(u64::MAX, |units| units.start());
        chunk.source.iter().all(|range| range.end() <= end)
    }
}

impl Base for Sources<'_> {
    fn source(&mut self, chunk: &DeltaChunk) -> Option<&mut [u8]> {
        if self.are_stored(chunk) {
            return self.base.copy(chunk, &mut self.buffer);
        }
        let between = self.packed.get_or_insert_with(|| Buffer::new(PACKED_BYTES));
        let source = self.buffer.head_mut(usize::try_from(chunk.source_len()).ok()?);
        let mut read_at = |offset, place: &mut [u8]| self.base.read(offset, place, between);
        if let Err(fault) = read_ranges(self.units.as_deref(), &chunk.source, source, &mut read_at) {
            let chunk = chunk.output.offset;
            tracing::warn!(chunk, error = fault.to_string(), "the booted slot does not hold what is to be unpacked");
            return None;
        }
        Some(source).filter(|source| source_matches(chunk, source))
    }
}
