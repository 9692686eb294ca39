//! The GRUB backend keeps the contract, against the simulator of the script we ship.

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
use bascule_boot::grub::simulator::{self, Ending, Saving};
use bascule_boot::grub::{FACTORY_FALLBACK, FACTORY_GRUBENV, SCRIPT};
use bascule_boot::{BootBackend, BootError, GrubBackend};
use bascule_core::{BootStatus, BootedGroup, Group, Settings, Tries};

fn factory(dir: &Path) {
    fs::write(dir.join("grub.cfg"), SCRIPT).unwrap();
    fs::write(dir.join("grubenv"), FACTORY_GRUBENV).unwrap();
    fs::write(dir.join("fallback"), FACTORY_FALLBACK).unwrap();
}

fn start(dir: &Path) -> Option<Group> {
    let read = |name: &str| fs::read(dir.join(name)).ok();
    let start = simulator::start(read("grubenv").as_deref(), read("fallback").as_deref(), |_| true, Saving::Works);
    if let Some(bytes) = start.grubenv {
        fs::write(dir.join("grubenv"), bytes).unwrap();
    }
    match start.ending {
        Ending::Started(group) => Some(group),
        Ending::Recovery => None,
    }
}

fn rig() -> Rig {
    let dir = tempfile::tempdir().unwrap();
    factory(dir.path());
    let place = dir.path().to_owned();
    Rig {
        backend: Box::new(GrubBackend::new(place.clone())),
        settings: place.join("grubenv"),
        files: vec![place.join("grubenv"), place.join("fallback")],
        start: Box::new(move || start(&place)),
        keep: Box::new(dir),
    }
}

#[test]
fn the_grub_backend_keeps_the_contract() {
    conformance::check(&rig);
}

#[test]
fn what_we_ship_is_what_the_backend_writes() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("grub.cfg"), SCRIPT).unwrap();
    let backend = GrubBackend::new(dir.path().to_owned());
    let booted = BootedGroup::proven(Group::A);
    assert_eq!(backend.view(booted).unwrap().settings, Settings::Damaged);
    backend.mark_unbootable(booted.target()).unwrap();
    assert_eq!(fs::read(dir.path().join("grubenv")).unwrap(), FACTORY_GRUBENV);
    assert_eq!(fs::read(dir.path().join("fallback")).unwrap(), FACTORY_FALLBACK);
}

#[test]
fn variables_of_others_survive_a_whole_update() {
    let dir = tempfile::tempdir().unwrap();
    factory(dir.path());
    let mut text = b"# GRUB Environment Block\n# WARNING: a comment\nvendor=x\\\\y\norder=a b\ngroup_a=good\n".to_vec();
    text.extend_from_slice(b"group_b=bad\nlast=1\n");
    text.resize(1024, b'#');
    fs::write(dir.path().join("grubenv"), &text).unwrap();
    let backend = GrubBackend::new(dir.path().to_owned());
    let booted = BootedGroup::proven(Group::A);
    backend.mark_unbootable(booted.target()).unwrap();
    backend.activate(booted.target(), Tries::DEFAULT).unwrap();
    assert_eq!(start(dir.path()), Some(Group::B));
    backend.mark_good(BootedGroup::proven(Group::B)).unwrap();
    let written = String::from_utf8(fs::read(dir.path().join("grubenv")).unwrap()).unwrap();
    assert!(written.starts_with(
        "# GRUB Environment Block\n# WARNING: a comment\nvendor=x\\\\y\norder=b a\ngroup_a=good\ngroup_b=good\nlast=1\n#"
    ));
}

#[test]
fn variables_of_others_that_leave_no_room_are_an_error_and_change_nothing() {
    let dir = tempfile::tempdir().unwrap();
    factory(dir.path());
    let filled = |filler: usize| {
        let mut text = b"# GRUB Environment Block\norder=a b\ngroup_a=good\ngroup_b=3\nvendor=".to_vec();
        text.resize(text.len() + filler, b'x');
        text.push(b'\n');
        let length = text.len();
        text.resize(1024, b'#');
        (text, length)
    };
    let (_, fixed) = filled(0);
    let (text, length) = filled(512 - fixed);
    assert_eq!(length, 512);
    fs::write(dir.path().join("grubenv"), &text).unwrap();
    let backend = GrubBackend::new(dir.path().to_owned());
    let error = backend.mark_unbootable(BootedGroup::proven(Group::A).target()).unwrap_err();
    assert_eq!(error.code(), "boot.no-room");
    assert_eq!(fs::read(dir.path().join("grubenv")).unwrap(), text);
}

