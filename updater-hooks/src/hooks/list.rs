//! Every point with its hooks, for a person who wants to see what would run.

use std::path::{Path, PathBuf};

use serde::Serialize;

use super::{HookPoint, find};
use crate::programs::Program;

/// One point and what would run there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ListedPoint {
    /// The point.
    pub point: HookPoint,
    /// The hooks below the first root in the order they run in, then those below the next.
    pub hooks: Vec<ListedHook>,
    /// Roots whose folders of this point cannot be listed, each with the reason.
    pub faults: Vec<String>,
}

/// One hook, as it would be run now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ListedHook {
    /// Its file name, harmless to print.
    pub hook: String,
    /// The root it was found below.
    pub root: PathBuf,
    /// Where it was found below that root.
    pub path: PathBuf,
    /// The file that would be run, every symbolic link resolved; `null` when it cannot be run.
    pub runs: Option<PathBuf>,
    /// Why it cannot be run; at its point it would fail with this reason.
    pub fault: Option<String>,
}

/// Lists the hooks of all points below these roots: `/`, and where a prepared slot is mounted.
///
/// A folder that cannot be listed is a fault of its point and does not keep the others from being shown.
#[must_use]
pub fn list(roots: &[&Path]) -> Vec<ListedPoint> {
    HookPoint::ALL.into_iter().map(|point| list_point(point, roots)).collect()
}

fn list_point(point: HookPoint, roots: &[&Path]) -> ListedPoint {
    let mut listed = ListedPoint { point, hooks: Vec::new(), faults: Vec::new() };
    for root in roots {
        match find(point, root) {
            Ok(programs) => listed.hooks.extend(programs.into_iter().map(|program| shown(root, program))),
            Err(error) => {
                let cause = std::error::Error::source(&error).map(|cause| format!(": {cause}")).unwrap_or_default();
                listed.faults.push(format!("below {}: {error}{cause}", root.display()));
            }
        }
    }
    listed
}

fn shown(root: &Path, program: Program) -> ListedHook {
    let (runs, fault) = match program.run {
        Ok(path) => (Some(path), None),
        Err(fault) => (None, Some(fault)),
    };
    ListedHook { hook: program.name, root: root.to_owned(), path: program.found, runs, fault }
}
