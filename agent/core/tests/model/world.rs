//! A world small enough to search: two slots, a loader, a record, systems that are good, panic or are unhealthy, and a
//! power supply that fails after chosen durable writes.
//!
//! Every durable write is one call of [`World::durable`]. The power is cut right after the writes whose numbers are in
//! `cuts`; a cut before a write is the cut after the write before it. A settings write may also be torn by its cut.

use bascule_core::offer;
use bascule_core::*;

/// How one system behaves when it is started.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Temper {
    Good,
    Panics,
    Unhealthy,
}

/// What a slot holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Content {
    Torn,
    System { order: u64, temper: Temper },
}

/// Which loader is simulated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Loader {
    /// Counts tries down, as GRUB, U-Boot and systemd-boot do.
    Counting,
    /// Starts the target once, as `BootNext` does.
    OneShot,
}

/// What happens to the world from outside, in order; the next comes when the agent has nothing left to do.
#[derive(Debug, Clone, Copy)]
pub enum Event {
    Offer { order: u64, temper: Temper, then: Then },
    Activate,
    RollBack,
}

/// The function under test, so that seeded mistakes can take its place.
pub type Decide<'a> = &'a dyn Fn(&Record, &Observed, &Policy) -> Decision;

/// The power failed: everything not durable is gone.
pub struct PowerCut;

#[derive(Debug, Clone)]
pub struct World {
    pub loader: Loader,
    pub slots: [Content; 2],
    pub view: BootView,
    pub fallback: Group,
    pub record: Record,
    /// The system that runs, once the loader has started one.
    pub booted: Group,
    pub boots: u32,
    pub writes: usize,
    pub cuts: Vec<usize>,
    pub torn_settings: bool,
    pub cancel_after: Option<usize>,
    /// Starts of each offered order without a commit in between.
    pub starts: Vec<u64>,
    /// Orders activated although the deny-list held them.
    pub retried: Vec<u64>,
    pub trace: Vec<String>,
}

fn index(group: Group) -> usize {
    usize::from(group == Group::B)
}

impl World {
    pub fn new(loader: Loader, cuts: &[usize]) -> Self {
        World {
            loader,
            slots: [Content::System { order: 1, temper: Temper::Good }, Content::Torn],
            view: BootView {
                settings: Settings::Intact,
                primary: Group::A,
                a: BootStatus::Good,
                b: BootStatus::Unbootable,
            },
            fallback: Group::A,
            record: Record::default(),
            booted: Group::A,
            boots: 0,
            writes: 0,
            cuts: cuts.to_vec(),
            torn_settings: false,
            cancel_after: None,
            starts: Vec::new(),
            retried: Vec::new(),
            trace: Vec::new(),
        }
    }

    pub fn order_in(&self, group: Group) -> Option<u64> {
        match self.slots[index(group)] {
            Content::System { order, .. } => Some(order),
            Content::Torn => None,
        }
    }

    fn status_mut(&mut self, group: Group) -> &mut BootStatus {
        match group {
            Group::A => &mut self.view.a,
            Group::B => &mut self.view.b,
        }
    }

    /// Counts one durable write and fails if the power is cut right after it.
    fn durable(&mut self, what: String) -> Result<(), PowerCut> {
        self.trace.push(format!("{:3} {what}", self.writes));
        self.writes += 1;
        if self.cuts.contains(&(self.writes - 1)) {
            self.trace.push("    -- power cut --".into());
            return Err(PowerCut);
        }
        Ok(())
    }

    fn write_settings(&mut self, what: &str, view: BootView) -> Result<(), PowerCut> {
        self.view = view;
        let torn = self.torn_settings && self.cuts.contains(&self.writes);
        if torn {
            self.view.settings = Settings::Damaged;
        }
        self.durable(format!("loader: {what} -> {:?}{}", self.view, if torn { " TORN" } else { "" }))
    }

    /// What the loader shows to the agent: on damaged settings only its fallback.
    fn seen_view(&self) -> BootView {
        if self.view.settings == Settings::Intact {
            return self.view;
        }
        let mut view = BootView {
            settings: Settings::Damaged,
            primary: self.fallback,
            a: BootStatus::Unbootable,
            b: BootStatus::Unbootable,
        };
        match self.fallback {
            Group::A => view.a = BootStatus::Good,
            Group::B => view.b = BootStatus::Good,
        }
        view
    }

