//! The U-Boot backend keeps the contract, against the simulator of U-Boot and the script we ship.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test stops where it fails"
)]

use std::fs;
use std::path::Path;

use bascule_boot::conformance::{self, Rig};
use bascule_boot::uboot::config::{Copies, EnvConfig, Place};
use bascule_boot::uboot::env::{self, Variables};
use bascule_boot::uboot::simulator::{self, Ending, Saving, Start};
use bascule_boot::uboot::{FALLBACK, FALLBACK_LEN, SCRIPT};
use bascule_boot::{BootBackend, UbootBackend};
use bascule_core::{BootStatus, BootedGroup, Group, Settings, Tries};

const SIZE: usize = 0x2000;
const A: Group = Group::A;
const B: Group = Group::B;

fn backend(dir: &Path) -> UbootBackend {
    let place = |offset| Place { path: dir.join("env.img"), offset };
    let copies = Copies::Redundant([place(0), place(SIZE as i64)]);
    UbootBackend::new(EnvConfig { copies, size: SIZE }, dir.to_owned()).unwrap()
}

/// A directory of the loader with an empty environment in one file.
fn bare() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("boot.scr"), SCRIPT).unwrap();
    fs::write(dir.path().join("u-boot-initial-env"), "arch=arm\nbootcmd=run distro_bootcmd\n").unwrap();
    fs::write(dir.path().join("env.img"), vec![0xff; 2 * SIZE]).unwrap();
    dir
}

/// The same, in the factory state.
fn device() -> tempfile::TempDir {
    let dir = bare();
    backend(dir.path()).mark_unbootable(BootedGroup::proven(A).target()).unwrap();
    dir
}

fn copies(dir: &Path) -> [Option<Vec<u8>>; 2] {
    let bytes = fs::read(dir.join("env.img")).unwrap_or_default();
    [0, SIZE].map(|start| bytes.get(start..start + SIZE).map(<[u8]>::to_vec))
}

fn simulate(dir: &Path, saving: Saving) -> Start {
    let (copies, fallback) = (copies(dir), fs::read(dir.join(FALLBACK)).ok());
    simulator::start(copies.each_ref().map(|copy| copy.as_deref()), SIZE, fallback.as_deref(), |_| true, saving)
}

fn start(dir: &Path) -> Option<Group> {
    let before = copies(dir);
    let start = simulate(dir, Saving::Works);
    if start.copies != before {
        let [first, second] = start.copies.map(|copy| copy.unwrap_or_else(|| vec![0; SIZE]));
        fs::write(dir.join("env.img"), [first, second].concat()).unwrap();
    }
    match start.ending {
        Ending::Started(group) => Some(group),
        Ending::Recovery => None,
    }
}

fn rig() -> Rig {
    let dir = device();
    let place = dir.path().to_owned();
    Rig {
        backend: Box::new(backend(&place)),
        settings: place.join("env.img"),
        files: vec![place.join("env.img"), place.join(FALLBACK)],
        start: Box::new(move || start(&place)),
        keep: Box::new(dir),
    }
}

/// The newer copy's variables.
fn variables(dir: &Path) -> Variables {
    let copies = copies(dir);
    let valid = copies.each_ref().map(|copy| copy.as_deref().and_then(env::redundant));
    let newer = env::newer(valid.map(|copy| copy.map(|(flag, _)| flag))).unwrap();
    Variables::parse(valid[newer].unwrap().1).unwrap()
}

/// Puts an environment of these entries, raw, into the first copy; the second one is not valid.
fn put_entries(dir: &Path, entries: &[u8]) {
    let mut data = entries.to_vec();
    data.resize(SIZE - 5, 0);
    let mut bytes = env::crc32(&data).to_le_bytes().to_vec();
    bytes.push(1);
    bytes.extend_from_slice(&data);
    bytes.resize(2 * SIZE, 0xff);
    fs::write(dir.join("env.img"), bytes).unwrap();
}

#[derive(Debug, Clone, Copy)]
enum Act {
    MarkUnbootable,
    Activate,
    MarkGood,
    RollBack,
}

/// Acts of a life of updates, each with the group it is done in.
const LIFE: [(Group, Act); 11] = [
    (A, Act::Activate),
    (B, Act::MarkGood),
    (B, Act::MarkUnbootable),
    (B, Act::Activate),
    (A, Act::RollBack),
    (B, Act::Activate),
    (A, Act::MarkGood),
    (A, Act::RollBack),
    (B, Act::Activate),
    (A, Act::MarkGood),
    (A, Act::MarkUnbootable),
];

