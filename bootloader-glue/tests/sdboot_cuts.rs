//! Every cut of every act: before, between and after its durable steps, and what FAT can leave of a rename.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test stops where it fails"
)]

mod sdboot_rig;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;

use bascule_boot::sdboot::names::Kind;
use bascule_boot::sdboot::simulator::Renaming;
use bascule_boot::sdboot::{Act, Step};
use bascule_boot::{BootBackend, BootError, SdBootBackend};
use bascule_core::{BootStatus, BootedGroup, Group, Settings, Tries};
use sdboot_rig::{Esp, FOREIGN};

const A: &[Group] = &[Group::A];
const B: &[Group] = &[Group::B];
const BOTH: &[Group] = &[Group::A, Group::B];

fn act(booted: Group, word: &str) -> Act {
    let booted = BootedGroup::proven(booted);
    match word {
        "unbootable" => Act::MarkUnbootable(booted.target()),
        "good" => Act::MarkGood(booted),
        "back" => Act::RollBack(booted),
        tries => Act::Activate(booted.target(), Tries::new(tries.parse().unwrap()).unwrap()),
    }
}

fn perform(backend: &SdBootBackend, act: Act) -> Result<(), BootError> {
    match act {
        Act::MarkUnbootable(target) => backend.mark_unbootable(target),
        Act::Activate(target, tries) => backend.activate(target, tries),
        Act::MarkGood(booted) => backend.mark_good(booted),
        Act::RollBack(booted) => backend.roll_back(booted),
    }
}

/// A device's life: who is booted, what is done, which groups are complete while it is done.
fn life() -> Vec<(Group, &'static str, &'static [Group])> {
    let (a, b) = (Group::A, Group::B);
    vec![
        (a, "unbootable", A),
        (a, "3", BOTH),
        (b, "good", BOTH),
        (b, "unbootable", BOTH),
        (b, "unbootable", B),
        (b, "2", BOTH),
        (a, "back", BOTH),
        (b, "unbootable", B),
        (b, "1", BOTH),
        (a, "good", BOTH),
        (a, "back", BOTH),
        (b, "good", BOTH),
        (b, "9", BOTH),
        (b, "unbootable", BOTH),
        (b, "3", BOTH),
        (b, "good", BOTH),
    ]
}

/// The names by the file behind them.
fn files(esp: &Esp) -> BTreeMap<u64, String> {
    let named = |name: String| (fs::metadata(esp.entries().join(&name)).unwrap().ino(), name);
    esp.names().into_iter().map(named).collect()
}

#[test]
fn claim_a4_an_act_on_intact_names_is_one_rename_to_a_new_name_and_leaves_every_other_file_alone() {
    for kind in Kind::ALL {
        let esp = Esp::factory(kind);
        let mut renames = 0;
        for (booted, word, _) in life() {
            let (before, names) = (files(&esp), esp.names());
            let steps = esp.backend().steps(act(booted, word)).unwrap();
            assert!(steps.len() <= 1, "{word} in {booted}: {steps:?}");
            perform(&esp.backend(), act(booted, word)).unwrap();
            let after = files(&esp);
            assert!(before.keys().eq(after.keys()), "{word} in {booted}: files came or went");
            let changed: Vec<_> = after.iter().filter(|(file, name)| before[file] != **name).collect();
            assert_eq!(changed.len(), steps.len(), "{word} in {booted}");
            assert!(changed.iter().all(|(_, name)| !names.contains(*name)), "{word} in {booted}: over a name that was");
            renames += changed.len();
        }
        assert_eq!(renames, 12, "acts that change something");
    }
}

#[test]
fn whatever_a_cut_leaves_of_a_rename_a_complete_group_starts_and_the_next_look_repairs_it() {
    for kind in Kind::ALL {
        let mut esp = Esp::factory(kind);
        for (booted, word, complete) in life() {
            let before = esp.ours();
            for step in esp.backend().steps(act(booted, word)).unwrap() {
                let Step::Rename { from, to } = &step else { panic!("{step:?}") };
                let rest: Vec<&str> = before.iter().map(String::as_str).filter(|name| name != from).collect();
                let states = [vec![from.as_str()], vec![to.as_str()], vec![from.as_str(), to.as_str()], vec![]];
                for left in states {
                    esp = cut(kind, &[rest.clone(), left.clone()].concat(), complete);
                    // The same act again, by whoever is there to make it.
                    let again = perform(&esp.backend(), act(booted, word));
                    let lost = left.is_empty() && (word.parse::<u8>().is_ok() || word == "back");
                    assert!(again.is_ok() || lost, "{word} in {booted} with {left:?}: {again:?}");
                }
            }
            esp = cut(kind, &before.iter().map(String::as_str).collect::<Vec<_>>(), complete);
            perform(&esp.backend(), act(booted, word)).unwrap();
        }
    }
}

/// A device with these names starts a complete group, and either group's next look makes them intact.
fn cut(kind: Kind, names: &[&str], complete: &[Group]) -> Esp {
    for booted in complete {
        let esp = Esp::factory(kind);
        esp.set(names);
        let started = esp.start(Renaming::Works).unwrap();
        assert!(complete.contains(&started), "{names:?} started {started}, complete are {complete:?}");
        esp.set(names);
        let booted = BootedGroup::proven(*booted);
        let view = esp.backend().view(booted).unwrap();
        if view.settings == Settings::Damaged {
            esp.backend().mark_unbootable(booted.target()).unwrap();
            assert_eq!(esp.backend().view(booted).unwrap().settings, Settings::Intact, "{names:?}");
            assert_eq!(esp.start(Renaming::Works), Some(booted.group()), "{names:?} after the repair");
        } else {
            assert_eq!(started, view.primary, "{names:?}: {view:?}");
        }
    }
    let esp = Esp::factory(kind);
    esp.set(names);
    esp
}

