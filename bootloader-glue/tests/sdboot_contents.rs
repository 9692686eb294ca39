//! Entries that hold nothing: what a cut left of a file, or somebody's editor. The view sees them, a rebuild makes them anew
//! from what was kept, and at no cut of it does the loader have less to start than before.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test stops where it fails"
)]

mod sdboot_rig;

use std::fs;
use std::os::unix::fs::MetadataExt;

use bascule_boot::sdboot::names::Kind;
use bascule_boot::sdboot::simulator::Renaming;
use bascule_boot::sdboot::{Act, Step};
use bascule_boot::{BootBackend, BootError};
use bascule_core::{BootStatus, BootView, BootedGroup, Group, Settings, Tries};
use proptest::prelude::*;
use sdboot_rig::{Esp, FOREIGN, contents};

fn a() -> BootedGroup {
    BootedGroup::proven(Group::A)
}

fn b() -> BootedGroup {
    BootedGroup::proven(Group::B)
}

/// What can be left of an entry: nothing, no key that names a kernel, no text.
fn useless(kind: Kind) -> Vec<Vec<u8>> {
    match kind {
        Kind::Text => {
            ["", "\n", "title Bascule\noptions quiet\n", "linux\n", "#linux /bascule/linux-a\n", "linux \"\"\n"]
                .map(|text| text.as_bytes().to_vec())
                .into_iter()
                .chain([vec![0xff; 512], vec![0; 4096]])
                .collect()
        }
        Kind::Image => vec![Vec::new(), b"MZ".to_vec(), vec![0; 4096], contents(kind, Some(Group::A))[..600].to_vec()],
    }
}

/// A device with these names; those with a `!` hold what is given.
fn device(kind: Kind, names: &str, held: &[u8]) -> Esp {
    let esp = Esp::factory(kind);
    let file = |word: &str| match word.trim_end_matches('!') {
        off if off.ends_with(".off") => format!("bascule-{off}"),
        listed => format!("bascule-{listed}{}", kind.suffix()),
    };
    let all: Vec<String> = names.split_whitespace().map(file).collect();
    esp.set(&all.iter().map(String::as_str).collect::<Vec<_>>());
    for word in names.split_whitespace().filter(|word| word.ends_with('!')) {
        fs::write(esp.entries().join(file(word)), held).unwrap();
    }
    esp
}

fn view(esp: &Esp, booted: BootedGroup) -> BootView {
    esp.backend().view(booted).unwrap()
}

fn copy(esp: &Esp, group: Group) -> std::path::PathBuf {
    esp.root().join(format!("bascule/{group}{}", esp.kind.suffix()))
}

/// The names and bytes of all files of ours.
fn held(esp: &Esp) -> Vec<(String, Vec<u8>)> {
    esp.ours().into_iter().map(|name| (name.clone(), fs::read(esp.entries().join(name)).unwrap())).collect()
}

#[test]
fn an_entry_that_holds_nothing_is_damage_and_the_loader_agrees() {
    for kind in Kind::ALL {
        for bytes in useless(kind) {
            let esp = device(kind, "4-a 5-b!", &bytes);
            let seen = view(&esp, a());
            assert_eq!(
                (seen.settings, seen.primary, seen.a, seen.b),
                (Settings::Damaged, Group::A, BootStatus::Good, BootStatus::Unbootable)
            );
            assert_eq!(esp.start(Renaming::Works), Some(Group::A), "the simulated loader lists {bytes:02x?}");
            // What runs was committed or tried: its name goes on saying so.
            let seen = view(&esp, b());
            assert_eq!((seen.settings, seen.primary, seen.b), (Settings::Damaged, Group::B, BootStatus::Good));
        }
    }
}

