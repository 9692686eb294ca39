//! The state machine against a simulated device: every single, double and triple power cut in every scenario, on a
//! counting and on a one-shot loader. No run may brick, start a torn slot, retry a rejected bundle, or fail to settle.

#![allow(unreachable_pub, clippy::indexing_slicing, clippy::unwrap_used, clippy::panic)]

mod claims;
mod daemon;
mod random;
mod schedules;
mod watchdogs;
mod world;

use bascule_core::*;
use daemon::{Decide, Event};
use world::{Loader, TEMPERS, Temper, World};

/// One promise broken, with the trace that shows it.
struct Broken {
    what: String,
    trace: Vec<String>,
}

fn offer(order: u64) -> Event {
    Event::Offer { order, then: Then::Activate }
}

fn scenarios() -> Vec<(&'static str, Vec<Event>)> {
    let hold = Event::Offer { order: 2, then: Then::Stop };
    vec![
        ("a good system", vec![offer(2)]),
        ("an unhealthy system, offered twice", vec![offer(3), offer(3)]),
        ("a system that panics, offered twice", vec![offer(4), offer(4)]),
        ("prepare, then activate", vec![hold, Event::Activate]),
        ("prepare, then another bundle", vec![hold, offer(5)]),
        ("good, then unhealthy", vec![offer(2), offer(3)]),
        ("good, then panics", vec![offer(2), offer(4)]),
        ("good, then a person goes back, and tries to again", vec![offer(2), Event::RollBack, Event::RollBack]),
        ("good, a person goes back, and a good one again", vec![offer(2), Event::RollBack, offer(5)]),
    ]
}

/// Runs one scenario to rest and holds the end against the promises. Returns the number of durable writes.
fn run(decide: Decide, events: &[Event], mut world: World) -> Result<usize, Broken> {
    let cancels = world.cancel_after.is_some();
    let mut waiting: Vec<Event> = events.iter().rev().copied().collect();
    let mut pending = waiting.pop();
    let broken = |what: String, world: &World| Broken { what, trace: world.trace.clone() };
    for _ in 0..40 {
        world.boot().map_err(|what| broken(what, &world))?;
        loop {
            let rests = world.run_agent(decide, &mut pending).map_err(|what| broken(what, &world))?;
            if !rests {
                break;
            }
            pending = waiting.pop();
            if pending.is_none() {
                return judge(events, &world, cancels).map_err(|what| broken(what, &world));
            }
        }
    }
    Err(broken("it did not settle in 40 boots".into(), &world))
}

fn judge(events: &[Event], world: &World, cancels: bool) -> Result<usize, String> {
    let running = world.order_in(world.booted).ok_or("the booted slot is torn")?;
    let cuts = world.cuts.iter().filter(|cut| **cut < world.writes).count();
    if !world.retried.is_empty() {
        return Err(format!("rejected bundles were activated again: {:?}", world.retried));
    }
    if !matches!(world.record.state, State::Idle | State::Prepared { .. }) {
        return Err(format!("it rests in {:?}", world.record.state));
    }
    for order in 3..=4 {
        let starts = world.starts.iter().filter(|start| **start == order).count();
        // A cancelled deployment is no verdict: the same bundle may be offered and tried once more.
        if starts > usize::from(world.policy().tries.get()) * (1 + usize::from(cancels)) {
            return Err(format!("order {order} was started {starts} times without a commit"));
        }
    }
    if TEMPERS[running as usize] != Temper::Good {
        return Err(format!("it rests on a bad system, order {running}"));
    }
    if world.view.status(world.booted) != BootStatus::Good || world.view.settings == Settings::Damaged {
        return Err(format!("the booted group is not good at rest: {:?}", world.view));
    }
    if world.fallback != world.booted && world.order_in(world.fallback).is_none() {
        return Err("the fallback names a torn slot".into());
    }
    told_truly(world)?;
    // A cut in probation costs a try, so a good system may lose only when the cuts can use them all up.
    let certain = !cancels && !world.torn_settings && cuts < usize::from(world.policy().tries.get());
    let wanted = wanted_order(events);
    if certain && running != wanted {
        return Err(format!("order {running} runs after {cuts} cuts, {wanted} should"));
    }
    Ok(world.writes)
}

