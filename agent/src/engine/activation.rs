//! What stands between a prepared deployment and the intent to arm the loader: locks, power, hooks, copies, a baseline.
//!
//! Nothing has been written by then: stopping here leaves the target unbootable and the booted system as it is.

use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use bascule_core::{Action, Blocker, BootView, Ending, ErrorReport, Phase, Request, State, Step};
use bascule_hooks::boot_files::{Installed, check_mounted};
use bascule_hooks::hooks::run_point_with_target;
use bascule_hooks::{
    BootFileError, BootFileSet, HookPoint, HookRun, HooksError, KeepList, PointOutcome, SetPlaces, run_point,
};

use super::hooks::report;
use super::{Engine, Next};
use crate::conditions;
use crate::config::LockPolicy;
use crate::device::DeviceError;
use crate::loaders::{BootFiles, Sets, loader_said, told};
use crate::mounted::{MountedRoot, lacks_watchdog};
use crate::prepare::{PrepareError, still_holds};
use crate::shared::{Answer, Refused};

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
        self.heartbeat.working();
        let baseline = match self.take_baseline() {
            Ok(Ok(baseline)) => baseline,
            Ok(Err(next)) => return Ok(next),
            Err(error) => return self.give_up(error),
        };
        self.heartbeat.working();
        if let Some(next) = self.ask_hooks()? {
            return Ok(next);
        }
        self.heartbeat.working();
        if let Err(error) = self.install_boot_files().and_then(|()| self.back_up()) {
            return self.give_up(error);
        }
        self.record_durably(&Step::Activating(baseline))?;
        if self.is_asked() {
            self.answer(Ok(Answer::Done));
        }
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
            return Ok(None);
        }
        Ok(Some(self.held_up(found, LOCKED)))
    }

    /// Whoever asked hears it and may ask again, so that nothing is left waiting behind their back; else it waits.
    fn held_up(&mut self, found: Vec<Blocker>, wait: Duration) -> Next {
        self.fresh = false;
        if self.is_asked() {
            self.locked_since = None;
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

    pub(super) fn is_asked(&self) -> bool {
        self.pending.as_ref().is_some_and(|pending| pending.request == Request::Activate)
    }

    /// Asks the `pre-activate` hooks of the running and of the prepared system. `Some` means that activation does not go
    /// on now. What they could have spoilt is looked at again: the loader's settings and the target's every byte.
    fn ask_hooks(&mut self) -> Result<Option<Next>, ErrorReport> {
        let before = self.device.view().map_err(|error| DeviceError::Boot(error).report(Phase::Activate))?;
        let mounted = self.mount_target();
        if let Some(lack) = mounted.as_ref().and_then(|target| self.lacks_watchdog(target)) {
            return self.give_up(lack).map(Some);
        }
        let outcome = self.run_pre_activate(mounted.as_ref());
        // Whoever opens the slot to read it again does so alone.
        drop(mounted);
        let error = match outcome {
            Ok(ran) => return self.unspoilt(before, &ran),
            Err(error) => error,
        };
        let report = report(&error, Phase::Activate);
        // One that asks for later is asked again. One that hung has failed.
        if matches!(error, HooksError::Deferred { .. } | HooksError::Context { .. }) {
            let blocker = Blocker::new(&report.code, report.message, report.hint);
            return Ok(Some(self.held_up(vec![blocker], DEFERRED)));
        }
        self.give_up(report).map(Some)
    }

    /// The hooks that ran.
    fn run_pre_activate(&self, mounted: Option<&MountedRoot>) -> Result<Vec<HookRun>, HooksError> {
        let (point, context, settings) = (HookPoint::PreActivate, self.hook_context(None), self.hook_settings());
        let cancel = AtomicBool::new(false);
        let outcome = match mounted {
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

    /// A loader that cannot read the slot gets the prepared group's boot files where it looks for them.
    fn install_boot_files(&self) -> Result<(), ErrorReport> {
        let wanted = self.device.loader.boot_files(self.device.booted().target()).map_err(loader_said)?;
        let Some(wanted) = wanted else { return Ok(()) };
        check_mounted(self.device.paths.root(), wanted.partition()).map_err(|error| told(&error))?;
        let mounted = self.mount_target().ok_or_else(|| {
            told(&BootFileError::Mount { reason: "no file system that this system knows is in the slot".into() })
        })?;
        let installed = match &wanted {
            BootFiles::Set(sets) => self.install_set(sets, mounted.path()),
            BootFiles::Image(entry) => entry.install(mounted.path()),
        }?;
        tracing::info!(
            files = installed.files,
            written = installed.written,
            bytes = installed.bytes,
            partition = %wanted.partition().display(),
            "the boot files of the prepared group are in their place"
        );
        Ok(())
    }

    fn install_set(&self, sets: &Sets, root: &Path) -> Result<Installed, ErrorReport> {
        // Its globs were read when the configuration was.
        let keep = KeepList::new(self.device.config.boot.keep_files.iter().map(String::as_str)).unwrap_or_default();
        let places = SetPlaces { root, running: &sets.running, target: &sets.prepared };
        let set = BootFileSet::collect(places, &keep).map_err(|error| told(&error))?;
        match sets.lacking(&set).map_err(loader_said)? {
            Some(name) => Err(told(&BootFileError::Missing { name })),
            None => set.install().map_err(|error| told(&error)),
        }
    }

    /// A new system that nobody would take back is not started.
    fn lacks_watchdog(&self, target: &MountedRoot) -> Option<ErrorReport> {
        if !self.device.paths.systemd().exists() {
            return None;
        }
        let what = lacks_watchdog(target.path(), self.device.loader.may_be_blessed())?;
        let hint = "put the agent with its units into the image: docs/integrators.md".into();
        Some(error("bundle.no-watchdog", format!("the prepared system could not be taken back: {what}"), hint))
    }

    /// Somebody took a lock after the loader was armed: the reboot into the new system waits for it, as long as the activation
    /// would have. `None`: it may go on.
    pub(super) fn reboot_is_locked(&mut self) -> Option<Duration> {
        let State::Activated { deployment, .. } = &self.device.record().state else { return None };
        if deployment.target == self.device.booted().group() {
            return None;
        }
        let locks = conditions::locks(&self.device.paths);
        let since = *self.locked_since.get_or_insert_with(Instant::now);
        if locks.is_empty() || since.elapsed() >= self.device.config.activate.lock_wait {
            self.locked_since = None;
            self.blocked.clear();
            return None;
        }
        self.blocked = locks;
        Some(LOCKED)
    }

    fn has_hooks(&self, point: HookPoint) -> bool {
        bascule_hooks::hooks::find(point, self.device.paths.root()).is_ok_and(|found| !found.is_empty())
    }

    fn unspoilt(&mut self, before: BootView, ran: &[HookRun]) -> Result<Option<Next>, ErrorReport> {
        let now = self.device.view().map_err(|error| DeviceError::Boot(error).report(Phase::Activate))?;
        if now != before {
            let hint = "look at what the pre-activate hooks do: the loader's settings are not theirs".into();
            // Whatever they say now, the target is not started.
            let undo = self.device.perform(&Action::MarkUnbootable);
            undo.map_err(|error| error.report(Phase::Activate))?;
            let message = "the loader's settings changed while the pre-activate hooks ran".to_owned();
            return self.give_up(error("boot.settings-changed", message, hint)).map(Some);
        }
        let Some(deployment) = self.device.record().state.deployment().cloned() else { return Ok(None) };
        // Prepared a moment ago by this very run, and nobody was let near it since: it was read back then.
        let touched = !ran.is_empty() || self.has_hooks(HookPoint::PostPrepare);
        if self.fresh && !touched {
            return Ok(None);
        }
        let (target, sysfs) = (self.device.booted().target(), crate::device::sysfs(&self.device.paths));
        for image in &deployment.images {
            let slot = self.device.target_slots().find(|slot| slot.role == image.role);
            let held = match slot {
                Some(slot) => still_holds(slot, target, &sysfs, image),
                None => Err(PrepareError::no_slot(&image.role)),
            };
            if let Err(error) = held {
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
