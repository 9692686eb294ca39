use std::io::Write;

use proptest::prelude::*;

use super::map::{Piece, Space};
use super::scan::Kind;
use super::side::Fault;
use super::{Area, ElfFile, Prediction, Section, elf, ext4};
use crate::Digest;
use crate::delta::apply::InMemory;
use crate::delta::explain::Matter;
use crate::delta::image::{DeltaSpec, NewImage, encode_image, encode_predicting};
use crate::delta::index::BaseIndex;
use crate::delta::{BaseRange, ChunkMaker, DeltaTable, Transform};
use crate::disk::{Ext4, FALLBACK_EPOCH};
use crate::manifest::sha256;
use crate::table::{Chunk, ChunkKind, ChunkTable};

mod linker;

use linker::{arm64_shared_object, flat_kernel, kernel, module, next_version, program, shared_object};

const CHUNK: usize = 64 << 10;

/// An image of files, each at a block.
fn image(files: &[Vec<u8>]) -> Vec<u8> {
    let mut image = Vec::new();
    for file in files {
        image.extend(file);
        image.resize(image.len().next_multiple_of(4096), 0);
    }
    image
}

/// A kernel's content in the frame that its build packs it in.
fn packed(kernel: &[u8]) -> Vec<u8> {
    let mode = lz4::block::CompressionMode::HIGHCOMPRESSION(9);
    let block = lz4::block::compress(kernel, Some(mode), false).unwrap();
    [&[0x02, 0x21, 0x4c, 0x18][..], &(block.len() as u32).to_le_bytes(), &block].concat()
}

/// Old and new images of two shared objects, two modules, and a kernel as it is packed.
fn pair() -> (Vec<u8>, Vec<u8>) {
    let (one, other) = (program(700), program(300));
    let files = |one: &[_], other: &[_], release| {
        let (first, second) = (shared_object(one), shared_object(other));
        let (kernel, arm64) = (packed(&kernel(one, release - 1)), arm64_shared_object(one));
        let flat = packed(&flat_kernel(one, release - 1));
        image(&[first, module(other, release), vec![7; 5000], kernel, second, module(one, release), arm64, flat])
    };
    (files(&one, &other, 1), files(&next_version(&one), &next_version(&other), 3))
}

/// What came of encoding, applying and comparing: bytes of table and blobs, what was predicted, and by how many chunks.
struct Outcome {
    bytes: usize,
    prediction: Option<Prediction>,
    chunks: usize,
}

/// Encodes `new` with what `change` makes of the prediction, and applies the delta.
fn round_trip(old: &[u8], new: &[u8], predict: bool, change: impl FnOnce(Prediction) -> Prediction) -> Outcome {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(new).unwrap();
    let mut spec = DeltaSpec::new(CHUNK as u32, 3);
    spec.transforms.predict = predict;
    let mut index = BaseIndex::new(old.to_vec()).unwrap();
    let mut blobs = Vec::new();
    let mut progress = 0;
    let image = NewImage { file: &file, size: new.len() as u64, spec };
    let made = encode_predicting(&mut index, &image, &mut blobs, &mut |bytes| progress += bytes, change).unwrap();
    assert_eq!(progress, new.len() as u64);
    let bytes = blobs.len() + zstd::bulk::compress(&made.table, 19).unwrap().len();
    let full = outputs(new);
    let table = DeltaTable::parse(made.table, "root", old.len() as u64, made.blobs, &full).unwrap();
    let mut maker = ChunkMaker::new(table.prediction());
    let mut base = InMemory::new(old, table.units());
    let (mut out, mut image, mut chunks) = (vec![0; CHUNK], Vec::new(), 0);
    for chunk in table.chunks(&full) {
        let stored = &blobs[chunk.stored_offset as usize..][..chunk.stored_len as usize];
        image.extend_from_slice(maker.make(&chunk, stored, &mut base, &mut out).unwrap());
        chunks += usize::from(chunk.transform == Transform::Predicted);
    }
    assert!(image == new);
    Outcome { bytes, prediction: table.prediction().map(|prediction| (*prediction).clone()), chunks }
}

