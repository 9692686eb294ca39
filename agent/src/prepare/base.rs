//! One slot of the booted group, open for reading: what deltas are applied to.

use bascule_boot::disk::{Slot, Sysfs, open_booted};
use bascule_core::BootedGroup;
use bascule_image::DeltaChunk;
use bascule_image::delta::apply::source_matches;
use bascule_image::limits::MAX_SOURCE_BYTES;

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

    /// A buffer that every chunk's source fits into.
    pub(super) fn buffer() -> Buffer {
        Buffer::new(MAX_SOURCE_BYTES as usize + ALIGN)
    }

    /// Reads what `chunk` is made of to the head of `buffer`; `None` where the slot cannot be read, or holds other bytes
    /// than the signed table says.
    pub(super) fn source<'b>(&self, chunk: &DeltaChunk, buffer: &'b mut Buffer) -> Option<&'b mut [u8]> {
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
}
