//! The custom backend keeps the contract with a program that does what it says, and the loader that reads its file.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test stops where it fails")]

use std::fs;
use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use bascule_boot::conformance::{self, Rig};
use bascule_boot::{BootBackend, CustomBackend};
use bascule_core::{BootStatus, BootedGroup, Group, Settings};

const PROGRAM: &str = include_str!("custom_program.sh");

/// Writes a program by a process of its own: a file that this one has open for writing cannot be run, and whatever another
/// thread starts meanwhile has it open for a moment too.
fn put_program(path: &Path, text: &str) {
    let mut install = Command::new("install");
    let mut install = install.args(["-m", "755", "/dev/stdin"]).arg(path).stdin(Stdio::piped()).spawn().unwrap();
    install.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    assert!(install.wait().unwrap().success());
}

fn device() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let program = dir.path().join("program");
    put_program(&program, PROGRAM);
    fs::write(dir.path().join("state"), "a good bad\n").unwrap();
    fs::write(dir.path().join("fallback"), "a\n").unwrap();
    dir
}

fn backend(dir: &Path) -> CustomBackend {
    CustomBackend::new(dir.join("program"), Duration::from_secs(60))
}

/// The loader of the program's file: it counts a try before it starts a group.
fn start(dir: &Path) -> Option<Group> {
    let text = fs::read(dir.join("state")).unwrap_or_default();
    let text = String::from_utf8_lossy(&text).replace('\0', "");
    let words: Vec<&str> = text.trim_end_matches('\n').split(' ').collect();
    let is_status = |word: &str| ["good", "bad"].contains(&word) || word.parse::<u8>().is_ok_and(|tries| tries < 10);
    let [first, a, b] = words.as_slice() else { return fallback(dir) };
    let Ok(first) = first.parse::<Group>() else { return fallback(dir) };
    if !is_status(a) || !is_status(b) {
        return fallback(dir);
    }
    for group in [first, first.opposite()] {
        let status = if group == Group::A { a } else { b };
        match status.parse::<u8>() {
            Ok(0) => {}
            Ok(tries) => {
                let left = (tries - 1).to_string();
                let (a, b) = if group == Group::A { (left.as_str(), *b) } else { (*a, left.as_str()) };
                fs::write(dir.join("state"), format!("{first} {a} {b}\n")).unwrap();
                return Some(group);
            }
            Err(_) if *status == "good" => return Some(group),
            Err(_) => {}
        }
    }
    None
}

fn fallback(dir: &Path) -> Option<Group> {
    fs::read_to_string(dir.join("fallback")).unwrap().trim().parse().ok()
}

fn rig() -> Rig {
    let dir = device();
    let place = dir.path().to_owned();
    Rig {
        backend: Box::new(backend(&place)),
        settings: place.join("state"),
        files: vec![place.join("state"), place.join("fallback")],
        start: Box::new(move || start(&place)),
        keep: Box::new(dir),
    }
}

#[test]
fn the_custom_backend_keeps_the_contract() {
    conformance::check(&rig);
}

#[test]
fn a_key_that_is_not_known_is_ignored_and_damage_is_no_error() {
    let dir = device();
    let booted = BootedGroup::proven(Group::A);
    let view = backend(dir.path()).view(booted).unwrap();
    assert_eq!((view.settings, view.a, view.b), (Settings::Intact, BootStatus::Good, BootStatus::Unbootable));
    fs::write(dir.path().join("state"), "a good").unwrap();
    assert_eq!(backend(dir.path()).view(booted).unwrap().settings, Settings::Damaged);
}
