//! Wall-clock time, in one place. Deadlines never use it: they count from the start of the boot.

use std::time::SystemTime;

use jiff::Timestamp;

/// A lower bound of the time: this agent did not exist before. A device without a battery-backed clock starts in 1970.
/// Seconds since 1970; raised with each release.
const BUILT: i64 = 1_790_000_000;

/// Now, as the system's clock says.
#[must_use]
pub fn now() -> Timestamp {
    Timestamp::try_from(SystemTime::now()).unwrap_or(Timestamp::UNIX_EPOCH)
}

/// Now, and never before this agent was built: for what expires.
#[must_use]
pub fn now_at_least_built() -> Timestamp {
    now().max(Timestamp::from_second(BUILT).unwrap_or(Timestamp::UNIX_EPOCH))
}
