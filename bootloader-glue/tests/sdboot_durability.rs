//! What the backend asks of the system, call by call: one rename that replaces nothing, then a sync of the directory.
//!
//! Claims A3 and A4: the commit point is one rename between two syncs.
//!
//! The test starts itself under `strace` and compares the whole ordered list of calls that change the boot partition.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test stops where it fails"
)]

mod sdboot_rig;

use std::process::Command;

use bascule_boot::sdboot::names::Kind;
use bascule_boot::{BootBackend, SdBootBackend};
use bascule_core::{BootedGroup, Group, Tries};
use sdboot_rig::Esp;

const ROOT: &str = "BASCULE_TRACED_ROOT";
const CALL: &str = "BASCULE_TRACED_CALL";
const ERROR: &str = "BASCULE_TRACED_ERROR";

/// Not a test of its own: the traced half of the others.
#[test]
fn traced_call() {
    let (Ok(root), Ok(call)) = (std::env::var(ROOT), std::env::var(CALL)) else { return };
    let backend = SdBootBackend::new(root.into(), Kind::Text);
    let (a, b) = (BootedGroup::proven(Group::A), BootedGroup::proven(Group::B));
    let result = match call.as_str() {
        "mark-unbootable b" => backend.mark_unbootable(a.target()),
        "activate b" => backend.activate(a.target(), Tries::DEFAULT),
        "mark-good b" => backend.mark_good(b),
        "roll-back b" => backend.roll_back(b),
        _ => panic!("no such call"),
    };
    assert_eq!(result.err().map(|error| error.code()), std::env::var(ERROR).ok().as_deref());
}

/// Makes a call under strace with these options; its log, or `None` where there is no strace.
fn traced(esp: &Esp, call: &str, error: Option<&str>, options: &[&str]) -> Option<String> {
    let log = esp.root().join("strace");
    let mut command = Command::new("strace");
    command.args(["-f", "-y", "-e", "trace=openat,fsync,fdatasync,rename,renameat,renameat2,unlink,unlinkat"]);
    command.args(options).arg("-o").arg(&log).arg(std::env::current_exe().unwrap()).args(["--exact", "traced_call"]);
    command.env(ROOT, esp.root()).env(CALL, call);
    command.envs(error.map(|error| (ERROR, error)));
    let Ok(output) = command.output() else {
        println!("skipped: strace is not installed");
        return None;
    };
    let log = std::fs::read_to_string(&log).unwrap_or_default();
    if log.is_empty() {
        println!("skipped: strace cannot trace here: {}", String::from_utf8_lossy(&output.stderr));
        return None;
    }
    assert!(output.status.success(), "{call}: {}", String::from_utf8_lossy(&output.stdout));
    Some(log)
}

/// The effects of one call, in order.
fn effects(names: &[&str], call: &str) -> Option<Vec<String>> {
    let esp = Esp::factory(Kind::Text);
    esp.set(names);
    let log = traced(&esp, call, None, &[])?;
    let entries = format!("{}", esp.entries().display());
    let effect = |line: &str| -> Option<String> {
        let (name, rest) = line.split_once(' ')?.1.trim_start().split_once('(')?;
        let below = format!("{entries}/");
        let mut files = rest.split(&below).skip(1).map(|part| part.split(['"', '>']).next().unwrap());
        match name {
            _ if !rest.contains(&entries) => None,
            "openat" if rest.contains("O_CREAT") || rest.contains("O_TRUNC") => {
                Some(format!("create {}", files.next()?))
            }
            "openat" => None,
            "fsync" => Some(format!("sync {}", files.next().unwrap_or("directory"))),
            "renameat2" => {
                assert!(rest.contains("RENAME_NOREPLACE"), "{line}");
                Some(format!("rename {} {}", files.next()?, files.next()?))
            }
            other => Some(format!("{other} {}", files.next().unwrap_or_default())),
        }
    };
    Some(log.lines().filter_map(effect).collect())
}

fn compare(seen: Option<Vec<String>>, expected: &[&str]) {
    if let Some(seen) = seen {
        assert_eq!(seen, expected);
    }
}

