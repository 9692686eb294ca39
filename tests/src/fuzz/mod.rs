//! A fuzzer for what deltas are made of: it makes valid material, damages it with knowledge of its structure, and holds what
//! the agent's code makes of it against a second reading with maps of every byte (the oracle).
//!
//! ```text
//! seed, number -> Random -> patch | table | delta file | manifest -> damage -> agent's code --+-> same verdict, same bytes,
//!                                                                    \-> oracle -------------+   in time, without a panic
//!                        -> delta of real programs ----> damage -> agent's code ----> the right chunk or none, in time
//! ```
//! Every case follows from the seed and its number alone, on however many threads, so a finding is replayed by both.

mod files;
mod judge;
mod manifests;
mod oracle;
mod pack;
mod patches;
mod random;
mod tables;
mod transforms;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use bascule_image::Patcher;

use files::Family;
pub use judge::Finding;
use judge::Outcome;
use pack::Packer;
use random::Random;
use transforms::Pair;

/// How long to fuzz, and what.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// What every case follows from.
    pub seed: u64,
    /// How long to go on.
    pub duration: Duration,
    /// Most cases.
    pub cases: u64,
    /// How many threads work.
    pub threads: usize,
}

/// What the cases of one kind came to.
#[derive(Debug, Clone, Copy, Default)]
pub struct Tally {
    /// How many there were.
    pub cases: u64,
    /// How many of them were taken.
    pub taken: u64,
    /// The longest that one took.
    pub slowest: Duration,
    /// The longest for one MiB of output, of those with at least a sixteenth of that.
    pub slowest_mib: Duration,
}

/// What came of it all.
#[derive(Debug, Default)]
pub struct Report {
    /// For each of [`KINDS`].
    pub tallies: [Tally; 5],
    /// What must not be, with the numbers of the cases.
    pub findings: Vec<(u64, Finding)>,
    /// How long it took.
    pub took: Duration,
}

/// What the tallies are of.
pub const KINDS: [&str; 5] = ["patches", "tables", "files", "manifests", "transforms"];
/// So many cases in a row are made by one thread, and share two images.
const FAMILY: u64 = 500;
/// With more findings than this, going on tells nothing.
const MOST_FINDINGS: usize = 20;

/// Fuzzes.
#[must_use]
pub fn run(options: Options, progress: &(dyn Fn(u64) + Sync)) -> Report {
    let (started, families, done) = (Instant::now(), AtomicU64::new(0), AtomicU64::new(0));
    let work = || {
        let mut report = Report::default();
        while started.elapsed() < options.duration && report.findings.len() < MOST_FINDINGS {
            let first = families.fetch_add(1, Ordering::Relaxed).saturating_mul(FAMILY);
            if first >= options.cases {
                break;
            }
            let numbers = first..options.cases.min(first.saturating_add(FAMILY));
            let count = numbers.end.saturating_sub(first);
            run_family(options.seed, numbers, &mut report);
            progress(done.fetch_add(count, Ordering::Relaxed).saturating_add(count));
        }
        report
    };
    let mut whole = thread::scope(|scope| {
        let workers: Vec<_> = (0..options.threads.max(1)).map(|_| scope.spawn(work)).collect();
        let mut whole = Report::default();
        for worker in workers {
            match worker.join() {
                Ok(report) => whole.add(report),
                Err(_) => whole.findings.push((u64::MAX, Finding::new("the fuzzer itself panicked", ""))),
            }
        }
        whole
    });
    whole.findings.sort_by_key(|(number, _)| *number);
    whole.took = started.elapsed();
    whole
}

/// Runs one case again.
///
/// # Errors
/// Its finding.
pub fn replay(seed: u64, number: u64) -> Result<(), Finding> {
    let mut report = Report::default();
    run_family(seed, number..number.saturating_add(1), &mut report);
    report.findings.into_iter().next().map_or(Ok(()), |(_, finding)| Err(finding))
}

