//! What can go wrong with an integrator's program.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use bascule_core::Disposition;

/// Why an integrator's program did not do what it was asked for.
#[derive(Debug, thiserror::Error)]
pub enum CustomError {
    /// The program could not be started, or its end not be waited for.
    #[error("cannot run `{} {verb}`", .program.display())]
    Run {
        /// The program.
        program: PathBuf,
        /// What it was asked for.
        verb: &'static str,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The program did not end in time, and was killed with all that it had started.
    #[error("`{} {verb}` did not end within {} s", .program.display(), .deadline.as_secs_f32())]
    TimedOut {
        /// The program.
        program: PathBuf,
        /// What it was asked for.
        verb: &'static str,
        /// How long it could take.
        deadline: Duration,
    },
    /// The program said that it failed.
    #[error("`{} {verb}` failed with {status}, saying {said:?}", .program.display())]
    Failed {
        /// The program.
        program: PathBuf,
        /// What it was asked for.
        verb: &'static str,
        /// How it ended.
        status: std::process::ExitStatus,
        /// The last line of its standard error, made harmless.
        said: String,
    },
    /// The program's answer is not the JSON object that was asked for.
    #[error("`{} view` gave an answer that cannot be used: {fault}", .program.display())]
    Answer {
        /// The program.
        program: PathBuf,
        /// What is wrong with it.
        fault: String,
    },
    /// The program said that it had done what it was asked for, and its view says otherwise.
    #[error("`{} {verb}` said that it was done, but its view shows {seen}", .program.display())]
    NotKept {
        /// The program.
        program: PathBuf,
        /// What it was asked for.
        verb: &'static str,
        /// What its view shows.
        seen: String,
    },
}

impl CustomError {
    /// Stable code of `docs/errors.md`.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            CustomError::Run { .. } => "boot.custom-run",
            CustomError::TimedOut { .. } => "boot.custom-timed-out",
            CustomError::Failed { .. } => "boot.custom-failed",
            CustomError::Answer { .. } => "boot.custom-answer",
            CustomError::NotKept { .. } => "boot.custom-not-kept",
        }
    }

    /// What a person can do about it.
    #[must_use]
    pub fn hint(&self) -> String {
        match self {
            CustomError::Run { program, .. } => {
                format!("check that {} is there, complete and executable", program.display())
            }
            CustomError::TimedOut { program, verb, .. } => {
                format!("find out what `{} {verb}` waits for, or allow it more time", program.display())
            }
            CustomError::Failed { program, .. } => {
                format!("read what {} says; its maker knows what it means", program.display())
            }
            CustomError::Answer { program, .. } => {
                format!("run `{} view` by hand and hold its answer against the documentation", program.display())
            }
            CustomError::NotKept { program, .. } => {
                format!(
                    "{} must make a change durable before it ends with 0; its maker has to repair it",
                    program.display()
                )
            }
        }
    }

    /// What is to be done about it.
    #[must_use]
    pub fn disposition(&self) -> Disposition {
        match self {
            CustomError::TimedOut { .. } | CustomError::Failed { .. } => Disposition::Retry,
            CustomError::Run { .. } | CustomError::Answer { .. } | CustomError::NotKept { .. } => Disposition::Person,
        }
    }
}
