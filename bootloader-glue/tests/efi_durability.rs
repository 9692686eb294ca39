//! What the EFI backend asks of the system, call by call: one write for each variable, nothing truncated or renamed; and
//! what it makes of a firmware that refuses.
//!
//! Claims A3 and A4: the commit point is one write of one variable, which the firmware makes atomic.
//!
//! The test starts itself under `strace` and compares the whole ordered list of calls on the variables.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test stops where it fails"
)]

mod efi_rig;

use std::fs;
use std::path::Path;
use std::process::Command;

use bascule_boot::{BootBackend, EfiBackend};
use bascule_core::{BootedGroup, Group, Tries};
use efi_rig::{Firmware, MARK};

const DIRECTORY: &str = "BASCULE_TRACED_DIRECTORY";
const CALL: &str = "BASCULE_TRACED_CALL";
/// The code of the error that the traced call must end with, if any.
const ERROR: &str = "BASCULE_TRACED_ERROR";

fn call(dir: &Path, call: &str) -> Option<&'static str> {
    let (a, b) = (BootedGroup::proven(Group::A), BootedGroup::proven(Group::B));
    let backend = EfiBackend::new(dir.to_owned());
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

fn device(before: &[&str]) -> Firmware {
    let firmware = Firmware::factory();
    for name in before {
        assert_eq!(call(firmware.dir(), name), None);
    }
    firmware
}

/// The changes that one call makes, in order; `None` when there is no strace.
fn changes(before: &[&str], call: &str) -> Option<Vec<String>> {
    let firmware = device(before);
    let log = tempfile::NamedTempFile::new().unwrap();
    let traced = Command::new("strace")
        .args(["-f", "-y", "-e", "trace=openat,write,pwrite64,rename,renameat2,unlink,ftruncate,fsync,fdatasync", "-o"])
        .arg(log.path())
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", "traced_call"])
        .envs([(DIRECTORY, firmware.dir().to_str().unwrap()), (CALL, call)])
        .output();
    let output = match traced {
        Ok(output) if log.path().metadata().is_ok_and(|log| log.len() > 0) => output,
        _ => {
            println!("skipped: strace cannot trace here");
            return None;
        }
    };
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    let log = fs::read_to_string(log.path()).unwrap();
    Some(log.lines().filter_map(|line| change(line, firmware.dir())).collect())
}

/// One line of strace as a change, such as `write BootOrder 10`; reads are none.
fn change(line: &str, dir: &Path) -> Option<String> {
    let below = format!("{}/", dir.to_str().unwrap());
    let (_, call) = line.split_once(' ')?;
    let (name, rest) = call.trim_start().split_once('(')?;
    let file = rest.get(rest.find(&below)? + below.len()..)?.split(['"', '>', '-']).next()?;
    match name {
        "openat" if rest.contains("O_TRUNC") => Some(format!("truncate {file}")),
        "openat" if rest.contains("O_CREAT") => Some(format!("create {file}")),
        "openat" => None,
        "write" => Some(format!("write {file} {}", rest.rsplit(' ').next()?)),
        "fsync" | "fdatasync" => Some(format!("sync {file}")),
        _ => Some(format!("{name} {file}")),
    }
}

fn compare(seen: Option<Vec<String>>, expected: &[&str]) {
    if let Some(seen) = seen {
        assert_eq!(seen, expected);
    }
}

#[test]
fn claim_a3_a4_an_activation_is_one_write_of_boot_next_and_then_the_mark() {
    let marked = ["create BasculeTrial", "write BasculeTrial 11", "sync BasculeTrial"];
    let expected = [&["create BootNext", "write BootNext 6", "sync BootNext"][..], &marked].concat();
    compare(changes(&["mark-unbootable b"], "activate b"), &expected);
}

#[test]
fn claim_a3_a4_a_commit_is_one_write_of_the_order() {
    compare(changes(&["activate b"], "mark-good b"), &["write BootOrder 12", "sync BootOrder"]);
}

#[test]
fn claim_a3_a4_giving_a_trial_up_is_one_write_of_the_mark() {
    let given_up = ["write BasculeTrial 14", "sync BasculeTrial"];
    let before = ["activate b"];
    // Armed and not started yet: the firmware must forget it, too.
    let expected = [&given_up[..], &["unlink BootNext"]].concat();
    compare(changes(&before, "roll-back b"), &expected);
}

#[test]
fn claim_a3_a4_a_group_that_is_given_up_leaves_the_order_in_one_write() {
    let before = ["activate b", "mark-good b"];
    // On a disk, where the order does not become shorter by the write itself, it is cut after it.
    let expected = ["write BootOrder 10", "ftruncate BootOrder", "sync BootOrder"];
    compare(changes(&before, "mark-unbootable a"), &expected);
}

#[test]
fn claim_a3_a4_going_back_after_a_commit_is_the_mark_and_then_one_write_of_the_order() {
    let given_up = ["write BasculeTrial 14", "sync BasculeTrial"];
    // No start came between: the firmware has not taken the trial's `BootNext` away.
    let left = ["unlink BootNext", "write BootOrder 10", "ftruncate BootOrder", "sync BootOrder"];
    compare(changes(&["activate b", "mark-good b"], "roll-back b"), &[&given_up[..], &left].concat());
}

