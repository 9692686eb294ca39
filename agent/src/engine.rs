//! The loop: observe, decide, perform one thing, again.
//!
//! It runs on a thread of its own that may block; long work (preparing, health checks) runs on job threads that report
//! back as [`Event`]s. Decisions come from `bascule-core` alone. A request is a fact like any other: it is answered
//! when the decision it caused was performed.

mod activation;
mod backup;
mod check;
mod health;
mod hooks;
mod offer;
mod preparation;
mod publish;
mod units;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::time::{Duration, Instant};

use bascule_boot::BootBackend as _;
use bascule_core::{
    Action, Decision, ErrorReport, Health, Observed, Phase, PreparationFailure, Refusal, Request, State, Step,
    Transfer, decide,
};
use bascule_hooks::HookPoint;
use bascule_image::BundleReader;
use tokio::sync::{mpsc, oneshot, watch};

use crate::contained::Groups;
use crate::device::{Device, DeviceError};
use crate::heartbeat::Heartbeat;
use crate::mounted::MountedRoot;
use crate::names;
use crate::prepare::PrepareError;
use crate::reboot;
use crate::shared::{Answer, CheckView, Command, Progress, Refused, Snapshot, Source, Submission};
use crate::source::{Fetched, Opener};
use health::Rounds;

/// The wait after an act that failed; doubles with each failure in a row.
const FIRST_BACKOFF: Duration = Duration::from_secs(1);
const LONGEST_BACKOFF: Duration = Duration::from_secs(60);
/// How long past the deadline the health checks' own verdict is waited for. Less than the watchdog's grace.
const VERDICT_FIRST: Duration = Duration::from_secs(5);
/// With nothing to do, the world is looked at this often all the same.
const LOOK_EVERY: Duration = Duration::from_secs(30);

/// What the loop waits for besides commands.
pub(crate) enum Event {
    /// The preparation ended.
    Prepared(Result<Transfer, PrepareError>),
    /// A round of health checks ended; and with it the verdict, where there is one. They come together, so that the
    /// deadline cannot be seen to have passed between them.
    Checked(Vec<CheckView>, Option<Health>),
    /// The verdict fell without a round.
    Verdict(Health),
}

/// How the loop ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// It was asked to stop.
    Stopped,
    /// The system is to be started again.
    Reboot,
    /// Nothing is left to do, and it was asked to run no longer than that.
    AtRest,
}

/// When the loop ends by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Until {
    /// It serves until it is stopped.
    Stopped,
    /// Until there is nothing left to do.
    AtRest,
}

/// What comes next after one act.
enum Next {
    Look,
    Wait(Duration),
    End(End),
}

/// What ended a wait.
enum Woken {
    Stop,
    Command(Submission),
    Event(Event),
    Time,
}

struct Pending {
    request: Request,
    source: Option<(Source, bascule_core::Then)>,
    requested_by: String,
    answer: oneshot::Sender<Result<Answer, Refused>>,
}

struct Job {
    cancel: Arc<AtomicBool>,
    thread: std::thread::JoinHandle<()>,
}

/// The loop and all it holds.
pub struct Engine {
    device: Device,
    opener: Opener,
    until: Until,
    heartbeat: Arc<Heartbeat>,
    groups: Option<Groups>,
    commands: mpsc::Receiver<Submission>,
    stop: watch::Receiver<bool>,
    snapshot: watch::Sender<Snapshot>,
    events: mpsc::UnboundedReceiver<Event>,
    sender: mpsc::UnboundedSender<Event>,
    progress: watch::Sender<Progress>,
    pending: Option<Pending>,
    opened: Option<(BundleReader, Arc<AtomicBool>)>,
    fetched: Fetched,
    preparing: Option<Job>,
    failure: Option<PreparationFailure>,
    retry_at: Option<Instant>,
    reboot_at: Option<Instant>,
    checking: Option<Job>,
    health: Health,
    checks: Vec<CheckView>,
    fault: Option<ErrorReport>,
    backoff: Duration,
    blocked: Vec<bascule_core::Blocker>,
    warnings: Vec<bascule_core::Warning>,
    locked_since: Option<Instant>,
    /// This run has prepared and read back what is prepared, and went on without a pause.
    fresh: bool,
    /// The rounds of checks on the old system so far, before it is left.
    baseline: Option<Rounds>,
    said: Option<Decision>,
}

