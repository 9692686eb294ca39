//! Single claims, each searched to its end in the model: hooks after a crash, both groups bad, a way back that fails,
//! both watchdogs beside the daemon, and a person who goes back.

use bascule_core::*;

use crate::daemon::{Daemon, Event, Outcome};
use crate::schedules::judge;
use crate::watchdogs::{Deadline, Stage};
use crate::world::{Content, Loader, Temper, Trouble, World, index};
use crate::{offer, run, told_truly};

/// One day in seconds.
const DAY: u64 = 24 * 60 * 60;
/// What a start takes at the least, in seconds.
const START: u64 = 10;
/// What a system takes at the longest until the watchdog gives it up, in seconds.
const PROBATION: u64 = 15 * 60 + 20;

fn quiet(loader: Loader) -> World {
    World { quiet: true, ..World::new(loader, &[]) }
}

/// A world whose group `b` has just been started on trial, with a system of this temper as order 2.
fn on_trial(loader: Loader, temper: Temper) -> World {
    let mut world = quiet(loader);
    world.tempers[2] = temper;
    world.boot().unwrap();
    // Up to the reboot, then the first start of the target.
    assert!(!world.run_agent(&decide, &mut Some(offer(2))).unwrap());
    world.boot().unwrap();
    world
}

#[test]
fn claim_g3_a_hook_cut_off_by_a_crash_runs_again_for_the_same_deployment_and_counts_only_once_durable() {
    for (point, events) in [("pre-activate", vec![offer(2)]), ("pre-rollback", vec![offer(3)])] {
        let hooked = |cut: usize| World { hooks: true, ..World::new(Loader::Counting, &[cut]) };
        let mut cut_off = 0;
        for cut in 0..30 {
            let (mut world, mut pending) = (hooked(cut), Some(events[0]));
            for _ in 0..10 {
                world.boot().unwrap();
                if world.run_agent(&decide, &mut pending).unwrap() {
                    break;
                }
            }
            let runs: Vec<&String> = world.hooks_run.iter().filter(|(at, _)| *at == point).map(|(_, id)| id).collect();
            assert!(runs.windows(2).all(|two| two[0] == two[1]) && !runs.is_empty(), "cut {cut}: {runs:?}");
            let was_cut_off = world
                .trace
                .windows(2)
                .any(|two| two[0].contains(&format!("hook {point}")) && two[1].contains("power cut"));
            if was_cut_off {
                cut_off += 1;
                assert_eq!(runs.len(), 2, "{point} was cut off and did not run again: {runs:?}");
            }
        }
        assert_eq!(cut_off, 1, "no cut fell right after {point}");
    }
}

#[test]
fn claim_g12_with_both_groups_bad_the_loader_stops_at_its_recovery_menu_after_a_few_starts() {
    for loader in [Loader::Counting, Loader::OneShot] {
        for temper in [Temper::Panics, Temper::Unhealthy, Temper::Hangs, Temper::DoesNotLoad] {
            let mut world = on_first_reboot(loader, temper);
            let tries = u32::from(world.policy().tries.get());
            let before = world.boots;
            let mut clock = 0;
            let recovery = loop {
                if clock >= DAY {
                    break false;
                }
                let starts = world.boots;
                if !world.start().unwrap() {
                    break true;
                }
                clock += START * u64::from(world.boots - starts) + PROBATION;
                world.armed().unwrap();
                until_it_reboots(&mut world);
            };
            assert!(recovery, "{temper:?} on {loader:?} starts again and again: {} starts", world.boots - before);
            assert!(world.boots - before <= tries + 2, "{temper:?}: {} starts", world.boots - before);
        }
    }
}

/// Armed for a bad system in `b`, while the kernel of the good group `a` does not load any more.
fn on_first_reboot(loader: Loader, temper: Temper) -> World {
    let mut world = quiet(loader);
    world.tempers[2] = temper;
    world.boot().unwrap();
    assert!(!world.run_agent(&decide, &mut Some(offer(2))).unwrap());
    world.slots[index(Group::A)] = Content::System { order: 1, temper: Temper::DoesNotLoad };
    world
}

/// The daemon, and at the deadline the watchdog.
fn until_it_reboots(world: &mut World) {
    let mut daemon = Some(world.start_daemon());
    for _ in 0..60 {
        let Some(running) = &mut daemon else { return };
        match world.turn(&decide, running, None, None).unwrap().outcome {
            Outcome::Reboots | Outcome::Trouble(Trouble::PowerCut) => return,
            Outcome::Rests => break,
            _ => {}
        }
    }
    world.pass_deadline();
    let mut watchdog = Deadline::new(true);
    while !watchdog.is_over() {
        watchdog.step(world, &mut daemon).unwrap();
        world.armed().unwrap();
    }
}

