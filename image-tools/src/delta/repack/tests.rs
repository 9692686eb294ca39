use std::collections::HashSet;
use std::io::{self, Write};

use proptest::prelude::*;
use sha2::{Digest as _, Sha256};

use super::find::{Found, FoundUnit, Unpacked, bytes_of, find};
use super::plan::{Plan, number_of};
use super::units::Stretch;
use super::*;
use crate::delta::apply::InMemory;
use crate::delta::image::{DeltaSpec, EncodedImage, Transforms, encode_image};
use crate::delta::index::BaseIndex;
use crate::delta::predict::ext4::Extent;
use crate::delta::table::{BaseRange, Fault as TableFault};
use crate::delta::{ChunkMaker, DeltaTable, Way};
use crate::format::Fields;
use crate::limits::{MAX_BLOCK_BYTES, MAX_UNIT_BYTES, MAX_UNITS, MAX_UNPACKED_BYTES};
use crate::table::{Chunk, ChunkKind, ChunkTable};
use crate::{BundleError, Digest};

const CHUNK: usize = 128 << 10;

/// Words of a small vocabulary, so that the bytes pack as programs do.
fn prose(length: usize, seed: u64) -> Vec<u8> {
    let mut state = seed | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    let words: Vec<Vec<u8>> =
        (0..4000).map(|_| (0..3 + next() % 9).map(|_| (next() >> 24) as u8).collect::<Vec<_>>()).collect();
    let mut bytes = Vec::with_capacity(length + 16);
    while bytes.len() < length {
        bytes.extend(&words[(next() % next().max(1) % 4000) as usize]);
    }
    bytes.truncate(length);
    bytes
}

/// Content before and after a change that moves nearly all of it.
fn contents() -> (Vec<u8>, Vec<u8>) {
    let content = |by: u32| {
        let mut content = prose(1_500_000, 7);
        // Addresses, all of which move.
        for place in (0..content.len() - 4).step_by(28) {
            let address = (place as u32).wrapping_mul(0x9e37_79b1) >> 8;
            content[place..place + 4].copy_from_slice(&(address + by).to_le_bytes());
        }
        content.extend(vec![0; 300_000]);
        content.extend(prose(200_000, 8));
        content
    };
    let (old, mut new) = (content(0), content(0x1040));
    new.splice(300_000..300_010, prose(700, 9));
    (old, new)
}

fn frame(content: &[u8], level: i32) -> Vec<u8> {
    let mut frame = vec![0x02, 0x21, 0x4c, 0x18];
    for block in content.chunks(MAX_UNIT_BYTES as usize) {
        let mode = ::lz4::block::CompressionMode::HIGHCOMPRESSION(level);
        let packed = ::lz4::block::compress(block, Some(mode), false).unwrap();
        frame.extend((packed.len() as u32).to_le_bytes());
        frame.extend(packed);
    }
    frame.extend((content.len() as u32).to_le_bytes());
    frame
}

/// An image with a packed content at an odd place.
fn image(content: &[u8], level: i32) -> Vec<u8> {
    let mut image = prose(21_001, 3);
    image.extend(frame(content, level));
    image.extend(prose(70_000, 4));
    image.resize(image.len().next_multiple_of(4096), 0);
    image
}

fn outputs(image: &[u8]) -> ChunkTable {
    let (mut table, mut offset) = (Vec::new(), 0);
    for part in image.chunks(CHUNK) {
        let (digest, len) = (Digest(Sha256::digest(part).into()), part.len() as u32);
        let kind = ChunkKind::Raw;
        Chunk { index: 0, offset, len, kind, stored_offset: offset, stored_len: len, digest }.push_to(&mut table);
        offset += u64::from(len);
    }
    ChunkTable::parse(table, "root", offset, offset).unwrap()
}

struct Delta {
    made: EncodedImage,
    blobs: Vec<u8>,
}

impl Delta {
    fn new(old: &[u8], new: &[u8], transforms: Transforms) -> Self {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(new).unwrap();
        let spec = DeltaSpec { transforms, ..DeltaSpec::new(CHUNK as u32, 3) };
        let mut index = BaseIndex::new(old.to_vec()).unwrap();
        let mut blobs = Vec::new();
        let made = encode_image(&mut index, &file, new.len() as u64, spec, &mut blobs, &mut |_| ()).unwrap();
        Delta { made, blobs }
    }