/// What the loop is connected to.
pub struct Wiring {
    /// How sources are opened.
    pub opener: Opener,
    /// Commands from the API.
    pub commands: mpsc::Receiver<Submission>,
    /// Becomes true when the daemon is to stop.
    pub stop: watch::Receiver<bool>,
    /// Where snapshots go.
    pub snapshot: watch::Sender<Snapshot>,
    /// Shows the watchdog that the loop goes round.
    pub heartbeat: Arc<Heartbeat>,
    /// Where integrators' programs get control groups of their own.
    pub groups: Option<Groups>,
    /// When to end.
    pub until: Until,
}

impl Engine {
    /// Puts the loop together; [`Engine::run`] starts it.
    #[must_use]
    pub fn new(device: Device, wiring: Wiring) -> Self {
        let (sender, events) = mpsc::unbounded_channel();
        Engine {
            device,
            opener: wiring.opener,
            until: wiring.until,
            heartbeat: wiring.heartbeat,
            groups: wiring.groups,
            commands: wiring.commands,
            stop: wiring.stop,
            snapshot: wiring.snapshot,
            events,
            sender,
            progress: watch::Sender::new(Progress::default()),
            pending: None,
            opened: None,
            fetched: Arc::new(AtomicU64::new(0)),
            preparing: None,
            failure: None,
            retry_at: None,
            reboot_at: None,
            checking: None,
            health: Health::Unknown,
            checks: Vec::new(),
            fault: None,
            backoff: FIRST_BACKOFF,
            blocked: Vec::new(),
            warnings: Vec::new(),
            locked_since: None,
            fresh: false,
            baseline: None,
            said: None,
        }
    }

    /// Goes round until it is to end.
    pub fn run(mut self) -> End {
        if self.device.paths.is_real() {
            MountedRoot::forget(&self.device.paths);
        }
        if let Err(error) = self.run_hooks_due() {
            self.failed(error);
        }
        if !matches!(self.device.record().state, State::Preparing { .. }) {
            units::start(&self.device.config.prepare.stop_units);
        }
        loop {
            let next = self.turn();
            let wait = match next {
                Next::Look => continue,
                Next::Wait(wait) => wait,
                Next::End(end) => return self.end(end),
            };
            if self.wait(wait) {
                return self.end(End::Stopped);
            }
        }
    }

    /// One turn: observe, decide, perform.
    fn turn(&mut self) -> Next {
        self.heartbeat.working();
        let seen = match self.observe() {
            Ok(seen) => seen,
            Err(error) => return self.failed(error.report(Phase::Daemon)),
        };
        self.look_for_warnings();
        self.publish(&seen);
        let policy = self.device.policy();
        let decision = decide(self.device.record(), &seen, &policy);
        self.say(&decision);
        // A refused request changes nothing, so it does not put the reboot off either.
        if !matches!(decision.action, Action::Reboot | Action::Refuse(_)) {
            self.reboot_at = None;
        }
        // What would have been decided without the request tells whether the request caused this.
        let unasked = decide(self.device.record(), &Observed { request: None, ..seen.clone() }, &policy);
        let asked = seen.request.is_some() && unasked.action != decision.action;
        match self.perform(&decision.action) {
            Ok(next) => {
                self.fault = None;
                self.backoff = FIRST_BACKOFF;
                // An activation that waits for its baseline is still asked for.
                let waits = matches!(next, Next::Wait(_)) && self.is_asked();
                if asked && !waits {
                    self.answer(Ok(Answer::Done));
                }
                next
            }
            Err(report) => self.failed(report),
        }
    }

    /// They decide nothing; each is logged when it comes.
    fn look_for_warnings(&mut self) {
        let found = self.device.loader.warnings();
        for new in found.iter().filter(|warning| !self.warnings.contains(warning)) {
            tracing::warn!(
                code = new.code,
                reason = new.reason,
                hint = new.hint,
                "something is damaged, and its copy serves"
            );
        }
        self.warnings = found;
    }

    fn observe(&self) -> Result<Observed, DeviceError> {
        let mut seen = self.device.observe()?;
        seen.health = self.health.clone();
        if self.checking.is_some() {
            // The checks reach their verdict at the same moment, and theirs says why: it goes first.
            seen.deadline_passed = self.device.uptime()? >= self.device.config.health.deadline + VERDICT_FIRST;
        }
        seen.preparation = self.failure.clone();
        seen.request = self.pending.as_ref().map(|pending| pending.request);
        Ok(seen)
    }

