//! The whole state machine: one pure function from the facts to one decision.
//!
//! ```text
//!  Idle --Prepare--> Preparing --> Prepared --> Activating --> Activated ~~reboot~~> probation --> Idle (committed)
//!                        |                          |              |                     |
//!                        +--> Idle (failed)         +--------------+----> RollingBack <--+
//!                                                                              |
//!                                                                              +--> Idle (rolled back, denied)
//! ```
//! Each arrow is one [`Step`] of the durable record; each act on the loader stands between the step that announces it
//! and the step that says it is done. The function is level-triggered: it looks at where things are, never at how
//! they came to be, so the same call after a crash goes on from any point.

use crate::boot::{BootStatus, Settings};
use crate::observed::{Health, Observed, Policy, Request};
use crate::record::{Baseline, Deployment, Ending, Record, RollbackReason, State, Step, Then};
use crate::report::Disposition;
use crate::words::BootId;

/// One thing to do now.
#[expect(clippy::large_enum_variant, reason = "one at a time, on the stack, once per look")]
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Nothing: wait for a request or the next look.
    Wait,
    /// Write the next record.
    Record(Step),
    /// Fetch the requested bundle's metadata, verify it, hold it against this device; then record the deployment.
    CheckOffer,
    /// Write and read back the target slots.
    Prepare,
    /// Loader: the target may not be started.
    MarkUnbootable,
    /// Loader: the target is primary, with counted tries.
    Activate,
    /// Loader: the booted group is good.
    MarkGood,
    /// Loader: the booted group is given up, the opposite one is primary.
    RollBack,
    /// Start the system again.
    Reboot,
    /// Run the health checks until they give a verdict.
    CheckHealth,
    /// Answer the request with an error; nothing changes.
    Refuse(Refusal),
}

/// Why a request cannot be served now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// An update is on its way.
    #[error("another update is on its way")]
    Busy,
    /// The booted system is in probation.
    #[error("the booted system is still in probation")]
    InProbation,
    /// The booted system was given up, and runs all the same.
    #[error("the booted system was given up and is not good")]
    GivenUp,
    /// `activate` without a prepared deployment.
    #[error("nothing is prepared")]
    NothingPrepared,
    /// `commit` when the booted group is good already.
    #[error("the booted group is good already")]
    AlreadyGood,
    /// `rollback` without a good opposite group that was left by an update.
    #[error("there is no system to go back to")]
    NothingToRollBackTo,
    /// `cancel` with nothing on its way.
    #[error("nothing is on its way")]
    NothingToCancel,
    /// A newer agent's state is in the record.
    #[error("a newer agent has left a state that this one does not know")]
    NewerState,
}

impl Refusal {
    /// Stable code of `docs/errors.md`.
    #[must_use]
    pub fn code(self) -> &'static str {
        match self {
            Refusal::Busy => "request.busy",
            Refusal::InProbation => "request.in-probation",
            Refusal::GivenUp => "request.given-up",
            Refusal::NothingPrepared => "request.nothing-prepared",
            Refusal::AlreadyGood => "request.already-good",
            Refusal::NothingToRollBackTo => "request.nothing-to-roll-back-to",
            Refusal::NothingToCancel => "request.nothing-to-cancel",
            Refusal::NewerState => "request.newer-state",
        }
    }

    /// What a person can do about it.
    #[must_use]
    pub fn hint(self) -> &'static str {
        match self {
            Refusal::Busy => "wait for it (`bascule status --watch`) or stop it with `bascule cancel`",
            Refusal::GivenUp => "`bascule commit` keeps it, and then takes bundles again; a reboot starts the good one",
            Refusal::InProbation => "wait for the verdict, or decide it with `bascule commit` or `bascule rollback`",
            Refusal::NothingPrepared => "prepare a bundle first: `bascule prepare BUNDLE`",
            Refusal::AlreadyGood => "nothing needs to be done",
            Refusal::NothingToRollBackTo => {
                "the opposite group is not good or no update was committed here; `bascule slots` shows both"
            }
            Refusal::NothingToCancel => "nothing needs to be done",
            Refusal::NewerState => "update this system's agent, or finish the update with the newer one",
        }
    }

    /// Whether the same request may succeed later.
    #[must_use]
    pub fn disposition(self) -> Disposition {
        match self {
            Refusal::Busy | Refusal::InProbation => Disposition::Retry,
            _ => Disposition::Person,
        }
    }
}

/// One action and why it was chosen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decision {
    /// What to do.
    pub action: Action,
    /// Why, in one constant line for the log.
    pub reason: &'static str,
}

