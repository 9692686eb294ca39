//! Starts and ends the job thread that prepares a deployment.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bascule_core::{Action, Disposition, ErrorReport, Phase, PreparationFailure, State, Step, Transfer};
use bascule_hooks::runner::{self, Command, Limits};

use super::{Engine, Event, Job, LOOK_EVERY, Next, offer, units};
use crate::device::{self, Device};
use crate::pace::Pace;
use crate::prepare::{Preparation, PrepareError, Ways};
use crate::shared::Progress;
use crate::source::Opener;

/// How long `ionice` or `renice` may take.
const STAND_BACK: Duration = Duration::from_secs(5);

/// The longest wait between two attempts of a preparation.
const LONGEST_RETRY: Duration = crate::config::RETRY_WAIT_LIMIT;

/// What the policy allows here, and what the booted slots may offer.
pub(super) fn ways(device: &Device) -> Ways {
    let booted = device.booted();
    let slots = device.layout.slots.iter().filter(|slot| slot.group == booted.group());
    Ways {
        order: device.config.prepare.ways.clone(),
        max_fetch: device.config.prepare.max_fetch,
        booted,
        slots: slots.cloned().collect(),
        sysfs: device::sysfs(&device.paths),
        version: device.release.version.clone(),
        pace: Pace::new(device.config.prepare.slot_bandwidth).map(|pace| Arc::new(Mutex::new(pace))),
    }
}

/// Puts this thread, and those it starts, behind everybody else who wants the disk or a processor, where the system has
/// `ionice` and `renice`.
fn stand_back() {
    let thread = nix::unistd::gettid().to_string();
    // Not the idle class: a scheduler that keeps it waiting for long can make a device's own time limits run out.
    let disk = ("ionice", ["--class", "best-effort", "--classdata", "7", "--pid"].as_slice());
    let processor = ("renice", ["-n", "19", "-p"].as_slice());
    for (program, words) in [disk, processor] {
        let command = words.iter().fold(Command::new(program), |command, word| command.arg(*word)).arg(&thread);
        let outcome = runner::run(&command, &Limits::within(STAND_BACK), &AtomicBool::new(false));
        if !outcome.succeeded() {
            tracing::info!(program, outcome = outcome.reason(), "the preparation is not put behind others");
        }
    }
}

impl Engine {
    pub(super) fn start_preparation(&mut self) -> Result<Next, ErrorReport> {
        if self.preparing.is_some() {
            return Ok(Next::Wait(LOOK_EVERY));
        }
        let State::Preparing { deployment, attempt } = self.device.record().state.clone() else {
            return Ok(Next::Look);
        };
        // The settings say so already, or this would not have been decided. Their fallback may not: a cut between the two
        // files leaves it on the target. To say it again writes nothing where both are right.
        self.device.perform(&Action::MarkUnbootable).map_err(|error| error.report(Phase::Prepare))?;
        let (opened, cancel) =
            self.opened.take().map_or_else(Default::default, |(bundle, cancel)| (Some(bundle), cancel));
        self.fresh = false;
        self.progress.send_replace(Progress { step: "opening the bundle".into(), ..Progress::default() });
        let job = Preparation {
            target: self.device.booted().target(),
            slots: self.device.target_slots().cloned().collect(),
            ways: ways(&self.device),
            mirrored: !self.device.config.prepare.mirrors.is_empty(),
            fetched_before: if opened.is_some() { 0 } else { self.fetched.load(Ordering::Relaxed) },
            cores: self.device.config.prepare.cores as usize,
            checkpoint: self.device.config.prepare.checkpoint,
            hooks: self.hook_settings(),
            context: self.hook_context(None),
            attempt: attempt.number,
            cancel: cancel.clone(),
            fetched: self.fetched.clone(),
            progress: self.progress.clone(),
            deployment,
        };
        units::stop(&self.device.config.prepare.stop_units);
        let most_fetched = job.ways.max_fetch.map(|most| most.saturating_add(self.fetched.load(Ordering::Relaxed)));
        let opener = Opener { most_fetched, ..self.opener.with_cancel(cancel.clone()) };
        let opener = offer::BundleOpener::new(&self.device, opener);
        let sender = self.sender.clone();
        tracing::info!(deployment = job.deployment.id.to_string(), attempt = job.attempt, "preparing");
        let real = self.device.paths.is_real();
        let thread = std::thread::spawn(move || {
            if real {
                stand_back();
            }
            let bundle = match opened {
                Some(bundle) => Ok(bundle),
                None => opener.reopen(&job.deployment.source, job.attempt, job.fetched.clone()),
            };
            let outcome = bundle.and_then(|bundle| job.run(bundle));
            // The loop may be gone already; then nobody needs to know.
            let _ = sender.send(Event::Prepared(outcome));
        });
        self.preparing = Some(Job { cancel, thread });
        Ok(Next::Look)
    }

    pub(super) fn stop_preparation(&mut self) {
        if let Some(job) = self.preparing.take() {
            job.cancel.store(true, Ordering::Relaxed);
            let _ = job.thread.join();
        }
        self.progress.send_replace(Progress::default());
        // Its last word must not be taken for that of the next one.
        let waiting: Vec<Event> = std::iter::from_fn(|| self.events.try_recv().ok()).collect();
        for event in waiting.into_iter().filter(|event| !matches!(event, Event::Prepared(_))) {
            let _ = self.sender.send(event);
        }
    }

    pub(super) fn retry_wait(&self) -> Duration {
        let State::Preparing { attempt, .. } = &self.device.record().state else { return Duration::ZERO };
        let doublings = attempt.number.saturating_sub(1).min(16);
        self.device.config.prepare.retry_wait.saturating_mul(1 << doublings).min(LONGEST_RETRY)
    }

    pub(super) fn prepared(&mut self, outcome: Result<Transfer, PrepareError>) {
        let failure = match outcome {
            Ok(transfer) => match self.record_durably(&Step::Prepared(transfer.clone())) {
                Ok(()) => {
                    self.fresh = true;
                    tracing::info!(
                        base = transfer.base.as_deref().unwrap_or("-"),
                        fetched = transfer.fetched,
                        copied = transfer.copied,
                        kept = transfer.kept,
                        healed = transfer.healed,
                        saved = transfer.saved,
                        "prepared"
                    );
                    self.progress.send_replace(Progress::default());
                    units::start(&self.device.config.prepare.stop_units);
                    return;
                }
                Err(error) => PreparationFailure { error, disposition: Disposition::Retry },
            },
            Err(error) => error.failure(),
        };
        tracing::error!(
            code = failure.error.code,
            error = failure.error.message,
            cause = failure.error.cause.join(": "),
            hint = failure.error.hint,
            "the preparation failed"
        );
        self.failure = Some(failure);
    }
}