/// What the record says must be what is.
fn told_truly(world: &World) -> Result<(), String> {
    let running = world.order_in(world.booted).unwrap_or(0);
    let told = world.record.installed.as_ref().map_or(1, |deployment| deployment.order);
    // A system that could not be given up runs on, as its last line of history says.
    let last = world.record.history.iter().rev().find(|entry| entry.deployment.order == running);
    let stranded = last.is_some_and(|entry| matches!(entry.ending, Ending::Stranded { .. }));
    if told != running && !stranded {
        return Err(format!("the record says order {told} was committed, {running} runs"));
    }
    for denied in &world.record.deny {
        let ended = world.record.history.iter().any(|entry| {
            entry.deployment.manifest == denied.manifest
                && matches!(entry.ending, Ending::RolledBack { .. } | Ending::Stranded { .. })
        });
        if !ended {
            return Err(format!("{} is denied but no history says it was rolled back", denied.version));
        }
    }
    Ok(())
}

fn wanted_order(events: &[Event]) -> u64 {
    let mut running = vec![1];
    for event in events {
        match event {
            Event::Offer { order, then: Then::Activate } if TEMPERS[*order as usize] == Temper::Good => {
                running.push(*order);
            }
            Event::Activate => running.push(2),
            Event::RollBack if running.len() > 1 => {
                running.pop();
            }
            _ => {}
        }
    }
    running.last().copied().unwrap_or(1)
}

/// Every combination of up to `depth` cuts; stops at the first broken promise. Returns how many runs were made.
fn search(decide: Decide, depth: usize, torn: bool) -> Result<usize, String> {
    let mut runs = 0;
    for loader in [Loader::Counting, Loader::OneShot] {
        for (name, events) in scenarios() {
            let mut todo: Vec<Vec<usize>> = vec![Vec::new()];
            while let Some(cuts) = todo.pop() {
                let mut world = World::new(loader, &cuts);
                world.torn_settings = torn;
                runs += 1;
                let writes = run(decide, &events, world).map_err(|broken| {
                    let trace = broken.trace.join("\n");
                    format!("{name} on {loader:?}, cuts after writes {cuts:?}: {}\n{trace}", broken.what)
                })?;
                if cuts.len() < depth {
                    let from = cuts.last().map_or(0, |last| last + 1);
                    todo.extend((from..writes).map(|next| [&cuts[..], &[next]].concat()));
                }
            }
        }
    }
    Ok(runs)
}

#[test]
fn no_single_double_or_triple_power_cut_breaks_a_promise() {
    match search(&decide, 3, false) {
        Ok(runs) => println!("{runs} runs"),
        Err(broken) => panic!("{broken}"),
    }
}

#[test]
fn no_power_cut_that_tears_the_settings_breaks_a_promise() {
    if let Err(broken) = search(&decide, 2, true) {
        panic!("{broken}");
    }
}

#[test]
fn a_cancel_at_any_moment_with_any_power_cut_leaves_a_good_system() {
    for loader in [Loader::Counting, Loader::OneShot] {
        for (name, events) in scenarios() {
            for cancel in 0..30 {
                for cut in 0..40 {
                    let mut world = World::new(loader, &[cut]);
                    world.cancel_after = Some(cancel);
                    if let Err(broken) = run(&decide, &events, world) {
                        panic!(
                            "{name} on {loader:?}, cancelled after {cancel}, cut after {cut}: {}\n{}",
                            broken.what,
                            broken.trace.join("\n")
                        );
                    }
                }
            }
        }
    }
}