fn act(action: Action, reason: &'static str) -> Decision {
    Decision { action, reason }
}

fn record(step: Step, reason: &'static str) -> Decision {
    act(Action::Record(step), reason)
}

fn refuse(refusal: Refusal) -> Decision {
    act(Action::Refuse(refusal), "the request does not fit the state")
}

/// Decides the one next thing to do.
#[must_use]
pub fn decide(facts: &Record, seen: &Observed, policy: &Policy) -> Decision {
    match &facts.state {
        State::Newer => newer(seen),
        State::Idle => idle(facts, seen),
        State::Preparing { deployment, attempt } if seen.booted != deployment.target => {
            let own_attempt = attempt.run == seen.run;
            preparing(seen, policy, own_attempt, attempt.number)
        }
        State::Prepared { deployment } if seen.booted != deployment.target => prepared(deployment, seen),
        // The record speaks of writing the group that is booted: it was overtaken by a rollback or a person's choice.
        State::Preparing { .. } | State::Prepared { .. } => {
            record(Step::Abandoned(Ending::Cancelled), "the target of the recorded preparation is booted now")
        }
        State::Activating { deployment } => activating(deployment, seen, policy),
        State::Activated { deployment, armed_in } => {
            if seen.booted != deployment.target {
                activated_on_old(deployment, armed_in, seen)
            } else if armed_in.0.is_empty() {
                probation(seen)
            } else {
                record(Step::Activated, "the target came up: that is worth knowing should it not finish probation")
            }
        }
        State::RollingBack { deployment, reason, decided_in } => {
            rolling_back(deployment, reason, *decided_in == seen.boot_id, seen)
        }
    }
}

fn newer(seen: &Observed) -> Decision {
    match seen.request {
        Some(_) => refuse(Refusal::NewerState),
        None => act(Action::Wait, "a newer agent's state is in the record: nothing is touched"),
    }
}

fn idle(facts: &Record, seen: &Observed) -> Decision {
    let target = seen.booted.opposite();
    if seen.view.settings == Settings::Damaged {
        // The fallback names what was good last. Another group that runs may be on trial: it has to prove itself.
        return match seen.view.status(seen.booted) {
            BootStatus::Good => {
                act(Action::MarkGood, "the boot settings are damaged: rebuild them for the booted group")
            }
            _ => unrecorded_probation(seen),
        };
    }
    match (seen.view.status(seen.booted), seen.view.status(target)) {
        (BootStatus::Trial { .. } | BootStatus::Exhausted, _) => unrecorded_probation(seen),
        (_, BootStatus::Trial { .. } | BootStatus::Exhausted) => {
            act(Action::MarkUnbootable, "the target is armed but no deployment is on its way")
        }
        (booted, opposite) => match seen.request {
            None => act(Action::Wait, "nothing is on its way"),
            // A system that was given up runs because a person started it: only a person can make it good.
            Some(Request::Prepare) if booted != BootStatus::Good && opposite == BootStatus::Good => {
                refuse(Refusal::GivenUp)
            }
            Some(Request::Prepare) => act(Action::CheckOffer, "a bundle is offered"),
            Some(Request::Activate) => refuse(Refusal::NothingPrepared),
            Some(Request::Cancel) => refuse(Refusal::NothingToCancel),
            Some(Request::Commit) if booted == BootStatus::Good => refuse(Refusal::AlreadyGood),
            Some(Request::Commit) => act(Action::MarkGood, "a person commits the booted group"),
            Some(Request::RollBack) => {
                let left_by_update = facts.installed.as_ref().is_some_and(|d| d.target == seen.booted);
                if left_by_update && opposite == BootStatus::Good {
                    record(Step::RollingBackInstalled, "a person goes back to the previous system")
                } else {
                    refuse(Refusal::NothingToRollBackTo)
                }
            }
        },
    }
}

/// The record was lost while the booted group is on trial: it still has to prove itself.
///
/// It is not given up by telling the loader: without a record, a run that ends before the reboot would leave no trace of
/// the verdict. Each start costs a try, and after the last the loader falls back.
fn unrecorded_probation(seen: &Observed) -> Decision {
    let way_back = seen.view.status(seen.booted.opposite()) == BootStatus::Good;
    match (&seen.health, seen.request) {
        (_, Some(Request::Prepare | Request::Activate | Request::Cancel)) => refuse(Refusal::InProbation),
        (_, Some(Request::Commit)) => act(Action::MarkGood, "a person commits the booted group"),
        (_, Some(Request::RollBack)) if way_back => {
            act(Action::RollBack, "a person goes back from an unrecorded trial")
        }
        (_, Some(Request::RollBack)) => refuse(Refusal::NothingToRollBackTo),
        (Health::Passed, None) => act(Action::MarkGood, "a trial without a record passed its health checks"),
        (Health::Failed { .. }, None) if way_back => {
            act(Action::Reboot, "a trial without a record failed its health checks")
        }
        (Health::Unknown, None) if seen.deadline_passed && way_back => {
            act(Action::Reboot, "a trial without a record missed its deadline")
        }
        (Health::Failed { .. }, None) => act(Action::MarkGood, "unhealthy, but there is no good group to go back to"),
        (Health::Unknown, None) => act(Action::CheckHealth, "the booted group is on trial without a record"),
    }
}

