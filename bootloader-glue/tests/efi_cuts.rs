//! Every cut of every act, between any two of its variables; what each act changes and what it leaves alone.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test stops where it fails"
)]

mod efi_rig;

use bascule_boot::efi::Act;
use bascule_boot::efi::option::LoadOption;
use bascule_core::{BootStatus, Group, Settings};
use efi_rig::{A, B, DRIVE, Firmware, MARK, OTHER, SLEEPING, act, changed, entry, option};

const BOTH: &[Group] = &[Group::A, Group::B];
const ONLY_A: &[Group] = &[Group::A];
const ONLY_B: &[Group] = &[Group::B];

/// A device's life: who is booted, what is done, which groups are complete while it is done, which variables change. A
/// start of the firmware stands between the lines where the booted group changes.
const LIFE: [(Group, &str, &[Group], &[&str]); 18] = [
    (Group::A, "unbootable", ONLY_A, &[]),
    (Group::A, "activate", BOTH, &["BootNext", "BasculeTrial"]),
    (Group::B, "good", BOTH, &["BootOrder"]),
    (Group::B, "unbootable", BOTH, &["BootOrder"]),
    (Group::B, "unbootable", ONLY_B, &[]),
    (Group::B, "activate", BOTH, &["BootNext", "BasculeTrial"]),
    (Group::B, "activate", BOTH, &[]),
    // On trial, and given up.
    (Group::A, "back", BOTH, &["BasculeTrial"]),
    (Group::A, "back", BOTH, &[]),
    (Group::B, "unbootable", ONLY_B, &["no BasculeTrial"]),
    (Group::B, "activate", BOTH, &["BootNext", "BasculeTrial"]),
    // Armed, and disarmed before the start.
    (Group::B, "unbootable", BOTH, &["no BasculeTrial", "no BootNext"]),
    (Group::B, "activate", BOTH, &["BootNext", "BasculeTrial"]),
    (Group::A, "good", BOTH, &["BootOrder"]),
    // A person goes back from a committed group, and the other way round.
    (Group::A, "back", BOTH, &["BasculeTrial", "BootOrder"]),
    (Group::B, "good", BOTH, &[]),
    (Group::B, "activate", BOTH, &["no BasculeTrial", "BootNext", "BasculeTrial"]),
    (Group::A, "good", BOTH, &["BootOrder"]),
];

/// Whether the firmware starts another group between this line and the next one.
fn starts_after(line: usize) -> bool {
    LIFE.get(line + 1).is_some_and(|next| next.0 != LIFE[line].0)
}

#[test]
fn each_act_changes_the_variables_it_has_to_and_leaves_every_other_file_alone() {
    let firmware = Firmware::factory();
    for (line, (booted, word, _, expected)) in LIFE.into_iter().enumerate() {
        let steps = firmware.backend().steps(act(booted, word)).unwrap();
        assert_eq!(steps.iter().map(changed).collect::<Vec<_>>(), expected, "{word} in {booted}");
        let before = firmware.files();
        firmware.perform(booted, word).unwrap();
        let after = firmware.files();
        let names: std::collections::BTreeSet<&String> = before.keys().chain(after.keys()).collect();
        let differ = names.into_iter().filter(|name| before.get(*name) != after.get(*name));
        let differ: Vec<&str> = differ.map(|name| name.split('-').next().unwrap()).collect();
        let mut touched: Vec<&str> = expected.iter().map(|name| name.trim_start_matches("no ")).collect();
        touched.sort_unstable();
        touched.dedup();
        assert!(differ.iter().all(|name| touched.contains(name)), "{word} in {booted} changed {differ:?}");
        if starts_after(line) {
            assert_eq!(firmware.start(), Some(booted.opposite()), "after line {line}");
        }
    }
}

