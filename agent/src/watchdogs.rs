//! The two watchdogs, each a short program of its own beside the daemon.
//!
//! | watchdog | runs | does |
//! |---|---|---|
//! | rollback-health | from the start of every boot | nothing outside probation; in it, goes back at the deadline whatever the daemon does or does not do |
//! | rollback-altboot | before the daemon, at every boot | in the old system, when the loader fell back: records why and disarms the target |

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use bascule_boot::{BootBackend, EfiBackend};
use bascule_core::{
    Action, BootStatus, BootedGroup, ErrorReport, Phase, RollbackReason, Settings, State, Step, decide,
};
use bascule_hooks::HealthPolicy;
use bascule_hooks::runner::{self, Command, Limits};

use crate::config::{Config, ConfigError};
use crate::device::{self, Device, DeviceError, Parts};
use crate::durable;
use crate::evidence;
use crate::paths::Paths;
use crate::reboot;
use crate::state;

/// The daemon takes the same decision at the deadline; this much later it is taken without it.
const GRACE: Duration = Duration::from_secs(20);
/// How often the verdict is looked for.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// The kernel's command line is shorter than this, in bytes.
const COMMAND_LINE_LIMIT: u64 = 64 << 10;
/// How often the way back is tried to be written before the loader's counter has to do.
const TRIES_TO_WRITE: u32 = 6;
/// The wait between two such tries.
const AGAIN: Duration = Duration::from_secs(10);
/// More decisions than the way from a fallback to rest ever takes.
const DECISIONS: usize = 16;

/// Waits for the verdict of probation, and goes back when the deadline passes without one.
///
/// It needs neither the daemon nor the record nor a mounted file system: the loader's settings say whether the booted
/// group is on trial, and until they can be read the kernel's command line does. With a configuration that cannot be
/// used it keeps the default deadline: an image with a mistake in it is what deadlines are for.
///
/// # Errors
/// [`DeviceError`] when the time cannot be read.
pub fn rollback_health(paths: &Paths, config: Result<Config, ConfigError>) -> Result<(), DeviceError> {
    let config = match config {
        Ok(config) => config,
        Err(error) => return blind(paths, &error.report()),
    };
    let parts = match Parts::find(paths, &config) {
        Ok(parts) => parts,
        Err(error) => return blind(paths, &error.report(Phase::Probation)),
    };
    let (loader, booted): (&dyn BootBackend, _) = (&parts.loader, parts.layout.booted);
    let deadline = config.health.deadline.saturating_add(GRACE);
    let trial = loop {
        match on_trial(paths, loader, booted) {
            // The boot partition may not be mounted yet.
            None if device::uptime(paths)? < deadline => std::thread::sleep(LOOK_EVERY),
            trial => break trial.unwrap_or(false),
        }
        say_alive();
    };
    if !trial {
        tracing::info!(group = booted.group().letter(), "the booted group is not on trial: nothing to watch");
        return Ok(());
    }
    let (group, deadline_seconds) = (booted.group().letter(), deadline.as_secs());
    tracing::warn!(
        group,
        deadline_seconds,
        "the booted group is on trial: going back at the deadline without a verdict"
    );
    say_armed(paths);
    let mut hardware = Hardware::arm(paths);
    let end = |paths| if is_going_back(paths, &config) { deadline + config.hooks.timeout } else { deadline };
    while device::uptime(paths)? < end(paths) {
        std::thread::sleep(LOOK_EVERY);
        say_alive();
        hardware.feed();
        // Only a commit disarms it. A system that was given up still has to be left.
        if is_good(loader, booted) {
            tracing::info!(group, "it is good: the deadline is disarmed");
            hardware.disarm();
            return Ok(());
        }
    }
    tracing::error!(group, "no verdict before the deadline: going back");
    go_back(paths, &config, loader, booted);
    Ok(())
}

/// Nothing can be asked but the command line: a system on trial is started anew at the default deadline. Each such start
/// costs a try, so that the loader falls back after the last.
fn blind(paths: &Paths, fault: &ErrorReport) -> Result<(), DeviceError> {
    let cause = fault.cause.join(": ");
    if !on_trial_by_command_line(paths) {
        tracing::error!(code = fault.code, error = fault.message, cause, "cannot watch; the system is not on trial");
        return Ok(());
    }
    let deadline = HealthPolicy::default().deadline.saturating_add(GRACE);
    let deadline_seconds = deadline.as_secs();
    tracing::error!(
        code = fault.code,
        error = fault.message,
        cause,
        deadline_seconds,
        "on trial, and this cannot be used"
    );
    say_armed(paths);
    while device::uptime(paths)? < deadline {
        std::thread::sleep(LOOK_EVERY);
        say_alive();
    }
    say_alive();
    reboot::reboot(paths, "a system on trial that cannot be judged", None);
    Ok(())
}

