//! Ten thousand random schedules: agent steps, offers, people, power cuts, reboots, kills, checks, hooks, writes that
//! fail, and both watchdogs, in any order. Then the faults stop, and the world must settle and be good for one more update.
//!
//! `BASCULE_SEED=N cargo test -p bascule-core --test model schedules` replays one schedule and shows its trace.

use std::collections::BTreeMap;

use bascule_core::*;

use crate::daemon::{Daemon, Decide, Outcome, Turn};
use crate::random::{Faults, Random};
use crate::watchdogs::{Deadline, Stage};
use crate::world::{Loader, Temper, Trouble, World, index};
use crate::{Mistake, instead, mistakes_of_judgement, mistakes_of_order};

/// Schedules of one search.
const SCHEDULES: u64 = 10_000;
/// Starts that a world may need to settle once nothing goes wrong any more: three tries, a way back, and what follows.
const BOOTS_TO_SETTLE: u32 = 10;
/// Decisions of one run of the daemon between two reboots.
const TURNS_TO_SETTLE: u32 = 60;
/// Orders are one byte of a manifest's digest here.
const ORDERS: u64 = 200;

/// A schedule as it is played.
struct Play<'a> {
    decide: Decide<'a>,
    random: Random,
    world: World,
    daemon: Option<Daemon>,
    pending: Option<(Request, Option<(u64, Then)>)>,
    /// How often something comes from outside, in thousandths of the turns.
    unrest: u64,
}

fn world_of(seed: u64, random: &mut Random) -> World {
    let loader = random.pick(&[Loader::Counting, Loader::Counting, Loader::OneShot]);
    let mut world = World::new(loader, &[]);
    world.faults = Faults::drawn(seed);
    world.hooks = random.chance(500);
    let tempers = [Temper::Good, Temper::Good, Temper::Panics, Temper::Unhealthy, Temper::Hangs, Temper::DoesNotLoad];
    world.tempers.truncate(2);
    world.tempers.extend((2..ORDERS).map(|_| random.pick(&tempers)));
    world
}

impl<'a> Play<'a> {
    fn new(seed: u64, decide: Decide<'a>, quiet: bool) -> Self {
        let mut random = Random::new(seed);
        let mut world = world_of(seed, &mut random);
        world.quiet = quiet;
        let unrest = random.pick(&[20, 100, 200]);
        Play { decide, random, world, daemon: None, pending: None, unrest }
    }

    /// One schedule from its first start to its judgement.
    fn run(&mut self) -> Result<(), String> {
        self.start()?;
        for _ in 0..self.random.below(250) {
            if self.random.chance(self.unrest) { self.disturb()? } else { self.turn()? }
        }
        self.world.note(|| "    == nothing goes wrong any more ==".into());
        self.world.faults = Faults::none();
        self.settle()?;
        judge(&self.world)?;
        self.one_more()
    }

    /// Power on: the loader, rollback-altboot, and the daemon, which may be kept from starting.
    fn start(&mut self) -> Result<(), String> {
        loop {
            self.daemon = None;
            self.world.boot()?;
            self.world.armed()?;
            let decisions = if self.random.chance(700) { 16 } else { self.random.below(3) as usize };
            if self.world.rollback_altboot(self.decide, decisions)? {
                break;
            }
        }
        let calm = self.world.faults.cut == 0;
        self.daemon = (calm || !self.random.chance(50)).then(|| self.world.start_daemon());
        Ok(())
    }

