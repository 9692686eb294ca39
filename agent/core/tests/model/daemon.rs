//! The agent in the model's world: what it knows, one turn of its loop, and a whole run from start to reboot or rest.
//!
//! It mirrors `agent/src/engine.rs`: a turn observes, decides, performs one thing. The promises that can be judged at
//! once are judged here, where the thing is done.

use bascule_core::offer;
use bascule_core::*;

use crate::world::{Content, Place, Temper, Trouble, World, index};

/// The function under test, so that seeded mistakes can take its place.
pub type Decide<'a> = &'a dyn Fn(&Record, &Observed, &Policy) -> Decision;

/// What happens to the world from outside, in order; the next comes when the agent has nothing left to do.
#[derive(Debug, Clone, Copy)]
pub enum Event {
    Offer { order: u64, then: Then },
    Activate,
    RollBack,
}

/// One run of the daemon: what is lost when it is killed.
#[derive(Debug, Clone)]
pub struct Daemon {
    pub run: String,
    /// The record in memory. After a write that was reported as failed the disk may be ahead of it.
    pub record: Record,
    pub health: Health,
    pub preparation: Option<PreparationFailure>,
    /// The first chunk is written.
    pub writing: bool,
}

/// How one turn ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    Done,
    /// Nothing is left to do.
    Rests,
    /// The request was refused, or the offer is blocked.
    Refused,
    /// A hook asked to be asked later.
    Deferred,
    Reboots,
    Trouble(Trouble),
}

/// One turn of the loop.
pub struct Turn {
    pub action: Action,
    /// The request is what caused it.
    pub asked: bool,
    pub outcome: Outcome,
}

/// Rounds of checks after which the deadline has passed.
const ROUNDS: u32 = 4;

impl World {
    pub fn start_daemon(&mut self) -> Daemon {
        self.runs += 1;
        Daemon {
            run: self.runs.to_string(),
            record: self.record.clone(),
            health: Health::Unknown,
            preparation: None,
            writing: false,
        }
    }

    pub fn observed(&self, daemon: &Daemon, request: Option<Request>) -> Observed {
        Observed {
            booted: self.booted,
            boot_id: self.boot_id(),
            run: daemon.run.clone(),
            view: self.seen_view(),
            health: daemon.health.clone(),
            deadline_passed: self.deadline_passed,
            preparation: daemon.preparation.clone(),
            request,
        }
    }

    /// Observes, decides, performs one thing. `Err` is a violated promise.
    pub fn turn(
        &mut self,
        decide: Decide,
        daemon: &mut Daemon,
        request: Option<Request>,
        offered: Option<(u64, Then)>,
    ) -> Result<Turn, String> {
        let (seen, policy) = (self.observed(daemon, request), self.policy());
        let decision = decide(&daemon.record, &seen, &policy);
        let asked = request.is_some() && {
            let unasked = Observed { request: None, ..seen };
            decide(&daemon.record, &unasked, &policy).action != decision.action
        };
        if let Some(request) = request {
            self.note(|| format!("    {request:?} is asked: {}", decision.reason));
            let meant = daemon.record.state.deployment().map(|deployment| deployment.order);
            let meant = meant.or(self.order_in(self.booted)).unwrap_or(0);
            self.happened.insert((meant, name_of(request)));
        }
        let outcome = self.perform(&decision.action, daemon, request, offered);
        let outcome = outcome.unwrap_or_else(Outcome::Trouble);
        if let Some(broken) = self.broken.take() {
            return Err(broken);
        }
        self.armed()?;
        Ok(Turn { action: decision.action, asked, outcome })
    }

    fn perform(
        &mut self,
        action: &Action,
        daemon: &mut Daemon,
        request: Option<Request>,
        offered: Option<(u64, Then)>,
    ) -> Result<Outcome, Trouble> {
        match action {
            Action::Wait => return Ok(Outcome::Rests),
            Action::Refuse(_) => return Ok(Outcome::Refused),
            Action::CheckOffer => return self.check_offer(daemon, offered),
            Action::CheckHealth => self.check_health(daemon),
            Action::Reboot => return Ok(Outcome::Reboots),
            Action::Prepare => return self.prepare(daemon),
            Action::Record(step) => return self.record(daemon, step),
            Action::MarkUnbootable => self.mark_unbootable()?,
            Action::Activate => {
                self.once_more(daemon);
                self.activate()?;
            }
            Action::MarkGood => self.commit(daemon, request)?,
            Action::RollBack => {
                self.hook("pre-rollback", daemon)?;
                self.roll_back()?;
            }
        }
        Ok(Outcome::Done)
    }

