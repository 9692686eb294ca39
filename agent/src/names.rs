//! Names of states, steps and actions, as the log says them.

use bascule_core::{Action, State, Step};

/// Name of a state.
pub(crate) fn state_name(state: &State) -> &'static str {
    match state {
        State::Idle => "idle",
        State::Preparing { .. } => "preparing",
        State::Prepared { .. } => "prepared",
        State::Activating { .. } => "activating",
        State::Activated { .. } => "activated",
        State::RollingBack { .. } => "rolling-back",
        State::Newer => "newer",
    }
}

/// Name of a step of the record.
pub(crate) fn step_name(step: &Step) -> &'static str {
    match step {
        Step::Preparing(_) => "preparing",
        Step::NextAttempt => "next-attempt",
        Step::Prepared(_) => "prepared",
        Step::Abandoned(_) => "abandoned",
        Step::Activating(_) => "activating",
        Step::Activated => "activated",
        Step::Committed => "committed",
        Step::RollingBack(_) | Step::RollingBackInstalled => "rolling-back",
        Step::RolledBack => "rolled-back",
        Step::Stranded => "stranded",
        Step::Allowed(_) => "allowed",
    }
}

/// Name of an action.
pub(crate) fn action_name(action: &Action) -> &'static str {
    match action {
        Action::Wait => "wait",
        Action::Record(_) => "record",
        Action::CheckOffer => "check-offer",
        Action::Prepare => "prepare",
        Action::MarkUnbootable => "mark-unbootable",
        Action::Activate => "activate",
        Action::MarkGood => "mark-good",
        Action::RollBack => "roll-back",
        Action::Reboot => "reboot",
        Action::CheckHealth => "check-health",
        Action::Refuse(_) => "refuse",
    }
}
