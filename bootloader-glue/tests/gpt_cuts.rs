//! Every cut of every act, sector by sector: what lies on the disk then, what the loaders make of it, and how it is finished.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test stops where it fails"
)]

mod gpt_rig;

use bascule_boot::gpt::simulator::Loader;
use bascule_boot::gpt::{Step, TableCopy, Write};
use bascule_core::{Group, Settings};
use gpt_rig::{Disk, SLOTS, act};

const LOADERS: [Loader; 2] = [Loader::Vboot, Loader::GptPrio];
const BOTH: &[Group] = &[Group::A, Group::B];
const ONLY_A: &[Group] = &[Group::A];
const ONLY_B: &[Group] = &[Group::B];

/// A device's life: who is booted, what is done, which groups are complete while it is done, how many commit points that
/// takes. A start of the loader stands between the lines where the booted group changes.
const LIFE: [(Group, &str, &[Group], usize); 16] = [
    (Group::A, "unbootable", ONLY_A, 0),
    (Group::A, "activate", BOTH, 1),
    (Group::B, "good", BOTH, 1),
    (Group::B, "unbootable", BOTH, 1),
    (Group::B, "unbootable", ONLY_B, 0),
    (Group::B, "activate", BOTH, 1),
    (Group::B, "activate", BOTH, 0),
    // On trial, and given up.
    (Group::A, "back", BOTH, 1),
    (Group::A, "back", BOTH, 0),
    (Group::B, "unbootable", ONLY_B, 0),
    (Group::B, "activate", BOTH, 1),
    (Group::A, "good", BOTH, 1),
    // A person goes back from a committed group, and the other way round.
    (Group::A, "back", BOTH, 1),
    (Group::B, "good", BOTH, 0),
    (Group::B, "activate", BOTH, 1),
    (Group::A, "good", BOTH, 1),
];

/// What can have become of a sector that was under write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sector {
    Old,
    New,
    Garbage,
}

const SECTORS: [Sector; 3] = [Sector::Old, Sector::New, Sector::Garbage];

/// All states in which a step can be cut off: each of its sectors old, new or garbage. Both writes are one sector long.
fn cuts(disk: &Disk, step: &Step) -> Vec<(Vec<Sector>, Step)> {
    let mut cuts: Vec<(Vec<Sector>, Step)> = vec![(Vec::new(), Step { copy: step.copy, writes: Vec::new() })];
    for write in &step.writes {
        assert_eq!(write.bytes.len() as u64, disk.sector, "one sector of the entries, one of the header");
        let bytes = |sector| match sector {
            Sector::Old => disk.read(write.offset, write.bytes.len()),
            Sector::New => write.bytes.clone(),
            Sector::Garbage => vec![0xa5; write.bytes.len()],
        };
        let more = |(states, step): (Vec<Sector>, Step)| {
            SECTORS.map(|sector| {
                let write = Write { offset: write.offset, bytes: bytes(sector) };
                let writes = [&step.writes[..], &[write]].concat();
                ([&states[..], &[sector]].concat(), Step { copy: step.copy, writes })
            })
        };
        cuts = cuts.into_iter().flat_map(more).collect();
    }
    cuts
}

fn starts_after(line: usize) -> bool {
    LIFE.get(line + 1).is_some_and(|next| next.0 != LIFE[line].0)
}

/// The choices of both loaders.
fn choices(disk: &Disk) -> [Option<Group>; 2] {
    LOADERS.map(|loader| disk.choice(loader))
}

/// Makes the call again until it is done: lost copies are damage, which an act that does not repair refuses.
fn finish(disk: &Disk, booted: Group, word: &str) {
    if disk.view(booted).settings == Settings::Damaged && word == "activate" {
        assert_eq!(disk.perform(booted, word).unwrap_err().code(), "boot.damaged");
        disk.perform(booted, "unbootable").unwrap();
    }
    disk.perform(booted, word).unwrap();
}