    fn perform(&mut self, action: &Action) -> Result<Next, ErrorReport> {
        match action {
            Action::Wait if self.until == Until::AtRest => Ok(self.next_command_or_end()),
            Action::Wait => Ok(Next::Wait(LOOK_EVERY)),
            Action::Refuse(refusal) => {
                self.refuse(*refusal);
                Ok(Next::Look)
            }
            Action::CheckOffer => {
                self.check_offer();
                Ok(Next::Look)
            }
            Action::Prepare => self.start_preparation(),
            Action::CheckHealth => self.start_health(),
            Action::Reboot => self.reboot(),
            Action::Record(step) => self.record(step),
            loader => self.write_loader(loader),
        }
    }

    fn next_command_or_end(&mut self) -> Next {
        match self.commands.try_recv() {
            Ok(submission) => {
                self.take(submission);
                Next::Look
            }
            Err(_) => Next::End(End::AtRest),
        }
    }

    fn write_loader(&mut self, action: &Action) -> Result<Next, ErrorReport> {
        let phase = match action {
            Action::MarkGood => Phase::Commit,
            Action::RollBack => Phase::Rollback,
            _ => Phase::Activate,
        };
        if *action == Action::RollBack {
            // The way back does not depend on a hook's consent: it runs, it is logged, and we go.
            self.run_hooks_and_log(HookPoint::PreRollback);
        }
        self.device.perform(action).map_err(|error| error.report(phase))?;
        Ok(Next::Look)
    }

    fn record(&mut self, step: &Step) -> Result<Next, ErrorReport> {
        match step {
            Step::NextAttempt if self.failure.is_some() => {
                let now = Instant::now();
                let wait = self.retry_wait();
                let at = *self.retry_at.get_or_insert(now + wait);
                if at > now {
                    return Ok(Next::Wait(at - now));
                }
                // Forgotten only once the next attempt is on the disk: until then what failed has failed.
                self.record_durably(step)?;
                self.failure = None;
                self.retry_at = None;
                return Ok(Next::Look);
            }
            Step::Abandoned(_) => {
                self.stop_preparation();
                self.opened = None;
                self.failure = None;
                self.retry_at = None;
            }
            Step::Activating(_) => return self.activate(),
            Step::Committed | Step::RollingBack(_) => self.stop_health(),
            _ => {}
        }
        self.record_durably(step)?;
        match step {
            Step::Abandoned(_) => units::start(&self.device.config.prepare.stop_units),
            Step::Committed | Step::RolledBack => self.run_hooks_due()?,
            _ => {}
        }
        Ok(Next::Look)
    }

    fn record_durably(&mut self, step: &Step) -> Result<(), ErrorReport> {
        self.device.perform(&Action::Record(step.clone())).map_err(|error| error.report(Phase::Daemon))?;
        self.blocked.clear();
        self.locked_since = None;
        if matches!(step, Step::Preparing(_)) {
            self.checks.clear();
        }
        if !matches!(step, Step::HooksDone | Step::Allowed(_)) {
            self.baseline = None;
        }
        Ok(())
    }

    fn reboot(&mut self) -> Result<Next, ErrorReport> {
        let now = Instant::now();
        let Some(at) = self.reboot_at else {
            self.run_hooks_and_log(HookPoint::PreReboot);
            // A last moment for a cancel, and for whoever watches to be told.
            self.reboot_at = Some(now + self.device.config.activate.reboot_delay);
            return Ok(Next::Look);
        };
        if at > now {
            return Ok(Next::Wait(at - now));
        }
        if let Some(wait) = self.reboot_is_locked() {
            return Ok(Next::Wait(wait));
        }
        let argument = self.device.loader.reboot_argument(self.device.booted()).unwrap_or_else(|error| {
            // Going on is safe: without it the loader starts the group that is good.
            let code = error.code();
            tracing::error!(code, error = &error as &dyn std::error::Error, "the armed group cannot be started");
            None
        });
        reboot::reboot(&self.device.paths, names::state_name(&self.device.record().state), argument);
        Ok(Next::End(End::Reboot))
    }

    fn refuse(&mut self, refusal: Refusal) {
        self.answer(Err(Refused { error: refusal_report(refusal), blockers: Vec::new() }));
    }

    fn answer(&mut self, answer: Result<Answer, Refused>) {
        if let Some(pending) = self.pending.take() {
            if let Err(refused) = &answer {
                tracing::warn!(
                    code = refused.error.code,
                    requested_by = pending.requested_by,
                    error = refused.error.message,
                    hint = refused.error.hint,
                    "refused"
                );
            }
            // The caller may have gone; what was done stays done.
            let _ = pending.answer.send(answer);
        }
    }

