//! The hook points of one update, the context given to a hook, and the verdict of one point.
//!
//! A hook is a program `NN-name` in the folder of its point ([`crate::programs`] has the rules). It finds a JSON object
//! in the file named by `BASCULE_CONTEXT` ([`CONTEXT_JSON_SCHEMA`] describes it), and beside it `BASCULE_HOOK_POINT` and,
//! when there is a deployment, `BASCULE_DEPLOYMENT`, and where the prepared target slot is mounted,
//! `BASCULE_TARGET_ROOT`. It passes with exit code 0; with 75 it asks to try again later, and the last line it printed
//! is the reason; everything else is a failure, a deadline that passed included. The first hook that does not pass ends
//! the point. A hook can be run again after a power cut, with the same deployment: it must stand that.

mod list;

#[cfg(test)]
mod tests;

use std::fmt;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use bascule_core::{DeploymentId, Group};
use serde::{Deserialize, Serialize};

use crate::error::HooksError;
use crate::output::last_line;
use crate::paths;
use crate::programs::{self, NameRule, Program};
use crate::runner::{self, Command, Exit, Limits, Outcome};

pub use list::{ListedHook, ListedPoint, list};

/// The exit code by which a hook asks to try again later (`EX_TEMPFAIL` of sysexits.h).
pub const DEFER: i32 = 75;
/// The form of the context file; grows when a key changes its meaning, not when one is added.
pub const CONTEXT_SCHEMA: u32 = 1;
/// The JSON schema of the context file.
pub const CONTEXT_JSON_SCHEMA: &str = include_str!("context.schema.json");

/// A point of an update at which hooks run, in the order an update comes by them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum HookPoint {
    /// An offer was found acceptable; nothing has begun.
    Check,
    /// Before the first byte is written to the target.
    PrePrepare,
    /// The target is written and read back.
    PostPrepare,
    /// Before the loader is told about the target.
    PreActivate,
    /// The loader is told; the device is about to reboot.
    PreReboot,
    /// Booted from the target, not yet good.
    Probation,
    /// The booted group was marked good.
    PostCommit,
    /// Before going back.
    PreRollback,
    /// Back in the group that was good.
    PostRollback,
}

impl HookPoint {
    /// Every point, in order.
    pub const ALL: [HookPoint; 9] = [
        HookPoint::Check,
        HookPoint::PrePrepare,
        HookPoint::PostPrepare,
        HookPoint::PreActivate,
        HookPoint::PreReboot,
        HookPoint::Probation,
        HookPoint::PostCommit,
        HookPoint::PreRollback,
        HookPoint::PostRollback,
    ];

    /// The name of its folder, and of the point in JSON and in output.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            HookPoint::Check => "check",
            HookPoint::PrePrepare => "pre-prepare",
            HookPoint::PostPrepare => "post-prepare",
            HookPoint::PreActivate => "pre-activate",
            HookPoint::PreReboot => "pre-reboot",
            HookPoint::Probation => "probation",
            HookPoint::PostCommit => "post-commit",
            HookPoint::PreRollback => "pre-rollback",
            HookPoint::PostRollback => "post-rollback",
        }
    }
}

impl fmt::Display for HookPoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What a hook is told, as JSON. Beside these keys the file holds `schema` ([`CONTEXT_SCHEMA`]) and `point`.
///
/// A hook must ignore keys it does not know. A key whose value is not known is `null`, not left out.
#[derive(Debug, Clone, Serialize)]
pub struct HookContext {
    /// The deployment; `null` at `check`, where none has begun.
    pub deployment: Option<DeploymentId>,
    /// The version that was good before the update.
    pub from_version: Option<String>,
    /// The version of the bundle.
    pub to_version: Option<String>,
    /// The group the bundle goes into, `a` or `b`.
    pub target_group: Group,
    /// The group the system runs from, `a` or `b`.
    pub booted_group: Group,
    /// Why we go back, at the two rollback points; why a person asked, where one did.
    pub reason: Option<String>,
}

