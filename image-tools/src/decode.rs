//! Makes a chunk's output from its stored bytes and proves it to be the signed one, in one caller-owned buffer.

use bascule_core::Digest;
use sha2::{Digest as _, Sha256};
use zstd::zstd_safe;

use crate::error::BundleError;
use crate::limits::MAX_ZSTD_WINDOW_BYTES;
use crate::table::{Chunk, ChunkKind};

/// Decodes chunks one by one with one reused decompression context (about 160 KiB). May live on a thread of its own.
#[derive(Default)]
pub struct Decoder {
    context: zstd_safe::DCtx<'static>,
    /// The digest of that many zeroes, so that equal runs are hashed once.
    zeroes: Option<(u32, Digest)>,
}

impl std::fmt::Debug for Decoder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Decoder").finish_non_exhaustive()
    }
}

impl Decoder {
    /// Makes a decoder.
    #[must_use]
    pub fn new() -> Self {
        Decoder::default()
    }

    /// Writes the output of `chunk`, stored as `raw`, to the head of `out` and checks its SHA-256 over that very
    /// buffer. After an error the buffer holds rubbish.
    ///
    /// # Errors
    /// [`BundleError::ChunkMismatch`], or [`BundleError::Misuse`] when `out` is shorter than the chunk.
    pub fn decode<'o>(&mut self, chunk: &Chunk, raw: &[u8], out: &'o mut [u8]) -> Result<&'o [u8], BundleError> {
        let mismatch = |what| BundleError::ChunkMismatch { offset: chunk.offset, what };
        let len = chunk.len as usize;
        let out = out.get_mut(..len).ok_or(BundleError::Misuse("the buffer is shorter than the chunk"))?;
        if raw.len() != chunk.stored_len as usize {
            return Err(mismatch("its stored length is wrong"));
        }
        if chunk.kind == ChunkKind::Zeroes {
            self.check_zeroes(chunk)?;
            out.fill(0);
            return Ok(out);
        }
        self.fill(chunk.kind, raw, out).map_err(mismatch)?;
        let found: [u8; 32] = Sha256::digest(&*out).into();
        if found == chunk.digest.0 { Ok(out) } else { Err(mismatch("its SHA-256 is not the signed one")) }
    }

    /// Fills `out` with what is stored as `raw`, and checks no digest.
    ///
    /// # Errors
    /// In words, what is wrong with `raw`.
    pub(crate) fn fill(&mut self, kind: ChunkKind, raw: &[u8], out: &mut [u8]) -> Result<(), &'static str> {
        match kind {
            ChunkKind::Zeroes => out.fill(0),
            ChunkKind::Raw if raw.len() == out.len() => out.copy_from_slice(raw),
            ChunkKind::Raw => return Err("its stored length is wrong"),
            ChunkKind::Zstd => {
                check_frame(raw, out.len() as u64)?;
                let made = self.context.decompress(out, raw).map_err(|_| "it does not decompress")?;
                if made != out.len() {
                    return Err("it decompresses to another length");
                }
            }
        }
        Ok(())
    }

    /// Checks a chunk of zeroes without making them: for a writer that can zero a device by one command.
    ///
    /// # Errors
    /// [`BundleError::ChunkMismatch`] when it is not zeroes or its digest is another's.
    pub fn check_zeroes(&mut self, chunk: &Chunk) -> Result<(), BundleError> {
        if chunk.kind != ChunkKind::Zeroes {
            return Err(BundleError::ChunkMismatch { offset: chunk.offset, what: "it is not a chunk of zeroes" });
        }
        let expected = match self.zeroes {
            Some((len, digest)) if len == chunk.len => digest,
            _ => zeroes_digest(chunk.len),
        };
        self.zeroes = Some((chunk.len, expected));
        if expected == chunk.digest {
            Ok(())
        } else {
            Err(BundleError::ChunkMismatch { offset: chunk.offset, what: "its SHA-256 is not that of zeroes" })
        }
    }
}

/// The SHA-256 of `len` zero bytes.
pub(crate) fn zeroes_digest(len: u32) -> Digest {
    const BLOCK: [u8; 4096] = [0; 4096];
    let mut hash = Sha256::new();
    let mut left = len as usize;
    while left > 0 {
        let part = left.min(BLOCK.len());
        hash.update(BLOCK.get(..part).unwrap_or_default());
        left = left.saturating_sub(part);
    }
    Digest(hash.finalize().into())
}

const FRAME_MAGIC: [u8; 4] = 0xFD2F_B528_u32.to_le_bytes();

