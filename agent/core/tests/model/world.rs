//! A world small enough to search: two slots, a loader, a record, systems of different tempers, and a power supply that
//! fails after chosen durable writes.
//!
//! Every durable write is one call of [`World::write`]. The power is cut right after the writes whose numbers are in
//! `cuts`, or where the faults draw it; a cut before a write is the cut after the write before it. A settings write may
//! also be torn by its cut, and any write may fail without effect, or be done and be reported as failed.
//!
//! The loader refuses what the real backends refuse, in their order of writes. `daemon.rs` is the agent in this world.

use std::collections::BTreeSet;

use bascule_core::*;

use crate::random::Faults;

/// How one system behaves when it is started.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Temper {
    Good,
    Panics,
    Unhealthy,
    /// Its health checks never come to an end.
    Hangs,
    /// The loader cannot load its kernel and goes on to the opposite group.
    DoesNotLoad,
}

/// What a slot holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Content {
    Torn,
    System { order: u64, temper: Temper },
}

/// Which loader is simulated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Loader {
    /// Counts tries down, as GRUB, U-Boot and systemd-boot do.
    Counting,
    /// Starts the target once, as `BootNext` does.
    OneShot,
}

/// Why a write did not come to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trouble {
    /// The power failed: everything not durable is gone.
    PowerCut,
    /// An error was returned, whatever is on the disk.
    Failed,
}

/// Where a write goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    Settings,
    Fallback,
    Record,
    Slot,
    /// No write: a hook ran to its end, and the power may fail before anything says so.
    Hook,
}

/// What is true of one slot, whatever anybody says of it.
#[derive(Debug, Clone, Copy, Default)]
pub struct Truth {
    /// Its system passed its checks, or a person committed it.
    pub proven: bool,
    /// It was made good without proof because there was no good group to go back to.
    pub last_resort: bool,
    /// Starts since it was written, as long as it is neither.
    pub starts: u32,
}

/// More starts than any loader grants.
const GIVEN_UP: u32 = 1000;

