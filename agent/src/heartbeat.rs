//! Shows that the loop goes round: the service manager's watchdog is fed only while it does.

use std::sync::Mutex;
use std::time::{Duration, Instant};

/// The pulse of the loop.
#[derive(Debug)]
pub struct Heartbeat {
    longest_turn: Duration,
    working_since: Mutex<Option<Instant>>,
}

impl Heartbeat {
    /// A loop none of whose turns takes longer than this, an unresponsive server, disk or hook included.
    #[must_use]
    pub fn new(longest_turn: Duration) -> Self {
        Heartbeat { longest_turn, working_since: Mutex::new(None) }
    }

    /// A turn begins.
    pub fn working(&self) {
        self.set(Some(Instant::now()));
    }

    /// The loop waits: it may wait for ever.
    pub fn waiting(&self) {
        self.set(None);
    }

    /// Whether the loop is alive.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        let since = self.working_since.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        since.is_none_or(|since| since.elapsed() < self.longest_turn)
    }

    fn set(&self, since: Option<Instant>) {
        *self.working_since.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = since;
    }
}
