//! The durable record: where an update stands, what was refused for good, and what happened before.
//!
//! It lives on the data partition and is read by whichever system is booted, also by an *older* agent after a
//! rollback: unknown fields are ignored, and a state this version does not know means that someone newer was here
//! ([`State::Newer`]), in which case nothing is touched. Nothing in it is needed to boot.
//!
//! Probation is not stored. It is [`State::Activated`], booted from the target, and not yet good: one fact in one
//! place. [`Record::advance`] is the only way from one record to the next.

use serde::{Deserialize, Serialize};

use crate::report::ErrorReport;
use crate::words::{BootId, DeploymentId, Digest, Group};

/// Version of the record's form. Raised only when an older agent must not touch what a newer one wrote.
pub const SCHEMA: u32 = 1;
/// How many history entries are kept.
pub const HISTORY_LIMIT: usize = 50;
/// How many bundles the deny-list holds; the oldest is forgotten first.
pub const DENY_LIMIT: usize = 64;

/// Everything that survives a power cut.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// Version of the form, [`SCHEMA`].
    pub schema: u32,
    /// Counts the writes; of two valid copies the higher one wins.
    pub generation: u64,
    /// Where the update stands.
    pub state: State,
    /// Bundles that were rolled back here and are not taken again.
    #[serde(default)]
    pub deny: Vec<Denied>,
    /// What happened, oldest first, at most [`HISTORY_LIMIT`].
    #[serde(default)]
    pub history: Vec<HistoryEntry>,
    /// The least security epoch that may be installed; raised only by a commit.
    #[serde(default)]
    pub epoch_floor: u64,
    /// The deployment that was committed last and not rolled back since.
    #[serde(default)]
    pub installed: Option<Deployment>,
    /// Why the last update failed, until the next one begins.
    #[serde(default)]
    pub last_error: Option<ErrorReport>,
    /// Hooks of the end of an update that have not run to their end yet.
    #[serde(default)]
    pub hooks_due: Option<HooksDue>,
}

/// Hooks that are due after an update has ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HooksDue {
    /// What has ended.
    pub deployment: Deployment,
    /// Why it was rolled back; `None`: it was committed.
    pub reason: Option<RollbackReason>,
}

impl Default for Record {
    fn default() -> Self {
        Record {
            schema: SCHEMA,
            generation: 0,
            state: State::Idle,
            deny: Vec::new(),
            history: Vec::new(),
            epoch_floor: 0,
            installed: None,
            last_error: None,
            hooks_due: None,
        }
    }
}

/// Where the update stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "name", rename_all = "kebab-case")]
pub enum State {
    /// No update is on its way.
    Idle,
    /// The target slots are being written.
    Preparing {
        /// What is being written.
        deployment: Deployment,
        /// Which try of ours this is.
        attempt: Attempt,
    },
    /// The target slots hold the verified images; the loader does not know yet.
    Prepared {
        /// What was written.
        deployment: Deployment,
    },
    /// The intent to arm the loader: its write may or may not have happened.
    Activating {
        /// What is to be started.
        deployment: Deployment,
    },
    /// The loader is armed for a counted trial.
    Activated {
        /// What is to be, or was, started.
        deployment: Deployment,
        /// The boot in which the loader was armed; empty once the target has come up and said so.
        armed_in: BootId,
    },
    /// The way back was decided; the loader may or may not have been disarmed.
    RollingBack {
        /// What is given up.
        deployment: Deployment,
        /// Why.
        reason: RollbackReason,
        /// The boot in which that was decided.
        decided_in: BootId,
    },
    /// A newer agent left a state that this one does not know: nothing is touched.
    #[serde(other)]
    Newer,
}

impl State {
    /// Whether it speaks of a target that was activated, and that is not what runs.
    #[must_use]
    pub fn has_target_beside(&self, booted: Group) -> bool {
        match self {
            State::Activating { deployment }
            | State::Activated { deployment, .. }
            | State::RollingBack { deployment, .. } => deployment.target != booted,
            _ => false,
        }
    }

    /// The deployment on its way, if there is one.
    #[must_use]
    pub fn deployment(&self) -> Option<&Deployment> {
        match self {
            State::Preparing { deployment, .. }
            | State::Prepared { deployment }
            | State::Activating { deployment }
            | State::Activated { deployment, .. }
            | State::RollingBack { deployment, .. } => Some(deployment),
            State::Idle | State::Newer => None,
        }
    }
}

/// One of our tries at preparing a deployment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attempt {
    /// Counted from 1.
    pub number: u32,
    /// The run of the daemon that makes it; another run must count a new attempt first.
    pub run: String,
}

