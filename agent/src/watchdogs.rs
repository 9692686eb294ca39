//! The two watchdogs, each a short program of its own beside the daemon.
//!
//! | watchdog | runs | does |
//! |---|---|---|
//! | rollback-health | from the start of every boot | nothing outside probation; in it, goes back at the deadline whatever the daemon does or does not do |
//! | rollback-altboot | before the daemon, at every boot | in the old system, when the loader fell back: disarms the target and records why |

use std::sync::atomic::AtomicBool;
use std::time::Duration;

use bascule_boot::BootBackend;
use bascule_core::{Action, BootStatus, BootedGroup, Group, RollbackReason, Settings, State, Step, decide};
use bascule_hooks::runner::{self, Command, Limits};

use crate::config::Config;
use crate::device::{self, Device, DeviceError, Parts};
use crate::paths::Paths;
use crate::reboot;
use crate::state;

/// The daemon takes the same decision at the deadline; this much later it is taken without it.
const GRACE: Duration = Duration::from_secs(20);
/// How often the verdict is looked for.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// The wait between two tries to go back; there is no last one.
const AGAIN: Duration = Duration::from_secs(10);
/// More decisions than the way from a fallback to rest ever takes.
const DECISIONS: usize = 16;

/// Waits for the verdict of probation, and goes back when the deadline passes without one.
///
/// It needs neither the daemon nor the record: the loader's settings say whether the booted group is on trial.
///
/// # Errors
/// [`DeviceError`] when the slots or the settings cannot be found at the start.
pub fn rollback_health(paths: &Paths, config: &Config) -> Result<(), DeviceError> {
    let parts = Parts::find(paths, config)?;
    let booted = parts.layout.booted;
    if !on_trial(parts.loader.as_ref(), booted) {
        tracing::info!(group = booted.group().letter(), "the booted group is not on trial: nothing to watch");
        return Ok(());
    }
    let deadline = config.health.deadline.saturating_add(GRACE);
    tracing::warn!(
        group = booted.group().letter(),
        deadline_seconds = deadline.as_secs(),
        "the booted group is on trial: going back at the deadline unless it is committed"
    );
    while device::uptime(paths)? < deadline {
        std::thread::sleep(LOOK_EVERY);
        if !on_trial(parts.loader.as_ref(), booted) {
            tracing::info!(group = booted.group().letter(), "there is a verdict: the deadline is disarmed");
            return Ok(());
        }
    }
    tracing::error!(group = booted.group().letter(), "no verdict before the deadline: going back");
    go_back(paths, config, parts.loader.as_ref(), booted);
    Ok(())
}

/// Settings that cannot be read count as on trial: better a deadline too many than none.
fn on_trial(loader: &dyn BootBackend, booted: BootedGroup) -> bool {
    match loader.view(booted) {
        Ok(view) if view.settings == Settings::Intact => {
            matches!(view.status(booted.group()), BootStatus::Trial { .. } | BootStatus::Exhausted)
        }
        // On damaged settings the loader starts its fallback. It names the old group until a commit has moved it.
        Ok(view) => view.primary != booted.group(),
        Err(error) => {
            tracing::error!(code = error.code(), error = &error as &dyn std::error::Error, "cannot read the settings");
            true
        }
    }
}

/// Takes the record from a daemon that did not decide, says why, tells the loader, and reboots. It never gives up.
fn go_back(paths: &Paths, config: &Config, loader: &dyn BootBackend, booted: BootedGroup) {
    let kill = Command::new("systemctl").arg("kill").arg("--signal=SIGKILL").arg("basculed.service");
    let stop = Command::new("systemctl").arg("stop").arg("--no-block").arg("basculed.service");
    if paths.is_real() {
        for command in [stop, kill] {
            let _ = runner::run(&command, &Limits::within(Duration::from_secs(10)), &AtomicBool::new(false));
        }
    }
    // The reason is worth a try, no more: the old system can tell without it that the new one gave itself up.
    match Device::open(paths, config.clone()) {
        Ok(mut device) => {
            let step = Action::Record(Step::RollingBack(RollbackReason::Deadline));
            if let Err(error) = device.perform(&step) {
                tracing::error!(
                    code = error.code(),
                    error = &error as &dyn std::error::Error,
                    "cannot record the reason"
                );
            }
        }
        Err(error) => {
            tracing::error!(code = error.code(), error = &error as &dyn std::error::Error, "cannot open the record");
        }
    }
    while let Err(error) = loader.roll_back(booted) {
        tracing::error!(code = error.code(), error = &error as &dyn std::error::Error, "cannot go back yet");
        std::thread::sleep(AGAIN);
    }
    reboot::reboot(paths, "no verdict before the deadline");
}

/// Finishes a fallback of the loader: disarms the target and records why, before anything else runs.
///
/// The daemon would decide the same; this says it early, and also where the daemon is kept from starting.
///
/// # Errors
/// [`DeviceError`]; what was not finished is finished by the daemon, or at the next start.
pub fn rollback_altboot(paths: &Paths, config: &Config) -> Result<(), DeviceError> {
    let record = state::load(&paths.resolve(&config.state.directory))?;
    if !concerns(&record.state, Parts::find(paths, config)?.layout.booted.group()) {
        tracing::info!("no fallback of the loader: nothing to do");
        return Ok(());
    }
    let mut device = Device::open(paths, config.clone())?;
    for _ in 0..DECISIONS {
        let seen = device.observe()?;
        let decision = decide(device.record(), &seen, &device.policy());
        let ours = match &decision.action {
            Action::MarkUnbootable => true,
            Action::Record(step) => {
                matches!(step, Step::RollingBack(_) | Step::RolledBack | Step::Committed)
            }
            _ => false,
        };
        if !ours || !concerns(&device.record().state, seen.booted) {
            break;
        }
        tracing::warn!(reason = decision.reason, "the loader fell back");
        device.perform(&decision.action)?;
    }
    if let Some(entry) = device.record().history.last() {
        tracing::warn!(
            deployment = entry.deployment.id.to_string(),
            version = entry.deployment.version,
            ending = format!("{:?}", entry.ending),
            "this is how the last deployment ended"
        );
    }
    Ok(())
}

/// Whether the record speaks of a target that was activated and is not what runs.
fn concerns(state: &State, booted: Group) -> bool {
    match state {
        State::Activating { deployment }
        | State::Activated { deployment, .. }
        | State::RollingBack { deployment, .. } => deployment.target != booted,
        _ => false,
    }
}
