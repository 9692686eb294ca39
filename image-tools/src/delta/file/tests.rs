use std::io::Cursor;
use std::time::Instant;

use super::*;
use crate::ForwardOnly;
use crate::manifest::{BaseImage, sha256};

/// A delta file of two chunks of zeroes and one byte, against nothing.
fn parts() -> (Head, Vec<u8>, Vec<u8>, Vec<u8>) {
    let digests = [sha256(&[0; 4096]).0, sha256(&[0; 4096]).0, sha256(b"x").0].concat();
    let table = vec![0, 0, 0, 0, 1, 0];
    let (outputs, about_outputs) = layout::pack(&digests).unwrap();
    let (packed, about_table) = layout::pack(&table).unwrap();
    let base = BaseImage { version: None, size: 0, sha256: sha256(b"") };
    let delta = DeltaRef { base, table: about_table, blobs: 1 };
    let sha256 = sha256(&[&[0; 8192][..], b"x"].concat());
    (Head { size: 8193, sha256, chunk_bytes: 4096, outputs: about_outputs, delta }, outputs, packed, b"x".to_vec())
}

fn open(file: &[u8]) -> Result<usize, DeltaError> {
    let mut delta = DeltaFile::open(Box::new(ForwardOnly::new(Cursor::new(file.to_vec()))))?;
    let (mut count, mut stored) = (0, Vec::new());
    while delta.fetch_next(&mut stored)?.is_some() {
        count += 1;
    }
    delta.finish()?;
    Ok(count)
}

/// What becomes of a file with another head.
fn with(edit: impl FnOnce(&mut Head)) -> Result<usize, DeltaError> {
    let (mut head, outputs, table, blobs) = parts();
    edit(&mut head);
    open(&[head.to_file(&outputs, &table), blobs].concat())
}

fn message(result: Result<usize, DeltaError>) -> String {
    let error = result.unwrap_err();
    let cause = std::error::Error::source(&error).map(ToString::to_string).unwrap_or_default();
    assert_eq!(error.code(), "delta.damaged", "{error} {cause}");
    format!("{error} {cause}")
}

#[test]
fn a_small_file_is_read() {
    assert_eq!(with(|_| ()).unwrap(), 3);
}

#[test]
fn a_header_of_another_magic_version_or_with_reserved_fields_is_refused() {
    let (head, outputs, table, blobs) = parts();
    let file = [head.to_file(&outputs, &table), blobs].concat();
    let changed = |at: usize, byte: u8| {
        let mut file = file.clone();
        file[at] = byte;
        open(&file).map_err(|error| error.code())
    };
    assert_eq!(changed(3, b'C'), Err("delta.not-a-delta"));
    assert_eq!(changed(8, 2), Err("delta.format-too-new"));
    assert_eq!(changed(9, 1), Err("delta.format-too-new"));
    for (at, byte) in [(8, 0), (10, 1), (15, 1), (24, 1), (31, 1)] {
        assert_eq!(changed(at, byte), Err("delta.damaged"), "byte {at}");
    }
    assert_eq!(changed(18, 1), Err("delta.damaged"), "a head of 64 KiB");
    assert_eq!(changed(23, 1), Err("delta.damaged"), "a head of 2^56 bytes");
}

#[test]
fn a_head_above_a_bound_is_refused() {
    let (head, ..) = parts();
    let long = format!("{{\"more\":\"{}\",{}", "x".repeat(4096), &serde_json::to_string(&head).unwrap()[1..]);
    let mut file = [&MAGIC[..], &[1, 0, 0, 0, 0, 0, 0, 0], &(long.len() as u64).to_le_bytes(), &[0; 8]].concat();
    file.extend(long.as_bytes());
    assert!(message(open(&file)).contains("the head of"));
    for wrong in [0, 1, 4095, 6000, MAX_CHUNK_BYTES + MIN_CHUNK_BYTES, u32::MAX] {
        assert!(message(with(|head| head.chunk_bytes = wrong)).contains("chunk size"), "{wrong}");
    }
    // The chunk size may be another, as long as there are as many chunks; the table then is another's.
    assert!(message(with(|head| head.chunk_bytes = 8192)).contains("one digest for each"));
    for size in [4096, 8192, 12_289] {
        assert!(message(with(|head| head.size = size)).contains("one digest for each"), "{size}");
    }
    for size in [MAX_PAYLOAD_BYTES + 1, u64::MAX] {
        assert!(message(with(|head| head.size = size)).contains("an image of"));
        assert!(message(with(|head| head.delta.base.size = size)).contains("a base image of"));
    }
    assert!(message(with(|head| head.delta.blobs = 8194)).contains("the blobs of"));
    assert!(message(with(|head| head.delta.table.length = MAX_TABLES_BYTES + 1)).contains("the tables of"));
    assert!(message(with(|head| head.delta.table.unpacked = Some(MAX_TABLES_BYTES))).contains("the tables of"));
    assert!(message(with(|head| head.outputs.length = MAX_TABLES_BYTES + 1)).contains("the tables of"));
    assert!(message(with(|head| head.outputs.unpacked = Some(64))).contains("one digest for each"));
    assert!(message(with(|head| head.outputs.unpacked = None)).contains("one digest for each"));
    let many = |head: &mut Head| {
        head.size = MAX_PAYLOAD_BYTES;
        head.outputs.unpacked = Some(MAX_PAYLOAD_BYTES / 4096 * 32);
    };
    assert!(message(with(many)).contains("the tables of"));
}

