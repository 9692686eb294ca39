//! What the loop shows of itself: snapshots for the API, and what a plan says.

use bascule_boot::BootBackend as _;
use bascule_core::{Group, Observed, Offer, State};

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
            warnings: self.warnings.clone(),
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
pub(super) fn plan_steps(offer: &Offer, bases: &[Option<String>], target: Group, device: &Device) -> Vec<String> {
    let tries = device.tries().get();
    let deadline = device.config.health.deadline.as_secs();
    let mut steps = vec![format!("mark group {target} unbootable in the {} settings", device.loader.name())];
    for (index, payload) in offer.payloads.iter().enumerate() {
        let place = device.target_slots().find(|slot| slot.role == payload.role);
        let place = place.map_or_else(|| "no slot".to_owned(), |slot| slot.device.display().to_string());
        let how = match bases.get(index) {
            Some(Some(base)) => format!(" by delta from {base}"),
            _ => String::new(),
        };
        let (size, role) = (payload.size, &payload.role);
        steps.push(format!("write {size} bytes of {role}{how} to {place}, sync, read back, compare"));
    }
    steps.push(format!("make group {target} primary for {tries} counted tries: one write"));
    steps.push("reboot".to_owned());
    steps.push(format!("commit when health checks pass within {deadline} s, else go back"));
    steps
}