#[test]
fn whole_entries_of_every_form_are_no_damage() {
    for text in
        ["linux /bascule/linux-a\n", "  efi\t/bascule/linux-a", "uki /bascule/linux-a\r\n", "linux /not/there\n"]
    {
        let esp = device(Kind::Text, "4-a!", text.as_bytes());
        fs::write(esp.entries().join("bascule-3-b.off"), contents(Kind::Text, Some(Group::B))).unwrap();
        assert_eq!(view(&esp, a()).settings, Settings::Intact, "{text:?}");
    }
}

/// Directories with what is booted there. `b` is booted where its name says so; both groups are complete.
const ROWS: [(&str, Group); 12] = [
    ("4-a! 3-b.off", Group::A),
    ("4-a! 5-b", Group::A),
    ("4-a 5-b!", Group::A),
    ("4-a! 5-b!", Group::A),
    ("4-a! 5-b!", Group::B),
    ("4-a! 5-b", Group::B),
    ("4-a 5-b!", Group::B),
    ("4-a 5-b+2-1!", Group::B),
    ("4-a! 5-b+2-1", Group::B),
    ("4-a 5-b+0-3!", Group::A),
    ("4-a 3-b.off!", Group::A),
    ("4-a! 3-a.off 5-b! 2-b.off!", Group::A),
];

#[test]
fn at_every_cut_of_a_rebuild_the_loader_has_what_it_had_and_at_the_end_the_booted_group() {
    for kind in Kind::ALL {
        // One form is enough here: another test shows that all are told alike.
        for bytes in useless(kind).into_iter().skip(1).take(1) {
            for (names, booted) in ROWS {
                for act in [Act::MarkGood(BootedGroup::proven(booted)), Act::MarkUnbootable(opposite(booted))] {
                    rebuild_in_every_cut(kind, names, &bytes, booted, act);
                }
            }
        }
    }
}

fn opposite(booted: Group) -> bascule_core::TargetGroup {
    BootedGroup::proven(booted).target()
}

fn rebuild_in_every_cut(kind: Kind, names: &str, bytes: &[u8], booted: Group, act: Act) {
    let told = BootedGroup::proven(booted);
    let esp = device(kind, names, bytes);
    assert_eq!(view(&esp, told).settings, Settings::Damaged, "{names}");
    let steps = esp.backend().steps(act).unwrap();
    let at_first = esp.start(Renaming::Fails);
    for made in 0..=steps.len() {
        let esp = device(kind, names, bytes);
        for (index, step) in steps[..made].iter().enumerate() {
            esp.backend().take(step).unwrap();
            let starts = esp.start(Renaming::Fails);
            let expected = if index == 0 && at_first.is_none() { Some(booted) } else { starts };
            assert!(starts.is_some() && starts == expected, "{names} {act:?} after {step:?}: {starts:?}");
            // Whatever the loader lists of ours and could start is whole, to the last byte.
            for (name, held) in held(&esp).into_iter().filter(|(name, _)| !name.ends_with(".off")) {
                let group = Group::ALL.into_iter().find(|group| name.contains(&format!("-{group}")));
                assert!(held == bytes || held == contents(kind, group), "{names}: {name} is torn after {step:?}");
            }
        }
        perform(&esp, act).unwrap();
        let seen = view(&esp, told);
        let cut = format!("{names} {act:?} cut after {made}: {:?}", esp.ours());
        assert_eq!(
            (seen.settings, seen.primary, seen.status(booted)),
            (Settings::Intact, booted, BootStatus::Good),
            "{cut}"
        );
        assert_eq!(esp.start(Renaming::Works), Some(booted), "{cut}");
        if matches!(act, Act::MarkUnbootable(_)) {
            assert_eq!(seen.status(booted.opposite()), BootStatus::Unbootable, "{cut}");
            // And the way on is free.
            esp.backend().activate(opposite(booted), Tries::DEFAULT).unwrap();
            assert_eq!(esp.start(Renaming::Works), Some(booted.opposite()), "{cut}");
        }
        let foreign = |name: &&str| esp.entries().join(format!("{name}{}", kind.suffix())).exists();
        assert!(FOREIGN.iter().all(foreign), "{cut}: an entry of others is gone");
    }
}