#[test]
fn a_directory_without_our_script_is_never_written_to() {
    let dir = tempfile::tempdir().unwrap();
    let backend = GrubBackend::new(dir.path().to_owned());
    let booted = BootedGroup::proven(Group::A);
    assert!(matches!(backend.mark_good(booted), Err(BootError::NotTheLoaders { .. })));
    assert!(matches!(backend.view(booted), Err(BootError::NotTheLoaders { .. })));
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[test]
fn a_damaged_block_is_never_activated_and_rolls_back_only_to_the_group_of_the_fallback() {
    let dir = tempfile::tempdir().unwrap();
    factory(dir.path());
    let backend = GrubBackend::new(dir.path().to_owned());
    fs::write(dir.path().join("grubenv"), b"").unwrap();
    let (a, b) = (BootedGroup::proven(Group::A), BootedGroup::proven(Group::B));
    assert_eq!(backend.activate(a.target(), Tries::DEFAULT).unwrap_err().code(), "boot.damaged");
    assert_eq!(backend.roll_back(a).unwrap_err().code(), "boot.no-good-group");
    backend.roll_back(b).unwrap();
    let view = backend.view(b).unwrap();
    assert_eq!((view.primary, view.a, view.b), (Group::A, BootStatus::Good, BootStatus::Unbootable));
}

#[test]
fn a_trial_whose_try_cannot_be_saved_is_not_started() {
    let dir = tempfile::tempdir().unwrap();
    factory(dir.path());
    let backend = GrubBackend::new(dir.path().to_owned());
    backend.activate(BootedGroup::proven(Group::A).target(), Tries::DEFAULT).unwrap();
    let bytes = fs::read(dir.path().join("grubenv")).unwrap();
    let start = simulator::start(Some(&bytes), Some(FACTORY_FALLBACK), |_| true, Saving::Fails);
    assert_eq!(start.ending, Ending::Started(Group::A));
    assert_eq!(start.grubenv, Some(bytes));
    assert_eq!(start.said, ["bascule: skipping group b, its try cannot be counted", "bascule: trying group a, good"]);
}

#[test]
fn each_act_changes_exactly_the_lines_that_the_documentation_shows() {
    let dir = tempfile::tempdir().unwrap();
    factory(dir.path());
    let backend = GrubBackend::new(dir.path().to_owned());
    let (a, b) = (BootedGroup::proven(Group::A), BootedGroup::proven(Group::B));
    let expect = |lines: &str, fallback: &str| {
        let read = |name: &str| fs::read_to_string(dir.path().join(name)).unwrap();
        let lines = lines.replace(". ", "\n");
        assert_eq!(read("grubenv").trim_end_matches('#'), format!("# GRUB Environment Block\n{lines}\n"));
        assert_eq!(read("fallback").trim_end_matches('#'), format!("# GRUB Environment Block\nfallback={fallback}\n"));
    };
    backend.activate(a.target(), Tries::DEFAULT).unwrap();
    expect("order=b a. group_a=good. group_b=3", "a");
    start(dir.path());
    expect("order=b a. group_a=good. group_b=2", "a");
    backend.mark_good(b).unwrap();
    expect("order=b a. group_a=good. group_b=good", "b");
    backend.roll_back(b).unwrap();
    expect("order=a b. group_a=good. group_b=bad", "a");
    backend.activate(a.target(), Tries::new(1).unwrap()).unwrap();
    start(dir.path());
    expect("order=b a. group_a=good. group_b=0", "a");
    backend.mark_unbootable(a.target()).unwrap();
    expect("order=a b. group_a=good. group_b=bad", "a");
    assert_eq!(fs::read(dir.path().join("grubenv")).unwrap(), FACTORY_GRUBENV);
}
