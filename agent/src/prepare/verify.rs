//! Looks again, before the switch, whether the target still holds what was prepared: hooks ran since, or time went by.

use bascule_boot::disk::{Slot, Sysfs, open_target};
use bascule_core::{Image, TargetGroup};
use sha2::{Digest as _, Sha256};

use super::PrepareError;
use super::buffer::Buffer;
use super::slot::SlotFile;
use super::write::slot_error;

/// How much is read at once, in bytes.
const PIECE: usize = 1 << 20;

/// Reads the whole image past the page cache and compares its SHA-256. The slot is held exclusively meanwhile.
///
/// # Errors
/// [`PrepareError::Open`], [`PrepareError::Slot`], or [`PrepareError::ReadBack`] where it holds something else.
pub fn still_holds(slot: &Slot, target: TargetGroup, sysfs: &Sysfs, image: &Image) -> Result<(), PrepareError> {
    let opened =
        open_target(slot, target, sysfs).map_err(|source| PrepareError::Open { role: slot.role.clone(), source })?;
    let file = SlotFile::new(opened, slot.size).map_err(slot_error("read again", slot, 0))?;
    let mut buffer = Buffer::new(PIECE);
    let mut hash = Sha256::new();
    let mut offset = 0u64;
    while offset < image.size {
        let len = usize::try_from(image.size.saturating_sub(offset)).unwrap_or(PIECE).min(PIECE);
        let padded = file.padded(offset, len);
        file.read(buffer.head_mut(padded), offset).map_err(slot_error("read again", slot, offset))?;
        hash.update(buffer.head(len));
        offset = offset.saturating_add(len as u64);
    }
    if <[u8; 32]>::from(hash.finalize()) == image.sha256.0 {
        return Ok(());
    }
    Err(PrepareError::ReadBack { role: slot.role.clone(), device: slot.device.display().to_string() })
}
