//! The contract of [`BootBackend`] as a suite: every backend runs it against the simulator of its loader.
//!
//! A test of a backend is one line: `conformance::check(&make_rig)`. A failed check panics, as tests do.

use std::fs;
use std::path::PathBuf;

use bascule_core::{BootStatus, BootedGroup, Group, Settings, TargetGroup, Tries};

use crate::{BootBackend, BootError};

/// One device without hardware: a backend, and the simulated loader that reads what the backend writes.
pub struct Rig {
    /// The backend under test, in its factory state: group `a` good and primary, group `b` unbootable.
    pub backend: Box<dyn BootBackend>,
    /// Powers the device on: which group the loader starts when the kernels of both load. Counts a try as the loader does.
    pub start: Box<dyn Fn() -> Option<Group>>,
    /// The file of the commit point.
    pub settings: PathBuf,
    /// All files of the backend, the one above included.
    pub files: Vec<PathBuf>,
    /// Keeps the folder of the files alive.
    pub keep: Box<dyn std::any::Any>,
}

/// What the disk held before and after one call.
type Files = Vec<Option<Vec<u8>>>;

/// One call of the trait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Act {
    MarkUnbootable,
    Activate(u8),
    MarkGood,
    RollBack,
}

/// One step of a device's life: a call made in `booted`, and the groups that are complete while it is made.
struct Step {
    booted: Group,
    act: Act,
    complete: &'static [Group],
}

/// Runs the whole suite; `make` gives a fresh rig each time.
pub fn check(make: &dyn Fn() -> Rig) {
    a_new_device_starts_its_good_group(make);
    twice_is_the_same_as_once(make);
    a_trial_is_started_exactly_as_often_as_it_has_tries(make);
    a_good_group_is_never_counted(make);
    a_roll_back_starts_the_opposite_group(make);
    an_unbootable_target_is_never_started(make);
    nothing_is_left_without_a_good_group(make);
    damaged_settings_are_rebuilt_for_the_booted_group(make);
    damaged_settings_start_a_complete_group(make);
    a_torn_write_is_the_old_choice_or_the_new_one(make);
}

fn a_new_device_starts_its_good_group(make: &dyn Fn() -> Rig) {
    let rig = make();
    let view = rig.view(Group::A);
    assert_eq!((view.settings, view.primary), (Settings::Intact, Group::A), "a new device");
    assert_eq!((view.a, view.b), (BootStatus::Good, BootStatus::Unbootable), "a new device");
    assert_eq!((rig.start)(), Some(Group::A), "a new device");
}

fn twice_is_the_same_as_once(make: &dyn Fn() -> Rig) {
    let rig = make();
    for step in life() {
        rig.act(step.booted, step.act);
        let once = rig.read();
        rig.act(step.booted, step.act);
        assert!(once == rig.read(), "{:?} in {} a second time changed the settings", step.act, step.booted);
    }
}

fn a_trial_is_started_exactly_as_often_as_it_has_tries(make: &dyn Fn() -> Rig) {
    for tries in 1..=Tries::MAX {
        let rig = make();
        rig.act(Group::A, Act::MarkUnbootable);
        rig.act(Group::A, Act::Activate(tries));
        assert_eq!(rig.view(Group::A).b, BootStatus::Trial { tries_left: tries });
        assert_eq!(rig.view(Group::A).primary, Group::B);
        for left in (0..tries).rev() {
            assert_eq!((rig.start)(), Some(Group::B), "start of a trial with {tries} tries, {left} left afterwards");
            let expected = if left == 0 { BootStatus::Exhausted } else { BootStatus::Trial { tries_left: left } };
            assert_eq!(rig.view(Group::B).b, expected);
        }
        for _ in 0..3 {
            assert_eq!((rig.start)(), Some(Group::A), "after a trial with {tries} tries");
        }
        let view = rig.view(Group::A);
        assert_eq!((view.primary, view.b), (Group::A, BootStatus::Exhausted), "the loader fell back");
    }
}

