//! What each act has to do to the directory, worked out from its names, and from which of the files hold an entry at all.
//!
//! An act on intact names is one rename, or none when the names say already what was asked for. Only a rebuild has several
//! steps; each of them leaves a directory from which the loader starts a complete group.

use bascule_core::{BootStatus, Group, Tries};

use super::listing::{Found, Listing};
use super::names::{EntryName, HIGHEST_GENERATION, Mark};

/// One durable step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// A file gets a name that no file has.
    Rename {
        /// Its name.
        from: String,
        /// Its new name.
        to: String,
    },
    /// A lost file is made anew, from what was kept of it.
    Create {
        /// Whose entry it is.
        group: Group,
        /// Its name.
        to: String,
        /// Whether it may be empty when nothing was kept.
        may_be_empty: bool,
    },
}

/// Why an act has no plan.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Refusal {
    /// This group would have to be good.
    NotGood(Group),
    /// The names are damaged.
    Damaged(String),
}

type Plan = Result<Vec<Step>, Refusal>;

/// The booted group's entry stays, the target's leaves the loader's list.
pub(super) fn mark_unbootable(listing: &Listing, target: Group) -> Plan {
    if listing.damage().is_some() {
        return Ok(rebuild(listing, target.opposite(), Opposite::SwitchOff));
    }
    need_good(listing, target.opposite())?;
    Ok(switch_off(listing, target))
}

/// The target's entry comes back, counted and with a generation above the booted group's.
pub(super) fn activate(listing: &Listing, target: Group, tries: Tries) -> Plan {
    if let Some(damage) = listing.damage() {
        return Err(Refusal::Damaged(damage));
    }
    need_good(listing, target.opposite())?;
    let missing = || Refusal::Damaged(format!("there is no entry of group {target}"));
    let (file, read) = read(listing.entry(target)).ok_or_else(missing)?;
    let generation = generation_above(listing, read, target.opposite());
    let left = u32::from(tries.get());
    if generation == read.generation && read.status() == (BootStatus::Trial { tries_left: tries.get() }) {
        return Ok(Vec::new());
    }
    rename(listing, file, EntryName { generation, group: target, mark: Mark::Counted { left, done: 0 } })
}

/// The booted group's entry loses its counters, and gets a higher generation where the opposite one would be tried first.
pub(super) fn mark_good(listing: &Listing, booted: Group) -> Plan {
    if listing.damage().is_some() {
        return Ok(rebuild(listing, booted, Opposite::Keep));
    }
    let missing = || Refusal::Damaged(format!("there is no entry of group {booted}"));
    if listing.entry(booted).is_some_and(|found| found.fault.is_some()) {
        // Not listed, and of no use: under a listed name it would still start nothing.
        return Ok(rebuild(listing, booted, Opposite::Keep));
    }
    let (file, read) = read(listing.entry(booted)).ok_or_else(missing)?;
    let generation = match listing.status(booted.opposite()) {
        BootStatus::Good | BootStatus::Trial { .. } => generation_above(listing, read, booted.opposite()),
        BootStatus::Exhausted | BootStatus::Unbootable => read.generation,
    };
    if generation == read.generation && read.mark == Mark::Good {
        return Ok(Vec::new());
    }
    rename(listing, file, EntryName { generation, group: booted, mark: Mark::Good })
}

/// The booted group's entry leaves the loader's list: the opposite one is the only one left.
pub(super) fn roll_back(listing: &Listing, booted: Group) -> Plan {
    need_good(listing, booted.opposite())?;
    if listing.damage().is_some() {
        return Ok(rebuild(listing, booted.opposite(), Opposite::SwitchOff));
    }
    Ok(switch_off(listing, booted))
}

/// What a rebuild does with the opposite group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Opposite {
    /// It leaves the loader's list.
    SwitchOff,
    /// It stays as it is where its entry is whole and the good group's was not lost. Where only the contents are lost, a
    /// good one is made anew from its copy.
    Keep,
}

