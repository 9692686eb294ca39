//! The hook points that belong to the loop itself.

use std::fs;
use std::os::unix::fs::DirBuilderExt;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use bascule_core::{Disposition, Ending, ErrorReport, Phase, Request, RollbackReason, State, Step};
use bascule_hooks::runner::Limits;
use bascule_hooks::{HookContext, HookPoint, HookSettings, HooksError, run_point};

use super::{Engine, Next};
use crate::shared::Refused;

/// How long a hook that asked to try later is left alone.
const DEFERRED: Duration = Duration::from_secs(60);

impl Engine {
    pub(super) fn hook_settings(&self) -> HookSettings {
        let context_dir = self.device.paths.runtime().join("hooks");
        // Only we may write there; where it cannot be made, running the first hook says so.
        let _ = fs::DirBuilder::new().recursive(true).mode(0o700).create(&context_dir);
        HookSettings {
            root: self.device.paths.root().to_owned(),
            context_dir,
            limits: Limits::within(self.device.config.hooks.timeout),
        }
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

    /// Runs a point whose hooks are told what happens but are not asked.
    pub(super) fn run_hooks_and_log(&self, point: HookPoint) {
        let (context, settings) = (self.hook_context(None), self.hook_settings());
        let outcome = run_point(point, &context, &settings, &AtomicBool::new(false));
        if let Err(error) = outcome.and_then(bascule_hooks::PointOutcome::into_result) {
            tracing::error!(code = error.code(), error = &error as &dyn std::error::Error, "a hook failed; going on");
        }
    }

    /// Asks the `pre-activate` hooks. `Some` means that activation does not go on now.
    ///
    /// Nothing was written yet: stopping here leaves the target unbootable and the booted system as it is.
    pub(super) fn gate_activation(&mut self) -> Result<Option<Next>, ErrorReport> {
        let (context, settings) = (self.hook_context(None), self.hook_settings());
        let outcome = run_point(HookPoint::PreActivate, &context, &settings, &AtomicBool::new(false));
        let error = match outcome.and_then(bascule_hooks::PointOutcome::into_result) {
            Ok(_) => {
                self.blocked.clear();
                return Ok(None);
            }
            Err(error) => error,
        };
        let report = report(&error, Phase::Activate);
        let asked = self.pending.as_ref().is_some_and(|pending| pending.request == Request::Activate);
        if error.disposition() == Disposition::Retry && asked {
            // Whoever asked hears it and may ask again: nothing is left waiting behind their back.
            self.answer(Err(Refused { error: report, blockers: Vec::new() }));
            return Ok(Some(Next::Look));
        }
        if error.disposition() == Disposition::Retry {
            let blocker = bascule_core::Blocker::new(&report.code, report.message.clone(), report.hint.clone());
            if self.blocked.first() != Some(&blocker) {
                tracing::warn!(code = report.code, reason = report.message, "activation waits for a hook");
            }
            self.blocked = vec![blocker];
            return Ok(Some(Next::Wait(DEFERRED)));
        }
        self.record_durably(&Step::Abandoned(Ending::Failed { error: report.clone() }))?;
        // The caller of `activate`, if that is what brought us here, hears why.
        if asked {
            self.answer(Err(Refused { error: report, blockers: Vec::new() }));
        }
        Ok(Some(Next::Look))
    }
}

pub(super) fn report(error: &HooksError, phase: Phase) -> ErrorReport {
    ErrorReport::new(error.code(), phase, error, error.hint(), error.disposition())
}