    /// Lets the loader pick and start groups until one comes up. `Err` is a violated promise.
    pub fn boot(&mut self) -> Result<(), String> {
        for _ in 0..20 {
            self.boots += 1;
            let group = self.pick();
            match self.slots[index(group)] {
                Content::Torn => return Err(format!("a torn slot was started: {group}")),
                Content::System { order, temper } => {
                    self.starts.push(order);
                    self.trace.push(format!("    loader starts {group} (order {order}, {temper:?})"));
                    if temper != Temper::Panics {
                        self.booted = group;
                        return Ok(());
                    }
                }
            }
        }
        Err("nothing came up in 20 starts".into())
    }

    fn pick(&mut self) -> Group {
        if self.view.settings == Settings::Damaged {
            return self.fallback;
        }
        for group in [self.view.primary, self.view.primary.opposite()] {
            match self.view.status(group) {
                BootStatus::Good => return group,
                BootStatus::Trial { tries_left } => {
                    let left = tries_left - 1;
                    *self.status_mut(group) =
                        if left == 0 { BootStatus::Exhausted } else { BootStatus::Trial { tries_left: left } };
                    return group;
                }
                BootStatus::Unbootable | BootStatus::Exhausted => {}
            }
        }
        self.fallback
    }

    pub fn policy(&self) -> Policy {
        let tries = match self.loader {
            Loader::Counting => Tries::DEFAULT,
            Loader::OneShot => Tries::new(1).unwrap(),
        };
        Policy { tries, max_attempts: 10 }
    }

    fn stamp(&self) -> Stamp {
        Stamp { now: 0, boot_id: self.boot_id(), run: self.boots.to_string(), booted: self.booted }
    }

    fn boot_id(&self) -> BootId {
        BootId(self.boots.to_string())
    }

    fn step(&mut self, step: &Step) -> Result<(), PowerCut> {
        if matches!(step, Step::Activating(_))
            && let Some(deployment) = self.record.state.deployment()
            && self.record.denied(&deployment.manifest).is_some()
        {
            self.retried.push(deployment.order);
        }
        self.record = self.record.advance(step, &self.stamp());
        self.durable(format!("record: {step:?}").chars().take(110).collect())
    }

    /// Runs the agent from start to reboot, power cut, or rest. `Ok(true)` means it rests with nothing left to do.
    pub fn run_agent(&mut self, decide: Decide, pending: &mut Option<Event>) -> Result<bool, String> {
        let mut health = Health::Unknown;
        for _ in 0..200 {
            let cancel = self.cancel_after.is_some_and(|after| self.writes >= after);
            let rests = matches!(self.record.state, State::Idle | State::Prepared { .. });
            let request = match pending {
                _ if cancel && self.record.state != State::Idle => Some(Request::Cancel),
                Some(Event::Offer { .. }) if rests => Some(Request::Prepare),
                Some(Event::Activate) if rests => Some(Request::Activate),
                Some(Event::RollBack) if rests => Some(Request::RollBack),
                _ => None,
            };
            let seen = Observed {
                booted: self.booted,
                boot_id: self.boot_id(),
                run: self.boots.to_string(),
                view: self.seen_view(),
                health: health.clone(),
                deadline_passed: false,
                preparation: None,
                request,
            };
            let decision = decide(&self.record, &seen, &self.policy());
            let outcome = match decision.action {
                Action::Wait => return Ok(true),
                Action::Refuse(_) => {
                    if request == Some(Request::Cancel) {
                        self.cancel_after = None;
                    } else {
                        *pending = None;
                    }
                    Ok(())
                }
                Action::CheckHealth => {
                    health = self.health();
                    Ok(())
                }
                Action::Reboot => return Ok(false),
                Action::CheckOffer => self.check_offer(pending),
                other => self.perform(&other, request, pending),
            };
            if outcome.is_err() {
                return Ok(false);
            }
            if request == Some(Request::Cancel) {
                self.cancel_after = None;
            }
        }
        Err("the agent did not come to rest in 200 decisions".into())
    }

