//! Makes a chunk's output from its stored bytes and its source, and proves it to be the signed one.

use std::sync::Arc;

use sha2::{Digest as _, Sha256};

use super::patch::Patcher;
use super::predict::Prediction;
use super::table::{DeltaChunk, Transform, Way};
use crate::decode::Decoder;
use crate::error::BundleError;
use crate::table::{Chunk, ChunkKind};

/// Whether `source`, the chunk's source ranges one after the other as the booted slot has them, is what the delta was
/// made against. A chunk without source ranges has nothing to differ.
#[must_use]
pub fn source_matches(chunk: &DeltaChunk, source: &[u8]) -> bool {
    source.len() as u64 == chunk.source_len()
        && chunk.source_digest().is_none_or(|wanted| <[u8; 32]>::from(Sha256::digest(source)) == wanted.0)
}

/// Makes the chunks of deltas one by one with reused memory: at most [`MAX_CONTROL_BYTES`] and twice a chunk's output.
/// May live on a thread of its own.
///
/// [`MAX_CONTROL_BYTES`]: crate::limits::MAX_CONTROL_BYTES
#[derive(Debug, Default)]
pub struct ChunkMaker {
    decoder: Decoder,
    patcher: Patcher,
    prediction: Option<Arc<Prediction>>,
}

impl ChunkMaker {
    /// Makes a maker for deltas whose table has a [`prediction`](super::DeltaTable::prediction), or none.
    #[must_use]
    pub fn new(prediction: Option<Arc<Prediction>>) -> Self {
        ChunkMaker { prediction, ..ChunkMaker::default() }
    }

    /// Writes the output of `chunk` to the head of `out` and checks its SHA-256 over that very buffer. `stored` are its
    /// stored bytes, `source` its source ranges one after the other; whether they are the right ones is to be asked of
    /// [`source_matches`] before, but for a chunk that is copied, where this check is the same. Afterwards `source` may
    /// hold other bytes, and `out` after an error rubbish.
    ///
    /// # Errors
    /// [`BundleError::ChunkMismatch`], or [`BundleError::Misuse`] when `out` is shorter than the chunk.
    pub fn make<'o>(
        &mut self,
        chunk: &DeltaChunk,
        stored: &[u8],
        source: &mut [u8],
        out: &'o mut [u8],
    ) -> Result<&'o [u8], BundleError> {
        let mismatch = |what| BundleError::ChunkMismatch { offset: chunk.output.offset, what };
        if source.len() as u64 != chunk.source_len() {
            return Err(mismatch("its source's length is wrong"));
        }
        let kind = match chunk.way {
            Way::Zeroes => ChunkKind::Zeroes,
            Way::Raw => ChunkKind::Raw,
            Way::Zstd => ChunkKind::Zstd,
            Way::Copied | Way::Patched { .. } => return self.made_of_source(chunk, stored, source, out),
        };
        let (stored_offset, stored_len) = (chunk.stored_offset, chunk.stored_len);
        self.decoder.decode(&Chunk { kind, stored_offset, stored_len, ..chunk.output }, stored, out)
    }

    fn made_of_source<'o>(
        &mut self,
        chunk: &DeltaChunk,
        stored: &[u8],
        source: &mut [u8],
        out: &'o mut [u8],
    ) -> Result<&'o [u8], BundleError> {
        let mismatch = |what| BundleError::ChunkMismatch { offset: chunk.output.offset, what };
        let len = chunk.output.len as usize;
        let out = out.get_mut(..len).ok_or(BundleError::Misuse("the buffer is shorter than the chunk"))?;
        if stored.len() != chunk.stored_len as usize {
            return Err(mismatch("its stored length is wrong"));
        }
        if chunk.transform == Transform::Predicted {
            let prediction = self.prediction.as_ref().ok_or(mismatch("nothing is known of its references"))?;
            prediction.apply(&chunk.source, source);
        }
        if chunk.way != Way::Copied {
            self.patcher.apply(stored, source, out).map_err(mismatch)?;
        } else if source.len() == len {
            out.copy_from_slice(source);
        } else {
            return Err(mismatch("its source's length is wrong"));
        }
        let found: [u8; 32] = Sha256::digest(&*out).into();
        if found == chunk.output.digest.0 { Ok(out) } else { Err(mismatch("its SHA-256 is not the signed one")) }
    }
}

/// A maker may live on a thread of its own.
const _: fn() = || {
    fn is_send<T: Send>() {}
    is_send::<ChunkMaker>();
};

