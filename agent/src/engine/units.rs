//! Units that must not interfere while slots are written: stopped for it, and always started again.
//!
//! Nothing is remembered: whoever finds no preparation on its way starts them, also after a crash or a reboot.

use std::sync::atomic::AtomicBool;
use std::time::Duration;

use bascule_hooks::runner::{self, Command, Limits};

const DEADLINE: Duration = Duration::from_secs(90);

/// Stops `units`; a unit that does not stop is logged, and the update goes on.
pub(super) fn stop(units: &[String]) {
    systemctl("stop", units);
}

/// Starts `units` without waiting for them.
pub(super) fn start(units: &[String]) {
    systemctl("start", units);
}

fn systemctl(verb: &'static str, units: &[String]) {
    if units.is_empty() {
        return;
    }
    // Stopping must have happened before the first write; starting may take as long as it takes.
    let command = Command::new("systemctl").arg(verb);
    let command = if verb == "start" { command.arg("--no-block") } else { command };
    let command = units.iter().fold(command, |command, unit| command.arg(unit));
    let outcome = runner::run(&command, &Limits::within(DEADLINE), &AtomicBool::new(false));
    if outcome.succeeded() {
        tracing::info!(verb, units = units.join(" "), "units");
    } else {
        tracing::warn!(verb, units = units.join(" "), outcome = outcome.reason(), "units");
    }
}
