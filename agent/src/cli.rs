//! The command line `bascule`: speaks to the daemon over its socket, shows what it says, decides nothing.

mod client;
mod commands;
mod explain;
mod failure;
mod follow;
mod hooks;
mod progress;
mod show;
mod show_lists;
mod text;
mod upload;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

use crate::paths::Paths;
use client::Client;

/// How the command ended, as its exit code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// Done.
    Done = 0,
    /// Failed.
    Failed = 1,
    /// The command line itself is wrong; clap ends with this code too.
    Usage = 2,
    /// There was nothing to do.
    NothingToDo = 3,
    /// The loader is armed, but the device does not reboot by itself.
    RebootNeeded = 4,
    /// It may go away by itself: try again later.
    TryLater = 75,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> ExitCode {
        ExitCode::from(exit as u8)
    }
}

/// Updates this device: two slot groups, one of them runs, the other one may be written.
#[derive(Debug, Parser)]
#[command(name = "bascule", version, max_term_width = 100)]
#[command(after_help = "Exit codes: 0 done, 1 failed, 2 usage, 3 nothing to do, 4 reboot needed, 75 try again later")]
pub struct Cli {
    #[command(flatten)]
    options: Options,
    #[command(subcommand)]
    command: Verb,
}

#[derive(Debug, Args)]
struct Options {
    /// Print JSON; one line per change where there are several.
    #[arg(long, global = true)]
    json: bool,
    /// Return as soon as the daemon has taken the command.
    #[arg(long, global = true)]
    no_monitor: bool,
    /// The daemon's socket.
    #[arg(long, global = true, value_name = "PATH")]
    socket: Option<PathBuf>,
    /// A folder that stands for the device's root.
    #[arg(long, global = true, value_name = "DIR", default_value = Paths::ROOT)]
    root: PathBuf,
}

impl Options {
    fn client(&self) -> Client {
        let paths = Paths::under(&self.root);
        Client::new(self.socket.clone().unwrap_or_else(|| paths.socket()), paths)
    }
}

#[derive(Debug, Args)]
struct BundleArgument {
    /// A file, an http(s) URL, or `-` for standard input.
    bundle: String,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Show where the update stands.
    Status {
        /// Go on and show every change.
        #[arg(long)]
        watch: bool,
    },
    /// Look for whatever would be in the way of an update now.
    Check,
    /// Say what installing a bundle would do; change nothing.
    Plan(BundleArgument),
    /// Verify a bundle and write it into the spare group; the system keeps running.
    Prepare(BundleArgument),
    /// Reboot into the prepared system, on probation.
    Activate,
    /// Prepare, then activate.
    Install(BundleArgument),
    /// Mark the booted system good now, without waiting for its probation.
    Commit,
    /// Go back to the system that was good.
    Rollback,
    /// Stop the update on its way.
    Cancel,
    /// Let a bundle be tried again that was rolled back on this device.
    Allow {
        /// Its version, or at least eight digits of its manifest's SHA-256.
        bundle: String,
    },
    /// List what happened, newest first.
    History,
    /// Tell the story of one deployment, and what to do next.
    Explain {
        /// Its id; without one, the deployment on its way or else the last one.
        id: Option<String>,
    },
    /// List both slot groups and what is in them.
    Slots,
    /// Look at the integrators' programs.
    #[command(subcommand)]
    Hooks(HooksVerb),
    /// Look at the configuration.
    #[command(subcommand)]
    Config(ConfigVerb),
}

#[derive(Debug, Clone, Subcommand)]
enum HooksVerb {
    /// List every hook in the order an update comes by them; needs no daemon.
    List,
    /// Say what would run at a point, and what it would be told.
    Run {
        /// The point.
        #[arg(value_parser = clap::builder::PossibleValuesParser::new(hooks::names()))]
        point: String,
        /// Run nothing. Only an update runs hooks, so this has to be said.
        #[arg(long, required = true)]
        dry_run: bool,
    },
}

#[derive(Debug, Clone, Copy, Subcommand)]
enum ConfigVerb {
    /// Explain every fault in the configuration; needs no daemon.
    Check,
    /// Say which boot loader this device has, and why; needs no daemon.
    Detect,
}

/// Runs the command line of this process.
#[must_use]
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(source) => {
            return failure::CliError::Runtime { source }.print(cli.options.json).into();
        }
    };
    let exit = match runtime.block_on(commands::run(&cli)) {
        Ok(exit) => exit,
        Err(error) => error.print(cli.options.json),
    };
    // A thread may still wait for standard input: do not wait for it.
    runtime.shutdown_background();
    exit.into()
}
