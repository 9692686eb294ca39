//! What the names in the directory of the entries say together.

use std::collections::BTreeMap;

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
    /// What is wrong with its contents: the loader does not list it, whatever its name says.
    pub(super) fault: Option<String>,
}

impl Found {
    pub(super) fn is_of(&self, group: Group) -> bool {
        self.read.is_some_and(|read| read.group == group)
    }

    /// What is wrong with its contents.
    fn in_words(&self) -> Option<String> {
        self.fault.as_ref().map(|fault| format!("{} {fault}", self.file))
    }
}

/// What is wrong with the contents of files, by name: nothing where there is none.
pub(super) type Faults = BTreeMap<String, String>;

/// The directory's names.
#[derive(Debug, Clone)]
pub(super) struct Listing {
    kind: Kind,
    faults: Faults,
    /// The groups of which a whole copy is kept.
    kept: Vec<Group>,
    ours: Vec<Found>,
    /// Every name, foreign ones included: what no new name may be.
    taken: Vec<String>,
}

impl Listing {
    pub(super) fn of(names: Vec<String>, faults: Faults, kept: Vec<Group>, kind: Kind) -> Self {
        let taken = names.clone();
        let found = |file: String| {
            let (read, is_odd) = match owner(&file, kind) {
                Owner::Foreign => return None,
                Owner::Ours(read) => (Some(read), false),
                Owner::Odd(read) => (read, true),
            };
            let fault = faults.get(&file).cloned();
            Some(Found { file, read, is_odd, fault })
        };
        let mut ours: Vec<Found> = names.into_iter().filter_map(found).collect();
        ours.sort_by_key(|found| (std::cmp::Reverse(found.read.map(rank)), found.file.clone()));
        Listing { kind, faults, kept, ours, taken }
    }

    /// Every file of ours, the one that the loader prefers first.
    pub(super) fn ours(&self) -> &[Found] {
        &self.ours
    }

    pub(super) fn kind(&self) -> Kind {
        self.kind
    }

    /// Whether a whole copy of the group's entry is kept.
    pub(super) fn is_kept(&self, group: Group) -> bool {
        self.kept.contains(&group)
    }

    /// What is wrong with the names or with what they name, if anything: then they have to be rebuilt.
    ///
    /// A group that the loader does not list needs a whole file only for its next activation: a file of no use is damage
    /// there only when a copy is kept.
    pub(super) fn damage(&self) -> Option<String> {
        let lacks_text = self.ours.iter().find(|found| !is_listed(found) && self.lacks_only_its_text(found));
        self.damage_listed().or_else(|| lacks_text.and_then(Found::in_words))
    }

    /// As [`damage`](Self::damage), without what is wrong with the contents of files that the loader does not list.
    pub(super) fn damage_listed(&self) -> Option<String> {
        if let Some(odd) = self.ours.iter().find(|found| found.is_odd) {
            return Some(format!("{} is no name of ours", odd.file));
        }
        if let Some(useless) = self.listed().find_map(Found::in_words) {
            return Some(useless);
        }
        Group::ALL.into_iter().find_map(|group| match self.listed().filter(|found| found.is_of(group)).count() {
            0 if self.off(group).is_none() => Some(format!("there is no entry of group {group}")),
            0 | 1 => None,
            _ => Some(format!("there are two entries of group {group}")),
        })
    }

    /// Whether nothing whole is there of its group, and a whole copy is kept.
    fn lacks_only_its_text(&self, found: &Found) -> bool {
        let group = found.read.map(|read| read.group);
        group.is_some_and(|group| self.is_kept(group) && self.whole(group).is_none())
    }

    /// The group that the loader tries first, if it lists any. Of the booted one the name is enough: it was tried.
    pub(super) fn primary(&self, booted: Group) -> Option<Group> {
        let mut seen = self.listed().filter(|found| found.fault.is_none() || found.is_of(booted));
        seen.find_map(|found| found.read).map(|read| read.group)
    }

    /// What the loader may do with the group, by the name of its entry, whatever that holds.
    pub(super) fn status(&self, group: Group) -> BootStatus {
        self.entry(group).and_then(|found| found.read).map_or(BootStatus::Unbootable, |read| read.status())
    }

    /// What the loader can do with the group: nothing where its entry holds nothing.
    pub(super) fn status_held(&self, group: Group) -> BootStatus {
        match self.entry(group) {
            Some(Found { fault: Some(_), .. }) => BootStatus::Unbootable,
            _ => self.status(group),
        }
    }

    /// The group's entry: the one the loader prefers, or the one an activation would bring back.
    pub(super) fn entry(&self, group: Group) -> Option<&Found> {
        self.listed().find(|found| found.is_of(group)).or_else(|| self.off(group))
    }

    /// The group's entry that is whole: the one the loader prefers, or the one an activation would bring back.
    pub(super) fn whole(&self, group: Group) -> Option<&Found> {
        let whole = |found: &&Found| found.is_of(group) && found.fault.is_none();
        self.listed().find(whole).or_else(|| self.ours.iter().find(whole))
    }

    /// The group's file of the highest generation that the loader does not list; one that is whole before all others.
    pub(super) fn off(&self, group: Group) -> Option<&Found> {
        let off = || self.ours.iter().filter(move |found| found.is_of(group) && !is_listed(found));
        off().find(|found| found.fault.is_none()).or_else(|| off().next())
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
        let names = self.taken.iter().filter(|name| Some(*name) != gone).cloned();
        let mut faults = self.faults.clone();
        if let Some(fault) = gone.and_then(|gone| faults.remove(gone)) {
            faults.insert(new.clone(), fault);
        }
        Self::of(names.chain([new.clone()]).collect(), faults, self.kept.clone(), self.kind)
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