/// Feeds the service manager's watchdog: a watcher that was stopped is started again, and its deadline is the same.
fn say_alive() {
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Watchdog]);
}

/// Tells `bascule-deadman.service` that somebody watches.
fn say_armed(paths: &Paths) {
    let path = paths.deadline_armed();
    if let Err(error) = File::create(&path) {
        let error = &error as &dyn std::error::Error;
        tracing::warn!(path = path.display().to_string(), error, "the deadman is not told: it may restart the system");
    }
}

/// The hardware watchdog, fed here where there is no systemd to do it: should this program hang, the hardware resets.
struct Hardware(Option<File>);

impl Hardware {
    fn arm(paths: &Paths) -> Self {
        if !paths.is_real() || paths.systemd().exists() {
            return Hardware(None);
        }
        match OpenOptions::new().write(true).open(paths.watchdog_device()) {
            Ok(device) => {
                tracing::info!("the hardware watchdog is armed");
                Hardware(Some(device))
            }
            Err(error) => {
                tracing::warn!(error = &error as &dyn std::error::Error, "there is no hardware watchdog to arm");
                Hardware(None)
            }
        }
    }

    /// Any byte but `V` feeds it.
    fn feed(&mut self) {
        let _ = self.0.as_mut().map(|device| device.write_all(b"."));
    }

    /// `V` before it is closed says that this is no accident.
    fn disarm(mut self) {
        let _ = self.0.as_mut().map(|device| device.write_all(b"V"));
    }
}

/// `None`: it cannot be told yet.
fn on_trial(paths: &Paths, loader: &dyn BootBackend, booted: BootedGroup) -> Option<bool> {
    match loader.view(booted) {
        Ok(view) if view.settings == Settings::Intact => {
            Some(matches!(view.status(booted.group()), BootStatus::Trial { .. } | BootStatus::Exhausted))
        }
        // On damaged settings the loader starts its fallback. It names the old group until a commit has moved it.
        // Where only names or variables are damaged, they may still tell, or the start itself does.
        Ok(view) => {
            let status = view.status(booted.group());
            let tried = matches!(status, BootStatus::Trial { .. } | BootStatus::Exhausted);
            Some(view.primary != booted.group() || tried || on_trial_by_command_line(paths))
        }
        // The boot partition is not mounted yet, or never will be.
        Err(_) => on_trial_by_command_line(paths).then_some(true),
    }
}

/// `bascule.trial=N`: the loader counted a try for this start and has N left; empty where it counted none. systemd-boot
/// cannot say so there, and leaves a variable. Firmware that starts kernels itself counts nothing: there our own mark says
/// which group's trial was begun, and the command line which group was started. The Raspberry Pi's says it in the device tree.
fn on_trial_by_command_line(paths: &Paths) -> bool {
    let line = durable::read_bounded(&paths.command_line(), COMMAND_LINE_LIMIT).unwrap_or_default();
    let line = String::from_utf8_lossy(&line).into_owned();
    let tryboot = durable::read_bounded(&paths.firmware_start().join("tryboot"), COMMAND_LINE_LIMIT);
    if paths.boot_count().exists() || tryboot.is_ok_and(|flag| flag == 1u32.to_be_bytes()) {
        return true;
    }
    let values = |name: &'static str| {
        line.split_ascii_whitespace().filter_map(move |word| word.strip_prefix(name)?.strip_prefix('='))
    };
    let armed = EfiBackend::new(paths.firmware_variables()).armed();
    values("bascule.trial").any(|left| !left.is_empty())
        || values("bascule.group").any(|group| armed.is_some_and(|armed| armed.letter() == group))
}