/// Where hooks are, and what they may take.
#[derive(Debug, Clone)]
pub struct HookSettings {
    /// The root whose hooks run: `/`, or where a prepared slot is mounted.
    pub root: PathBuf,
    /// An existing folder that only we may write to, for the context files.
    pub context_dir: PathBuf,
    /// What each single hook may take.
    pub limits: Limits,
}

/// What one hook did.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct HookRun {
    /// Its file name.
    pub hook: String,
    /// How it ended and what it printed.
    #[serde(flatten)]
    pub outcome: Outcome,
}

/// What the hooks of one point came to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "verdict", rename_all = "kebab-case")]
pub enum PointVerdict {
    /// All passed, or there are none.
    Passed,
    /// One asked to try again later.
    Deferred {
        /// Its file name.
        hook: String,
        /// The last line it printed.
        reason: String,
    },
    /// One failed, did not end, or cannot be run.
    Failed {
        /// Its file name.
        hook: String,
        /// How it ended, and the last line it printed.
        reason: String,
    },
}

/// One point, run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PointOutcome {
    /// The point.
    pub point: HookPoint,
    /// What it came to.
    #[serde(flatten)]
    pub verdict: PointVerdict,
    /// Every hook that was run, in order; after one that did not pass none follows.
    pub hooks: Vec<HookRun>,
}

impl PointOutcome {
    /// The hooks that ran, if all passed.
    ///
    /// # Errors
    /// [`HooksError::Deferred`], [`HooksError::TimedOut`], [`HooksError::NotRunnable`], [`HooksError::Cancelled`] or
    /// [`HooksError::Failed`], as the last hook ended.
    pub fn into_result(mut self) -> Result<Vec<HookRun>, HooksError> {
        let point = self.point;
        let (hook, reason) = match self.verdict {
            PointVerdict::Passed => return Ok(self.hooks),
            PointVerdict::Deferred { hook, reason } => return Err(HooksError::Deferred { point, hook, reason }),
            PointVerdict::Failed { hook, reason } => (hook, reason),
        };
        Err(match self.hooks.pop().map(|run| run.outcome.exit) {
            Some(Exit::TimedOut) => HooksError::TimedOut { point, hook },
            Some(Exit::Cancelled) => HooksError::Cancelled { point, hook },
            Some(Exit::NotStarted(reason)) => HooksError::NotRunnable { point, hook, reason },
            _ => HooksError::Failed { point, hook, reason },
        })
    }
}

/// Runs the hooks of one point in order, up to the first that does not pass.
///
/// # Errors
/// [`HooksError::List`] and [`HooksError::TooMany`] when the hooks cannot be found, [`HooksError::Context`] when they
/// cannot be told what is going on. A hook that says no is not an error here: see [`PointOutcome::into_result`].
pub fn run_point(
    point: HookPoint,
    context: &HookContext,
    settings: &HookSettings,
    cancel: &AtomicBool,
) -> Result<PointOutcome, HooksError> {
    run_point_on(point, context, settings, None, cancel)
}

/// As [`run_point`], for hooks that look at the prepared target slot: `target` is where it is mounted, and becomes
/// `BASCULE_TARGET_ROOT`.
///
/// # Errors
/// As [`run_point`].
pub fn run_point_on(
    point: HookPoint,
    context: &HookContext,
    settings: &HookSettings,
    target: Option<&Path>,
    cancel: &AtomicBool,
) -> Result<PointOutcome, HooksError> {
    run_programs(point, find(point, &settings.root)?, context, settings, target, cancel)
}

