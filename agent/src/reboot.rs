//! Starting the system again, harder each time: orderly, then forced, then at once.

use std::fs;
use std::sync::atomic::AtomicBool;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use bascule_hooks::runner::{self, Command, Limits, Outcome};
use nix::sys::reboot::RebootMode;

use crate::paths::Paths;

/// How long an orderly reboot may take before it is forced.
const ORDERLY: Duration = Duration::from_secs(120);
/// How long each harder way may take before the next one.
const FORCED: Duration = Duration::from_secs(15);

/// Reboots; returns only where the root is not a real device, in which case somebody else starts it again.
///
/// The argument is for the loader. systemd keeps it in a file of its own until its last process hands it to the kernel; the
/// file is not written here, because `systemctl reboot` without an argument takes it away (until systemd 252 at least).
pub fn reboot(paths: &Paths, reason: &str, argument: Option<&str>) {
    tracing::warn!(reason, argument, "rebooting");
    if !paths.is_real() {
        return;
    }
    let outcome = systemctl(&[], argument, Duration::from_secs(30));
    if outcome.succeeded() {
        thread::sleep(ORDERLY);
    }
    tracing::error!(outcome = outcome.reason(), "the orderly reboot did not happen: forcing it");
    // A disk that hangs must not keep the device from going back: what matters was synced when it was written.
    try_for(FORCED, nix::unistd::sync);
    if argument.is_some() {
        // The call below carries none.
        systemctl(&["--force", "--force"], argument, FORCED);
    }
    try_for(FORCED, || {
        let _ = nix::sys::reboot::reboot(RebootMode::RB_AUTOBOOT);
    });
    // The last way: the kernel's own trigger, without anything in between.
    let _ = fs::write(paths.sysrq_trigger(), "b");
}

/// Asks systemd for a reboot.
fn systemctl(force: &[&str], argument: Option<&str>, limit: Duration) -> Outcome {
    let arguments = arguments(force, argument);
    let command = arguments.into_iter().fold(Command::new("systemctl"), Command::arg);
    runner::run(&command, &Limits::within(limit), &AtomicBool::new(false))
}

fn arguments(force: &[&str], argument: Option<&str>) -> Vec<String> {
    let with_argument = argument.map(|argument| format!("--reboot-argument={argument}"));
    ["reboot"].iter().chain(force).map(|word| (*word).to_owned()).chain(with_argument).collect()
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
    fn an_argument_for_the_loader_is_one_word_to_systemctl_and_without_one_nothing_is_said() {
        assert_eq!(arguments(&[], None), ["reboot"]);
        assert_eq!(arguments(&[], Some("0 tryboot")), ["reboot", "--reboot-argument=0 tryboot"]);
        let forced = arguments(&["--force", "--force"], Some("0 tryboot"));
        assert_eq!(forced, ["reboot", "--force", "--force", "--reboot-argument=0 tryboot"]);
    }

    #[test]
    fn what_never_returns_is_not_waited_for() {
        let started = std::time::Instant::now();
        try_for(Duration::from_millis(50), || thread::sleep(Duration::from_secs(3600)));
        assert!(started.elapsed() < Duration::from_secs(60));
    }
}
