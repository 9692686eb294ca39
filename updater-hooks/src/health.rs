//! Health checks: does the system do its work?
//!
//! A check is a program in `health.d/required` or `health.d/wanted` ([`crate::programs`] has the rules), or a systemd
//! unit that must be active. A program passes with exit code 0. A check that does not end within its deadline has
//! failed, and so has one that is there but cannot be run. Only *required* checks decide; *wanted* ones are reported.
//! A check that failed before the update cannot cause a rollback: [`judge`] is given their names.

mod unit;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::thread;

use serde::{Deserialize, Serialize};

use crate::error::HooksError;
use crate::paths;
use crate::programs::{self, NameRule, Program};
use crate::runner::{self, Command, Exit, Limits, Outcome};
use crate::soak::Round;

/// How many checks run at the same time.
const AT_ONCE: usize = 4;

/// Whether a check decides.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Requirement {
    /// The system is not healthy without it.
    Required,
    /// It is reported and decides nothing.
    Wanted,
}

impl Requirement {
    /// The name of its folder.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Requirement::Required => "required",
            Requirement::Wanted => "wanted",
        }
    }
}

/// What a check looks at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum CheckKind {
    /// A program's exit code.
    Program,
    /// Whether a systemd unit is active and was not restarted since the round before.
    Unit,
}

/// What one check said in one round.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct CheckResult {
    /// The program's file name, or the unit's name.
    pub name: String,
    /// What it looks at.
    pub kind: CheckKind,
    /// Whether it decides.
    pub requirement: Requirement,
    /// Whether it passed.
    pub passed: bool,
    /// Why it passed or failed, in one line.
    pub reason: String,
    /// How its program, or the question about its unit, ended.
    #[serde(flatten)]
    pub outcome: Outcome,
}

impl CheckResult {
    /// Whether it did not end within its deadline.
    #[must_use]
    pub fn hung(&self) -> bool {
        self.outcome.exit == Exit::TimedOut
    }
}

/// Where the checks are, and what they may take.
#[derive(Debug, Clone)]
pub struct HealthSettings {
    /// The root whose checks run.
    pub root: PathBuf,
    /// The systemd units that must be active.
    pub units: Vec<String>,
    /// Deadline and grace of each single check.
    pub limits: Limits,
    /// The program that is asked about units.
    pub systemctl: PathBuf,
}

impl HealthSettings {
    /// The checks of this root and no units, each with these limits.
    #[must_use]
    pub fn new(root: impl Into<PathBuf>, limits: Limits) -> Self {
        HealthSettings { root: root.into(), units: Vec::new(), limits, systemctl: paths::SYSTEMCTL.into() }
    }
}

/// The checks of one system, and what was seen of its units in the round before.
#[derive(Debug)]
pub struct HealthChecks {
    checks: Vec<Check>,
    settings: HealthSettings,
    restarts: BTreeMap<String, u64>,
}

#[derive(Debug)]
struct Check {
    requirement: Requirement,
    probe: Probe,
}

#[derive(Debug)]
enum Probe {
    Program(Program),
    Unit(String),
}

impl HealthChecks {
    /// Finds the checks: required programs, then units, then wanted programs.
    ///
    /// # Errors
    /// [`HooksError::List`] and [`HooksError::TooMany`] when a folder cannot be listed.
    pub fn find(settings: HealthSettings) -> Result<Self, HooksError> {
        let required = programs_of(&settings.root, Requirement::Required)?;
        let mut wanted = programs_of(&settings.root, Requirement::Wanted)?;
        // One name is one check: were it in both folders, its failure as a wanted one would excuse the required one.
        wanted.retain(|program| required.iter().all(|other| other.name != program.name));
        let check = |requirement| move |probe| Check { requirement, probe };
        let mut checks: Vec<Check> =
            required.into_iter().map(Probe::Program).map(check(Requirement::Required)).collect();
        checks.extend(settings.units.iter().cloned().map(Probe::Unit).map(check(Requirement::Required)));
        checks.extend(wanted.into_iter().map(Probe::Program).map(check(Requirement::Wanted)));
        Ok(HealthChecks { checks, settings, restarts: BTreeMap::new() })
    }

