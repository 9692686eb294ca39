//! Names of states, steps and actions, and amounts of bytes, as they are said everywhere.

use bascule_core::{Action, State, Step, Transfer};

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
        Step::HooksDone => "hooks-done",
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

/// Bytes in the unit that suits them.
pub(crate) fn bytes(count: u64) -> String {
    const UNITS: [&str; 4] = ["KiB", "MiB", "GiB", "TiB"];
    if count < 1024 {
        return format!("{count} B");
    }
    let mut tenths = u128::from(count) * 10;
    let mut unit = "B";
    for next in UNITS {
        if tenths < 10 * 1024 {
            break;
        }
        tenths /= 1024;
        unit = next;
    }
    if tenths % 10 == 0 { format!("{} {unit}", tenths / 10) } else { format!("{}.{} {unit}", tenths / 10, tenths % 10) }
}

/// Where the bytes of a deployment came from, in a few words.
pub(crate) fn transfer(transfer: &Transfer) -> String {
    let mut words = format!("{} fetched", bytes(transfer.fetched));
    if let Some(base) = &transfer.base {
        words.push_str(&format!(", {} made of {base}", bytes(transfer.copied)));
    }
    for (count, what) in [(transfer.healed, "healed"), (transfer.kept, "kept"), (transfer.saved, "saved")] {
        if count > 0 {
            words.push_str(&format!(", {} {what}", bytes(count)));
        }
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_shown_in_the_largest_unit_that_fits() {
        let shown = [0, 1023, 1024, 1536, 512 << 20, u64::MAX].map(bytes);
        assert_eq!(shown, ["0 B", "1023 B", "1 KiB", "1.5 KiB", "512 MiB", "16777215.9 TiB"]);
    }
}
