//! What can go wrong with hooks and health checks, with stable codes.

use std::io;
use std::path::PathBuf;

use bascule_core::Disposition;

use crate::hooks::HookPoint;

/// An error of this crate.
#[derive(Debug, thiserror::Error)]
pub enum HooksError {
    /// A folder of programs is there but cannot be read.
    #[error("the programs in {path} could not be listed")]
    List {
        /// The folder, below the root it was looked for in.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A folder holds more files than [`crate::programs::ENTRY_LIMIT`].
    #[error("{path} holds more than {limit} files")]
    TooMany {
        /// The folder, below the root it was looked for in.
        path: PathBuf,
        /// The bound.
        limit: usize,
    },
    /// The file that tells a hook what is going on could not be written.
    #[error("the context for the hooks could not be written into {path}")]
    Context {
        /// The folder it was to be written into.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A hook said no.
    #[error("hook {hook} at {point} failed: {reason}")]
    Failed {
        /// The point.
        point: HookPoint,
        /// The hook's file name.
        hook: String,
        /// Its exit and the last line it printed.
        reason: String,
    },
    /// A hook did not end within its deadline.
    #[error("hook {hook} at {point} did not end within its deadline")]
    TimedOut {
        /// The point.
        point: HookPoint,
        /// The hook's file name.
        hook: String,
    },
    /// A hook is there but can not be run.
    #[error("hook {hook} at {point} cannot be run: {reason}")]
    NotRunnable {
        /// The point.
        point: HookPoint,
        /// The hook's file name.
        hook: String,
        /// Why not.
        reason: String,
    },
    /// A hook said: not now.
    #[error("hook {hook} at {point} asks to try again later: {reason}")]
    Deferred {
        /// The point.
        point: HookPoint,
        /// The hook's file name.
        hook: String,
        /// The last line it printed.
        reason: String,
    },
    /// The hooks were ended because the update was cancelled.
    #[error("the hooks at {point} were cancelled while {hook} ran")]
    Cancelled {
        /// The point.
        point: HookPoint,
        /// The hook's file name.
        hook: String,
    },
    /// The times of the health checks contradict each other.
    #[error("the health policy cannot be met: {reason}")]
    HealthPolicy {
        /// Which of its numbers, and why.
        reason: String,
    },
}

impl HooksError {
    /// The stable code of `docs/errors.md`.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            HooksError::List { .. } => "hooks.unreadable",
            HooksError::TooMany { .. } => "hooks.too-many",
            HooksError::Context { .. } => "hooks.context",
            HooksError::Failed { .. } => "hooks.failed",
            HooksError::TimedOut { .. } => "hooks.timed-out",
            HooksError::NotRunnable { .. } => "hooks.not-runnable",
            HooksError::Deferred { .. } => "hooks.deferred",
            HooksError::Cancelled { .. } => "hooks.cancelled",
            HooksError::HealthPolicy { .. } => "hooks.health-policy",
        }
    }

    /// What a person can do about it.
    #[must_use]
    pub fn hint(&self) -> String {
        match self {
            HooksError::List { path, .. } => format!("make {} a folder that root can read", path.display()),
            HooksError::TooMany { path, .. } => format!("remove what is not a hook from {}", path.display()),
            HooksError::Context { path, .. } => {
                format!("see whether {} exists, can be written and has space", path.display())
            }
            HooksError::Failed { point, hook, .. } => {
                format!("read what {hook} printed at {point}; the maker of the system decides what it asks for")
            }
            HooksError::TimedOut { hook, .. } => {
                format!("find out what {hook} waits for, or allow it more time in the configuration")
            }
            HooksError::NotRunnable { hook, .. } => {
                format!("repair {hook}, or mask it with a symbolic link to /dev/null of the same name in /etc")
            }
            HooksError::Deferred { hook, .. } => format!("nothing to do: {hook} is asked again later"),
            HooksError::Cancelled { .. } => "start the update again when it is wanted".to_owned(),
            HooksError::HealthPolicy { .. } => {
                "give the deadline room for the settle time and every pass, or ask for fewer passes".to_owned()
            }
        }
    }

    /// What is to be done about it.
    #[must_use]
    pub fn disposition(&self) -> Disposition {
        match self {
            HooksError::Context { .. }
            | HooksError::TimedOut { .. }
            | HooksError::Deferred { .. }
            | HooksError::Cancelled { .. } => Disposition::Retry,
            HooksError::Failed { .. } => Disposition::GiveUp,
            HooksError::List { .. }
            | HooksError::TooMany { .. }
            | HooksError::NotRunnable { .. }
            | HooksError::HealthPolicy { .. } => Disposition::Person,
        }
    }
}