fn outputs(new: &[u8]) -> ChunkTable {
    let (mut table, mut offset) = (Vec::new(), 0);
    for part in new.chunks(CHUNK) {
        let (kind, digest, len) = (ChunkKind::Raw, sha256(part), part.len() as u32);
        Chunk { index: 0, offset, len, kind, stored_offset: offset, stored_len: len, digest }.push_to(&mut table);
        offset += u64::from(len);
    }
    ChunkTable::parse(table, "root", offset, offset).unwrap()
}

#[test]
fn executables_whose_parts_moved_come_back_and_cost_a_fraction() {
    let (old, new) = pair();
    let plain = round_trip(&old, &new, false, |prediction| prediction);
    assert_eq!((plain.prediction.is_some(), plain.chunks), (false, 0));
    let predicted = round_trip(&old, &new, true, |prediction| prediction);
    assert!(predicted.chunks > 0);
    assert!(predicted.bytes * 2 < plain.bytes, "{} against {}", predicted.bytes, plain.bytes);
}

#[test]
fn every_kind_of_section_is_predicted_and_without_it_the_delta_is_larger() {
    let (old, new) = pair();
    let all = round_trip(&old, &new, true, |prediction| prediction);
    let sections = all.prediction.unwrap().sections;
    for kind in Kind::ALL {
        if kind == Kind::Checksums {
            continue;
        }
        assert!(sections.iter().any(|section| section.kind == kind), "{kind:?}");
        let without = round_trip(&old, &new, true, |mut prediction| {
            let sections = prediction.sections.clone();
            prediction.areas.retain(|area| sections[area.section as usize].kind != kind);
            prediction
        });
        assert!(without.bytes > all.bytes, "{kind:?}: {} against {}", without.bytes, all.bytes);
    }
}

#[test]
fn a_prediction_that_is_wrong_costs_bytes_and_nothing_else() {
    let (old, new) = pair();
    let right = round_trip(&old, &new, true, |prediction| prediction).bytes;
    let wrong = round_trip(&old, &new, true, |mut prediction| {
        prediction.pieces.iter_mut().for_each(|piece| piece.shift = piece.shift.wrapping_mul(3).wrapping_add(77));
        prediction
    });
    assert!(wrong.bytes > right, "{} against {right}", wrong.bytes);
    let elsewhere = round_trip(&old, &new, true, |mut prediction| {
        prediction.sections.iter_mut().for_each(|section| section.kind = Kind::Words);
        prediction
    });
    assert!(elsewhere.bytes > right, "{} against {right}", elsewhere.bytes);
}

#[test]
fn what_did_not_change_or_only_looks_like_an_executable_is_not_predicted() {
    let (old, _) = pair();
    let same = round_trip(&old, &old, true, |prediction| prediction);
    assert!(same.prediction.is_none());
    // The header alone; cut off in the middle; section headers that lead out of the file; noise behind the magic.
    let whole = shared_object(&program(300));
    let moved = shared_object(&next_version(&program(300)));
    let broken = |file: &[u8], number: usize| match number {
        0 => file[..64].to_vec(),
        1 => file[..file.len() / 2].to_vec(),
        2 => {
            let mut file = file.to_vec();
            file[40..48].copy_from_slice(&u64::MAX.to_le_bytes());
            file
        }
        _ => [&file[..16], &vec![0xff; 9000]].concat(),
    };
    for number in 0..4 {
        let (old, new) = (image(&[broken(&whole, number)]), image(&[broken(&moved, number)]));
        assert!(round_trip(&old, &new, true, |prediction| prediction).prediction.is_none(), "{number}");
    }
}

/// An ext4 image with these files in a folder: `a`, `b` and so on.
fn ext4_image(files: &[Vec<u8>]) -> Vec<u8> {
    let folder = tempfile::tempdir().unwrap();
    let tree = folder.path().join("tree");
    std::fs::create_dir_all(tree.join("folder")).unwrap();
    let names = ["a", "b", "c"].map(|name| tree.join("folder").join(name));
    files.iter().zip(names).for_each(|(file, name)| std::fs::write(name, file).unwrap());
    let output = folder.path().join("image.ext4");
    let (label, seed, epoch) = ("test".to_owned(), "test".to_owned(), FALLBACK_EPOCH);
    Ext4 { tree: Some(tree), size: 16 << 20, label, seed, epoch }.create(&output).unwrap();
    std::fs::read(output).unwrap()
}