    fn health(&self) -> Health {
        match self.slots[index(self.booted)] {
            Content::System { temper: Temper::Good, .. } => Health::Passed,
            _ => Health::Failed { detail: "the model says so".into() },
        }
    }

    fn check_offer(&mut self, pending: &mut Option<Event>) -> Result<(), PowerCut> {
        let Some(Event::Offer { order, temper: _, then }) = *pending else { return Ok(()) };
        let running = self.order_in(self.booted).unwrap_or(0);
        let offer = Offer {
            manifest: Digest([order as u8; 32]),
            product: "p".into(),
            version: order.to_string(),
            order,
            compatible: vec!["h".into()],
            requires: Default::default(),
            security_epoch: 0,
            payloads: Vec::new(),
        };
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
        if !offer::blockers(&offer, &device, &self.record).is_empty() {
            *pending = None;
            return Ok(());
        }
        let deployment = Deployment {
            id: DeploymentId(order.to_string()),
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
        self.step(&Step::Preparing(deployment))
    }

    fn record(&mut self, step: &Step, request: Option<Request>, pending: &mut Option<Event>) -> Result<(), PowerCut> {
        let done = self.step(step);
        if matches!(step, Step::Activating(_)) && matches!(pending, Some(Event::Activate))
            || matches!(request, Some(Request::RollBack))
        {
            *pending = None;
        }
        if matches!(step, Step::Prepared(_) | Step::Abandoned(_)) && matches!(pending, Some(Event::Offer { .. })) {
            *pending = None;
        }
        done
    }

    fn perform(
        &mut self,
        action: &Action,
        request: Option<Request>,
        pending: &mut Option<Event>,
    ) -> Result<(), PowerCut> {
        let target = self.booted.opposite();
        let mut view = if self.view.settings == Settings::Damaged { self.seen_view() } else { self.view };
        view.settings = Settings::Intact;
        match action {
            Action::Record(step) => return self.record(step, request, pending),
            Action::Prepare => {
                self.slots[index(target)] = Content::Torn;
                self.durable(format!("slot {target}: first chunk"))?;
                let order = self.record.state.deployment().map_or(0, |d| d.order);
                let temper = TEMPERS.get(order as usize).copied().unwrap_or(Temper::Good);
                self.slots[index(target)] = Content::System { order, temper };
                self.durable(format!("slot {target}: all chunks, read back"))?;
                return self.step(&Step::Prepared(Transfer::default())).map(|()| {
                    if matches!(pending, Some(Event::Offer { .. })) {
                        *pending = None;
                    }
                });
            }
            Action::MarkUnbootable => {
                self.fallback = self.booted;
                self.durable(format!("fallback: {}", self.booted))?;
                set(&mut view, target, BootStatus::Unbootable);
                if self.view.settings == Settings::Damaged {
                    set(&mut view, self.booted, BootStatus::Good);
                    view.primary = self.booted;
                }
                return self.write_settings("mark_unbootable", view);
            }
            Action::Activate => {
                set(&mut view, target, BootStatus::Trial { tries_left: self.policy().tries.get() });
                view.primary = target;
                return self.write_settings("activate", view);
            }
            Action::MarkGood => {
                if self.view.settings == Settings::Damaged {
                    set(&mut view, target, BootStatus::Unbootable);
                }
                set(&mut view, self.booted, BootStatus::Good);
                view.primary = self.booted;
                self.write_settings("mark_good", view)?;
                self.fallback = self.booted;
                return self.durable(format!("fallback: {}", self.booted));
            }
            Action::RollBack => {
                set(&mut view, self.booted, BootStatus::Unbootable);
                set(&mut view, target, BootStatus::Good);
                view.primary = target;
                self.fallback = target;
                self.durable(format!("fallback: {target}"))?;
                return self.write_settings("roll_back", view);
            }
            _ => {}
        }
        Ok(())
    }
}

/// Temper of the system with a given order: the scenarios use fixed numbers.
pub const TEMPERS: [Temper; 8] = [
    Temper::Good,
    Temper::Good,
    Temper::Good,
    Temper::Unhealthy,
    Temper::Panics,
    Temper::Good,
    Temper::Unhealthy,
    Temper::Panics,
];

fn set(view: &mut BootView, group: Group, status: BootStatus) {
    match group {
        Group::A => view.a = status,
        Group::B => view.b = status,
    }
}