    /// The known limit: the power failed between arming the loader and recording it, and then rollback-health could not
    /// record its reason. To the old system that looks as if nothing had been armed yet: it arms once more.
    fn once_more(&mut self, daemon: &Daemon) {
        let order = daemon.record.state.deployment().map_or(0, |deployment| deployment.order);
        if self.happened.remove(&(order, "gave itself up")) {
            self.truth[index(self.booted.opposite())] = Default::default();
        }
    }

    /// Good is what was proven, what a person says, and what there is no alternative to.
    fn commit(&mut self, daemon: &Daemon, request: Option<Request>) -> Result<(), Trouble> {
        let view = self.seen_view();
        let truth = &mut self.truth[index(self.booted)];
        truth.proven |= request == Some(Request::Commit) || daemon.health == Health::Passed;
        truth.last_resort |= !truth.proven && view.status(self.booted.opposite()) != BootStatus::Good;
        self.mark_good()
    }

    fn check_health(&mut self, daemon: &mut Daemon) {
        let Content::System { order, temper } = self.slots[index(self.booted)] else { return };
        let faults = &mut self.faults;
        daemon.health = match temper {
            Temper::Good if faults.random.chance(faults.health_hangs) => Health::Unknown,
            Temper::Good if faults.random.chance(faults.health_fails) => failed_health(),
            Temper::Good => Health::Passed,
            Temper::Unhealthy if !faults.random.chance(faults.health_hangs) => failed_health(),
            _ => Health::Unknown,
        };
        self.rounds += 1;
        let verdict = match &daemon.health {
            Health::Passed => "healthy",
            Health::Failed { .. } => "unhealthy",
            Health::Unknown if self.rounds < ROUNDS => return,
            Health::Unknown => "deadline",
        };
        self.note(|| format!("    the checks say: {verdict}"));
        self.happened.insert((order, verdict));
        self.deadline_passed |= verdict == "deadline";
    }

    pub fn pass_deadline(&mut self) {
        let order = self.order_in(self.booted).unwrap_or(0);
        self.note(|| "    -- the deadline passes --".into());
        self.happened.insert((order, "deadline"));
        self.deadline_passed = true;
    }

    fn check_offer(&mut self, daemon: &mut Daemon, offered: Option<(u64, Then)>) -> Result<Outcome, Trouble> {
        let Some((order, then)) = offered else { return Ok(Outcome::Refused) };
        let running = self.order_in(self.booted).unwrap_or(0);
        let offer = offer_of(order);
        let device = Device {
            product: "p".into(),
            version: running.to_string(),
            order: running,
            compatible: vec!["h".into()],
            agent: "0.1.0".into(),
            free_space: 0,
            denials_since: None,
            target_slots: Vec::new(),
        };
        let blockers = offer::blockers(&offer, &device, &daemon.record);
        if !blockers.is_empty() {
            self.note(|| format!("    the offer of order {order} is blocked: {}", blockers[0].code));
            return Ok(Outcome::Refused);
        }
        self.offers += 1;
        let deployment = Deployment {
            id: DeploymentId(format!("{order}-{}", self.offers)),
            manifest: offer.manifest,
            product: offer.product,
            version: offer.version,
            order,
            security_epoch: 0,
            target: self.booted.opposite(),
            from_version: device.version,
            source: "-".into(),
            then,
            requested_by: "model".into(),
            began: 0,
            images: Vec::new(),
            transfer: None,
            baseline: Baseline::default(),
        };
        let before = daemon.record.state.deployment().map(|deployment| deployment.id.0.clone());
        let begun = deployment.id.0.clone();
        // (Even when it is reported as failed: it may be on the disk all the same.)
        self.superseded.extend(before);
        self.step(daemon, &Step::Preparing(deployment))?;
        (daemon.writing, daemon.preparation) = (false, None);
        self.begun.insert(begun);
        Ok(Outcome::Done)
    }