#[test]
fn after_every_cut_a_complete_group_starts_and_the_same_act_comes_to_the_same_end() {
    let firmware = Firmware::factory();
    for (line, (booted, word, complete, _)) in LIFE.into_iter().enumerate() {
        let before = firmware.files();
        let steps = firmware.backend().steps(act(booted, word)).unwrap();
        firmware.perform(booted, word).unwrap();
        let after = firmware.files();
        for made in 0..=steps.len() {
            firmware.restore(&before);
            let old_view = firmware.view(booted);
            let old = (old_view.primary, firmware.start());
            firmware.restore(&after);
            let new_view = firmware.view(booted);
            let new = (new_view.primary, firmware.start());
            firmware.restore(&before);
            for step in &steps[..made] {
                firmware.backend().take(step).unwrap();
            }
            let view = firmware.view(booted);
            assert_eq!(view.settings, Settings::Intact, "{word} in {booted} after {made}");
            for group in Group::ALL {
                let statuses = [old_view.status(group), new_view.status(group)];
                assert!(statuses.contains(&view.status(group)), "{word} in {booted} after {made}: {view:?}");
            }
            let cut = firmware.files();
            firmware.perform(booted, word).unwrap();
            assert_eq!(firmware.files(), after, "{word} in {booted} again after {made}");
            firmware.restore(&cut);
            let seen = (firmware.view(booted).primary, firmware.start());
            assert!(seen == old || seen == new, "{word} in {booted} after {made}: {seen:?}");
            assert!(complete.contains(&seen.1.unwrap()), "{word} in {booted} after {made}: {seen:?}");
            assert_eq!(firmware.view(seen.1.unwrap()).primary, firmware.start().unwrap(), "what is shown is started");
        }
        firmware.restore(&after);
        if starts_after(line) {
            assert_eq!(firmware.start(), Some(booted.opposite()), "after line {line}");
        }
    }
}

#[test]
fn a_trial_cut_off_between_its_two_variables_still_has_to_prove_itself() {
    let firmware = Firmware::factory();
    let steps = firmware.backend().steps(act(Group::A, "activate")).unwrap();
    firmware.backend().take(&steps[0]).unwrap();
    assert_eq!(firmware.view(Group::A).b, BootStatus::Trial { tries_left: 1 });
    assert_eq!(firmware.start(), Some(Group::B));
    assert_eq!(firmware.view(Group::B).b, BootStatus::Exhausted, "it runs, and is not good");
    assert_eq!(firmware.start(), Some(Group::A));
    assert_eq!(firmware.view(Group::A).b, BootStatus::Unbootable, "the firmware keeps no trace: it may be armed again");
}

#[test]
fn a_trial_that_is_given_up_is_unbootable_while_it_still_runs_and_afterwards() {
    let firmware = Firmware::factory();
    firmware.perform(Group::A, "activate").unwrap();
    assert_eq!(firmware.start(), Some(Group::B));
    firmware.perform(Group::B, "back").unwrap();
    assert_eq!(firmware.view(Group::B).b, BootStatus::Unbootable);
    assert_eq!(firmware.start(), Some(Group::A));
    assert_eq!(firmware.view(Group::A).b, BootStatus::Unbootable);
}

#[test]
fn entries_of_others_keep_their_order_and_are_put_behind_the_group_that_is_good() {
    let firmware = Firmware::factory();
    firmware.set_order(&[DRIVE, A, OTHER, SLEEPING]);
    firmware.perform(Group::A, "unbootable").unwrap();
    assert_eq!(firmware.order(), [DRIVE, A, OTHER, SLEEPING], "nothing was to be done");
    firmware.perform(Group::A, "activate").unwrap();
    assert_eq!(firmware.start(), Some(Group::B));
    firmware.perform(Group::B, "good").unwrap();
    assert_eq!(firmware.order(), [B, A, DRIVE, OTHER, SLEEPING]);
    firmware.perform(Group::B, "unbootable").unwrap();
    assert_eq!(firmware.order(), [B, DRIVE, OTHER, SLEEPING]);
    firmware.set_order(&[OTHER, B, DRIVE, A, SLEEPING]);
    firmware.perform(Group::B, "back").unwrap();
    assert_eq!(firmware.order(), [A, OTHER, DRIVE, SLEEPING]);
}

#[test]
fn a_committed_group_is_not_armed_any_more_although_the_mark_stays() {
    let firmware = Firmware::factory();
    assert_eq!(firmware.backend().armed(), None);
    firmware.perform(Group::A, "activate").unwrap();
    assert_eq!(firmware.start(), Some(Group::B));
    assert_eq!(firmware.backend().armed(), Some(Group::B));
    firmware.perform(Group::B, "good").unwrap();
    assert_eq!(firmware.backend().armed(), None, "it would be taken for a trial for ever");
}

#[test]
fn to_say_good_again_leaves_what_a_person_put_before_it() {
    let firmware = Firmware::factory();
    firmware.set_order(&[DRIVE, A, OTHER, B]);
    firmware.perform(Group::A, "good").unwrap();
    assert_eq!(firmware.order(), [DRIVE, A, OTHER, B]);
    firmware.set_order(&[DRIVE, B, OTHER, A]);
    firmware.perform(Group::A, "good").unwrap();
    assert_eq!(firmware.order(), [A, B, DRIVE, OTHER]);
}

