//! Our reading of names and our simulator's order, held against the real `bootctl list`.
//!
//! `bootctl` wants the boot partition to be the root of a file system, so the folder is copied onto a tmpfs in a mount
//! namespace. Where `bootctl` is not installed, or no namespace can be had, the test says so and is skipped. Set
//! `BASCULE_BOOTCTL` to use another one than that of the path. The real loader in a virtual machine is not tried here.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test stops where it fails"
)]

mod sdboot_rig;

use std::fs;
use std::path::Path;
use std::process::Command;

use bascule_boot::BootBackend;
use bascule_boot::sdboot::names::{Kind, Mark, Owner, owner};
use bascule_boot::sdboot::simulator::{self, Renaming};
use bascule_core::{BootedGroup, Group, Tries};
use sdboot_rig::{Esp, contents};

const SCRIPT: &str = r#"mount -t tmpfs none "$2" && cp -r "$1/." "$2" && "$3" "--esp-path=$2" list --json=short"#;

/// What `bootctl` lists, in its order: the file, and the tries that are left.
fn bootctl(esp: &Path) -> Option<Vec<(String, Option<u64>)>> {
    let bootctl = std::env::var("BASCULE_BOOTCTL").unwrap_or_else(|_| "bootctl".into());
    if Command::new(&bootctl).arg("--version").output().is_err() {
        println!("skipped: bootctl is not installed");
        return None;
    }
    let place = tempfile::tempdir().unwrap();
    let mut command = Command::new("unshare");
    command.args(["--mount", "--map-root-user", "sh", "-c", SCRIPT, "sh"]).arg(esp).arg(place.path()).arg(bootctl);
    let output = command.env("SYSTEMD_RELAX_ESP_CHECKS", "1").output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    if !text.contains("\"id\"") {
        println!("skipped: bootctl cannot list here: {text}{}", String::from_utf8_lossy(&output.stderr));
        return None;
    }
    Some(text.split("{\"").filter(|part| part.contains("\"path\":")).map(entry).collect())
}

/// One entry of its JSON.
fn entry(text: &str) -> (String, Option<u64>) {
    let after = |key: &str| text.split_once(key).map(|(_, rest)| rest);
    let path = after("\"path\":\"").unwrap().split('"').next().unwrap();
    let left = after("\"triesLeft\":").map(|rest| rest.split(|c: char| !c.is_ascii_digit()).next().unwrap());
    (path.rsplit('/').next().unwrap().to_owned(), left.map(|left| left.parse().unwrap()))
}

/// The same files in the same order, and of each group the same tries.
fn compare(esp: &Esp, when: &str) -> bool {
    let Some(listed) = bootctl(&esp.root()) else { return false };
    let simulated = simulator::start(&esp.root(), Renaming::Fails).unwrap();
    let files: Vec<&String> = listed.iter().map(|(file, _)| file).collect();
    assert_eq!(files, simulated.listed.iter().map(|entry| &entry.file).collect::<Vec<_>>(), "{when}");
    for (file, left) in &listed {
        if let Owner::Ours(read) = owner(file, esp.kind) {
            let ours = if let Mark::Counted { left, .. } = read.mark { Some(u64::from(left)) } else { None };
            assert_eq!(*left, ours, "{when}: {file}");
        }
    }
    true
}

#[test]
fn bootctl_lists_what_the_simulator_lists_through_a_whole_life() {
    for kind in Kind::ALL {
        let esp = Esp::factory(kind);
        let (a, b) = (BootedGroup::proven(Group::A), BootedGroup::proven(Group::B));
        if !compare(&esp, "factory") {
            return;
        }
        let backend = esp.backend();
        backend.activate(a.target(), Tries::DEFAULT).unwrap();
        compare(&esp, "activated");
        for start in 1..=3 {
            assert_eq!(esp.start(Renaming::Works), Some(Group::B));
            compare(&esp, &format!("start {start}"));
        }
        backend.mark_good(b).unwrap();
        compare(&esp, "committed");
        backend.mark_unbootable(b.target()).unwrap();
        compare(&esp, "unbootable");
        backend.activate(b.target(), Tries::DEFAULT).unwrap();
        compare(&esp, "activated again");
        backend.roll_back(a).unwrap();
        compare(&esp, "rolled back");
    }
}

#[test]
fn bootctl_lists_ten_generations_as_the_simulator_does() {
    for kind in Kind::ALL {
        let (esp, suffix) = (Esp::factory(kind), kind.suffix());
        let marks = ["", "+3-0", "+0-3", "+2"];
        let names: Vec<String> = (5..15_usize)
            .map(|generation| {
                let group = if generation % 3 == 0 { "a" } else { "b" };
                format!("bascule-{generation}-{group}{}{suffix}", marks[generation % 4])
            })
            .collect();
        esp.set(&names.iter().map(String::as_str).collect::<Vec<_>>());
        if !compare(&esp, "ten generations") {
            return;
        }
    }
}

#[test]
fn bootctl_sorts_by_the_keys_before_the_name_as_the_simulator_does() {
    let esp = Esp::factory(Kind::Text);
    let text = String::from_utf8(contents(Kind::Text, Some(Group::A))).unwrap();
    let keys = [
        "",
        "sort-key x\n",
        "sort-key a\n",
        "sort-key a\nversion 2\n",
        "sort-key a\nversion 10\n",
        "sort-key a\nmachine-id 1\n",
        "version 99\n",
    ];
    for (index, keys) in keys.iter().enumerate() {
        fs::write(esp.entries().join(format!("bascule-{}-a.conf", index + 3)), format!("{text}{keys}")).unwrap();
    }
    compare(&esp, "keys");
}
