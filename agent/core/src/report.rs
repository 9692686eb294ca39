//! Errors as people and fleets see them.

use serde::{Deserialize, Serialize};

/// What is to be done about an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Disposition {
    /// It may go away by itself: try again later.
    Retry,
    /// This bundle will never work on this device: give it up.
    GiveUp,
    /// A person has to do something first.
    Person,
}

/// Which part of an update an error belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Phase {
    /// Looking at the offer: trust, compatibility, path, space.
    Check,
    /// Writing and reading back the target slots.
    Prepare,
    /// Switching the loader and rebooting.
    Activate,
    /// Running from the target, not yet good.
    Probation,
    /// Marking the booted group good.
    Commit,
    /// Going back.
    Rollback,
    /// Anything else the daemon does for itself or for a caller.
    Daemon,
}

/// What a person should know although nothing stands in the way yet: a copy of something is damaged while the other one serves.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Warning {
    /// Stable code of `docs/errors.md`.
    pub code: String,
    /// What is damaged and what serves meanwhile, in one line.
    pub reason: String,
    /// What a person can do about it.
    pub hint: String,
}

impl Warning {
    /// Makes a warning.
    pub fn new(code: &str, reason: impl Into<String>, hint: impl Into<String>) -> Self {
        Warning { code: code.to_owned(), reason: reason.into(), hint: hint.into() }
    }
}

/// One error, whole: printed as `error:`, `caused by:`, `hint:`, and sent as JSON.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorReport {
    /// Stable code of `docs/errors.md`, such as `bundle.truncated`.
    pub code: String,
    /// The part of the update it belongs to.
    pub phase: Phase,
    /// What was being done to what, in one line without a full stop.
    pub message: String,
    /// The chain of causes, outermost first.
    pub cause: Vec<String>,
    /// What a person can do about it.
    pub hint: String,
    /// Whether the same request may succeed later without a change.
    pub retryable: bool,
}

impl ErrorReport {
    /// Collects the chain of causes below `error` and makes the report.
    #[must_use]
    pub fn new(
        code: &str,
        phase: Phase,
        error: &dyn std::error::Error,
        hint: impl Into<String>,
        disposition: Disposition,
    ) -> Self {
        let mut cause = Vec::new();
        let mut next = error.source();
        while let Some(inner) = next {
            cause.push(inner.to_string());
            next = inner.source();
        }
        ErrorReport {
            code: code.to_owned(),
            phase,
            message: error.to_string(),
            cause,
            hint: hint.into(),
            retryable: disposition == Disposition::Retry,
        }
    }
}