#[test]
fn a_target_that_is_good_is_not_good_any_more_once_it_is_activated() {
    let firmware = Firmware::factory();
    firmware.set_order(&[A, B, DRIVE]);
    let steps = firmware.backend().steps(act(Group::A, "activate")).unwrap();
    assert_eq!(steps.iter().map(changed).collect::<Vec<_>>(), ["BootOrder", "BootNext", "BasculeTrial"]);
    // It was armed once and committed: after a cut nothing may say that it has failed.
    firmware.set_mark("armed b");
    for step in firmware.backend().steps(act(Group::A, "activate")).unwrap() {
        firmware.backend().take(&step).unwrap();
        assert_ne!(firmware.view(Group::A).b, BootStatus::Exhausted, "after {step:?}");
    }
    assert_eq!(firmware.view(Group::A).b, BootStatus::Trial { tries_left: 1 });
}

#[test]
fn what_the_firmware_was_told_to_try_next_does_not_come_before_a_group_that_is_made_good() {
    let firmware = Firmware::factory();
    firmware.set_next(B);
    assert_eq!(firmware.view(Group::A).primary, Group::B);
    firmware.perform(Group::A, "good").unwrap();
    assert_eq!(firmware.start(), Some(Group::A));
    // An entry of others is tried once, which is not our business.
    firmware.set_next(OTHER);
    firmware.perform(Group::A, "good").unwrap();
    assert_eq!(firmware.numbers("BootNext"), Some(vec![OTHER]));
}

#[test]
fn the_order_that_is_rebuilt_keeps_the_entries_of_others_that_it_still_names() {
    for booted in Group::ALL {
        for word in ["unbootable", "good"] {
            let firmware = Firmware::factory();
            let number = if booted == Group::A { A } else { B };
            // Also where the target is armed, the settings are lost before the start, and nobody knows how complete it is.
            firmware.set_next(if booted == Group::A { B } else { A });
            firmware.set_mark(&format!("armed {}", booted.opposite()));
            firmware.set_order(&[OTHER, 0x5555, DRIVE, OTHER]);
            assert_eq!(firmware.view(booted).settings, Settings::Damaged);
            for made in 0..=firmware.backend().steps(act(booted, word)).unwrap().len() {
                let before = firmware.files();
                for step in &firmware.backend().steps(act(booted, word)).unwrap()[..made] {
                    firmware.backend().take(step).unwrap();
                }
                firmware.perform(booted, word).unwrap();
                let view = firmware.view(booted);
                assert_eq!((view.settings, view.primary), (Settings::Intact, booted), "{word} cut after {made}");
                let statuses = (view.status(booted), view.status(booted.opposite()));
                assert_eq!(statuses, (BootStatus::Good, BootStatus::Unbootable), "{word} cut after {made}");
                assert_eq!(firmware.order(), [number, OTHER, DRIVE]);
                assert_eq!(firmware.start(), Some(booted));
                firmware.restore(&before);
            }
        }
    }
}

#[test]
fn a_trial_whose_order_is_lost_is_still_on_trial() {
    let firmware = Firmware::factory();
    firmware.perform(Group::A, "activate").unwrap();
    assert_eq!(firmware.start(), Some(Group::B));
    firmware.remove("BootOrder");
    let view = firmware.view(Group::B);
    assert_eq!((view.settings, view.b), (Settings::Damaged, BootStatus::Exhausted));
    let refused = firmware.perform(Group::B, "back").unwrap_err();
    assert_eq!(refused.code(), "boot.no-good-group");
    assert_eq!(firmware.perform(Group::B, "activate").unwrap_err().code(), "boot.damaged");
}

#[test]
fn an_entry_that_is_not_active_is_made_active_with_every_other_byte_as_it_was() {
    for (number, word) in [(A, "good"), (B, "good"), (B, "unbootable")] {
        let firmware = Firmware::factory();
        let group = if number == A { Group::A } else { Group::B };
        let awake = LoadOption { attributes: 0x0101, ..option(group) }.to_bytes().unwrap();
        firmware.put(&entry(number), 7, &LoadOption { attributes: 0x0100, ..option(group) }.to_bytes().unwrap());
        assert_eq!(firmware.view(Group::A).settings, Settings::Damaged);
        assert_eq!(firmware.view(Group::A).a == BootStatus::Good, number == B);
        let activation = firmware.perform(Group::A, "activate").unwrap_err();
        assert_eq!(activation.code(), "boot.damaged");
        firmware.perform(Group::A, word).unwrap();
        assert_eq!(firmware.files()[&format!("{}-{}", entry(number), efi_rig::GLOBAL)][4..], awake);
        assert_eq!(firmware.view(Group::A).settings, Settings::Intact);
        assert_eq!(firmware.start(), Some(Group::A));
    }
}

