//! Every cut of every act, and of the reboot; and what the backend asks of the system, call by call.
//!
//! The second half starts itself under `strace` and compares the whole ordered list of calls on the file.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test stops where it fails"
)]

mod tryboot_rig;

use std::fs;
use std::path::Path;
use std::process::Command;

use bascule_boot::tryboot::ThisBoot;
use bascule_boot::tryboot::simulator::Flag;
use bascule_boot::{BootBackend, TrybootBackend};
use bascule_core::{BootStatus, BootedGroup, Group, Settings, Tries};
use tryboot_rig::{PARTITIONS, Pi};

const DIRECTORY: &str = "BASCULE_TRACED_DIRECTORY";
const CALL: &str = "BASCULE_TRACED_CALL";
/// The code of the error that the traced call must end with, if any.
const ERROR: &str = "BASCULE_TRACED_ERROR";

const BOTH: &[Group] = &[Group::A, Group::B];
const ONLY_A: &[Group] = &[Group::A];
const ONLY_B: &[Group] = &[Group::B];

/// A device's life: what is done, and which groups are complete meanwhile. `start` is a start as the agent's reboot asks
/// for it, `crash` one without a flag.
const LIFE: [(&str, &[Group]); 27] = [
    ("unbootable", ONLY_A),
    ("activate", BOTH),
    ("reboot", BOTH),
    ("start", BOTH),
    ("good", BOTH),
    ("unbootable", ONLY_B),
    ("activate", BOTH),
    // Cut before the reboot: nobody tried it. Cancelled, prepared anew.
    ("crash", BOTH),
    ("unbootable", BOTH),
    ("activate", BOTH),
    ("reboot", BOTH),
    ("start", BOTH),
    // On trial in a, and given up.
    ("back", BOTH),
    ("crash", BOTH),
    ("unbootable", ONLY_B),
    ("activate", BOTH),
    ("reboot", BOTH),
    ("start", BOTH),
    // On trial in a, which crashes.
    ("crash", BOTH),
    ("unbootable", BOTH),
    ("unbootable", ONLY_B),
    ("activate", BOTH),
    ("start", BOTH),
    ("good", BOTH),
    ("back", BOTH),
    ("crash", BOTH),
    ("good", BOTH),
];

#[test]
fn each_act_is_the_old_sector_or_the_new_one_and_both_start_a_complete_group() {
    let pi = Pi::factory();
    for (line, (word, complete)) in LIFE.into_iter().enumerate() {
        let (old, booted) = (pi.bytes(), pi.booted());
        let case = format!("line {line}, {word} in {booted}");
        match word {
            "start" => {
                let flag = pi.flag();
                // Whatever takes the flag away: the good group is started.
                let new = pi.bytes();
                for bytes in [&old, &new] {
                    pi.put(bytes);
                    let plain = bascule_boot::tryboot::simulator::start(bytes, Flag::Clear, PARTITIONS, |_| true);
                    assert_eq!(plain, bascule_boot::tryboot::simulator::Ending::Started(booted), "{case}");
                }
                assert_eq!(pi.start(flag), Some(booted.opposite()), "{case}");
                continue;
            }
            "crash" => {
                let started = pi.start(Flag::Clear).unwrap();
                assert!(complete.contains(&started), "{case}");
                continue;
            }
            _ => pi.perform(word).unwrap(),
        }
        let new = pi.bytes();
        assert_eq!((old.len(), new.len()), (512, 512), "{case}");
        for bytes in [&old, &new] {
            for flag in [Flag::Clear, Flag::Tryboot] {
                let ending = bascule_boot::tryboot::simulator::start(bytes, flag, PARTITIONS, |_| true);
                let bascule_boot::tryboot::simulator::Ending::Started(started) = ending else {
                    panic!("{case}: nothing")
                };
                assert!(complete.contains(&started), "{case}: {started}");
            }
            pi.put(bytes);
            assert_eq!(pi.view().settings, Settings::Intact, "{case}");
            // The same call again brings the new one.
            pi.perform(word).unwrap();
            assert!(pi.bytes() == new, "{case}: finished to something else");
        }
        // Garbage of the sector under write is seen as such, and an act that rebuilds does.
        pi.put(&[0xa5; 512]);
        assert_eq!(pi.view().settings, Settings::Damaged, "{case}");
        pi.perform("good").unwrap();
        assert_eq!((pi.view().settings, pi.view().primary), (Settings::Intact, booted), "{case}");
        assert_eq!(pi.view().status(booted.opposite()), BootStatus::Unbootable, "{case}");
        pi.put(&new);
    }
}

