//! What the GPT backend asks of the system, call by call: the backup is written, synced and read back before the primary
//! copy is touched; and what it makes of a disk that fails.
//!
//! The test starts itself under `strace` and compares the whole ordered list of calls on the disk.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test stops where it fails"
)]

mod gpt_rig;

use std::fs;
use std::process::Command;

use bascule_boot::gpt::{SlotEntry, TableCopy};
use bascule_boot::{BootBackend, GptBackend};
use bascule_core::{BootedGroup, Group, Tries};
use gpt_rig::{Disk, SLOTS};

const IMAGE: &str = "BASCULE_TRACED_IMAGE";
const CALL: &str = "BASCULE_TRACED_CALL";
/// The GUIDs of the slots.
const GUIDS: &str = "BASCULE_TRACED_GUIDS";
/// The code of the error that the traced call must end with, if any.
const ERROR: &str = "BASCULE_TRACED_ERROR";

fn call(backend: &GptBackend, call: &str) -> Option<&'static str> {
    let (a, b) = (BootedGroup::proven(Group::A), BootedGroup::proven(Group::B));
    let result = match call {
        "mark-unbootable b" => backend.mark_unbootable(a.target()),
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
    let [Ok(image), Ok(name), Ok(guids)] = [IMAGE, CALL, GUIDS].map(std::env::var) else { return };
    let guids: Vec<&str> = guids.split(' ').collect();
    let slots = [0, 1].map(|slot| SlotEntry { number: SLOTS[slot], guid: guids[slot].to_owned() });
    assert_eq!(call(&GptBackend::new(image.into(), 512, slots), &name), std::env::var(ERROR).ok().as_deref());
}

fn device(before: &[&str]) -> Disk {
    let disk = Disk::factory(512);
    for name in before {
        assert_eq!(call(&disk.backend(), name), None);
    }
    disk
}

/// What strace says of one call; `None` when there is no strace.
fn traced(disk: &Disk, call: &str, error: Option<&str>, more: &[&str]) -> Option<String> {
    let log = tempfile::NamedTempFile::new().unwrap();
    let guids = disk.slots.each_ref().map(|slot| slot.guid.clone()).join(" ");
    let traced = Command::new("strace")
        .args(["-f", "-y", "-P"])
        .arg(disk.path())
        .args(["-e", "trace=openat,write,pwrite64,fsync,fdatasync,fadvise64,ftruncate,flock"])
        .args(more)
        .arg("-o")
        .arg(log.path())
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", "traced_call"])
        .envs([(IMAGE, disk.path().to_str().unwrap()), (CALL, call), (GUIDS, &guids)])
        .envs(error.map(|error| (ERROR, error)))
        .output();
    let output = match traced {
        Ok(output) if log.path().metadata().is_ok_and(|log| log.len() > 0) => output,
        _ => {
            println!("skipped: strace cannot trace here");
            return None;
        }
    };
    assert!(output.status.success(), "{call} {more:?}: {}", String::from_utf8_lossy(&output.stdout));
    Some(fs::read_to_string(log.path()).unwrap())
}

/// The effects of one call, in order.
fn effects(disk: &Disk, call: &str) -> Option<Vec<String>> {
    let log = traced(disk, call, None, &[])?;
    if log.contains("fadvise64") {
        println!("skipped: this file system has no direct input");
        return None;
    }
    let places = [TableCopy::Primary, TableCopy::Backup].map(|copy| disk.places(copy));
    let effect = |line: &str| -> Option<String> {
        let (name, rest) = line.split_once(' ')?.1.trim_start().split_once('(')?;
        match name {
            "openat" if ["O_TRUNC", "O_CREAT"].iter().any(|flag| rest.contains(flag)) => Some("create".to_owned()),
            "openat" if rest.contains("O_DIRECT") => Some("read".to_owned()),
            "openat" => None,
            "flock" => Some(format!("lock {}", rest.split([',', ')']).nth(1)?.trim())),
            "fsync" | "fdatasync" => Some("sync".to_owned()),
            "pwrite64" => {
                let (length, offset) = rest.rsplit_once(')')?.0.rsplit_once(", ").map(|(head, offset)| {
                    (head.rsplit(", ").next().unwrap().to_owned(), offset.parse::<u64>().unwrap())
                })?;
                let [(primary, _), (backup, entries)] = places;
                let place = match offset {
                    _ if offset == primary => "primary header".to_owned(),
                    _ if offset == backup => "backup header".to_owned(),
                    _ if offset >= entries => format!("backup entries {}", (offset - entries) / 512),
                    _ => format!("primary entries {}", (offset - 1024) / 512),
                };
                Some(format!("write {place} {length}"))
            }
            other => Some(other.to_owned()),
        }
    };
    let mut seen: Vec<String> = log.lines().filter_map(effect).collect();
    seen.dedup();
    Some(seen)
}