/// What is done with a deployment once it is prepared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Then {
    /// Wait for `activate`.
    Stop,
    /// Activate at once.
    Activate,
}

/// One bundle on its way into one group.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Deployment {
    /// Identifies it on this device.
    pub id: DeploymentId,
    /// SHA-256 of the signed manifest.
    pub manifest: Digest,
    /// Product's name.
    pub product: String,
    /// Version it brings.
    pub version: String,
    /// `order` it brings.
    pub order: u64,
    /// Security epoch it brings.
    pub security_epoch: u64,
    /// The group it goes into.
    pub target: Group,
    /// Version that was running when it began.
    pub from_version: String,
    /// Where the bundle comes from: a URL, a path, or `-` for standard input.
    pub source: String,
    /// What follows the preparation.
    pub then: Then,
    /// Who asked for it.
    pub requested_by: String,
    /// When it began, seconds since 1970.
    pub began: i64,
    /// What the target slots hold once it is prepared.
    #[serde(default)]
    pub images: Vec<Image>,
    /// Where its bytes came from, once it is prepared.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub transfer: Option<Transfer>,
    /// How the old system did, taken before the loader was armed.
    #[serde(default)]
    pub baseline: Baseline,
}

/// The image of one payload.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Image {
    /// The role of its slot.
    pub role: String,
    /// Its length in bytes.
    pub size: u64,
    /// Its SHA-256.
    pub sha256: Digest,
}

/// How the system that was good did before it was left: the measure of the one that follows.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Baseline {
    /// The required health checks that failed. They cannot cause a rollback.
    pub failed: Vec<String>,
}

/// Where the bytes of a deployment came from.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Transfer {
    /// The version whose image a delta was applied to, or that image's SHA-256 where the bundle names no version;
    /// `None`: full images were taken.
    pub base: Option<String>,
    /// Bytes that came from the source, since the daemon that prepared it was started.
    pub fetched: u64,
    /// Image bytes made of what the booted slots hold.
    pub copied: u64,
    /// Image bytes that the target held already, from an earlier attempt.
    pub kept: u64,
    /// Image bytes that a delta should have made and that were taken whole, because the booted slots do not hold what
    /// the delta expects.
    pub healed: u64,
    /// Bytes that the full data of the chunks made by a delta would have taken on top.
    pub saved: u64,
}

/// Why a deployment was given up after it had been activated.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "why", rename_all = "kebab-case")]
pub enum RollbackReason {
    /// Required health checks failed in probation.
    Unhealthy {
        /// Which, and what they said.
        detail: String,
    },
    /// Probation was not passed before its deadline.
    Deadline,
    /// The loader used up its tries: the system did not come up.
    DidNotBoot,
    /// It came up, and the loader used up its tries before it had finished probation.
    NotProven,
    /// The loader started the old group although tries were left: it could not load the target, or a person chose.
    LoaderSkippedTarget,
    /// The boot settings were damaged and the loader used its fallback: no proof against the image.
    SettingsLost,
    /// The target was found unbootable with no record of who decided it: it gave itself up, or settings were lost of which
    /// an older copy was still whole.
    GaveUpUnrecorded,
    /// A person asked for it.
    Operator,
    /// Cancelled before the reboot.
    Cancelled,
    /// A reason only a newer agent knows.
    #[serde(other)]
    Unknown,
}

impl RollbackReason {
    /// Whether the reason speaks against the bundle, so that it must not be tried here again.
    #[must_use]
    pub fn denies(&self) -> bool {
        !matches!(self, RollbackReason::SettingsLost | RollbackReason::LoaderSkippedTarget | RollbackReason::Cancelled)
    }

    /// The reason in one line for people.
    #[must_use]
    pub fn explain(&self) -> String {
        match self {
            RollbackReason::Unhealthy { detail } => format!("it was unhealthy: {detail}"),
            RollbackReason::Deadline => "it was not proven healthy before the deadline".into(),
            RollbackReason::DidNotBoot => "it did not boot: the loader used up its tries and fell back".into(),
            RollbackReason::NotProven => {
                "it came up, but was started anew before it had finished probation until the tries were used up".into()
            }
            RollbackReason::LoaderSkippedTarget => {
                "the loader started the old group with tries left: it could not load the new one, or a person chose"
                    .into()
            }
            RollbackReason::SettingsLost => "the boot settings were damaged and the loader fell back".into(),
            RollbackReason::GaveUpUnrecorded => {
                "it was not armed any more, and nothing says why: it gave itself up, or boot settings were lost".into()
            }
            RollbackReason::Operator => "a person rolled it back".into(),
            RollbackReason::Cancelled => "it was cancelled before the reboot".into(),
            RollbackReason::Unknown => "for a reason only a newer agent knows".into(),
        }
    }
}

