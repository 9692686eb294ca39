//! Asks systemd about one unit: is it active, and has it stayed so?

use std::path::Path;
use std::sync::atomic::AtomicBool;

use crate::output::neutralise;
use crate::runner::{self, Command, Limits, Outcome};

/// How long a unit's name may be (`UNIT_NAME_MAX` of systemd).
const NAME_LIMIT: usize = 255;

/// What one look at a unit showed.
pub(super) struct Seen {
    pub(super) passed: bool,
    pub(super) reason: String,
    pub(super) restarts: Option<u64>,
    pub(super) outcome: Outcome,
}

/// Asks once. `restarts_before` is how often systemd had restarted the unit at the look before: a service that crashes
/// and is started again is active at most looks, and not healthy at any.
pub(super) fn look_at(
    name: &str,
    systemctl: &Path,
    limits: &Limits,
    restarts_before: Option<u64>,
    cancel: &AtomicBool,
) -> Seen {
    if !is_unit_name(name) {
        let outcome = Outcome::not_started(format!("{} is not the name of a unit", neutralise(name)));
        return Seen { passed: false, reason: outcome.reason(), restarts: None, outcome };
    }
    let properties = "--property=LoadState,ActiveState,SubState,NRestarts";
    let command = Command::new(systemctl).arg("show").arg(properties).arg("--").arg(name);
    let outcome = runner::run(&command, limits, cancel);
    if !outcome.succeeded() {
        return Seen { passed: false, reason: outcome.reason(), restarts: None, outcome };
    }
    let property = |key: &str| outcome.output_tail.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('='));
    let restarts = property("NRestarts").and_then(|count| count.trim().parse().ok());
    let state = property("ActiveState").unwrap_or("unknown");
    let (passed, reason) = match (state, restarts_before, restarts) {
        ("active", Some(before), Some(now)) if now > before => {
            (false, format!("it was restarted {} times since the round before", now - before))
        }
        ("active", _, _) => (true, "it is active".to_owned()),
        (state, _, _) => {
            let load = property("LoadState").unwrap_or("unknown");
            let sub = property("SubState").unwrap_or("unknown");
            (false, format!("it is {state} ({sub}), its unit file {load}"))
        }
    };
    Seen { passed, reason, restarts, outcome }
}

fn is_unit_name(name: &str) -> bool {
    (1..=NAME_LIMIT).contains(&name.len())
        && !name.starts_with(['-', '.'])
        && name.contains('.')
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b":_.@\\-".contains(&byte))
}
