//! Health checks: does the system do its work?
//!
//! A check is a program in `health.d/required` or `health.d/wanted` ([`crate::programs`] has the rules), one of
//! greenboot's in `greenboot/check/required.d` or `wanted.d`, a systemd unit that must be active, a port that accepts, or
//! a [`Probe`] that the caller brings. A program passes with exit code 0. A check that does not end within its deadline
//! has failed, and so has one that is there but cannot be run. Only *required* checks decide; *wanted* ones are reported.
//! A check that failed before the update cannot cause a rollback: [`judge`] is given their names.

mod probe;
mod unit;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::error::HooksError;
use crate::output;
use crate::paths;
use crate::programs::{self, NameRule, Program};
use crate::runner::{self, Command, Exit, Limits, Outcome};
use crate::soak::Round;

pub use probe::{Probe, ProbeCheck};

/// How much of a check's output goes into a report: its end, in bytes.
pub const EVIDENCE_LIMIT: usize = 4 * 1024;
/// How many checks run at the same time.
const AT_ONCE: usize = 4;
/// What the names of greenboot's programs end with; whatever else lies in its folders it does not run.
const GREENBOOT_ENDING: &str = ".sh";

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
    /// Whether a URL answers with a status of 2xx or 3xx.
    Http,
    /// Whether `HOST:PORT` accepts a connection.
    Tcp,
    /// Whether the server that bundles come from answers at all; never required.
    Source,
}

/// What one check said in one round.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct CheckResult {
    /// The program's file name, for greenboot's with its folder (`greenboot/required.d/NAME`); the unit's name;
    /// `tcp:HOST:PORT`; the probe's name.
    pub name: String,
    /// What it looks at.
    pub kind: CheckKind,
    /// Whether it decides.
    pub requirement: Requirement,
    /// Whether it passed.
    pub passed: bool,
    /// Why it passed or failed, in one line.
    pub reason: String,
    /// How its program, or the question about its unit, ended. A port or a probe is told as a program would be: exit
    /// code 0 or 1 and the answer as output.
    #[serde(flatten)]
    pub outcome: Outcome,
}

impl CheckResult {
    /// Whether it did not end within its deadline.
    #[must_use]
    pub fn hung(&self) -> bool {
        self.outcome.exit == Exit::TimedOut
    }

    /// What it printed, for a report: the end of it, at most [`EVIDENCE_LIMIT`] bytes, cut between characters. How it
    /// ended, how long it took and why it failed stand in the other fields.
    #[must_use]
    pub fn evidence(&self) -> &str {
        output::end_of(&self.outcome.output_tail, EVIDENCE_LIMIT)
    }
}

/// Where the checks are, and what they may take.
#[derive(Debug, Clone)]
pub struct HealthSettings {
    /// The root whose checks run.
    pub root: PathBuf,
    /// The systemd units that must be active.
    pub units: Vec<String>,
    /// Ports that must accept a connection, each `HOST:PORT`; all required.
    pub tcp: Vec<String>,
    /// What else is asked, required or wanted.
    pub probes: Vec<ProbeCheck>,
    /// What each single check may take.
    pub limits: Limits,
    /// Checks with a deadline of their own, by the name that their results have.
    pub deadlines: BTreeMap<String, Duration>,
    /// The program that is asked about units.
    pub systemctl: PathBuf,
}

impl HealthSettings {
    /// The programs of this root, and nothing else yet, each with these limits.
    #[must_use]
    pub fn new(root: impl Into<PathBuf>, limits: Limits) -> Self {
        HealthSettings {
            root: root.into(),
            units: Vec::new(),
            tcp: Vec::new(),
            probes: Vec::new(),
            limits,
            deadlines: BTreeMap::new(),
            systemctl: paths::SYSTEMCTL.into(),
        }
    }

    /// What the check of this name may take.
    fn limits_of(&self, name: &str) -> Limits {
        let deadline = self.deadlines.get(name).copied().unwrap_or(self.limits.deadline);
        Limits { deadline, ..self.limits.clone() }
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
    subject: Subject,
}

#[derive(Debug)]
enum Subject {
    Program(Program),
    Unit(String),
    Probe(ProbeCheck),
}

impl Check {
    fn name(&self) -> String {
        match &self.subject {
            Subject::Program(program) => program.name.clone(),
            Subject::Unit(name) => name.clone(),
            Subject::Probe(probe) => probe.name(),
        }
    }
}

impl HealthChecks {
    /// Finds the checks: required programs, greenboot's required ones, units, ports and required probes; then the wanted
    /// ones in the same order.
    ///
    /// # Errors
    /// [`HooksError::List`] and [`HooksError::TooMany`] when a folder cannot be listed.
    pub fn find(settings: HealthSettings) -> Result<Self, HooksError> {
        let required = programs_of(&settings.root, Requirement::Required)?;
        let mut wanted = programs_of(&settings.root, Requirement::Wanted)?;
        // One name is one check: were it in both folders, its failure as a wanted one would excuse the required one.
        wanted.retain(|program| required.iter().all(|other| other.name != program.name));
        let ours: Vec<String> = required.iter().chain(&wanted).map(|program| program.name.clone()).collect();
        let probes: Vec<ProbeCheck> = settings
            .tcp
            .iter()
            .map(|address| ProbeCheck::tcp(Requirement::Required, address))
            .chain(settings.probes.iter().cloned())
            .collect();
        let mut checks = Vec::new();
        for (requirement, own) in [(Requirement::Required, required), (Requirement::Wanted, wanted)] {
            let mut subjects: Vec<Subject> = own.into_iter().map(Subject::Program).collect();
            subjects.extend(greenboot_of(&settings.root, requirement, &ours)?.into_iter().map(Subject::Program));
            if requirement == Requirement::Required {
                subjects.extend(settings.units.iter().cloned().map(Subject::Unit));
            }
            let asked = probes.iter().filter(|probe| probe.requirement() == requirement);
            subjects.extend(asked.cloned().map(Subject::Probe));
            checks.extend(subjects.into_iter().map(|subject| Check { requirement, subject }));
        }
        Ok(HealthChecks { checks, settings, restarts: BTreeMap::new() })
    }

