//! Starting the system again, harder each time: orderly, then forced, then at once.

use std::fs;
use std::sync::atomic::AtomicBool;
use std::thread;
use std::time::Duration;

use bascule_hooks::runner::{self, Command, Limits};
use nix::sys::reboot::RebootMode;

use crate::paths::Paths;

/// How long an orderly reboot may take before it is forced.
const ORDERLY: Duration = Duration::from_secs(120);

/// Reboots; returns only where the root is not a real device, in which case somebody else starts it again.
pub fn reboot(paths: &Paths, reason: &str) {
    tracing::warn!(reason, "rebooting");
    if !paths.is_real() {
        return;
    }
    let orderly = Command::new("systemctl").arg("reboot");
    let outcome = runner::run(&orderly, &Limits::within(Duration::from_secs(30)), &AtomicBool::new(false));
    if outcome.succeeded() {
        thread::sleep(ORDERLY);
    }
    tracing::error!(outcome = outcome.reason(), "the orderly reboot did not happen: forcing it");
    nix::unistd::sync();
    let _ = nix::sys::reboot::reboot(RebootMode::RB_AUTOBOOT);
    // The last way: the kernel's own trigger, without anything in between.
    let _ = fs::write(paths.sysrq_trigger(), "b");
}
