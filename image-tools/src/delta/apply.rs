//! Makes a chunk's output from its stored bytes and its source, and proves it to be the signed one.

use std::sync::Arc;

use sha2::{Digest as _, Sha256};

use super::patch::Patcher;
use super::predict::Prediction;
use super::repack::{self, Codec, Part, Units, read_ranges};
use super::table::{DeltaChunk, Transform, Way};
use crate::decode::Decoder;
use crate::error::BundleError;
use crate::table::ChunkKind;

/// Whether `source`, the chunk's source ranges one after the other as the booted slot has them, is what the delta was
/// made against. A chunk without source ranges has nothing to differ.
#[must_use]
pub fn source_matches(chunk: &DeltaChunk, source: &[u8]) -> bool {
    source.len() as u64 == chunk.source_len()
        && chunk.source_digest().is_none_or(|wanted| <[u8; 32]>::from(Sha256::digest(source)) == wanted.0)
}

/// Where the sources of chunks are read.
pub trait Base {
    /// The source ranges of `chunk` one after the other, if they are what the delta was made against.
    fn source(&mut self, chunk: &DeltaChunk) -> Option<&mut [u8]>;
}

/// A base image in memory.
#[derive(Debug)]
pub struct InMemory<'i> {
    image: &'i [u8],
    units: Option<Arc<Units>>,
    source: Vec<u8>,
}

impl<'i> InMemory<'i> {
    /// Chunks are made of `image` and the content of its `units`, those of the delta's table.
    #[must_use]
    pub fn new(image: &'i [u8], units: Option<Arc<Units>>) -> Self {
        InMemory { image, units, source: Vec::new() }
    }
}

impl Base for InMemory<'_> {
    fn source(&mut self, chunk: &DeltaChunk) -> Option<&mut [u8]> {
        self.source.resize(usize::try_from(chunk.source_len()).ok()?, 0);
        let mut read_at = |at: u64, place: &mut [u8]| {
            let from = usize::try_from(at).ok().and_then(|at| self.image.get(at..)?.get(..place.len()));
            place.copy_from_slice(from.ok_or(std::io::ErrorKind::UnexpectedEof)?);
            Ok(())
        };
        read_ranges(self.units.as_deref(), &chunk.source, &mut self.source, &mut read_at).ok()?;
        Some(self.source.as_mut_slice()).filter(|source| source_matches(chunk, source))
    }
}

/// Makes the chunks of deltas one by one with reused memory: at most [`MAX_CONTROL_BYTES`] and twice a chunk's output,
/// and of packed chunks twice [`MAX_PART_BYTES`]. May live on a thread of its own.
///
/// [`MAX_CONTROL_BYTES`]: crate::limits::MAX_CONTROL_BYTES
/// [`MAX_PART_BYTES`]: crate::limits::MAX_PART_BYTES
#[derive(Debug, Default)]
pub struct ChunkMaker {
    decoder: Decoder,
    patcher: Patcher,
    prediction: Option<Arc<Prediction>>,
    /// Content of a part, and that packed.
    content: Vec<u8>,
    packed: Vec<u8>,
}

impl ChunkMaker {
    /// Makes a maker for deltas whose table has a [`prediction`](super::DeltaTable::prediction), or none.
    #[must_use]
    pub fn new(prediction: Option<Arc<Prediction>>) -> Self {
        ChunkMaker { prediction, ..ChunkMaker::default() }
    }

