//! Every way a new system or its loader's settings can fail, on one real loader in QEMU: `cargo xtask matrix`.
//!
//! A [`Scenario`](scenarios::Scenario) is played on a device of its own, or goes on where the one before it left a device
//! that is up and good. It ends with a system that is held against the table of expectations: group, version, what the
//! history and `bascule explain` say, and whether the loader's settings are whole again.

mod copying;
mod cuts;
mod end;
mod kept;
mod partition;
mod scenarios;
mod settings;
mod write_log;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::time::Instant;

use anyhow::{Result, ensure};
use bascule_image::disk::Loader;

use crate::{Images, factory};
use kept::Kept;
use scenarios::{SCENARIOS, Scenario};

/// What a scenario came to.
#[derive(Debug, Clone)]
struct Outcome {
    scenario: &'static str,
    /// What was seen, or why it failed.
    seen: String,
    starts: u32,
    seconds: u64,
    is_good: bool,
}

/// Plays the scenarios of these names, all when there is none, and prints what was seen; whether all ended as they have to.
///
/// # Errors
/// When images are missing, or no scenario has such a name. A scenario that goes wrong is no error.
pub fn play(loader: Loader, names: &[&str]) -> Result<bool> {
    for name in names {
        let known: Vec<&str> = SCENARIOS.iter().map(|scenario| scenario.name).collect();
        ensure!(known.contains(name), "no scenario {name:?}: there are {}", known.join(", "));
    }
    let chosen = SCENARIOS.iter().filter(|scenario| names.is_empty() || names.contains(&scenario.name));
    let mut kept = Kept::new(loader)?;
    let mut outcomes = Vec::new();
    for scenario in chosen.filter(|scenario| (scenario.is_on)(loader)) {
        let outcome = one(&mut kept, scenario);
        println!("{}", line(loader, &outcome));
        outcomes.push(outcome);
    }
    println!("\nOn {}:\n", factory::name(loader));
    outcomes.iter().for_each(|outcome| println!("{}", line(loader, outcome)));
    let images = Images::load()?;
    keep(&images.directory, loader, &outcomes)?;
    println!("\n{}", table(&images.directory));
    Ok(outcomes.iter().all(|outcome| outcome.is_good))
}

/// The files of a disk's boot partition, by their paths; its machine is off.
pub(crate) fn boot_files(disk: &Path) -> Result<BTreeMap<String, Vec<u8>>> {
    partition::files(&partition::open(disk)?)
}

fn one(kept: &mut Kept, scenario: &Scenario) -> Outcome {
    kept.stage.timeline.heading(&format!("{}: {}", scenario.name, scenario.about));
    let begun = Instant::now();
    let played = (scenario.play)(kept).and_then(|seen| {
        let end = (scenario.end)(kept.loader);
        let starts = kept.starts();
        end.check(&mut kept.stage, starts).map(|words| if seen.is_empty() { words } else { format!("{words}; {seen}") })
    });
    let starts = kept.starts();
    if let Err(error) = &played {
        // The next scenario begins with a device that is known to be good.
        kept.is_resting = false;
        kept.stage.timeline.say("matrix", &format!("FAILED: {error:#}"), "");
    }
    let is_good = played.is_ok();
    let seen = played.unwrap_or_else(|error| format!("{error:#}").lines().next().unwrap_or_default().to_owned());
    Outcome { scenario: scenario.name, seen, starts, seconds: begun.elapsed().as_secs(), is_good }
}

fn line(loader: Loader, outcome: &Outcome) -> String {
    let Outcome { scenario, seen, starts, seconds, is_good } = outcome;
    let verdict = if *is_good { "ok" } else { "FAILED" };
    let loader = factory::name(loader);
    format!("matrix: {loader:<12} {scenario:<16} {starts} starts {seconds:>4} s  {verdict:<6} {seen}")
}

/// Keeps the outcomes beside those of the other loaders, so that one table can be made of all.
fn keep(directory: &Path, loader: Loader, outcomes: &[Outcome]) -> Result<()> {
    let path = directory.join(format!("matrix-{}.txt", factory::name(loader)));
    let old = fs::read_to_string(&path).unwrap_or_default();
    let replaced = |line: &&str| outcomes.iter().all(|outcome| !line.starts_with(&format!("{}\t", outcome.scenario)));
    let mut text = String::new();
    for line in old.lines().filter(replaced) {
        writeln!(text, "{line}")?;
    }
    for outcome in outcomes {
        let verdict = if outcome.is_good { "" } else { "**failed**: " };
        writeln!(text, "{}\t{verdict}{}\t{}", outcome.scenario, outcome.seen, outcome.starts)?;
    }
    Ok(fs::write(path, text)?)
}

/// One row for each scenario and what was seen, with the loaders on which it was, from what was kept.
fn table(directory: &Path) -> String {
    let kept = factory::LOADERS.map(|(name, loader)| {
        (name, loader, fs::read_to_string(directory.join(format!("matrix-{name}.txt"))).unwrap_or_default())
    });
    let mut table =
        String::from("| scenario | what is done | loader | starts | what was seen |\n|---|---|---|---|---|\n");
    for scenario in &SCENARIOS {
        let mut rows: Vec<(&str, Vec<&str>)> = Vec::new();
        for (name, _, lines) in kept.iter().filter(|(_, loader, _)| (scenario.is_on)(*loader)) {
            let found = lines.lines().find_map(|line| line.strip_prefix(&format!("{}\t", scenario.name)));
            match (found, rows.iter_mut().find(|(seen, _)| Some(*seen) == found)) {
                (_, Some((_, loaders))) => loaders.push(*name),
                (Some(seen), None) => rows.push((seen, vec![*name])),
                (None, None) => {}
            }
        }
        for (seen, loaders) in rows {
            let (seen, starts) = seen.rsplit_once('\t').unwrap_or((seen, ""));
            let (name, about, seen) = (scenario.name, scenario.about, seen.replace('|', "\\|"));
            let _ = writeln!(table, "| {name} | {about} | {} | {starts} | {seen} |", loaders.join(", "));
        }
    }
    table
}