#[test]
fn what_is_so_already_is_not_written() {
    for (before, call) in [
        (&["activate b"][..], "activate b"),
        (&["activate b", "mark-good b"], "mark-good b"),
        (&[], "mark-unbootable b"),
        (&["activate b", "roll-back b"], "roll-back b"),
    ] {
        compare(changes(before, call), &[]);
    }
}

/// Makes a call under a strace that spoils calls on one variable; it must end with this error.
fn call_fails_when(call: &str, variable: &str, spoil: &str, error: &str) {
    let firmware = device(&[]);
    let path = if variable == "mark" { firmware.dir().join(MARK) } else { firmware.path(variable) };
    firmware.set_order(&[0x0003, 0x00AF]);
    firmware.set_next(0x00AF);
    firmware.set_mark("armed a");
    let before = firmware.files();
    let traced = Command::new("strace")
        .args(["-f", "-P"])
        .arg(&path)
        .args(["-e", "trace=read,write,unlink,openat,fsync", "-e", &format!("inject={spoil}"), "-o", "/dev/stderr"])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", "traced_call"])
        .envs([(DIRECTORY, firmware.dir().to_str().unwrap()), (CALL, call), (ERROR, error)])
        .output();
    match traced {
        Err(error) => println!("skipped: strace is not installed: {error}"),
        Ok(output) if !String::from_utf8_lossy(&output.stderr).contains("INJECTED") => {
            println!("skipped: strace cannot spoil calls here: {}", String::from_utf8_lossy(&output.stderr));
        }
        Ok(output) => {
            assert!(output.status.success(), "{spoil}: {}", String::from_utf8_lossy(&output.stdout));
            if spoil.starts_with("write:error") || spoil.starts_with("unlink") {
                let (name, held) = (path.file_name().unwrap().to_str().unwrap(), firmware.files());
                assert_eq!(held.get(name), before.get(name), "{spoil} changed the variable");
            }
        }
    }
}

#[test]
fn claim_a3_a_firmware_that_refuses_is_never_a_success() {
    for (errno, code) in [
        ("ENOSPC", "boot.efi-full"),
        ("EROFS", "boot.efi-refused"),
        ("EPERM", "boot.efi-refused"),
        ("EACCES", "boot.efi-refused"),
        ("ENODEV", "boot.efi-refused"),
        ("EIO", "boot.write"),
    ] {
        call_fails_when("mark-good b", "BootOrder", &format!("write:error={errno}:when=1"), code);
        call_fails_when("mark-unbootable b", "BootNext", &format!("unlink:error={errno}:when=1"), code);
    }
    call_fails_when("roll-back b", "mark", "write:error=ENOSPC:when=1", "boot.efi-full");
}

#[test]
fn claim_a3_a_write_that_is_short_or_lost_is_never_a_success() {
    call_fails_when("mark-good b", "BootOrder", "write:retval=3:when=1", "boot.write");
    call_fails_when("mark-good b", "BootOrder", "write:retval=8:when=1", "boot.read-back");
    call_fails_when("mark-good b", "BootOrder", "fsync:error=EIO:when=1", "boot.write");
    call_fails_when("mark-unbootable b", "BootNext", "unlink:retval=0:when=1", "boot.read-back");
    call_fails_when("mark-good b", "BootOrder", "read:error=EIO:when=1", "boot.read");
}

#[test]
fn a_file_system_that_cannot_sync_a_variable_is_no_error() {
    let firmware = device(&[]);
    let traced = Command::new("strace")
        .args(["-f", "-o", "/dev/null", "-e", "trace=fsync", "-e", "inject=fsync:error=EINVAL"])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", "traced_call"])
        .envs([(DIRECTORY, firmware.dir().to_str().unwrap()), (CALL, "activate b")])
        .output();
    match traced {
        Err(error) => println!("skipped: strace is not installed: {error}"),
        Ok(output) => assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout)),
    }
}

fn set_immutable(path: &Path, sign: char) -> bool {
    let run = Command::new("chattr").arg(format!("{sign}i")).arg(path).output();
    run.is_ok_and(|output| output.status.success())
}

fn is_immutable(path: &Path) -> bool {
    let output = Command::new("lsattr").arg(path).output().unwrap();
    String::from_utf8_lossy(&output.stdout).split(' ').next().unwrap().contains('i')
}

#[test]
fn the_immutable_flag_is_taken_off_for_a_change_and_put_back() {
    let firmware = device(&["activate b"]);
    let paths = [firmware.dir().join(MARK), firmware.path("BootOrder"), firmware.path("BootNext")];
    if !paths.iter().all(|path| set_immutable(path, '+')) {
        for path in &paths {
            set_immutable(path, '-');
        }
        println!("skipped: this file system has no immutable flag, or we may not set it");
        return;
    }
    let made = [call(firmware.dir(), "mark-good b"), call(firmware.dir(), "mark-unbootable a")];
    let flags = [is_immutable(&paths[1]), is_immutable(&paths[0])];
    let rolled_back = call(firmware.dir(), "roll-back b");
    let deleted = call(firmware.dir(), "activate b");
    assert!(paths.iter().filter(|path| path.exists()).all(|path| set_immutable(path, '-')));
    assert_eq!((made, flags), ([None, None], [true, true]));
    assert_eq!(rolled_back, Some("boot.no-good-group"));
    assert_eq!(deleted, Some("boot.no-good-group"));
    assert_eq!(firmware.order(), [efi_rig::B, efi_rig::DRIVE, efi_rig::OTHER]);
}