    fn bytes(&self) -> usize {
        self.blobs.len() + ::zstd::bulk::compress(&self.made.table, 19).unwrap().len()
    }

    fn table(&self, old: &[u8], full: &ChunkTable) -> DeltaTable {
        DeltaTable::parse(self.made.table.clone(), "root", old.len() as u64, self.made.blobs, full).unwrap()
    }

    /// What comes of each chunk where the base is `held`.
    fn apply(&self, old: &[u8], held: &[u8], full: &ChunkTable) -> Vec<Result<Vec<u8>, BundleError>> {
        let table = self.table(old, full);
        let mut base = InMemory::new(held, table.units());
        let mut maker = ChunkMaker::new(table.prediction());
        let mut out = vec![0; CHUNK];
        let chunks = table.chunks(full).map(|chunk| {
            let stored = &self.blobs[chunk.stored_offset as usize..][..chunk.stored_len as usize];
            maker.make(&chunk, stored, &mut base, &mut out).map(<[u8]>::to_vec)
        });
        chunks.collect()
    }
}

const REPACKED: Transforms = Transforms { predict: false, repack: true };

#[test]
fn packed_data_are_made_of_what_they_hold_and_the_delta_is_a_fraction() {
    let (old, new) = contents();
    let (old, new) = (image(&old, 9), image(&new, 9));
    let plain = Delta::new(&old, &new, Transforms::NONE);
    let repacked = Delta::new(&old, &new, REPACKED);
    let full = outputs(&new);
    for delta in [&plain, &repacked] {
        let made: Vec<u8> = delta.apply(&old, &old, &full).into_iter().flat_map(Result::unwrap).collect();
        assert!(made == new);
    }
    let packed = repacked.table(&old, &full).chunks(&full).filter(|chunk| chunk.way == Way::Packed).count();
    assert!(packed >= 3, "{packed}");
    assert!(repacked.bytes() * 5 < plain.bytes(), "{} of {}", repacked.bytes(), plain.bytes());
    assert!(repacked.made.tally.repacked > 0 && plain.made.tally.repacked == 0);
}

#[test]
fn the_same_images_give_the_same_bytes_on_however_many_threads() {
    let (old, new) = contents();
    let (old, new) = (image(&old, 9), image(&new, 9));
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(&new).unwrap();
    let made: Vec<_> = [1, 3]
        .map(|workers| {
            let spec = DeltaSpec { workers, ..DeltaSpec::new(CHUNK as u32, 3) };
            let mut blobs = Vec::new();
            let mut index = BaseIndex::new(old.clone()).unwrap();
            let made = encode_image(&mut index, &file, new.len() as u64, spec, &mut blobs, &mut |_| ()).unwrap();
            (made, blobs)
        })
        .into();
    assert!(made[0] == made[1]);
}

#[test]
fn what_the_encoder_does_not_make_again_is_sent_as_it_is() {
    let (old, new) = contents();
    // Another level makes other bytes of the same content; so no part of it can be packed again.
    let (old, new) = (image(&old, 9), image(&new, 3));
    let delta = Delta::new(&old, &new, REPACKED);
    let full = outputs(&new);
    assert!(delta.table(&old, &full).chunks(&full).all(|chunk| chunk.way != Way::Packed));
    let made: Vec<u8> = delta.apply(&old, &old, &full).into_iter().flat_map(Result::unwrap).collect();
    assert!(made == new);
}

#[test]
fn a_base_whose_packed_data_differ_makes_no_wrong_chunk() {
    let (old, new) = contents();
    let (old, new) = (image(&old, 9), image(&new, 9));
    let (delta, full) = (Delta::new(&old, &new, REPACKED), outputs(&new));
    let mut missing = 0;
    for place in [21_010, 60_000, 400_000, old.len() - 80_000] {
        let mut held = old.clone();
        held[place] ^= 0x10;
        for (chunk, wanted) in delta.apply(&old, &held, &full).into_iter().zip(new.chunks(CHUNK)) {
            match chunk {
                Ok(chunk) => assert!(chunk == wanted),
                Err(error) => {
                    assert_eq!(error.code(), "bundle.chunk-mismatch");
                    missing += 1;
                }
            }
        }
    }
    assert!(missing > 0);
}

