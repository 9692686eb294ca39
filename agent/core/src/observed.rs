//! The facts a decision is made of, all of them gathered before it is taken.

use crate::boot::BootView;
use crate::report::{Disposition, ErrorReport};
use crate::words::{BootId, Group, Tries};

/// What the daemon sees in one look at the world.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Observed {
    /// The group whose root is mounted.
    pub booted: Group,
    /// This boot.
    pub boot_id: BootId,
    /// This run of the daemon.
    pub run: String,
    /// What the loader's settings say.
    pub view: BootView,
    /// How probation goes; [`Health::Unknown`] outside it.
    pub health: Health,
    /// Whether the probation deadline, counted from the start of this boot, has passed.
    pub deadline_passed: bool,
    /// How the preparation in this run of the daemon ended, if it ended without success.
    pub preparation: Option<PreparationFailure>,
    /// What someone asks for now.
    pub request: Option<Request>,
}

/// How probation goes, as far as this run of the daemon knows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Health {
    /// No verdict yet.
    Unknown,
    /// Enough passes in a row.
    Passed,
    /// A verdict against the system.
    Failed {
        /// Which checks failed and what they said.
        detail: String,
    },
}

/// A preparation that ended without success.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PreparationFailure {
    /// What it was.
    pub error: ErrorReport,
    /// Whether it is worth another attempt.
    pub disposition: Disposition,
}

/// What a caller asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Request {
    /// Prepare a bundle (and perhaps activate it then).
    Prepare,
    /// Activate what is prepared.
    Activate,
    /// Mark the booted group good without waiting for probation.
    Commit,
    /// Go back.
    RollBack,
    /// Stop what is on its way.
    Cancel,
}

/// What the configuration says that a decision depends on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy {
    /// Starts the loader grants a target.
    pub tries: Tries,
    /// How often a preparation is attempted.
    pub max_attempts: u32,
}

impl Default for Policy {
    fn default() -> Self {
        Policy { tries: Tries::DEFAULT, max_attempts: 10 }
    }
}