fn every_cut(sector: u64) -> usize {
    let disk = Disk::factory_in_memory(sector);
    let mut seen = 0;
    for (line, (booted, word, complete, commits)) in LIFE.into_iter().enumerate() {
        let (before, old, old_view) = (disk.table(), choices(&disk), disk.view(booted));
        let steps = disk.backend().steps(act(booted, word)).unwrap();
        let copies: Vec<TableCopy> = steps.iter().map(|step| step.copy).collect();
        assert_eq!(copies, [TableCopy::Backup, TableCopy::Primary].repeat(commits), "{word} in {booted}");
        disk.perform(booted, word).unwrap();
        let (after, new, new_view) = (disk.table(), choices(&disk), disk.view(booted));
        for (number, step) in steps.iter().enumerate() {
            disk.put_table(&before);
            steps[..number].iter().for_each(|step| disk.apply(step));
            for (states, cut) in cuts(&disk, step) {
                let held = disk.table();
                disk.apply(&cut);
                let case = format!("{word} in {booted}, cut in step {number} with {states:?}");
                let (choice, view) = (choices(&disk), disk.view(booted));
                let is_new = step.copy == TableCopy::Primary && states.iter().any(|state| *state != Sector::Old);
                assert_eq!(choice, if is_new { new } else { old }, "{case}");
                assert!(choice.iter().flatten().all(|group| complete.contains(group)), "{case}: {choice:?}");
                let is_lost = step.copy == TableCopy::Primary && states.contains(&Sector::Garbage);
                let expected = if is_new { new_view } else { old_view };
                let settings = if is_lost { Settings::Damaged } else { Settings::Intact };
                assert_eq!(view, bascule_core::BootView { settings, ..expected }, "{case}");
                // The same call again finishes it, bit for bit, and so does a start of the loader before that.
                let torn = disk.table();
                finish(&disk, booted, word);
                assert!(disk.table() == after, "{case}: finished to something else");
                disk.put_table(&torn);
                disk.start(Loader::Vboot);
                let [(_, primary), (_, backup)] = disk.table();
                assert_eq!(primary, backup, "{case}: the loader did not repair it");
                disk.put_table(&held);
                seen += 1;
            }
        }
        disk.put_table(&after);
        if starts_after(line) {
            disk.start(Loader::Vboot);
        }
    }
    seen
}

#[test]
fn each_cut_of_each_act_leaves_the_old_choice_or_the_new_one() {
    // Ten commit points, two steps each, nine states each.
    assert_eq!(every_cut(512), 10 * 2 * 9);
    assert_eq!(every_cut(4096), 10 * 2 * 9);
}

#[test]
fn a_cut_while_a_cut_is_finished_leaves_the_old_choice_or_the_new_one() {
    let disk = Disk::factory_in_memory(512);
    for (line, (booted, word, complete, _)) in LIFE.into_iter().enumerate() {
        let (before, old) = (disk.table(), choices(&disk));
        let steps = disk.backend().steps(act(booted, word)).unwrap();
        disk.perform(booted, word).unwrap();
        let (after, new) = (disk.table(), choices(&disk));
        for (number, step) in steps.iter().enumerate() {
            disk.put_table(&before);
            steps[..number].iter().for_each(|step| disk.apply(step));
            for (first, cut) in cuts(&disk, step) {
                let held = disk.table();
                disk.apply(&cut);
                let torn = disk.table();
                let again = disk.backend().steps(act(booted, word)).unwrap_or_default();
                for (number, step) in again.iter().enumerate() {
                    disk.put_table(&torn);
                    again[..number].iter().for_each(|step| disk.apply(step));
                    for (second, cut) in cuts(&disk, step) {
                        let between = disk.table();
                        disk.apply(&cut);
                        let (choice, case) =
                            (choices(&disk), format!("{word} in {booted}: {first:?}, then {second:?}"));
                        assert!([old, new].contains(&choice), "{case}: {choice:?}, not {old:?} or {new:?}");
                        assert!(choice.iter().flatten().all(|group| complete.contains(group)), "{case}");
                        finish(&disk, booted, word);
                        assert!(disk.table() == after, "{case}: finished to something else");
                        disk.put_table(&between);
                    }
                }
                disk.put_table(&held);
            }
        }
        disk.put_table(&after);
        if starts_after(line) {
            disk.start(Loader::Vboot);
        }
    }
}

