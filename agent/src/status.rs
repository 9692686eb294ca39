//! What `status --json` prints: the whole truth about an update, every field in every state.
//!
//! [`Status::of`] is a pure function of the daemon's [`Snapshot`] and the time, so that tests hold each state's output.

mod contents;
mod details;
mod verdict;

use bascule_core::{
    Blocker, BootStatus, BootView, Denied, Deployment, Digest, ErrorReport, Group, Settings, State, Then, Transfer,
    Warning,
};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::shared::{CheckView, Progress, Release, SlotView, Snapshot};

/// The version of this agent.
pub const AGENT_VERSION: &str = env!("CARGO_PKG_VERSION");

/// Everything there is to know about this device's update.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// Where the update stands, in one word.
    pub state: StateWord,
    /// The same in one sentence for people.
    pub details: String,
    /// How far the preparation is; only while there is one.
    pub progress: Option<Progress>,
    /// The group whose root is mounted.
    pub booted: Group,
    /// The group the loader tries first; unknown where its settings cannot be read.
    pub primary: Option<Group>,
    /// Both groups.
    pub groups: Groups,
    /// Whether the loader's settings could be read.
    pub boot_settings: BootSettings,
    /// The deployment on its way.
    pub deployment: Option<DeploymentStatus>,
    /// Why it waits.
    pub blocked: Vec<Blocker>,
    /// What is damaged while its copy serves; an update goes on all the same.
    #[serde(default)]
    pub warnings: Vec<Warning>,
    /// What went wrong: with the daemon, or with the last update.
    pub error: Option<ErrorReport>,
    /// When it will be rolled back at the latest.
    pub deadline: Option<Timestamp>,
    /// The last round of health checks.
    pub checks: Vec<CheckView>,
    /// Bundles that were rolled back here and are not taken again.
    pub deny: Vec<Deny>,
    /// What the booted root says it is.
    pub release: Release,
    /// The agent's version.
    pub agent: String,
}

/// Where an update stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum StateWord {
    /// Nothing is on its way.
    Idle,
    /// The target slots are being written.
    Preparing,
    /// The target slots hold the verified images.
    Prepared,
    /// The loader is being armed.
    Activating,
    /// The loader is armed; the reboot comes.
    Activated,
    /// The new system runs and is not good yet.
    Probation,
    /// On the way back.
    RollingBack,
    /// A newer agent left a state that this one does not know.
    Newer,
    /// The record cannot be read.
    Unreadable,
}

impl StateWord {
    /// The word, as in JSON.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            StateWord::Idle => "idle",
            StateWord::Preparing => "preparing",
            StateWord::Prepared => "prepared",
            StateWord::Activating => "activating",
            StateWord::Activated => "activated",
            StateWord::Probation => "probation",
            StateWord::RollingBack => "rolling-back",
            StateWord::Newer => "newer",
            StateWord::Unreadable => "unreadable",
        }
    }
}

/// Both slot groups.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Groups {
    /// Group `a`.
    pub a: GroupStatus,
    /// Group `b`.
    pub b: GroupStatus,
}

impl Groups {
    /// One of them.
    #[must_use]
    pub fn get(&self, group: Group) -> &GroupStatus {
        match group {
            Group::A => &self.a,
            Group::B => &self.b,
        }
    }
}

/// One slot group.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct GroupStatus {
    /// What the loader may do with it.
    pub status: GroupWord,
    /// Starts the loader still grants; only during a trial.
    pub tries_left: Option<u8>,
    /// The version in it, where that is known.
    pub version: Option<String>,
    /// Its slots.
    pub slots: Vec<SlotView>,
}

/// What the loader may do with a group.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum GroupWord {
    /// It will not start it.
    Unbootable,
    /// It starts it a counted number of times.
    Trial,
    /// The trial used every try.
    Exhausted,
    /// It starts it.
    Good,
    /// The settings cannot be read.
    Unknown,
}

impl GroupWord {
    /// The word, as in JSON.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            GroupWord::Unbootable => "unbootable",
            GroupWord::Trial => "trial",
            GroupWord::Exhausted => "exhausted",
            GroupWord::Good => "good",
            GroupWord::Unknown => "unknown",
        }
    }
}

/// Whether the loader's settings could be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum BootSettings {
    /// Read, whole and of the loader's form.
    Intact,
    /// Missing or torn: the loader runs on its fallback, and the agent repairs them.
    Damaged,
    /// Reading them failed.
    Unknown,
}

/// The deployment on its way.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DeploymentStatus {
    /// Identifies it on this device.
    pub id: String,
    /// Product's name.
    pub product: String,
    /// Version it brings.
    pub version: String,
    /// `order` it brings.
    pub order: u64,
    /// SHA-256 of its manifest.
    pub manifest: Digest,
    /// The group it goes into.
    pub target: Group,
    /// The version it takes the place of.
    pub from_version: String,
    /// Where the bundle comes from.
    pub source: String,
    /// What follows the preparation.
    pub then: Then,
    /// Who asked for it.
    pub requested_by: String,
    /// When it began.
    pub began: Timestamp,
    /// Which of our attempts at preparing it runs; only while preparing.
    pub attempt: Option<u32>,
    /// Where its bytes came from, once it is prepared.
    pub transfer: Option<Transfer>,
}

/// A bundle that is not taken again.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Deny {
    /// SHA-256 of its manifest.
    pub manifest: Digest,
    /// Its version.
    pub version: String,
    /// Why, in one line.
    pub reason: String,
    /// When.
    pub at: Timestamp,
    /// How often its bytes were rolled back here.
    pub attempts: u32,
    /// A person has allowed them to be tried again.
    pub allowed: bool,
}