#[test]
fn claim_a3_a4_each_act_is_one_rename_that_replaces_nothing_and_a_sync_of_the_file_and_the_directory() {
    let (a, sync) = ("bascule-4-a.conf", "sync directory");
    compare(
        effects(&[a, "bascule-3-b.conf"], "mark-unbootable b"),
        &["rename bascule-3-b.conf bascule-3-b.off", "sync bascule-3-b.off", sync, sync],
    );
    compare(
        effects(&[a, "bascule-3-b.off"], "activate b"),
        &["rename bascule-3-b.off bascule-5-b+3-0.conf", "sync bascule-5-b+3-0.conf", sync, sync],
    );
    compare(
        effects(&[a, "bascule-5-b+1-2.conf"], "mark-good b"),
        &["rename bascule-5-b+1-2.conf bascule-5-b.conf", "sync bascule-5-b.conf", sync, sync],
    );
    compare(
        effects(&[a, "bascule-5-b+1-2.conf"], "roll-back b"),
        &["rename bascule-5-b+1-2.conf bascule-5-b.off", "sync bascule-5-b.off", sync, sync],
    );
}

#[test]
fn claim_a3_an_act_that_is_done_already_is_synced_all_the_same() {
    let names = ["bascule-4-a.conf", "bascule-3-b.off"];
    compare(effects(&names, "mark-unbootable b"), &["sync bascule-4-a.conf", "sync bascule-3-b.off", "sync directory"]);
}

#[test]
fn claim_a3_a_lost_entry_is_written_and_synced_under_another_name_before_it_is_listed() {
    compare(
        effects(&["bascule-4-a.conf"], "mark-good b"),
        &[
            "create bascule-new-0.tmp",
            "sync bascule-new-0.tmp",
            "rename bascule-new-0.tmp bascule-0-b.conf",
            "sync bascule-0-b.conf",
            "sync directory",
            "rename bascule-4-a.conf bascule-4-a.off",
            "sync bascule-4-a.off",
            "sync directory",
            "sync directory",
        ],
    );
}

#[test]
fn a_left_over_of_a_creation_that_was_cut_off_is_not_touched_it_may_have_the_clusters_of_an_entry() {
    let Some(seen) = effects(&["bascule-4-a.conf", "bascule-new.tmp", "bascule-new-0.tmp"], "mark-good b") else {
        return;
    };
    assert_eq!(
        seen[..2],
        ["create bascule-new-0.tmp", "create bascule-new-1.tmp"],
        "the first is refused: it is there"
    );
    assert!(!seen.iter().any(|effect| effect.starts_with("unlink")), "{seen:?}");
    assert!(seen.contains(&"rename bascule-new-1.tmp bascule-0-b.conf".to_owned()), "{seen:?}");
}

#[test]
fn a_creation_that_fails_takes_its_own_file_away_and_no_other() {
    for _ in 0..2 {
        let esp = Esp::factory(Kind::Text);
        esp.set(&["bascule-4-a.conf", "bascule-new-0.tmp"]);
        let full = ["-e", "inject=fsync:error=ENOSPC:when=1"];
        if traced(&esp, "mark-good b", Some("boot.write"), &full).is_none() {
            return;
        }
        assert_eq!(esp.ours(), ["bascule-4-a.conf", "bascule-new-0.tmp"]);
    }
}

#[test]
fn claim_a3_a_rename_or_a_sync_that_fails_is_never_a_success() {
    let spoiled = [
        ("renameat2:error=EIO:when=1", "boot.write", false),
        ("renameat2:error=EEXIST:when=1", "boot.write", false),
        ("renameat2:retval=0:when=1", "boot.read-back", false),
        ("fsync:error=EIO:when=1", "boot.write", true),
        ("fsync:error=EIO:when=2", "boot.write", true),
        ("fsync:error=EIO:when=3", "boot.write", true),
    ];
    for (spoil, error, is_renamed) in spoiled {
        let esp = Esp::factory(Kind::Text);
        if traced(&esp, "activate b", Some(error), &["-e", &format!("inject={spoil}")]).is_none() {
            return;
        }
        assert_eq!(esp.ours().contains(&"bascule-2-b+3-0.conf".to_owned()), is_renamed, "{spoil}");
        // The same call again.
        esp.backend().activate(BootedGroup::proven(Group::A).target(), Tries::DEFAULT).unwrap();
        assert_eq!(esp.ours(), ["bascule-1-a.conf", "bascule-2-b+3-0.conf"]);
    }
}

#[test]
fn a_file_system_without_the_flag_gets_the_same_rename() {
    let esp = Esp::factory(Kind::Text);
    if traced(&esp, "activate b", None, &["-e", "inject=renameat2:error=EINVAL:when=1"]).is_some() {
        assert_eq!(esp.ours(), ["bascule-1-a.conf", "bascule-2-b+3-0.conf"]);
    }
}