    fn turn(&mut self) -> Result<(), String> {
        let Some(daemon) = &mut self.daemon else {
            // Only the deadline can end a trial that no daemon judges, and only the service manager brings one back.
            if self.random.chance(300) {
                self.world.pass_deadline();
            }
            return if self.world.deadline_passed { self.deadline() } else { Ok(()) };
        };
        let (request, offered) = self.pending.map_or((None, None), |(request, offered)| (Some(request), offered));
        let turn = self.world.turn(self.decide, daemon, request, offered)?;
        self.answer(&turn);
        if turn.asked && turn.action == Action::RollBack && turn.outcome == Outcome::Done {
            self.world.note(|| "    without a record nobody knows why: the person reboots".into());
            return self.start();
        }
        match turn.outcome {
            Outcome::Reboots | Outcome::Trouble(Trouble::PowerCut) => self.start(),
            Outcome::Rests => {
                self.ask();
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// As the loop does: whoever asks is answered by what they caused, and by every failure.
    fn answer(&mut self, turn: &Turn) {
        let waits = matches!(turn.outcome, Outcome::Deferred) && !turn.asked;
        if turn.asked && !waits || matches!(turn.outcome, Outcome::Refused | Outcome::Trouble(_)) {
            self.pending = None;
        }
    }

    fn ask(&mut self) {
        if self.pending.is_some() {
            return;
        }
        let request = match self.random.below(20) {
            0..=11 => Request::Prepare,
            12..=13 => Request::Activate,
            14..=15 => Request::Commit,
            16..=17 => Request::RollBack,
            _ => Request::Cancel,
        };
        let newest = self.world.starts.iter().max().copied().unwrap_or(1);
        let order = if self.random.chance(800) { newest + 1 + self.random.below(2) } else { newest };
        let then = if self.random.chance(800) { Then::Activate } else { Then::Stop };
        let offered = (request == Request::Prepare).then_some((order.min(ORDERS - 2), then));
        self.pending = Some((request, offered));
    }

    fn disturb(&mut self) -> Result<(), String> {
        match self.random.below(8) {
            0 => {
                self.world.note(|| "    -- a clean reboot --".into());
                self.start()
            }
            1 => {
                self.world.note(|| "    -- the power fails --".into());
                if self.random.chance(self.world.faults.record_lost) {
                    self.world.lose_record();
                }
                self.start()
            }
            2 | 3 => {
                self.world.note(|| "    -- the daemon is killed and started again --".into());
                self.daemon = Some(self.world.start_daemon());
                Ok(())
            }
            4 => {
                self.world.pass_deadline();
                Ok(())
            }
            5 if self.world.deadline_passed => self.deadline(),
            6 if self.random.chance(self.world.faults.torn) => {
                self.world.damage_settings();
                Ok(())
            }
            _ => {
                self.ask();
                Ok(())
            }
        }
    }

    /// rollback-health acts, from its look to its reboot.
    fn deadline(&mut self) -> Result<(), String> {
        let mut watchdog = Deadline::new(true);
        while !watchdog.is_over() {
            if watchdog.step(&mut self.world, &mut self.daemon).is_err() {
                return self.start();
            }
            self.world.armed()?;
        }
        match watchdog.stage {
            Stage::Reboot => self.start(),
            _ => {
                self.daemon.get_or_insert_with(|| self.world.start_daemon());
                Ok(())
            }
        }
    }

    /// Without faults and requests: to rest, within bounds.
    fn settle(&mut self) -> Result<(), String> {
        self.pending = None;
        self.daemon.get_or_insert_with(|| self.world.start_daemon());
        let last = self.world.boots + BOOTS_TO_SETTLE;
        let mut turns = 0;
        while self.world.boots <= last {
            let before = self.world.boots;
            let daemon = self.daemon.get_or_insert_with(|| self.world.start_daemon());
            let turn = self.world.turn(self.decide, daemon, None, None)?;
            match turn.outcome {
                // What was reported as failed is on the disk all the same: the next start goes on from it.
                Outcome::Rests if daemon.record != self.world.record => self.start()?,
                Outcome::Rests => return Ok(()),
                Outcome::Reboots => self.start()?,
                _ => {}
            }
            turns = if self.world.boots == before { turns + 1 } else { 0 };
            if turns > TURNS_TO_SETTLE {
                return Err(format!("it goes round in circles: {:?}", turn.action));
            }
        }
        Err(format!("it did not settle in {BOOTS_TO_SETTLE} starts"))
    }

    /// A device that rests must still be one that can be updated.
    fn one_more(&mut self) -> Result<(), String> {
        let order = ORDERS - 1;
        self.world.tempers[order as usize] = Temper::Good;
        self.world.note(|| "    == one more update ==".into());
        let Some(daemon) = &mut self.daemon else { return Err("no daemon runs at rest".into()) };
        let offered = Some((order, Then::Activate));
        self.world.turn(self.decide, daemon, Some(Request::Prepare), offered)?;
        self.settle()?;
        judge(&self.world)?;
        match self.world.order_in(self.world.booted) {
            Some(running) if running == order => Ok(()),
            running => Err(format!("a good update was not taken: {running:?} runs")),
        }
    }
}

/// Holds a world at rest against the promises.
pub fn judge(world: &World) -> Result<(), String> {
    let running = world.order_in(world.booted).ok_or("the booted slot is torn")?;
    if !world.retried.is_empty() {
        return Err(format!("rejected bundles were activated again: {:?}", world.retried));
    }
    if !matches!(world.record.state, State::Idle | State::Prepared { .. }) {
        return Err(format!("it rests in {:?}", world.record.state));
    }
    let truth = world.truth[index(world.booted)];
    if !truth.proven && !truth.last_resort {
        return Err(format!("it rests on order {running}, which nobody has proven"));
    }
    if world.view.settings == Settings::Damaged || world.view.status(world.booted) != BootStatus::Good {
        return Err(format!("the booted group is not good at rest: {:?}", world.view));
    }
    if matches!(world.view.status(world.booted.opposite()), BootStatus::Trial { .. } | BootStatus::Exhausted) {
        return Err(format!("the opposite group is armed at rest: {:?}", world.view));
    }
    if world.order_in(world.fallback).is_none() {
        return Err("the fallback names a torn slot".into());
    }
    installed_runs(world, running)?;
    every_deployment_ends_once(world)?;
    reasons_are_true(world)?;
    denied_is_what_was_rolled_back(world)
}

fn installed_runs(world: &World, running: u64) -> Result<(), String> {
    let last = world.record.history.iter().rev().find(|entry| entry.deployment.order == running);
    let stranded = last.is_some_and(|entry| matches!(entry.ending, Ending::Stranded { .. }));
    match &world.record.installed {
        Some(installed) if installed.order != running && !stranded => {
            Err(format!("the record says order {} was committed, {running} runs", installed.order))
        }
        _ => Ok(()),
    }
}

/// One line of history for each deployment; a committed one that was given up later has two.
fn every_deployment_ends_once(world: &World) -> Result<(), String> {
    let mut endings: BTreeMap<&str, Vec<&Ending>> = BTreeMap::new();
    for entry in &world.record.history {
        endings.entry(&entry.deployment.id.0).or_default().push(&entry.ending);
    }
    for (id, of) in &endings {
        let once = match of.as_slice() {
            [_] => true,
            [Ending::Committed, Ending::RolledBack { reason } | Ending::Stranded { reason }] => {
                *reason == RollbackReason::Operator
            }
            _ => false,
        };
        if !once {
            return Err(format!("deployment {id} ended like this: {of:?}"));
        }
    }
    let resting = world.record.state.deployment().map(|deployment| deployment.id.0.as_str());
    let full = world.record.history.len() >= record_limit();
    let known = |id: &String| endings.contains_key(id.as_str()) || world.superseded.contains(id);
    match world.begun.iter().find(|id| !known(id) && resting != Some(id.as_str())) {
        Some(id) if !full => Err(format!("deployment {id} was begun and never ended")),
        _ => Ok(()),
    }
}

fn record_limit() -> usize {
    bascule_core::record::HISTORY_LIMIT
}

/// What the history says must have happened.
fn reasons_are_true(world: &World) -> Result<(), String> {
    for entry in &world.record.history {
        let order = entry.deployment.order;
        let any = |names: &[&'static str]| names.iter().any(|name| world.happened.contains(&(order, name)));
        let reason = match &entry.ending {
            Ending::RolledBack { reason } | Ending::Stranded { reason } => reason,
            Ending::Committed if any(&["healthy", "commit"]) => continue,
            Ending::Committed => return Err(format!("order {order} was committed without proof")),
            _ => continue,
        };
        let temper = world.tempers.get(order as usize).copied();
        let starts = world.starts.iter().filter(|start| **start == order).count();
        let tries_used = starts >= usize::from(world.policy().tries.get());
        let is_true = match reason {
            RollbackReason::Unhealthy { .. } => any(&["unhealthy"]),
            RollbackReason::Deadline => any(&["deadline"]),
            RollbackReason::DidNotBoot | RollbackReason::NotProven => tries_used,
            RollbackReason::LoaderSkippedTarget => temper == Some(Temper::DoesNotLoad),
            RollbackReason::SettingsLost => world.happened.contains(&(0, "settings torn")),
            RollbackReason::GaveUpUnrecorded => any(&["gave itself up"]),
            RollbackReason::Operator => any(&["rollback", "cancel"]),
            RollbackReason::Cancelled => any(&["rollback", "cancel"]),
            RollbackReason::Unknown => false,
        };
        if !is_true {
            return Err(format!("order {order} ({temper:?}, started {starts} times) is said to be: {reason:?}"));
        }
    }
    Ok(())
}

fn denied_is_what_was_rolled_back(world: &World) -> Result<(), String> {
    let mut verdicts: BTreeMap<Digest, u32> = BTreeMap::new();
    for entry in &world.record.history {
        // A person's wish to leave a system that then goes on running says nothing against it.
        let against = match &entry.ending {
            Ending::RolledBack { reason } => reason.denies(),
            Ending::Stranded { reason } => reason.denies() && *reason != RollbackReason::Operator,
            _ => false,
        };
        if against {
            *verdicts.entry(entry.deployment.manifest).or_default() += 1;
        }
    }
    let denied: BTreeMap<Digest, u32> =
        world.record.deny.iter().map(|denied| (denied.manifest, denied.attempts)).collect();
    if denied == verdicts { Ok(()) } else { Err(format!("denied are {denied:?}, rolled back were {verdicts:?}")) }
}

/// Plays one schedule; a broken promise is shown with its seed and whole trace.
fn play(seed: u64, decide: Decide) -> Result<(), String> {
    if Play::new(seed, decide, true).run().is_ok() {
        return Ok(());
    }
    let mut shown = Play::new(seed, decide, false);
    match shown.run() {
        Ok(()) => Err(format!("seed {seed}: broken without a trace, whole with one")),
        Err(what) => Err(format!("{}\nBASCULE_SEED={seed}: {what}", shown.world.trace.join("\n"))),
    }
}

fn first_broken(decide: Decide) -> Option<String> {
    let more = std::env::var("BASCULE_SCHEDULES").ok().and_then(|count| count.parse().ok());
    (0..more.unwrap_or(SCHEDULES)).find_map(|seed| play(seed, decide).err())
}

#[test]
fn random_schedules_catch_a_loop_that_trusts_a_fallback_it_has_not_written() {
    let hasty = |seed| {
        let mut play = Play::new(seed, &decide, true);
        play.world.hasty = true;
        play.run().err()
    };
    let broken = (0..SCHEDULES).find_map(hasty);
    assert!(broken.is_some_and(|what| what.contains("while the loader may start it")), "not caught");
}

/// Mistakes that take more than power cuts to come to light.
fn mistakes_of_patience() -> Vec<Mistake> {
    vec![
        ("never minds the deadline", |r, o, p| decide(r, &Observed { deadline_passed: false, ..o.clone() }, p)),
        ("asks for ever for a way back that there is not", |r, o, p| {
            let action = match (&r.state, decide(r, o, p).action) {
                (State::RollingBack { .. }, Action::Record(Step::Stranded)) => Action::RollBack,
                (_, action) => action,
            };
            Decision { action, reason: "mistake" }
        }),
        ("gives up what is only waiting for its verdict", |r, o, p| match (&r.state, decide(r, o, p)) {
            (State::Activated { deployment, .. }, decision) if deployment.target == o.booted => {
                let gives_up = Action::Record(Step::RollingBack(RollbackReason::Deadline));
                instead(decision, &Action::CheckHealth, gives_up)
            }
            (_, decision) => decision,
        }),
        ("takes settings that are damaged for whole", |r, o, p| {
            let mut seen = o.clone();
            seen.view.settings = Settings::Intact;
            decide(r, &seen, p)
        }),
        ("commits a trial that nobody recorded unseen", |r, o, p| match r.state {
            State::Idle => instead(decide(r, o, p), &Action::CheckHealth, Action::MarkGood),
            _ => decide(r, o, p),
        }),
    ]
}

#[test]
fn random_schedules_catch_seeded_mistakes() {
    let mistakes = mistakes_of_order().into_iter().chain(mistakes_of_judgement()).chain(mistakes_of_patience());
    for (name, mistake) in mistakes {
        match first_broken(&mistake) {
            Some(broken) => println!("{name}: {}", broken.lines().last().unwrap_or_default()),
            None => panic!("the random schedules did not catch: {name}"),
        }
    }
}

#[test]
fn ten_thousand_random_schedules_settle_without_a_false_commit_a_stuck_state_or_an_unarmed_bad_system() {
    let broken = match std::env::var("BASCULE_SEED") {
        Ok(seed) => {
            let mut shown = Play::new(seed.parse().unwrap(), &decide, false);
            let outcome = shown.run();
            println!("{}", shown.world.trace.join("\n"));
            outcome.err()
        }
        Err(_) => first_broken(&decide),
    };
    if let Some(broken) = broken {
        panic!("{broken}");
    }
}