fn perform(esp: &Esp, act: Act) -> Result<(), BootError> {
    match act {
        Act::MarkUnbootable(target) => esp.backend().mark_unbootable(target),
        Act::Activate(target, tries) => esp.backend().activate(target, tries),
        Act::MarkGood(booted) => esp.backend().mark_good(booted),
        Act::RollBack(booted) => esp.backend().roll_back(booted),
    }
}

#[test]
fn a_good_opposite_group_whose_entry_was_emptied_is_the_way_back_again() {
    for kind in Kind::ALL {
        let esp = device(kind, "4-a! 5-b", b"");
        assert_eq!(esp.backend().roll_back(b()).unwrap_err().code(), "boot.no-good-group", "it would start nothing");
        assert_eq!(esp.start(Renaming::Works), Some(Group::B));
        esp.backend().mark_good(b()).unwrap();
        let suffix = kind.suffix();
        let restored = (format!("bascule-4-a{suffix}"), contents(kind, Some(Group::A)));
        assert!(held(&esp).contains(&restored), "{:?}", esp.ours());
        assert_eq!(
            view(&esp, b()),
            BootView { settings: Settings::Intact, primary: Group::B, a: BootStatus::Good, b: BootStatus::Good }
        );
        esp.backend().roll_back(b()).unwrap();
        assert_eq!(esp.start(Renaming::Works), Some(Group::A));
    }
}

#[test]
fn without_a_whole_copy_the_booted_group_s_entry_is_reported_and_nothing_is_touched() {
    for kind in Kind::ALL {
        for kept in [None, Some(Vec::new()), Some(contents(kind, Some(Group::B)))] {
            let esp = device(kind, "4-a! 5-b", b"");
            match &kept {
                None => fs::remove_file(copy(&esp, Group::A)).unwrap(),
                Some(bytes) => fs::write(copy(&esp, Group::A), bytes).unwrap(),
            }
            let before = held(&esp);
            assert_eq!(view(&esp, a()).settings, Settings::Damaged);
            for act in [Act::MarkGood(a()), Act::MarkUnbootable(a().target())] {
                let error = perform(&esp, act).unwrap_err();
                assert_eq!(error.code(), "boot.beyond-repair", "{act:?} with {kept:?}");
            }
            let activation = esp.backend().activate(a().target(), Tries::DEFAULT).unwrap_err();
            assert_eq!(activation.code(), "boot.beyond-repair", "no rebuild will make it possible");
            assert_eq!(held(&esp), before, "something was changed");
            assert_eq!(esp.start(Renaming::Works), Some(Group::B), "the group that is whole still starts");
        }
    }
}

#[test]
fn without_a_copy_the_opposite_group_only_leaves_the_list_and_is_never_activated() {
    for kind in Kind::ALL {
        let esp = device(kind, "4-a 5-b!", b"");
        fs::remove_file(copy(&esp, Group::B)).unwrap();
        esp.backend().mark_good(a()).unwrap();
        let names = [format!("bascule-4-a{}", kind.suffix()), "bascule-5-b.off".to_owned()];
        assert_eq!(esp.ours(), names);
        assert_eq!(view(&esp, a()).settings, Settings::Intact);
        esp.backend().mark_unbootable(a().target()).unwrap();
        let error = esp.backend().activate(a().target(), Tries::DEFAULT).unwrap_err();
        assert_eq!(error.code(), "boot.beyond-repair");
        assert_eq!(esp.ours(), names);
        // Booted by hand and found healthy: what has no entry cannot be kept.
        assert_eq!(esp.backend().mark_good(b()).unwrap_err().code(), "boot.beyond-repair");
        assert_eq!(esp.ours(), names);
    }
}

