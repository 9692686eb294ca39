//! Probation, every pattern of passes, failures and hangs of up to twelve rounds, against a second reading of the rule.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, reason = "a test")]

use std::time::Duration;

use bascule_hooks::{HealthPolicy, Round, Soak, Step, Verdict};

/// How many rounds the longest pattern has.
const ROUNDS: u32 = 12;
/// `health.check_timeout`: how long a round takes in which a check hangs, in seconds of virtual time.
const CHECK_TIMEOUT: u64 = 30;

/// A round and how long it takes, in seconds.
const LETTERS: [(Round, u64); 3] = [(Round::Pass, 1), (Round::Fail, 2), (Round::Hang, CHECK_TIMEOUT)];

/// Verdict, the second it fell in, and how many rounds were run.
type Came = (Verdict, u64, usize);

fn seconds(count: u64) -> Duration {
    Duration::from_secs(count)
}

/// What happens in this round; after the pattern's end everything fails.
fn letter(pattern: &[usize], index: usize) -> (Round, u64) {
    LETTERS[pattern.get(index).copied().unwrap_or(1)]
}

/// The real thing, in virtual time.
fn drive(policy: HealthPolicy, pattern: &[usize]) -> Came {
    let mut soak = Soak::new(policy).expect("a policy that can be met");
    let (mut now, mut run) = (Duration::ZERO, 0);
    loop {
        match soak.next(now) {
            Step::Wait(wait) => now += wait,
            Step::RunNow => {
                let (round, takes) = letter(pattern, run);
                now += seconds(takes);
                run += 1;
                soak.record(now, round);
            }
            Step::Verdict(verdict) => return (verdict, now.as_secs(), run),
        }
    }
}

/// The documented rule, read anew: "N passes in a row inside the deadline; the first round after `settle`, each next one
/// `interval` after the end of the one before; a round that ends at the deadline or later does not count". It writes the
/// whole timetable down first, and then looks for the earliest row of passes in it, with no state from round to round.
fn oracle(policy: HealthPolicy, pattern: &[usize]) -> Came {
    let deadline = policy.deadline.as_secs();
    let mut timetable: Vec<(u64, bool)> = Vec::new();
    let mut start = policy.settle.as_secs();
    while start < deadline {
        let (round, takes) = letter(pattern, timetable.len());
        timetable.push((start + takes, round == Round::Pass));
        start += takes + policy.interval.as_secs();
    }
    let last_of_row = (policy.passes as usize..=timetable.len())
        .find(|end| timetable[end - policy.passes as usize..*end].iter().all(|(_, passed)| *passed));
    match last_of_row.map(|rounds| (rounds, timetable[rounds - 1].0)) {
        Some((rounds, end)) if end < deadline => (Verdict::Passed, end, rounds),
        // Whoever waits is told at the deadline; whoever runs a round then, at its end.
        _ => (Verdict::Failed, timetable.last().map_or(deadline, |(end, _)| deadline.max(*end)), timetable.len()),
    }
}

/// Calls `look` with each pattern of exactly this length.
fn each_pattern(length: u32, mut look: impl FnMut(&[usize])) {
    let mut pattern = vec![0; length as usize];
    for number in 0..3_usize.pow(length) {
        let mut rest = number;
        for letter in &mut pattern {
            *letter = rest % 3;
            rest /= 3;
        }
        look(&pattern);
    }
}

#[test]
fn claim_g6_every_pattern_of_twelve_rounds_gets_the_verdict_of_the_rule() {
    let policies = [(1, 60), (2, 130), (3, 120), (3, 500), (5, 300)];
    for (passes, deadline) in policies {
        let policy = HealthPolicy { settle: seconds(10), interval: seconds(7), deadline: seconds(deadline), passes };
        let (mut looked_at, mut passed) = (0, 0);
        for length in 0..=ROUNDS {
            each_pattern(length, |pattern| {
                let came = drive(policy, pattern);
                assert_eq!(came, oracle(policy, pattern), "{pattern:?} (0 pass, 1 fail, 2 hang) with {policy:?}");
                looked_at += 1;
                passed += u64::from(came.0 == Verdict::Passed);
            });
        }
        assert_eq!(looked_at, (3_u64.pow(ROUNDS + 1) - 1) / 2, "not every pattern was looked at");
        assert!(passed > 1000 && looked_at - passed > 1000, "{policy:?} says one thing only: {passed} of {looked_at}");
    }
}

#[test]
fn claim_g6_the_deadline_is_fixed_whatever_the_rounds_do() {
    let policy = HealthPolicy { settle: seconds(10), interval: seconds(7), deadline: seconds(200), passes: 4 };
    each_pattern(ROUNDS, |pattern| {
        let (_, at, _) = drive(policy, pattern);
        // A round that has begun is waited for, and takes no longer than its checks may.
        assert!(at < 200 + CHECK_TIMEOUT, "{pattern:?}: the verdict fell at {at} s");
    });
}
