//! Names: what they mean to us is what they mean to the loader, however odd they are.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test stops where it fails"
)]

mod sdboot_rig;

use std::cmp::Ordering;
use std::fs;

use bascule_boot::sdboot::names::{EntryName, HIGHEST_GENERATION, Kind, Mark, Owner, owner};
use bascule_boot::sdboot::simulator::{self, Renaming, compare_versions};
use bascule_boot::{BootBackend, BootError};
use bascule_core::{BootStatus, BootView, BootedGroup, Group, Settings, Tries};
use proptest::prelude::*;
use sdboot_rig::{Esp, FOREIGN, contents, image};

/// Which group a loader starts that does what the view says.
fn promised(view: &BootView) -> Option<Group> {
    let startable = |group: &Group| matches!(view.status(*group), BootStatus::Good | BootStatus::Trial { .. });
    [view.primary, view.primary.opposite()].into_iter().find(startable)
}

#[test]
fn claim_g15_in_every_directory_of_our_names_the_loader_does_what_the_view_says() {
    let marks = ["", "+1-0", "+3-0", "+2", "+09-01", "+0-3", "+0", "off"];
    let generations = ["0", "1", "4", "9", "10", "099", "100"];
    let esp = Esp::factory(Kind::Text);
    let names = |group: &str| -> Vec<String> {
        let all = generations.iter().flat_map(|generation| marks.iter().map(move |mark| (generation, mark)));
        all.map(|(generation, mark)| match *mark {
            "off" => format!("bascule-{generation}-{group}.off"),
            mark => format!("bascule-{generation}-{group}{mark}.conf"),
        })
        .collect()
    };
    let mut intact = 0;
    for a in names("a") {
        for b in names("b") {
            esp.set(&[&a, &b]);
            let view = esp.backend().view(BootedGroup::proven(Group::A)).unwrap();
            assert_eq!(view.settings, Settings::Intact, "{a} {b}");
            let listed = [&a, &b].iter().any(|name| name.ends_with(".conf"));
            let start = simulator::start(&esp.root(), Renaming::Works).unwrap();
            let started = start.started.unwrap();
            if !listed {
                assert_eq!(started.group, None, "{a} {b}: nothing of ours is listed");
                continue;
            }
            match promised(&view) {
                Some(group) => assert_eq!(started.group, Some(group), "{a} {b}: {view:?}"),
                None => assert_eq!(started.group, Some(view.primary), "{a} {b}: the last resort is {view:?}"),
            }
            if let BootStatus::Trial { tries_left } = view.status(view.primary) {
                let expected = if tries_left == 1 {
                    BootStatus::Exhausted
                } else {
                    BootStatus::Trial { tries_left: tries_left - 1 }
                };
                let after = esp.backend().view(BootedGroup::proven(Group::A)).unwrap();
                assert_eq!(after.status(view.primary), expected, "{a} {b}");
            }
            intact += 1;
        }
    }
    assert!(intact > 3000);
}

#[test]
fn claim_g15_an_odd_counter_is_damage_and_means_what_it_means_to_the_loader() {
    let odd =
        ["+", "+x", "+3x", "+3-", "+3-x", "+-1", "+3-1-1", "+2147483648", "+4294967297-0", "+99999999999999999999"];
    for counter in odd {
        let name = format!("bascule-5-b{counter}.conf");
        let Owner::Odd(Some(read)) = owner(&name, Kind::Text) else { panic!("{name}") };
        assert_eq!(read.status(), BootStatus::Good, "{name} starts uncounted");
        let esp = Esp::factory(Kind::Text);
        esp.set(&["bascule-4-a.conf", &name]);
        assert_eq!(esp.start(Renaming::Works), Some(Group::B), "{name}");
        assert!(esp.ours().contains(&name), "{name}: nothing was counted");
    }
    for (counter, left) in [("+10-0", 9), ("+2147483647-2147483647", 9)] {
        let name = format!("bascule-5-b{counter}.conf");
        let Owner::Odd(Some(read)) = owner(&name, Kind::Text) else { panic!("{name}") };
        assert_eq!(read.status(), BootStatus::Trial { tries_left: left }, "{name}");
    }
    for name in
        ["bascule-5-b++3-0.conf", "bascule-5-b+1+3-0.conf", "bascule-5-ab.conf", "bascule-5.conf", "bascule-5-b-.conf"]
    {
        assert_eq!(owner(name, Kind::Text), Owner::Odd(None), "{name}");
    }
}