    /// Writes the output of `chunk` to the head of `out` and checks its SHA-256 over that very buffer. `stored` are its
    /// stored bytes; sources are asked of `base`. After an error `out` holds rubbish.
    ///
    /// # Errors
    /// [`BundleError::ChunkMismatch`], or [`BundleError::Misuse`] when `out` is shorter than the chunk.
    pub fn make<'o>(
        &mut self,
        chunk: &DeltaChunk,
        stored: &[u8],
        base: &mut dyn Base,
        out: &'o mut [u8],
    ) -> Result<&'o [u8], BundleError> {
        let mismatch = |what| BundleError::ChunkMismatch { offset: chunk.output.offset, what };
        let out = out.get_mut(..chunk.output.len as usize);
        let out = out.ok_or(BundleError::Misuse("the buffer is shorter than the chunk"))?;
        if stored.len() != chunk.stored_len as usize {
            return Err(mismatch("its stored length is wrong"));
        }
        if chunk.way == Way::Packed {
            self.fill_parts(chunk, stored, base, out).map_err(mismatch)?;
        } else {
            self.fill(chunk, stored, base, out).map_err(mismatch)?;
        }
        let found: [u8; 32] = Sha256::digest(&*out).into();
        if found == chunk.output.digest.0 { Ok(out) } else { Err(mismatch("its SHA-256 is not the signed one")) }
    }

    /// Makes a chunk that is not packed, or a piece of one that is.
    fn fill(
        &mut self,
        chunk: &DeltaChunk,
        stored: &[u8],
        base: &mut dyn Base,
        out: &mut [u8],
    ) -> Result<(), &'static str> {
        let source = match chunk.way {
            Way::Zeroes => return self.decoder.fill(ChunkKind::Zeroes, stored, out),
            Way::Raw => return self.decoder.fill(ChunkKind::Raw, stored, out),
            Way::Zstd => return self.decoder.fill(ChunkKind::Zstd, stored, out),
            Way::Packed => return Err("a part of it is in parts itself"),
            Way::Copied | Way::Patched { .. } => base.source(chunk).ok_or("the base does not hold its source")?,
        };
        if source.len() as u64 != chunk.source_len() {
            return Err("its source's length is wrong");
        }
        if chunk.transform == Transform::Predicted {
            let prediction = self.prediction.as_ref().ok_or("nothing is known of its references")?;
            prediction.apply(&chunk.source, source);
        }
        if chunk.way != Way::Copied {
            return self.patcher.apply(stored, source, out);
        }
        if source.len() != out.len() {
            return Err("its source's length is wrong");
        }
        out.copy_from_slice(source);
        Ok(())
    }

    fn fill_parts(
        &mut self,
        chunk: &DeltaChunk,
        stored: &[u8],
        base: &mut dyn Base,
        out: &mut [u8],
    ) -> Result<(), &'static str> {
        let (mut stored, mut out) = (stored, out);
        for part in &chunk.parts {
            let place = out.split_off_mut(..part.take as usize).ok_or("its parts are longer than it")?;
            if part.codec == Codec::Plain {
                self.fill_pieces(part, &mut stored, base, place)?;
                continue;
            }
            let mut content = std::mem::take(&mut self.content);
            content.resize(part.content as usize, 0);
            let filled = self.fill_pieces(part, &mut stored, base, &mut content);
            self.content = content;
            filled?;
            self.packed.resize(part.packed(), 0);
            repack::pack(part.codec, &self.content, &mut self.packed)?;
            let wanted = self.packed.get(part.skip as usize..).and_then(|packed| packed.get(..place.len()));
            place.copy_from_slice(wanted.ok_or("a part of it is shorter than it says")?);
        }
        if out.is_empty() { Ok(()) } else { Err("its parts are shorter than it") }
    }

    fn fill_pieces(
        &mut self,
        part: &Part,
        stored: &mut &[u8],
        base: &mut dyn Base,
        out: &mut [u8],
    ) -> Result<(), &'static str> {
        let mut rest = out;
        for piece in &part.pieces {
            let place = rest.split_off_mut(..piece.output.len as usize).ok_or("a part of it is too short")?;
            let own = stored.split_off(..piece.stored_len as usize).ok_or("its stored length is wrong")?;
            self.fill(piece, own, base, place)?;
        }
        if rest.is_empty() { Ok(()) } else { Err("a part of it is too long") }
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
    use crate::table::Chunk;
    use bascule_core::Digest;

    const SOURCE: &[u8] = b"the quick brown fox jumps over the lazy dog";

    fn chunk(way: Way, stored: &[u8], output: &[u8]) -> DeltaChunk {
        let (len, stored_len) = (output.len() as u32, stored.len() as u32);
        let (kind, digest) = (ChunkKind::Raw, sha256(output));
        let output = Chunk { index: 0, offset: 0, len, kind, stored_offset: 0, stored_len: len, digest };
        let from_source = matches!(way, Way::Copied | Way::Patched { .. });
        let source = from_source.then_some(BaseRange { offset: 0, len: SOURCE.len() as u64 });
        let source = source.into_iter().collect();
        DeltaChunk { output, way, stored_offset: 0, stored_len, source, transform: Transform::None, parts: Vec::new() }
    }

    /// A base that gives these bytes for whatever is asked.
    struct Given(Vec<u8>);

    impl Base for Given {
        fn source(&mut self, _: &DeltaChunk) -> Option<&mut [u8]> {
            Some(&mut self.0)
        }
    }

    fn given(bytes: &[u8]) -> Given {
        Given(bytes.to_vec())
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
            assert_eq!(maker.make(&good, stored, &mut given(source), &mut [9; 1000]).unwrap(), output, "{way:?}");
            let mut wrong = good.clone();
            wrong.output.digest = Digest([1; 32]);
            let refused = maker.make(&wrong, stored, &mut given(source), &mut [9; 1000]).unwrap_err();
            assert_eq!(refused.code(), "bundle.chunk-mismatch", "{way:?}");
            let longer = [stored, b"x"].concat();
            assert_eq!(
                maker.make(&good, &longer, &mut given(source), &mut [9; 1000]).unwrap_err().code(),
                "bundle.chunk-mismatch"
            );
            let longer = [source, b"x"].concat();
            assert!(!source_matches(&good, &longer));
            if !source.is_empty() {
                let refused = maker.make(&good, stored, &mut given(&longer), &mut [9; 1000]).unwrap_err();
                assert_eq!(refused.code(), "bundle.chunk-mismatch");
            }
            let short = maker.make(&good, stored, &mut given(source), &mut [9; 5]).unwrap_err();
            assert_eq!(short.code(), "bundle.reader-misused");
        }
    }

    #[test]
    fn a_copied_chunk_of_another_length_than_its_source_is_refused() {
        for output in [&SOURCE[1..], &[SOURCE, b"x"].concat()] {
            let wrong = chunk(Way::Copied, b"", output);
            let refused = ChunkMaker::new(None).make(&wrong, b"", &mut given(SOURCE), &mut [9; 100]).unwrap_err();
            assert!(refused.to_string().contains("source's length"), "{refused}");
        }
    }

    #[test]
    fn a_base_that_does_not_hold_the_source_makes_nothing() {
        let chunk = chunk(Way::Copied, b"", SOURCE);
        let other = [b"T", &SOURCE[1..]].concat();
        for (image, makes) in [(SOURCE, true), (&other, false), (&SOURCE[1..], false)] {
            let made = ChunkMaker::new(None).make(&chunk, b"", &mut InMemory::new(image, None), &mut [9; 100]).is_ok();
            assert_eq!(made, makes, "{image:?}");
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
