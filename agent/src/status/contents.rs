//! Which version a group holds, as far as the record can tell.

use bascule_core::{Ending, Group, HistoryEntry, State};

use crate::shared::Snapshot;

/// The version in `group`; `None` where nobody knows or its slots are half written.
pub(super) fn version_in(group: Group, snapshot: &Snapshot) -> Option<String> {
    if group == snapshot.booted {
        return Some(snapshot.release.version.clone());
    }
    match &snapshot.record.state {
        State::Preparing { .. } => None,
        state => match state.deployment() {
            Some(deployment) if deployment.target == group => Some(deployment.version.clone()),
            Some(deployment) => Some(deployment.from_version.clone()),
            None => snapshot.record.history.iter().rev().find_map(|entry| left_in(group, entry)).flatten(),
        },
    }
}

/// What one line of history left in `group`: nothing said about it, or a version, or something unknown.
#[expect(clippy::option_option, reason = "the outer one says whether the line is about this group")]
fn left_in(group: Group, entry: &HistoryEntry) -> Option<Option<String>> {
    let deployment = &entry.deployment;
    match (&entry.ending, deployment.target == group) {
        (Ending::Committed | Ending::RolledBack { .. } | Ending::Stranded { .. }, true) => {
            Some(Some(deployment.version.clone()))
        }
        (Ending::Committed | Ending::RolledBack { .. } | Ending::Stranded { .. }, false) => {
            Some(Some(deployment.from_version.clone()))
        }
        (_, true) => Some(None),
        (_, false) => None,
    }
}
