//! Load options, byte by byte.
//!
//! The golden bytes were worked out by hand from the UEFI specification 2.10 (sections 3.1.3, 10.3.5.1 and 10.3.5.4);
//! virt-firmware 26.10 makes the same bytes of the same values.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test stops where it fails"
)]

use bascule_boot::efi::option::{LoadOption, Partition, Program, description};
use bascule_core::Group;
use proptest::prelude::*;

/// A partition of 64 MiB that begins at 1 MiB.
const PARTITION: Partition = Partition {
    number: 1,
    start: 2048,
    blocks: 131_072,
    guid: [0x78, 0x56, 0x34, 0x12, 0xbc, 0x9a, 0xf0, 0xde, 1, 2, 3, 4, 5, 6, 7, 8],
};

/// The option of group `b` for `\k.efi` with the command line `a=b`.
const GOLDEN: [&str; 13] = [
    "01000000",                                 // active
    "4000",                                     // 64 bytes of device path
    "420061007300630075006c006500200062000000", // Bascule b
    "04012a00",                                 // media, hard drive, 42 bytes
    "01000000",                                 // partition number
    "0008000000000000",                         // first block
    "0000020000000000",                         // blocks
    "78563412bc9af0de0102030405060708",         // the partition's GUID
    "0202",                                     // GUID partition table, signature is a GUID
    "04041200",                                 // media, file path, 18 bytes
    "5c006b002e006500660069000000",             // \k.efi
    "7fff0400",                                 // the end
    "61003d0062000000",                         // a=b
];

fn golden() -> Vec<u8> {
    let hex = GOLDEN.concat();
    (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap()).collect()
}

fn built() -> LoadOption {
    LoadOption::for_group(Group::B, &PARTITION, "\\k.efi", "a=b").unwrap()
}

#[test]
fn a_group_s_option_has_the_bytes_of_the_specification() {
    assert_eq!(built().to_bytes().unwrap(), golden());
    let read = LoadOption::parse(&golden()).unwrap();
    assert_eq!(read, built());
    assert!(read.is_active());
    assert_eq!((read.description.as_str(), read.paths.len()), (description(Group::B), 64));
    assert_eq!(read.data, b"a\0=\0b\0\0\0");
}

#[test]
fn every_prefix_that_is_too_short_is_no_option() {
    let whole = golden();
    let begin_of_data = whole.len() - built().data.len();
    for length in 0..whole.len() {
        assert_eq!(LoadOption::parse(&whole[..length]).is_some(), length >= begin_of_data, "{length} bytes");
    }
}

#[test]
fn a_device_path_that_does_not_end_within_its_length_is_no_option() {
    let path = |bytes: &[u8]| LoadOption { paths: bytes.to_vec(), ..built() }.to_bytes().unwrap();
    for bad in [
        &[][..],
        &[0x7f],
        &[0x7f, 0xff, 3, 0],
        &[0x7f, 0xff, 0, 0],
        &[0x7f, 0xff, 5, 0],
        &[4, 4, 4, 0],
        &[4, 4, 0, 0, 0x7f, 0xff, 4, 0],
        &[4, 4, 0xff, 0xff, 0x7f, 0xff, 4, 0],
        // The end of one of several paths is not the end.
        &[0x7f, 1, 4, 0],
    ] {
        assert_eq!(LoadOption::parse(&path(bad)), None, "{bad:02x?}");
    }
    assert!(LoadOption::parse(&path(&[0x7f, 0xff, 4, 0])).is_some());
    assert!(
        LoadOption::parse(&path(&[0x7f, 0xff, 4, 0, 1, 2, 3])).is_some(),
        "what follows the first path is not looked at"
    );
}

