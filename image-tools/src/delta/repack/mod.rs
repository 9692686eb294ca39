//! Repacking: compressed data in an image are made of their content, so that a delta sees what really changed.
//!
//! ```text
//! base image:  unit (packed) -> unpacked --+                     new chunk: parts
//!              unit (packed) -> unpacked --+-> source -> patch -> content of a part -> packed -> the chunk's bytes
//!              blocks as they are ---------+
//! ```
//! A build that changes one function of a kernel changes nearly every byte of its compressed image. A delta therefore
//! tells where separately compressed *units* lie in the base image; their content follows the base image's own bytes as
//! if it were a part of it, and any chunk may be made of it. A chunk of the new image that holds compressed data is
//! made in *parts*: each part's content is made like a chunk, and then packed by the very encoder that made the image.
//!
//! A block of squashfs is a unit, and packed as a whole. Of an LZ4 unit, which is longer, a part need not be the whole: an
//! LZ4 encoder that begins 64 KiB earlier finds the same matches from there on. So every chunk still stands for itself, in
//! bounded memory. Whether that is so for a part is tried when the delta is
//! made, byte by byte; what does not come out the same is sent as it is. On the device the chunk's SHA-256 decides.
//!
//! | module | subject |
//! |---|---|
//! | [`units`] | where units lie in the base image, and reading their content |
//! | [`lz4`] | LZ4 blocks: read from a stream, packed again |
//! | [`zstd`] | blocks packed by zstd: read, packed again |
//! | [`squashfs`] | blocks and files of squashfs images (host) |
//! | [`find`] | units of an image (host) |
//! | [`plan`] | a chunk cut into parts (host) |

pub(crate) mod find;
pub(crate) mod lz4;
pub(crate) mod plan;
pub(crate) mod squashfs;
pub(crate) mod units;
pub(crate) mod zstd;

pub use units::{Fault, ReadAt, Units, read_ranges};

use super::table::DeltaChunk;

/// How the content of a part becomes bytes of the image, or how a unit was packed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Codec {
    /// It is those bytes.
    Plain,
    /// One LZ4 block, as liblz4 makes it at level 9 (1.9 and 1.10 make the same).
    Lz4,
    /// One zstd frame without a checksum, as libzstd 1.5.7 makes it in one go at this level, 1 to 22. Its content
    /// is at most [`MAX_BLOCK_BYTES`](crate::limits::MAX_BLOCK_BYTES) long.
    Zstd(u8),
}

/// Numbers from here on are zstd; what is more is the level.
const ZSTD: u8 = 0x20;
const ZSTD_LEVELS: std::ops::RangeInclusive<u8> = 1..=22;

impl Codec {
    /// Its number in the format.
    pub(crate) fn number(self) -> u8 {
        match self {
            Codec::Plain => 0,
            Codec::Lz4 => 1,
            Codec::Zstd(level) => ZSTD.saturating_add(level),
        }
    }

    pub(crate) fn from_number(number: u8) -> Option<Self> {
        match number {
            0 => Some(Codec::Plain),
            1 => Some(Codec::Lz4),
            _ => number.checked_sub(ZSTD).filter(|level| ZSTD_LEVELS.contains(level)).map(Codec::Zstd),
        }
    }
}

/// A stretch of a chunk's output, and what it is made of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part {
    /// How the content is packed.
    pub codec: Codec,
    /// Length of the content in bytes, at most [`MAX_PART_BYTES`](crate::limits::MAX_PART_BYTES).
    pub content: u32,
    /// Packed bytes before those that are wanted; 0 of [`Codec::Plain`], like `rest`.
    pub skip: u32,
    /// How many packed bytes are wanted.
    pub take: u32,
    /// Packed bytes behind those.
    pub rest: u32,
    /// The content in pieces of [`MAX_CHUNK_BYTES`](crate::limits::MAX_CHUNK_BYTES), the last one shorter. Their outputs
    /// have no digests, except those that are copied.
    pub pieces: Vec<DeltaChunk>,
}

impl Part {
    /// Length of the packed content.
    pub(crate) fn packed(&self) -> usize {
        (self.skip as usize).saturating_add(self.take as usize).saturating_add(self.rest as usize)
    }
}

/// Packs `content` into all of `packed`.
///
/// # Errors
/// In words, when another length comes out.
pub(crate) fn pack(codec: Codec, content: &[u8], packed: &mut [u8]) -> Result<(), &'static str> {
    match codec {
        Codec::Plain => Err("plain bytes are not packed"),
        Codec::Lz4 => match lz4::pack(content, packed) {
            Some(length) if length == packed.len() => Ok(()),
            _ => Err("a part of it packs to another length"),
        },
        Codec::Zstd(level) => zstd::pack(level, content, packed).ok_or("a part of it packs to another length"),
    }
}

#[cfg(test)]
mod tests;
