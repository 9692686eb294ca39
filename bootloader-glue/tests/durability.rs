//! What the backend asks of the system, call by call: nothing is truncated, every write is synced before the next one
//! begins and read back past the page cache.
//!
//! Claims A3 and A4: the commit point is one write of `grubenv`, of which one sector changes, between two syncs.
//!
//! The test starts itself under `strace` and compares the whole ordered list of calls on the settings files.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test stops where it fails")]

use std::fs;
use std::path::Path;
use std::process::Command;

use bascule_boot::grub::{FACTORY_FALLBACK, FACTORY_GRUBENV};
use bascule_boot::{BootBackend, BootError, GrubBackend};
use bascule_core::{BootedGroup, Group, Tries};

const DIRECTORY: &str = "BASCULE_TRACED_DIRECTORY";
const CALL: &str = "BASCULE_TRACED_CALL";
/// The code of the error that the traced call must end with, if any.
const ERROR: &str = "BASCULE_TRACED_ERROR";

/// Not a test of its own: the traced half of the others.
#[test]
fn traced_call() {
    let (Ok(dir), Ok(call)) = (std::env::var(DIRECTORY), std::env::var(CALL)) else { return };
    let backend = GrubBackend::new(dir.into());
    let (a, b) = (BootedGroup::proven(Group::A), BootedGroup::proven(Group::B));
    let result = match call.as_str() {
        "mark-unbootable b" => backend.mark_unbootable(a.target()),
        "mark-unbootable a" => backend.mark_unbootable(b.target()),
        "activate b" => backend.activate(a.target(), Tries::DEFAULT),
        "mark-good a" => backend.mark_good(a),
        "mark-good b" => backend.mark_good(b),
        "roll-back b" => backend.roll_back(b),
        _ => panic!("no such call"),
    };
    let code = result.err().map(|error| error.code());
    assert_eq!(code, std::env::var(ERROR).ok().as_deref());
}

/// The sectors of 512 bytes that differ.
fn changed_sectors(old: &[u8], new: &[u8]) -> Vec<usize> {
    assert_eq!(old.len(), new.len(), "the file changed its length");
    let pairs = old.chunks(512).zip(new.chunks(512)).enumerate();
    pairs.filter(|(_, (old, new))| old != new).map(|(at, _)| at).collect()
}

/// An act on the backend.
type Call<'a> = dyn Fn() -> Result<(), BootError> + 'a;

#[test]
fn claim_a4_each_act_changes_one_sector_of_the_settings() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("grub.cfg"), "").unwrap();
    fs::write(dir.path().join("grubenv"), FACTORY_GRUBENV).unwrap();
    fs::write(dir.path().join("fallback"), FACTORY_FALLBACK).unwrap();
    let backend = GrubBackend::new(dir.path().to_owned());
    let (a, b) = (BootedGroup::proven(Group::A), BootedGroup::proven(Group::B));
    let look = || ["grubenv", "fallback"].map(|name| fs::read(dir.path().join(name)).unwrap());
    let acts: [(&str, &Call, usize); 8] = [
        ("mark-unbootable b", &|| backend.mark_unbootable(a.target()), 0),
        ("activate b", &|| backend.activate(a.target(), Tries::DEFAULT), 1),
        ("mark-good b", &|| backend.mark_good(b), 1),
        ("mark-unbootable a", &|| backend.mark_unbootable(b.target()), 1),
        ("activate a", &|| backend.activate(b.target(), Tries::ONE), 1),
        ("mark-good a", &|| backend.mark_good(a), 1),
        ("activate b", &|| backend.activate(a.target(), Tries::DEFAULT), 1),
        ("roll-back b", &|| backend.roll_back(b), 1),
    ];
    for (name, act, sectors) in acts {
        let [grubenv, fallback] = look();
        act().unwrap();
        let [new, new_fallback] = look();
        assert_eq!(changed_sectors(&grubenv, &new), vec![0; sectors], "{name}: only the first sector decides");
        assert!(changed_sectors(&fallback, &new_fallback).len() <= 1, "{name}");
    }
}

fn settings(order: &str, a: &str, b: &str) -> Vec<u8> {
    let mut bytes = format!("# GRUB Environment Block\norder={order}\ngroup_a={a}\ngroup_b={b}\n").into_bytes();
    bytes.resize(1024, b'#');
    bytes
}

/// The effects of one call on the files, in order; `None` when there is no strace.
fn effects(grubenv: Option<&[u8]>, fallback: Option<&[u8]>, call: &str) -> Option<Vec<String>> {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("grub.cfg"), "").unwrap();
    for (name, bytes) in [("grubenv", grubenv), ("fallback", fallback)] {
        if let Some(bytes) = bytes {
            fs::write(dir.path().join(name), bytes).unwrap();
        }
    }
    let log = dir.path().join("strace");
    let traced = Command::new("strace")
        .args([
            "-f",
            "-y",
            "-e",
            "trace=openat,pwrite64,pread64,write,fsync,fdatasync,rename,unlink,ftruncate,fadvise64",
        ])
        .arg("-o")
        .arg(&log)
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", "traced_call"])
        .env(DIRECTORY, dir.path())
        .env(CALL, call)
        .output();
    let Ok(output) = traced else {
        println!("skipped: strace is not installed");
        return None;
    };
    if !output.status.success() && fs::read_to_string(&log).unwrap_or_default().is_empty() {
        println!("skipped: strace cannot trace here: {}", String::from_utf8_lossy(&output.stderr));
        return None;
    }
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let log = fs::read_to_string(&log).unwrap();
    Some(log.lines().filter_map(|line| effect(line, dir.path())).collect())
}