/// Directories that no act leaves behind, of two complete groups.
fn damaged(kind: Kind) -> Vec<Vec<String>> {
    let rows = [
        "",
        "4-a",
        "5-b+2-1",
        "4-a.off",
        "4-a 5-b 6-b+1-0",
        "4-a 4-a+2-1",
        "4-a 5-b+12-0",
        "4-a 5-b+2x",
        "4-a 5-b+2-",
        "4-a 5-b+99999999999-1",
        "99999999-a 5-b",
        "4-a 999999999-b",
        "4-a 5-b 9",
        "4-a 5-c",
        "4-a 5-b.off 6-x+3-0 7-y 8-z",
        "4-a+0-3 5-b 5-b+0-3",
        "4-a 4-a.off 5-a 5-a.off",
    ];
    let name = |word: &str| match word.strip_suffix(".off") {
        Some(_) => format!("bascule-{word}"),
        None => format!("bascule-{word}{}", kind.suffix()),
    };
    rows.iter().map(|row| row.split_whitespace().map(name).collect()).collect()
}

#[test]
fn between_the_steps_of_a_rebuild_something_complete_starts_and_at_its_end_the_booted_group() {
    for kind in Kind::ALL {
        for names in damaged(kind) {
            for booted in Group::ALL {
                for word in ["unbootable", "good"] {
                    rebuild_in_every_cut(kind, &names, booted, word);
                }
            }
        }
    }
}

fn rebuild_in_every_cut(kind: Kind, names: &[String], booted: Group, word: &str) {
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let esp = Esp::factory(kind);
    esp.set(&names);
    let told = BootedGroup::proven(booted);
    assert_eq!(esp.backend().view(told).unwrap().settings, Settings::Damaged, "{names:?}");
    let steps = esp.backend().steps(act(booted, word)).unwrap();
    let started = esp.start(Renaming::Fails);
    for made in 0..=steps.len() {
        let esp = Esp::factory(kind);
        esp.set(&names);
        let has_foreign =
            |esp: &Esp| FOREIGN.iter().all(|name| esp.entries().join(format!("{name}{}", kind.suffix())).exists());
        for step in &steps[..made] {
            let (Step::Rename { to, .. } | Step::Create { to, .. }) = step;
            assert!(!esp.entries().join(to).exists(), "{names:?}: {step:?} over an existing file");
            esp.backend().take(step).unwrap();
            assert!(esp.start(Renaming::Fails).is_some(), "{names:?} after {step:?}");
        }
        // A cut here: the next look goes on, and comes to the same end.
        perform(&esp.backend(), act(booted, word)).unwrap();
        let view = esp.backend().view(told).unwrap();
        assert_eq!((view.settings, view.primary), (Settings::Intact, booted), "{names:?} {word} cut after {made}");
        assert_eq!(view.status(booted), BootStatus::Good, "{names:?}");
        if word == "unbootable" {
            assert_eq!(view.status(booted.opposite()), BootStatus::Unbootable, "{names:?}");
        }
        assert_eq!(esp.start(Renaming::Works), Some(booted), "{names:?} started {started:?} before");
        assert!(has_foreign(&esp), "{names:?}: an entry of others is gone");
    }
}

#[test]
fn a_commit_whose_rename_left_both_names_keeps_the_opposite_group_good() {
    for kind in Kind::ALL {
        let (esp, suffix) = (Esp::factory(kind), kind.suffix());
        esp.set(&[
            &format!("bascule-4-a{suffix}"),
            &format!("bascule-5-b{suffix}"),
            &format!("bascule-5-b+2-1{suffix}"),
        ]);
        let booted = BootedGroup::proven(Group::B);
        esp.backend().mark_good(booted).unwrap();
        let view = esp.backend().view(booted).unwrap();
        assert_eq!((view.settings, view.a, view.b), (Settings::Intact, BootStatus::Good, BootStatus::Good));
        assert_eq!(esp.ours().len(), 3, "nothing was deleted");
    }
}

#[test]
fn a_lost_entry_without_a_copy_is_an_error_and_changes_nothing() {
    let esp = Esp::factory(Kind::Text);
    fs::remove_file(esp.root().join("bascule/b.conf")).unwrap();
    esp.set(&["bascule-1-a.conf"]);
    let booted = BootedGroup::proven(Group::B);
    assert_eq!(esp.backend().mark_good(booted).unwrap_err().code(), "boot.beyond-repair");
    assert_eq!(esp.ours(), ["bascule-1-a.conf"]);
    // The group that is booted from its own entry goes on with an empty file for the other one, which is never activated.
    let booted = BootedGroup::proven(Group::A);
    esp.backend().mark_unbootable(booted.target()).unwrap();
    assert_eq!(esp.ours(), ["bascule-0-b.off", "bascule-1-a.conf"]);
    assert_eq!(esp.backend().activate(booted.target(), Tries::DEFAULT).unwrap_err().code(), "boot.beyond-repair");
    assert_eq!(esp.ours(), ["bascule-0-b.off", "bascule-1-a.conf"]);
}
