//! Starting the system again, harder each time: orderly, then forced, then at once.

use std::fs;
use std::sync::atomic::AtomicBool;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use bascule_hooks::runner::{self, Command, Limits};
use nix::sys::reboot::RebootMode;

use crate::paths::Paths;

/// How long an orderly reboot may take before it is forced.
const ORDERLY: Duration = Duration::from_secs(120);
/// How long each harder way may take before the next one.
const FORCED: Duration = Duration::from_secs(15);

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
    // A disk that hangs must not keep the device from going back: what matters was synced when it was written.
    try_for(FORCED, nix::unistd::sync);
    try_for(FORCED, || {
        let _ = nix::sys::reboot::reboot(RebootMode::RB_AUTOBOOT);
    });
    // The last way: the kernel's own trigger, without anything in between.
    let _ = fs::write(paths.sysrq_trigger(), "b");
}

/// Does something that may never return, and waits no longer than this for it.
fn try_for(limit: Duration, what: impl FnOnce() + Send + 'static) {
    let (ended, end) = mpsc::channel();
    let spawned = thread::Builder::new().spawn(move || {
        what();
        let _ = ended.send(());
    });
    if spawned.is_ok() {
        let _ = end.recv_timeout(limit);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_never_returns_is_not_waited_for() {
        let started = std::time::Instant::now();
        try_for(Duration::from_millis(50), || thread::sleep(Duration::from_secs(3600)));
        assert!(started.elapsed() < Duration::from_secs(60));
    }
}