#[test]
fn a_table_damaged_anywhere_is_refused_or_makes_no_wrong_chunk() {
    let (old, new) = contents();
    let (old, new) = (image(&old, 9), image(&new, 9));
    let (delta, full) = (Delta::new(&old, &new, REPACKED), outputs(&new));
    let table = delta.made.table.clone();
    let mut taken = 0;
    for place in (0..table.len()).step_by(table.len() / 150) {
        let mut damaged = table.clone();
        damaged[place] ^= 1 << (place % 8);
        let made = EncodedImage { table: damaged, ..delta.made.clone() };
        if DeltaTable::parse(made.table.clone(), "root", old.len() as u64, made.blobs, &full).is_err() {
            continue;
        }
        taken += 1;
        let changed = Delta { made, blobs: delta.blobs.clone() };
        for (chunk, wanted) in changed.apply(&old, &old, &full).into_iter().zip(new.chunks(CHUNK)) {
            assert!(chunk.is_err() || chunk.is_ok_and(|chunk| chunk == wanted));
        }
    }
    assert!(taken > 0);
}

#[test]
fn a_frame_is_found_at_any_place_and_what_only_looks_like_one_is_not() {
    let (content, _) = contents();
    let whole = image(&content, 9);
    let found = find(&whole);
    let extent = Extent { at: 0, start: 0, length: content.len() as u64 };
    assert_eq!(found.files, [Unpacked { extents: vec![extent], path: None }]);
    assert!(found.content == content);
    let packed: Vec<_> = found.units.iter().map(|unit| bytes_of(&whole, &unit.stretches)).collect();
    assert_eq!(packed[0], frame(&content, 9)[8..8 + packed[0].len()]);
    let mut damaged = whole.clone();
    damaged[21_001 + 100_000] ^= 0xff;
    damaged.truncate(400_000);
    for nothing in [&damaged[..], &whole[..21_003], &whole[..21_007], &prose(300_000, 1)] {
        assert!(find(nothing).units.is_empty());
    }
}

#[test]
fn parts_make_up_the_chunk_in_order() {
    let (content, _) = contents();
    let whole = image(&content, 9);
    let plan = Plan::new(find(&whole), &whole, &HashSet::new());
    let mut packed = 0;
    for (number, chunk) in whole.chunks(CHUNK).enumerate() {
        let Some(parts) = plan.parts(number * CHUNK, chunk) else { continue };
        let mut made = Vec::new();
        for planned in parts {
            assert_eq!(planned.content.len(), planned.part.content as usize);
            if planned.part.codec == Codec::Plain {
                made.extend(planned.content);
                continue;
            }
            let mut bytes = vec![0; planned.part.packed()];
            pack(planned.part.codec, &planned.content, &mut bytes).unwrap();
            made.extend(&bytes[planned.part.skip as usize..][..planned.part.take as usize]);
            packed += planned.part.take as usize;
        }
        assert!(made == chunk, "{number}");
    }
    assert!(packed * 10 > frame(&content, 9).len() * 9, "{packed}");
}

/// Units of these contents in one stretch each, behind each other from byte 100 on; what fits is packed by zstd, but for
/// the last one, which is as it is.
fn units(contents: &[Vec<u8>]) -> (Vec<u8>, Units) {
    let packed = |(number, content): (usize, &Vec<u8>)| {
        let is_short = content.len() <= MAX_BLOCK_BYTES as usize;
        if !is_short {
            // Without the length behind the frame.
            let frame = frame(content, 9);
            return (Codec::Lz4, frame[8..frame.len() - 4].to_vec());
        }
        let packed = ::zstd::bulk::compress(content, 3).unwrap();
        let is_last = number + 1 == contents.len();
        if is_last || packed.len() > content.len() { (Codec::Plain, content.clone()) } else { (Codec::Zstd(3), packed) }
    };
    let packed: Vec<_> = contents.iter().enumerate().map(packed).collect();
    let mut image = vec![9; 100];
    let mut places = Vec::new();
    for (codec, packed) in &packed {
        places.push((*codec, Stretch { start: image.len() as u64, length: packed.len() as u32 }));
        image.extend(packed);
    }
    image.resize(image.len().next_multiple_of(4096), 0);
    let mut units = Units::behind(image.len() as u64);
    for (content, (codec, place)) in contents.iter().zip(places) {
        let half = place.length / 2;
        let halves = [
            Stretch { start: place.start, length: half },
            Stretch { start: place.start + u64::from(half), length: place.length - half },
        ];
        units.push(codec, content.len() as u32, &halves).unwrap();
    }
    (image, units)
}