fn backend(dir: &Path) -> TrybootBackend {
    let [boot_id, bootloader] = ["boot_id", "bootloader"].map(|name| dir.join(name));
    TrybootBackend::new(dir, PARTITIONS, ThisBoot { boot_id, bootloader })
}

fn call(dir: &Path, call: &str) -> Option<&'static str> {
    let (a, b) = (BootedGroup::proven(Group::A), BootedGroup::proven(Group::B));
    let backend = backend(dir);
    let result = match call {
        "mark-unbootable b" => backend.mark_unbootable(a.target()),
        "activate b" => backend.activate(a.target(), Tries::ONE),
        "mark-good b" => backend.mark_good(b),
        "roll-back b" => backend.roll_back(b),
        "reboot a" => backend.reboot_argument(a).map(drop),
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

/// A device after these calls, without a device tree: any group may be the booted one.
fn device(before: &[&str]) -> Pi {
    let pi = Pi::factory();
    fs::remove_dir_all(pi.dir.path().join("bootloader")).unwrap();
    for name in before {
        assert_eq!(call(pi.dir.path(), name), None);
    }
    pi
}

/// What strace says of one call; `None` when there is no strace.
fn traced(pi: &Pi, call: &str, error: Option<&str>, more: &[&str]) -> Option<String> {
    let log = tempfile::NamedTempFile::new().unwrap();
    let traced = Command::new("strace")
        .args(["-f", "-y", "-P"])
        .arg(pi.file())
        .arg("-P")
        .arg(pi.dir.path())
        .args(["-e", "trace=openat,write,pwrite64,rename,renameat2,unlink,ftruncate,fsync,fdatasync,fadvise64"])
        .args(more)
        .arg("-o")
        .arg(log.path())
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", "traced_call"])
        .envs([(DIRECTORY, pi.dir.path().to_str().unwrap()), (CALL, call)])
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
fn effects(pi: &Pi, call: &str) -> Option<Vec<String>> {
    let log = traced(pi, call, None, &[])?;
    if log.contains("fadvise64") {
        println!("skipped: this file system has no direct input");
        return None;
    }
    let effect = |line: &str| -> Option<String> {
        let (name, rest) = line.split_once(' ')?.1.trim_start().split_once('(')?;
        match name {
            "openat" if ["O_TRUNC", "O_CREAT"].iter().any(|flag| rest.contains(flag)) => Some("create".to_owned()),
            "openat" if rest.contains("O_DIRECT") && !rest.contains("O_DIRECTORY") => Some("read".to_owned()),
            "openat" => None,
            "fsync" | "fdatasync" => Some("sync".to_owned()),
            "pwrite64" => {
                Some(format!("write {}", rest.rsplit_once("\", ").or(rest.rsplit_once("..., "))?.1.split(')').next()?))
            }
            other => Some(other.to_owned()),
        }
    };
    let mut seen: Vec<String> = log.lines().filter_map(effect).collect();
    seen.dedup();
    Some(seen)
}

#[test]
fn each_act_is_one_write_of_the_whole_file_where_it_lies() {
    for (before, act) in [
        (&[][..], "activate b"),
        (&["activate b"], "reboot a"),
        (&["activate b", "reboot a"], "mark-good b"),
        (&["activate b", "mark-good b"], "roll-back b"),
        (&["activate b"], "mark-unbootable b"),
    ] {
        let Some(seen) = effects(&device(before), act) else { return };
        let seen: Vec<&str> = seen.iter().map(String::as_str).collect();
        assert!(
            seen == ["write 512, 0", "sync", "read"] || seen == ["read", "write 512, 0", "sync", "read"],
            "{act}: {seen:?}"
        );
    }
}

#[test]
fn an_act_that_is_done_already_is_synced_all_the_same() {
    for (before, act) in [(&["activate b"][..], "activate b"), (&[], "mark-unbootable b")] {
        let Some(seen) = effects(&device(before), act) else { return };
        assert_eq!(seen, ["read", "sync", "read"], "{act}");
    }
}

#[test]
fn a_medium_that_fails_is_never_a_success_and_the_same_call_again_is() {
    for (spoil, error) in [
        ("pwrite64:error=EIO:when=1", "boot.write"),
        ("pwrite64:error=EROFS:when=1", "boot.write"),
        ("pwrite64:retval=512:when=1", "boot.read-back"),
        ("pwrite64:retval=7:when=1", "boot.write"),
        ("fsync:error=EIO:when=1", "boot.write"),
    ] {
        let pi = device(&[]);
        if traced(&pi, "activate b", Some(error), &["-e", &format!("inject={spoil}")]).is_none() {
            return;
        }
        assert_eq!(call(pi.dir.path(), "activate b"), None, "{spoil}");
        assert!(pi.text().ends_with("b=trial"), "{spoil}");
    }
}