fn a_good_group_is_never_counted(make: &dyn Fn() -> Rig) {
    let rig = make();
    for act in [Act::MarkUnbootable, Act::Activate(1)] {
        rig.act(Group::A, act);
    }
    assert_eq!((rig.start)(), Some(Group::B));
    rig.act(Group::B, Act::MarkGood);
    let committed = rig.read();
    for _ in 0..12 {
        assert_eq!((rig.start)(), Some(Group::B), "a committed group");
    }
    assert!(committed == rig.read(), "starts of a committed group changed the settings");
    assert_eq!(rig.view(Group::B).a, BootStatus::Good, "a commit keeps the opposite group good");
}

fn a_roll_back_starts_the_opposite_group(make: &dyn Fn() -> Rig) {
    for commit_first in [false, true] {
        let rig = make();
        for act in [Act::MarkUnbootable, Act::Activate(3)] {
            rig.act(Group::A, act);
        }
        assert_eq!((rig.start)(), Some(Group::B));
        if commit_first {
            rig.act(Group::B, Act::MarkGood);
        }
        rig.act(Group::B, Act::RollBack);
        let view = rig.view(Group::B);
        assert_eq!((view.primary, view.a, view.b), (Group::A, BootStatus::Good, BootStatus::Unbootable));
        assert_eq!((rig.start)(), Some(Group::A), "after a roll back");
    }
}

fn an_unbootable_target_is_never_started(make: &dyn Fn() -> Rig) {
    let rig = make();
    for step in life() {
        rig.act(step.booted, step.act);
        if step.act == Act::MarkUnbootable {
            assert_eq!(rig.view(step.booted).primary, step.booted);
            for _ in 0..3 {
                assert_eq!((rig.start)(), Some(step.booted), "while the opposite group is unbootable");
            }
        }
    }
}

fn nothing_is_left_without_a_good_group(make: &dyn Fn() -> Rig) {
    let rig = make();
    let refused = |result: Result<(), BootError>| matches!(result, Err(BootError::NoGoodGroup { .. }));
    assert!(refused(rig.perform(Group::A, Act::RollBack)), "a roll back to an unbootable group was made");
    for act in [Act::MarkUnbootable, Act::Activate(3)] {
        rig.act(Group::A, act);
    }
    let before = rig.read();
    for act in [Act::MarkUnbootable, Act::Activate(3)] {
        assert!(refused(rig.perform(Group::B, act)), "{act:?} was made while the booted group is on trial");
    }
    assert!(before == rig.read(), "a refused call changed the settings");
}

fn damaged_settings_are_rebuilt_for_the_booted_group(make: &dyn Fn() -> Rig) {
    for booted in Group::ALL {
        for act in [Act::MarkUnbootable, Act::MarkGood] {
            for damage in damages() {
                let rig = make();
                rig.write_settings(damage.as_deref());
                assert_eq!(rig.view(booted).settings, Settings::Damaged, "{damage:02x?}");
                rig.act(booted, act);
                let view = rig.view(booted);
                assert_eq!((view.settings, view.primary), (Settings::Intact, booted), "{act:?} after {damage:02x?}");
                assert_eq!(view.status(booted), BootStatus::Good);
                assert_eq!(view.status(booted.opposite()), BootStatus::Unbootable);
                assert_eq!((rig.start)(), Some(booted));
            }
        }
    }
}

/// In each state of a device's life, before and after each call, with the settings damaged in every way.
fn damaged_settings_start_a_complete_group(make: &dyn Fn() -> Rig) {
    let rig = make();
    for step in life() {
        for when in ["before", "after"] {
            let held = rig.read();
            let whole = fs::read(&rig.settings).unwrap_or_default();
            let mut variants = damages();
            for cut in (0..=whole.len()).step_by(512) {
                let mut torn = whole.clone();
                torn.truncate(cut);
                variants.push(Some(torn.clone()));
                torn.resize(whole.len(), 0);
                variants.push(Some(torn));
            }
            for variant in variants {
                rig.write_settings(variant.as_deref());
                let started = (rig.start)();
                assert!(
                    started.is_some_and(|group| step.complete.contains(&group)),
                    "{when} {:?} in {}: damaged settings started {started:?}, complete are {:?}",
                    step.act,
                    step.booted,
                    step.complete
                );
                rig.write(&held);
            }
            if when == "before" {
                rig.act(step.booted, step.act);
            }
        }
    }
}