/// The agent may do something else after a cut, and that may be cut off as well: one copy is whole all the time.
#[test]
fn a_cut_in_another_act_after_a_cut_leaves_one_of_the_two_choices() {
    let disk = Disk::factory_in_memory(512);
    let mut seen = 0;
    for (line, (booted, word, _, _)) in LIFE.into_iter().enumerate() {
        let before = disk.table();
        let steps = disk.backend().steps(act(booted, word)).unwrap();
        disk.perform(booted, word).unwrap();
        let after = disk.table();
        for (number, step) in steps.iter().enumerate() {
            disk.put_table(&before);
            steps[..number].iter().for_each(|step| disk.apply(step));
            for (first, cut) in cuts(&disk, step) {
                let held = disk.table();
                disk.apply(&cut);
                let (torn, old) = (disk.table(), choices(&disk));
                for other in ["unbootable", "activate", "good", "back"] {
                    let Ok(again) = disk.backend().steps(act(booted, other)) else { continue };
                    disk.perform(booted, other).unwrap();
                    let new = choices(&disk);
                    for (number, step) in again.iter().enumerate() {
                        disk.put_table(&torn);
                        again[..number].iter().for_each(|step| disk.apply(step));
                        for (second, cut) in cuts(&disk, step) {
                            let between = disk.table();
                            disk.apply(&cut);
                            let choice = choices(&disk);
                            let case = format!("{word} in {booted}: {first:?}, then {other}: {second:?}");
                            assert!([old, new].contains(&choice), "{case}: {choice:?}, not {old:?} or {new:?}");
                            disk.put_table(&between);
                            seen += 1;
                        }
                    }
                    disk.put_table(&torn);
                }
                disk.put_table(&held);
            }
        }
        disk.put_table(&after);
        if starts_after(line) {
            disk.start(Loader::Vboot);
        }
    }
    assert!(seen > 5000, "{seen}");
}

#[test]
fn a_cut_in_the_loaders_own_count_is_no_other_choice() {
    for loader in LOADERS {
        let disk = Disk::factory_in_memory(512);
        disk.perform(Group::A, "activate").unwrap();
        let before = disk.table();
        disk.start(loader);
        let after = disk.table();
        // It writes four regions in an order of its own: any of them may be old.
        for mask in 0..16 {
            let pick =
                |bit: u32, old: &Vec<u8>, new: &Vec<u8>| if mask >> bit & 1 == 1 { new.clone() } else { old.clone() };
            let [(h1, e1), (h2, e2)] = &before;
            let [(new_h1, new_e1), (new_h2, new_e2)] = &after;
            let both_broken = [mask & 3, mask >> 2].iter().all(|half| [1, 2].contains(half));
            disk.put_table(&[(pick(0, h1, new_h1), pick(1, e1, new_e1)), (pick(2, h2, new_h2), pick(3, e2, new_e2))]);
            let started = disk.choice(loader);
            // Both copies at once: that is the loader's own fault, and no act of ours can keep it from it.
            assert_eq!(started, (!both_broken).then_some(Group::B), "{loader:?} {mask:04b}");
            if !both_broken {
                disk.perform(Group::B, "good").unwrap();
                assert_eq!(disk.start(loader), Some(Group::B));
            }
        }
    }
}

#[test]
fn an_act_changes_nothing_but_the_bits_of_one_entry_and_checksums() {
    for sector in [512, 4096] {
        let disk = Disk::factory_in_memory(sector);
        for (line, (booted, word, _, commits)) in LIFE.into_iter().enumerate() {
            let before = disk.bytes();
            disk.perform(booted, word).unwrap();
            let after = disk.bytes();
            let changed: Vec<u64> =
                (0..before.len()).filter(|at| before[*at] != after[*at]).map(|at| at as u64).collect();
            let group = match word {
                "unbootable" | "activate" => booted.opposite(),
                _ => booted,
            };
            let allowed = |at: &u64| {
                [TableCopy::Primary, TableCopy::Backup].into_iter().any(|copy| {
                    let (header, entries) = disk.places(copy);
                    let bits = entries + u64::from(SLOTS[group as usize] - 1) * 128 + 48 + 6;
                    (bits..bits + 2).contains(at)
                        || (header + 16..header + 20).contains(at)
                        || (header + 88..header + 92).contains(at)
                })
            };
            assert!(changed.iter().all(allowed), "{word} in {booted} changed {changed:?}");
            assert_eq!(changed.is_empty(), commits == 0, "{word} in {booted}");
            if starts_after(line) {
                disk.start(Loader::Vboot);
            }
        }
    }
}
