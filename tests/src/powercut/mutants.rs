//! The test of the test: the recorded log with one sync left out, or with two durable steps exchanged.
//!
//! A sync that the agent repeats before anything new was written is left out with its repetitions: they are the same
//! promise, given twice.

use std::collections::HashSet;

use anyhow::Result;

use super::cycle::Recording;
use super::disk::Disk;
use super::oracle::Judge;
use super::states;
use super::trace::Effect;
use super::{FALLBACK, GRUBENV, SLOTS};

/// One mistake.
#[derive(Debug, Clone)]
pub struct Mutant {
    /// What was done wrong, for messages.
    pub what: String,
    /// The part of the disk it concerns.
    pub part: String,
    /// The log with the mistake in it.
    log: Vec<Effect>,
    /// Where it begins to differ.
    from: usize,
}

/// What came of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// A state was found that must not be.
    FoundOut(String),
    /// Every state was judged well.
    Survived,
}

/// Every mistake of both kinds that changes anything.
pub(super) fn all(recording: &Recording) -> Result<Vec<Mutant>> {
    let mut mutants = without_a_sync(recording)?;
    mutants.extend(exchanged(&recording.log));
    Ok(mutants)
}

/// A sync with nothing to sync can be left out without a trace, so those are passed over.
fn without_a_sync(recording: &Recording) -> Result<Vec<Mutant>> {
    let mut disk = Disk::new(&recording.start)?;
    let mut mutants = Vec::new();
    for (id, effect) in recording.log.iter().enumerate() {
        if let Effect::Sync(path) = effect
            && disk.unsynced(path) > 0
        {
            let log = without(&recording.log, id, path);
            let what = format!("without {id} {}, before {}", states::name(effect), upcoming(&recording.log, id));
            mutants.push(Mutant { what, part: path.clone(), log, from: id.saturating_sub(1) });
        }
        disk.apply(id, effect)?;
    }
    Ok(mutants)
}

/// Leaves out a sync, and those that repeat it before anything new was there to sync.
fn without(log: &[Effect], id: usize, path: &str) -> Vec<Effect> {
    let again = log.iter().skip(id + 1).take_while(|effect| !touches(effect, path)).count();
    let (head, rest) = log.split_at(id);
    let (repeated, tail) = rest.split_at(again + 1);
    let kept = repeated.iter().filter(|effect| **effect != Effect::Sync(path.to_owned()));
    head.iter().chain(kept).chain(tail).cloned().collect()
}

/// Whether there is something new to sync in a file or directory after an effect.
fn touches(effect: &Effect, path: &str) -> bool {
    let inside = |name: &str| name.rsplit_once('/').is_some_and(|(directory, _)| directory == path);
    match effect {
        Effect::Write(name, ..) | Effect::Zero(name, ..) | Effect::Truncate(name, _) => name == path,
        Effect::Create(name) | Effect::Unlink(name) => name == path || inside(name),
        Effect::Rename(from, to) => from == path || to == path || inside(from),
        Effect::Restart(_) => true,
        Effect::Sync(_) | Effect::Recorded(_) | Effect::Asked(_) | Effect::Loader(_) => false,
    }
}

fn exchanged(log: &[Effect]) -> Vec<Mutant> {
    let steps = steps(log);
    let pairs = steps.iter().zip(steps.iter().skip(1));
    let changes = |step: &Step| {
        log.get(step.from..step.to).unwrap_or_default().iter().any(|effect| !matches!(effect, Effect::Sync(_)))
    };
    let moves = |step: &Step| step.part != Part::Fixed && changes(step);
    let movable = pairs.filter(|(first, second)| moves(first) && moves(second));
    movable
        .map(|(first, second)| {
            let (head, rest) = log.split_at(first.from);
            let (one, rest) = rest.split_at(second.from - first.from);
            let (two, tail) = rest.split_at(second.to - second.from);
            let log = [head, two, one, tail].concat();
            let what = format!("{} before {}", second.name(), first.name());
            let part = format!("{:?} and {:?}", first.part, second.part);
            Mutant { what, part, log, from: first.from }
        })
        .collect()
}

