//! A pace: no more bytes per second than the policy allows, however fast the line or the disk is.

use std::time::{Duration, Instant};

/// What was not used of an idle second is not saved up for longer than this.
const BURST: Duration = Duration::from_millis(250);

/// Says how long to wait after each piece.
#[derive(Debug)]
pub(crate) struct Pace {
    per_second: u64,
    /// When the bytes taken so far are paid for.
    paid_until: Option<Instant>,
}

impl Pace {
    /// This many bytes per second; `None`: as fast as it goes.
    pub(crate) fn new(per_second: Option<u64>) -> Option<Self> {
        per_second.filter(|bytes| *bytes > 0).map(|per_second| Pace { per_second, paid_until: None })
    }

    /// How long to wait at `now`, after `bytes` more have come.
    pub(crate) fn wait(&mut self, bytes: u64, now: Instant) -> Duration {
        let cost = Duration::from_secs_f64(bytes as f64 / self.per_second as f64);
        let since = self.paid_until.unwrap_or(now).max(now.checked_sub(BURST).unwrap_or(now));
        let until = since + cost;
        self.paid_until = Some(until);
        until.saturating_duration_since(now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_of_any_size_come_at_the_pace_and_a_pause_is_not_made_up_for() {
        let begun = Instant::now();
        let mut now = begun;
        let mut pace = Pace::new(Some(1000)).unwrap();
        for piece in [1, 499, 2500] {
            now += pace.wait(piece, now);
        }
        assert_eq!((now - begun).as_millis(), 3000);
        now += Duration::from_secs(3600);
        let wait = pace.wait(1000, now);
        assert!((Duration::from_millis(750)..=Duration::from_secs(1)).contains(&wait), "{wait:?}");
        assert!(Pace::new(None).is_none());
    }
}
