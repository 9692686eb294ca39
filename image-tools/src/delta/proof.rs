//! What was encoded is made as a device makes it, before anything is written: a delta that makes another image would only
//! be found out by the devices. Only on the developer's host.

use std::sync::Arc;

use super::apply::{Base, ChunkMaker, source_matches};
use super::encode::Encoded;
use super::index::BaseIndex;
use super::predict::Prediction;
use super::table::DeltaChunk;
use crate::manifest::sha256;
use crate::table::{Chunk, ChunkKind};

/// The base image as it really is, whatever of it is predicted.
struct Real<'b> {
    base: &'b BaseIndex,
    source: Vec<u8>,
}

impl Base for Real<'_> {
    fn source(&mut self, chunk: &DeltaChunk) -> Option<&mut [u8]> {
        self.source = self.base.real(&chunk.source);
        Some(self.source.as_mut_slice()).filter(|source| source_matches(chunk, source))
    }
}

/// Whether `output` is what a device makes of `encoded`, whose stored bytes are all there.
pub(super) fn makes(encoded: &Encoded, output: &[u8], base: &BaseIndex, prediction: &Arc<Prediction>) -> bool {
    let (len, digest) = (output.len() as u32, sha256(output));
    let stored_len = encoded.stored.len() as u32;
    let output_of = Chunk { index: 0, offset: 0, len, kind: ChunkKind::Raw, stored_offset: 0, stored_len, digest };
    let chunk = encoded.chunk(output_of);
    let mut maker = ChunkMaker::new(Some(prediction.clone()));
    let mut made = vec![0; output.len()];
    let mut real = Real { base, source: Vec::new() };
    maker.make(&chunk, &encoded.stored, &mut real, &mut made).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::delta::encode::ChunkEncoder;

    #[test]
    fn what_makes_something_else_is_found_out() {
        let old: Vec<u8> = (0..40_000u32).flat_map(|number| (number * 7).to_le_bytes()).collect();
        let mut new = old[..100_000].to_vec();
        new[5000] ^= 1;
        new.splice(70_000..70_000, [3; 300]);
        let base = BaseIndex::new(old).unwrap();
        let prediction = Arc::default();
        let encoded = ChunkEncoder::new(&base, 3).unwrap().encode(&new).unwrap();
        assert!(makes(&encoded, &new, &base, &prediction));
        let mut other = new.clone();
        other[99_999] ^= 1;
        assert!(!makes(&encoded, &other, &base, &prediction));
        let mut wrong = encoded.clone();
        wrong.source[0].offset += 4096;
        assert!(!makes(&wrong, &new, &base, &prediction));
        let mut damaged = encoded;
        damaged.stored.pop();
        assert!(!makes(&damaged, &new, &base, &prediction));
    }
}