#[test]
fn claim_g13_a_way_back_that_fails_is_tried_again_and_the_system_stays_armed() {
    for loader in [Loader::Counting, Loader::OneShot] {
        for temper in [Temper::Unhealthy, Temper::Hangs] {
            for (loader_fails, record_fails) in [(1000, 0), (0, 1000), (1000, 1000), (900, 900)] {
                let mut world = on_trial(loader, temper);
                (world.faults.loader_fails, world.faults.record_fails) = (loader_fails, record_fails);
                let mut starts = 0;
                while world.booted == Group::B {
                    assert!(starts < world.policy().tries.get() + 2, "{temper:?} is started again and again");
                    until_it_reboots(&mut world);
                    world.boot().unwrap();
                    world.armed().unwrap();
                    starts += 1;
                }
                (world.faults.loader_fails, world.faults.record_fails) = (0, 0);
                finish(&mut world, 16);
                judge(&world).unwrap();
                assert_eq!((world.booted, world.record.deny.len()), (Group::A, 1), "{temper:?}");
            }
        }
    }
}

/// From a start to rest, with rollback-altboot as far as it comes.
fn finish(world: &mut World, altboot: usize) {
    for _ in 0..10 {
        world.rollback_altboot(&decide, altboot).unwrap();
        let mut daemon = world.start_daemon();
        for _ in 0..60 {
            match world.turn(&decide, &mut daemon, None, None).unwrap().outcome {
                Outcome::Rests => return,
                Outcome::Reboots | Outcome::Trouble(Trouble::PowerCut) => break,
                _ => {}
            }
        }
        world.boot().unwrap();
    }
    panic!("it did not come to rest");
}

/// Everything that may act in the boot of a target on trial.
#[derive(Clone)]
struct Meeting {
    world: World,
    daemon: Option<Daemon>,
    watchdog: Deadline,
}

/// Every order of steps of the daemon and rollback-health up to a reboot or rest, with every single power cut.
fn every_interleaving(meeting: Meeting, cut_left: bool, ends: &mut Vec<World>) {
    if cut_left {
        let mut cut = meeting.clone();
        cut.world.cuts = vec![cut.world.writes];
        every_step(cut, false, ends);
    }
    every_step(meeting, cut_left, ends);
}

fn every_step(meeting: Meeting, cut_left: bool, ends: &mut Vec<World>) {
    if meeting.daemon.is_some() {
        let mut next = meeting.clone();
        let daemon = next.daemon.as_mut().unwrap();
        match next.world.turn(&decide, daemon, None, None).unwrap().outcome {
            Outcome::Reboots | Outcome::Trouble(Trouble::PowerCut) => ends.push(next.world),
            Outcome::Rests if next.watchdog.is_over() => ends.push(next.world),
            // It waits: only the watchdog can go on.
            Outcome::Rests => {}
            _ => every_interleaving(next, cut_left, ends),
        }
    }
    if meeting.watchdog.is_over() {
        return;
    }
    let mut next = meeting;
    let stepped = next.watchdog.step(&mut next.world, &mut next.daemon);
    next.world.armed().unwrap();
    match next.watchdog.stage {
        _ if stepped.is_err() => ends.push(next.world),
        Stage::Reboot => ends.push(next.world),
        _ => every_interleaving(next, cut_left, ends),
    }
}

/// Records of a device with a past: none, another bundle rolled back, another bundle committed.
fn pasts(loader: Loader, temper: Temper) -> Vec<World> {
    let mut worlds = vec![on_trial(loader, temper)];
    for (first, then) in [(4, 5), (2, 5)] {
        let mut world = quiet(loader);
        world.tempers[then as usize] = temper;
        world.boot().unwrap();
        for order in [first, then] {
            let mut pending = Some(offer(order));
            while pending.is_some() || world.record.state != State::Idle {
                let before = world.truth[index(world.booted)].proven;
                if !world.run_agent(&decide, &mut pending).unwrap() {
                    world.boot().unwrap();
                }
                let on_trial = !world.truth[index(world.booted)].proven && before;
                if order == then && on_trial {
                    break;
                }
            }
        }
        worlds.push(world);
    }
    worlds
}

#[test]
fn claim_g14_the_daemon_and_both_watchdogs_in_any_order_of_steps_give_one_verdict() {
    let ends = [Temper::Good, Temper::Unhealthy, Temper::Hangs].map(|temper| verdicts(temper, false).unwrap());
    assert!(ends.iter().all(|ends| *ends > 1000), "hardly anything was searched: {ends:?}");
}

#[test]
fn a_watchdog_that_goes_back_without_another_look_is_caught() {
    let told = verdicts(Temper::Good, true).unwrap_err();
    assert!(told.contains("was committed"), "{told}");
}