/// One line of strace as an effect, such as `sync grubenv`; reads through the page cache are none.
fn effect(line: &str, dir: &Path) -> Option<String> {
    let dir = dir.to_str().unwrap();
    if !line.contains(dir) {
        return None;
    }
    let (_, call) = line.split_once(' ')?;
    let call = call.trim_start();
    let (name, rest) = call.split_once('(')?;
    let below = format!("{dir}/");
    let file = rest.find(&below).map_or("directory", |at| {
        let path = &rest[at + below.len()..];
        path.split(['"', '>']).next().unwrap()
    });
    match name {
        "openat" if ["O_TRUNC", "O_CREAT"].iter().any(|flag| rest.contains(flag)) => Some(format!("create {file}")),
        "openat" if rest.contains("O_DIRECT") && !rest.contains("O_DIRECTORY") => {
            Some(format!("read back {file}")).filter(|_| !rest.contains("EINVAL"))
        }
        "fadvise64" => Some(format!("read back {file}")),
        "pwrite64" => {
            assert!(rest.contains(", 1024, 0)"), "not one write of the whole block: {line}");
            Some(format!("write {file}"))
        }
        "write" => Some(format!("write {file}")),
        "fsync" | "fdatasync" => Some(format!("sync {file}")),
        "rename" => Some(format!("rename {file}")),
        "ftruncate" => Some(format!("truncate {file}")),
        _ => None,
    }
}

/// Where direct input is impossible, each read back begins with a sync of its own; that is not what these tests are about.
fn compare(seen: Option<Vec<String>>, expected: &[&str]) {
    let Some(mut seen) = seen else { return };
    seen.dedup();
    assert_eq!(seen, expected);
}

const IN_PLACE_GRUBENV: [&str; 3] = ["write grubenv", "sync grubenv", "read back grubenv"];
const IN_PLACE_FALLBACK: [&str; 3] = ["write fallback", "sync fallback", "read back fallback"];
/// The block is there already: it is synced and looked at, not written.
const SAME_FALLBACK: [&str; 3] = ["read back fallback", "sync fallback", "read back fallback"];

#[test]
fn claim_a3_a4_before_the_target_is_given_up_the_fallback_names_the_booted_group() {
    let seen = effects(Some(&settings("b a", "good", "good")), Some(FACTORY_FALLBACK), "mark-unbootable a");
    compare(seen, &[IN_PLACE_FALLBACK, IN_PLACE_GRUBENV].concat());
}

#[test]
fn claim_a3_a4_the_activation_is_one_write_of_the_existing_file() {
    let seen = effects(Some(FACTORY_GRUBENV), Some(FACTORY_FALLBACK), "activate b");
    compare(seen, &[SAME_FALLBACK, IN_PLACE_GRUBENV].concat());
}

#[test]
fn claim_a3_a4_a_commit_is_durable_before_the_fallback_follows() {
    let seen = effects(Some(&settings("b a", "good", "2")), Some(FACTORY_FALLBACK), "mark-good b");
    compare(seen, &[IN_PLACE_GRUBENV, IN_PLACE_FALLBACK].concat());
}

#[test]
fn claim_a3_a4_a_roll_back_is_durable_before_the_fallback_follows() {
    let mut fallback = b"# GRUB Environment Block\nfallback=b\n".to_vec();
    fallback.resize(1024, b'#');
    let seen = effects(Some(&settings("b a", "good", "good")), Some(&fallback), "roll-back b");
    compare(seen, &[IN_PLACE_GRUBENV, IN_PLACE_FALLBACK].concat());
}

#[test]
fn claim_a3_lost_settings_are_made_anew_under_a_temporary_name_with_the_fallback_in_place() {
    let anew = [
        "create grubenv.new",
        "write grubenv.new",
        "sync grubenv.new",
        "rename grubenv.new",
        "sync directory",
        "read back grubenv",
    ];
    let seen = effects(Some(b""), Some(FACTORY_FALLBACK), "mark-unbootable b");
    compare(seen, &[&SAME_FALLBACK[..], &anew].concat());
}

/// Activates under a strace that spoils one call on `grubenv`; the call must end with this error.
fn activation_fails_when(spoil: &str, error: &str) {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("grub.cfg"), "").unwrap();
    fs::write(dir.path().join("fallback"), FACTORY_FALLBACK).unwrap();
    fs::write(dir.path().join("grubenv"), FACTORY_GRUBENV).unwrap();
    let traced = Command::new("strace")
        .args(["-f", "-P"])
        .arg(dir.path().join("grubenv"))
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
    activation_fails_when("pread64:retval=0:when=2", "boot.read-back");
    activation_fails_when("pread64:error=EIO:when=2", "boot.read");
    activation_fails_when("fsync:error=EIO:when=1", "boot.write");
    activation_fails_when("pwrite64:error=EIO:when=1", "boot.write");
    activation_fails_when("pwrite64:error=ENOSPC:when=1", "boot.write");
    activation_fails_when("pwrite64:retval=512:when=1", "boot.write");
}
