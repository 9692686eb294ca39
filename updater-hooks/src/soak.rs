//! When to run the health checks, and when the verdict falls. Pure: the caller brings the time.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::error::HooksError;

/// The most passes in a row that can be asked for.
pub const PASSES_LIMIT: u32 = 1000;

/// How long a system in probation is looked at, and how often. All times count from the start of probation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct HealthPolicy {
    /// How long to wait before the first round.
    pub settle: Duration,
    /// From the end of one round to the start of the next.
    pub interval: Duration,
    /// When the system has failed unless it has passed before.
    pub deadline: Duration,
    /// How many rounds in a row must pass.
    pub passes: u32,
}

impl Default for HealthPolicy {
    /// Settle 60 s, every 60 s, at most 15 min, 3 passes.
    fn default() -> Self {
        HealthPolicy {
            settle: Duration::from_secs(60),
            interval: Duration::from_secs(60),
            deadline: Duration::from_secs(15 * 60),
            passes: 3,
        }
    }
}

impl HealthPolicy {
    /// Says whether a system that passes every round at once could pass at all.
    ///
    /// # Errors
    /// [`HooksError::HealthPolicy`] with the number that makes it impossible.
    pub fn validate(&self) -> Result<(), HooksError> {
        let fault = |reason: String| Err(HooksError::HealthPolicy { reason });
        if self.passes == 0 || self.passes > PASSES_LIMIT {
            return fault(format!("passes is {}: it is 1 to {PASSES_LIMIT}", self.passes));
        }
        let earliest = self.settle.saturating_add(self.interval.saturating_mul(self.passes - 1));
        if earliest >= self.deadline {
            return fault(format!(
                "{} passes cannot come before {} s, and the deadline is {} s",
                self.passes,
                earliest.as_secs(),
                self.deadline.as_secs()
            ));
        }
        Ok(())
    }
}

/// What one round of health checks came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Round {
    /// Every check that counts passed.
    Pass,
    /// A check that counts failed.
    Fail,
    /// A check that counts did not end within its deadline: it has failed.
    Hang,
}

/// The end of probation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// Enough passes in a row, before the deadline.
    Passed,
    /// The deadline came first.
    Failed,
}

/// What to do now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Nothing for this long; then ask again.
    Wait(Duration),
    /// Run all checks and [`Soak::record`] what they came to.
    RunNow,
    /// Probation is over.
    Verdict(Verdict),
}

/// Probation as seen from the health checks.
///
/// Nothing of it is stored: an agent that is restarted in probation starts counting passes again, against the same
/// deadline. That can only make the verdict stricter.
#[derive(Debug, Clone)]
pub struct Soak {
    policy: HealthPolicy,
    passes_in_a_row: u32,
    next_round: Duration,
    verdict: Option<Verdict>,
}

impl Soak {
    /// Begins, with no round run yet.
    ///
    /// # Errors
    /// [`HooksError::HealthPolicy`] when no system could pass.
    pub fn new(policy: HealthPolicy) -> Result<Self, HooksError> {
        policy.validate()?;
        Ok(Soak { policy, passes_in_a_row: 0, next_round: policy.settle, verdict: None })
    }

    /// What to do at `now`, counted from the start of probation.
    #[must_use]
    pub fn next(&self, now: Duration) -> Step {
        if let Some(verdict) = self.verdict {
            return Step::Verdict(verdict);
        }
        if now >= self.policy.deadline {
            return Step::Verdict(Verdict::Failed);
        }
        let wake = self.next_round.min(self.policy.deadline);
        match wake.checked_sub(now) {
            Some(wait) if !wait.is_zero() => Step::Wait(wait),
            _ => Step::RunNow,
        }
    }

    /// Takes what a round came to that ended at `at`. A round that ends at the deadline or later no longer counts, and
    /// nothing changes a verdict that has fallen.
    pub fn record(&mut self, at: Duration, round: Round) {
        if self.verdict.is_some() {
            return;
        }
        if at >= self.policy.deadline {
            self.verdict = Some(Verdict::Failed);
            return;
        }
        self.next_round = at.saturating_add(self.policy.interval);
        self.passes_in_a_row = match round {
            Round::Pass => self.passes_in_a_row.saturating_add(1),
            Round::Fail | Round::Hang => 0,
        };
        if self.passes_in_a_row >= self.policy.passes {
            self.verdict = Some(Verdict::Passed);
        }
    }