fn perform(dir: &Path, booted: Group, act: Act) {
    let (backend, booted) = (backend(dir), BootedGroup::proven(booted));
    match act {
        Act::MarkUnbootable => backend.mark_unbootable(booted.target()).unwrap(),
        Act::Activate => backend.activate(booted.target(), Tries::DEFAULT).unwrap(),
        Act::MarkGood => backend.mark_good(booted).unwrap(),
        Act::RollBack => backend.roll_back(booted).unwrap(),
    }
}

#[test]
fn the_uboot_backend_keeps_the_contract() {
    conformance::check(&rig);
}

#[test]
fn claim_a4_each_act_changes_exactly_one_copy_and_never_the_newer_one() {
    let dir = device();
    // Three hundred acts: the flag comes over its end.
    let mut flags = Vec::new();
    for (booted, act) in LIFE.iter().cycle().take(300) {
        let before = copies(dir.path());
        let flag = |copy: &Option<Vec<u8>>| copy.as_deref().and_then(env::redundant).map(|(flag, _)| flag);
        let newer = env::newer(before.each_ref().map(flag)).unwrap();
        perform(dir.path(), *booted, *act);
        let after = copies(dir.path());
        assert_eq!(before[newer], after[newer], "{act:?} in {booted} changed the newer copy");
        assert_ne!(before[1 - newer], after[1 - newer], "{act:?} in {booted} changed nothing");
        let (old, new) = (flag(&before[newer]).unwrap(), flag(&after[1 - newer]).unwrap());
        assert_eq!(new, old.wrapping_add(1), "{act:?} in {booted}");
        assert_eq!(env::newer(after.each_ref().map(flag)), Some(1 - newer));
        flags.push(new);
    }
    assert!(flags.contains(&0) && flags.contains(&255), "{flags:?}");
}

#[test]
fn claim_a4_a_write_torn_at_any_sector_leaves_the_old_choice_or_the_new_one() {
    let dir = device();
    for (booted, act) in LIFE {
        let look = || {
            (backend(dir.path()).view(BootedGroup::proven(booted)).unwrap(), simulate(dir.path(), Saving::Works).ending)
        };
        let (old, before) = (fs::read(dir.path().join("env.img")).unwrap(), look());
        perform(dir.path(), booted, act);
        let (new, after) = (fs::read(dir.path().join("env.img")).unwrap(), look());
        assert!(matches!(after.1, Ending::Started(_)));
        for cut in (0..=2 * SIZE).step_by(512) {
            for (head, tail) in [(&new, &old), (&old, &new)] {
                let torn = [&head[..cut], &tail[cut..]].concat();
                fs::write(dir.path().join("env.img"), &torn).unwrap();
                let seen = look();
                assert_eq!(seen.0.settings, Settings::Intact, "{act:?} in {booted} torn at {cut}");
                assert!(seen == before || seen == after, "{act:?} in {booted} torn at {cut}: {seen:?}");
            }
            // The sector under write is garbage: nothing of it may count.
            let changed = (0..2 * SIZE).find(|at| old[*at] != new[*at]).unwrap() / SIZE * SIZE;
            let mut garbage = old.clone();
            garbage[changed..changed + SIZE].fill(0xa5);
            garbage[changed..changed + cut % SIZE].copy_from_slice(&new[changed..changed + cut % SIZE]);
            fs::write(dir.path().join("env.img"), &garbage).unwrap();
            let seen = look();
            assert!(seen == before || seen == after, "{act:?} in {booted}, garbage from {cut}: {seen:?}");
        }
        fs::write(dir.path().join("env.img"), &new).unwrap();
        if matches!(act, Act::Activate) {
            assert_eq!(start(dir.path()), Some(booted.opposite()));
        }
    }
}

#[test]
fn a_save_of_the_loader_torn_at_any_sector_is_counted_or_tried_again() {
    let dir = device();
    perform(dir.path(), A, Act::Activate);
    let old = fs::read(dir.path().join("env.img")).unwrap();
    assert_eq!(start(dir.path()), Some(B));
    let new = fs::read(dir.path().join("env.img")).unwrap();
    for cut in (0..=2 * SIZE).step_by(512) {
        fs::write(dir.path().join("env.img"), [&new[..cut], &old[cut..]].concat()).unwrap();
        let tries = variables(dir.path()).get("bascule_b").unwrap();
        assert!(tries == b"3" || tries == b"2", "torn at {cut}: {tries:?}");
        assert_eq!(start(dir.path()), Some(B));
    }
}

