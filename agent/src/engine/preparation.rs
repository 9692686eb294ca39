//! Starts and ends the job thread that prepares a deployment.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bascule_core::{Action, Disposition, ErrorReport, Phase, PreparationFailure, State, Step, Transfer};

use super::{Engine, Event, Job, LOOK_EVERY, Next, offer, units};
use crate::device::{self, Device};
use crate::prepare::{Preparation, PrepareError, Ways};
use crate::shared::Progress;

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
        let cancel = Arc::new(AtomicBool::new(false));
        self.progress.send_replace(Progress { step: "opening the bundle".into(), ..Progress::default() });
        let job = Preparation {
            target: self.device.booted().target(),
            slots: self.device.target_slots().cloned().collect(),
            ways: ways(&self.device),
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
        let opened = self.opened.take();
        let opener = offer::BundleOpener::new(&self.device, self.opener.with_cancel(cancel.clone()));
        let sender = self.sender.clone();
        tracing::info!(deployment = job.deployment.id.to_string(), attempt = job.attempt, "preparing");
        let thread = std::thread::spawn(move || {
            let bundle = match opened {
                Some(bundle) => Ok(bundle),
                None => opener.reopen(&job.deployment.source, job.fetched.clone()),
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
        while let Ok(event) = self.events.try_recv() {
            if !matches!(event, Event::Prepared(_)) {
                let _ = self.sender.send(event);
                break;
            }
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