/// A bundle that is not taken again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Denied {
    /// SHA-256 of its manifest.
    pub manifest: Digest,
    /// Its version, for people.
    pub version: String,
    /// Why.
    pub reason: RollbackReason,
    /// When, seconds since 1970.
    pub at: i64,
    /// How often its bytes were rolled back here.
    #[serde(default = "once")]
    pub attempts: u32,
    /// A person has allowed them to be tried again.
    #[serde(default)]
    pub allowed: bool,
}

fn once() -> u32 {
    1
}

/// How a deployment ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "ending", rename_all = "kebab-case")]
pub enum Ending {
    /// Committed: it is the good system now.
    Committed,
    /// Went back to the group that was good.
    RolledBack {
        /// Why.
        reason: RollbackReason,
    },
    /// Never activated.
    Failed {
        /// What went wrong.
        error: ErrorReport,
    },
    /// Cancelled before it was activated.
    Cancelled,
    /// Had to go back, but the loader brings this group up again: the other one cannot be loaded.
    Stranded {
        /// Why it had to go back.
        reason: RollbackReason,
    },
    /// An ending only a newer agent knows.
    #[serde(other)]
    Unknown,
}

/// One line of history.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HistoryEntry {
    /// What it was about.
    pub deployment: Deployment,
    /// How it ended.
    #[serde(flatten)]
    pub ending: Ending,
    /// When it ended, seconds since 1970.
    pub at: i64,
}

/// One durable step from a record to the next.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(clippy::large_enum_variant, reason = "one at a time, on the stack, a few for each update")]
pub enum Step {
    /// A checked offer was accepted: begin to prepare it.
    Preparing(Deployment),
    /// Another attempt begins, made by this run of the daemon.
    NextAttempt,
    /// The target slots hold the verified images.
    Prepared(Transfer),
    /// The preparation ended without success.
    Abandoned(Ending),
    /// Intent: the loader is about to be armed. The old system did as the baseline says.
    Activating(Baseline),
    /// The loader is armed.
    Activated,
    /// The loader says good.
    Committed,
    /// The way back is decided.
    RollingBack(RollbackReason),
    /// A committed system is given up on a person's request.
    RollingBackInstalled,
    /// Back on the old group, target disarmed.
    RolledBack,
    /// Rebooted to go back, and came up on the same group again.
    Stranded,
    /// The hooks of the end of an update have run.
    HooksDone,
    /// A person allows the bundle of this manifest to be tried again.
    Allowed(Digest),
}

/// What a step needs to know besides the record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stamp {
    /// Seconds since 1970.
    pub now: i64,
    /// This boot.
    pub boot_id: BootId,
    /// This run of the daemon.
    pub run: String,
    /// The booted group.
    pub booted: Group,
}

impl Record {
    /// The entry of the deny-list for a manifest, unless a person has allowed it again.
    #[must_use]
    pub fn denied(&self, manifest: &Digest) -> Option<&Denied> {
        self.deny.iter().find(|denied| denied.manifest == *manifest && !denied.allowed)
    }

    /// The record after `step`; the generation is one higher.
    ///
    /// A step that does not fit the state leaves the state as it is: the next decision is taken from the facts again.
    #[must_use]
    pub fn advance(&self, step: &Step, stamp: &Stamp) -> Record {
        let mut next = self.clone();
        next.generation = self.generation.saturating_add(1);
        let deployment = self.state.deployment().cloned();
        match (step, deployment) {
            (Step::Preparing(deployment), _) => {
                next.last_error = None;
                if let State::Prepared { deployment: replaced } = &self.state {
                    next.end(replaced.clone(), Ending::Cancelled, stamp);
                }
                let attempt = Attempt { number: 1, run: stamp.run.clone() };
                next.state = State::Preparing { deployment: deployment.clone(), attempt };
            }
            (Step::RollingBackInstalled, None) => {
                if let Some(deployment) = self.installed.clone() {
                    let (reason, decided_in) = (RollbackReason::Operator, stamp.boot_id.clone());
                    next.state = State::RollingBack { deployment, reason, decided_in };
                }
            }
            (Step::HooksDone, _) => next.hooks_due = None,
            (Step::Allowed(manifest), _) => {
                for denied in next.deny.iter_mut().filter(|denied| denied.manifest == *manifest) {
                    denied.allowed = true;
                }
            }
            (step, Some(deployment)) => next.advance_deployment(step, deployment, stamp),
            (_, None) => {}
        }
        next
    }