/// Runs the hooks of a point of the running system and of the prepared one, which is mounted at `target`: where both
/// have a hook of the same name, that of the prepared system, for it knows better what it needs.
///
/// # Errors
/// As [`run_point`].
pub fn run_point_with_target(
    point: HookPoint,
    context: &HookContext,
    settings: &HookSettings,
    target: &Path,
    cancel: &AtomicBool,
) -> Result<PointOutcome, HooksError> {
    let folder = Path::new(paths::VENDOR_HOOKS).join(point.name());
    // What the owner put into the running system stays the owner's, masks too; the prepared one brings its maker's.
    let owned = settings.root.join(paths::LOCAL_HOOKS).join(point.name());
    let mut theirs = programs::find(target, &folder, &folder, NameRule::Numbered)?;
    theirs.retain(|hook| owned.join(&hook.name).symlink_metadata().is_err());
    let mut hooks = find(point, &settings.root)?;
    hooks.retain(|hook| theirs.iter().all(|their| their.name != hook.name));
    hooks.extend(theirs);
    hooks.sort_by(|one, other| one.name.cmp(&other.name));
    run_programs(point, hooks, context, settings, Some(target), cancel)
}

fn run_programs(
    point: HookPoint,
    programs: Vec<Program>,
    context: &HookContext,
    settings: &HookSettings,
    target: Option<&Path>,
    cancel: &AtomicBool,
) -> Result<PointOutcome, HooksError> {
    let mut hooks = Vec::new();
    for program in programs {
        let outcome = match &program.run {
            Ok(path) => run_hook(point, path, context, settings, target, cancel)?,
            Err(fault) => Outcome::not_started(fault),
        };
        let verdict = verdict(&program.name, &outcome);
        hooks.push(HookRun { hook: program.name, outcome });
        if verdict != PointVerdict::Passed {
            return Ok(PointOutcome { point, verdict, hooks });
        }
    }
    Ok(PointOutcome { point, verdict: PointVerdict::Passed, hooks })
}

/// Lists the hooks of one point below `root`, in the order they run in; those that cannot be run with the reason.
///
/// # Errors
/// [`HooksError::List`] and [`HooksError::TooMany`].
pub fn find(point: HookPoint, root: &Path) -> Result<Vec<Program>, HooksError> {
    let folder = |base: &str| Path::new(base).join(point.name());
    programs::find(root, &folder(paths::VENDOR_HOOKS), &folder(paths::LOCAL_HOOKS), NameRule::Numbered)
}

fn run_hook(
    point: HookPoint,
    path: &Path,
    context: &HookContext,
    settings: &HookSettings,
    target: Option<&Path>,
    cancel: &AtomicBool,
) -> Result<Outcome, HooksError> {
    // Each hook gets a file of its own: one that writes into it misleads nobody else. It goes when `file` does.
    let file = write_context(point, context, &settings.context_dir)
        .map_err(|source| HooksError::Context { path: settings.context_dir.clone(), source })?;
    let mut command = Command::new(path).env("BASCULE_CONTEXT", file.path()).env("BASCULE_HOOK_POINT", point.name());
    if let Some(deployment) = &context.deployment {
        command = command.env("BASCULE_DEPLOYMENT", deployment.to_string());
    }
    if let Some(target) = target {
        command = command.env("BASCULE_TARGET_ROOT", target);
    }
    Ok(runner::run(&command, &settings.limits, cancel))
}

/// Writes the context to a new file that only we can read.
fn write_context(point: HookPoint, context: &HookContext, dir: &Path) -> io::Result<tempfile::NamedTempFile> {
    #[derive(Serialize)]
    struct Written<'a> {
        schema: u32,
        point: HookPoint,
        #[serde(flatten)]
        context: &'a HookContext,
    }
    let written = Written { schema: CONTEXT_SCHEMA, point, context };
    let mut file = tempfile::Builder::new().prefix("hook-context-").suffix(".json").tempfile_in(dir)?;
    serde_json::to_writer(&mut file, &written)?;
    file.write_all(b"\n")?;
    file.flush()?;
    Ok(file)
}

fn verdict(hook: &str, outcome: &Outcome) -> PointVerdict {
    let hook = hook.to_owned();
    match outcome.exit {
        Exit::Code(0) => PointVerdict::Passed,
        Exit::Code(DEFER) => {
            let reason = last_line(&outcome.output_tail).unwrap_or_else(|| "it gave no reason".to_owned());
            PointVerdict::Deferred { hook, reason }
        }
        _ => PointVerdict::Failed { hook, reason: outcome.reason() },
    }
}