#[test]
fn the_steps_of_a_rebuild_write_into_no_file_that_is_there() {
    let esp = device(Kind::Text, "4-a! 5-b!", b"");
    let steps = esp.backend().steps(Act::MarkGood(b())).unwrap();
    let words: Vec<String> = steps
        .iter()
        .map(|step| match step {
            Step::Rename { from, to } => format!("{from} -> {to}"),
            Step::Create { to, .. } => format!("new {to}"),
        })
        .collect();
    assert_eq!(
        words,
        [
            "new bascule-6-b.conf",
            "bascule-5-b.conf -> bascule-5-b.off",
            "bascule-4-a.conf -> bascule-4-a.off",
            "new bascule-4-a.conf"
        ]
    );
}

/// What a cut can leave of a creation: the unfinished file with nothing, a part or all of it, and with the entry as a second
/// name of the same file. A hard link stands for the shared clusters.
#[test]
fn whatever_a_cut_leaves_of_a_creation_no_later_one_touches_it() {
    for kind in Kind::ALL {
        let whole = contents(kind, Some(Group::A));
        for (left, is_renamed) in [(0, false), (whole.len() / 2, false), (whole.len(), false), (whole.len(), true)] {
            let esp = device(kind, if is_renamed { "4-a 5-b!" } else { "4-a! 5-b!" }, b"");
            let entry = esp.entries().join(format!("bascule-4-a{}", kind.suffix()));
            let left_overs = ["bascule-new.tmp", "bascule-new-0.tmp"].map(|name| esp.entries().join(name));
            for left_over in &left_overs {
                match is_renamed {
                    true => fs::hard_link(&entry, left_over).unwrap(),
                    false => fs::write(left_over, &whole[..left]).unwrap(),
                }
            }
            let file = |path: &std::path::PathBuf| (fs::metadata(path).unwrap().ino(), fs::read(path).unwrap());
            let before = left_overs.each_ref().map(file);
            // The first makes entries anew; the second, where the loader listed both, what has become of no use since.
            esp.backend().mark_good(a()).unwrap();
            for broken in esp.ours().iter().filter(|name| name.contains("-b") && name.starts_with("bascule-")) {
                fs::write(esp.entries().join(broken), b"").unwrap();
            }
            esp.backend().mark_unbootable(a().target()).unwrap();
            assert_eq!(left_overs.each_ref().map(file), before, "{left} bytes, renamed: {is_renamed}");
            let seen = view(&esp, a());
            assert_eq!((seen.settings, esp.start(Renaming::Works)), (Settings::Intact, Some(Group::A)));
        }
    }
}

#[test]
fn a_folder_in_place_of_an_entry_is_damage_and_no_error() {
    let esp = device(Kind::Text, "4-a 3-b.off", b"");
    fs::create_dir(esp.entries().join("bascule-5-b.conf")).unwrap();
    assert_eq!(view(&esp, a()).settings, Settings::Damaged);
    esp.backend().mark_unbootable(a().target()).unwrap();
    assert_eq!((view(&esp, a()).settings, esp.start(Renaming::Works)), (Settings::Intact, Some(Group::A)));
}

proptest! {
    #[test]
    fn no_contents_make_a_reader_stop(
        is_image: bool, at: prop::sample::Index, end: prop::sample::Index, bytes in prop::collection::vec(any::<u8>(), 0..48),
    ) {
        let kind = if is_image { Kind::Image } else { Kind::Text };
        let esp = Esp::factory(kind);
        let name = esp.ours().into_iter().find(|name| name.ends_with(kind.suffix())).unwrap();
        let mut held = contents(kind, Some(Group::A));
        let at = at.index(held.len());
        for (place, byte) in held[at..].iter_mut().zip(bytes) {
            *place = byte;
        }
        held.truncate(end.index(held.len() * 2));
        fs::write(esp.entries().join(&name), &held).unwrap();
        let before = self::held(&esp);
        if let Ok(view) = esp.backend().view(a()) {
            prop_assert!(view.settings == Settings::Intact || held != contents(kind, Some(Group::A)));
        }
        // To look changes nothing.
        prop_assert!(self::held(&esp) == before);
    }
}