#[test]
fn texts_that_sixteen_bits_a_character_cannot_hold_are_refused() {
    let code = |file: &str, words: &str| {
        LoadOption::for_group(Group::A, &PARTITION, file, words).map(drop).map_err(|error| error.code())
    };
    assert_eq!(code("\\ä€.efi", "quiet"), Ok(()));
    assert_eq!(code("\\k\0.efi", "quiet"), Err("boot.efi-text"));
    assert_eq!(code("\\k.efi", "a=\u{1f600}"), Err("boot.efi-text"));
    assert_eq!(code("\\k.efi", &"a".repeat(40_000)), Err("boot.efi-text"));
    assert_eq!(code(&"a".repeat(40_000), ""), Err("boot.efi-text"));
    let long = LoadOption { paths: vec![0; 70_000], ..built() };
    assert_eq!(long.to_bytes().map(drop).map_err(|error| error.code()), Err("boot.efi-text"));
    let odd = LoadOption { description: "a\0b".into(), ..built() };
    assert!(odd.to_bytes().is_err());
}

/// The partition of [`PARTITION`] as the kernel and efibootmgr write it.
const GUID: &str = "12345678-9abc-def0-0102-030405060708";

#[test]
fn what_an_option_starts_is_a_file_on_a_partition_however_its_path_is_cut() {
    let program = |nodes: &[&[u8]]| LoadOption { paths: nodes.concat(), ..built() }.program();
    let found = |file: &str| Some(Program { partition: GUID.into(), file: file.into() });
    let bytes = built().paths;
    let (drive, file, end) = (&bytes[..42], &bytes[42..60], &bytes[60..]);
    assert_eq!(built().program(), found("\\k.efi"));
    assert_eq!(found("\\k.efi").unwrap().to_string(), format!("\\k.efi on partition {GUID}"));
    // ACPI and PCI nodes before it: the whole way to the disk.
    let way: [&[u8]; 2] = [&[2, 1, 12, 0, 0xd0, 0x41, 3, 0x0a, 0, 0, 0, 0], &[1, 1, 6, 0, 0, 3]];
    assert_eq!(program(&[way[0], way[1], drive, file, end]), found("\\k.efi"));
    let node = |text: &str| {
        let text: Vec<u8> = text.encode_utf16().chain([0]).flat_map(u16::to_le_bytes).collect();
        [&[4, 4, u8::try_from(text.len() + 4).unwrap(), 0][..], &text].concat()
    };
    assert_eq!(program(&[drive, &node("\\bascule\\"), &node("linux-b"), end]), found("\\bascule\\linux-b"));
    assert_eq!(program(&[drive, &node("bascule\\linux-b"), end]), found("\\bascule\\linux-b"));
    // Another path after the end, or after the end of one of several, says nothing.
    assert_eq!(program(&[drive, file, end, drive, &node("\\other"), end]), found("\\k.efi"));
    assert_eq!(program(&[drive, file, &[0x7f, 1, 4, 0], drive, &node("\\other"), end]), found("\\k.efi"));
    // No file, no partition, a partition of an MBR, or something else on it.
    let mbr = [&drive[..40], &[1, 1]].concat();
    for odd in
        [&[drive, end][..], &[file, end], &[file, drive, end], &[&mbr, file, end], &[drive, way[0], file, end], &[end]]
    {
        assert_eq!(program(odd), None, "{odd:02x?}");
    }
}

proptest! {
    #[test]
    fn what_is_built_is_what_is_read(attributes: u32, text in "[^\0\u{10000}-\u{10ffff}]{0,40}", data: Vec<u8>) {
        let option = LoadOption { attributes, description: text, data, ..built() };
        prop_assert_eq!(LoadOption::parse(&option.to_bytes().unwrap()), Some(option));
    }

    #[test]
    fn any_bytes_are_read_without_harm(bytes: Vec<u8>) {
        let _ = LoadOption::parse(&bytes).map(|option| option.program());
    }

    #[test]
    fn a_damaged_option_is_read_without_harm(at in 0_usize..128, byte: u8) {
        let mut bytes = golden();
        let length = bytes.len();
        bytes[at % length] = byte;
        let _ = LoadOption::parse(&bytes).map(|option| option.program());
    }
}