    /// The first call writes the first chunk, the next one the rest: in between the world may change.
    fn prepare(&mut self, daemon: &mut Daemon) -> Result<Outcome, Trouble> {
        let target = self.booted.opposite();
        let order = daemon.record.state.deployment().map_or(0, |deployment| deployment.order);
        if matches!(self.seen_view().status(target), BootStatus::Good | BootStatus::Trial { .. }) {
            self.breaks(format!("group {target} is to be written and the loader was not told"));
        }
        // The fallback may lag: nothing is written where there is nothing left to do.
        if !self.hasty && !daemon.writing {
            self.mark_unbootable()?;
        }
        if self.may_start(target) {
            self.breaks(format!("group {target} is written while the loader may start it"));
        }
        if !daemon.writing {
            self.write(
                Place::Slot,
                |_| format!("slot {target}: first chunk"),
                |world| {
                    world.slots[index(target)] = Content::Torn;
                    world.truth[index(target)] = Default::default();
                },
            )?;
            daemon.writing = true;
            return Ok(Outcome::Done);
        }
        if self.faults.random.chance(self.faults.prepare_fails) {
            let disposition = self.faults.random.pick(&[Disposition::Retry, Disposition::GiveUp]);
            self.note(|| format!("    the preparation fails: {disposition:?}"));
            daemon.preparation = Some(PreparationFailure { error: error_of("prepare.model"), disposition });
            return Ok(Outcome::Done);
        }
        let temper = self.tempers.get(order as usize).copied().unwrap_or(Temper::Good);
        self.write(
            Place::Slot,
            |_| format!("slot {target}: all chunks, read back"),
            |world| world.slots[index(target)] = Content::System { order, temper },
        )?;
        daemon.writing = false;
        self.step(daemon, &Step::Prepared(Transfer::default())).inspect_err(|_| {
            daemon.preparation =
                Some(PreparationFailure { error: error_of("state.write"), disposition: Disposition::Retry });
        })?;
        Ok(Outcome::Done)
    }

    fn record(&mut self, daemon: &mut Daemon, step: &Step) -> Result<Outcome, Trouble> {
        match step {
            Step::Activating(_) => {
                self.hook("pre-activate", daemon)?;
                if self.faults.random.chance(self.faults.hook_defers) {
                    self.note(|| "    pre-activate asks to be asked later".into());
                    return Ok(Outcome::Deferred);
                }
                if self.faults.random.chance(self.faults.hook_refuses) {
                    self.note(|| "    pre-activate says no".into());
                    let ending = Ending::Failed { error: error_of("hook.failed") };
                    self.step(daemon, &Step::Abandoned(ending))?;
                    return Ok(Outcome::Done);
                }
            }
            Step::Committed | Step::RollingBack(_) => daemon.health = Health::Unknown,
            Step::NextAttempt | Step::Abandoned(_) => daemon.writing = false,
            _ => {}
        }
        let deployment = daemon.record.state.deployment().cloned();
        if *step == Step::Committed {
            self.finish_commit(deployment.as_ref())?;
        }
        self.step(daemon, step)?;
        match step {
            // Not before it is recorded: an attempt whose end is not known is not followed by writing the slots.
            Step::NextAttempt | Step::Abandoned(_) => daemon.preparation = None,
            Step::Committed => self.hook_for("post-commit", deployment)?,
            Step::RolledBack => self.hook_for("post-rollback", deployment)?,
            _ => {}
        }
        Ok(Outcome::Done)
    }

    /// As `Device::finish_commit`: the loader's fallback follows the commit.
    fn finish_commit(&mut self, deployment: Option<&Deployment>) -> Result<(), Trouble> {
        let Some(target) = deployment.map(|deployment| deployment.target) else { return Ok(()) };
        if self.seen_view().status(target) != BootStatus::Good {
            self.breaks("a commit is recorded of a group that is not good".into());
        }
        if target == self.booted { self.mark_good() } else { Ok(()) }
    }

    fn hook(&mut self, point: &'static str, daemon: &Daemon) -> Result<(), Trouble> {
        self.hook_for(point, daemon.record.state.deployment().cloned())
    }