#[test]
fn a_group_that_is_being_written_is_not_started_when_the_newer_copy_rots() {
    for rotten in [0, SIZE] {
        let dir = device();
        perform(dir.path(), A, Act::Activate);
        perform(dir.path(), B, Act::MarkGood);
        perform(dir.path(), B, Act::MarkUnbootable);
        let mut bytes = fs::read(dir.path().join("env.img")).unwrap();
        bytes[rotten + 100] ^= 1;
        fs::write(dir.path().join("env.img"), &bytes).unwrap();
        assert_eq!(start(dir.path()), Some(B), "copy at {rotten}");
        let view = backend(dir.path()).view(BootedGroup::proven(B)).unwrap();
        assert_eq!(view.a, BootStatus::Unbootable);
    }
    // The older copy calls the group good and puts it first.
    let dir = device();
    perform(dir.path(), A, Act::Activate);
    perform(dir.path(), B, Act::MarkGood);
    perform(dir.path(), B, Act::RollBack);
    perform(dir.path(), A, Act::MarkUnbootable);
    let flag = |copy: &Option<Vec<u8>>| copy.as_deref().and_then(env::redundant).map(|(flag, _)| flag);
    let newer = env::newer(copies(dir.path()).each_ref().map(flag)).unwrap();
    let mut bytes = fs::read(dir.path().join("env.img")).unwrap();
    bytes[newer * SIZE + 100] ^= 1;
    fs::write(dir.path().join("env.img"), &bytes).unwrap();
    assert_eq!(variables(dir.path()).get("bascule_b").unwrap(), b"good");
    let seen = simulate(dir.path(), Saving::Works);
    assert_eq!(seen.ending, Ending::Started(A));
    assert_eq!(seen.said, ["bascule: skipping group b, it is being written", "bascule: trying group a, good"]);
}

#[test]
fn lost_settings_are_rebuilt_from_the_initial_environment_and_without_it_not_at_all() {
    let dir = bare();
    perform(dir.path(), B, Act::MarkGood);
    assert_eq!(variables(dir.path()).get("bootcmd").unwrap(), b"run distro_bootcmd");
    for initial in [None, Some(""), Some("arch=arm\n"), Some("bootcmd=x\nno equals sign\n")] {
        let dir = bare();
        fs::remove_file(dir.path().join("u-boot-initial-env")).unwrap();
        if let Some(text) = initial {
            fs::write(dir.path().join("u-boot-initial-env"), text).unwrap();
        }
        let error = backend(dir.path()).mark_good(BootedGroup::proven(A)).unwrap_err();
        assert_eq!(error.code(), "boot.no-initial-env");
        assert_eq!(copies(dir.path()), [0, 1].map(|_| Some(vec![0xff; SIZE])), "{initial:?}");
        assert_eq!(start(dir.path()), Some(A));
        // The hint names the one file that is lacking, and with it the same call does what it says.
        let file = dir.path().join("u-boot-initial-env");
        assert!(error.hint().contains(&format!(" as {} ", file.display())), "{}", error.hint());
        fs::write(file, "bootcmd=run distro_bootcmd\n").unwrap();
        backend(dir.path()).mark_good(BootedGroup::proven(A)).unwrap();
        assert_eq!(variables(dir.path()).get("bootcmd").unwrap(), b"run distro_bootcmd");
    }
}

#[test]
fn one_damaged_copy_is_told_while_the_other_one_serves() {
    let dir = device();
    let damaged = || backend(dir.path()).damaged_copy().unwrap().map(|warning| (warning.code, warning.reason));
    perform(dir.path(), A, Act::MarkGood);
    perform(dir.path(), A, Act::Activate);
    assert_eq!(damaged(), None);
    let whole = fs::read(dir.path().join("env.img")).unwrap();
    for offset in [0, SIZE] {
        let mut bytes = whole.clone();
        bytes[offset + 100] ^= 1;
        fs::write(dir.path().join("env.img"), bytes).unwrap();
        let (code, reason) = damaged().unwrap();
        assert!(code == "boot.env-copy-damaged" && reason.ends_with(&format!("env.img at {offset}")), "{reason}");
    }
    fs::write(dir.path().join("env.img"), vec![0xff; 2 * SIZE]).unwrap();
    assert_eq!(damaged(), None, "with both lost, the settings themselves are damaged");
}