    /// How many rounds in a row have passed so far.
    #[must_use]
    pub fn passes_in_a_row(&self) -> u32 {
        self.passes_in_a_row
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How long a round of each kind takes, in seconds.
    fn seconds(round: char) -> u64 {
        match round {
            'p' => 1,
            'f' => 2,
            _ => 30,
        }
    }

    fn round(letter: char) -> Round {
        match letter {
            'p' => Round::Pass,
            'f' => Round::Fail,
            _ => Round::Hang,
        }
    }

    /// Every word of `length` letters over p, f, h.
    fn words(length: usize) -> Vec<String> {
        (0..length).fold(vec![String::new()], |words, _| {
            words.iter().flat_map(|word| ['p', 'f', 'h'].map(|letter| format!("{word}{letter}"))).collect()
        })
    }

    /// Drives a soak in virtual time: the verdict, when it fell, and how many rounds were run. Rounds beyond the
    /// pattern fail.
    fn drive(policy: HealthPolicy, pattern: &str) -> (Verdict, u64, usize) {
        let mut soak = Soak::new(policy).expect("a policy that can be met");
        let (mut now, mut run) = (Duration::ZERO, 0);
        loop {
            match soak.next(now) {
                Step::Wait(wait) => {
                    assert!(!wait.is_zero());
                    now += wait;
                }
                Step::RunNow => {
                    let letter = pattern.chars().nth(run).unwrap_or('f');
                    run += 1;
                    now += Duration::from_secs(seconds(letter));
                    soak.record(now, round(letter));
                }
                Step::Verdict(verdict) => return (verdict, now.as_secs(), run),
            }
        }
    }

    /// The same by arithmetic on the whole pattern: where in the text does the first run of p's end, and is that early
    /// enough?
    fn oracle(policy: HealthPolicy, pattern: &str) -> (Verdict, u64, usize) {
        let rounds: Vec<char> = pattern.chars().chain(std::iter::repeat_n('f', 150)).collect();
        let (settle, interval) = (policy.settle.as_secs(), policy.interval.as_secs());
        let end = |index: usize| {
            settle + rounds.iter().take(index + 1).map(|letter| seconds(*letter) + interval).sum::<u64>() - interval
        };
        let deadline = policy.deadline.as_secs();
        let run_of_passes = "p".repeat(policy.passes as usize);
        if let Some(at) = pattern.find(&run_of_passes) {
            let last = at + run_of_passes.len() - 1;
            if end(last) < deadline {
                return (Verdict::Passed, end(last), last + 1);
            }
        }
        let started = (0..).take_while(|index| end(*index) - seconds(rounds[*index]) < deadline).count();
        (Verdict::Failed, deadline.max(end(started - 1)), started)
    }

    #[test]
    fn every_pattern_of_passes_failures_and_hangs_gets_the_verdict_of_the_oracle() {
        let mut verdicts = [0_u32; 2];
        for (passes, deadline) in [(1, 40), (2, 40), (3, 90), (3, 200), (4, 900)] {
            let policy = HealthPolicy {
                settle: Duration::from_secs(10),
                interval: Duration::from_secs(7),
                deadline: Duration::from_secs(deadline),
                passes,
            };
            for pattern in (0..=8).flat_map(words) {
                let got = drive(policy, &pattern);
                assert_eq!(got, oracle(policy, &pattern), "{pattern:?} with {policy:?}");
                verdicts[usize::from(got.0 == Verdict::Passed)] += 1;
            }
        }
        assert!(verdicts.iter().all(|count| *count > 1000), "one verdict was hardly seen: {verdicts:?}");
    }

    #[test]
    fn a_pass_that_comes_at_the_deadline_comes_too_late() {
        let policy = HealthPolicy {
            settle: Duration::from_secs(1),
            interval: Duration::from_secs(1),
            deadline: Duration::from_secs(10),
            passes: 1,
        };
        let mut soak = Soak::new(policy).expect("a policy that can be met");
        soak.record(Duration::from_secs(10), Round::Pass);
        assert_eq!(soak.next(Duration::from_secs(10)), Step::Verdict(Verdict::Failed));
    }

    #[test]
    fn a_verdict_never_changes() {
        let policy = HealthPolicy { passes: 1, ..HealthPolicy::default() };
        let mut soak = Soak::new(policy).expect("a policy that can be met");
        soak.record(Duration::from_secs(61), Round::Pass);
        soak.record(Duration::from_secs(1000), Round::Hang);
        assert_eq!(soak.next(Duration::from_secs(2000)), Step::Verdict(Verdict::Passed));
    }

    #[test]
    fn a_policy_that_no_system_can_meet_is_refused() {
        let policy = HealthPolicy::default();
        for wrong in [
            HealthPolicy { passes: 0, ..policy },
            HealthPolicy { passes: PASSES_LIMIT + 1, ..policy },
            HealthPolicy { settle: policy.deadline, passes: 1, ..policy },
            HealthPolicy { passes: 15, ..policy },
            HealthPolicy { interval: Duration::MAX, passes: 3, ..policy },
        ] {
            assert!(wrong.validate().is_err(), "{wrong:?} was taken");
        }
        assert!(HealthPolicy { passes: 14, ..policy }.validate().is_ok());
    }
}