#[test]
fn names_of_others_are_foreign() {
    let long = format!("bascule-1-a{}.conf", "x".repeat(300));
    let names =
        ["bascule.conf", "bascule-.conf", "bascule-a.conf", "bascule-recovery.conf", "xbascule-1-a.conf", &long];
    for name in names {
        assert_eq!(owner(name, Kind::Text), Owner::Foreign, "{name}");
    }
    for name in ["bascule-1-a.efi", "bascule-1-a.conf.bak", "bascule-1.off", "bascule-1-a+3-0.off", "bascule-1-a", ""] {
        assert_eq!(owner(name, Kind::Text), Owner::Foreign, "{name}");
    }
    let good = EntryName { generation: 1, group: Group::A, mark: Mark::Good };
    assert_eq!(owner("BASCULE-1-A.CONF", Kind::Text), Owner::Ours(good));
    assert_eq!(owner("bascule-1-a.efi", Kind::Image), Owner::Ours(good));
}

#[test]
fn entries_of_others_keep_their_names_and_contents_and_never_start() {
    for kind in Kind::ALL {
        let esp = Esp::factory(kind);
        let (a, b) = (BootedGroup::proven(Group::A), BootedGroup::proven(Group::B));
        let backend = esp.backend();
        for _ in 0..3 {
            backend.mark_unbootable(a.target()).unwrap();
            backend.activate(a.target(), Tries::DEFAULT).unwrap();
            assert_eq!(esp.start(Renaming::Works), Some(Group::B));
            backend.mark_good(b).unwrap();
            assert_eq!(esp.start(Renaming::Works), Some(Group::B));
            backend.roll_back(b).unwrap();
            assert_eq!(esp.start(Renaming::Works), Some(Group::A));
        }
        for name in FOREIGN {
            let bytes = fs::read(esp.entries().join(format!("{name}{}", kind.suffix()))).unwrap();
            assert_eq!(bytes, contents(kind, None), "{name}");
        }
        assert_eq!(esp.names().len(), FOREIGN.len() + 2);
    }
}

#[test]
fn a_name_that_is_taken_is_left_and_a_free_one_used() {
    let esp = Esp::factory(Kind::Text);
    esp.set(&["bascule-4-a.conf", "bascule-5-b.conf", "bascule-5-B.off", "bascule-4-b.off"]);
    let booted = BootedGroup::proven(Group::A);
    esp.backend().mark_unbootable(booted.target()).unwrap();
    assert_eq!(esp.ours(), ["bascule-4-a.conf", "bascule-4-b.off", "bascule-5-B.off", "bascule-6-b.off"]);
    // The one of the highest generation is the target's file.
    let file = esp.backend().target_file(booted.target()).unwrap();
    assert_eq!(file, Some(esp.entries().join("bascule-6-b.off")));
    esp.backend().activate(booted.target(), Tries::DEFAULT).unwrap();
    assert_eq!(esp.ours(), ["bascule-4-a.conf", "bascule-4-b.off", "bascule-5-B.off", "bascule-5-b+3-0.conf"]);
    assert_eq!(esp.start(Renaming::Works), Some(Group::B));
}

#[test]
fn the_last_generation_is_an_error_at_its_activation_and_a_rebuild_begins_anew() {
    let esp = Esp::factory(Kind::Text);
    let last = format!("bascule-{}-a.conf", HIGHEST_GENERATION - 1);
    esp.set(&[&last, "bascule-5-b.off"]);
    let booted = BootedGroup::proven(Group::A);
    esp.backend().activate(booted.target(), Tries::DEFAULT).unwrap();
    assert_eq!(esp.start(Renaming::Works), Some(Group::B));
    let booted = BootedGroup::proven(Group::B);
    assert_eq!(esp.backend().view(booted).unwrap().settings, Settings::Damaged);
    esp.backend().mark_unbootable(booted.target()).unwrap();
    assert_eq!(esp.ours(), ["bascule-0-b.conf".to_owned(), last.replace(".conf", ".off")]);
    esp.backend().activate(booted.target(), Tries::DEFAULT).unwrap();
    assert_eq!(esp.ours(), ["bascule-0-b.conf", "bascule-1-a+3-0.conf"]);
}

#[test]
fn a_trial_whose_count_cannot_be_saved_starts_all_the_same_and_can_be_committed() {
    let esp = Esp::factory(Kind::Text);
    let (a, b) = (BootedGroup::proven(Group::A), BootedGroup::proven(Group::B));
    esp.backend().activate(a.target(), Tries::new(1).unwrap()).unwrap();
    for _ in 0..3 {
        assert_eq!(esp.start(Renaming::Fails), Some(Group::B));
    }
    assert_eq!(esp.backend().view(b).unwrap().b, BootStatus::Trial { tries_left: 1 });
    esp.backend().mark_good(b).unwrap();
    assert_eq!(esp.ours(), ["bascule-1-a.conf", "bascule-2-b.conf"]);
}

