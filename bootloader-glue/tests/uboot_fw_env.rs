//! Our reading of U-Boot's environment, held against the real `fw_setenv` and `fw_printenv`.
//!
//! `tests/data/uboot` has what `fw_setenv` of libubootenv 0.3.2 made; its README says how.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test stops where it fails"
)]

use std::fs;
use std::path::Path;
use std::process::Command;

use bascule_boot::uboot::config::{ConfigError, Copies, EnvConfig, Place};
use bascule_boot::uboot::env::{Damage, MAX_SIZE, Variables, crc32, newer, redundant};
use bascule_boot::uboot::simulator::{self, Saving};
use bascule_boot::uboot::{FALLBACK, FALLBACK_LEN};
use bascule_boot::{BootBackend, UbootBackend};
use bascule_core::{BootStatus, BootedGroup, Group, Settings, Tries};
use proptest::prelude::*;

const SIZE: usize = 1024;

fn golden(name: &str) -> [Vec<u8>; 2] {
    [0, 1].map(|copy| fs::read(format!("{}/tests/data/uboot/{name}.{copy}", env!("CARGO_MANIFEST_DIR"))).unwrap())
}

/// A directory of the loader with these copies, and a backend for it that was configured by the text of a file.
fn device(copies: &[Vec<u8>; 2]) -> (tempfile::TempDir, UbootBackend) {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("boot.scr"), "").unwrap();
    let mut config = "# Device  offset  size\n\n".to_owned();
    for (number, bytes) in copies.iter().enumerate() {
        let path = dir.path().join(format!("env.{number}"));
        fs::write(&path, bytes).unwrap();
        config.push_str(&format!("{}\t0x0 0x400\n", path.display()));
    }
    fs::write(dir.path().join("fw_env.config"), &config).unwrap();
    let backend = UbootBackend::new(EnvConfig::parse(config.as_bytes()).unwrap(), dir.path().to_owned()).unwrap();
    (dir, backend)
}

fn read_copies(dir: &Path) -> [Vec<u8>; 2] {
    [0, 1].map(|number| fs::read(dir.join(format!("env.{number}"))).unwrap())
}

/// What `fw_printenv` says, or nothing when the tool is not installed.
fn printed(dir: &Path) -> Option<String> {
    tool("fw_printenv", dir, &[])
}

fn tool(name: &str, dir: &Path, arguments: &[&str]) -> Option<String> {
    match Command::new(name).arg("-c").arg(dir.join("fw_env.config")).args(arguments).output() {
        Ok(output) if output.status.success() => Some(String::from_utf8_lossy(&output.stdout).into_owned()),
        Ok(output) => Some(format!("refused: {}", String::from_utf8_lossy(&output.stderr))),
        Err(error) => {
            println!("skipped: {name} cannot be started: {error}");
            None
        }
    }
}

#[test]
fn the_checksum_is_the_one_of_the_catalogue() {
    assert_eq!(crc32(b"123456789"), 0xcbf4_3926);
    assert_eq!(crc32(b""), 0);
}

#[test]
fn the_view_of_each_golden_file_is_what_its_values_say() {
    use BootStatus::{Exhausted, Good, Trial, Unbootable};
    for (name, primary, a, b) in [
        ("factory", Group::A, Good, Unbootable),
        ("armed", Group::B, Good, Trial { tries_left: 3 }),
        ("committed", Group::B, Good, Good),
        ("rolled-back", Group::A, Good, Unbootable),
        ("vendor", Group::A, Good, Exhausted),
        ("flag-255", Group::A, Good, Exhausted),
        ("flag-0", Group::A, Good, Exhausted),
        ("flag-1", Group::A, Good, Exhausted),
    ] {
        let (_dir, backend) = device(&golden(name));
        let view = backend.view(BootedGroup::proven(Group::A)).unwrap();
        assert_eq!((view.settings, view.primary, view.a, view.b), (Settings::Intact, primary, a, b), "{name}");
    }
}

#[test]
fn of_two_golden_copies_the_one_is_taken_that_the_tool_wrote_last() {
    for (name, last, flag) in [("flag-255", "last", 255), ("flag-0", "over", 0), ("flag-1", "on", 1)] {
        let copies = golden(name);
        let valid = copies.each_ref().map(|bytes| redundant(bytes).unwrap());
        let (seen, data) = valid[newer(valid.map(|(flag, _)| Some(flag))).unwrap()];
        assert_eq!(seen, flag);
        assert_eq!(Variables::parse(data).unwrap().get("n").unwrap(), last.as_bytes());
    }
}

