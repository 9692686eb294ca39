//! The hook points that belong to the loop itself.

use std::fs;
use std::os::unix::fs::DirBuilderExt;
use std::sync::atomic::AtomicBool;

use bascule_core::{ErrorReport, Phase, RollbackReason, State, Step};
use bascule_hooks::runner::{Containment, Limits};
use bascule_hooks::{HookContext, HookPoint, HookSettings, HooksError, run_point};

use super::Engine;
use crate::contained;

impl Engine {
    pub(super) fn hook_settings(&self) -> HookSettings {
        let context_dir = self.device.paths.runtime().join("hooks");
        // Only we may write there; where it cannot be made, running the first hook says so.
        let _ = fs::DirBuilder::new().recursive(true).mode(0o700).create(&context_dir);
        HookSettings {
            root: self.device.paths.root().to_owned(),
            context_dir,
            limits: Limits::within(self.device.config.hooks.timeout).contained(self.containment()),
        }
    }

    /// Where programs of integrators get control groups of their own; `None` where the system has no place for them.
    pub(super) fn containment(&self) -> Option<Containment> {
        self.groups.as_ref().map(|groups| groups.containment(contained::TASKS, contained::MEMORY_BYTES))
    }

    pub(super) fn hook_context(&self, reason: Option<String>) -> HookContext {
        let state = &self.device.record().state;
        let reason = reason.or_else(|| match state {
            State::RollingBack { reason, .. } => Some(RollbackReason::explain(reason)),
            _ => None,
        });
        let deployment = state.deployment();
        HookContext {
            deployment: deployment.map(|deployment| deployment.id.clone()),
            from_version: Some(deployment.map_or(&self.device.release.version, |d| &d.from_version).clone()),
            to_version: deployment.map(|deployment| deployment.version.clone()),
            target_group: self.device.booted().target().group(),
            booted_group: self.device.booted().group(),
            reason,
        }
    }

    /// Runs the hooks that are due after an update has ended, and records that they ran. A power cut in between makes
    /// them run again at the next start, with the same deployment.
    pub(super) fn run_hooks_due(&mut self) -> Result<(), ErrorReport> {
        let Some(due) = self.device.record().hooks_due.clone() else { return Ok(()) };
        let (point, reason) = match &due.reason {
            None => (HookPoint::PostCommit, None),
            Some(reason) => (HookPoint::PostRollback, Some(reason.explain())),
        };
        let context = HookContext {
            deployment: Some(due.deployment.id.clone()),
            from_version: Some(due.deployment.from_version.clone()),
            to_version: Some(due.deployment.version.clone()),
            target_group: due.deployment.target,
            booted_group: self.device.booted().group(),
            reason,
        };
        self.run_and_log(point, &context);
        self.record_durably(&Step::HooksDone)
    }

    /// Runs a point whose hooks are told what happens but are not asked.
    pub(super) fn run_hooks_and_log(&self, point: HookPoint) {
        self.run_and_log(point, &self.hook_context(None));
    }

    fn run_and_log(&self, point: HookPoint, context: &HookContext) {
        let settings = self.hook_settings();
        let outcome = run_point(point, context, &settings, &AtomicBool::new(false));
        if let Err(error) = outcome.and_then(bascule_hooks::PointOutcome::into_result) {
            self.device.tell("hook", error.to_string(), Vec::new());
            tracing::error!(code = error.code(), error = &error as &dyn std::error::Error, "a hook failed; going on");
        }
    }
}

pub(super) fn report(error: &HooksError, phase: Phase) -> ErrorReport {
    ErrorReport::new(error.code(), phase, error, error.hint(), error.disposition())
}