#[derive(Debug, Clone)]
pub struct World {
    pub loader: Loader,
    pub slots: [Content; 2],
    pub truth: [Truth; 2],
    pub view: BootView,
    pub fallback: Group,
    /// The record on the disk.
    pub record: Record,
    /// The system that runs, once the loader has started one.
    pub booted: Group,
    pub boots: u32,
    pub runs: u32,
    pub offers: u32,
    pub deadline_passed: bool,
    /// Rounds of checks without a verdict in this boot.
    pub rounds: u32,
    pub writes: usize,
    pub cuts: Vec<usize>,
    pub faults: Faults,
    pub torn_settings: bool,
    /// A seeded mistake of the loop: the slots are written without telling the loader once more. Where the target is
    /// unbootable already, its fallback may still name it.
    pub hasty: bool,
    pub hooks: bool,
    pub cancel_after: Option<usize>,
    /// Temper of the system with a given order.
    pub tempers: Vec<Temper>,
    /// Starts of each offered order.
    pub starts: Vec<u64>,
    /// Orders activated although the deny-list held them.
    pub retried: Vec<u64>,
    /// What really happened to which order, to hold the record's reasons against.
    pub happened: BTreeSet<(u64, &'static str)>,
    /// Deployments that were begun, and those that another one took the place of.
    pub begun: BTreeSet<String>,
    pub superseded: BTreeSet<String>,
    /// The hooks that ran to their end, with the deployment they ran for.
    pub hooks_run: Vec<(&'static str, String)>,
    /// The first promise that was broken.
    pub broken: Option<String>,
    pub quiet: bool,
    pub trace: Vec<String>,
}

pub fn index(group: Group) -> usize {
    usize::from(group == Group::B)
}

impl World {
    pub fn new(loader: Loader, cuts: &[usize]) -> Self {
        let proven = Truth { proven: true, ..Truth::default() };
        World {
            loader,
            slots: [Content::System { order: 1, temper: Temper::Good }, Content::Torn],
            truth: [proven, Truth::default()],
            view: BootView {
                settings: Settings::Intact,
                primary: Group::A,
                a: BootStatus::Good,
                b: BootStatus::Unbootable,
            },
            fallback: Group::A,
            record: Record::default(),
            booted: Group::A,
            boots: 0,
            runs: 0,
            offers: 0,
            deadline_passed: false,
            rounds: 0,
            writes: 0,
            cuts: cuts.to_vec(),
            faults: Faults::none(),
            torn_settings: false,
            hasty: false,
            hooks: false,
            cancel_after: None,
            tempers: TEMPERS.to_vec(),
            starts: Vec::new(),
            retried: Vec::new(),
            happened: BTreeSet::new(),
            begun: BTreeSet::new(),
            superseded: BTreeSet::new(),
            hooks_run: Vec::new(),
            broken: None,
            quiet: false,
            trace: Vec::new(),
        }
    }

    pub fn note(&mut self, what: impl FnOnce() -> String) {
        if !self.quiet {
            self.trace.push(what());
        }
    }

    pub fn breaks(&mut self, what: String) {
        self.broken.get_or_insert(what);
    }

    pub fn order_in(&self, group: Group) -> Option<u64> {
        match self.slots[index(group)] {
            Content::System { order, .. } => Some(order),
            Content::Torn => None,
        }
    }

    pub fn policy(&self) -> Policy {
        let tries = match self.loader {
            Loader::Counting => Tries::DEFAULT,
            Loader::OneShot => Tries::new(1).unwrap(),
        };
        Policy { tries, max_attempts: 10 }
    }

    pub fn boot_id(&self) -> BootId {
        BootId(self.boots.to_string())
    }

    /// One durable write: it may fail, and the power may fail right after it.
    pub fn write(
        &mut self,
        place: Place,
        what: impl FnOnce(&World) -> String,
        change: impl FnOnce(&mut World),
    ) -> Result<(), Trouble> {
        let fails = match place {
            Place::Settings | Place::Fallback => self.faults.loader_fails,
            Place::Record => self.faults.record_fails,
            Place::Slot | Place::Hook => 0,
        };
        if self.faults.random.chance(fails) {
            self.note(|| format!("    a write fails: {place:?}"));
            return Err(Trouble::Failed);
        }
        change(self);
        if !self.quiet {
            let line = format!("{:3} {}", self.writes, what(self));
            self.trace.push(line.chars().take(150).collect());
        }
        self.writes += 1;
        if self.cuts.contains(&(self.writes - 1)) || self.faults.random.chance(self.faults.cut) {
            self.note(|| "    -- power cut --".into());
            let torn = self.torn_settings || self.faults.random.chance(self.faults.torn);
            if place == Place::Settings && torn {
                self.damage_settings();
            }
            return Err(Trouble::PowerCut);
        }
        if !matches!(place, Place::Slot | Place::Hook) && self.faults.random.chance(self.faults.late) {
            self.note(|| "    ... and is reported as failed".into());
            return Err(Trouble::Failed);
        }
        Ok(())
    }

    pub fn damage_settings(&mut self) {
        self.view.settings = Settings::Damaged;
        self.note(|| "    the settings are damaged".into());
        self.happened.insert((0, "settings torn"));
    }

    /// The data partition was made anew.
    pub fn lose_record(&mut self) {
        self.note(|| "    the record is lost".into());
        self.record = Record::default();
        self.begun.clear();
    }

    /// What the loader shows to the agent: on damaged settings only its fallback.
    pub fn seen_view(&self) -> BootView {
        match self.view.settings {
            Settings::Intact => self.view,
            Settings::Damaged => BootView { settings: Settings::Damaged, ..rebuilt(self.fallback) },
        }
    }
}

/// The loader's side: what it starts.
impl World {
    /// Lets the loader pick and start groups until one comes up. `Err` is a violated promise.
    pub fn boot(&mut self) -> Result<(), String> {
        match self.start()? {
            true => Ok(()),
            false => Err("nothing can be started: the loader is at its recovery menu".into()),
        }
    }

    /// The same; `Ok(false)` is the recovery menu.
    pub fn start(&mut self) -> Result<bool, String> {
        for _ in 0..20 {
            self.boots += 1;
            (self.deadline_passed, self.rounds) = (false, 0);
            let Some(group) = self.pick()? else { return Ok(false) };
            let Content::System { order, temper } = self.slots[index(group)] else {
                return Err(format!("a torn slot was started: {group}"));
            };
            self.note(|| format!("    loader starts {group} (order {order}, {temper:?})"));
            if temper != Temper::Panics {
                self.booted = group;
                return Ok(true);
            }
        }
        Err("nothing came up in 20 starts".into())
    }

    /// One start of the loader.
    fn pick(&mut self) -> Result<Option<Group>, String> {
        if self.view.settings == Settings::Damaged {
            self.started(self.fallback)?;
            return Ok(self.loads(self.fallback).then_some(self.fallback));
        }
        for group in [self.view.primary, self.view.primary.opposite()] {
            match self.view.status(group) {
                BootStatus::Good => {}
                BootStatus::Trial { tries_left: 1 } => set(&mut self.view, group, BootStatus::Exhausted),
                BootStatus::Trial { tries_left } => {
                    set(&mut self.view, group, BootStatus::Trial { tries_left: tries_left - 1 });
                }
                BootStatus::Unbootable | BootStatus::Exhausted => continue,
            }
            self.started(group)?;
            if self.loads(group) {
                return Ok(Some(group));
            }
            self.note(|| format!("    group {group} does not load"));
        }
        Ok(None)
    }

    /// A system that is not proven may be started as often as the loader was told, and no more.
    fn started(&mut self, group: Group) -> Result<(), String> {
        let Some(order) = self.order_in(group) else { return Ok(()) };
        self.starts.push(order);
        let tries = u32::from(self.policy().tries.get());
        let truth = &mut self.truth[index(group)];
        if !truth.proven && !truth.last_resort {
            truth.starts += 1;
            if truth.starts > tries {
                return Err(format!("order {order} was started {} times without proof", truth.starts));
            }
        }
        Ok(())
    }

    fn loads(&self, group: Group) -> bool {
        !matches!(self.slots[index(group)], Content::System { temper: Temper::DoesNotLoad, .. })
    }

    /// Whether the loader could start a group, now or with its settings lost.
    pub fn may_start(&self, group: Group) -> bool {
        let startable = matches!(self.view.status(group), BootStatus::Good | BootStatus::Trial { .. });
        self.fallback == group || self.view.settings == Settings::Intact && startable
    }

    /// A system that nobody has proven must not be what the loader starts uncounted.
    pub fn armed(&self) -> Result<(), String> {
        let truth = self.truth[index(self.booted)];
        let kept = match self.view.settings {
            Settings::Intact => self.view.status(self.booted) == BootStatus::Good,
            Settings::Damaged => self.fallback == self.booted,
        };
        if kept && !truth.proven && !truth.last_resort {
            return Err(format!("order {:?} runs unproven and nothing is armed", self.order_in(self.booted)));
        }
        Ok(())
    }
}

/// The backend's side: what may be written, in which order.
impl World {
    fn put_fallback(&mut self, group: Group) -> Result<(), Trouble> {
        if self.fallback == group {
            return Ok(());
        }
        self.write(Place::Fallback, |_| format!("fallback: {group}"), |world| world.fallback = group)
    }

    fn put_settings(&mut self, what: &str, view: BootView) -> Result<(), Trouble> {
        if self.view == view {
            return Ok(());
        }
        self.write(Place::Settings, |world| format!("loader: {what} -> {:?}", world.view), |world| world.view = view)
    }

    pub fn mark_unbootable(&mut self) -> Result<(), Trouble> {
        let (booted, target) = (self.booted, self.booted.opposite());
        let mut view = self.view;
        match view.settings {
            Settings::Intact if view.status(booted) != BootStatus::Good => return self.refused("mark_unbootable"),
            Settings::Intact => {
                set(&mut view, target, BootStatus::Unbootable);
                view.primary = booted;
            }
            Settings::Damaged => view = rebuilt(booted),
        }
        self.put_fallback(booted)?;
        self.put_settings("mark_unbootable", view)
    }

    pub fn activate(&mut self) -> Result<(), Trouble> {
        let (booted, target) = (self.booted, self.booted.opposite());
        let mut view = self.view;
        if view.settings == Settings::Damaged || view.status(booted) != BootStatus::Good {
            return self.refused("activate");
        }
        set(&mut view, target, BootStatus::Trial { tries_left: self.policy().tries.get() });
        view.primary = target;
        self.put_fallback(booted)?;
        self.put_settings("activate", view)
    }

    pub fn mark_good(&mut self) -> Result<(), Trouble> {
        let mut view = self.view;
        match view.settings {
            Settings::Intact => {
                set(&mut view, self.booted, BootStatus::Good);
                view.primary = self.booted;
            }
            Settings::Damaged => view = rebuilt(self.booted),
        }
        self.put_settings("mark_good", view)?;
        self.put_fallback(self.booted)
    }

    pub fn roll_back(&mut self) -> Result<(), Trouble> {
        let (booted, opposite) = (self.booted, self.booted.opposite());
        if self.seen_view().status(opposite) != BootStatus::Good {
            return self.refused("roll_back");
        }
        let mut view = self.view;
        match view.settings {
            Settings::Intact => {
                set(&mut view, booted, BootStatus::Unbootable);
                view.primary = opposite;
            }
            Settings::Damaged => view = rebuilt(opposite),
        }
        self.put_settings("roll_back", view)?;
        self.put_fallback(opposite)?;
        // Whatever it was: given up, it is not started again.
        self.truth[index(booted)] = Truth { starts: GIVEN_UP, ..Truth::default() };
        Ok(())
    }

    /// `boot.no-good-group`, `boot.damaged`: nothing is written.
    fn refused(&mut self, what: &str) -> Result<(), Trouble> {
        self.note(|| format!("    the loader's settings do not allow {what}"));
        Err(Trouble::Failed)
    }
}

/// Temper of the system with a given order: the scenarios use fixed numbers.
pub const TEMPERS: [Temper; 8] = [
    Temper::Good,
    Temper::Good,
    Temper::Good,
    Temper::Unhealthy,
    Temper::Panics,
    Temper::Good,
    Temper::Unhealthy,
    Temper::Panics,
];

pub fn set(view: &mut BootView, group: Group, status: BootStatus) {
    match group {
        Group::A => view.a = status,
        Group::B => view.b = status,
    }
}

/// Whole new settings: `good` is good and primary, the opposite group unbootable.
fn rebuilt(good: Group) -> BootView {
    let mut view =
        BootView { settings: Settings::Intact, primary: good, a: BootStatus::Unbootable, b: BootStatus::Unbootable };
    set(&mut view, good, BootStatus::Good);
    view
}
