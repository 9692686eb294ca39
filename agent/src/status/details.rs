//! The state in one sentence for people.

use bascule_core::{Deployment, Ending, HistoryEntry, Settings, State, Then};

use super::{StateWord, timestamp};
use crate::shared::Snapshot;

/// Says where things stand, with what follows.
pub(super) fn sentence(state: StateWord, snapshot: &Snapshot, now: i64) -> String {
    let deployment = snapshot.record.state.deployment();
    let main = match (state, deployment) {
        (StateWord::Unreadable, _) => "The record cannot be read, so nothing is done until it can".to_owned(),
        (StateWord::Newer, _) => {
            "A newer agent left a state that this one does not know: nothing is touched".to_owned()
        }
        (StateWord::Preparing, Some(it)) => preparing(it, snapshot),
        (StateWord::Prepared, Some(it)) => prepared(it),
        (StateWord::Activating, Some(it)) => {
            format!("Arming the boot loader for version {} in group {}", it.version, it.target)
        }
        (StateWord::Activated, Some(it)) => {
            format!("The boot loader is armed for version {}: rebooting into group {}", it.version, it.target)
        }
        (StateWord::Probation, _) => probation(snapshot, now),
        (StateWord::RollingBack, Some(it)) => rolling_back(it, snapshot),
        _ => idle(snapshot),
    };
    with_waiting(main, snapshot)
}

fn with_waiting(main: String, snapshot: &Snapshot) -> String {
    let damaged = snapshot.view.as_ref().is_ok_and(|view| view.settings == Settings::Damaged);
    let main = match (&snapshot.view, damaged) {
        (Err(_), _) => format!("{main}; the boot settings cannot be read"),
        (Ok(_), true) => format!("{main}; the boot settings are damaged and will be rebuilt"),
        (Ok(_), false) => main,
    };
    match snapshot.blocked.as_slice() {
        [] => main,
        [first, ..] => format!("{main}; waiting: {}", first.reason),
    }
}

fn running(snapshot: &Snapshot) -> String {
    format!("Version {} runs from group {}", snapshot.release.version, snapshot.booted)
}

fn idle(snapshot: &Snapshot) -> String {
    let running = running(snapshot);
    match snapshot.record.history.last() {
        Some(HistoryEntry { deployment, ending, .. }) => match ending {
            Ending::RolledBack { reason } => {
                format!("{running}; version {} was rolled back: {}", deployment.version, reason.explain())
            }
            Ending::Stranded { reason } => format!(
                "{running}, which should have been given up ({}), but the other group did not start",
                reason.explain()
            ),
            Ending::Failed { error } => {
                format!("{running}; updating to {} failed: {}", deployment.version, error.message)
            }
            Ending::Cancelled => format!("{running}; the update to {} was cancelled", deployment.version),
            Ending::Committed if deployment.target == snapshot.booted => {
                format!("{running}, committed; no update is on its way")
            }
            Ending::Committed | Ending::Unknown => format!("{running}; no update is on its way"),
        },
        None => format!("{running}; no update is on its way"),
    }
}

fn preparing(deployment: &Deployment, snapshot: &Snapshot) -> String {
    let main = format!("Preparing version {} in group {}", deployment.version, deployment.target);
    let attempt = match &snapshot.record.state {
        State::Preparing { attempt, .. } if attempt.number > 1 => format!(", attempt {}", attempt.number),
        _ => String::new(),
    };
    match &snapshot.progress {
        Some(progress) if progress.total_bytes == 0 => format!("{main}{attempt}: {}", progress.step),
        Some(progress) => format!("{main}{attempt}: {}, {} %", progress.step, progress.percent),
        None => format!("{main}{attempt}"),
    }
}

fn prepared(deployment: &Deployment) -> String {
    let next = match deployment.then {
        Then::Stop => "waits for `bascule activate`",
        Then::Activate => "is activated next",
    };
    format!("Version {} is prepared in group {} and {next}", deployment.version, deployment.target)
}

fn probation(snapshot: &Snapshot, now: i64) -> String {
    let main = format!("{} on probation", running(snapshot));
    let failed = snapshot.checks.iter().filter(|check| !check.passed).count();
    let failing = match failed {
        0 => String::new(),
        1 => ", 1 health check fails".to_owned(),
        n => format!(", {n} health checks fail"),
    };
    match snapshot.deadline {
        Some(deadline) => {
            let left = deadline.saturating_sub(now).max(0);
            format!("{main}{failing}: rolled back at {} ({}) unless it passes", clock(deadline), remaining(left))
        }
        None => format!("{main}{failing}"),
    }
}

fn rolling_back(deployment: &Deployment, snapshot: &Snapshot) -> String {
    let reason = match &snapshot.record.state {
        State::RollingBack { reason, .. } => reason.explain(),
        _ => String::new(),
    };
    format!("Going back from version {} to group {}: {reason}", deployment.version, deployment.target.opposite())
}

fn clock(seconds: i64) -> String {
    timestamp(seconds).strftime("%H:%M:%S UTC").to_string()
}

fn remaining(seconds: i64) -> String {
    match seconds {
        0 => "now".to_owned(),
        1..=119 => format!("in {seconds} s"),
        _ => format!("in {} min", seconds / 60),
    }
}