#[test]
fn lost_settings_roll_back_only_to_the_group_of_the_fallback() {
    let dir = device();
    fs::write(dir.path().join("env.img"), vec![0xff; 2 * SIZE]).unwrap();
    let backend = backend(dir.path());
    assert_eq!(backend.roll_back(BootedGroup::proven(A)).unwrap_err().code(), "boot.no-good-group");
    backend.roll_back(BootedGroup::proven(B)).unwrap();
    let view = backend.view(BootedGroup::proven(B)).unwrap();
    assert_eq!((view.primary, view.a, view.b), (A, BootStatus::Good, BootStatus::Unbootable));
}

#[test]
fn a_commit_does_not_forget_the_group_that_is_being_written() {
    let dir = device();
    let refusing = fs::read(dir.path().join(FALLBACK)).unwrap();
    perform(dir.path(), A, Act::MarkGood);
    assert_eq!(fs::read(dir.path().join(FALLBACK)).unwrap(), refusing);
    perform(dir.path(), A, Act::Activate);
    assert_ne!(fs::read(dir.path().join(FALLBACK)).unwrap(), refusing);
}

#[test]
fn a_new_device_of_a_vendor_keeps_every_other_variable_byte_by_byte() {
    let dir = bare();
    let others = b"# a comment\0 blanks=in front\0gone=\0x=1\0bootcmd=a\\\\b; c=d\0x=2\0junk\0\xff\xfe=\x01\0";
    put_entries(dir.path(), others);
    assert_eq!(backend(dir.path()).view(BootedGroup::proven(A)).unwrap().settings, Settings::Damaged);
    perform(dir.path(), A, Act::MarkGood);
    perform(dir.path(), A, Act::Activate);
    let ours = b"bascule_order=b a\0bascule_a=good\0bascule_b=3\0\0";
    let bytes = fs::read(dir.path().join("env.img")).unwrap();
    assert_eq!(&bytes[5..5 + others.len() + ours.len()], [&others[..], ours].concat());
}

#[test]
fn variables_of_others_that_leave_no_room_are_an_error_and_change_nothing() {
    let dir = device();
    let entry = |length: usize| format!("bascule_order=a b\0bascule_a=good\0bascule_b=3\0v={}\0", "x".repeat(length));
    let full = entry(SIZE - 5 - 1 - entry(0).len());
    put_entries(dir.path(), full.as_bytes());
    let before = fs::read(dir.path().join("env.img")).unwrap();
    let error = backend(dir.path()).mark_unbootable(BootedGroup::proven(A).target()).unwrap_err();
    assert_eq!(error.code(), "boot.no-room");
    assert_eq!(fs::read(dir.path().join("env.img")).unwrap(), before);
}

#[test]
fn a_directory_without_our_script_and_a_device_that_is_not_there_are_never_made() {
    let dir = tempfile::tempdir().unwrap();
    let a = BootedGroup::proven(A);
    assert_eq!(backend(dir.path()).mark_good(a).unwrap_err().code(), "boot.not-the-loaders");
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    let boot = bare();
    let place = |name: &str| Place { path: dir.path().join(name), offset: 0 };
    let config = EnvConfig { copies: Copies::Redundant([place("x"), place("y")]), size: SIZE };
    let backend = UbootBackend::new(config, boot.path().to_owned()).unwrap();
    assert_eq!(backend.view(a).unwrap_err().code(), "boot.read");
    assert_eq!(backend.mark_good(a).unwrap_err().code(), "boot.read");
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    fs::write(dir.path().join("x"), [0; 100]).unwrap();
    fs::write(dir.path().join("y"), [0; 100]).unwrap();
    assert_eq!(backend.mark_good(a).unwrap_err().code(), "boot.write");
    assert_eq!(fs::read(dir.path().join("x")).unwrap(), [0; 100], "a device that is too small was written to");
}

