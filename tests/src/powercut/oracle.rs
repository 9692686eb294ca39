//! Judges one state: what the loader would start, whether the record tells the truth, and where recovery by the real
//! agent ends.

use std::collections::BTreeMap;
use std::fs;
use std::sync::Arc;

use anyhow::{Context, Result, bail, ensure};
use bascule_boot::grub::simulator::{self, Ending as Started, Saving};
use bascule_boot::{BootBackend, GrubBackend};
use bascule_core::{BootStatus, BootView, BootedGroup, Ending, Group, Record, Settings, State as Step};

use super::cycle::{Begin, Leg, Recording, slot};
use super::states::State;
use super::{DIRECTORIES, FALLBACK, GRUBENV};
use crate::rehearsal::{Boot, Rehearsal, System, Temper, Vendor, read, scratch, system_in};

/// More starts than recovery may take: one to go on, the loader's three tries, one on the old system, one spare.
const MOST_STARTS: usize = 6;
const METADATA: &str = "data/bascule/trusted-metadata.json";

/// A judge with a device of its own.
pub(super) struct Judge<'r> {
    recording: &'r Recording,
    device: Rehearsal,
    /// What lies on the device now, as far as it was not touched since.
    laid_out: BTreeMap<String, Arc<Vec<u8>>>,
    _dir: tempfile::TempDir,
}

impl<'r> Judge<'r> {
    pub(super) fn new(recording: &'r Recording) -> Result<Self> {
        let dir = scratch()?;
        let vendor: &Vendor = &recording.vendor;
        let device = Rehearsal::new_in(&dir.path().join("device"), vendor, &recording.running, &recording.systems)?;
        Ok(Judge { recording, device, laid_out: BTreeMap::new(), _dir: dir })
    }

    /// Judges by looking alone; nothing on the disk may be a lie or a trap.
    pub(super) fn look(&mut self, state: &State) -> Result<()> {
        self.lay_out(state)?;
        let grubenv = state.tree.get(GRUBENV).context("the loader's settings are gone")?;
        let fallback = state.tree.get(FALLBACK).context("the loader's fallback is gone")?;
        let picked = self.started(state, Some(grubenv), fallback)?;
        ensure!(self.whole(state, picked).is_some(), "I1: the loader starts {picked}, which is not complete");
        if let Some(asked) = state.said.asked {
            ensure!(picked == asked, "a restart into {asked} was asked for, the loader would start {picked}");
        }
        let without = self.started(state, None, fallback)?;
        ensure!(self.whole(state, without).is_some(), "I1: without settings the loader starts {without}, not complete");
        let view = self.backend().view(BootedGroup::proven(state.said.booted))?;
        if view.settings == Settings::Intact {
            ensure!(view.status(without) == BootStatus::Good, "the fallback names {without}, which is not good");
            for group in Group::ALL {
                let startable = view.status(group) != BootStatus::Unbootable;
                ensure!(!startable || self.whole(state, group).is_some(), "{group} may be started and is not complete");
            }
        }
        let record = self.device.record().context("the record cannot be read")?;
        let (held, said) = (record.generation, state.said.acknowledged);
        ensure!(held >= said, "generation {said} was called durable, {held} is there");
        self.intent_came_first(state, &record)?;
        self.record_is_true(state, &record, &view)?;
        let committed =
            record.installed.as_ref().filter(|installed| installed.manifest == self.recording.offered.manifest);
        if let Some(installed) = committed.filter(|_| held <= said) {
            let kept = without == installed.target;
            ensure!(kept, "the commit is recorded, and without settings the loader goes back to {without}");
        }
        Ok(())
    }

    /// Neither the loader's files nor the target are written before the record says what for.
    fn intent_came_first(&self, state: &State, record: &Record) -> Result<()> {
        if knows(record, &self.recording.offered) {
            return Ok(());
        }
        for path in [GRUBENV, FALLBACK, slot(Group::A), slot(Group::B)] {
            let unchanged = state.tree.get(path) == self.recording.start.get(path);
            ensure!(unchanged, "{path} was written before the record says what for");
        }
        Ok(())
    }