/// Accepts exactly one plain zstd frame that fills `raw`: no dictionary, no skippable frame, no legacy format, its
/// content size stated and equal to `len`, its window within [`MAX_ZSTD_WINDOW_BYTES`]. RFC 8878, section 3.1.1.1.
pub(crate) fn check_frame(raw: &[u8], len: u64) -> Result<(), &'static str> {
    let (magic, rest) = raw.split_first_chunk::<4>().ok_or("its frame is cut off")?;
    if *magic != FRAME_MAGIC {
        return Err("it is not a plain zstd frame");
    }
    let (&descriptor, rest) = rest.split_first().ok_or("its frame is cut off")?;
    if descriptor & 0b11 != 0 {
        return Err("its frame asks for a dictionary");
    }
    let single_segment = descriptor & 0b10_0000 != 0;
    let window = if single_segment { len } else { window_bytes(*rest.first().ok_or("its frame is cut off")?) };
    if window > MAX_ZSTD_WINDOW_BYTES {
        return Err("its frame asks for too large a window");
    }
    if !matches!(zstd_safe::get_frame_content_size(raw), Ok(Some(stated)) if stated == len) {
        return Err("its frame states another length");
    }
    match zstd_safe::find_frame_compressed_size(raw) {
        Ok(size) if size == raw.len() => Ok(()),
        _ => Err("its frame is cut off or followed by more"),
    }
}

/// Window size in bytes of a window descriptor: exponent in the upper five bits, eighths in the lower three.
fn window_bytes(descriptor: u8) -> u64 {
    let base = 1u64 << (10 + u32::from(descriptor >> 3));
    base + (base >> 3) * u64::from(descriptor & 7)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manifest::sha256;

    fn chunk(kind: ChunkKind, stored: &[u8], output: &[u8]) -> Chunk {
        Chunk {
            index: 0,
            offset: 0,
            len: output.len() as u32,
            kind,
            stored_offset: 0,
            stored_len: stored.len() as u32,
            digest: sha256(output),
        }
    }

    fn frame(output: &[u8], set: impl FnOnce(&mut zstd::bulk::Compressor<'_>)) -> Vec<u8> {
        let mut compressor = zstd::bulk::Compressor::new(3).unwrap();
        set(&mut compressor);
        compressor.compress(output).unwrap()
    }

    #[test]
    fn what_was_compressed_comes_back() {
        let output: Vec<u8> = (0..100_000u32).map(|i| (i / 100) as u8).collect();
        let stored = frame(&output, |_| ());
        let mut out = vec![0; 1 << 20];
        let chunk = chunk(ChunkKind::Zstd, &stored, &output);
        assert_eq!(Decoder::new().decode(&chunk, &stored, &mut out).unwrap(), output);
    }

    #[test]
    fn two_frames_a_skippable_frame_or_bytes_after_the_frame_are_refused() {
        let output = vec![7u8; 4000];
        let half = frame(&output[..2000], |_| ());
        let two = [half.clone(), half.clone()].concat();
        let whole = frame(&output, |_| ());
        let skippable = [&0x184D_2A50_u32.to_le_bytes()[..], &4u32.to_le_bytes(), b"skip"].concat();
        let mut out = vec![0; 8000];
        for stored in [
            two,
            [skippable.clone(), whole.clone()].concat(),
            [whole.clone(), skippable].concat(),
            [whole, vec![0]].concat(),
        ] {
            assert!(Decoder::new().decode(&chunk(ChunkKind::Zstd, &stored, &output), &stored, &mut out).is_err());
        }
    }

    #[test]
    fn a_window_above_the_limit_is_refused() {
        // Frames of window logs 27 and 31 by hand: no single segment, content size in four bytes, one raw block.
        for log in [24u8, 27, 31, 41] {
            let output = *b"0123456789";
            let mut stored = FRAME_MAGIC.to_vec();
            stored.extend([0b1000_0000, (log - 10) << 3]);
            stored.extend(10u32.to_le_bytes());
            stored.extend([(10 << 3) | 1, 0, 0]);
            stored.extend(output);
            let mut chunk = chunk(ChunkKind::Zstd, &stored, &output);
            let refused = Decoder::new().decode(&chunk, &stored, &mut [0; 16]).unwrap_err();
            assert!(refused.to_string().contains("window"), "window log {log}: {refused}");
            stored[5] = (23 - 10) << 3;
            chunk.stored_len = stored.len() as u32;
            assert_eq!(Decoder::new().decode(&chunk, &stored, &mut [0; 16]).unwrap(), output);
        }
    }

    #[test]
    fn a_bomb_never_makes_more_than_the_signed_length() {
        let bomb = frame(&vec![0; 16 << 20], |_| ());
        let mut chunk = chunk(ChunkKind::Zstd, &bomb, &[0; 4096]);
        let mut out = vec![0xee; 8192];
        assert_eq!(Decoder::new().decode(&chunk, &bomb, &mut out).unwrap_err().code(), "bundle.chunk-mismatch");
        assert!(out[4096..].iter().all(|&b| b == 0xee));
        chunk.len = 8193;
        assert_eq!(Decoder::new().decode(&chunk, &bomb, &mut out).unwrap_err().code(), "bundle.reader-misused");
    }

    #[test]
    fn zeroes_need_the_digest_of_zeroes() {
        let mut decoder = Decoder::new();
        let mut out = vec![1; 5000];
        let good = chunk(ChunkKind::Zeroes, &[], &[0; 5000]);
        assert_eq!(decoder.decode(&good, &[], &mut out).unwrap(), [0; 5000]);
        let wrong = Chunk { digest: Digest([0; 32]), ..good };
        assert!(decoder.decode(&wrong, &[], &mut out).is_err());
    }
}
