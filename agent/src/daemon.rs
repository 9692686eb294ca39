//! Puts the daemon together: configuration, device, loop, API, watchdog.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use anyhow::Context;
use bascule_boot::BootBackend as _;
use bascule_core::{BootId, ErrorReport, Phase, Record, Then};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, oneshot, watch};

use crate::api::{self, Api};
use crate::config::Config;
use crate::contained::{self, Groups};
use crate::device::{Device, DeviceError, Parts};
use crate::engine::{End, Engine, Until, Wiring};
use crate::heartbeat::Heartbeat;
use crate::paths::Paths;
use crate::shared::{Answer, Caller, Command, Handle, Refused, Snapshot, Submission};
use crate::source::{self, Opener};
use crate::state::StateError;
use crate::story::Stories;

/// Commands that may wait while the loop is in the middle of an act.
const QUEUE: usize = 8;

/// Serves until it is told to stop.
///
/// # Errors
/// When the device cannot be found or the socket not be made; a fault of the record is served, not returned.
pub fn serve(paths: &Paths, config: Config) -> anyhow::Result<End> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let (stop, stopping) = watch::channel(false);
        let (commands, submissions) = mpsc::channel(QUEUE);
        let heartbeat = Arc::new(Heartbeat::new(longest_turn(&config)));
        let (snapshot, ended) = match Device::open(paths, config.clone()) {
            Ok(device) => {
                let (snapshot, shown) = watch::channel(first_snapshot(&device)?);
                let wiring = Wiring {
                    opener: opener(&config),
                    commands: submissions,
                    stop: stopping.clone(),
                    snapshot,
                    heartbeat: heartbeat.clone(),
                    groups: groups(paths),
                    until: Until::Stopped,
                };
                (shown, spawn(Engine::new(device, wiring)))
            }
            // Only a person can mend an unreadable record, so it is served. Whatever else is wrong may go away: the
            // service manager starts us again.
            Err(DeviceError::State(error @ StateError::Unreadable { .. })) => {
                let report = DeviceError::State(error).report(Phase::Daemon);
                tracing::error!(code = report.code, error = report.message, hint = report.hint, "nothing is touched");
                let (snapshot, shown) = watch::channel(faulted_snapshot(paths, &config, report.clone())?);
                (shown, refuse_everything(submissions, snapshot, report))
            }
            Err(error) => return Err(error).context("this device cannot be updated"),
        };
        let listener = api::bind(paths, &config.api.group).context("the API's socket cannot be made")?;
        let api = {
            let stories = Stories::new(&paths.resolve(&config.state.directory));
            Api::new(Handle { commands, snapshot }, Arc::new(config), stories)
        };
        let mut stopping = stopping;
        let server = tokio::spawn(api::serve(listener, api, async move {
            // A sender that is gone says the same as one that says stop.
            let _ = stopping.wait_for(|stop| *stop).await;
        }));
        let _ = sd_notify::notify(&[sd_notify::NotifyState::Ready]);
        tokio::spawn(feed_watchdog(heartbeat));
        let end = wait_for_end(ended, &stop).await?;
        stop.send_replace(true);
        let _ = sd_notify::notify(&[sd_notify::NotifyState::Stopping]);
        let _ = tokio::time::timeout(Duration::from_secs(2), server).await;
        Ok(end)
    })
}

/// Performs what is due, and one installation if a bundle is named; ends when there is nothing left to do or a reboot
/// is needed. For rehearsals on a folder, and for systems that want no daemon.
///
/// # Errors
/// When the device cannot be found, or the bundle was refused.
pub fn run_to_rest(paths: &Paths, config: Config, bundle: Option<&str>) -> anyhow::Result<Result<End, Refused>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let device = Device::open(paths, config.clone()).context("this device cannot be updated")?;
        let (_stop, stopping) = watch::channel(false);
        let (commands, submissions) = mpsc::channel(QUEUE);
        let (snapshot, shown) = watch::channel(first_snapshot(&device)?);
        let answered = match bundle {
            None => None,
            Some(label) => {
                let (answer, answered) = oneshot::channel();
                let command = Command::Prepare { source: source::parse(label), then: Then::Activate };
                let uid = nix::unistd::getuid().as_raw();
                let caller = Caller { uid, pid: nix::unistd::getpid().as_raw() };
                commands.send(Submission { command, caller, answer }).await.ok();
                Some(answered)
            }
        };
        let until = Until::AtRest;
        let heartbeat = Arc::new(Heartbeat::new(longest_turn(&config)));
        let wiring = Wiring {
            opener: opener(&config),
            commands: submissions,
            stop: stopping,
            snapshot,
            heartbeat,
            groups: None,
            until,
        };
        let end = spawn(Engine::new(device, wiring)).await.context("the loop stopped")?;
        let Some(mut answered) = answered else { return Ok(Ok(end)) };
        if let Ok(Err(refused)) = answered.try_recv() {
            return Ok(Err(refused));
        }
        // Accepted, and failed for good before it could be activated: that is not "done".
        let failed = shown.borrow().record.last_error.clone();
        match (end, failed) {
            (End::AtRest, Some(error)) => Ok(Err(Refused { error, blockers: Vec::new() })),
            _ => Ok(Ok(end)),
        }
    })
}

