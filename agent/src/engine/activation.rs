//! What stands between a prepared deployment and the intent to arm the loader: locks, power, hooks, copies, a baseline.
//!
//! Nothing has been written by then: stopping here leaves the target unbootable and the booted system as it is.

use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use bascule_core::{Blocker, BootView, Disposition, Ending, ErrorReport, Phase, Request, Step, Then};
use bascule_hooks::hooks::run_point_with_target;
use bascule_hooks::{HookPoint, HookRun, HooksError, PointOutcome, run_point};

use super::hooks::report;
use super::{Engine, Next};
use crate::conditions;
use crate::config::LockPolicy;
use crate::device::DeviceError;
use crate::mounted::MountedRoot;
use crate::prepare::still_holds;
use crate::shared::Refused;

/// How long a hook that asked to try later is left alone.
const DEFERRED: Duration = Duration::from_secs(60);
/// How often a lock is looked at.
const LOCKED: Duration = Duration::from_secs(5);

impl Engine {
    /// Asks whoever may say no, looks how the old system does, and records the intent to arm the loader.
    pub(super) fn activate(&mut self) -> Result<Next, ErrorReport> {
        if let Some(next) = self.wait_for_conditions()? {
            return Ok(next);
        }
        if let Some(next) = self.ask_hooks()? {
            return Ok(next);
        }
        if let Err(error) = self.back_up() {
            return self.give_up(error);
        }
        let baseline = self.take_baseline()?;
        self.record_durably(&Step::Activating(baseline))?;
        Ok(Next::Look)
    }

    /// Locks of applications, inhibitors, and power. `Some`: activation does not go on now.
    fn wait_for_conditions(&mut self) -> Result<Option<Next>, ErrorReport> {
        let config = &self.device.config.activate;
        let (locks, power) =
            (conditions::locks(&self.device.paths), conditions::power(&self.device.paths, config.min_battery));
        if locks.is_empty() {
            self.locked_since = None;
        }
        let since = (!locks.is_empty()).then(|| *self.locked_since.get_or_insert_with(Instant::now));
        let over = since.is_some_and(|since| since.elapsed() >= config.lock_wait);
        let mut found: Vec<Blocker> = power.into_iter().collect();
        match (over, config.lock_policy) {
            (true, LockPolicy::GiveUp) => {
                let first = locks.first().map(|lock| lock.reason.clone()).unwrap_or_default();
                let (wait, hint) = (config.lock_wait.as_secs(), "release the lock, then install it again".into());
                let message = format!("it was locked out for {wait} s: {first}");
                return self.give_up(error("device.lock-timeout", message, hint)).map(Some);
            }
            (true, LockPolicy::Go) => tracing::warn!(locks = locks.len(), "activate.lock_wait is over: going on"),
            (false, _) => found.extend(locks),
        }
        if found.is_empty() {
            self.blocked.clear();
            return Ok(None);
        }
        Ok(Some(self.held_up(found, LOCKED)))
    }

    /// Whoever asked hears it and may ask again, so that nothing is left waiting behind their back; else it waits.
    fn held_up(&mut self, found: Vec<Blocker>, wait: Duration) -> Next {
        if self.is_asked() {
            let first = found.first().cloned().unwrap_or_else(|| Blocker::new("request.busy", "", ""));
            let error = ErrorReport { retryable: true, ..error(&first.code, first.reason, first.hint) };
            self.answer(Err(Refused { error, blockers: found }));
            return Next::Look;
        }
        if self.blocked != found {
            for blocker in &found {
                tracing::warn!(code = blocker.code, reason = blocker.reason, "activation waits");
                self.device.tell("waiting", format!("[{}] {}", blocker.code, blocker.reason), Vec::new());
            }
            self.blocked = found;
        }
        Next::Wait(wait)
    }

    /// Ends the deployment before the loader was told; the caller of `activate`, if there is one, hears why.
    fn give_up(&mut self, report: ErrorReport) -> Result<Next, ErrorReport> {
        self.locked_since = None;
        self.record_durably(&Step::Abandoned(Ending::Failed { error: report.clone() }))?;
        if self.is_asked() {
            self.answer(Err(Refused { error: report, blockers: Vec::new() }));
        }
        Ok(Next::Look)
    }

