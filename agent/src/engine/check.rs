//! What is in the way of an update, whichever bundle it may be: every reason at once.

use bascule_boot::BootBackend as _;
use bascule_core::{Blocker, BootStatus, ErrorReport, Phase, Settings, State, Step};
use bascule_hooks::{HookPoint, run_point};

use super::Engine;
use super::hooks::report;
use super::offer::slot_blocker;
use crate::conditions;
use crate::shared::{Answer, Refused};

impl Engine {
    /// Everything that speaks against beginning an update now. Nothing is changed.
    pub(super) fn device_blockers(&self) -> Vec<Blocker> {
        let mut found = Vec::new();
        found.extend(self.busy());
        found.extend(self.canary());
        found.extend(self.ground_blockers());
        found.extend(conditions::locks(&self.device.paths));
        found
    }

    /// What speaks against preparing: neither locks nor an update on its way.
    pub(super) fn ground_blockers(&self) -> Vec<Blocker> {
        let mut found = Vec::new();
        if let Err(error) = self.device.view() {
            found.push(Blocker::new(error.code(), error.to_string(), error.hint()));
        }
        let sysfs = crate::device::sysfs(&self.device.paths);
        let target = self.device.booted().target();
        // While they are written, it is we who hold them.
        if !matches!(self.device.record().state, State::Preparing { .. }) {
            found.extend(self.device.target_slots().filter_map(|slot| slot_blocker(slot, target, &sysfs)));
        }
        found.extend(conditions::space(&self.state_directory()));
        found.extend(conditions::power(&self.device.paths, self.device.config.activate.min_battery));
        let (context, settings) = (self.hook_context(None), self.hook_settings());
        let hooks = run_point(HookPoint::Check, &context, &settings, &std::sync::atomic::AtomicBool::new(false));
        if let Err(error) = hooks.and_then(bascule_hooks::PointOutcome::into_result) {
            let report = report(&error, Phase::Check);
            found.push(Blocker::new(&report.code, report.message, report.hint));
        }
        found
    }

    pub(super) fn state_directory(&self) -> std::path::PathBuf {
        self.device.paths.resolve(&self.device.config.state.directory)
    }

    /// The loader's settings can be written, where that changes nothing.
    fn canary(&self) -> Option<Blocker> {
        let view = self.device.view().ok()?;
        let booted = self.device.booted();
        let rests = self.device.record().state == State::Idle && view.settings == Settings::Intact;
        let good = view.primary == booted.group() && view.status(booted.group()) == BootStatus::Good;
        if !rests || !good {
            return None;
        }
        // To say again what the settings say already opens, syncs and reads them back, and writes no other byte.
        let error = self.device.loader.mark_good(booted).err()?;
        Some(Blocker::new(error.code(), error.to_string(), error.hint()))
    }

    fn busy(&self) -> Option<Blocker> {
        let (code, reason) = match &self.device.record().state {
            State::Idle | State::Prepared { .. } => return None,
            State::Newer => ("request.newer-state", "a newer agent has left a state that this one does not know"),
            _ => ("request.busy", "another update is on its way"),
        };
        Some(Blocker::new(code, reason, "`bascule status` tells where it stands"))
    }

    /// Takes a bundle off the deny-list, by its version or the beginning of its manifest's digest.
    pub(super) fn allow(&mut self, bundle: &str) -> Result<Answer, Refused> {
        let named =
            |manifest: &str, version: &str| version == bundle || (bundle.len() >= 8 && manifest.starts_with(bundle));
        let deny = self.device.record().deny.iter().filter(|denied| !denied.allowed);
        let found: Vec<_> = deny
            .filter(|denied| named(&denied.manifest.to_string(), &denied.version))
            .map(|denied| denied.manifest)
            .collect();
        if found.is_empty() {
            let error = ErrorReport {
                code: "request.not-denied".into(),
                phase: Phase::Check,
                message: format!("no bundle on the deny-list is {bundle:?}"),
                cause: Vec::new(),
                hint: "`bascule status --json` lists them: name the version, or eight digits of the manifest".into(),
                retryable: false,
            };
            return Err(Refused { error, blockers: Vec::new() });
        }
        for manifest in found {
            let failed = |error| Refused { error, blockers: Vec::new() };
            self.record_durably(&Step::Allowed(manifest)).map_err(failed)?;
        }
        Ok(Answer::Done)
    }
}
