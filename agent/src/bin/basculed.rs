//! The daemon, its two watchdogs, and a run without a daemon.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

use bascule_agent::config::Config;
use bascule_agent::device::DeviceError;
use bascule_agent::engine::End;
use bascule_agent::paths::Paths;
use bascule_agent::{boot_complete, contained, daemon, logging, watchdogs};
use bascule_core::{ErrorReport, Phase};
use clap::{Parser, Subcommand};

/// What `bascule` and the service units know as "a reboot is needed".
const REBOOT_NEEDED: u8 = 4;
/// What is worth another try.
const TRY_AGAIN: u8 = 75;

#[derive(Parser)]
#[command(version, about = "The A/B update daemon; without a command it serves until it is stopped")]
struct Arguments {
    /// The root directory of the device, or of a folder that looks like one
    #[arg(long, value_name = "DIR", default_value_os_t = daemon::default_root())]
    root: PathBuf,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Subcommand)]
enum Command {
    /// Watches a system in probation and goes back at the deadline (bascule-rollback-health.service)
    RollbackHealth,
    /// Finishes a fallback of the boot loader (bascule-rollback-altboot.service)
    RollbackAltboot,
    /// Waits until the booted group is committed (bascule-boot-complete.service)
    BootComplete,
    /// Performs what is due, then exits: 0 at rest, 4 when a reboot is needed
    RunToRest {
        /// Install this bundle first: a path or URL
        #[arg(long, value_name = "BUNDLE")]
        install: Option<String>,
    },
    /// Enters a control group and becomes a program: what every hook and health check is started through
    #[command(hide = true)]
    Contained {
        /// The group's folder
        group: PathBuf,
        /// The program and its arguments
        #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
        command: Vec<OsString>,
    },
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    // Not the agent itself, but a hook on its way: it has no need of a configuration, nor of a device.
    if let Some(Command::Contained { group, command }) = &arguments.command {
        return contained::become_contained(group, command);
    }
    let paths = Paths::under(arguments.root);
    abort_on_panic();
    let config = Config::load(&paths);
    logging::init(config.as_ref().map(|config| config.log.level).unwrap_or_default());
    let (config, command) = match (config, arguments.command) {
        (config, Some(Command::RollbackHealth)) => return ended(watchdogs::rollback_health(&paths, config)),
        (Ok(config), command) => (config, command),
        (Err(error), _) => return fail(&error.report()),
    };
    let outcome = match command {
        None | Some(Command::RollbackHealth | Command::Contained { .. }) => daemon::serve(&paths, config).map(Ok),
        Some(Command::RunToRest { install }) => daemon::run_to_rest(&paths, config, install.as_deref()),
        Some(Command::BootComplete) => return ended(boot_complete::wait(&paths, &config)),
        Some(Command::RollbackAltboot) => return ended(watchdogs::rollback_altboot(&paths, &config)),
    };
    match outcome {
        Ok(Ok(End::Reboot)) if !paths.is_real() => ExitCode::from(REBOOT_NEEDED),
        Ok(Ok(_)) => ExitCode::SUCCESS,
        Ok(Err(refused)) => fail(&refused.error),
        Err(error) => {
            tracing::error!(error = format!("{error:#}"), "cannot go on");
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn ended(outcome: Result<(), DeviceError>) -> ExitCode {
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(&error.report(Phase::Rollback)),
    }
}

fn fail(report: &ErrorReport) -> ExitCode {
    eprintln!("error: [{}] {}", report.code, report.message);
    for cause in &report.cause {
        eprintln!("caused by: {cause}");
    }
    eprintln!("hint: {}", report.hint);
    if report.retryable { ExitCode::from(TRY_AGAIN) } else { ExitCode::FAILURE }
}

/// A thread that panics must not leave half a daemon: the service manager starts a whole one.
fn abort_on_panic() {
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        report(panic);
        std::process::abort();
    }));
}
