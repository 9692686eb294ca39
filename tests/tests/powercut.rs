//! Cuts the power at every step of the agent's cycles, in every way the cut can fall, and lets the agent go on.
#![allow(clippy::unwrap_used, reason = "a rig that fails ends the test")]

use std::time::Instant;

use bascule_tests::powercut::{Begin, Recording, Scenario, Verdict, cut_everywhere, cut_twice, try_mutants};
use bascule_tests::rehearsal::Temper;

/// Of the states after one cut, each so-many-th is cut once more.
const STRIDE: usize = 8;

fn every_cut_is_survived_and_every_mistake_found_out(scenario: Scenario) {
    let began = Instant::now();
    let recording = Recording::make(scenario).unwrap();
    let report = cut_everywhere(&recording).unwrap();
    println!(
        "{}: {} effects, {} states, {} failures, {:.1} s",
        scenario.name,
        report.effects,
        report.states,
        report.failures.len(),
        began.elapsed().as_secs_f32()
    );
    assert!(report.failures.is_empty(), "{}", report.failures.join("\n"));
    let (states, failures) = cut_twice(&recording, &report, STRIDE).unwrap();
    println!("{}: cut twice: {states} states, {} failures", scenario.name, failures.len());
    assert!(failures.is_empty(), "{}", failures.join("\n"));
    assert!(report.states >= 80 && states >= 200, "the rig has lost states");
    let mut survivors = Vec::new();
    let mutants = try_mutants(&recording, &report).unwrap();
    assert!(mutants.len() >= 20, "the rig has lost mistakes: {}", mutants.len());
    let harmless = harmless_swap(&scenario, mutants.iter().map(|(mutant, _)| mutant.what.as_str()));
    for (mutant, verdict) in mutants {
        println!("{}: {}: {verdict:?}", scenario.name, mutant.what);
        if verdict == Verdict::Survived && !harmless.as_ref().is_some_and(|end| mutant.what.ends_with(end)) {
            survivors.push(mutant.what);
        }
    }
    println!("{}: {:.1} s in all", scenario.name, began.elapsed().as_secs_f32());
    assert!(survivors.is_empty(), "not found out: {survivors:#?}");
}

/// That the target came up is recorded for those who come after a trial that never ended. A good system commits right
/// behind it, and whether the loader heard of the commit before or after that record makes no difference to anyone. Behind
/// the commit comes one more record: that the hooks of the end have run.
fn harmless_swap<'m>(scenario: &Scenario, mutants: impl Iterator<Item = &'m str>) -> Option<String> {
    let generation = |what: &str| what.rsplit_once("record ")?.1.parse::<u64>().ok();
    let hooks_ran = mutants.filter_map(generation).max()?;
    (scenario.temper == Temper::Good).then(|| format!(" before record {}", hooks_ran - 2))
}

#[test]
fn the_first_update_survives_every_cut() {
    let scenario = Scenario { name: "first update", begin: Begin::Factory, temper: Temper::Good };
    every_cut_is_survived_and_every_mistake_found_out(scenario);
}

#[test]
fn an_update_by_delta_survives_every_cut() {
    let scenario = Scenario { name: "delta", begin: Begin::Delta, temper: Temper::Good };
    every_cut_is_survived_and_every_mistake_found_out(scenario);
}

#[test]
fn the_second_update_survives_every_cut() {
    let scenario = Scenario { name: "second update", begin: Begin::SecondUpdate, temper: Temper::Good };
    every_cut_is_survived_and_every_mistake_found_out(scenario);
}

#[test]
fn the_rollback_of_an_unhealthy_system_survives_every_cut() {
    let scenario = Scenario { name: "unhealthy", begin: Begin::Factory, temper: Temper::Unhealthy };
    every_cut_is_survived_and_every_mistake_found_out(scenario);
}

#[test]
fn the_fallback_from_a_system_that_does_not_boot_survives_every_cut() {
    let scenario = Scenario { name: "does not boot", begin: Begin::Factory, temper: Temper::Panics };
    every_cut_is_survived_and_every_mistake_found_out(scenario);
}

#[test]
fn the_deadline_of_a_system_whose_agent_hangs_survives_every_cut() {
    let scenario = Scenario { name: "hangs", begin: Begin::Factory, temper: Temper::Hangs };
    every_cut_is_survived_and_every_mistake_found_out(scenario);
}
