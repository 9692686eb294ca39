//! What one execution came to.

use std::time::Duration;

use nix::time::{ClockId, clock_gettime};

/// An execution without a finding.
#[derive(Debug, Clone, Copy)]
pub(super) struct Outcome {
    /// Whether the input was taken.
    pub(super) taken: bool,
    /// Bytes of output.
    pub(super) bytes: usize,
    /// How long the agent's code took.
    pub(super) took: Duration,
}

/// Something that must not be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding(String);

impl Finding {
    pub(super) fn new(what: &str, more: &str) -> Self {
        Finding(format!("{what}: {more}").trim_end_matches([':', ' ']).to_owned())
    }
}

impl std::fmt::Display for Finding {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

/// How long any input may take, and how much longer for each MiB of output.
const MOST: Duration = Duration::from_millis(50);
const MOST_PER_MIB: Duration = Duration::from_millis(250);
/// A slow execution is only a finding when it is slow every time: pages come from the disk, and go.
const REPEATS: usize = 5;

/// How long this thread has worked so far. Time in which others had the processor does not count.
fn worked() -> Duration {
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).map_or(Duration::ZERO, Duration::from)
}

/// Runs `work`, which makes `bytes` bytes, and holds its time against the limit.
pub(super) fn timed<T>(bytes: usize, mut work: impl FnMut() -> T) -> Result<(T, Duration), Finding> {
    let limit = MOST.saturating_add(MOST_PER_MIB.mul_f64(bytes as f64 / f64::from(1 << 20)));
    let mut least = Duration::MAX;
    for _ in 0..REPEATS {
        let started = worked();
        let result = work();
        least = least.min(worked().saturating_sub(started));
        if least <= limit {
            return Ok((result, least));
        }
    }
    Err(Finding::new("slow", &format!("{least:?} for {bytes} bytes")))
}