fn read(image: &[u8], units: &Units, ranges: &[BaseRange]) -> Result<Vec<u8>, Fault> {
    let mut out = vec![0xee; ranges.iter().map(|range| range.len as usize).sum()];
    read_ranges(Some(units), ranges, &mut out, &mut |at, place| {
        let from = image.get(at as usize..).and_then(|rest| rest.get(..place.len()));
        place.copy_from_slice(from.ok_or_else(|| io::Error::from(io::ErrorKind::UnexpectedEof))?);
        Ok(())
    })?;
    Ok(out)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn any_ranges_of_image_and_units_read_as_the_long_image(
        runs in prop::collection::vec((any::<u8>(), 1usize..200_000, any::<bool>()), 1..5),
        ranges in prop::collection::vec((any::<u64>(), 1u64..40), 1..12),
    ) {
        let mut first = Vec::new();
        for (byte, length, is_plain) in runs {
            if is_plain { first.extend(vec![byte; length]) } else { first.extend(prose(length, u64::from(byte))) }
        }
        let contents = [first, prose(5000, 2), vec![7; 4096], prose(90_000, 5)];
        let (image, units) = units(&contents);
        let mut long = image.clone();
        for content in &contents {
            long.extend(content);
            long.resize(long.len().next_multiple_of(4096), 0);
        }
        prop_assert_eq!(long.len() as u64, units.end());
        let blocks = long.len() as u64 / 4096;
        let ranges: Vec<_> = ranges
            .into_iter()
            .map(|(first, count)| {
                let first = first % blocks;
                BaseRange { offset: first * 4096, len: count.min(blocks - first) * 4096 }
            })
            .collect();
        let wanted: Vec<u8> =
            ranges.iter().flat_map(|range| &long[range.offset as usize..range.end() as usize]).copied().collect();
        prop_assert!(read(&image, &units, &ranges).unwrap() == wanted);
    }

    /// Sequences as no encoder would put them: each short or long, near or far, at the borders of either.
    #[test]
    fn sequences_of_every_kind_come_out_as_liblz4_makes_them(
        kinds in prop::collection::vec((0usize..40, 1usize..80, 0usize..60), 1..40),
        times in prop_oneof![1usize..20, 400usize..900],
        seed in any::<u64>(),
    ) {
        let literals = prose(100, seed);
        let (mut packed, mut length) = (Vec::new(), 0usize);
        let long = |packed: &mut Vec<u8>, over: usize| {
            packed.extend(std::iter::repeat_n(255, over / 255));
            packed.push((over % 255) as u8);
        };
        // Every eighth is far longer, every fifth reaches far back.
        let more = |number: usize, count: usize| if number % 8 == 7 { count * 977 } else { count };
        for (number, (new, distance, matched)) in kinds.iter().cycle().take(kinds.len() * times).enumerate() {
            let (new, matched) = (more(number, *new), more(number / 2, *matched));
            packed.push((new.min(15) << 4 | matched.min(15)) as u8);
            if new >= 15 {
                long(&mut packed, new - 15);
            }
            packed.extend(literals.iter().cycle().skip(number).take(new));
            length += new;
            let far = if number % 5 == 4 { 65_535 - distance } else { *distance };
            packed.extend((far.min(length).max(1) as u16).to_le_bytes());
            if length == 0 {
                // There is nothing to repeat yet: such a block is refused.
                prop_assert!(lz4::whole(&[&packed[..], &[0x50, 1, 2, 3, 4, 5]].concat(), 100).is_none());
                return Ok(());
            }
            if matched >= 15 {
                long(&mut packed, matched - 15);
            }
            length += matched + 4;
        }
        packed.extend([0xc0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12]);
        length += 12;
        prop_assume!(length <= MAX_UNIT_BYTES as usize);
        let wanted = ::lz4::block::decompress(&packed, Some(length as i32)).unwrap();
        prop_assert!(lz4::whole(&packed, length).is_some_and(|made| made == wanted));
    }

    #[test]
    fn damaged_units_are_read_or_refused(place in any::<prop::sample::Index>(), value in any::<u8>()) {
        let (mut image, units) = units(&[prose(170_000, 6), vec![1; 100_000], vec![1; 30_000]]);
        let place = place.index(image.len());
        image[place] = value;
        let _ = read(&image, &units, &[BaseRange { offset: units.start(), len: units.end() - units.start() }]);
    }

    #[test]
    fn units_of_noise_are_read_or_refused(noise in prop::collection::vec(any::<u8>(), 0..300)) {
        let _ = Units::parse(&mut Fields(&noise), 1 << 20);
    }
}