const ONE_COMMIT_POINT: [&str; 11] = [
    "lock LOCK_EX|LOCK_NB",
    "read",
    // Entries 1 to 4 share a sector.
    "write backup entries 0 512",
    "write backup header 512",
    "sync",
    "read",
    "write primary entries 0 512",
    "write primary header 512",
    "sync",
    "read",
    "lock LOCK_UN",
];

#[test]
fn each_act_writes_the_backup_durably_before_the_primary_copy() {
    for (before, act) in [
        (&[][..], "activate b"),
        (&["activate b"], "mark-good b"),
        (&["activate b"], "roll-back b"),
        (&["activate b"], "mark-unbootable b"),
    ] {
        let Some(seen) = effects(&device(before), act) else { return };
        assert_eq!(seen, ONE_COMMIT_POINT, "{act}");
    }
}

#[test]
fn an_act_that_is_done_already_is_synced_all_the_same() {
    for (before, act) in [(&["activate b"][..], "activate b"), (&[], "mark-unbootable b")] {
        let Some(seen) = effects(&device(before), act) else { return };
        assert_eq!(seen, ["lock LOCK_EX|LOCK_NB", "read", "sync", "lock LOCK_UN"], "{act}");
    }
}

#[test]
fn a_primary_copy_that_was_cut_off_is_whole_before_the_backup_is_touched() {
    let disk = device(&[]);
    let (_, old) = disk.copy(TableCopy::Primary);
    call(&disk.backend(), "activate b");
    // The header reached the disk, the entries did not: the backup holds the new choice.
    disk.write(disk.places(TableCopy::Primary).1, &old);
    let Some(seen) = effects(&disk, "mark-unbootable b") else { return };
    let repair = ["lock LOCK_EX|LOCK_NB", "read", "write primary entries 0 512", "sync", "read"];
    assert_eq!(seen, [&repair[..], &ONE_COMMIT_POINT[2..]].concat());
}

#[test]
fn a_disk_that_fails_is_never_a_success_and_the_same_call_again_is() {
    let writes = (1..=4).flat_map(|when| {
        [
            (format!("pwrite64:error=EIO:when={when}"), "boot.write"),
            (format!("pwrite64:error=ENOSPC:when={when}"), "boot.write"),
            (format!("pwrite64:retval=512:when={when}"), "boot.read-back"),
            (format!("pwrite64:retval=500:when={when}"), "boot.read-back"),
        ]
    });
    let syncs = (1..=2).map(|when| (format!("fsync:error=EIO:when={when}"), "boot.write"));
    let locked = [("flock:error=EAGAIN".to_owned(), "boot.write"), ("flock:error=ENOLCK".to_owned(), "boot.write")];
    for (spoil, error) in writes.chain(syncs).chain(locked) {
        let disk = device(&[]);
        if traced(&disk, "activate b", Some(error), &["-e", &format!("inject={spoil}")]).is_none() {
            return;
        }
        assert_eq!(call(&disk.backend(), "activate b"), None, "{spoil}");
        let whole = device(&["activate b"]);
        assert_eq!(disk.attributes(4), whole.attributes(4), "{spoil}");
        let [(_, primary), (_, backup)] = disk.table();
        assert!(primary == backup, "{spoil}");
    }
}
