//! Shows that the loop goes round: the service manager's watchdog is fed only while it does.

use std::sync::Mutex;
use std::time::{Duration, Instant};

/// The longest one turn may take, an unresponsive server or disk included, before the loop counts as stuck.
const LONGEST_TURN: Duration = Duration::from_secs(300);

/// The pulse of the loop.
#[derive(Debug, Default)]
pub struct Heartbeat {
    working_since: Mutex<Option<Instant>>,
}

impl Heartbeat {
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
        since.is_none_or(|since| since.elapsed() < LONGEST_TURN)
    }

    fn set(&self, since: Option<Instant>) {
        *self.working_since.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = since;
    }
}