    fn is_asked(&self) -> bool {
        self.pending.as_ref().is_some_and(|pending| pending.request == Request::Activate)
    }

    /// Asks the `pre-activate` hooks of the running and of the prepared system. `Some` means that activation does not go
    /// on now. What they could have spoilt is looked at again: the loader's settings and the target's every byte.
    fn ask_hooks(&mut self) -> Result<Option<Next>, ErrorReport> {
        let before = self.device.view().map_err(|error| DeviceError::Boot(error).report(Phase::Activate))?;
        let error = match self.run_pre_activate() {
            Ok(ran) => return self.unspoilt(before, &ran),
            Err(error) => error,
        };
        let report = report(&error, Phase::Activate);
        if error.disposition() == Disposition::Retry {
            let blocker = Blocker::new(&report.code, report.message, report.hint);
            return Ok(Some(self.held_up(vec![blocker], DEFERRED)));
        }
        self.give_up(report).map(Some)
    }

    /// The hooks that ran.
    fn run_pre_activate(&self) -> Result<Vec<HookRun>, HooksError> {
        let (point, context, settings) = (HookPoint::PreActivate, self.hook_context(None), self.hook_settings());
        let cancel = AtomicBool::new(false);
        let outcome = match self.mount_target() {
            Some(target) => run_point_with_target(point, &context, &settings, target.path(), &cancel),
            None => run_point(point, &context, &settings, &cancel),
        };
        outcome.and_then(PointOutcome::into_result)
    }

    /// The prepared root, for its own hooks. One that no file system here can read is none to look into.
    fn mount_target(&self) -> Option<MountedRoot> {
        let root = self.device.target_slots().find(|slot| slot.role == "root")?;
        if !self.device.paths.is_real() {
            return None;
        }
        match MountedRoot::mount(&self.device.paths, &root.device) {
            Ok(mounted) => Some(mounted),
            Err(error) => {
                let (device, error) = (root.device.display().to_string(), error.desc());
                tracing::warn!(device, error, "the prepared root cannot be mounted: its own hooks are not run");
                None
            }
        }
    }

    fn has_hooks(&self, point: HookPoint) -> bool {
        bascule_hooks::hooks::find(point, self.device.paths.root()).is_ok_and(|found| !found.is_empty())
    }

    fn unspoilt(&mut self, before: BootView, ran: &[HookRun]) -> Result<Option<Next>, ErrorReport> {
        let now = self.device.view().map_err(|error| DeviceError::Boot(error).report(Phase::Activate))?;
        if now != before {
            let hint = "look at what the pre-activate hooks do: the loader's settings are not theirs".into();
            let message = "the loader's settings changed while the pre-activate hooks ran".to_owned();
            return self.give_up(error("boot.settings-changed", message, hint)).map(Some);
        }
        let Some(deployment) = self.device.record().state.deployment().cloned() else { return Ok(None) };
        // Prepared a moment ago by this very run, and nobody was let near it since: it was read back then.
        let touched = !ran.is_empty() || self.has_hooks(HookPoint::PostPrepare);
        if !touched && deployment.then == Then::Activate {
            return Ok(None);
        }
        let (target, sysfs) = (self.device.booted().target(), crate::device::sysfs(&self.device.paths));
        for image in &deployment.images {
            let Some(slot) = self.device.target_slots().find(|slot| slot.role == image.role) else { continue };
            if let Err(error) = still_holds(slot, target, &sysfs, image) {
                let report = ErrorReport { phase: Phase::Activate, ..error.failure().error };
                return self.give_up(report).map(Some);
            }
        }
        Ok(None)
    }
}

fn error(code: &str, message: String, hint: String) -> ErrorReport {
    let (code, phase) = (code.to_owned(), Phase::Activate);
    ErrorReport { code, phase, message, cause: Vec::new(), hint, retryable: false }
}