#[test]
fn copies_in_two_files_are_made_when_they_are_missing() {
    let dir = bare();
    let place = |name: &str| Place { path: dir.path().join(name), offset: 0 };
    let config = EnvConfig { copies: Copies::Redundant([place("uboot.env"), place("uboot-redund.env")]), size: SIZE };
    let backend = UbootBackend::new(config, dir.path().to_owned()).unwrap();
    let a = BootedGroup::proven(A);
    backend.mark_good(a).unwrap();
    backend.activate(a.target(), Tries::DEFAULT).unwrap();
    for name in ["uboot.env", "uboot-redund.env"] {
        assert!(env::redundant(&fs::read(dir.path().join(name)).unwrap()).is_some(), "{name}");
    }
    assert_eq!(backend.view(a).unwrap().b, BootStatus::Trial { tries_left: 3 });
}

#[test]
fn a_trial_whose_try_cannot_be_saved_is_not_started() {
    let dir = device();
    perform(dir.path(), A, Act::Activate);
    let seen = simulate(dir.path(), Saving::Fails);
    assert_eq!(seen.ending, Ending::Started(A));
    assert_eq!(seen.copies, copies(dir.path()));
    assert_eq!(seen.said, ["bascule: skipping group b, its try cannot be counted", "bascule: trying group a, good"]);
}

#[test]
fn claim_g15_an_odd_counter_gets_the_same_verdict_from_the_agent_and_from_the_loader() {
    let values = ["", "2 ", " 2", "010", "-1", "2147483648", "4294967297", "0x1", "３", "1e0", "+1", "1.0", "00", "10"];
    let mut entries: Vec<String> = values.iter().map(|value| format!("bascule_b={value}\0")).collect();
    entries.extend(["", "bascule_b\0", "bascule_b=2\0bascule_b=3\0", "bascule_b=3\0bascule_b=0\0"].map(str::to_owned));
    entries.extend(
        ["bascule_b=3\0bascule_b=\0", "bascule_b=\\3\0", " bascule_b=3\0", "#bascule_b=3\0", "=\0"].map(str::to_owned),
    );
    entries
        .extend(["0", "1", "2", "3", "9", "good", "bad", "Good", "good "].map(|value| format!("bascule_b={value}\0")));
    let dir = bare();
    for entry in entries {
        put_entries(dir.path(), format!("bascule_order=b a\0bascule_a=good\0{entry}").as_bytes());
        let view = backend(dir.path()).view(BootedGroup::proven(A)).unwrap();
        let before = copies(dir.path());
        let seen = simulate(dir.path(), Saving::Works);
        let plain = entry.trim_start().replace('\\', "");
        let digit = plain.strip_prefix("bascule_b=").and_then(|value| value.strip_suffix('\0'));
        let digit = if entry.starts_with("bascule_b=2\0") && entry.len() > 13 { Some("3") } else { digit };
        match digit.filter(|digit| digit.len() == 1 && ("1"..="9").contains(digit)) {
            Some(digit) => {
                assert_eq!(view.b, BootStatus::Trial { tries_left: digit.parse().unwrap() }, "{entry:?}");
                assert_eq!((view.primary, seen.ending), (B, Ending::Started(B)), "{entry:?}");
                assert_ne!(seen.copies, before, "{entry:?}: not counted");
            }
            None => {
                let expected = if entry == "bascule_b=good\0" { B } else { A };
                assert_eq!((view.primary, seen.ending), (expected, Ending::Started(expected)), "{entry:?}: {view:?}");
                assert_eq!(view.b == BootStatus::Good, expected == B, "{entry:?}");
                assert_eq!(seen.copies, before, "{entry:?}: nothing was to be counted");
            }
        }
    }
}

#[test]
fn claim_a5_from_any_content_a_group_is_started_that_loads() {
    let fallbacks = [None, Some(vec![]), Some(vec![0xff; FALLBACK_LEN]), fs::read(device().path().join(FALLBACK)).ok()];
    let settings = ["a b", "b a", "", "x"].map(|order| format!("bascule_order={order}\0"));
    for order in settings {
        for a in ["good", "3", "0", "bad", ""] {
            for b in ["good", "1", "0", "bad", ""] {
                for fallback in &fallbacks {
                    for saving in [Saving::Works, Saving::Fails] {
                        let dir = bare();
                        put_entries(dir.path(), format!("{order}bascule_a={a}\0bascule_b={b}\0").as_bytes());
                        if let Some(bytes) = fallback {
                            fs::write(dir.path().join(FALLBACK), bytes).unwrap();
                        }
                        let seen = simulate(dir.path(), saving);
                        assert!(matches!(seen.ending, Ending::Started(_)), "{order:?} {a} {b} {fallback:?} {seen:?}");
                    }
                }
            }
        }
    }
}
