use super::*;
use crate::table::ChunkKind;

const LEN: u32 = 8192;

/// A chunk table of outputs of these lengths.
fn outputs(lens: &[u32]) -> ChunkTable {
    let (mut table, mut offset) = (Vec::new(), 0);
    for &len in lens {
        let (kind, digest) = (ChunkKind::Raw, Digest([9; 32]));
        Chunk { index: 0, offset, len, kind, stored_offset: offset, stored_len: len, digest }.push_to(&mut table);
        offset += u64::from(len);
    }
    ChunkTable::parse(table, "root", offset, offset).unwrap()
}

/// What becomes of the record of a chunk of [`LEN`] bytes; `numbers` are all its varints, signed ones folded.
fn one(kind: u8, numbers: &[u64], digest: &[u8], base: u64, blobs: u64) -> Result<DeltaChunk, BundleError> {
    let mut bytes = vec![kind, 0];
    numbers.iter().for_each(|number| varint::push(&mut bytes, *number));
    bytes.extend(digest);
    let full = outputs(&[LEN]);
    DeltaTable::parse(bytes, "root", base, blobs, &full).map(|table| table.chunks(&full).next().unwrap())
}

fn copied(numbers: &[u64], base: u64) -> Result<DeltaChunk, BundleError> {
    one(3, numbers, &[], base, 0)
}

/// A patched chunk of 7 stored bytes.
fn patched(ranges: &[u64], base: u64) -> Result<DeltaChunk, BundleError> {
    one(4, &[&[7], ranges].concat(), &[5; 32], base, 7)
}

fn what(result: Result<DeltaChunk, BundleError>) -> String {
    result.map_or_else(|error| error.to_string(), |chunk| format!("taken: {chunk:?}"))
}

#[test]
fn every_way_reads_back_what_was_written() {
    let ranges = vec![BaseRange { offset: 4096, len: 4096 }, BaseRange { offset: 12_288, len: 100 }];
    let backwards = vec![BaseRange { offset: 8192, len: 4096 }, BaseRange { offset: 0, len: 4096 }];
    let written = [
        (Way::Zeroes, 0, vec![]),
        (Way::Raw, u64::from(LEN), vec![]),
        (Way::Zstd, 9, vec![]),
        (Way::Copied, 0, backwards),
        (Way::Patched { source: Digest([3; 32]) }, u64::from(LEN) - 1, ranges),
    ];
    let mut bytes = Vec::new();
    written.iter().for_each(|(way, stored, source)| push_record(&mut bytes, *way, Transform::None, *stored, source));
    let full = outputs(&[LEN; 5]);
    let blobs = written.iter().map(|(_, stored, _)| stored).sum();
    let table = DeltaTable::parse(bytes, "root", 12_388, blobs, &full).unwrap();
    let mut offset = 0;
    for (chunk, (way, stored, source)) in table.chunks(&full).zip(&written) {
        assert_eq!((chunk.way, u64::from(chunk.stored_len), &chunk.source), (*way, *stored, source));
        assert_eq!(chunk.stored_offset, offset);
        offset += stored;
    }
}

#[test]
fn a_kind_or_transform_from_the_future_is_told_by_its_number() {
    for (kind, transform) in [(6, 0), (255, 0), (0, 1), (3, 1), (4, 255), (5, 1)] {
        let full = outputs(&[LEN]);
        let refused = DeltaTable::parse(vec![kind, transform, 1, 0, 2], "root", 8192, 0, &full).unwrap_err();
        assert_eq!(refused.code(), "bundle.unknown-chunk-kind", "{kind} {transform}");
        assert!(refused.to_string().contains("chunk 0"), "{refused}");
    }
}

#[test]
fn a_table_cut_off_anywhere_or_with_more_behind_it_is_refused() {
    let full = outputs(&[LEN; 2]);
    let mut bytes = Vec::new();
    push_record(&mut bytes, Way::Copied, Transform::None, 0, &[BaseRange { offset: 0, len: 8192 }]);
    push_record(
        &mut bytes,
        Way::Patched { source: Digest([1; 32]) },
        Transform::None,
        300,
        &[BaseRange { offset: 0, len: 4096 }],
    );
    let parse = |bytes: &[u8], blobs| DeltaTable::parse(bytes.to_vec(), "root", 8192, blobs, &full);
    assert!(parse(&bytes, 300).is_ok());
    for cut in 0..bytes.len() {
        assert_eq!(parse(&bytes[..cut], 300).unwrap_err().code(), "bundle.table-invalid", "cut at {cut}");
    }
    for more in [&[0, 0][..], &[0]] {
        assert!(parse(&[&bytes, more].concat(), 300).is_err());
    }
    assert!(parse(&bytes, 299).is_err());
    assert!(parse(&bytes, 301).is_err());
}

#[test]
fn stored_bytes_are_some_and_fewer_than_the_output() {
    let len = u64::from(LEN);
    for kind in [2, 4] {
        let ranges: &[u64] = if kind == 4 { &[1, 0, 1] } else { &[] };
        let digest: &[u8] = if kind == 4 { &[0; 32] } else { &[] };
        let stored = |stored: u64, blobs| one(kind, &[&[stored], ranges].concat(), digest, 8192, blobs);
        assert!(stored(1, 1).is_ok() && stored(len - 1, len - 1).is_ok());
        for wrong in [0, len, len + 1, (1 << 32) + 1, 1 << 63, u64::MAX] {
            let refused = what(stored(wrong, wrong));
            assert!(refused.contains("stored bytes are none") || refused.contains("too great"), "{wrong}: {refused}");
            assert!(stored(wrong, u64::from(wrong as u32)).is_err(), "{wrong}");
        }
    }
}