impl Status {
    /// What `snapshot` comes to at `now`, seconds since 1970.
    #[must_use]
    pub fn of(snapshot: &Snapshot, now: i64) -> Status {
        let state = state_word(snapshot);
        let view = snapshot.view.as_ref().ok();
        let settings = match view.map(|view| view.settings) {
            Some(Settings::Intact) => BootSettings::Intact,
            Some(Settings::Damaged) => BootSettings::Damaged,
            None => BootSettings::Unknown,
        };
        Status {
            state,
            details: details::sentence(state, snapshot, now),
            progress: snapshot.progress.clone().filter(|_| state == StateWord::Preparing),
            booted: snapshot.booted,
            primary: view.map(|view| view.primary),
            groups: Groups { a: group(snapshot, Group::A, view), b: group(snapshot, Group::B, view) },
            boot_settings: settings,
            deployment: snapshot.record.state.deployment().map(|it| deployment(it, &snapshot.record.state)),
            blocked: snapshot.blocked.clone(),
            warnings: snapshot.warnings.clone(),
            error: error(snapshot),
            deadline: snapshot.deadline.map(timestamp),
            checks: snapshot.checks.clone(),
            deny: snapshot.record.deny.iter().map(deny).collect(),
            release: snapshot.release.clone(),
            agent: AGENT_VERSION.to_owned(),
        }
    }
}

/// Probation is not stored: it is a trial, seen from inside.
fn state_word(snapshot: &Snapshot) -> StateWord {
    if snapshot.fault.as_ref().is_some_and(|fault| fault.code == "state.unreadable") {
        return StateWord::Unreadable;
    }
    let on_trial = snapshot.view.as_ref().is_ok_and(|view| {
        view.settings == Settings::Intact
            && matches!(view.status(snapshot.booted), BootStatus::Trial { .. } | BootStatus::Exhausted)
    });
    match &snapshot.record.state {
        State::Idle if on_trial => StateWord::Probation,
        State::Idle => StateWord::Idle,
        State::Preparing { .. } => StateWord::Preparing,
        State::Prepared { .. } => StateWord::Prepared,
        State::Activating { deployment } | State::Activated { deployment, .. }
            if deployment.target == snapshot.booted =>
        {
            StateWord::Probation
        }
        State::Activating { .. } => StateWord::Activating,
        State::Activated { .. } => StateWord::Activated,
        State::RollingBack { .. } => StateWord::RollingBack,
        State::Newer => StateWord::Newer,
    }
}

fn error(snapshot: &Snapshot) -> Option<ErrorReport> {
    let view = || snapshot.view.as_ref().err().cloned();
    let record = &snapshot.record;
    snapshot.fault.clone().or_else(view).or_else(|| record.last_error.clone()).or_else(|| verdict::of(record))
}

fn group(snapshot: &Snapshot, group: Group, view: Option<&BootView>) -> GroupStatus {
    let (status, tries_left) = match view.map(|view| view.status(group)) {
        Some(BootStatus::Unbootable) => (GroupWord::Unbootable, None),
        Some(BootStatus::Trial { tries_left }) => (GroupWord::Trial, Some(tries_left)),
        Some(BootStatus::Exhausted) => (GroupWord::Exhausted, None),
        Some(BootStatus::Good) => (GroupWord::Good, None),
        None => (GroupWord::Unknown, None),
    };
    let slots = snapshot.slots.iter().filter(|slot| slot.group == group).cloned().collect();
    GroupStatus { status, tries_left, version: contents::version_in(group, snapshot), slots }
}

fn deployment(deployment: &Deployment, state: &State) -> DeploymentStatus {
    let attempt = if let State::Preparing { attempt, .. } = state { Some(attempt.number) } else { None };
    let it = deployment.clone();
    DeploymentStatus {
        id: it.id.0,
        product: it.product,
        version: it.version,
        order: it.order,
        manifest: it.manifest,
        target: it.target,
        from_version: it.from_version,
        source: it.source,
        then: it.then,
        requested_by: it.requested_by,
        began: timestamp(it.began),
        attempt,
        transfer: it.transfer,
    }
}

fn deny(denied: &Denied) -> Deny {
    Deny {
        manifest: denied.manifest,
        version: denied.version.clone(),
        reason: denied.reason.explain(),
        at: timestamp(denied.at),
        attempts: denied.attempts,
        allowed: denied.allowed,
    }
}

/// Seconds since 1970 as a point in time; the clock of a device may say anything.
pub(crate) fn timestamp(seconds: i64) -> Timestamp {
    let beyond = if seconds < 0 { Timestamp::MIN } else { Timestamp::MAX };
    Timestamp::from_second(seconds).unwrap_or(beyond)
}

#[cfg(test)]
pub(crate) mod tests {
    use bascule_core::{BootId, Record};

    use super::*;

    /// A device as it leaves the factory; every state's output is held in `tests/status.rs`.
    pub(crate) fn factory() -> Snapshot {
        Snapshot {
            record: Record::default(),
            booted: Group::A,
            boot_id: BootId("boot-1".into()),
            release: Release {
                product: "demo".into(),
                version: "1.0.0".into(),
                order: 1,
                compatible: vec!["board".into()],
                security_epoch: 0,
            },
            view: Ok(BootView {
                settings: Settings::Intact,
                primary: Group::A,
                a: BootStatus::Good,
                b: BootStatus::Unbootable,
            }),
            slots: Vec::new(),
            progress: None,
            checks: Vec::new(),
            deadline: None,
            blocked: Vec::new(),
            warnings: Vec::new(),
            fault: None,
        }
    }

    #[test]
    fn a_clock_far_off_still_gives_a_time() {
        assert_eq!(timestamp(i64::MAX), Timestamp::MAX);
        assert_eq!(timestamp(i64::MIN), Timestamp::MIN);
    }
}
