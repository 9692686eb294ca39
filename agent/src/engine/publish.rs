//! What the loop shows of itself: snapshots for the API, names for the log.

use bascule_core::{Action, Group, Observed, Offer, State, Step};

use super::Engine;
use crate::clock;
use crate::device::Device;
use crate::shared::Snapshot;

impl Engine {
    /// Replaces the snapshot where something changed.
    pub(super) fn publish(&self, seen: &Observed) {
        let next = Snapshot {
            record: self.device.record().clone(),
            booted: seen.booted,
            boot_id: seen.boot_id.clone(),
            release: self.device.release.clone(),
            view: Ok(seen.view),
            slots: self.device.slot_views(),
            progress: self.shown_progress(),
            checks: self.checks.clone(),
            deadline: self.deadline(seen),
            blocked: self.blocked.clone(),
            fault: self.fault.clone(),
        };
        self.snapshot.send_if_modified(|shown| {
            // The deadline is computed from two clocks: a second's difference is no news.
            let steady = shown.deadline.zip(next.deadline).is_some_and(|(old, new)| old.abs_diff(new) <= 2);
            let next = if steady { Snapshot { deadline: shown.deadline, ..next } } else { next };
            let changed = *shown != next;
            if changed {
                *shown = next;
            }
            changed
        });
    }

    /// Shows how far the preparation is; everything else stays as it was.
    pub(super) fn publish_progress(&self) {
        let progress = self.shown_progress();
        self.snapshot.send_modify(|shown| shown.progress = progress);
    }

    fn shown_progress(&self) -> Option<crate::shared::Progress> {
        self.preparing.is_some().then(|| self.progress.borrow().clone())
    }

    fn deadline(&self, seen: &Observed) -> Option<i64> {
        let State::Activated { deployment, .. } = &self.device.record().state else { return None };
        let whole = self.device.config.health.deadline;
        let left =
            if seen.booted == deployment.target { whole.saturating_sub(self.device.uptime().ok()?) } else { whole };
        Some(clock::now().as_second().saturating_add(i64::try_from(left.as_secs()).ok()?))
    }
}

/// What preparing and activating `offer` would do, one line each.
pub(super) fn plan_steps(offer: &Offer, target: Group, device: &Device) -> Vec<String> {
    let tries = device.config.boot.tries.get();
    let deadline = device.config.health.deadline.as_secs();
    let mut steps = vec![format!("mark group {target} unbootable in the {} settings", device.loader.name())];
    for payload in &offer.payloads {
        let place = device.target_slots().find(|slot| slot.role == payload.role);
        let place = place.map_or_else(|| "no slot".to_owned(), |slot| slot.device.display().to_string());
        steps.push(format!("write {} bytes of {} to {place}, sync, read back, compare", payload.size, payload.role));
    }
    steps.push(format!("make group {target} primary for {tries} counted tries: one write"));
    steps.push("reboot".to_owned());
    steps.push(format!("commit when health checks pass within {deadline} s, else go back"));
    steps
}

/// Name of a state for the log and for `systemctl status`.
pub(super) fn state_name(state: &State) -> &'static str {
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

pub(super) fn step_name(step: &Step) -> &'static str {
    match step {
        Step::Preparing(_) => "preparing",
        Step::NextAttempt => "next-attempt",
        Step::Prepared => "prepared",
        Step::Abandoned(_) => "abandoned",
        Step::Activating => "activating",
        Step::Activated => "activated",
        Step::Committed => "committed",
        Step::RollingBack(_) | Step::RollingBackInstalled => "rolling-back",
        Step::RolledBack => "rolled-back",
        Step::Stranded => "stranded",
    }
}

pub(super) fn action_name(action: &Action) -> &'static str {
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