    fn hook_for(&mut self, point: &'static str, deployment: Option<Deployment>) -> Result<(), Trouble> {
        if !self.hooks {
            return Ok(());
        }
        let id = deployment.map(|deployment| deployment.id.0).unwrap_or_default();
        let line = format!("hook {point} for {id}");
        self.write(Place::Hook, |_| line, |world| world.hooks_run.push((point, id)))
    }

    /// The only way into the record.
    pub fn step(&mut self, daemon: &mut Daemon, step: &Step) -> Result<(), Trouble> {
        if matches!(step, Step::Activating(_))
            && let Some(deployment) = daemon.record.state.deployment()
            && daemon.record.denied(&deployment.manifest).is_some()
        {
            self.retried.push(deployment.order);
        }
        let stamp = Stamp { now: 0, boot_id: self.boot_id(), run: daemon.run.clone(), booted: self.booted };
        let next = daemon.record.advance(step, &stamp);
        let durable = next.clone();
        self.write(Place::Record, |_| format!("record: {step:?}"), |world| world.record = durable)?;
        daemon.record = next;
        Ok(())
    }
}

/// Whole runs for the scripted scenarios.
impl World {
    /// Runs the agent from start to reboot, power cut, or rest. `Ok(true)` means it rests with nothing left to do.
    pub fn run_agent(&mut self, decide: Decide, pending: &mut Option<Event>) -> Result<bool, String> {
        let mut daemon = self.start_daemon();
        for _ in 0..200 {
            let cancel = self.cancel_after.is_some_and(|after| self.writes >= after);
            let rests = matches!(daemon.record.state, State::Idle | State::Prepared { .. });
            let request = match pending {
                _ if cancel && daemon.record.state != State::Idle => Some(Request::Cancel),
                Some(Event::Offer { .. }) if rests => Some(Request::Prepare),
                Some(Event::Activate) if rests => Some(Request::Activate),
                Some(Event::RollBack) if rests => Some(Request::RollBack),
                _ => None,
            };
            let offered = match pending {
                Some(Event::Offer { order, then, .. }) => Some((*order, *then)),
                _ => None,
            };
            let turn = self.turn(decide, &mut daemon, request, offered)?;
            if request == Some(Request::Cancel) && turn.outcome != Outcome::Reboots {
                self.cancel_after = None;
            } else if is_over(&turn, request, *pending, &daemon) {
                *pending = None;
            }
            match turn.outcome {
                Outcome::Rests => return Ok(true),
                Outcome::Reboots | Outcome::Trouble(Trouble::PowerCut) => return Ok(false),
                _ => {}
            }
        }
        Err("the agent did not come to rest in 200 decisions".into())
    }
}

/// Whether what was asked is done with. An offer stays until it is prepared or given up: who made it makes it again.
fn is_over(turn: &Turn, request: Option<Request>, pending: Option<Event>, daemon: &Daemon) -> bool {
    let cut = matches!(turn.outcome, Outcome::Trouble(_));
    match (&turn.action, pending) {
        _ if turn.outcome == Outcome::Refused => true,
        (Action::Record(Step::Prepared(_) | Step::Abandoned(_)), Some(Event::Offer { .. })) => true,
        (Action::Prepare, Some(Event::Offer { .. })) => !cut && matches!(daemon.record.state, State::Prepared { .. }),
        (Action::Record(Step::Activating(_)), Some(Event::Activate)) => true,
        (Action::Record(_), Some(Event::RollBack)) => request == Some(Request::RollBack),
        _ => false,
    }
}

pub fn offer_of(order: u64) -> Offer {
    Offer {
        manifest: Digest([order as u8; 32]),
        product: "p".into(),
        version: order.to_string(),
        order,
        compatible: vec!["h".into()],
        requires: Default::default(),
        security_epoch: 0,
        payloads: Vec::new(),
    }
}

fn error_of(code: &str) -> ErrorReport {
    ErrorReport {
        code: code.into(),
        phase: Phase::Prepare,
        message: "the model says so".into(),
        cause: Vec::new(),
        hint: "none".into(),
        retryable: false,
    }
}

fn failed_health() -> Health {
    Health::Failed { detail: "the model says so".into() }
}

fn name_of(request: Request) -> &'static str {
    match request {
        Request::Prepare => "offer",
        Request::Activate => "activate",
        Request::Commit => "commit",
        Request::RollBack => "rollback",
        Request::Cancel => "cancel",
    }
}
