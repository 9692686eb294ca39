//! Probation's job thread: runs the health checks until they give a verdict.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use bascule_core::{Baseline, ErrorReport, Health, Phase, State};
use bascule_hooks::runner::Limits;
use bascule_hooks::{
    CheckResult, HealthChecks, HealthPolicy, HealthSettings, HooksError, Requirement, Soak, health, soak,
};

use super::{Engine, Event, Job, LOOK_EVERY, Next, VERDICT_FIRST};
use crate::device;
use crate::probes;
use crate::shared::CheckView;

/// The longest reason that is recorded, in characters.
const DETAIL_LIMIT: usize = 1000;
/// How often a waiting job looks whether it was cancelled.
const SLICE: Duration = Duration::from_millis(100);

/// Rounds of checks on the old system.
#[derive(Debug, Default)]
pub(super) struct Rounds {
    /// What failed in all of them; `None` before the first.
    failed: Option<Vec<String>>,
    count: u32,
    next: Option<Instant>,
}

impl Engine {
    /// Starts the checks unless they run already.
    pub(super) fn start_health(&mut self) -> Result<Next, ErrorReport> {
        if self.checking.is_some() {
            let last = self.device.config.health.deadline + VERDICT_FIRST;
            let left = last.saturating_sub(self.device.uptime().unwrap_or_default());
            return Ok(Next::Wait(LOOK_EVERY.min(left).max(Duration::from_secs(1))));
        }
        let checks = self.health_checks().map_err(|error| failed(&error))?;
        self.run_hooks_and_log(bascule_hooks::HookPoint::Probation);
        let config = &self.device.config.health;
        let (settle, interval) = (config.settle, config.interval);
        let policy = HealthPolicy { settle, interval, deadline: config.deadline, passes: config.passes };
        let soak = Soak::new(policy).map_err(|error| failed(&error))?;
        let failed_before = match &self.device.record().state {
            State::Activated { deployment, .. } => deployment.baseline.failed.clone(),
            _ => Vec::new(),
        };
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
            watch(soak, checks, &failed_before, &uptime, &stop, &told);
        });
        tracing::info!(deadline_seconds = policy.deadline.as_secs(), passes = policy.passes, "probation begins");
        self.checking = Some(Job { cancel, thread });
        Ok(Next::Look)
    }

    fn health_checks(&self) -> Result<HealthChecks, HooksError> {
        let config = &self.device.config.health;
        let mut settings = HealthSettings::new(self.device.paths.root(), Limits::within(config.check_timeout));
        settings.limits = settings.limits.contained(self.containment());
        settings.deadlines.clone_from(&config.timeouts);
        settings.units.clone_from(&config.units);
        settings.tcp.clone_from(&config.tcp);
        let source = self.device.record().state.deployment().map(|deployment| deployment.source.as_str());
        settings.probes = probes::checks(&self.opener, &config.http, source);
        let checks = HealthChecks::find(settings)?;
        let unknown = checks.deadlines_of_nobody();
        if !unknown.is_empty() {
            let names = unknown.join(", ");
            tracing::warn!(names, "health.timeouts names checks that there are not: they change nothing");
        }
        Ok(checks)
    }

    /// Looks how the system does that is about to be left: what fails here in every one of `health.passes` rounds cannot cause
    /// a rollback there. `None`: another round is to come. A system that has just come up is given its time to settle.
    pub(super) fn take_baseline(&mut self) -> Result<Result<Baseline, Next>, ErrorReport> {
        let config = self.device.config.health.clone();
        let settle = config.settle.saturating_sub(self.device.uptime().unwrap_or(config.settle));
        if !settle.is_zero() {
            return Ok(Err(Next::Wait(settle)));
        }
        let rounds = self.baseline.take().unwrap_or_default();
        if let Some(left) = rounds.next.and_then(|next| next.checked_duration_since(Instant::now())) {
            self.baseline = Some(rounds);
            return Ok(Err(Next::Wait(left)));
        }
        let mut checks = self.health_checks().map_err(|error| failed(&error))?;
        let results = checks.run_all(&AtomicBool::new(false));
        log(&results);
        let failing = health::failures(&results);
        let failed = match rounds.failed {
            None => failing,
            Some(before) => before.into_iter().filter(|name| failing.contains(name)).collect(),
        };
        let count = rounds.count.saturating_add(1);
        if !failed.is_empty() && count < config.passes {
            let next = Some(Instant::now() + config.interval);
            self.baseline = Some(Rounds { failed: Some(failed), count, next });
            return Ok(Err(Next::Wait(config.interval)));
        }
        let detail = match failed.as_slice() {
            [] => "every required check passes on the old system".to_owned(),
            failed => format!("fails on the old system already: {}", failed.join(", ")),
        };
        self.device.tell("baseline", detail, results.iter().map(shown).collect());
        Ok(Ok(Baseline { failed }))
    }

    /// Keeps what a round said to be shown, and tells the story where something changed.
    pub(super) fn checked(&mut self, checks: Vec<CheckView>) {
        let passes = |checks: &[CheckView]| -> Vec<(String, bool)> {
            checks.iter().map(|check| (check.name.clone(), check.passed)).collect()
        };
        if passes(&checks) != passes(&self.checks) {
            let failing: Vec<_> = checks.iter().filter(|check| !check.passed).map(|check| &*check.name).collect();
            let detail = match failing.as_slice() {
                [] => format!("{} checks pass", checks.len()),
                failing => format!("{} of {} checks fail: {}", failing.len(), checks.len(), failing.join(", ")),
            };
            self.device.tell("check-round", detail, checks.clone());
        }
        self.checks = checks;
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

fn failed(error: &HooksError) -> ErrorReport {
    ErrorReport::new(error.code(), Phase::Probation, error, error.hint(), error.disposition())
}

fn watch(
    mut soak: Soak,
    mut checks: HealthChecks,
    failed_before: &[String],
    uptime: &dyn Fn() -> Duration,
    cancel: &AtomicBool,
    told: &dyn Fn(Event),
) {
    let mut last = Vec::new();
    while !cancel.load(Ordering::Relaxed) {
        match soak.next(uptime()) {
            soak::Step::Wait(wait) => std::thread::sleep(wait.min(SLICE)),
            soak::Step::RunNow => {
                last = checks.run_all(cancel);
                soak.record(uptime(), health::judge(&last, failed_before));
                log(&last);
                let fallen = match soak.next(uptime()) {
                    soak::Step::Verdict(verdict) => Some(health_of(verdict, &last, failed_before)),
                    _ => None,
                };
                let over = fallen.is_some();
                told(Event::Checked(last.iter().map(shown).collect(), fallen));
                if over {
                    return;
                }
            }
            soak::Step::Verdict(verdict) => return told(Event::Verdict(health_of(verdict, &last, failed_before))),
        }
    }
}

fn health_of(verdict: soak::Verdict, last: &[CheckResult], failed_before: &[String]) -> Health {
    match verdict {
        soak::Verdict::Passed => Health::Passed,
        soak::Verdict::Failed => Health::Failed { detail: detail(last, failed_before) },
    }
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
        output: result.evidence().to_owned(),
    }
}

/// Which checks that count failed in the last round, and what they said.
fn detail(results: &[CheckResult], failed_before: &[String]) -> String {
    let counts =
        |result: &CheckResult| result.requirement == Requirement::Required && !failed_before.contains(&result.name);
    let failed = |result: &&CheckResult| !result.passed && counts(result);
    let lines: Vec<String> =
        results.iter().filter(failed).map(|result| format!("{}: {}", result.name, result.reason)).collect();
    if lines.is_empty() {
        return "too few rounds of health checks passed in time".into();
    }
    lines.join("; ").chars().take(DETAIL_LIMIT).collect()
}