#[test]
fn entries_that_the_loader_would_not_sort_by_their_names_are_not_activated() {
    let refused = |esp: &Esp| {
        let before = esp.names();
        let result = esp.backend().activate(BootedGroup::proven(Group::A).target(), Tries::DEFAULT);
        let refused = matches!(result, Err(BootError::Damaged { .. } | BootError::BeyondRepair { .. }));
        assert!(refused, "{result:?}");
        assert_eq!(before, esp.names());
    };
    let text = String::from_utf8(contents(Kind::Text, Some(Group::B))).unwrap();
    for more in ["sort-key bascule\n", "machine-id 1\nsort-key x\n", "version 2\n", "\tversion\t2\n"] {
        let esp = Esp::factory(Kind::Text);
        fs::write(esp.entries().join("bascule-0-b.off"), format!("{text}{more}")).unwrap();
        refused(&esp);
    }
    for text in ["", "title nothing\n", "linux /bascule/missing\n"] {
        let esp = Esp::factory(Kind::Text);
        fs::write(esp.entries().join("bascule-0-b.off"), text).unwrap();
        refused(&esp);
    }
    let words = "bascule.group=b";
    for os_release in ["ID=other\n", "ID=bascule\nVERSION_ID=2\n", "ID=bascule\nIMAGE_ID=x\n", ""] {
        let esp = Esp::factory(Kind::Image);
        fs::write(esp.entries().join("bascule-0-b.off"), image(os_release, words)).unwrap();
        refused(&esp);
    }
    for bytes in [vec![], vec![0; 4096], image("ID=bascule\n", words)[..0x100].to_vec()] {
        let esp = Esp::factory(Kind::Image);
        fs::write(esp.entries().join("bascule-0-b.off"), bytes).unwrap();
        refused(&esp);
    }
}

#[test]
fn a_directory_without_the_loaders_configuration_is_never_written_to() {
    let esp = Esp::factory(Kind::Text);
    fs::remove_file(esp.root().join("loader/loader.conf")).unwrap();
    let (before, booted) = (esp.names(), BootedGroup::proven(Group::B));
    assert!(matches!(esp.backend().view(booted), Err(BootError::NotTheLoaders { .. })));
    assert!(matches!(esp.backend().mark_good(booted), Err(BootError::NotTheLoaders { .. })));
    assert!(matches!(esp.backend().roll_back(booted), Err(BootError::NotTheLoaders { .. })));
    assert_eq!(before, esp.names());
}

#[test]
fn versions_are_ordered_as_systemd_says() {
    // The list in the comment of strverscmp_improved, older first.
    let list = [
        "122.1",
        "123~rc1-1",
        "123",
        "123-a",
        "123-a.1",
        "123-1",
        "123-1.1",
        "123^post1",
        "123.a-1",
        "123.1-1",
        "123a-1",
        "124-1",
    ];
    for (index, old) in list.iter().enumerate() {
        for (other, new) in list.iter().enumerate() {
            assert_eq!(compare_versions(old, new), index.cmp(&other), "{old} {new}");
        }
    }
    assert_eq!(compare_versions("00123_a", "123a"), Ordering::Equal);
    assert_eq!(compare_versions("", "1"), Ordering::Less);
}

proptest! {
    #[test]
    fn what_is_written_is_read_again(generation in 0..HIGHEST_GENERATION, left in 0_u32..=9, done: u16, mark in 0_usize..3, second: bool) {
        let mark = [Mark::Off, Mark::Good, Mark::Counted { left, done: u32::from(done) }][mark];
        let name = EntryName { generation, group: Group::ALL[usize::from(second)], mark };
        for kind in Kind::ALL {
            prop_assert_eq!(owner(&name.file_name(kind), kind), Owner::Ours(name));
        }
    }

    #[test]
    fn no_name_is_too_odd(name in "(bascule-|BASCULE-)?[0-9ab+.xé-]{0,24}(\\.conf|\\.off|\\.efi)?") {
        for kind in Kind::ALL {
            if let Owner::Ours(read) = owner(&name, kind) {
                prop_assert!(matches!(owner(&read.file_name(kind), kind), Owner::Ours(again) if again == read));
            }
        }
    }
}