#[test]
fn units_come_back_from_their_bytes_and_those_outside_are_refused() {
    let (image, units) = units(&[prose(170_000, 6), vec![1; 100_000], vec![1; 30_000]]);
    let size = image.len() as u64;
    let mut bytes = Vec::new();
    units.push_to(&mut bytes);
    bytes.push(77);
    let mut fields = Fields(&bytes);
    assert_eq!(Units::parse(&mut fields, size), Ok(units));
    assert_eq!(fields.0, [77]);
    for end in 0..bytes.len() - 1 {
        assert!(Units::parse(&mut Fields(&bytes[..end]), size).is_err(), "{end}");
    }
    let parse = |bytes: &[u8], size| Units::parse(&mut Fields(bytes), size);
    assert_eq!(parse(&bytes, 8192), Err(TableFault::Rule("a unit is outside of the base image")));
    assert_eq!(parse(&bytes, size + 1), Err(TableFault::Rule("a base image with units is not of whole blocks")));
    let mut other = bytes.clone();
    other[1] = 9;
    assert_eq!(parse(&other, size), Err(TableFault::Kind(9)));
    let mut many = Vec::new();
    crate::delta::varint::push(&mut many, MAX_UNITS as u64 + 1);
    assert!(parse(&many, size).is_err());
}

#[test]
fn a_part_that_packs_to_another_length_is_refused() {
    let content = prose(10_000, 1);
    let length =
        ::lz4::block::compress(&content, Some(::lz4::block::CompressionMode::HIGHCOMPRESSION(9)), false).unwrap().len();
    assert!(pack(Codec::Lz4, &content, &mut vec![0; length]).is_ok());
    assert!(pack(Codec::Lz4, &content, &mut vec![0; length - 1]).is_err());
    assert!(pack(Codec::Lz4, &content, &mut vec![0; length + 1]).is_err());
    assert!(pack(Codec::Plain, &content, &mut vec![0; 10_000]).is_err());
}

/// Whoever applies a delta packs as whoever made it did, although years lie between them: so other bytes than these are
/// a new codec, not a new version of a library.
#[test]
fn the_encoder_makes_the_bytes_that_it_always_made() {
    let content = [prose(300_000, 11), vec![0; 70_000], prose(5_000, 12)].concat();
    let mut packed = vec![0; content.len()];
    let length = lz4::pack(&content, &mut packed).unwrap();
    let digest = Digest(Sha256::digest(&packed[..length]).into());
    assert_eq!(
        (length, digest.to_string().as_str()),
        (161_595, "4924fdadf14c394344c0d321776670e19fe3b00c0459c8020092b152cf2bb48a")
    );
}

#[test]
fn blocks_of_zstd_are_made_as_they_always_were() {
    let content = [prose(100_000, 11), vec![0; 20_000], prose(5_000, 12)].concat();
    let wanted = [
        (1, 81269, "4720c59d15036fab"),
        (3, 62904, "4cae06e049aaaf48"),
        (9, 59343, "298a256365ac9271"),
        (15, 58416, "7153066763c7171d"),
        (19, 58409, "9b3d33c0f83e482c"),
    ];
    for (level, length, digest) in wanted {
        let again = zstd::again(level, &content).unwrap();
        let made = Digest(Sha256::digest(&again).into()).to_string();
        assert_eq!((again.len(), &made[..16]), (length, digest), "level {level}");
        assert!(zstd::whole(&again, content.len()).unwrap() == content);
    }
}