    fn record_is_true(&self, state: &State, record: &Record, view: &BootView) -> Result<()> {
        let holds = |group: Group, manifest| self.whole(state, group).is_some_and(|system| system.manifest == manifest);
        match &record.state {
            Step::Prepared { deployment } | Step::Activating { deployment } => {
                ensure!(holds(deployment.target, deployment.manifest), "the record says prepared, the slot is not");
            }
            Step::Activated { deployment, .. } => {
                let armed = view.status(deployment.target) != BootStatus::Unbootable;
                ensure!(armed, "the record says activated, the loader is not armed");
            }
            _ => {}
        }
        if let Some(installed) = &record.installed {
            let good = view.status(installed.target) == BootStatus::Good;
            ensure!(good, "the record says committed, the loader calls {} not good", installed.target);
            ensure!(holds(installed.target, installed.manifest), "the record says committed, the slot is not complete");
        }
        let last = record.history.last().filter(|_| record.state == Step::Idle);
        if let Some(entry) = last.filter(|entry| matches!(entry.ending, Ending::RolledBack { .. })) {
            let disarmed = view.status(entry.deployment.target) == BootStatus::Unbootable;
            ensure!(disarmed, "the record says rolled back, the loader may still start it");
        }
        if knows(record, &self.recording.offered) {
            let remembered = state.tree.get(METADATA) == self.recording.end.get(METADATA);
            ensure!(remembered, "the record knows the bundle, and older metadata would be accepted");
        }
        Ok(())
    }

    /// Lets the real agent go on from the state, start by start, and judges where it ends.
    pub(super) fn recover(&mut self, state: &State) -> Result<()> {
        self.lay_out(state)?;
        let before = self.device.record()?;
        let accepted = knows(&before, &self.recording.offered);
        // Whatever is touched from here on is laid out anew for the next state.
        self.laid_out.clear();
        let watchdog = self.recording.scenario.temper == Temper::Panics || state.key[0] & 1 == 1;
        self.settle(watchdog)?;
        self.at_rest()?;
        let offered = self.recording.offered.clone();
        let record = self.device.record()?;
        if accepted {
            match offered.temper {
                Temper::Good => ensure!(self.runs(&offered)?, "accepted and not installed: {:?}", record.history),
                _ => ensure!(record.denied(&offered.manifest).is_some(), "accepted, bad, and not denied"),
            }
        }
        self.offer_again(&record, &offered, watchdog)
    }

    /// The same with the loader's settings lost: where it ends depends on the moment, that it ends well does not.
    pub(super) fn recover_without_settings(&mut self, state: &State) -> Result<()> {
        self.lay_out(state)?;
        self.laid_out.clear();
        fs::write(self.device.grubenv(), [0; 1024])?;
        self.settle(state.key[0] & 1 == 0)?;
        self.sound().map(drop)
    }

    /// Lets the agent go on from the state, recorded, to be cut once more.
    pub(super) fn leg(&mut self, state: &State) -> Result<Leg> {
        self.lay_out(state)?;
        self.laid_out.clear();
        Leg::make(&mut self.device)
    }

    fn offer_again(&mut self, record: &Record, offered: &System, watchdog: bool) -> Result<()> {
        let code = if self.runs(offered)? {
            "bundle.same"
        } else if record.denied(&offered.manifest).is_some() {
            "bundle.denied"
        } else {
            let run = self.device.install(&offered.bundle)?;
            ensure!(run.wants_reboot(), "offered again: {run:?}");
            self.settle(watchdog)?;
            self.at_rest()?;
            let good = offered.temper == Temper::Good;
            ensure!(self.runs(offered)? == good, "offered again: it runs, or does not, against its temper");
            return Ok(());
        };
        let before = super::cycle::snapshot(self.device.root())?;
        let run = self.device.install(&offered.bundle)?;
        ensure!(run.error_code() == Some(code), "offered again, {code} was expected: {run:?}");
        ensure!(super::cycle::snapshot(self.device.root())? == before, "a refused bundle changed the disk");
        Ok(())
    }

    fn settle(&mut self, watchdog: bool) -> Result<()> {
        for _ in 0..MOST_STARTS {
            let Boot::Up { group, .. } = self.device.boot()? else { continue };
            let before = read(&self.device.slot(group))?;
            if watchdog {
                let run = self.device.rollback_altboot()?;
                ensure!(run.code == Some(0), "rollback-altboot: {run:?}");
            }
            let run = self.device.run()?;
            ensure!(read(&self.device.slot(group))? == before, "I2: the booted slot was written");
            match run.code {
                Some(0) => return Ok(()),
                Some(4) => {}
                _ => bail!("the agent failed: {run:?}"),
            }
        }
        bail!("I4: not at rest after {MOST_STARTS} starts: {:?}", self.device.record()?.state)
    }