fn preparing(seen: &Observed, policy: &Policy, own_attempt: bool, number: u32) -> Decision {
    match seen.request {
        Some(Request::Cancel) => return record(Step::Abandoned(Ending::Cancelled), "a person cancels the preparation"),
        Some(Request::RollBack) => return refuse(Refusal::NothingToRollBackTo),
        Some(_) => return refuse(Refusal::Busy),
        None => {}
    }
    if seen.view.settings == Settings::Intact && seen.view.status(seen.booted) != BootStatus::Good {
        return act(Action::MarkGood, "the booted group must be good before the target is given up");
    }
    if seen.view.settings == Settings::Damaged || seen.view.status(seen.booted.opposite()) != BootStatus::Unbootable {
        return act(Action::MarkUnbootable, "the target must not be started while it is written");
    }
    match &seen.preparation {
        Some(failure) if failure.disposition != Disposition::Retry || number >= policy.max_attempts => {
            let ending = Ending::Failed { error: failure.error.clone() };
            record(Step::Abandoned(ending), "the preparation failed for good")
        }
        Some(_) => record(Step::NextAttempt, "the preparation failed and may be attempted again"),
        None if own_attempt => act(Action::Prepare, "the target slots are to be written"),
        None if number >= policy.max_attempts => record(
            Step::Abandoned(Ending::Failed { error: too_many_attempts() }),
            "the preparation never came to an end",
        ),
        None => record(Step::NextAttempt, "an attempt of an earlier run was interrupted"),
    }
}

fn too_many_attempts() -> crate::report::ErrorReport {
    crate::report::ErrorReport {
        code: "prepare.too-many-attempts".into(),
        phase: crate::report::Phase::Prepare,
        message: "the preparation was interrupted too often".into(),
        cause: Vec::new(),
        hint: "look in the journal for what ends the daemon or the device while it prepares".into(),
        retryable: false,
    }
}

fn prepared(deployment: &Deployment, seen: &Observed) -> Decision {
    if seen.view.settings == Settings::Damaged {
        return act(Action::MarkUnbootable, "the boot settings are damaged: rebuild them before the loader is armed");
    }
    if seen.view.status(deployment.target) != BootStatus::Unbootable {
        return act(
            Action::MarkUnbootable,
            "the loader was told about the target behind our back: it is not armed yet",
        );
    }
    match seen.request {
        Some(Request::Cancel) => record(Step::Abandoned(Ending::Cancelled), "a person cancels the prepared deployment"),
        Some(Request::Prepare) => act(Action::CheckOffer, "another bundle takes the place of the prepared one"),
        Some(Request::Activate) => {
            record(Step::Activating(Baseline::default()), "a person activates the prepared deployment")
        }
        Some(Request::Commit) => refuse(Refusal::AlreadyGood),
        Some(Request::RollBack) => refuse(Refusal::NothingToRollBackTo),
        None if deployment.then == Then::Activate => {
            record(Step::Activating(Baseline::default()), "prepared, and to be activated at once")
        }
        None => act(Action::Wait, "prepared: waiting to be activated"),
    }
}

fn activating(deployment: &Deployment, seen: &Observed, policy: &Policy) -> Decision {
    if seen.booted == deployment.target {
        return record(Step::Activated, "the target is booted: the loader had been armed");
    }
    if seen.view.settings == Settings::Damaged {
        return rolled_back_by_loader(RollbackReason::SettingsLost);
    }
    match seen.view.status(deployment.target) {
        BootStatus::Unbootable => act(Action::Activate, "everything is durable: arm the loader"),
        BootStatus::Trial { tries_left } if tries_left == policy.tries.get() => {
            record(Step::Activated, "the loader is armed")
        }
        BootStatus::Trial { .. } => rolled_back_by_loader(RollbackReason::LoaderSkippedTarget),
        BootStatus::Exhausted => rolled_back_by_loader(RollbackReason::DidNotBoot),
        BootStatus::Good => record(Step::Activated, "the loader calls the target good already"),
    }
}