#[test]
fn where_no_units_are_told_nothing_behind_the_image_is_predicted() {
    let (old, new) = pair();
    let end = old.len() as u64;
    let prediction = round_trip(&old, &new, true, |prediction| prediction).prediction.unwrap();
    assert!(prediction.areas.last().unwrap().start >= end);
    assert!(Prediction::parse(&prediction.to_bytes(), end).is_err());
    let until = prediction.until(end);
    assert!(!until.is_empty() && until.areas.iter().all(|area| area.end() <= end));
    assert_eq!(Prediction::parse(&until.to_bytes(), end), Ok(until));
}

/// A squashfs image of one file, with short blocks.
fn squashfs(file: &[u8]) -> Vec<u8> {
    let folder = tempfile::tempdir().unwrap();
    let (tree, image) = (folder.path().join("tree"), folder.path().join("image"));
    std::fs::create_dir(&tree).unwrap();
    std::fs::write(tree.join("program"), file).unwrap();
    let options = ["-quiet", "-no-progress", "-noappend", "-comp", "zstd", "-Xcompression-level", "1", "-b", "4K"];
    let made = std::process::Command::new("mksquashfs").args([&tree, &image]).args(options).output();
    assert!(made.expect("mksquashfs, of the package squashfs-tools").status.success());
    std::fs::read(image).unwrap()
}

/// What was predicted without a fault is equal to whole blocks of the new content, but the base image holds others.
#[test]
fn blocks_of_squashfs_that_are_predicted_without_a_fault_are_not_copied() {
    let program = program(3000);
    let (old, new) = (squashfs(&shared_object(&program)), squashfs(&shared_object(&next_version(&program))));
    let (plain, predicted) = (round_trip(&old, &new, false, |made| made), round_trip(&old, &new, true, |made| made));
    assert!(predicted.prediction.is_some());
    assert!(predicted.bytes * 4 < plain.bytes * 3, "{} against {}", predicted.bytes, plain.bytes);
}

#[test]
fn it_is_told_by_file_and_by_matter_where_the_bytes_of_a_delta_went() {
    let (one, other) = (program(700), program(300));
    let kernel = |program: &[_], more| packed(&kernel(program, more));
    let note = |byte: u8| (0..40_000u32).map(|number| ((number * number) >> 3) as u8 ^ byte).collect::<Vec<_>>();
    let old = ext4_image(&[shared_object(&one), kernel(&other, 0), note(0)]);
    let new = ext4_image(&[shared_object(&next_version(&one)), kernel(&next_version(&other), 4), note(0x5a)]);
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(&new).unwrap();
    let spec = DeltaSpec { explain: true, ..DeltaSpec::new(CHUNK as u32, 3) };
    let (mut index, mut blobs) = (BaseIndex::new(old).unwrap(), Vec::new());
    let made = encode_image(&mut index, &file, new.len() as u64, spec, &mut blobs, &mut |_| ()).unwrap();
    let told = made.explanation.unwrap();
    let of = |path: &str| told.files.iter().find(|file| file.path == path).map(|file| &file.matters).unwrap();
    assert!(of("folder/a").contains_key(&Matter::Code) && of("folder/a").contains_key(&Matter::Frames));
    // What was in the unit is the kernel's.
    assert!(of("folder/b").contains_key(&Matter::Code) && of("folder/b").contains_key(&Matter::Types));
    assert_eq!(of("folder/c").keys().collect::<Vec<_>>(), [&Matter::Other]);
    let sum: u64 = told.files.iter().map(|file| file.bytes).sum();
    assert!(sum.abs_diff(blobs.len() as u64) < 200, "{sum} of {}", blobs.len());
    let of_matters: u64 = told.matters.iter().filter(|(matter, _)| **matter != Matter::Table).map(|(_, sum)| sum).sum();
    assert_eq!(of_matters, sum);
    assert!(told.files.is_sorted_by(|one, next| one.bytes >= next.bytes));
}

