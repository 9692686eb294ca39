//! Single claims about the loader's side: odd counter values, and two bad groups.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test stops where it fails"
)]

use std::fs;
use std::path::Path;

use bascule_boot::grub::simulator::{self, Ending, Saving};
use bascule_boot::grub::{FACTORY_FALLBACK, SCRIPT};
use bascule_boot::{BootBackend, GrubBackend};
use bascule_core::{BootStatus, BootView, BootedGroup, Group, Settings};

/// Lines after the magic one; `tests/real_grub.rs` holds the simulator against GRUB itself with the same ones.
fn block(lines: &str) -> Vec<u8> {
    let mut bytes = format!("# GRUB Environment Block\n{lines}").into_bytes();
    bytes.resize(1024, b'#');
    bytes
}

/// What stands for the counter of `b`, as whole lines.
fn odd_counters() -> Vec<String> {
    let values = ["", "2 ", " 2", "010", "-1", "2147483648", "4294967297", "0x1", "３", "1e0", "+1", "1.0", "00", "10"];
    let mut lines: Vec<String> = values.iter().map(|value| format!("group_b={value}\n")).collect();
    lines.extend(["", "group_b\n", "group_b=2\ngroup_b=3\n", "group_b=3\ngroup_b=0\n"].map(str::to_owned));
    lines.extend(["0", "1", "2", "3", "9", "good", "bad"].map(|value| format!("group_b={value}\n")));
    lines
}

fn with_settings(bytes: &[u8]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("grub.cfg"), SCRIPT).unwrap();
    fs::write(dir.path().join("grubenv"), bytes).unwrap();
    fs::write(dir.path().join("fallback"), FACTORY_FALLBACK).unwrap();
    dir
}

fn view(dir: &Path) -> BootView {
    GrubBackend::new(dir.to_owned()).view(BootedGroup::proven(Group::A)).unwrap()
}

/// Which group a loader starts that does what the view says: the groups in order, and nothing that may not be started.
fn promised(view: &BootView) -> Group {
    let startable = |group: &Group| matches!(view.status(*group), BootStatus::Good | BootStatus::Trial { .. });
    [view.primary, view.primary.opposite()].into_iter().find(startable).unwrap()
}

#[test]
fn claim_g15_an_odd_counter_gets_the_same_verdict_from_the_agent_and_from_the_loader() {
    for lines in odd_counters() {
        let bytes = block(&format!("order=b a\ngroup_a=good\n{lines}"));
        let dir = with_settings(&bytes);
        let before = view(dir.path());
        let start = simulator::start(Some(&bytes), Some(FACTORY_FALLBACK), |_| true, Saving::Works);
        let Ending::Started(group) = start.ending else { panic!("{lines:?}: nothing was started") };
        let after = with_settings(&start.grubenv.clone().unwrap());
        match (before.settings, before.status(Group::B)) {
            // GRUB counts one line of two down and reads the other: it does not start what it cannot count.
            (Settings::Damaged, BootStatus::Trial { .. }) => assert_eq!(group, Group::A, "{lines:?}"),
            (_, BootStatus::Trial { tries_left }) => {
                assert_eq!(group, Group::B, "{lines:?}");
                let left = match tries_left - 1 {
                    0 => BootStatus::Exhausted,
                    left => BootStatus::Trial { tries_left: left },
                };
                assert_eq!(view(after.path()).status(Group::B), left, "{lines:?}");
            }
            _ => {
                assert_eq!(group, promised(&before), "{lines:?}: {before:?}");
                assert_eq!(start.grubenv.as_deref(), Some(&bytes[..]), "{lines:?}: nothing was to be counted");
            }
        }
    }
}

#[test]
fn claim_g15_only_one_digit_is_a_counter_and_only_the_word_good_is_good() {
    for lines in odd_counters() {
        let dir = with_settings(&block(&format!("order=b a\ngroup_a=good\n{lines}")));
        let read = view(dir.path());
        let (settings, status) = match lines.as_str() {
            "group_b=good\n" => (Settings::Intact, BootStatus::Good),
            "group_b=0\n" => (Settings::Intact, BootStatus::Exhausted),
            "group_b=1\n" | "group_b=2\n" | "group_b=3\n" | "group_b=9\n" => {
                let digit = lines.as_bytes()["group_b=".len()] - b'0';
                (Settings::Intact, BootStatus::Trial { tries_left: digit })
            }
            "group_b=\n" | "" | "group_b\n" => (Settings::Damaged, BootStatus::Unbootable),
            // As GRUB reads it: the last of two lines.
            "group_b=2\ngroup_b=3\n" => (Settings::Damaged, BootStatus::Trial { tries_left: 3 }),
            "group_b=3\ngroup_b=0\n" => (Settings::Damaged, BootStatus::Exhausted),
            _ => (Settings::Intact, BootStatus::Unbootable),
        };
        assert_eq!((read.settings, read.status(Group::B)), (settings, status), "{lines:?}");
        assert_eq!(read.status(Group::A), BootStatus::Good, "{lines:?}");
    }
}

#[test]
fn claim_g12_whatever_the_settings_say_two_bad_groups_end_at_the_recovery_menu() {
    for lines in odd_counters() {
        for order in ["a b", "b a"] {
            for a in ["good", "3", "0", "bad"] {
                let mut bytes = block(&format!("order={order}\ngroup_a={a}\n{lines}"));
                // Neither kernel loads: one start, and GRUB waits.
                let start = simulator::start(Some(&bytes), Some(FACTORY_FALLBACK), |_| false, Saving::Works);
                assert_eq!(start.ending, Ending::Recovery, "{order} {a} {lines:?}");
                // Neither is good, and both load and are started anew at once: the counters end it.
                let mut starts = 0;
                loop {
                    let start = simulator::start(Some(&bytes), Some(FACTORY_FALLBACK), |_| true, Saving::Works);
                    let uncounted = start.grubenv.as_deref() == Some(&bytes[..]);
                    if start.ending == Ending::Recovery || uncounted {
                        break;
                    }
                    bytes = start.grubenv.unwrap();
                    starts += 1;
                    assert!(starts <= 18, "{order} {a} {lines:?} starts again and again");
                }
            }
        }
    }
}