#[test]
fn the_choice_between_two_copies_is_that_of_uboot() {
    assert_eq!(newer([None, None]), None);
    assert_eq!((newer([Some(0), None]), newer([None, Some(0)])), (Some(0), Some(1)));
    for flag in 0..=255_u8 {
        assert_eq!(newer([Some(flag), Some(flag.wrapping_add(1))]), Some(1), "{flag}");
        assert_eq!(newer([Some(flag.wrapping_add(1)), Some(flag)]), Some(0), "{flag}");
        assert_eq!(newer([Some(flag), Some(flag)]), Some(0), "{flag}");
    }
    // Two steps over the end are a decrease.
    assert_eq!(newer([Some(254), Some(0)]), Some(0));
}

#[test]
fn each_golden_copy_is_written_back_byte_by_byte_up_to_its_padding() {
    for name in ["armed", "committed", "rolled-back", "vendor", "flag-255", "flag-0", "flag-1"] {
        for bytes in golden(name) {
            let (flag, data) = redundant(&bytes).unwrap();
            let written = Variables::parse(data).unwrap().to_redundant(flag, SIZE).unwrap();
            let end = data.windows(2).position(|two| two == [0, 0]).unwrap() + 2;
            assert_eq!(written[5..5 + end], data[..end], "{name}");
            assert!(written[5 + end..].iter().all(|byte| *byte == 0));
            assert_eq!(redundant(&written).unwrap().0, flag);
        }
    }
}

#[test]
fn the_tool_reads_what_the_backend_writes_and_the_other_way_round() {
    let (dir, backend) = device(&golden("vendor"));
    let (a, b) = (BootedGroup::proven(Group::A), BootedGroup::proven(Group::B));
    backend.activate(a.target(), Tries::DEFAULT).unwrap();
    let Some(text) = printed(dir.path()) else { return };
    assert_eq!(
        text,
        "arch=arm\nbascule_a=good\nbascule_b=3\nbascule_order=b a\nbootcmd=run distro_bootcmd\n\
         ethaddr=52:54:00:12:34:56\nvendor=back\\slash = and \"quotes\"\n"
    );
    // The tool counts as the loader would; then ours goes on from there, three hundred times.
    for round in 0..300 {
        let text = tool("fw_setenv", dir.path(), &["bascule_b", "2"]).unwrap();
        assert_eq!(text, "", "{round}");
        assert_eq!(backend.view(a).unwrap().b, BootStatus::Trial { tries_left: 2 }, "{round}");
        backend.mark_good(b).unwrap();
        assert!(printed(dir.path()).unwrap().contains("bascule_b=good\n"), "{round}");
    }
}

#[test]
fn the_tool_reads_what_the_simulated_loader_saves() {
    let (dir, _backend) = device(&golden("armed"));
    let copies = read_copies(dir.path());
    let start = simulator::start(copies.each_ref().map(|copy| Some(&copy[..])), SIZE, None, |_| true, Saving::Works);
    for (number, bytes) in start.copies.iter().enumerate() {
        fs::write(dir.path().join(format!("env.{number}")), bytes.as_ref().unwrap()).unwrap();
    }
    let Some(text) = printed(dir.path()) else { return };
    assert!(text.contains("bascule_b=2\n") && text.contains("bootcmd=run distro_bootcmd\n"), "{text}");
}

#[test]
fn a_fallback_without_the_flag_counts_as_none_and_the_next_act_replaces_it() {
    // The form before U-Boot itself was tried: the checksum, then the variables at once. U-Boot with a redundant environment refuses it.
    let mut data = b"bascule_fallback=b\0".to_vec();
    data.resize(FALLBACK_LEN - 4, 0);
    let old = [&crc32(&data).to_le_bytes()[..], &data].concat();
    let torn = vec![0; SIZE];
    let (dir, backend) = device(&[torn.clone(), torn]);
    let start = |fallback: &[u8]| simulator::start([None, None], SIZE, Some(fallback), |_| true, Saving::Works);
    assert_eq!(start(&old).said[1], "bascule: no fallback, trying what loads");
    fs::write(dir.path().join(FALLBACK), old).unwrap();
    fs::write(dir.path().join("u-boot-initial-env"), "bootcmd=x\n").unwrap();
    backend.mark_good(BootedGroup::proven(Group::B)).unwrap();
    let new = fs::read(dir.path().join(FALLBACK)).unwrap();
    assert_eq!(start(&new).said[1], "bascule: fallback names group b");
}

#[test]
fn a_backend_for_one_copy_is_refused() {
    let config = EnvConfig::parse(b"/x/env 0 0x2000").unwrap();
    assert_eq!(UbootBackend::new(config, "/x".into()).unwrap_err(), ConfigError::NotRedundant);
}

