//! The two watchdogs in the model's world, step by step, as `agent/src/watchdogs.rs` does them: between two steps the
//! daemon may act where it is alive, and the power may fail.

use bascule_core::*;

use crate::daemon::{Daemon, Decide, Outcome};
use crate::world::{Trouble, World};

/// How often the way back is tried to be written before the loader's counter has to do.
const TRIES_TO_WRITE: u32 = 6;
/// More decisions than the way from a fallback to rest ever takes.
const DECISIONS: usize = 16;

/// Where rollback-health is on its way back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    /// The deadline passed: is the system still on trial?
    Look,
    /// The daemon is to be killed.
    Kill,
    /// The record is taken from it.
    Open,
    /// The reason is to be recorded.
    Say,
    /// The loader is to be told.
    GoBack(u32),
    Reboot,
    /// There was a verdict.
    Disarmed,
}

/// One run of rollback-health that has come to its deadline.
#[derive(Debug, Clone)]
pub struct Deadline {
    pub stage: Stage,
    /// The record, once it is taken.
    record: Option<Daemon>,
    /// Whether the service manager can kill the daemon.
    kills: bool,
    /// A seeded mistake: the loader is told without another look, although the daemon may have committed meanwhile.
    blind: bool,
}

impl Deadline {
    pub fn new(kills: bool) -> Self {
        Deadline { stage: Stage::Look, record: None, kills, blind: false }
    }

    pub fn blindly(self, blind: bool) -> Self {
        Deadline { blind, ..self }
    }

    pub fn is_over(&self) -> bool {
        matches!(self.stage, Stage::Reboot | Stage::Disarmed)
    }

    /// The next step. `daemon` is the one that runs; it is gone once it is killed, and back when it was killed in vain.
    pub fn step(&mut self, world: &mut World, daemon: &mut Option<Daemon>) -> Result<(), Trouble> {
        let stage = self.stage;
        world.note(|| format!("    rollback-health: {stage:?}"));
        self.stage = match stage {
            Stage::Look if world.on_trial() => Stage::Kill,
            Stage::Look => Stage::Disarmed,
            Stage::Kill => {
                if self.kills {
                    *daemon = None;
                }
                Stage::Open
            }
            // With the daemon alive the record stays locked: the way back does not depend on it.
            Stage::Open if daemon.is_some() => Stage::GoBack(0),
            Stage::Open if !world.on_trial() => {
                *daemon = Some(world.start_daemon());
                Stage::Disarmed
            }
            Stage::Open => {
                self.record = Some(world.start_daemon());
                Stage::Say
            }
            Stage::Say => {
                self.say(world)?;
                Stage::GoBack(0)
            }
            Stage::GoBack(_) if !self.blind && world.is_committed() => Stage::Disarmed,
            Stage::GoBack(TRIES_TO_WRITE) => Stage::Reboot,
            Stage::GoBack(tries) => self.go_back(world, tries)?,
            Stage::Reboot | Stage::Disarmed => stage,
        };
        Ok(())
    }

    /// Worth a try, no more.
    fn say(&mut self, world: &mut World) -> Result<(), Trouble> {
        let Some(mut taken) = self.record.take() else { return Ok(()) };
        if matches!(taken.record.state, State::RollingBack { .. } | State::Newer) {
            return Ok(());
        }
        match world.step(&mut taken, &Step::RollingBack(RollbackReason::Deadline)) {
            Err(Trouble::PowerCut) => Err(Trouble::PowerCut),
            _ => Ok(()),
        }
    }

    fn go_back(&mut self, world: &mut World, tries: u32) -> Result<Stage, Trouble> {
        let order = world.order_in(world.booted).unwrap_or(0);
        world.happened.insert((order, "gave itself up"));
        match world.roll_back() {
            Ok(()) => Ok(Stage::Reboot),
            Err(Trouble::Failed) => Ok(Stage::GoBack(tries + 1)),
            Err(Trouble::PowerCut) => Err(Trouble::PowerCut),
        }
    }
}

impl World {
    pub fn on_trial(&self) -> bool {
        let view = self.seen_view();
        match view.settings {
            Settings::Intact => {
                matches!(view.status(self.booted), BootStatus::Trial { .. } | BootStatus::Exhausted)
            }
            Settings::Damaged => view.primary != self.booted,
        }
    }

    fn is_committed(&self) -> bool {
        self.view.settings == Settings::Intact && self.view.status(self.booted) == BootStatus::Good
    }

    /// rollback-altboot, before the daemon. `decisions`: how far it comes before it is killed.
    /// `Ok(false)`: the power failed.
    pub fn rollback_altboot(&mut self, decide: Decide, decisions: usize) -> Result<bool, String> {
        let mut own = self.start_daemon();
        for _ in 0..decisions.min(DECISIONS) {
            let seen = self.observed(&own, None);
            let action = decide(&own.record, &seen, &self.policy()).action;
            let ours = matches!(
                action,
                Action::MarkUnbootable | Action::Record(Step::RollingBack(_)) | Action::Record(Step::Committed)
            );
            if !ours || !own.record.state.has_target_beside(self.booted) {
                break;
            }
            self.note(|| "    rollback-altboot:".into());
            let turn = self.turn(decide, &mut own, None, None)?;
            if let Outcome::Trouble(trouble) = turn.outcome {
                return Ok(trouble != Trouble::PowerCut);
            }
        }
        Ok(true)
    }
}
