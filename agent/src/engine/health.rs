//! Probation's job thread: runs the health checks until they give a verdict.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bascule_core::{ErrorReport, Health, Phase};
use bascule_hooks::runner::Limits;
use bascule_hooks::{
    CheckResult, HealthChecks, HealthPolicy, HealthSettings, HooksError, Requirement, Soak, health, soak,
};

use super::{Engine, Event, Job, LOOK_EVERY, Next, VERDICT_FIRST};
use crate::device;
use crate::shared::CheckView;

/// The longest reason that is recorded, in characters.
const DETAIL_LIMIT: usize = 1000;
/// How often a waiting job looks whether it was cancelled.
const SLICE: Duration = Duration::from_millis(100);

impl Engine {
    /// Starts the checks unless they run already.
    pub(super) fn start_health(&mut self) -> Result<Next, ErrorReport> {
        if self.checking.is_some() {
            let last = self.device.config.health.deadline + VERDICT_FIRST;
            let left = last.saturating_sub(self.device.uptime().unwrap_or_default());
            return Ok(Next::Wait(LOOK_EVERY.min(left)));
        }
        self.run_hooks_and_log(bascule_hooks::HookPoint::Probation);
        let failed = |error: HooksError| {
            ErrorReport::new(error.code(), Phase::Probation, &error, error.hint(), error.disposition())
        };
        let config = &self.device.config.health;
        let mut settings = HealthSettings::new(self.device.paths.root(), Limits::within(config.check_timeout));
        settings.units.clone_from(&config.units);
        let (settle, interval) = (config.settle, config.interval);
        let policy = HealthPolicy { settle, interval, deadline: config.deadline, passes: config.passes };
        let checks = HealthChecks::find(settings).map_err(failed)?;
        let soak = Soak::new(policy).map_err(failed)?;
        if checks.decides_nothing() {
            tracing::warn!(
                "no required health check is configured: the system is good when the daemon runs for as long as it takes"
            );
        }
        let cancel = Arc::new(AtomicBool::new(false));
        let (paths, sender, stop) = (self.device.paths.clone(), self.sender.clone(), cancel.clone());
        let thread = std::thread::spawn(move || {
            let told = |event| {
                let _ = sender.send(event);
            };
            let uptime = move || device::uptime(&paths).unwrap_or(Duration::MAX);
            if let Some(verdict) = watch(soak, checks, &uptime, &stop, &told) {
                told(Event::Verdict(verdict));
            }
        });
        tracing::info!(deadline_seconds = policy.deadline.as_secs(), passes = policy.passes, "probation begins");
        self.checking = Some(Job { cancel, thread });
        Ok(Next::Look)
    }

    /// Ends the checks; what they said so far is kept to be shown.
    pub(super) fn stop_health(&mut self) {
        if let Some(job) = self.checking.take() {
            job.cancel.store(true, Ordering::Relaxed);
            let _ = job.thread.join();
        }
        self.health = Health::Unknown;
    }
}

fn watch(
    mut soak: Soak,
    mut checks: HealthChecks,
    uptime: &dyn Fn() -> Duration,
    cancel: &AtomicBool,
    told: &dyn Fn(Event),
) -> Option<Health> {
    let mut last = Vec::new();
    while !cancel.load(Ordering::Relaxed) {
        match soak.next(uptime()) {
            soak::Step::Wait(wait) => std::thread::sleep(wait.min(SLICE)),
            soak::Step::RunNow => {
                last = checks.run_all(cancel);
                soak.record(uptime(), health::judge(&last, &[]));
                log(&last);
                told(Event::Checked(last.iter().map(shown).collect()));
            }
            soak::Step::Verdict(soak::Verdict::Passed) => return Some(Health::Passed),
            soak::Step::Verdict(soak::Verdict::Failed) => return Some(Health::Failed { detail: detail(&last) }),
        }
    }
    None
}

fn log(results: &[CheckResult]) {
    for result in results {
        let (check, millis) = (result.name.as_str(), result.outcome.duration.as_millis() as u64);
        match (result.passed, result.requirement) {
            (true, _) => tracing::info!(check, millis, "health check passed"),
            (false, Requirement::Wanted) => {
                tracing::warn!(check, millis, reason = result.reason, "wanted health check failed")
            }
            (false, Requirement::Required) => {
                tracing::error!(check, millis, reason = result.reason, "required health check failed")
            }
        }
    }
}

fn shown(result: &CheckResult) -> CheckView {
    CheckView {
        name: result.name.clone(),
        requirement: result.requirement.name().to_owned(),
        passed: result.passed,
        millis: u64::try_from(result.outcome.duration.as_millis()).unwrap_or(u64::MAX),
        output: result.outcome.output_tail.clone(),
    }
}

/// Which required checks failed in the last round, and what they said.
fn detail(results: &[CheckResult]) -> String {
    let failed = |result: &&CheckResult| !result.passed && result.requirement == Requirement::Required;
    let lines: Vec<String> =
        results.iter().filter(failed).map(|result| format!("{}: {}", result.name, result.reason)).collect();
    if lines.is_empty() {
        return "too few rounds of health checks passed in time".into();
    }
    lines.join("; ").chars().take(DETAIL_LIMIT).collect()
}