#[test]
fn the_number_of_ranges_has_a_bound_and_costs_nothing_before() {
    for count in [0, MAX_RANGES + 1, 1 << 32, u64::MAX] {
        let started = std::time::Instant::now();
        assert!(what(copied(&[count, 0, 2], 8192)).contains("no source range, or more"), "{count}");
        assert!(what(patched(&[count, 0, 2], 8192)).contains("no source range, or more"), "{count}");
        assert!(started.elapsed().as_millis() < 50, "{count}");
    }
    let many = |count: u64| patched(&[&[count][..], &[0, 1].repeat(count as usize)].concat(), 1 << 30);
    assert_eq!(many(MAX_RANGES).unwrap().source.len(), 512);
    assert!(many(MAX_RANGES + 1).is_err());
}

#[test]
fn ranges_lie_within_the_base() {
    let taken = |numbers: &[u64], base| copied(numbers, base).map(|chunk| chunk.source).ok();
    assert_eq!(taken(&[1, 0, 2], 8192), Some(vec![BaseRange { offset: 0, len: 8192 }]));
    assert_eq!(taken(&[1, 2, 2], 12_288), Some(vec![BaseRange { offset: 4096, len: 8192 }]));
    let outside = [
        (&[1, 0, 2][..], 4096),
        (&[1, 4, 2], 8192),
        (&[1, 4, 2], 12_288),
        (&[1, 0, 3], 8192),
        (&[1, 0, 2], 0),
        (&[2, 0, 2, 0, 0], 8192),
        (&[2, 0, 0, 0, 2], 8192),
        // Sums and products that overflow to something within.
        (&[1, (1 << 53) - 2, 2], 1 << 40),
        (&[1, 1 << 53, 2], 1 << 40),
        (&[1, 4, u64::MAX], 1 << 40),
        (&[1, 0, 1 << 52], 1 << 40),
        (&[1, 0, (1 << 52) + 2], 1 << 40),
        (&[1, u64::MAX - 1, 2], 1 << 40),
    ];
    for (numbers, base) in outside {
        let refused = what(copied(numbers, base));
        assert!(refused.contains("empty or outside"), "{numbers:?} of {base}: {refused}");
    }
    // -1, the least number there is, and back behind the first range.
    for numbers in [&[1, 1, 2][..], &[1, u64::MAX, 2], &[2, 0, 1, 3, 1]] {
        let refused = what(copied(numbers, 1 << 40));
        assert!(refused.contains("begins before the base image"), "{numbers:?}: {refused}");
    }
    // What a base could be at most, were its size not bounded already.
    assert!(copied(&[1, 0, 2], u64::MAX).is_ok());
}

#[test]
fn a_base_of_an_odd_size_ends_within_its_last_block() {
    let full = outputs(&[100]);
    let parse = |numbers: &[u64], base| {
        let mut bytes = vec![3, 0];
        numbers.iter().for_each(|number| varint::push(&mut bytes, *number));
        DeltaTable::parse(bytes, "root", base, 0, &full).map(|table| table.chunks(&full).next().unwrap().source)
    };
    assert_eq!(parse(&[1, 2, 1], 4196).unwrap(), [BaseRange { offset: 4096, len: 100 }]);
    assert!(parse(&[1, 2, 1], 4197).is_err());
    assert!(parse(&[1, 4, 1], 4196).is_err());
    // Twice 50 bytes would be the output's length, but only the last range may end within a block.
    let refused = parse(&[2, 2, 1, 1, 1], 4146).unwrap_err().to_string();
    assert!(refused.contains("follows the base image's last block"), "{refused}");
}

#[test]
fn a_patchs_ranges_ascend_and_a_copys_need_not() {
    assert!(copied(&[2, 2, 1, 3, 1], 8192).is_ok(), "block 1, then block 0");
    assert!(what(patched(&[2, 2, 1, 3, 1], 8192)).contains("ascending"));
    // The same block again: one back.
    assert!(what(patched(&[2, 0, 1, 1, 1], 8192)).contains("ascending"));
    assert!(patched(&[2, 0, 1, 0, 1], 8192).is_ok());
}

#[test]
fn a_source_has_a_bound() {
    let blocks = MAX_SOURCE_BYTES / BASE_BLOCK_BYTES;
    assert_eq!(patched(&[1, 0, blocks], 1 << 30).unwrap().source_len(), MAX_SOURCE_BYTES);
    assert!(what(patched(&[1, 0, blocks + 1], 1 << 30)).contains("longer than the limit"));
    assert!(what(patched(&[2, 0, blocks, 0, 1], 1 << 30)).contains("longer than the limit"));
    assert!(what(patched(&[1, 0, 1 << 28], 1 << 40)).contains("longer than the limit"));
}

#[test]
fn a_copy_is_as_long_as_its_source() {
    for (numbers, base) in [(&[1, 0, 1][..], 8192), (&[1, 0, 3], 1 << 20), (&[1, 0, 2], 8191)] {
        let refused = what(copied(numbers, base));
        assert!(refused.contains("not as long as the chunk"), "{refused}");
    }
}

#[test]
fn there_is_one_record_for_each_chunk() {
    let full = outputs(&[LEN; 2]);
    let parse = |bytes: &[u8]| DeltaTable::parse(bytes.to_vec(), "root", 0, 0, &full).map(drop);
    assert!(parse(&[0; 4]).is_ok());
    assert!(parse(&[0; 2]).is_err());
    assert!(parse(&[0; 6]).is_err());
    assert!(parse(&[]).is_err());
    assert!(DeltaTable::parse(Vec::new(), "root", 0, 0, &outputs(&[])).is_ok());
}