fn a_torn_write_is_the_old_choice_or_the_new_one(make: &dyn Fn() -> Rig) {
    let rig = make();
    for step in life() {
        let old = fs::read(&rig.settings).unwrap_or_default();
        rig.act(step.booted, step.act);
        let held = rig.read();
        let new = fs::read(&rig.settings).unwrap_or_default();
        let mut choices = Vec::new();
        for bytes in [&old, &new] {
            rig.write_settings(Some(bytes));
            choices.push((rig.view(step.booted), (rig.start)()));
        }
        for cut in (0..=new.len().min(old.len())).step_by(512) {
            for (head, tail) in [(&new, &old), (&old, &new)] {
                let mut torn = head.get(..cut).unwrap_or_default().to_vec();
                torn.extend_from_slice(tail.get(cut..).unwrap_or_default());
                rig.write_settings(Some(&torn));
                let choice = (rig.view(step.booted), (rig.start)());
                assert!(choices.contains(&choice), "{:?} torn at {cut}: {choice:?}, not {choices:?}", step.act);
            }
        }
        rig.write(&held);
    }
}

/// A device's life: an update from `a` to `b`, one back that is rolled back, one that is exhausted, one that is undone.
fn life() -> Vec<Step> {
    use Act::{Activate, MarkGood, MarkUnbootable, RollBack};
    const A: &[Group] = &[Group::A];
    const B: &[Group] = &[Group::B];
    const BOTH: &[Group] = &[Group::A, Group::B];
    let steps = [
        (Group::A, MarkUnbootable, A),
        (Group::A, Activate(3), BOTH),
        (Group::B, MarkGood, BOTH),
        // From here on group a is being written: it is not complete before the next activation.
        (Group::B, MarkUnbootable, BOTH),
        (Group::B, MarkUnbootable, B),
        (Group::B, Activate(2), BOTH),
        (Group::A, RollBack, BOTH),
        (Group::B, MarkUnbootable, BOTH),
        (Group::B, Activate(1), BOTH),
        (Group::A, MarkGood, BOTH),
        (Group::A, RollBack, BOTH),
        (Group::B, MarkGood, BOTH),
        (Group::B, MarkUnbootable, B),
    ];
    steps.into_iter().map(|(booted, act, complete)| Step { booted, act, complete }).collect()
}

/// Ways in which the settings can be useless.
fn damages() -> Vec<Option<Vec<u8>>> {
    let mut random = 0x2545_f491_4f6c_dd1d_u64;
    let noise = (0..1024).map(|_| {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        random.to_le_bytes()[0]
    });
    vec![
        None,
        Some(Vec::new()),
        Some(vec![0; 1024]),
        Some(vec![0xff; 1024]),
        Some(noise.collect()),
        Some(vec![b'#'; 7]),
    ]
}

#[expect(clippy::panic, clippy::expect_used, reason = "a failed check of the suite panics, as tests do")]
impl Rig {
    fn perform(&self, booted: Group, act: Act) -> Result<(), BootError> {
        let booted = BootedGroup::proven(booted);
        let target: TargetGroup = booted.target();
        match act {
            Act::MarkUnbootable => self.backend.mark_unbootable(target),
            Act::Activate(tries) => self.backend.activate(target, Tries::new(tries).expect("tries of the suite")),
            Act::MarkGood => self.backend.mark_good(booted),
            Act::RollBack => self.backend.roll_back(booted),
        }
    }

    fn act(&self, booted: Group, act: Act) {
        if let Err(error) = self.perform(booted, act) {
            panic!("{act:?} in {booted}: {error}");
        }
    }

    fn view(&self, booted: Group) -> bascule_core::BootView {
        self.backend.view(BootedGroup::proven(booted)).expect("the settings can be looked at")
    }

    fn read(&self) -> Files {
        self.files.iter().map(|path| fs::read(path).ok()).collect()
    }

    fn write(&self, files: &Files) {
        for (path, bytes) in self.files.iter().zip(files) {
            put(path, bytes.as_deref());
        }
    }

    fn write_settings(&self, bytes: Option<&[u8]>) {
        put(&self.settings, bytes);
    }
}

#[expect(clippy::expect_used, reason = "a failed check of the suite panics, as tests do")]
fn put(path: &std::path::Path, bytes: Option<&[u8]>) {
    match bytes {
        Some(bytes) => fs::write(path, bytes).expect("the rig's files can be written"),
        None if path.exists() => fs::remove_file(path).expect("the rig's files can be removed"),
        None => {}
    }
}
