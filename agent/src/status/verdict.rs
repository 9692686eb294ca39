//! A rollback as an error: one code, one message and one next step for each reason.

use bascule_core::{Ending, ErrorReport, Phase, Record, RollbackReason, State};

/// The error that a rollback on its way, or the last one, comes to. A person's own wish is none.
pub(super) fn of(record: &Record) -> Option<ErrorReport> {
    match (&record.state, record.history.last().map(|entry| (&entry.ending, &entry.deployment.version))) {
        (State::RollingBack { deployment, reason, .. }, _) => rolled_back(reason, &deployment.version),
        (State::Idle, Some((Ending::RolledBack { reason }, version))) => rolled_back(reason, version),
        (State::Idle, Some((Ending::Stranded { reason }, version))) => Some(report(
            ("rollback.stranded", Phase::Rollback),
            format!("version {version} had to be given up, but the other group did not start"),
            reason.explain(),
            "install a corrected bundle soon: there is nothing to fall back to",
            false,
        )),
        _ => None,
    }
}

fn rolled_back(reason: &RollbackReason, version: &str) -> Option<ErrorReport> {
    if matches!(reason, RollbackReason::Operator | RollbackReason::Cancelled) {
        return None;
    }
    let message = format!("version {version} was rolled back");
    Some(report((code(reason), phase(reason)), message, reason.explain(), hint(reason), !reason.denies()))
}

/// Stable code of `docs/errors.md`.
fn code(reason: &RollbackReason) -> &'static str {
    match reason {
        RollbackReason::Unhealthy { .. } => "rollback.unhealthy",
        RollbackReason::Deadline => "rollback.deadline",
        RollbackReason::DidNotBoot => "rollback.did-not-boot",
        RollbackReason::NotProven => "rollback.not-proven",
        RollbackReason::LoaderSkippedTarget => "rollback.loader-skipped-target",
        RollbackReason::SettingsLost => "rollback.settings-lost",
        RollbackReason::GaveUpUnrecorded => "rollback.gave-up",
        RollbackReason::Operator | RollbackReason::Cancelled | RollbackReason::Unknown => "rollback.unknown",
    }
}

fn phase(reason: &RollbackReason) -> Phase {
    match reason {
        RollbackReason::Unhealthy { .. }
        | RollbackReason::Deadline
        | RollbackReason::NotProven
        | RollbackReason::GaveUpUnrecorded => Phase::Probation,
        RollbackReason::DidNotBoot | RollbackReason::LoaderSkippedTarget | RollbackReason::SettingsLost => {
            Phase::Activate
        }
        RollbackReason::Operator | RollbackReason::Cancelled | RollbackReason::Unknown => Phase::Rollback,
    }
}

fn hint(reason: &RollbackReason) -> &'static str {
    match reason {
        RollbackReason::Unhealthy { .. } => "publish a corrected bundle: this one will not be tried again here",
        RollbackReason::Deadline => {
            "look at the checks and at [health]; publish a corrected bundle: this one will not be tried again here"
        }
        RollbackReason::DidNotBoot => {
            "look at its console; publish a corrected bundle: this one will not be tried again here"
        }
        RollbackReason::NotProven => {
            "look for power cuts, hangs and watchdog resets in its probation; publish a new bundle: this one will not be tried again here"
        }
        RollbackReason::GaveUpUnrecorded => {
            "look in its journal, and at the boot partition; `bascule allow` lets the same bundle be tried again"
        }
        RollbackReason::LoaderSkippedTarget => "install it again; if the loader skips it again, look at the console",
        RollbackReason::SettingsLost => "install it again; look at the boot partition if it happens again",
        RollbackReason::Operator | RollbackReason::Cancelled | RollbackReason::Unknown => {
            "`bascule history` of the newer agent knows why"
        }
    }
}

fn report((code, phase): (&str, Phase), message: String, cause: String, hint: &str, retryable: bool) -> ErrorReport {
    ErrorReport { code: code.into(), phase, message, cause: vec![cause], hint: hint.into(), retryable }
}
