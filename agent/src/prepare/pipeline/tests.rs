use std::fs::{self, File};

use bascule_image::delta::image::{DeltaSpec, encode_image};
use bascule_image::delta::index::BaseIndex;
use bascule_image::{ChunkTable, DeltaTable, Digest, Transform};
use sha2::{Digest as _, Sha256};

use super::*;

const CHUNK: usize = 16 << 10;
const WORDS: u64 = 8192;

/// A shared object whose data are addresses of its own data; those from the middle on have moved by `by`.
fn shared_object(by: u64) -> Vec<u8> {
    let (base, at) = (0x10_0000u64, 4096u64);
    let names = b"\0.data\0.shstrtab\0";
    let mut file = vec![0; 4096];
    for word in 0..WORDS {
        let target = word * 7919 % WORDS * 8;
        file.extend((base + target + if target < WORDS * 4 { 0 } else { by }).to_le_bytes());
    }
    let strings = file.len() as u64;
    file.extend_from_slice(names);
    file.resize(file.len().next_multiple_of(16), 0);
    let headers = file.len() as u64;
    file.extend([0; 64]);
    let (data, string_table) = ([3, base, at, WORDS * 8], [0, 0, strings, names.len() as u64]);
    for (name, kind, words) in [(1u32, 1u32, data), (7, 3, string_table)] {
        file.extend([name, kind].map(u32::to_le_bytes).concat());
        file.extend(words.map(u64::to_le_bytes).concat());
        file.extend([0; 24]);
    }
    file[..7].copy_from_slice(b"\x7fELF\x02\x01\x01");
    file[40..48].copy_from_slice(&headers.to_le_bytes());
    for (place, value) in [(16, 3u16), (18, 62), (58, 64), (60, 3), (62, 2)] {
        file[place..place + 2].copy_from_slice(&value.to_le_bytes());
    }
    file.resize(file.len().next_multiple_of(4096), 0);
    file
}

/// The table of chunks of an image, as if each was stored as it is.
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

/// What a making thread makes of each chunk; `None` for those that are missing.
fn make(old: &[u8], table: &DeltaTable, full: &ChunkTable, blobs: &[u8], predicted: bool) -> Vec<Option<Vec<u8>>> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("slot");
    fs::write(&path, old).unwrap();
    let size = old.len() as u64;
    let base = BaseSlot::of(SlotFile::new(File::open(path).unwrap(), size).unwrap(), size);
    let mut maker = Maker::new(Some(&base), table.prediction().filter(|_| predicted), table.units());
    let mut made = Vec::new();
    for chunk in table.chunks(full) {
        let stored = blobs[chunk.stored_offset as usize..][..chunk.stored_len as usize].to_vec();
        let mut carton = Carton { stored, out: Buffer::new(MAX_CHUNK_BYTES as usize) };
        let len = chunk.output.len as usize;
        made.push(match maker.outcome(Order::Delta(chunk), &mut carton).unwrap() {
            Outcome::Bytes(_) => Some(carton.out.head(len).to_vec()),
            Outcome::Zeroes(_) => Some(vec![0; len]),
            Outcome::Missing(_) => None,
            Outcome::Kept(_) => panic!("nothing was there before"),
        });
    }
    made
}

#[test]
fn chunks_whose_addresses_are_predicted_are_made_and_without_the_prediction_are_missing() {
    let (old, new) = (shared_object(0), shared_object(64));
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("new");
    fs::write(&path, &new).unwrap();
    let mut index = BaseIndex::new(old.clone()).unwrap();
    let (mut blobs, spec) = (Vec::new(), DeltaSpec::new(CHUNK as u32, 3));
    let file = File::open(&path).unwrap();
    let made = encode_image(&mut index, &file, new.len() as u64, spec, &mut blobs, &mut |_| ()).unwrap();
    let full = outputs(&new);
    let table = DeltaTable::parse(made.table, "root", old.len() as u64, made.blobs, &full).unwrap();
    let predicted: Vec<_> = table.chunks(&full).map(|chunk| chunk.transform == Transform::Predicted).collect();
    assert!(predicted.contains(&true));
    let whole: Vec<_> = make(&old, &table, &full, &blobs, true).into_iter().flatten().flatten().collect();
    assert!(whole == new);
    let made = make(&old, &table, &full, &blobs, false);
    assert_eq!(made.iter().map(Option::is_none).collect::<Vec<_>>(), predicted);
}