/// Every meeting of a system of this temper with its watchdogs, on every loader and record. Returns how many ends.
fn verdicts(temper: Temper, blind: bool) -> Result<usize, String> {
    let mut judged = 0;
    for loader in [Loader::Counting, Loader::OneShot] {
        let worlds = pasts(loader, temper).into_iter();
        for (mut world, (late, kills)) in worlds.flat_map(|world| WAYS.map(|way| (world.clone(), way))) {
            // The watchdog has its own clock: it may act before the daemon knows of the deadline.
            world.pass_deadline();
            world.deadline_passed = late;
            let deployment = world.record.state.deployment().ok_or("nothing is on its way")?.clone();
            let denied_before = world.record.deny.len();
            let (daemon, mut ends) = (Some(world.start_daemon()), Vec::new());
            let watchdog = Deadline::new(kills).blindly(blind);
            every_interleaving(Meeting { world, daemon, watchdog }, true, &mut ends);
            for (end, altboot) in ends.iter().flat_map(|end| [0, 1, 2, 16].map(|altboot| (end, altboot))) {
                let mut world = end.clone();
                world.cuts.clear();
                world.boot()?;
                finish(&mut world, altboot);
                judge(&world)?;
                one_verdict(&world, &deployment, denied_before);
                judged += 1;
            }
        }
    }
    Ok(judged)
}

/// Whether the daemon knows of the deadline, and whether it can be killed.
const WAYS: [(bool, bool); 4] = [(false, true), (false, false), (true, true), (true, false)];

fn one_verdict(world: &World, deployment: &Deployment, denied_before: usize) {
    let of: Vec<&HistoryEntry> =
        world.record.history.iter().filter(|entry| entry.deployment.id == deployment.id).collect();
    let denied = world.record.deny.len() - denied_before;
    let committed = matches!(of.as_slice(), [HistoryEntry { ending: Ending::Committed, .. }]);
    let rolled_back = matches!(of.as_slice(), [HistoryEntry { ending: Ending::RolledBack { .. }, .. }]);
    assert!(committed && denied == 0 || rolled_back && denied == 1, "{of:?}, {denied} denied");
    assert_eq!(committed, world.booted == deployment.target);
}

#[test]
fn claim_g16_a_person_goes_back_after_a_commit_once_and_it_is_reported() {
    let events = [offer(2), Event::RollBack, Event::RollBack];
    for loader in [Loader::Counting, Loader::OneShot] {
        for torn in [false, true] {
            let writes =
                run(&decide, &events, World::new(loader, &[])).unwrap_or_else(|broken| panic!("{}", broken.what));
            for cut in 0..writes {
                let mut world = World { torn_settings: torn, quiet: true, ..World::new(loader, &[cut]) };
                let mut refused = 0;
                for event in events {
                    let mut pending = Some(event);
                    loop {
                        world.boot().unwrap();
                        let before = world.record.history.len();
                        if world.run_agent(&decide, &mut pending).unwrap() {
                            refused += usize::from(world.record.history.len() == before);
                            break;
                        }
                    }
                }
                let endings: Vec<&Ending> = world.record.history.iter().map(|entry| &entry.ending).collect();
                told_truly(&world).unwrap();
                // A cut in the one try of a one-shot loader, or lost settings, end the update before anybody can go back.
                if let [Ending::Committed, ..] = endings.as_slice() {
                    // Settings lost on the way back leave no way back, and that is said as well.
                    let reason = RollbackReason::Operator;
                    let stranded = torn && endings[1..] == [&Ending::Stranded { reason: reason.clone() }];
                    let back = endings[1..] == [&Ending::RolledBack { reason }];
                    assert!(stranded || back, "cut {cut}, torn {torn}, {loader:?}: {endings:?}");
                    assert_eq!(world.order_in(world.booted), Some(if stranded { 2 } else { 1 }));
                    assert_eq!(world.record.installed.is_some(), stranded);
                    assert!(refused >= 1, "the second one was not refused");
                }
            }
        }
    }
}

#[test]
fn claim_k4_every_refusal_and_every_verdict_has_a_code_a_message_and_a_next_step_of_its_own() {
    let refusals = [
        Refusal::Busy,
        Refusal::InProbation,
        Refusal::GivenUp,
        Refusal::NothingPrepared,
        Refusal::AlreadyGood,
        Refusal::NothingToRollBackTo,
        Refusal::NothingToCancel,
        Refusal::NewerState,
    ];
    let reasons = [
        RollbackReason::Unhealthy { detail: "x".into() },
        RollbackReason::Deadline,
        RollbackReason::DidNotBoot,
        RollbackReason::NotProven,
        RollbackReason::LoaderSkippedTarget,
        RollbackReason::SettingsLost,
        RollbackReason::GaveUpUnrecorded,
        RollbackReason::Operator,
        RollbackReason::Cancelled,
        RollbackReason::Unknown,
    ];
    let codes: std::collections::BTreeSet<&str> = refusals.iter().map(|refusal| refusal.code()).collect();
    let messages: std::collections::BTreeSet<String> = refusals.iter().map(ToString::to_string).collect();
    let verdicts: std::collections::BTreeSet<String> = reasons.iter().map(RollbackReason::explain).collect();
    assert_eq!((codes.len(), messages.len(), verdicts.len()), (refusals.len(), refusals.len(), reasons.len()));
    assert!(refusals.iter().all(|refusal| !refusal.hint().is_empty()));
}
