//! Errors of the command line, and how every error is printed.

use std::io;
use std::path::PathBuf;

use bascule_boot::disk::DiskError;
use bascule_core::{Blocker, Disposition, ErrorReport, Phase};

use super::Exit;
use super::text::{Paint, clean, json_line};
use crate::config::Config;
use crate::device::{DeviceError, Parts};
use crate::paths::Paths;
use crate::shared::Refused;

/// Answers that mean that there is nothing to do.
const NOTHING_TO_DO: [&str; 3] = [bascule_core::offer::SAME, "request.already-good", "request.nothing-to-cancel"];

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
pub(super) enum CliError {
    /// Nobody answers on the socket.
    #[error("the daemon does not answer on {path}")]
    NotRunning { path: PathBuf, source: io::Error, paths: Paths },
    /// The socket may not be opened.
    #[error("{path} may not be opened")]
    NoAccess { path: PathBuf, source: io::Error },
    /// The connection broke in the middle.
    #[error("the connection to the daemon broke")]
    Broken { source: Box<dyn std::error::Error + Send + Sync> },
    /// The daemon sent something that this version does not understand.
    #[error("the daemon's answer to {path} cannot be read")]
    BadAnswer { path: String, source: Box<dyn std::error::Error + Send + Sync> },
    /// The bundle's path has no absolute form.
    #[error("{path} is no usable path")]
    Path { path: String, source: io::Error },
    /// The system gives this process nothing to wait with.
    #[error("the command cannot be started")]
    Runtime { source: io::Error },
    /// No deployment of that name.
    #[error("no deployment {id:?} is known here")]
    UnknownDeployment { id: String },
    /// The daemon refused.
    #[error("the daemon refused")]
    Refused(Box<Refused>),
}

impl CliError {
    fn code(&self) -> &'static str {
        match self {
            CliError::NotRunning { .. } => "api.not-running",
            CliError::NoAccess { .. } => "api.no-access",
            CliError::Broken { .. } => "api.broken",
            CliError::BadAnswer { .. } => "api.bad-answer",
            CliError::Path { .. } => "cli.path",
            CliError::Runtime { .. } => "cli.runtime",
            CliError::UnknownDeployment { .. } => "cli.unknown-deployment",
            CliError::Refused(_) => "api.refused",
        }
    }

    fn hint(&self) -> &'static str {
        match self {
            CliError::NotRunning { .. } => {
                "start it with `systemctl start basculed`; `journalctl -u basculed` says why it ended"
            }
            CliError::NoAccess { .. } => "run the command as root, or join the group `bascule` to look only",
            CliError::Broken { .. } => "look at `bascule status` once the daemon runs again",
            CliError::BadAnswer { .. } => "use the `bascule` of the same version as `basculed`",
            CliError::Path { .. } => "name a file that is there, an http(s) URL, or `-`",
            CliError::Runtime { .. } => "raise the limit of open files, or make room in memory",
            CliError::UnknownDeployment { .. } => "`bascule history` lists the deployments",
            CliError::Refused(_) => "see the errors above",
        }
    }

    fn disposition(&self) -> Disposition {
        match self {
            CliError::Broken { .. } => Disposition::Retry,
            _ => Disposition::Person,
        }
    }

    /// The error as the daemon would have sent it.
    pub(super) fn refused(self) -> Refused {
        if let CliError::Refused(refused) = self {
            return *refused;
        }
        let error = ErrorReport::new(self.code(), Phase::Daemon, &self, self.hint(), self.disposition());
        let blockers = match &self {
            CliError::NotRunning { paths, .. } => unfit_disks(paths).into_iter().collect(),
            _ => Vec::new(),
        };
        Refused { error, blockers }
    }

    /// Prints the error and says how the command ends.
    pub(super) fn print(self, json: bool) -> Exit {
        let refused = self.refused();
        if json {
            json_line(&refused);
        } else {
            print_refused(&refused);
        }
        exit_of(&refused)
    }
}

/// What is wrong with the device's disks, as far as the caller may look: the daemon ends at its start because of it, and is
/// started again until a person has mended it, so nobody else could tell.
fn unfit_disks(paths: &Paths) -> Option<Blocker> {
    let config = Config::load(paths).ok()?;
    match Parts::find(paths, &config) {
        // That is about this caller: what the daemon sees may be another thing.
        Err(DeviceError::Disk(DiskError::Read { .. } | DiskError::Form { .. } | DiskError::Open { .. })) => None,
        Err(DeviceError::Disk(error)) => Some(Blocker::new(error.code(), error.to_string(), error.hint())),
        _ => None,
    }
}

/// How a command ends that was refused.
pub(super) fn exit_of(refused: &Refused) -> Exit {
    // That a bundle is installed already outweighs whatever else is in its way: the daemon puts it first.
    if NOTHING_TO_DO.contains(&refused.error.code.as_str()) { Exit::NothingToDo } else { exit_of_error(&refused.error) }
}

/// How a command ends that failed with `error`.
pub(super) fn exit_of_error(error: &ErrorReport) -> Exit {
    if error.retryable { Exit::TryLater } else { Exit::Failed }
}

fn print_refused(refused: &Refused) {
    if exit_of(refused) == Exit::NothingToDo {
        let reason = refused.blockers.first().map_or(&refused.error.message, |blocker| &blocker.reason);
        println!("nothing to do: {}", clean(reason));
        return;
    }
    if !refused.blockers.iter().any(|blocker| blocker.code == refused.error.code) {
        print_error(&refused.error);
    }
    refused.blockers.iter().for_each(print_blocker);
}

/// Prints `error:`, `caused by:` and `hint:`.
pub(super) fn print_error(error: &ErrorReport) {
    let paint = Paint::stderr();
    eprintln!("{} [{}] {}", paint.bad("error:"), clean(&error.code), clean(&error.message));
    for cause in &error.cause {
        eprintln!("  caused by: {}", clean(cause));
    }
    if !error.hint.is_empty() {
        eprintln!("  hint: {}", clean(&error.hint));
    }
}

fn print_blocker(blocker: &Blocker) {
    let paint = Paint::stderr();
    eprintln!("{} [{}] {}", paint.bad("error:"), clean(&blocker.code), clean(&blocker.reason));
    if !blocker.hint.is_empty() {
        eprintln!("  hint: {}", clean(&blocker.hint));
    }
}