    fn failed(&mut self, report: ErrorReport) -> Next {
        tracing::error!(
            code = report.code,
            error = report.message,
            cause = report.cause.join(": "),
            hint = report.hint,
            "an act failed and will be tried again"
        );
        // Whoever asks now hears what is wrong, whether or not their request caused it.
        self.answer(Err(Refused { error: report.clone(), blockers: Vec::new() }));
        self.fault = Some(report);
        let wait = self.backoff;
        self.backoff = self.backoff.saturating_mul(2).min(LONGEST_BACKOFF);
        if let Ok(seen) = self.observe() {
            self.publish(&seen);
        }
        Next::Wait(wait)
    }

    /// Waits for a command, an event, progress, or the time. True: the daemon is to stop.
    fn wait(&mut self, longest: Duration) -> bool {
        self.heartbeat.waiting();
        let runtime = self.opener.runtime.clone();
        // Only the waiting is asynchronous: what follows may block, and may not do so inside the runtime.
        let woken = runtime.block_on(self.woken(longest));
        self.heartbeat.working();
        match woken {
            Woken::Stop => return true,
            Woken::Command(submission) => self.take(submission),
            Woken::Event(event) => self.take_event(event),
            Woken::Time => {}
        }
        false
    }

    async fn woken(&mut self, longest: Duration) -> Woken {
        let mut progress = self.progress.subscribe();
        let mut stop = self.stop.clone();
        let until = tokio::time::Instant::now() + longest;
        loop {
            let free = self.pending.is_none();
            tokio::select! {
                stopping = stop.wait_for(|stop| *stop) => {
                    // A sender that is gone has nothing to stop any more.
                    if stopping.is_ok() { return Woken::Stop }
                    std::future::pending::<()>().await;
                }
                Some(submission) = self.commands.recv(), if free => return Woken::Command(submission),
                Some(event) = self.events.recv() => return Woken::Event(event),
                Ok(()) = progress.changed() => self.publish_progress(),
                () = tokio::time::sleep_until(until) => return Woken::Time,
            }
        }
    }

    fn take(&mut self, submission: Submission) {
        let requested_by = format!("uid {}", submission.caller.uid);
        let (request, source) = match submission.command {
            // Either may wait for a server or a hook, and the verdict must not wait for them.
            Command::Plan { .. } | Command::Check if self.checking.is_some() => {
                let error = refusal_report(Refusal::InProbation);
                let _ = submission.answer.send(Err(Refused { error, blockers: Vec::new() }));
                return;
            }
            Command::Plan { source } => {
                let _ = submission.answer.send(self.plan(source));
                return;
            }
            Command::Check => {
                let blockers = self.device_blockers();
                let _ = submission.answer.send(Ok(Answer::Checked { blockers }));
                return;
            }
            Command::Allow { bundle } => {
                tracing::info!(bundle, requested_by, "a denied bundle is to be allowed");
                let _ = submission.answer.send(self.allow(&bundle));
                return;
            }
            Command::Prepare { source, then } => (Request::Prepare, Some((source, then))),
            Command::Activate => (Request::Activate, None),
            Command::Commit => (Request::Commit, None),
            Command::RollBack => (Request::RollBack, None),
            Command::Cancel => (Request::Cancel, None),
        };
        tracing::info!(request = format!("{request:?}"), requested_by, "requested");
        self.pending = Some(Pending { request, source, requested_by, answer: submission.answer });
    }

    fn take_event(&mut self, event: Event) {
        match event {
            Event::Prepared(outcome) => {
                self.preparing = None;
                self.prepared(outcome);
            }
            Event::Checked(checks, verdict) => {
                self.checked(checks);
                self.health = verdict.unwrap_or_else(|| self.health.clone());
            }
            Event::Verdict(health) => self.health = health,
        }
    }

    fn say(&mut self, decision: &Decision) {
        if self.said.as_ref() != Some(decision) {
            tracing::info!(action = names::action_name(&decision.action), reason = decision.reason, "decided");
            self.said = Some(decision.clone());
        }
    }

    fn end(mut self, end: End) -> End {
        self.stop_preparation();
        self.stop_health();
        end
    }
}

fn refusal_report(refusal: Refusal) -> ErrorReport {
    ErrorReport::new(refusal.code(), Phase::Daemon, &refusal, refusal.hint(), refusal.disposition())
}