/// A copy of the machine with one seeded mistake.
type Mistake = (&'static str, fn(&Record, &Observed, &Policy) -> Decision);

fn instead(decision: Decision, of: &Action, action: Action) -> Decision {
    if decision.action == *of { Decision { action, ..decision } } else { decision }
}

/// Mistakes in what is done before what.
fn mistakes_of_order() -> Vec<Mistake> {
    vec![
        ("writes the target while the loader may start it", |r, o, p| {
            let mut seen = o.clone();
            if matches!(r.state, State::Preparing { .. }) && seen.view.settings == Settings::Intact {
                match seen.booted {
                    Group::A => seen.view.b = BootStatus::Unbootable,
                    Group::B => seen.view.a = BootStatus::Unbootable,
                }
            }
            decide(r, &seen, p)
        }),
        ("arms the loader before it records the intent", |r, o, p| {
            let armed = o.view.status(o.booted.opposite()) != BootStatus::Unbootable;
            match (&r.state, decide(r, o, p)) {
                (State::Prepared { .. }, decision) if !armed => {
                    instead(decision, &Action::Record(Step::Activating(Baseline::default())), Action::Activate)
                }
                (_, decision) => decision,
            }
        }),
        ("records the commit before the loader says good", |r, o, p| {
            instead(decide(r, o, p), &Action::MarkGood, Action::Record(Step::Committed))
        }),
        ("takes a way back that was cut off for one that failed", |r, o, p| match &r.state {
            State::RollingBack { deployment, reason, .. } if deployment.target == o.booted => {
                let again = Action::Record(Step::RollingBack(reason.clone()));
                instead(decide(r, o, p), &again, Action::RollBack)
            }
            _ => decide(r, o, p),
        }),
        ("goes back before it records why", |r, o, p| match (decide(r, o, p), &o.health) {
            (Decision { action: Action::Record(Step::RollingBack(_)), reason }, Health::Failed { .. }) => {
                Decision { action: Action::RollBack, reason }
            }
            (decision, _) => decision,
        }),
    ]
}

/// Mistakes in what a fact is taken for.
fn mistakes_of_judgement() -> Vec<Mistake> {
    vec![
        ("lets a person's cancel outweigh a system that did not boot", |r, o, p| {
            instead(
                decide(r, o, p),
                &Action::Record(Step::RollingBack(RollbackReason::DidNotBoot)),
                Action::Record(Step::RollingBack(RollbackReason::Cancelled)),
            )
        }),
        ("reboots before the loader is disarmed", |r, o, p| {
            instead(decide(r, o, p), &Action::RollBack, Action::Reboot)
        }),
        ("commits an unhealthy system", |r, o, p| {
            let mut seen = o.clone();
            if seen.health != Health::Unknown {
                seen.health = Health::Passed;
            }
            decide(r, &seen, p)
        }),
        ("takes exhausted tries for a lost setting", |r, o, p| {
            instead(
                decide(r, o, p),
                &Action::Record(Step::RollingBack(RollbackReason::DidNotBoot)),
                Action::Record(Step::RollingBack(RollbackReason::SettingsLost)),
            )
        }),
        ("takes an interrupted preparation for a finished one", |r, o, p| {
            instead(
                decide(r, o, p),
                &Action::Record(Step::NextAttempt),
                Action::Record(Step::Prepared(Transfer::default())),
            )
        }),
        ("arms again what was armed already", |r, o, p| match &r.state {
            State::Activating { deployment } if deployment.target != o.booted => {
                Decision { action: Action::Activate, reason: "mistake" }
            }
            _ => decide(r, o, p),
        }),
    ]
}

#[test]
fn the_model_catches_seeded_mistakes() {
    for (name, mistake) in mistakes_of_order().into_iter().chain(mistakes_of_judgement()) {
        assert!(search(&mistake, 2, false).is_err(), "the model did not catch: {name}");
    }
}