fn run_family(seed: u64, numbers: std::ops::Range<u64>, report: &mut Report) {
    let family = Family::new(&mut Random::new(!seed, numbers.start / FAMILY));
    let family = match family {
        Ok(family) => family,
        Err(finding) => return report.findings.push((numbers.start, finding)),
    };
    let pair = match Pair::new(&mut Random::new(seed, numbers.start / FAMILY)) {
        Ok(pair) => pair,
        Err(finding) => return report.findings.push((numbers.start, finding)),
    };
    let mut tools = Tools { patcher: Patcher::default(), packer: Packer::new() };
    for number in numbers {
        let mut random = Random::new(seed, number);
        let kind = match random.below(20) {
            0..9 => 0,
            9..16 => 1,
            16..18 => 2,
            18 => 3,
            _ => 4,
        };
        let case = AssertUnwindSafe(|| run_case(kind, (&family, &pair), &mut tools, &mut random));
        match catch_unwind(case).unwrap_or_else(|_| Err(Finding::new("panicked", ""))) {
            Ok(outcome) => {
                if let Some(tally) = report.tallies.get_mut(kind) {
                    tally.count(outcome);
                }
            }
            Err(finding) => report.findings.push((number, finding)),
        }
    }
}

/// What is used again from case to case.
struct Tools {
    patcher: Patcher,
    packer: Packer,
}

fn run_case(
    kind: usize,
    (family, pair): (&Family, &Pair),
    tools: &mut Tools,
    random: &mut Random,
) -> Result<Outcome, Finding> {
    match kind {
        0 => patches::run(&mut tools.patcher, &mut tools.packer, random),
        1 => tables::run(random),
        2 => files::run(family, &mut tools.packer, random),
        3 => manifests::run(random),
        _ => transforms::run(pair, random),
    }
}

impl Tally {
    fn count(&mut self, outcome: Outcome) {
        self.cases += 1;
        self.taken += u64::from(outcome.taken);
        self.slowest = self.slowest.max(outcome.took);
        if outcome.bytes >= 1 << 16 {
            self.slowest_mib = self.slowest_mib.max(outcome.took.mul_f64(f64::from(1 << 20) / outcome.bytes as f64));
        }
    }
}

impl Report {
    /// How many cases there were.
    #[must_use]
    pub fn cases(&self) -> u64 {
        self.tallies.iter().map(|tally| tally.cases).sum::<u64>() + self.findings.len() as u64
    }

    fn add(&mut self, other: Report) {
        for (sum, tally) in self.tallies.iter_mut().zip(other.tallies) {
            sum.cases += tally.cases;
            sum.taken += tally.taken;
            sum.slowest = sum.slowest.max(tally.slowest);
            sum.slowest_mib = sum.slowest_mib.max(tally.slowest_mib);
        }
        self.findings.extend(other.findings);
    }
}

impl std::fmt::Display for Report {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let seconds = self.took.as_secs_f64().max(0.001);
        writeln!(f, "{} cases in {seconds:.1} s, {:.0} per second", self.cases(), self.cases() as f64 / seconds)?;
        for (kind, tally) in KINDS.iter().zip(&self.tallies) {
            let Tally { cases, taken, slowest, slowest_mib } = tally;
            writeln!(
                f,
                "  {kind:<10} {cases:>11}, {taken:>11} taken, slowest {slowest:.1?}, {slowest_mib:.1?} per MiB"
            )?;
        }
        write!(f, "  findings   {:>11}", self.findings.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn three_seconds_of_damaged_deltas_bring_no_finding() {
        let options = Options { seed: 20_261_121, duration: Duration::from_secs(3), cases: 150_000, threads: 2 };
        let report = run(options, &|_| ());
        assert_eq!(report.findings, [], "{report}");
        for (kind, tally) in KINDS.iter().zip(report.tallies) {
            assert!(tally.taken * 50 > tally.cases, "hardly any of the {kind} is taken: {report}");
            assert!(tally.taken * 10 < tally.cases * 9, "hardly any of the {kind} is refused: {report}");
        }
    }

    #[test]
    fn a_case_is_the_same_every_time() {
        for number in [0, 499, 500, 12_345] {
            let [first, second] = [(); 2].map(|()| Random::new(1, number).bytes(100));
            assert_eq!(first, second);
            assert_eq!(replay(1, number), Ok(()));
        }
    }
}