#[cfg(test)]
mod tests {
    use super::super::patch::Operation;
    use super::super::table::BaseRange;
    use super::super::varint;
    use super::*;
    use crate::manifest::sha256;
    use bascule_core::Digest;

    const SOURCE: &[u8] = b"the quick brown fox jumps over the lazy dog";

    fn chunk(way: Way, stored: &[u8], output: &[u8]) -> DeltaChunk {
        let (len, stored_len) = (output.len() as u32, stored.len() as u32);
        let (kind, digest) = (ChunkKind::Raw, sha256(output));
        let output = Chunk { index: 0, offset: 0, len, kind, stored_offset: 0, stored_len: len, digest };
        let from_source = matches!(way, Way::Copied | Way::Patched { .. });
        let source = from_source.then_some(BaseRange { offset: 0, len: SOURCE.len() as u64 });
        let source = source.into_iter().collect();
        DeltaChunk { output, way, stored_offset: 0, stored_len, source, transform: Transform::None }
    }

    fn patch() -> Vec<u8> {
        let mut control = Vec::new();
        Operation { seek: 4, copy: 5, new: 1 }.push_to(&mut control);
        let parts = [control, vec![0; 5], b"!".to_vec()].map(|part| zstd::bulk::compress(&part, 3).unwrap());
        let mut patch = Vec::new();
        varint::push(&mut patch, parts[0].len() as u64);
        varint::push(&mut patch, parts[1].len() as u64);
        parts.iter().for_each(|part| patch.extend(part));
        patch
    }

    /// A way, its stored bytes, its source, and what comes of them.
    type Case<'a> = (Way, &'a [u8], &'a [u8], &'a [u8]);

    #[test]
    fn every_way_makes_its_output_and_a_wrong_digest_is_seen() {
        let packed = zstd::bulk::compress(&[7; 1000], 3).unwrap();
        let cases: [Case<'_>; 5] = [
            (Way::Zeroes, b"", b"", &[0; 500]),
            (Way::Raw, b"as it is", b"", b"as it is"),
            (Way::Zstd, &packed, b"", &[7; 1000]),
            (Way::Copied, b"", SOURCE, SOURCE),
            (Way::Patched { source: sha256(SOURCE) }, &patch(), SOURCE, b"quick!"),
        ];
        let mut maker = ChunkMaker::new(None);
        for (way, stored, source, output) in cases {
            let good = chunk(way, stored, output);
            assert!(source_matches(&good, source));
            assert_eq!(maker.make(&good, stored, &mut source.to_vec(), &mut [9; 1000]).unwrap(), output, "{way:?}");
            let mut wrong = good.clone();
            wrong.output.digest = Digest([1; 32]);
            let refused = maker.make(&wrong, stored, &mut source.to_vec(), &mut [9; 1000]).unwrap_err();
            assert_eq!(refused.code(), "bundle.chunk-mismatch", "{way:?}");
            let longer = [stored, b"x"].concat();
            assert_eq!(
                maker.make(&good, &longer, &mut source.to_vec(), &mut [9; 1000]).unwrap_err().code(),
                "bundle.chunk-mismatch"
            );
            let longer = [source, b"x"].concat();
            assert!(!source_matches(&good, &longer));
            assert_eq!(
                maker.make(&good, stored, &mut longer.clone(), &mut [9; 1000]).unwrap_err().code(),
                "bundle.chunk-mismatch"
            );
            let short = maker.make(&good, stored, &mut source.to_vec(), &mut [9; 5]).unwrap_err();
            assert_eq!(short.code(), "bundle.reader-misused");
        }
    }

    #[test]
    fn a_copied_chunk_of_another_length_than_its_source_is_refused() {
        for output in [&SOURCE[1..], &[SOURCE, b"x"].concat()] {
            let wrong = chunk(Way::Copied, b"", output);
            let refused = ChunkMaker::new(None).make(&wrong, b"", &mut SOURCE.to_vec(), &mut [9; 100]).unwrap_err();
            assert!(refused.to_string().contains("source's length"), "{refused}");
        }
    }

    #[test]
    fn a_source_that_differs_in_one_bit_does_not_match() {
        for way in [Way::Copied, Way::Patched { source: sha256(SOURCE) }] {
            let chunk = chunk(way, b"", SOURCE);
            let mut other = SOURCE.to_vec();
            assert!(source_matches(&chunk, &other));
            other[20] ^= 1;
            assert!(!source_matches(&chunk, &other), "{way:?}");
        }
    }
}