    /// What must hold whenever the agent rests.
    fn at_rest(&self) -> Result<()> {
        let running = self.sound()?;
        let record = self.device.record()?;
        match &record.installed {
            Some(installed) => {
                ensure!(
                    installed.manifest == running.manifest,
                    "the record names another system than the one that runs"
                );
            }
            None => ensure!(running.release.order == 1, "{} runs, the record knows nothing", running.release.version),
        }
        let run = self.device.run()?;
        let unchanged = run.code == Some(0) && self.device.record()? == record;
        ensure!(unchanged, "I9: at rest, and a second run does more: {run:?}");
        Ok(())
    }

    /// A good system runs, the loader knows it, with and without its settings, and nothing is on its way.
    fn sound(&self) -> Result<&System> {
        let booted = self.device.booted().context("nothing is booted")?;
        let running = self.device.holds(booted)?.context("what runs is not complete")?;
        ensure!(running.temper == Temper::Good, "it rests on {:?}, which is {:?}", running.release, running.temper);
        let view = self.backend().view(BootedGroup::proven(booted))?;
        ensure!(view.settings == Settings::Intact && view.status(booted) == BootStatus::Good, "at rest, not good");
        let fallback = read(&self.device.fallback())?;
        let start = simulator::start(None, Some(&fallback), |_| true, Saving::Works);
        let Started::Started(fallback) = start.ending else {
            bail!("without settings the loader has nothing to start")
        };
        // Where the second update begins, the fallback was left behind on purpose; the next update moves it.
        let left = self.recording.scenario.begin == Begin::SecondUpdate && self.runs(&self.recording.running)?;
        ensure!(fallback == booted || left, "at rest on {booted}, and the fallback names {fallback}");
        let complete = self.device.holds(fallback)?.is_some() && view.status(fallback) == BootStatus::Good;
        ensure!(complete, "at rest, and the fallback names {fallback}, which is not good");
        let state = self.device.record()?.state;
        ensure!(state == Step::Idle, "at rest in {state:?}");
        Ok(running)
    }

    fn backend(&self) -> GrubBackend {
        GrubBackend::new(self.device.root().join("boot/efi/bascule"))
    }

    fn runs(&self, system: &System) -> Result<bool> {
        let booted = self.device.booted().context("nothing is booted")?;
        Ok(self.device.holds(booted)?.is_some_and(|running| running.manifest == system.manifest))
    }

    fn started(&self, state: &State, grubenv: Option<&Arc<Vec<u8>>>, fallback: &[u8]) -> Result<Group> {
        // Everything loads: a torn slot may well have a kernel.
        let start = simulator::start(grubenv.map(|bytes| bytes.as_slice()), Some(fallback), |_| true, Saving::Works);
        match start.ending {
            Started::Started(group) => Ok(group),
            Started::Recovery => bail!("I1: the loader has nothing to start, {}: {:?}", state.said.booted, start.said),
        }
    }

    fn whole(&self, state: &State, group: Group) -> Option<&System> {
        let bytes = state.tree.get(slot(group))?;
        system_in(bytes, &self.recording.systems)
    }

    fn lay_out(&mut self, state: &State) -> Result<()> {
        let root = self.device.root().to_owned();
        if self.laid_out.is_empty() {
            for directory in DIRECTORIES.iter().filter(|directory| **directory != super::SLOTS) {
                for entry in fs::read_dir(root.join(directory))? {
                    let path = entry?.path();
                    if !path.ends_with("grub.cfg") && !path.ends_with(super::TOLD) {
                        fs::remove_file(path)?;
                    }
                }
            }
        }
        for path in self.laid_out.keys().filter(|path| !state.tree.contains_key(*path)) {
            fs::remove_file(root.join(path))?;
        }
        for (path, bytes) in &state.tree {
            if !self.laid_out.get(path).is_some_and(|there| Arc::ptr_eq(there, bytes)) {
                fs::write(root.join(path), bytes.as_slice())?;
            }
        }
        self.laid_out.clone_from(&state.tree);
        Ok(())
    }
}

/// Whether the record has ever heard of the bundle.
fn knows(record: &Record, system: &System) -> bool {
    let on_its_way = record.state.deployment().is_some_and(|deployment| deployment.manifest == system.manifest);
    on_its_way || record.history.iter().any(|entry| entry.deployment.manifest == system.manifest)
}
