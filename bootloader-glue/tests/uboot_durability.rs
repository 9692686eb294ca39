//! What the U-Boot backend asks of the system, call by call: one write of the older copy, synced and read back past the
//! page cache before the next file is touched; nothing is truncated, renamed over or created.
//!
//! Claims A3 and A4: the commit point is one write of the older copy between two syncs; its checksum and flag make it one
//! whatever its length (`claim_a4_a_write_torn_at_any_sector_leaves_the_old_choice_or_the_new_one` in `uboot_conformance.rs`).
//!
//! The test starts itself under `strace` and compares the whole ordered list of calls on the settings files.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test stops where it fails")]

use std::fs;
use std::path::Path;
use std::process::Command;

use bascule_boot::uboot::FALLBACK;
use bascule_boot::uboot::config::{Copies, EnvConfig, Place};
use bascule_boot::{BootBackend, UbootBackend};
use bascule_core::{BootedGroup, Group, Tries};

const SIZE: usize = 0x2000;
const DIRECTORY: &str = "BASCULE_TRACED_DIRECTORY";
const CALL: &str = "BASCULE_TRACED_CALL";
/// The code of the error that the traced call must end with, if any.
const ERROR: &str = "BASCULE_TRACED_ERROR";

fn backend(dir: &Path) -> UbootBackend {
    let place = |name: &str| Place { path: dir.join(name), offset: 0 };
    let copies = Copies::Redundant([place("uboot.env"), place("uboot-redund.env")]);
    UbootBackend::new(EnvConfig { copies, size: SIZE }, dir.to_owned()).unwrap()
}

fn call(dir: &Path, call: &str) -> Option<&'static str> {
    let (a, b) = (BootedGroup::proven(Group::A), BootedGroup::proven(Group::B));
    let backend = backend(dir);
    let result = match call {
        "mark-unbootable b" => backend.mark_unbootable(a.target()),
        "mark-unbootable a" => backend.mark_unbootable(b.target()),
        "activate b" => backend.activate(a.target(), Tries::DEFAULT),
        "mark-good b" => backend.mark_good(b),
        "roll-back b" => backend.roll_back(b),
        _ => panic!("no such call"),
    };
    result.err().map(|error| error.code())
}

/// Not a test of its own: the traced half of the others.
#[test]
fn traced_call() {
    let (Ok(dir), Ok(name)) = (std::env::var(DIRECTORY), std::env::var(CALL)) else { return };
    assert_eq!(call(dir.as_ref(), &name), std::env::var(ERROR).ok().as_deref());
}

/// A device after these calls. Each of them is one write: `uboot.env` is first, then the copies take turns.
fn device(before: &[&str]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("boot.scr"), "").unwrap();
    fs::write(dir.path().join("u-boot-initial-env"), "bootcmd=run distro_bootcmd\n").unwrap();
    for name in ["uboot.env", "uboot-redund.env"] {
        fs::write(dir.path().join(name), vec![0xff; SIZE]).unwrap();
    }
    for name in before {
        assert_eq!(call(dir.path(), name), None);
    }
    dir
}

/// The effects of one call on the files, in order; `None` when there is no strace.
fn effects(before: &[&str], call: &str) -> Option<Vec<String>> {
    let dir = device(before);
    let log = dir.path().join("strace");
    let traced = Command::new("strace")
        .args(["-f", "-y", "-e"])
        .arg("trace=openat,pwrite64,pread64,write,fsync,fdatasync,rename,unlink,ftruncate,fadvise64")
        .arg("-o")
        .arg(&log)
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", "traced_call"])
        .envs([(DIRECTORY, dir.path().to_str().unwrap()), (CALL, call)])
        .output();
    let output = match traced {
        Ok(output) if fs::metadata(&log).is_ok_and(|log| log.len() > 0) => output,
        _ => {
            println!("skipped: strace cannot trace here");
            return None;
        }
    };
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    let log = fs::read_to_string(&log).unwrap();
    let mut seen: Vec<String> = log.lines().filter_map(|line| effect(line, dir.path())).collect();
    // Where direct input is impossible, each read back begins with a sync of its own; that is not what these tests are about.
    seen.dedup();
    Some(seen)
}