#[test]
fn entries_are_read_as_uboot_imports_them() {
    let get =
        |data: &[u8], name: &str| Variables::parse(data).unwrap().get(name).map(|v| String::from_utf8(v).unwrap());
    assert_eq!(get(b"x=1\0x=2\0\0", "x").as_deref(), Some("2"));
    assert_eq!(get(b"x=1\0x=\0\0", "x"), None);
    assert_eq!(get(b"x=1\0x\0\0", "x"), None);
    assert_eq!(get(b" \tx=1\0\0", "x").as_deref(), Some("1"));
    assert_eq!(get(b"#x=1\0\0", "x"), None);
    assert_eq!(get(b"x=a\\\\b\\c\\\0\0", "x").as_deref(), Some("a\\bc\\"));
    assert_eq!(get(b"x==\0\0", "x").as_deref(), Some("="));
    assert_eq!(get(b"y=1\0\0x=1\0", "x"), None, "behind the end");
    assert_eq!(get(b"\0x=1\0\0", "x").as_deref(), Some("1"), "U-Boot looks for the end behind an entry only");
    assert_eq!(get(b"x=1", "x").as_deref(), Some("1"), "no end at all");
    assert_eq!(Variables::parse(b"y=1\0=x\0\0"), Err(Damage::Name));
    assert!(Variables::parse(b"=\0y=1\0\0").is_ok());
    assert!(Variables::parse(&[0; 100]).unwrap().is_empty());
}

#[test]
fn a_variable_that_stands_there_twice_is_set_once() {
    let mut variables = Variables::parse(b"a=1\0x=1\0b=2\0 x=3\0x=\0\0").unwrap();
    variables.set("x", "9");
    assert_eq!(variables.get("x").unwrap(), b"9");
    let bytes = variables.to_redundant(0, 64).unwrap();
    assert!(bytes[5..].starts_with(b"a=1\0x=9\0b=2\0\0"));
}

#[test]
fn a_configuration_is_read_as_the_tools_read_it() {
    let place = |path: &str, offset| Place { path: path.into(), offset };
    let read = |text: &str| EnvConfig::parse(text.as_bytes());
    let config =
        read("# comment\n\n/dev/mmcblk0\t0x3f8000   0x4000\n  /dev/mmcblk0 -0x4000 040000 0x200 32\n").unwrap();
    let copies = [place("/dev/mmcblk0", 0x3f_8000), place("/dev/mmcblk0", -0x4000)];
    assert_eq!(config, EnvConfig { copies: Copies::Redundant(copies), size: 0x4000 });
    let single = read("/boot/uboot.env 0 16384").unwrap();
    assert_eq!(single.copies, Copies::Single(place("/boot/uboot.env", 0)));
    let line = |line| Err(ConfigError::Line { line });
    for text in
        ["/x", "/x 0", "/x zero 0x1000", "/x 0 0x", "/x 0 08", "/x 0 0x1000 1 2 3", "/x 0 0x1000 -1", "/x 0 --1"]
    {
        assert_eq!(read(text), line(1), "{text}");
    }
    assert_eq!(read("/x 0 0x1000\n/y 99999999999999999999 0x1000"), line(2));
    assert_eq!(read("/x 0 -4096"), Err(ConfigError::Size { line: 1, size: -4096 }));
    assert_eq!(read("/x 0 511"), Err(ConfigError::Size { line: 1, size: 511 }));
    assert_eq!(read("/x 0 0x100001"), Err(ConfigError::Size { line: 1, size: MAX_SIZE as i64 + 1 }));
    assert_eq!(read("# nothing"), Err(ConfigError::Copies(0)));
    assert_eq!(read("/x 0 512\n/y 0 512\n/z 0 512"), Err(ConfigError::Copies(3)));
    assert_eq!(read("/x 0 512\n/y 0 1024"), Err(ConfigError::DifferentSizes));
    assert_eq!(read("/x 0 0x2000\n/x 0x1fff 0x2000"), Err(ConfigError::Overlap));
    assert_eq!(read("/x 0 512\n/x 512 512"), Err(ConfigError::Overlap));
    assert_eq!(read("/x -0x4000 0x2001\n/x -0x2000 0x2001"), Err(ConfigError::Overlap));
    assert!(read("/x -0x4000 0x2000\n/x -0x2000 0x2000").is_ok());
    assert_eq!(EnvConfig::parse(b"\xff"), Err(ConfigError::NotText));
    assert_eq!(ConfigError::Overlap.code(), "boot.env-config");
}