#[test]
fn files_of_an_ext4_image_are_found_around_their_holes_and_predicted() {
    let (one, other) = (program(700), program(300));
    let image = |files: [Vec<u8>; 2]| {
        let image = ext4_image(&files);
        let found = ext4::files(&image).unwrap();
        for file in files {
            let there = found.iter().find(|extents| elf::content(&image, extents) == file).unwrap();
            assert!(there.len() > 1, "{there:?}");
        }
        image
    };
    let old = image([shared_object(&one), module(&other, 1)]);
    let new = image([shared_object(&next_version(&one)), module(&next_version(&other), 3)]);
    let plain = round_trip(&old, &new, false, |prediction| prediction);
    let predicted = round_trip(&old, &new, true, |prediction| prediction);
    assert!(predicted.bytes * 2 < plain.bytes, "{} against {}", predicted.bytes, plain.bytes);
    // Damaged in any way, it is still read or refused.
    for seed in 0..60usize {
        let mut damaged = new.clone();
        (0..400).for_each(|number| damaged[(seed * 7919 + number * 97) % (600 << 10)] = (seed * 31 + number) as u8);
        let _ = ext4::files(&damaged);
        let _ = ext4::named_files(&damaged);
        let _ = elf::find(&damaged, &[]);
    }
}

#[test]
fn a_damaged_executable_is_no_obstacle() {
    let (old, new) = pair();
    for seed in 0..40usize {
        let (mut old, mut new) = (old.clone(), new.clone());
        for image in [&mut old, &mut new] {
            for number in 0..200 {
                let place = (seed * 7919 + number * 104_729) * 31 % image.len();
                image[place] = (seed + number) as u8;
            }
            // And the section headers of the first file.
            let headers = u64::from_le_bytes(image[40..48].try_into().unwrap()) as usize % image.len();
            let place = (headers + seed * 13) % image.len();
            image[place] ^= 0xff;
        }
        round_trip(&old, &new, true, |prediction| prediction);
    }
}

#[test]
fn the_bytes_of_a_prediction_make_it_again_and_cut_off_they_are_none() {
    let (old, new) = pair();
    let prediction = round_trip(&old, &new, true, |prediction| prediction).prediction.unwrap();
    let bytes = prediction.to_bytes();
    assert_eq!(Prediction::parse(&bytes, 1 << 40), Ok(prediction.clone()));
    for end in 0..bytes.len() {
        assert!(Prediction::parse(&bytes[..end], 1 << 40).is_err(), "{end}");
    }
    let longer = [&bytes[..], &[0]].concat();
    assert_eq!(Prediction::parse(&longer, 1 << 40), Err(Fault::Rule("bytes follow a prediction")));
    let last = prediction.areas.last().unwrap().end();
    assert!(Prediction::parse(&bytes, last).is_ok());
    assert_eq!(
        Prediction::parse(&bytes, last - 1),
        Err(Fault::Rule("a prediction's area is outside of the base image"))
    );
}

#[test]
fn a_section_of_an_unknown_kind_is_refused_as_such() {
    let section = Section { file: 0, kind: Kind::Words, base: 0, length: 8 };
    let mut prediction =
        Prediction { files: vec![ElfFile::default()], sections: vec![section], ..Prediction::default() };
    prediction.areas = vec![Area { start: 0, length: 8, section: 0, skip: 0 }];
    let mut bytes = prediction.to_bytes();
    assert_eq!(Prediction::parse(&bytes, 8), Ok(prediction));
    // Behind three counts, one count, and one file's two numbers.
    assert_eq!(bytes[6], Kind::Words as u8);
    bytes[6] = Kind::ALL.len() as u8;
    assert_eq!(Prediction::parse(&bytes, 8), Err(Fault::Kind(bytes[6])));
}

