//! Blocks of squashfs images that are packed by zstd: read, and packed again.
//!
//! Each block is a frame by itself, of at most [`MAX_BLOCK_BYTES`] here, and made by one call of libzstd at the image's
//! level. Which matches that call chooses is not the same in every version: 1.5.6 and 1.5.7 agree but for levels 3 and 4;
//! at 15, which is usual, 1.5.4 and 1.5.5 make two blocks of three the same. So whoever makes a delta tries each block,
//! with the libzstd that devices have too: the one of this source tree.

use super::units::{Fault, PackedBytes, Wanted};
use crate::limits::MAX_BLOCK_BYTES;

/// Packs `content` into all of `packed`; `None` where another length comes out.
pub(super) fn pack(level: u8, content: &[u8], packed: &mut [u8]) -> Option<()> {
    let made = again(level, content)?;
    (made.len() == packed.len()).then(|| packed.copy_from_slice(&made))
}

/// `content` as libzstd packs it. It has all the room that it may take: near the end of its room it packs otherwise.
pub(super) fn again(level: u8, content: &[u8]) -> Option<Vec<u8>> {
    if content.len() > MAX_BLOCK_BYTES as usize {
        return None;
    }
    zstd::bulk::Compressor::new(i32::from(level)).ok()?.compress(content).ok()
}

/// Hands what `input` unpacks to, `length` bytes, to `wanted`.
pub(super) fn unpack(input: &mut PackedBytes<'_, '_>, length: u64, wanted: &mut Wanted<'_>) -> Result<(), Fault> {
    const OTHER: Fault = Fault::Packed("it unpacks to another length");
    let mut packed = Vec::new();
    loop {
        let bytes = input.some(MAX_BLOCK_BYTES as usize)?;
        if bytes.is_empty() {
            break;
        }
        packed.extend_from_slice(bytes);
    }
    let length = usize::try_from(length).ok().filter(|length| *length <= MAX_BLOCK_BYTES as usize).ok_or(OTHER)?;
    let content = whole(&packed, length).filter(|content| content.len() == length).ok_or(OTHER)?;
    wanted.offer(0, &content);
    Ok(())
}

/// The content of a frame, of at most `most` bytes.
pub(super) fn whole(packed: &[u8], most: usize) -> Option<Vec<u8>> {
    zstd::bulk::decompress(packed, most).ok()
}