    /// Names with a deadline of their own that no check has: somebody mistyped them, or the check is gone.
    #[must_use]
    pub fn deadlines_of_nobody(&self) -> Vec<String> {
        let names: Vec<String> = self.checks.iter().map(Check::name).collect();
        self.settings.deadlines.keys().filter(|name| !names.contains(name)).cloned().collect()
    }

    /// Whether there is no check that decides: such a system passes every round.
    #[must_use]
    pub fn decides_nothing(&self) -> bool {
        self.checks.iter().all(|check| check.requirement == Requirement::Wanted)
    }

    /// Runs every check once, four at a time, and returns the results in the order of the checks.
    ///
    /// A check that hangs holds up one of the four places until its own deadline, and nobody in the others.
    pub fn run_all(&mut self, cancel: &AtomicBool) -> Vec<CheckResult> {
        let results = run_together(&self.checks, &self.settings, &self.restarts, cancel);
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

/// Greenboot's programs, named with their folder. One that has the name of one of `ours` is that check, and ours runs.
fn greenboot_of(root: &Path, requirement: Requirement, ours: &[String]) -> Result<Vec<Program>, HooksError> {
    let leaf = format!("{}.d", requirement.name());
    let folder = |base: &str| Path::new(base).join(&leaf);
    let (vendor, local) = (folder(paths::VENDOR_GREENBOOT), folder(paths::LOCAL_GREENBOOT));
    let mut found = programs::find(root, &vendor, &local, NameRule::Plain)?;
    found.retain(|program| program.name.ends_with(GREENBOOT_ENDING) && !ours.contains(&program.name));
    for program in &mut found {
        program.name = format!("greenboot/{leaf}/{}", program.name);
    }
    Ok(found)
}

/// One result, and how often systemd had restarted the unit, where it is one.
type Seen = (CheckResult, Option<u64>);

/// Runs all of them; whoever of the runners is free takes the next.
fn run_together(
    checks: &[Check],
    settings: &HealthSettings,
    restarts: &BTreeMap<String, u64>,
    cancel: &AtomicBool,
) -> Vec<Seen> {
    let next = AtomicUsize::new(0);
    let take = || {
        let index = next.fetch_add(1, Ordering::Relaxed);
        checks.get(index).map(|check| (index, check))
    };
    let work = || -> Vec<(usize, Seen)> {
        std::iter::from_fn(take).map(|(index, check)| (index, run_check(check, settings, restarts, cancel))).collect()
    };
    let mut seen: BTreeMap<usize, Seen> = thread::scope(|scope| {
        let runners: Vec<_> = (0..AT_ONCE.min(checks.len())).map(|_| scope.spawn(work)).collect();
        runners.into_iter().flat_map(|runner| runner.join().unwrap_or_default()).collect()
    });
    // A check whose own thread died has failed: nothing fails open.
    let result = |(index, check)| seen.remove(&index).unwrap_or_else(|| (died(check), None));
    checks.iter().enumerate().map(result).collect()
}

fn run_check(check: &Check, settings: &HealthSettings, restarts: &BTreeMap<String, u64>, cancel: &AtomicBool) -> Seen {
    let limits = settings.limits_of(&check.name());
    let outcome = match &check.subject {
        Subject::Program(Program { run: Ok(path), .. }) => runner::run(&Command::new(path), &limits, cancel),
        Subject::Program(Program { run: Err(fault), .. }) => Outcome::not_started(fault),
        Subject::Probe(probe) => {
            let outcome = probe.look(limits.deadline, cancel);
            return (result(check, outcome.succeeded(), probe::reason(&outcome), outcome), None);
        }
        Subject::Unit(name) => {
            let seen = unit::look_at(name, &settings.systemctl, &limits, restarts.get(name).copied(), cancel);
            return (result(check, seen.passed, seen.reason, seen.outcome), seen.restarts);
        }
    };
    (result(check, outcome.succeeded(), outcome.reason(), outcome), None)
}

fn died(check: &Check) -> CheckResult {
    let outcome = Outcome::not_started("its thread died");
    result(check, false, outcome.reason(), outcome)
}

fn result(check: &Check, passed: bool, reason: String, outcome: Outcome) -> CheckResult {
    let kind = match &check.subject {
        Subject::Program(_) => CheckKind::Program,
        Subject::Unit(_) => CheckKind::Unit,
        Subject::Probe(probe) => probe.kind(),
    };
    CheckResult { name: check.name(), kind, requirement: check.requirement, passed, reason, outcome }
}