#[test]
fn a_table_needs_a_prediction_exactly_where_a_chunk_is_predicted() {
    let (old, new) = pair();
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(&new).unwrap();
    let image = NewImage { file: &file, size: new.len() as u64, spec: DeltaSpec::new(CHUNK as u32, 3) };
    let mut index = BaseIndex::new(old.clone()).unwrap();
    let made = encode_predicting(&mut index, &image, &mut Vec::new(), &mut |_| (), |prediction| prediction).unwrap();
    let full = outputs(&new);
    let parse = |bytes: Vec<u8>| DeltaTable::parse(bytes, "root", old.len() as u64, made.blobs, &full);
    let prediction = parse(made.table.clone()).unwrap().prediction().unwrap().to_bytes();
    let alone = made.table[..made.table.len() - prediction.len()].to_vec();
    assert_eq!(parse(alone).unwrap_err().code(), "bundle.table-invalid");
    let plain = vec![1, 0];
    let (one, noise) = (outputs(&[9; 10]), Digest([0; 32]));
    assert_ne!(sha256(&[9; 10]), noise);
    assert!(DeltaTable::parse(plain.clone(), "root", 8192, 10, &one).is_ok());
    let behind = [plain, prediction].concat();
    let refused = DeltaTable::parse(behind, "root", old.len() as u64, 10, &one).unwrap_err();
    assert_eq!(refused.code(), "bundle.table-invalid");
}

/// Any prediction at all over 64 KiB.
fn any_prediction() -> impl Strategy<Value = Prediction> {
    let section = (0usize..Kind::ALL.len(), any::<u32>(), 0u32..9000, 0u32..3000);
    let piece = (any::<u32>(), any::<i32>());
    let sections = prop::collection::vec(section, 1..12);
    let pieces = prop::collection::vec(piece, 0..200);
    let symbols = prop::collection::vec((0u32..40, any::<u32>()), 0..8);
    let file = (prop_oneof![Just(0u64), any::<u64>()], prop_oneof![Just(u32::MAX), any::<u32>()]);
    (sections, pieces, symbols, file).prop_map(|(sections, mut pieces, mut symbols, (low, room))| {
        let mut prediction = Prediction::default();
        let mut start = 0;
        for (number, (kind, base, length, skip)) in sections.into_iter().enumerate() {
            let kind = Kind::ALL[kind];
            prediction.sections.push(Section { file: 0, kind, base, length: length + skip });
            prediction.areas.push(Area { start, length, section: number as u32, skip });
            start += u64::from(length + skip % 7);
        }
        pieces.sort_unstable();
        symbols.sort_unstable();
        prediction.pieces = pieces.into_iter().map(|(start, shift)| Piece { start, shift }).collect();
        let all = prediction.pieces.len();
        let spans = Space::ALL.map(|space| all * space as usize / 6..all * (space as usize + 1) / 6);
        prediction.shared = spans.clone();
        prediction.files = vec![ElfFile { low, room, spans, symbols: 0..symbols.len() }];
        prediction.symbols = symbols;
        prediction
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn whatever_is_said_about_whatever_bytes_they_are_replaced_without_a_panic(
        prediction in any_prediction(),
        bytes in prop::collection::vec(prop_oneof![Just(0xe8u8), Just(0x0f), Just(5), Just(0), any::<u8>()], 0..20_000),
        cut in 0usize..5000,
    ) {
        let length = bytes.len();
        let mut made = bytes.clone();
        prediction.apply(&[BaseRange { offset: cut as u64, len: length as u64 }], &mut made);
        prop_assert_eq!(made.len(), length);
        let mut again = bytes;
        prediction.apply(&[BaseRange { offset: cut as u64, len: length as u64 }], &mut again);
        prop_assert!(made == again);
    }

    #[test]
    fn whatever_bytes_there_are_they_are_read_or_refused(
        prediction in any_prediction(),
        noise in prop::collection::vec(any::<u8>(), 0..300),
        places in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6),
    ) {
        let _ = Prediction::parse(&noise, 1 << 20);
        let mut bytes = prediction.to_bytes();
        for (place, value) in places {
            let place = place.index(bytes.len());
            bytes[place] = value;
        }
        if let Ok(read) = Prediction::parse(&bytes, 1 << 20) {
            let mut source = vec![0xe8; 1 << 16];
            read.apply(&[BaseRange { offset: 0, len: 1 << 16 }], &mut source);
        }
    }
}
