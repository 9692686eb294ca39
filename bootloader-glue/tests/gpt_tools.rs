//! Our reading and writing of the table, held against the real `sgdisk` and `cgpt`; and on real block devices, with sectors
//! of 512 and 4096 bytes.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test stops where it fails"
)]

mod gpt_rig;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use bascule_boot::gpt::bits::Bits;
use bascule_boot::gpt::{SlotEntry, bits_of_image};
use bascule_boot::{BootBackend, GptBackend};
use bascule_core::{BootStatus, BootedGroup, Group, Settings, Tries};
use gpt_rig::{Disk, bits};
use proptest::prelude::*;

const MIB: u64 = 1 << 20;

/// What a tool says, or nothing when it is not installed.
fn tool(name: &str, arguments: &[&str], device: &Path) -> Option<String> {
    match Command::new(name).args(arguments).arg(device).output() {
        Ok(output) => {
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            assert!(output.status.success(), "{name} {arguments:?}: {text}{}", String::from_utf8_lossy(&output.stderr));
            Some(text)
        }
        Err(error) => {
            println!("skipped: {name} cannot be started: {error}");
            None
        }
    }
}

/// A disk that `sgdisk` partitions: numbers 2, 3, 7 and 120, ChromeOS kernels in 3 and 7.
fn partition(device: &Path) -> Option<[SlotEntry; 2]> {
    let arguments = [
        ["--clear", "--new=2:0:+1M", "--new=3:0:+1M", "--new=7:0:+1M", "--new=120:0:+1M"].as_slice(),
        &["--typecode=3:7F00", "--typecode=7:7F00", "--change-name=3:root-a", "--change-name=7:root-b"],
        &["--attributes=2:set:2", "--attributes=120:=:0123000000000004"],
    ]
    .concat();
    tool("sgdisk", &arguments, device)?;
    let slot = |number: u32| {
        let said = tool("sgdisk", &["-i", &number.to_string()], device)?;
        let guid = said.lines().find_map(|line| line.strip_prefix("Partition unique GUID: "))?;
        Some(SlotEntry { number, guid: guid.to_owned() })
    };
    Some([slot(3)?, slot(7)?])
}

/// Everything that `sgdisk` says of the table, without the attributes of our entries.
fn described(device: &Path) -> Vec<String> {
    let parts = ["--print", "-i2", "-i3", "-i7", "-i120"].map(|what| tool("sgdisk", &[what], device).unwrap());
    let mut lines: Vec<String> = parts[..2].iter().chain(&parts[4..]).map(String::clone).collect();
    for part in &parts[2..4] {
        lines.extend(part.lines().filter(|line| !line.starts_with("Attribute")).map(str::to_owned));
    }
    lines
}

/// The attributes as `sgdisk` has them.
fn attributes(device: &Path, number: u32) -> u64 {
    let said = tool("sgdisk", &["-i", &number.to_string()], device).unwrap();
    let flags = said.lines().find_map(|line| line.strip_prefix("Attribute flags: ")).unwrap();
    u64::from_str_radix(flags.trim(), 16).unwrap()
}

/// The bits as `cgpt` has them.
fn cgpt(device: &Path, number: u32) -> Option<Bits> {
    let field = |flag: &str| -> Option<u8> {
        Some(tool("cgpt", &["show", "-i", &number.to_string(), flag], device)?.trim().parse().unwrap())
    };
    Some(Bits { priority: field("-P")?, tries: field("-T")?, successful: field("-S")? == 1 })
}

fn perform(backend: &GptBackend, booted: Group, word: &str) {
    let booted = BootedGroup::proven(booted);
    match word {
        "unbootable" => backend.mark_unbootable(booted.target()),
        "activate" => backend.activate(booted.target(), Tries::DEFAULT),
        "good" => backend.mark_good(booted),
        _ => backend.roll_back(booted),
    }
    .unwrap();
}

/// A life of updates, each act of it looked at with the tools.
fn live(device: &Path, sector: u64) -> bool {
    let Some(slots) = partition(device) else { return false };
    let backend = GptBackend::new(device.to_owned(), sector, slots);
    let before = described(device);
    let (good, none, trial) = (|priority| bits(priority, 0, 1), bits(0, 15, 0), |priority| bits(priority, 3, 0));
    for (booted, word, a, b) in [
        (Group::A, "good", good(1), none),
        (Group::A, "activate", good(1), trial(2)),
        (Group::B, "good", good(1), good(2)),
        (Group::B, "unbootable", none, good(2)),
        (Group::B, "activate", trial(3), good(2)),
        (Group::A, "back", none, good(2)),
    ] {
        perform(&backend, booted, word);
        let said = tool("sgdisk", &["--verify"], device).unwrap();
        assert!(said.contains("No problems found"), "{word} in {booted}: {said}");
        assert_eq!([attributes(device, 3), attributes(device, 7)], [a, b], "{word} in {booted}");
        assert_eq!(described(device), before, "{word} in {booted} changed more than attributes");
        if let Some(seen) = cgpt(device, 3) {
            assert_eq!([seen, cgpt(device, 7).unwrap()], [Bits::of(a), Bits::of(b)], "{word} in {booted}");
        }
    }
    true
}