    /// Whether there is no check that decides: such a system passes every round.
    #[must_use]
    pub fn decides_nothing(&self) -> bool {
        self.checks.iter().all(|check| check.requirement == Requirement::Wanted)
    }

    /// Runs every check once, four at a time, and returns the results in the order of the checks.
    pub fn run_all(&mut self, cancel: &AtomicBool) -> Vec<CheckResult> {
        let mut results = Vec::with_capacity(self.checks.len());
        for some in self.checks.chunks(AT_ONCE) {
            results.extend(run_together(some, &self.settings, &self.restarts, cancel));
        }
        for (result, restarts) in &results {
            if let Some(restarts) = restarts {
                self.restarts.insert(result.name.clone(), *restarts);
            }
        }
        results.into_iter().map(|(result, _)| result).collect()
    }
}

/// What a round came to. Checks named in `failed_before` (those that failed before the update) do not count.
#[must_use]
pub fn judge(results: &[CheckResult], failed_before: &[String]) -> Round {
    let counts =
        |result: &&CheckResult| result.requirement == Requirement::Required && !failed_before.contains(&result.name);
    let failed: Vec<_> = results.iter().filter(counts).filter(|result| !result.passed).collect();
    if failed.is_empty() {
        Round::Pass
    } else if failed.iter().any(|result| result.hung()) {
        Round::Hang
    } else {
        Round::Fail
    }
}

/// The names of the required checks that failed: taken before an update, it is what [`judge`] wants to know.
#[must_use]
pub fn failures(results: &[CheckResult]) -> Vec<String> {
    let failed = |result: &&CheckResult| result.requirement == Requirement::Required && !result.passed;
    results.iter().filter(failed).map(|result| result.name.clone()).collect()
}

fn programs_of(root: &Path, requirement: Requirement) -> Result<Vec<Program>, HooksError> {
    let folder = |base: &str| Path::new(base).join(requirement.name());
    programs::find(root, &folder(paths::VENDOR_HEALTH), &folder(paths::LOCAL_HEALTH), NameRule::Plain)
}

/// One result, and how often systemd had restarted the unit, where it is one.
type Seen = (CheckResult, Option<u64>);

fn run_together(
    checks: &[Check],
    settings: &HealthSettings,
    restarts: &BTreeMap<String, u64>,
    cancel: &AtomicBool,
) -> Vec<Seen> {
    thread::scope(|scope| {
        let running: Vec<_> =
            checks.iter().map(|check| scope.spawn(|| run_check(check, settings, restarts, cancel))).collect();
        let ended = checks.iter().zip(running);
        // A check whose own thread died has failed: nothing fails open.
        ended.map(|(check, thread)| thread.join().unwrap_or_else(|_| (died(check), None))).collect()
    })
}

fn run_check(check: &Check, settings: &HealthSettings, restarts: &BTreeMap<String, u64>, cancel: &AtomicBool) -> Seen {
    match &check.probe {
        Probe::Program(program) => {
            let outcome = match &program.run {
                Ok(path) => runner::run(&Command::new(path), &settings.limits, cancel),
                Err(fault) => Outcome::not_started(fault),
            };
            (result(check, outcome.succeeded(), outcome.reason(), outcome), None)
        }
        Probe::Unit(name) => {
            let seen = unit::look_at(name, settings, restarts.get(name).copied(), cancel);
            (result(check, seen.passed, seen.reason, seen.outcome), seen.restarts)
        }
    }
}

fn died(check: &Check) -> CheckResult {
    let outcome = Outcome::not_started("its thread died");
    result(check, false, outcome.reason(), outcome)
}

fn result(check: &Check, passed: bool, reason: String, outcome: Outcome) -> CheckResult {
    let (name, kind) = match &check.probe {
        Probe::Program(program) => (program.name.clone(), CheckKind::Program),
        Probe::Unit(name) => (name.clone(), CheckKind::Unit),
    };
    CheckResult { name, kind, requirement: check.requirement, passed, reason, outcome }
}