/// Takes the record from a daemon that did not decide, says why, tells the loader, and reboots.
fn go_back(paths: &Paths, config: &Config, loader: &dyn BootBackend, booted: BootedGroup) {
    let systemctl = |arguments: &[&str]| {
        let command = arguments.iter().fold(Command::new("systemctl"), |command, argument| command.arg(argument));
        if paths.is_real() {
            let _ = runner::run(&command, &Limits::within(Duration::from_secs(10)), &AtomicBool::new(false));
        }
    };
    systemctl(&["stop", "--no-block", "basculed.service"]);
    systemctl(&["kill", "--signal=SIGKILL", "basculed.service"]);
    // The reason is worth a try, no more: the old system can tell without it that the new one gave itself up.
    match Device::open(paths, config.clone()) {
        Ok(mut device) => {
            // With the record's lock the daemon is gone, and what it last did counts.
            if is_good(loader, booted) {
                tracing::info!("the verdict came at the last moment: the daemon is started again");
                drop(device);
                systemctl(&["start", "--no-block", "basculed.service"]);
                return;
            }
            if !matches!(device.record().state, State::RollingBack { .. } | State::Newer) {
                let step = Action::Record(Step::RollingBack(RollbackReason::Deadline));
                if let Err(error) = device.perform(&step) {
                    told(&error, "cannot record the reason");
                }
            }
        }
        Err(error) => told(&error, "cannot open the record"),
    }
    for _ in 0..TRIES_TO_WRITE {
        // A daemon that could not be stopped may have committed in between, and what is good is not given up here.
        if is_good(loader, booted) {
            tracing::info!("the verdict came at the last moment");
            systemctl(&["start", "--no-block", "basculed.service"]);
            return;
        }
        say_alive();
        let Err(error) = loader.roll_back(booted) else { break };
        tracing::error!(code = error.code(), error = &error as &dyn std::error::Error, "cannot go back yet");
        std::thread::sleep(AGAIN);
    }
    say_alive();
    // Rebooting without the loader's consent is safe: each start of a system on trial costs a try, and then it falls back.
    reboot::reboot(paths, "no verdict before the deadline", None);
}

/// Whether the daemon has decided to go back: its hooks have their own time for that.
fn is_going_back(paths: &Paths, config: &Config) -> bool {
    let record = state::load(&paths.resolve(&config.state.directory));
    record.is_ok_and(|record| matches!(record.state, State::RollingBack { .. }))
}

/// Whether the loader starts the booted group without counting, by settings that are whole.
pub(crate) fn is_good(loader: &dyn BootBackend, booted: BootedGroup) -> bool {
    loader
        .view(booted)
        .is_ok_and(|view| view.settings == Settings::Intact && view.status(booted.group()) == BootStatus::Good)
}

fn told(error: &DeviceError, what: &'static str) {
    tracing::error!(code = error.code(), error = error as &dyn std::error::Error, "{what}");
}

/// Finishes a fallback of the loader: disarms the target and records why, before anything else runs.
///
/// The daemon would decide the same; this says it early, and also where the daemon is kept from starting.
///
/// # Errors
/// [`DeviceError`]; what was not finished is finished by the daemon, or at the next start.
pub fn rollback_altboot(paths: &Paths, config: &Config) -> Result<(), DeviceError> {
    let record = state::load(&paths.resolve(&config.state.directory))?;
    if !record.state.has_target_beside(Parts::find(paths, config)?.layout.booted.group()) {
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
                // The end itself is recorded by the daemon, which then runs the hooks of that point.
                matches!(step, Step::RollingBack(_) | Step::Committed)
            }
            _ => false,
        };
        if !ours || !device.record().state.has_target_beside(seen.booted) {
            break;
        }
        tracing::warn!(reason = decision.reason, "the loader fell back");
        device.perform(&decision.action)?;
    }
    if let State::RollingBack { deployment, reason, .. } = &device.record().state {
        let story = device.stories.read(&deployment.id.0);
        for line in evidence::gather(paths, &story, &deployment.version) {
            device.tell("evidence", line, Vec::new());
        }
        tracing::warn!(
            deployment = deployment.id.to_string(),
            version = deployment.version,
            why = reason.explain(),
            "the target is disarmed"
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn claim_g17_the_default_trial_ends_within_sixteen_minutes_and_the_pages_say_so() {
        let policy = HealthPolicy::default();
        assert!(policy.deadline + GRACE <= Duration::from_secs(16 * 60));
        let page = include_str!("../../docs/configuration.md");
        let row = |key: &str, value: Duration| format!("| `{key}` | `\"{}\"` |", crate::config::duration_text(value));
        for (key, value) in [("settle", policy.settle), ("interval", policy.interval), ("deadline", policy.deadline)] {
            let minutes = format!("| `{key}` | `\"{}s\"` |", value.as_secs());
            assert!(page.contains(&row(key, value)) || page.contains(&minutes), "{key} is not documented as {value:?}");
        }
        assert!(page.contains(&format!("| `passes` | `{}` |", policy.passes)));
    }
}
