//! The power-cut rig: what the real agent did to the disk, cut after every step, in every way a cut can fall.
//!
//! ```text
//! Recording::make   the real agent under strace, one whole cycle         -> log of effects (trace)
//!                   self-check: the log replayed gives the disk          (disk: a volatile cache)
//! enumerate         after every effect, what may be lost, kept or torn   -> states, each once (states)
//! Judge             per state: what would the loader start, does the record tell the truth, and where does recovery by
//!                   the real agent end                                    (oracle)
//! mutants           the same without one sync, or with two durable steps exchanged: each must be found out
//! ```

mod cycle;
mod disk;
mod mutants;
mod oracle;
mod states;
mod trace;

use std::collections::HashSet;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::{Context, Result};

pub use cycle::{Begin, Recording, Scenario};
pub use mutants::{Mutant, Verdict};
pub use trace::Effect;

use oracle::Judge;
use states::State;

/// The directories of the device that lie on its disk.
const DIRECTORIES: [&str; 3] = ["boot/efi/bascule", "data/bascule", SLOTS];
const SLOTS: &str = "dev";
/// The stories of deployments, which nothing reads that decides.
const TOLD: &str = "data/bascule/deployments";
const GRUBENV: &str = "boot/efi/bascule/grubenv";
const FALLBACK: &str = "boot/efi/bascule/fallback";

/// What came of cutting one cycle everywhere.
#[derive(Debug)]
pub struct Report {
    /// Effects in the cycle.
    pub effects: usize,
    /// States that a cut can leave.
    pub states: usize,
    /// What went wrong, one line for each state that did.
    pub failures: Vec<String>,
    judged: Vec<State>,
    passed: HashSet<[u8; 32]>,
}

/// Cuts the power everywhere in a recorded cycle and judges every state that is left: as it is, and with the loader's
/// settings lost on top.
///
/// # Errors
/// When the rig itself fails.
pub fn cut_everywhere(recording: &Recording) -> Result<Report> {
    let states = states::enumerate(&recording.start, recording.booted, &recording.log, 0)?;
    let verdicts = for_each(recording, &states, |judge, state| {
        let verdict = judge.look(state).and_then(|()| judge.recover(state));
        verdict.and_then(|()| judge.recover_without_settings(state).context("with the settings lost"))
    })?;
    let (mut failures, mut passed) = (Vec::new(), HashSet::new());
    for (state, verdict) in states.iter().zip(verdicts) {
        match verdict {
            Ok(()) => drop(passed.insert(state.key)),
            Err(error) => failures.push(format!("{}: {error:#}", state.story)),
        }
    }
    Ok(Report { effects: recording.log.len(), states: states.len(), failures, judged: states, passed })
}

/// Takes every `stride`th state of a report, lets the agent go on from it, and cuts that everywhere once more. Returns
/// how many states there were, and what went wrong.
///
/// # Errors
/// When the rig itself fails.
pub fn cut_twice(recording: &Recording, report: &Report, stride: usize) -> Result<(usize, Vec<String>)> {
    let chosen: Vec<&State> = report.judged.iter().step_by(stride).collect();
    let legs = for_each(recording, &chosen, |judge, first| -> Result<(usize, Vec<String>)> {
        let leg = judge.leg(first)?;
        let states = states::enumerate(&leg.start, leg.booted, &leg.log, 0)?;
        let judged = states.iter().filter_map(|state| {
            let error = judge.look(state).and_then(|()| judge.recover(state)).err()?;
            Some(format!("{}, then {}: {error:#}", first.story, state.story))
        });
        Ok((states.len(), judged.collect()))
    })?;
    let (mut states, mut failures) = (0, Vec::new());
    for leg in legs {
        let (more, failed) = leg?;
        states += more;
        failures.extend(failed);
    }
    Ok((states, failures))
}

/// Takes away each sync that has something to sync, and exchanges each two neighbouring durable steps, one at a time.
///
/// # Errors
/// When the rig itself fails.
pub fn try_mutants(recording: &Recording, report: &Report) -> Result<Vec<(Mutant, Verdict)>> {
    let mutants = mutants::all(recording)?;
    let verdicts =
        for_each(recording, &mutants, |judge, mutant| mutants::judge(judge, recording, mutant, &report.passed))?;
    mutants.into_iter().zip(verdicts).map(|(mutant, verdict)| Ok((mutant, verdict?))).collect()
}

/// Does something for each item on all cores, each with a judge of its own. The results are in order.
fn for_each<T: Sync, R: Send>(
    recording: &Recording,
    items: &[T],
    act: impl Fn(&mut Judge<'_>, &T) -> R + Sync,
) -> Result<Vec<R>> {
    let next = AtomicUsize::new(0);
    let results: Mutex<Vec<(usize, R)>> = Mutex::new(Vec::with_capacity(items.len()));
    let work = || -> Result<()> {
        let mut judge = Judge::new(recording)?;
        while let Some((at, item)) =
            Some(next.fetch_add(1, Ordering::Relaxed)).and_then(|at| Some((at, items.get(at)?)))
        {
            let result = act(&mut judge, item);
            if let Ok(mut results) = results.lock() {
                results.push((at, result));
            }
        }
        Ok(())
    };
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..cores).map(|_| scope.spawn(work)).collect();
        workers.into_iter().try_for_each(|worker| worker.join().unwrap_or_else(|_| anyhow::bail!("a worker stopped")))
    })?;
    let mut results = results.into_inner().ok().context("a worker stopped")?;
    results.sort_by_key(|(at, _)| *at);
    anyhow::ensure!(results.len() == items.len(), "an item was left out");
    Ok(results.into_iter().map(|(_, result)| result).collect())
}