/// The generation that comes next, to tell one sync of a file from the next one.
fn upcoming(log: &[Effect], id: usize) -> String {
    let next = log.iter().skip(id).find_map(|effect| match effect {
        Effect::Recorded(generation) => Some(format!("record {generation}")),
        Effect::Restart(group) => Some(format!("the restart into {group}")),
        _ => None,
    });
    next.unwrap_or_else(|| "the end".into())
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    Slot,
    Settings,
    Fallback,
    Record,
    Metadata,
    Fixed,
}

/// One durable step: everything from the first write to the last sync of one thing.
struct Step {
    part: Part,
    from: usize,
    to: usize,
    generation: Option<u64>,
}

impl Step {
    fn name(&self) -> String {
        match self.generation {
            Some(generation) => format!("record {generation}"),
            None => format!("{:?} ({}..{})", self.part, self.from, self.to),
        }
    }
}

fn steps(log: &[Effect]) -> Vec<Step> {
    let mut steps: Vec<Step> = Vec::new();
    for (id, effect) in log.iter().enumerate() {
        let part = part(effect, steps.last().map(|step| step.part));
        let ended =
            steps.last().is_none_or(|step| step.part != part || part == Part::Fixed || step.generation.is_some());
        if ended {
            steps.push(Step { part, from: id, to: id, generation: None });
        }
        if let Some(step) = steps.last_mut() {
            step.to = id + 1;
            if let Effect::Recorded(generation) = effect {
                step.generation = Some(*generation);
            }
        }
    }
    steps
}

fn part(effect: &Effect, before: Option<Part>) -> Part {
    let path = match effect {
        Effect::Loader(_) | Effect::Restart(_) | Effect::Asked(_) => return Part::Fixed,
        Effect::Recorded(_) => return Part::Record,
        Effect::Rename(_, path)
        | Effect::Create(path)
        | Effect::Truncate(path, _)
        | Effect::Write(path, ..)
        | Effect::Zero(path, ..)
        | Effect::Unlink(path)
        | Effect::Sync(path) => path,
    };
    match path.as_str() {
        GRUBENV => Part::Settings,
        FALLBACK => Part::Fallback,
        path if path.starts_with(SLOTS) => Part::Slot,
        path if path.contains("trusted-metadata") => Part::Metadata,
        path if path.contains("/record.") => Part::Record,
        // The sync of the directory belongs to what was renamed in it.
        path if path.ends_with("data/bascule") => before.unwrap_or(Part::Fixed),
        _ => Part::Fixed,
    }
}

/// Judges by looking at every new state first, which is quick, then by recovering from each.
pub(super) fn judge(
    judge: &mut Judge<'_>,
    recording: &Recording,
    mutant: &Mutant,
    passed: &HashSet<[u8; 32]>,
) -> Result<Verdict> {
    if let Some(disorder) = disorder(&mutant.log) {
        return Ok(Verdict::FoundOut(disorder));
    }
    let mut states = states::enumerate(&recording.start, recording.booted, &mutant.log, mutant.from)?;
    states.retain(|state| !passed.contains(&state.key));
    for state in &states {
        if let Err(error) = judge.look(state) {
            return Ok(Verdict::FoundOut(format!("{}: {error:#}", state.story)));
        }
    }
    for state in &states {
        if let Err(error) = judge.recover(state) {
            return Ok(Verdict::FoundOut(format!("{}: {error:#}", state.story)));
        }
    }
    Ok(Verdict::Survived)
}

/// Generations of the record are called durable in ascending order.
fn disorder(log: &[Effect]) -> Option<String> {
    let said: Vec<u64> =
        log.iter().filter_map(|effect| if let Effect::Recorded(said) = effect { Some(*said) } else { None }).collect();
    let (earlier, later) = said.iter().zip(said.iter().skip(1)).find(|(earlier, later)| later <= earlier)?;
    Some(format!("generation {later} was called durable after {earlier}"))
}