#[test]
fn sgdisk_and_cgpt_read_what_the_backend_writes_and_find_no_problem() {
    let dir = tempfile::tempdir().unwrap();
    let image = dir.path().join("disk");
    fs::File::create(&image).unwrap().set_len(16 * MIB).unwrap();
    live(&image, 512);
}

/// A loop device on a file, taken away again at the end.
struct Loop(PathBuf);

impl Loop {
    fn new(file: &Path, sector: u64) -> Option<Loop> {
        let run =
            Command::new("losetup").args(["--find", "--show", "--sector-size", &sector.to_string()]).arg(file).output();
        match run {
            Ok(output) if output.status.success() => {
                Some(Loop(String::from_utf8_lossy(&output.stdout).trim().to_owned().into()))
            }
            _ => {
                println!("skipped: no loop device can be had here");
                None
            }
        }
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = Command::new("losetup").arg("--detach").arg(&self.0).status();
    }
}

#[test]
fn the_backend_works_on_block_devices_of_both_sector_sizes() {
    for sector in [512, 4096] {
        let dir = tempfile::tempdir().unwrap();
        let image = dir.path().join("disk");
        fs::File::create(&image).unwrap().set_len(16 * MIB).unwrap();
        let Some(device) = Loop::new(&image, sector) else { return };
        if !live(&device.0, sector) {
            return;
        }
        // What the device says is what the medium below it holds.
        let below = bits_of_image(&fs::read(&image).unwrap(), sector, [3, 7]);
        assert_eq!(below, Some([Bits::UNBOOTABLE, Bits::of(bits(2, 0, 1))]));
    }
}

#[test]
fn the_backend_reads_what_the_tools_write() {
    let dir = tempfile::tempdir().unwrap();
    let image = dir.path().join("disk");
    fs::File::create(&image).unwrap().set_len(16 * MIB).unwrap();
    let Some(slots) = partition(&image) else { return };
    let backend = GptBackend::new(image.clone(), 512, slots);
    let view = || backend.view(BootedGroup::proven(Group::A)).unwrap();
    let set = |number: u32, value: u64| {
        tool("sgdisk", &[&format!("--attributes={number}:=:{value:016x}")], &image).unwrap();
    };
    set(3, bits(1, 0, 1));
    for (value, status) in [
        (bits(2, 9, 0), BootStatus::Trial { tries_left: 9 }),
        (bits(2, 0, 0), BootStatus::Exhausted),
        (bits(0, 0, 0), BootStatus::Exhausted),
        (bits(0, 15, 0), BootStatus::Unbootable),
        (bits(15, 0, 1) | 4, BootStatus::Good),
    ] {
        set(7, value);
        assert_eq!((view().settings, view().b), (Settings::Intact, status), "{value:016x}");
    }
    for (priority, tries, successful) in [(15, 15, 1), (1, 1, 0), (0, 7, 1), (9, 0, 1), (3, 2, 0), (0, 0, 0)] {
        let arguments =
            ["add", "-i", "7", "-P", &format!("{priority}"), "-T", &format!("{tries}"), "-S", &format!("{successful}")];
        if tool("cgpt", &arguments, &image).is_none() {
            return;
        }
        let seen = bits_of_image(&fs::read(&image).unwrap(), 512, [3, 7]).unwrap();
        assert_eq!(seen[1], Bits::of(bits(priority, tries, successful)));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: ProptestConfig::default().cases / 4, ..ProptestConfig::default() })]

    #[test]
    fn no_bytes_make_the_reader_stop(
        header in proptest::collection::vec(any::<u8>(), 92), places in proptest::collection::vec((0..4096_usize, any::<u8>()), 0..40)
    ) {
        let mut image = vec![0; 64 * 512];
        image[512..604].copy_from_slice(&header);
        for (at, byte) in &places {
            image[512 + at % 4096] = *byte;
        }
        let _ = bits_of_image(&image, 512, [1, u32::MAX]);
        let _ = (bits_of_image(&image, 4096, [0, 3]), bits_of_image(&image[..places.len() * 97], 0, [0, 0]));
    }

    /// Headers whose checksums fit, with fields that nobody would write.
    #[test]
    fn no_field_of_a_header_makes_the_reader_stop(
        field in proptest::sample::select(vec![12, 20, 24, 32, 40, 48, 72, 80, 84]), value in any::<u64>(), near in 0..200_u64
    ) {
        let disk = Disk::factory(512);
        for value in [value, near, u64::MAX - near] {
            for copy in [bascule_boot::gpt::TableCopy::Primary, bascule_boot::gpt::TableCopy::Backup] {
                disk.edit_raw(copy, field, value);
            }
            let _ = bits_of_image(&disk.bytes(), 512, [3, 4]);
        }
    }
}