fn rolled_back_by_loader(reason: RollbackReason) -> Decision {
    record(Step::RollingBack(reason), "the old group is booted: the loader fell back")
}

fn probation(seen: &Observed) -> Decision {
    // Another word for "good": the commit's one write happened, whoever survived to tell.
    if seen.view.settings == Settings::Intact && seen.view.status(seen.booted) == BootStatus::Good {
        return record(Step::Committed, "the loader says good: the commit is to be recorded");
    }
    match (&seen.health, seen.request) {
        (_, Some(Request::RollBack | Request::Cancel)) => {
            record(Step::RollingBack(RollbackReason::Operator), "a person goes back during probation")
        }
        (_, Some(Request::Commit)) => act(Action::MarkGood, "a person commits during probation"),
        (_, Some(Request::Prepare | Request::Activate)) => refuse(Refusal::InProbation),
        (Health::Passed, None) => act(Action::MarkGood, "probation passed"),
        (Health::Failed { detail }, None) => {
            record(Step::RollingBack(RollbackReason::Unhealthy { detail: detail.clone() }), "probation failed")
        }
        (Health::Unknown, None) if seen.deadline_passed => {
            record(Step::RollingBack(RollbackReason::Deadline), "probation missed its deadline")
        }
        (Health::Unknown, None) => act(Action::CheckHealth, "the booted group is in probation"),
    }
}

/// What the loader did speaks before what a person asks: a system that did not boot is denied, cancelled or not.
fn activated_on_old(deployment: &Deployment, armed_in: &BootId, seen: &Observed) -> Decision {
    let (armed_in_this_boot, came_up) = (*armed_in == seen.boot_id, armed_in.0.is_empty());
    if seen.view.settings == Settings::Damaged {
        return rolled_back_by_loader(RollbackReason::SettingsLost);
    }
    match seen.view.status(deployment.target) {
        BootStatus::Trial { .. } if armed_in_this_boot => match seen.request {
            None => act(Action::Reboot, "the loader is armed: start the target"),
            Some(Request::Cancel | Request::RollBack) => {
                record(Step::RollingBack(RollbackReason::Cancelled), "a person cancels before the reboot")
            }
            Some(_) => refuse(Refusal::Busy),
        },
        BootStatus::Trial { .. } => rolled_back_by_loader(RollbackReason::LoaderSkippedTarget),
        BootStatus::Exhausted if came_up => rolled_back_by_loader(RollbackReason::NotProven),
        BootStatus::Exhausted => rolled_back_by_loader(RollbackReason::DidNotBoot),
        BootStatus::Unbootable => rolled_back_by_loader(RollbackReason::GaveUpUnrecorded),
        BootStatus::Good => record(Step::Committed, "the target was committed before the record was lost"),
    }
}

fn rolling_back(
    deployment: &Deployment,
    reason: &RollbackReason,
    decided_in_this_boot: bool,
    seen: &Observed,
) -> Decision {
    if seen.request.is_some() {
        return refuse(Refusal::Busy);
    }
    let disarmed =
        seen.view.settings == Settings::Intact && seen.view.status(deployment.target) == BootStatus::Unbootable;
    let exhausted = seen.view.status(deployment.target) == BootStatus::Exhausted;
    if seen.booted != deployment.target && exhausted && !reason.denies() {
        return rolled_back_by_loader(RollbackReason::DidNotBoot);
    }
    let way_back = seen.view.status(seen.booted.opposite()) == BootStatus::Good;
    match (seen.booted == deployment.target, disarmed) {
        // The settings were lost and the fallback names this group: the loader would refuse for ever.
        (true, false) if !way_back => record(Step::Stranded, "there is no good group to go back to"),
        (true, false) if decided_in_this_boot => act(Action::RollBack, "the booted group is given up"),
        // The power was cut before the loader was told. Say so first: below, disarmed in another boot means stranded.
        (true, false) => record(Step::RollingBack(reason.clone()), "the way back was cut off: take it again"),
        (true, true) if decided_in_this_boot => act(Action::Reboot, "the old group is primary: start it"),
        // Once is a cut or a late reboot; the loader cannot bring the old group up, so another reboot would not either.
        (true, true) => record(Step::Stranded, "the old group did not come up"),
        (false, false) => act(Action::MarkUnbootable, "back on the old group: disarm the target"),
        (false, true) => record(Step::RolledBack, "back on the old group, target disarmed"),
    }
}