/// First `good` has an uncounted entry, then what must not be started leaves the loader's list, and at the end the opposite
/// group has a file again.
///
/// A file of no use leaves the list as any other would: nothing is written into a file that the loader lists, because a
/// cut would leave it torn, with a kernel and without its root. What replaces it is written under a name that is not
/// listed, and renamed when it is whole and durable.
fn rebuild(listing: &Listing, good: Group, opposite: Opposite) -> Vec<Step> {
    let mut now = listing.clone();
    let mut steps = Vec::new();
    let only = match (opposite, listing.entry(good)) {
        (Opposite::Keep, Some(_)) => only_name(listing, good.opposite()),
        _ => None,
    };
    let spared = only.filter(|found| found.fault.is_none()).and_then(|found| found.read);
    let anew = only.filter(|found| found.fault.is_some() && listing.is_kept(good.opposite()));
    let anew = anew.and_then(|found| found.read).filter(|read| read.mark == Mark::Good);
    let lowest = spared.or(anew).map_or(0, |other| other.generation.saturating_add(1));
    let is_kept = |found: &&Found| {
        let of_good = |read: EntryName| read.group == good && read.mark == Mark::Good && read.generation >= lowest;
        !found.is_odd && found.fault.is_none() && found.read.is_some_and(of_good)
    };
    let kept = match listing.listed().find(is_kept) {
        Some(found) => found.file.clone(),
        None => {
            let step = uncounted(listing, good, lowest);
            let (Step::Rename { to, .. } | Step::Create { to, .. }) = &step;
            let to = to.clone();
            now = now.after(&step);
            steps.push(step);
            to
        }
    };
    let stays = |found: &Found| found.file == kept || (spared.is_some() && found.read == spared);
    let leaving = |now: &Listing| now.listed().find(|found| !stays(found)).cloned();
    while let Some(found) = leaving(&now) {
        let step = Step::Rename { from: found.file.clone(), to: off_name(&now, &found) };
        now = now.after(&step);
        steps.push(step);
    }
    steps.extend(opposite_anew(&now, good.opposite(), anew));
    steps
}

/// The step after which the group has a file again: under the name that it had, or one that the loader does not list.
/// A cut before it leaves the group unbootable, which is what the loader made of it before.
fn opposite_anew(now: &Listing, group: Group, name: Option<EntryName>) -> Option<Step> {
    if let Some(name) = name {
        return Some(Step::Create { group, to: name.file_name(now.kind()), may_be_empty: false });
    }
    // An empty file in place of a useless one would be no better.
    let is_needed = now.whole(group).is_none() && (now.is_kept(group) || now.entry(group).is_none());
    let name = now.free(EntryName { generation: 0, group, mark: Mark::Off });
    is_needed.then(|| Step::Create { group, to: name.file_name(now.kind()), may_be_empty: true })
}

/// The one step after which the group has an uncounted entry of this generation or a higher one.
fn uncounted(listing: &Listing, group: Group, lowest: u32) -> Step {
    let source = listing.whole(group);
    // A generation that is odd begins anew.
    let old = listing.entry(group).and_then(|found| found.read).map(|read| read.generation);
    let old = old.filter(|generation| *generation < HIGHEST_GENERATION).unwrap_or_default();
    let name = listing.free(EntryName { generation: old.max(lowest), group, mark: Mark::Good });
    let to = name.file_name(listing.kind());
    match source {
        Some(found) => Step::Rename { from: found.file.clone(), to },
        None => Step::Create { group, to, may_be_empty: false },
    }
}

/// The group's only listed file, when its name is one of ours.
fn only_name(listing: &Listing, group: Group) -> Option<&Found> {
    let mut of_group = listing.listed().filter(|found| found.is_of(group));
    match (of_group.next(), of_group.next()) {
        (Some(found), None) if !found.is_odd => Some(found),
        _ => None,
    }
}

fn switch_off(listing: &Listing, group: Group) -> Vec<Step> {
    let entry = listing.listed().find(|found| found.read.is_some_and(|read| read.group == group));
    entry.map(|found| Step::Rename { from: found.file.clone(), to: off_name(listing, found) }).into_iter().collect()
}

fn off_name(listing: &Listing, found: &Found) -> String {
    let off = |read: EntryName| {
        let generation = if read.generation < HIGHEST_GENERATION { read.generation } else { 0 };
        listing.free(EntryName { generation, mark: Mark::Off, ..read }).file_name(listing.kind())
    };
    found.read.map_or_else(|| listing.free_for_odd(), off)
}

fn need_good(listing: &Listing, group: Group) -> Result<(), Refusal> {
    let good = listing.status_held(group) == BootStatus::Good;
    // Stopping here is safe: nothing was planned yet.
    if good { Ok(()) } else { Err(Refusal::NotGood(group)) }
}

/// The generation that the entry needs to be tried before the one of `below`: its own where that will do.
fn generation_above(listing: &Listing, read: EntryName, below: Group) -> u32 {
    let other = listing.entry(below).and_then(|found| found.read).map(|read| read.generation);
    let next = other.map_or(read.generation, |other| other.saturating_add(1));
    if read.is_listed() { next.max(read.generation) } else { next }
}

fn rename(listing: &Listing, from: &str, to: EntryName) -> Plan {
    let to = listing.free(to);
    if to.generation > HIGHEST_GENERATION {
        return Err(Refusal::Damaged("its generation is the highest there is".into()));
    }
    Ok(vec![Step::Rename { from: from.to_owned(), to: to.file_name(listing.kind()) }])
}

fn read(found: Option<&Found>) -> Option<(&str, EntryName)> {
    let found = found?;
    Some((found.file.as_str(), found.read?))
}
