//! What `boot-complete.target` waits for: the commit.
//!
//! systemd reaches that target when a boot counts as good, and `systemd-bless-boot.service`, which Debian has in the package
//! systemd-boot, then takes the counter out of the entry's name: that is a commit. Without anything before the target it is
//! reached at once, and a system would be good before a single health check ran. `bascule-boot-complete.service` is
//! required by the target, and ends when the agent has committed the booted group; so the target means what it says, for
//! whatever else waits for it too.

use std::thread;
use std::time::Duration;

use crate::config::Config;
use crate::device::{DeviceError, Parts};
use crate::paths::Paths;
use crate::watchdogs::is_good;

/// How often the verdict is looked for.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Waits until the booted group is good; without end in a system that never is.
///
/// # Errors
/// [`DeviceError`] when the booted group cannot be told: then nothing is complete.
pub fn wait(paths: &Paths, config: &Config) -> Result<(), DeviceError> {
    let parts = Parts::find(paths, config)?;
    let group = parts.layout.booted.group().letter();
    if !is_good(&parts.loader, parts.layout.booted) {
        tracing::info!(group, "the booted group is not committed: boot-complete.target waits");
    }
    while !is_good(&parts.loader, parts.layout.booted) {
        thread::sleep(LOOK_EVERY);
    }
    tracing::info!(group, "the booted group is good: the boot is complete");
    Ok(())
}