/// One line of strace as an effect, such as `sync uboot.env`; reads through the page cache are none.
fn effect(line: &str, dir: &Path) -> Option<String> {
    let below = format!("{}/", dir.to_str().unwrap());
    let (_, call) = line.split_once(' ')?;
    let (name, rest) = call.trim_start().split_once('(')?;
    let file = rest.get(rest.find(&below)? + below.len()..)?.split(['"', '>']).next()?;
    match name {
        "openat" if ["O_TRUNC", "O_CREAT"].iter().any(|flag| rest.contains(flag)) => Some(format!("create {file}")),
        "openat" if rest.contains("O_DIRECT|") || rest.contains("|O_DIRECT,") || rest.contains("|O_DIRECT)") => {
            Some(format!("read back {file}")).filter(|_| !rest.contains("EINVAL"))
        }
        "fadvise64" => Some(format!("read back {file}")),
        "pwrite64" => {
            let whole = if file == FALLBACK { ", 512, 0)" } else { ", 8192, 0)" };
            assert!(rest.contains(whole), "not one write of the whole copy: {line}");
            Some(format!("write {file}"))
        }
        "write" | "rename" | "unlink" | "ftruncate" => Some(format!("{name} {file}")),
        "fsync" | "fdatasync" => Some(format!("sync {file}")),
        _ => None,
    }
}

fn compare(seen: Option<Vec<String>>, expected: &[&[&str]]) {
    if let Some(seen) = seen {
        assert_eq!(seen, expected.concat());
    }
}

const FIRST: [&str; 3] = ["write uboot.env", "sync uboot.env", "read back uboot.env"];
const SECOND: [&str; 3] = ["write uboot-redund.env", "sync uboot-redund.env", "read back uboot-redund.env"];
const NAMED: [&str; 3] = ["write bascule-fallback", "sync bascule-fallback", "read back bascule-fallback"];

#[test]
fn claim_a3_a4_before_the_target_is_given_up_the_fallback_refuses_it() {
    let before = ["mark-unbootable b", "activate b", "mark-good b"];
    compare(effects(&before, "mark-unbootable a"), &[&NAMED, &SECOND]);
}

#[test]
fn claim_a3_a4_the_activation_is_one_write_of_the_older_copy() {
    compare(effects(&["mark-unbootable b"], "activate b"), &[&NAMED, &SECOND]);
}

#[test]
fn claim_a3_a4_a_commit_is_durable_before_the_fallback_follows() {
    compare(effects(&["mark-unbootable b", "activate b"], "mark-good b"), &[&FIRST, &NAMED]);
}

#[test]
fn claim_a3_a4_a_roll_back_is_durable_before_the_fallback_follows() {
    let before = ["mark-unbootable b", "activate b", "mark-good b"];
    compare(effects(&before, "roll-back b"), &[&SECOND, &NAMED]);
}

#[test]
fn claim_a3_what_is_there_already_is_synced_and_looked_at_and_not_written() {
    let same = ["sync uboot.env", "read back uboot.env"];
    let named = ["read back bascule-fallback", "sync bascule-fallback", "read back bascule-fallback"];
    compare(effects(&["mark-unbootable b"], "mark-unbootable b"), &[&named, &same]);
}

/// Activates under a strace that spoils one call on the older copy; the call must end with this error.
fn activation_fails_when(spoil: &str, error: &str) {
    let dir = device(&["mark-unbootable b"]);
    let traced = Command::new("strace")
        .args(["-f", "-P"])
        .arg(dir.path().join("uboot-redund.env"))
        .args(["-e", "trace=pread64,pwrite64,fsync", "-e", &format!("inject={spoil}"), "-o", "/dev/stderr"])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", "traced_call"])
        .envs([(DIRECTORY, dir.path().to_str().unwrap()), (CALL, "activate b"), (ERROR, error)])
        .output();
    match traced {
        Err(error) => println!("skipped: strace is not installed: {error}"),
        Ok(output) if !String::from_utf8_lossy(&output.stderr).contains("INJECTED") => {
            println!("skipped: strace cannot spoil calls here: {}", String::from_utf8_lossy(&output.stderr));
        }
        Ok(output) => assert!(output.status.success(), "{spoil}: {}", String::from_utf8_lossy(&output.stdout)),
    }
}

#[test]
fn claim_a3_a_write_or_sync_or_read_back_that_fails_is_never_a_success() {
    activation_fails_when("pread64:error=EIO:when=1", "boot.read");
    activation_fails_when("pread64:retval=0:when=3", "boot.read-back");
    activation_fails_when("pread64:error=EIO:when=3", "boot.read");
    activation_fails_when("fsync:error=EIO:when=1", "boot.write");
    activation_fails_when("pwrite64:error=EIO:when=1", "boot.write");
    activation_fails_when("pwrite64:error=ENOSPC:when=1", "boot.write");
    activation_fails_when("pwrite64:retval=512:when=1", "boot.write");
}