/// The longest one stage of a turn may take before the loop counts as stuck: hooks and checks run inside it, each with its
/// own deadline.
fn longest_turn(config: &Config) -> Duration {
    const HOOKS: u32 = 8;
    const BESIDES: Duration = Duration::from_secs(300);
    let slowest = config.health.timeouts.values().copied().max().unwrap_or_default();
    let programs = config.hooks.timeout.max(config.health.check_timeout).max(slowest);
    programs.saturating_mul(HOOKS).saturating_add(config.prepare.head_timeout).saturating_add(BESIDES)
}

/// Control groups for integrators' programs; where there can be none, why is said once.
fn groups(paths: &Paths) -> Option<Groups> {
    if !paths.is_real() {
        return None;
    }
    match contained::prepare_own_cgroup(paths) {
        Ok(groups) => {
            let missing = groups.missing();
            if !missing.is_empty() {
                tracing::warn!(missing = missing.join(" "), "hooks and checks run without these limits");
            }
            Some(groups)
        }
        Err(error) => {
            let (code, hint) = (error.code(), error.hint());
            tracing::warn!(code, error = error.to_string(), hint, "hooks and checks run without control groups");
            None
        }
    }
}

fn opener(config: &Config) -> Opener {
    Opener {
        runtime: tokio::runtime::Handle::current(),
        stall_timeout: config.prepare.stall_timeout,
        mirrors: config.prepare.mirrors.clone(),
        bandwidth: config.prepare.bandwidth,
        most_fetched: None,
        cancel: Arc::new(AtomicBool::new(false)),
    }
}

fn spawn(engine: Engine) -> oneshot::Receiver<End> {
    let (ended, end) = oneshot::channel();
    std::thread::spawn(move || {
        let _ = ended.send(engine.run());
    });
    end
}

/// Ends when the loop does, or on a signal after the loop has stopped.
async fn wait_for_end(mut ended: oneshot::Receiver<End>, stop: &watch::Sender<bool>) -> anyhow::Result<End> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    // A closed terminal is no reason to stop.
    let _hang_up = signal(SignalKind::hangup())?;
    tokio::select! {
        end = &mut ended => return end.context("the loop stopped"),
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    stop.send_replace(true);
    // What is written is kept and the attempt goes on at the next start, so stopping in the middle is safe.
    match tokio::time::timeout(Duration::from_secs(4), ended).await {
        Ok(end) => end.context("the loop stopped"),
        Err(_) => Ok(End::Stopped),
    }
}

async fn feed_watchdog(heartbeat: Arc<Heartbeat>) {
    let Some(period) = sd_notify::watchdog_enabled() else { return };
    loop {
        tokio::time::sleep(period / 3).await;
        if heartbeat.is_alive() {
            let _ = sd_notify::notify(&[sd_notify::NotifyState::Watchdog]);
        }
    }
}

fn first_snapshot(device: &Device) -> anyhow::Result<Snapshot> {
    Ok(Snapshot {
        record: device.record().clone(),
        booted: device.booted().group(),
        boot_id: device.boot_id.clone(),
        release: device.release.clone(),
        view: device.view().map_err(|error| DeviceError::Boot(error).report(Phase::Daemon)),
        slots: device.slot_views(),
        progress: None,
        checks: Vec::new(),
        deadline: None,
        blocked: Vec::new(),
        warnings: device.loader.warnings(),
        fault: None,
    })
}

fn faulted_snapshot(paths: &Paths, config: &Config, fault: ErrorReport) -> anyhow::Result<Snapshot> {
    let parts = Parts::find(paths, config).context("this device cannot be updated")?;
    Ok(Snapshot {
        record: Record::default(),
        booted: parts.layout.booted.group(),
        boot_id: BootId(parts.boot_id.0.clone()),
        release: parts.release,
        view: parts.loader.view(parts.layout.booted).map_err(|error| DeviceError::Boot(error).report(Phase::Daemon)),
        slots: Vec::new(),
        progress: None,
        checks: Vec::new(),
        deadline: None,
        blocked: Vec::new(),
        warnings: parts.loader.warnings(),
        fault: Some(fault),
    })
}

/// With an unreadable record every command gets the reason as its answer.
fn refuse_everything(
    mut submissions: mpsc::Receiver<Submission>,
    snapshot: watch::Sender<Snapshot>,
    report: ErrorReport,
) -> oneshot::Receiver<End> {
    let (ended, end) = oneshot::channel();
    tokio::spawn(async move {
        while let Some(submission) = submissions.recv().await {
            let refused: Result<Answer, Refused> = Err(Refused { error: report.clone(), blockers: Vec::new() });
            let _ = submission.answer.send(refused);
        }
        drop(snapshot);
        let _ = ended.send(End::Stopped);
    });
    end
}

/// Where the agent's root is, for the command line's default.
#[must_use]
pub fn default_root() -> PathBuf {
    PathBuf::from(Paths::ROOT)
}