#[test]
fn a_negative_offset_counts_from_the_end() {
    let dir = tempfile::tempdir().unwrap();
    let copies = golden("armed");
    fs::write(dir.path().join("boot.scr"), "").unwrap();
    let mut disk = vec![7; 3 * 4096];
    disk.extend_from_slice(&copies[0]);
    disk.resize(4 * 4096, 7);
    disk.extend_from_slice(&copies[1]);
    let path = dir.path().join("disk");
    fs::write(&path, &disk).unwrap();
    let config = format!("{0} -0x1400 0x400\n{0} -0x400 0x400\n", path.display());
    let backend = UbootBackend::new(EnvConfig::parse(config.as_bytes()).unwrap(), dir.path().to_owned()).unwrap();
    let a = BootedGroup::proven(Group::A);
    assert_eq!(backend.view(a).unwrap().primary, Group::B);
    backend.mark_unbootable(a.target()).unwrap();
    let after = fs::read(&path).unwrap();
    assert_eq!(after.len(), disk.len());
    let changed: Vec<usize> = (0..disk.len()).filter(|at| disk[*at] != after[*at]).collect();
    // The first copy has flag 1 and is the newer one: the second is written.
    assert!(changed.iter().all(|at| *at >= 4 * 4096) && !changed.is_empty());
    // A disk that is shorter than that is damage, not a place to write to.
    fs::write(&path, [0; 16]).unwrap();
    assert_eq!(backend.view(a).unwrap().settings, Settings::Damaged);
    fs::write(dir.path().join("u-boot-initial-env"), "bootcmd=x\n").unwrap();
    assert_eq!(backend.mark_good(a).unwrap_err().code(), "boot.write");
    assert_eq!(fs::read(&path).unwrap(), [0; 16]);
}

proptest! {
    #[test]
    fn no_bytes_make_a_reader_stop(bytes in proptest::collection::vec(any::<u8>(), 0..2048), flag in any::<u8>()) {
        let _ = (redundant(&bytes), Variables::of_text(&bytes), EnvConfig::parse(&bytes));
        let valid = [&crc32(&bytes).to_le_bytes()[..], &[flag], &bytes].concat();
        let (seen, data) = redundant(&valid).unwrap();
        prop_assert_eq!((seen, data), (flag, &bytes[..]));
        if let Ok(variables) = Variables::parse(data) {
            for name in ["bascule_order", "bascule_a", "x", ""] {
                let _ = variables.get(name);
            }
            if let Some(again) = variables.to_redundant(flag, data.len() + 64) {
                prop_assert_eq!(Variables::parse(redundant(&again).unwrap().1), Ok(variables));
            }
        }
        let wild = [Some(&valid[..]), Some(&bytes[..])];
        let _ = simulator::start(wild, valid.len(), Some(&bytes), |_| true, Saving::Works);
    }

    #[test]
    fn variables_of_others_survive_an_act_byte_by_byte(
        others in proptest::collection::vec("[a-z_]{1,8}=[ -~]{1,12}", 0..12)
    ) {
        let mut data = others.iter().flat_map(|entry| [entry.as_bytes(), &[0]].concat()).collect::<Vec<u8>>();
        let length = data.len();
        data.extend_from_slice(b"bascule_order=a b\0bascule_a=good\0bascule_b=bad\0\0");
        data.resize(SIZE - 5, 0xff);
        let bytes = [&crc32(&data).to_le_bytes()[..], &[7], &data].concat();
        let (dir, backend) = device(&[vec![0xff; SIZE], bytes.clone()]);
        backend.activate(BootedGroup::proven(Group::A).target(), Tries::DEFAULT).unwrap();
        let [first, second] = read_copies(dir.path());
        prop_assert_eq!(second, bytes);
        prop_assert_eq!(redundant(&first).unwrap().0, 8);
        prop_assert_eq!(&first[5..5 + length], &data[..length]);
        prop_assert!(first[5 + length..].starts_with(b"bascule_order=b a\0bascule_a=good\0bascule_b=3\0\0"));
    }

    #[test]
    fn the_simulator_never_starts_a_trial_uncounted(
        junk in proptest::collection::vec(any::<u8>(), 0..64), at in 0..80usize, digit in 1..=9u8
    ) {
        use bascule_boot::uboot::simulator::{Ending, start};
        let mut data = format!("bascule_order=b a\0bascule_a=good\0bascule_b={digit}\0").into_bytes();
        let at = at.min(data.len());
        data.splice(at..at, junk);
        data.resize(SIZE - 5, 0);
        let bytes = [&crc32(&data).to_le_bytes()[..], &[1], &data].concat();
        let seen = start([Some(&bytes), None], SIZE, None, |_| true, Saving::Works);
        let uncounted = seen.said.iter().any(|line| line.ends_with("good") || line.ends_with("what loads"));
        if seen.ending == Ending::Started(Group::B) && !uncounted {
            prop_assert!(seen.copies[1].is_some());
            prop_assert_eq!(seen.copies[0].as_ref(), Some(&bytes));
        }
    }
}