#[test]
fn tables_that_are_not_those_of_the_head_are_refused() {
    let other = Digest([0; 32]);
    assert!(message(with(|head| head.outputs.sha256 = other)).contains("SHA-256"));
    assert!(message(with(|head| head.delta.table.sha256 = other)).contains("SHA-256"));
    let longer = message(with(|head| head.delta.table.unpacked = Some(7)));
    assert!(longer.contains("states another length"), "{longer}");
    assert!(message(with(|head| head.delta.blobs = 2)).contains("do not fill its blobs"));
    assert!(message(with(|head| head.delta.blobs = 0)).contains("do not fill its blobs"));
}

#[test]
fn unknown_keys_are_ignored_and_repeated_ones_are_not() {
    let (head, ..) = parts();
    let json = serde_json::to_string(&head).unwrap();
    let more = format!("{{\"future\":{{\"a\":[1]}},{}", &json[1..]);
    assert_eq!(Head::parse(more.as_bytes()).unwrap(), head);
    let twice = format!("{{\"size\":1,{}", &json[1..]);
    assert!(Head::parse(twice.as_bytes()).is_err());
    let twice = format!("{{\"future\":1,\"future\":2,{}", &json[1..]);
    assert!(Head::parse(twice.as_bytes()).is_err());
    let deep = format!("{{\"future\":{}{},{}", "[".repeat(40), "]".repeat(40), &json[1..]);
    assert!(Head::parse(deep.as_bytes()).is_err());
    assert!(Head::parse(b"{}").is_err());
}

/// Claim D9: what a short file announces costs nothing.
#[test]
fn a_file_of_a_few_hundred_bytes_that_announces_billions_is_refused_at_once() {
    let announce: [fn(&mut Head); 4] = [
        |head| head.outputs.length = 1 << 32,
        |head| head.size = 1 << 40,
        |head| head.delta.table.unpacked = Some(1 << 32),
        |head| head.delta.table.length = 8 << 20,
    ];
    for edit in announce {
        let (mut head, outputs, table, _) = parts();
        edit(&mut head);
        let file = head.to_file(&outputs, &table);
        let took = (0..5).map(|_| {
            let started = Instant::now();
            assert!(open(&file).is_err());
            started.elapsed()
        });
        let took = took.min().unwrap();
        assert!(took.as_millis() < 1, "{took:?}");
    }
}

/// Claim D10 for tables: the length is that of the head, and not more comes out.
#[test]
fn a_packed_table_that_unpacks_to_more_is_refused() {
    let (mut head, outputs, _, blobs) = parts();
    let bomb = zstd::bulk::compress(&vec![0; 64 << 20], 3).unwrap();
    head.delta.table = TableRef { length: bomb.len() as u64, sha256: sha256(&bomb), unpacked: Some(6) };
    let refused = message(open(&[head.to_file(&outputs, &bomb), blobs].concat()));
    assert!(refused.contains("states another length"), "{refused}");
    for log in [27u8, 31] {
        let (mut head, outputs, _, blobs) = parts();
        let mut frame = vec![0x28, 0xb5, 0x2f, 0xfd, 0b1000_0000, (log - 10) << 3, 6, 0, 0, 0, 6 << 3 | 1, 0, 0];
        frame.extend([0, 0, 0, 0, 1, 0]);
        head.delta.table = TableRef { length: frame.len() as u64, sha256: sha256(&frame), unpacked: Some(6) };
        let refused = message(open(&[head.to_file(&outputs, &frame), blobs.clone()].concat()));
        assert!(refused.contains("window"), "{refused}");
    }
}