#[test]
fn a_unit_of_zstd_is_no_longer_than_a_block_and_no_longer_packed_than_unpacked() {
    let push = |length: u32, packed: u32| {
        let half = Stretch { start: 0, length: packed / 2 };
        Units::behind(1 << 20).push(Codec::Zstd(15), length, &[half, Stretch { length: packed - packed / 2, ..half }])
    };
    assert!(push(MAX_BLOCK_BYTES, MAX_BLOCK_BYTES).is_some());
    assert!(push(MAX_BLOCK_BYTES + 1, 100).is_none());
    assert!(push(100, 101).is_none());
    assert!(zstd::again(15, &vec![0; MAX_BLOCK_BYTES as usize + 1]).is_none());
    for (number, codec) in [(0x20, None), (0x21, Some(Codec::Zstd(1))), (0x36, Some(Codec::Zstd(22))), (0x37, None)] {
        assert_eq!(Codec::from_number(number), codec);
        assert!(codec.is_none_or(|codec| codec.number() == number));
    }
}

#[test]
fn a_source_for_which_too_much_would_be_unpacked_is_refused() {
    let stretch = Stretch { start: 0, length: 4096 };
    let mut units = Units::behind(1 << 20);
    let long: Vec<_> = (0..9).map(|_| units.push(Codec::Lz4, MAX_UNIT_BYTES, &[stretch]).unwrap()).collect();
    let last = |number: usize| BaseRange { offset: long[number] + u64::from(MAX_UNIT_BYTES) - 4096, len: 4096 };
    let eight: Vec<_> = (0..8).map(last).collect();
    let nine: Vec<_> = (0..9).map(last).collect();
    assert_eq!(units.unpacked_for(&eight), MAX_UNPACKED_BYTES);
    assert!(units.unpacked_for(&nine) > MAX_UNPACKED_BYTES);
    // The other way round each range would be a unit of its own; in order they are read in one go.
    let twice = [last(3), BaseRange { offset: long[3], len: 4096 }];
    assert_eq!(units.unpacked_for(&twice), u64::from(MAX_UNIT_BYTES) + 4096);
    assert_eq!(units.unpacked_for(&[BaseRange { offset: 0, len: 1 << 20 }]), 0);

    let mut bytes = Vec::new();
    crate::delta::table::push_packed(&mut bytes, 1);
    let part = Part { codec: Codec::Plain, content: 4096, skip: 0, take: 4096, rest: 0, pieces: Vec::new() };
    crate::delta::table::push_part(&mut bytes, &part);
    let way = Way::Patched { source: Digest([0; 32]) };
    crate::delta::table::push_record(&mut bytes, way, crate::delta::table::Transform::None, 1, &nine);
    units.push_to(&mut bytes);
    let full = outputs(&[1; 4096]);
    let refused = DeltaTable::parse(bytes, "root", 1 << 20, 1, &full).unwrap_err();
    assert!(refused.to_string().contains("more is unpacked"), "{refused}");
}

#[test]
fn a_block_that_the_base_has_too_is_copied_and_not_packed() {
    let content = prose(100_000, 4);
    let image = zstd::again(1, &content).unwrap();
    let whole = Stretch { start: 0, length: image.len() as u32 };
    let unit = FoundUnit { codec: Codec::Zstd(1), stretches: vec![whole], at: 0, length: content.len() as u32 };
    let plan = |old: &HashSet<u64>| {
        let found = Found { units: vec![unit.clone()], content: content.clone(), files: Vec::new() };
        Plan::new(found, &image, old).parts(0, &image)
    };
    let parts = plan(&HashSet::new()).unwrap();
    assert_eq!((parts.len(), parts[0].part.codec, &parts[0].content), (1, Codec::Zstd(1), &content));
    assert!(plan(&HashSet::from([number_of(&image)])).is_none());
    assert!(plan(&HashSet::from([number_of(&image[1..])])).is_some());
}