#[test]
fn a_lost_entry_is_an_error_after_all_that_is_safe_was_done() {
    let firmware = Firmware::factory();
    firmware.perform(Group::A, "activate").unwrap();
    assert_eq!(firmware.start(), Some(Group::B));
    firmware.remove(&entry(A));
    assert_eq!(firmware.view(Group::B).settings, Settings::Damaged);
    // The trial passed: it is good, though there is nothing to go back to.
    let error = firmware.perform(Group::B, "good").unwrap_err();
    assert_eq!(error.code(), "boot.efi-entry");
    assert!(error.to_string().ends_with("are called `Bascule a`, not one"), "{error}");
    assert!(error.hint().contains("efibootmgr --create-only --label 'Bascule a'"), "{}", error.hint());
    assert_eq!(firmware.start(), Some(Group::B));
    for word in ["unbootable", "activate"] {
        assert_eq!(firmware.perform(Group::B, word).unwrap_err().code(), "boot.efi-entry", "{word}");
        assert_eq!(firmware.start(), Some(Group::B));
    }
    // The booted group's own entry: nothing can be done, and nothing is.
    let before = firmware.files();
    assert_eq!(firmware.perform(Group::A, "good").unwrap_err().code(), "boot.efi-entry");
    assert_eq!(firmware.perform(Group::A, "unbootable").unwrap_err().code(), "boot.no-good-group");
    assert_eq!(firmware.files(), before);
}

#[test]
fn of_a_doubled_entry_none_is_started_once_its_group_is_given_up() {
    let firmware = Firmware::factory();
    let second = 0x0200;
    firmware.put(&entry(second), 7, &option(Group::B).to_bytes().unwrap());
    firmware.set_order(&[A, second, B, DRIVE]);
    firmware.set_next(second);
    assert_eq!(firmware.view(Group::A).settings, Settings::Damaged);
    let error = firmware.perform(Group::A, "unbootable").unwrap_err();
    assert_eq!((error.code(), error.hint().contains("efibootmgr -B")), ("boot.efi-entry", true));
    assert_eq!((firmware.order(), firmware.numbers("BootNext")), (vec![A, DRIVE], None));
    assert_eq!(firmware.view(Group::A).b, BootStatus::Unbootable);
    assert_eq!(firmware.perform(Group::A, "activate").unwrap_err().code(), "boot.efi-entry");
    assert_eq!(firmware.numbers("BootNext"), None);
}

#[test]
fn variables_of_any_other_form_are_looked_at_without_harm() {
    let firmware = Firmware::factory();
    let factory = firmware.files();
    let mut random = 0x9e37_79b9_7f4a_7c15_u64;
    let mut noise = |length: usize| -> Vec<u8> {
        let mut next = || {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            random.to_le_bytes()[0]
        };
        (0..length).map(|_| next()).collect()
    };
    let names = ["BootOrder", "BootNext", "BootCurrent", &entry(A), &entry(B), &entry(DRIVE)];
    let names = names.map(|name| format!("{name}-{}", efi_rig::GLOBAL)).into_iter().chain([MARK.to_owned()]);
    for name in names {
        let whole = factory.get(&name).cloned().unwrap_or_else(|| vec![7, 0, 0, 0, 0xaf, 0]);
        let prefixes = (0..whole.len()).map(|length| whole[..length].to_vec());
        let noises = (0..60).map(|length| noise(length * 7)).collect::<Vec<_>>();
        let long = [vec![7, 0, 0, 0, 3, 0, 0xaf], vec![7; 200_000]];
        for bytes in prefixes.chain(noises).chain(long) {
            firmware.restore(&factory);
            std::fs::write(firmware.dir().join(&name), &bytes).unwrap();
            for booted in Group::ALL {
                let view = firmware.view(booted);
                // Each prefix is looked at; of the changes, which are synced, some have to do.
                let words = ["unbootable", "activate", "good", "back"];
                for word in words.into_iter().filter(|_| bytes.len() < 12 || bytes.len() % 35 == 0) {
                    let before = firmware.files();
                    let result = firmware.perform(booted, word);
                    if matches!(act(booted, word), Act::MarkGood(_)) && result.is_ok() {
                        assert_eq!(firmware.view(booted).settings, Settings::Intact, "{name} {bytes:02x?}: {view:?}");
                        assert_eq!(firmware.start(), Some(booted), "{name} {bytes:02x?}");
                    }
                    firmware.restore(&before);
                }
            }
            firmware.start();
        }
    }
}
