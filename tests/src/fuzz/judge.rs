//! What one execution came to.

use std::time::{Duration, Instant};

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
/// A slow execution is only a finding when it is slow every time: the machine does other things as well.
const REPEATS: usize = 5;

/// Runs `work`, which makes `bytes` bytes, and holds its time against the limit.
pub(super) fn timed<T>(bytes: usize, mut work: impl FnMut() -> T) -> Result<(T, Duration), Finding> {
    let limit = MOST.saturating_add(MOST_PER_MIB.mul_f64(bytes as f64 / f64::from(1 << 20)));
    let mut least = Duration::MAX;
    for _ in 0..REPEATS {
        let started = Instant::now();
        let result = work();
        least = least.min(started.elapsed());
        if least <= limit {
            return Ok((result, least));
        }
    }
    Err(Finding::new("slow", &format!("{least:?} for {bytes} bytes")))
}