    fn advance_deployment(&mut self, step: &Step, deployment: Deployment, stamp: &Stamp) {
        let boot = stamp.boot_id.clone();
        match step {
            Step::NextAttempt => {
                if let State::Preparing { attempt, .. } = &mut self.state {
                    *attempt = Attempt { number: attempt.number.saturating_add(1), run: stamp.run.clone() };
                }
            }
            Step::Prepared(transfer) => {
                self.state =
                    State::Prepared { deployment: Deployment { transfer: Some(transfer.clone()), ..deployment } };
            }
            Step::Abandoned(ending) => {
                if let Ending::Failed { error } = ending {
                    self.last_error = Some(error.clone());
                }
                self.end(deployment, ending.clone(), stamp);
            }
            Step::Activating(baseline) => {
                self.state = State::Activating { deployment: Deployment { baseline: baseline.clone(), ..deployment } };
            }
            Step::Activated => {
                let armed_in = if stamp.booted == deployment.target { BootId(String::new()) } else { boot };
                self.state = State::Activated { deployment, armed_in };
            }
            Step::Committed => {
                self.epoch_floor = self.epoch_floor.max(deployment.security_epoch);
                self.installed = Some(deployment.clone());
                self.hooks_due = Some(HooksDue { deployment: deployment.clone(), reason: None });
                self.end(deployment, Ending::Committed, stamp);
            }
            Step::RollingBack(reason) => {
                self.state = State::RollingBack { deployment, reason: reason.clone(), decided_in: boot };
            }
            Step::RolledBack => self.rolled_back(deployment, stamp),
            Step::Stranded => self.stranded(deployment, stamp),
            Step::Preparing(_) | Step::RollingBackInstalled | Step::HooksDone | Step::Allowed(_) => {}
        }
    }

    fn rolled_back(&mut self, deployment: Deployment, stamp: &Stamp) {
        let State::RollingBack { reason, .. } = self.state.clone() else { return };
        if reason.denies() {
            self.add_denial(&deployment, &reason, stamp);
        }
        if self.installed.as_ref().is_some_and(|installed| installed.id == deployment.id) {
            self.installed = None;
        }
        self.hooks_due = Some(HooksDue { deployment: deployment.clone(), reason: Some(reason.clone()) });
        self.end(deployment, Ending::RolledBack { reason }, stamp);
    }

    /// It goes on running, so what was committed stays so; and a person's wish to leave it says nothing against it.
    fn stranded(&mut self, deployment: Deployment, stamp: &Stamp) {
        let State::RollingBack { reason, .. } = self.state.clone() else { return };
        if reason.denies() && reason != RollbackReason::Operator {
            self.add_denial(&deployment, &reason, stamp);
        }
        self.end(deployment, Ending::Stranded { reason }, stamp);
    }

    /// One entry for each manifest: its newest verdict, and how many there were.
    fn add_denial(&mut self, deployment: &Deployment, reason: &RollbackReason, stamp: &Stamp) {
        let (manifest, version) = (deployment.manifest, deployment.version.clone());
        let before = self.deny.iter().position(|denied| denied.manifest == manifest).map(|at| self.deny.remove(at));
        let attempts = before.map_or(0, |denied| denied.attempts).saturating_add(1);
        self.deny.push(Denied { manifest, version, reason: reason.clone(), at: stamp.now, attempts, allowed: false });
        let excess = self.deny.len().saturating_sub(DENY_LIMIT);
        self.deny.drain(..excess);
    }

    fn end(&mut self, deployment: Deployment, ending: Ending, stamp: &Stamp) {
        self.state = State::Idle;
        self.history.push(HistoryEntry { deployment, ending, at: stamp.now });
        let excess = self.history.len().saturating_sub(HISTORY_LIMIT);
        self.history.drain(..excess);
    }
}

/// A deployment for tests of this crate.
#[cfg(test)]
pub(crate) fn test_deployment() -> Deployment {
    Deployment {
        id: DeploymentId("1-2".into()),
        manifest: Digest([2; 32]),
        product: "demo".into(),
        version: "2.0.0".into(),
        order: 2,
        security_epoch: 3,
        target: Group::B,
        from_version: "1.0.0".into(),
        source: "-".into(),
        then: Then::Activate,
        requested_by: "test".into(),
        began: 0,
        images: Vec::new(),
        transfer: None,
        baseline: Baseline::default(),
    }
}

#[cfg(test)]
mod tests;
