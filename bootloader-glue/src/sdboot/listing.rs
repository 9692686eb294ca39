//! What the names in the directory of the entries say together.

use bascule_core::{BootStatus, Group};

use super::names::{EntryName, Kind, Mark, Owner, owner};
use super::plan::Step;

/// One file of ours.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Found {
    /// Its name as it stands in the directory.
    pub(super) file: String,
    /// What the loader makes of it; `None` for an entry of neither group.
    pub(super) read: Option<EntryName>,
    /// We would never have written this name.
    pub(super) is_odd: bool,
}

impl Found {
    pub(super) fn is_of(&self, group: Group) -> bool {
        self.read.is_some_and(|read| read.group == group)
    }
}

/// The directory's names.
#[derive(Debug, Clone)]
pub(super) struct Listing {
    kind: Kind,
    ours: Vec<Found>,
    /// Every name, foreign ones included: what no new name may be.
    taken: Vec<String>,
}

impl Listing {
    pub(super) fn of(names: Vec<String>, kind: Kind) -> Self {
        let taken = names.clone();
        let found = |file: String| match owner(&file, kind) {
            Owner::Foreign => None,
            Owner::Ours(read) => Some(Found { file, read: Some(read), is_odd: false }),
            Owner::Odd(read) => Some(Found { file, read, is_odd: true }),
        };
        let mut ours: Vec<Found> = names.into_iter().filter_map(found).collect();
        ours.sort_by_key(|found| (std::cmp::Reverse(found.read.map(rank)), found.file.clone()));
        Listing { kind, ours, taken }
    }

    /// Every file of ours, the one that the loader prefers first.
    pub(super) fn ours(&self) -> &[Found] {
        &self.ours
    }

    pub(super) fn kind(&self) -> Kind {
        self.kind
    }

    /// What is wrong with the names, if anything: then they have to be rebuilt.
    pub(super) fn damage(&self) -> Option<String> {
        if let Some(odd) = self.ours.iter().find(|found| found.is_odd) {
            return Some(format!("{} is no name of ours", odd.file));
        }
        Group::ALL.into_iter().find_map(|group| match self.listed().filter(|found| found.is_of(group)).count() {
            0 if self.off(group).is_none() => Some(format!("there is no entry of group {group}")),
            0 | 1 => None,
            _ => Some(format!("there are two entries of group {group}")),
        })
    }

    /// The group that the loader tries first, if it lists any.
    pub(super) fn primary(&self) -> Option<Group> {
        self.listed().find_map(|found| found.read).map(|read| read.group)
    }

    pub(super) fn status(&self, group: Group) -> BootStatus {
        self.entry(group).and_then(|found| found.read).map_or(BootStatus::Unbootable, |read| read.status())
    }

    /// The group's entry: the one the loader prefers, or the one an activation would bring back.
    pub(super) fn entry(&self, group: Group) -> Option<&Found> {
        self.listed().find(|found| found.is_of(group)).or_else(|| self.off(group))
    }

    /// The group's file of the highest generation that the loader does not list.
    pub(super) fn off(&self, group: Group) -> Option<&Found> {
        self.ours.iter().find(|found| found.is_of(group) && !is_listed(found))
    }

    /// Files of ours that the loader lists, the one it prefers first.
    pub(super) fn listed(&self) -> impl Iterator<Item = &Found> {
        self.ours.iter().filter(|found| is_listed(found))
    }

    /// The name, or where it is taken one of a higher generation than all that there are.
    pub(super) fn free(&self, name: EntryName) -> EntryName {
        if !self.is_taken(&name.file_name(self.kind)) {
            return name;
        }
        let highest = self.ours.iter().filter_map(|found| found.read).map(|read| read.generation).max();
        EntryName { generation: highest.unwrap_or_default().saturating_add(1), ..name }
    }

    /// A name that the loader does not list, for a file of neither group.
    pub(super) fn free_for_odd(&self) -> String {
        let numbered = (0..=self.taken.len()).map(|number| format!("bascule-odd-{number}.off"));
        numbered.into_iter().find(|name| !self.is_taken(name)).unwrap_or_default()
    }

    /// The listing after a step.
    pub(super) fn after(&self, step: &Step) -> Self {
        let (gone, new) = match step {
            Step::Rename { from, to } => (Some(from), to),
            Step::Create { to, .. } => (None, to),
        };
        let kept = self.taken.iter().filter(|name| Some(*name) != gone).cloned();
        Self::of(kept.chain([new.clone()]).collect(), self.kind)
    }

    fn is_taken(&self, name: &str) -> bool {
        self.taken.iter().any(|taken| taken.eq_ignore_ascii_case(name))
    }
}

fn is_listed(found: &Found) -> bool {
    found.read.is_none_or(|read| read.is_listed())
}

/// The loader's order, the highest first: exhausted ones last, then the higher generation. Names of one generation are
/// ordered by what follows it: `b` before `a`, counted before uncounted.
fn rank(read: EntryName) -> (bool, u32, bool, bool) {
    (!read.is_exhausted(), read.generation, read.group == Group::B, matches!(read.mark, Mark::Counted { .. }))
}
