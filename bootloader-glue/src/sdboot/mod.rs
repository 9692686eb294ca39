//! The systemd-boot backend: the names of two boot entries, one for each group.
//!
//! ```text
//! <esp>/loader/loader.conf       LOADER_CONF: of our entries the first one in the loader's order
//! <esp>/loader/entries/          type 1: bascule-4-a.conf, bascule-5-b+3-0.conf (or .efi in <esp>/EFI/Linux: type 2)
//! <esp>/bascule/a.conf, b.conf   copies of the entries, to make a lost one anew (optional)
//! ```
//! systemd-boot puts exhausted entries last, then sorts by `sort-key`, `machine-id` and `version`, then by name, the highest
//! version first. We keep the three keys the same (or absent) in both entries, and begin the name with a generation: the
//! higher generation is tried first. `activate` is then one rename of the target's file, to a generation above the booted
//! one's. In this table `b` is the target, and the file of `a` never changes its name:
//!
//! | state | `a` | `b` | the loader starts |
//! |---|---|---|---|
//! | `b` is unbootable, may be half written | `bascule-4-a.conf` | `bascule-3-b.off` (listed nowhere) | `a` |
//! | activated with 3 tries | same | `bascule-5-b+3-0.conf` | `b`, having renamed it to `…+2-1.conf` |
//! | on trial | same | `…+2-1.conf`, `…+1-2.conf` | `b`, counted |
//! | exhausted | same | `bascule-5-b+0-3.conf` (sorted last) | `a` |
//! | committed | same | `bascule-5-b.conf` | `b`, uncounted |
//! | rolled back | same | `bascule-5-b.off` | `a` |
//!
//! | act | the one rename | why every cut is safe |
//! |---|---|---|
//! | mark unbootable | target: listed name to `.off` | the booted group's uncounted entry is not touched; before: the old choice |
//! | activate | target: `.off` to `+N-0`, generation above the booted one's | both groups are complete, the booted one's entry is not touched |
//! | mark good | booted: counters removed; a higher generation where the opposite one would be first | both groups are complete |
//! | roll back | booted: to `.off` | only the opposite group, which is good, is left |
//!
//! An act touches one file. So even where a power cut leaves a FAT directory with both names of it, or with neither, the
//! other group's entry is there and its group complete. Two listed names of one group, none at all, or a name that we
//! would not have written are *damage*: `mark_unbootable` and `mark_good` then [rebuild](Step), in several renames, first
//! the booted group's uncounted entry, then the rest. Nothing is ever deleted: two names may share their clusters.
//!
//! A unified kernel image is the entry itself: the next one is written into the `.off` file (the module `image`).
//!
//! An entry that is empty, or names no kernel, is one that the loader passes over whatever its name says: [`view`] calls it
//! damage, and a rebuild makes it anew from the copy in `bascule/`. Such a file is left when a cut comes between a rename and
//! the sync of what it names, or by somebody's editor. The new text is written under a name that the loader does not list
//! and renamed when it is durable, the booted group's first; the useless file is kept unlisted. Without a whole copy there
//! is nothing to rebuild the booted group's entry from: then nothing is touched, and a person is asked.
//!
//! [`view`]: BootBackend::view
//!
//! What the loader does that no name can change: a trial whose count cannot be saved starts uncounted; when nothing else
//! is listed, an exhausted entry starts; an entry whose kernel does not load leads to a restart (newer versions, counted
//! entries) or back to the firmware, not to the next entry; and the EFI variables `LoaderEntryOneShot` and
//! `LoaderEntryDefault` come before `loader.conf` (never use `bootctl set-default`). systemd-bless-boot.service would commit
//! before the health checks have: it waits for boot-complete.target, and that for the agent's verdict.
//!
//! What the loader tells the booted system: the EFI variable `LoaderBootCountPath-4a67b082-0a4c-41cf-b6c7-440b29bb8c4f`
//! exists exactly where this start was counted, and holds the entry's path with the name after the rename. Entries cannot
//! say it: their text is the same at every start ([`partition`]). So where `LoaderInfo` of the same vendor is there and this
//! variable is not, an entry that is counted by its name was started without its count having been saved.
//!
//! All of this was tried with systemd-boot 252 itself (`tests/real_sdboot.rs`).

mod contents;
mod image;
mod listing;
pub mod names;
pub mod partition;
mod plan;
pub mod simulator;
mod store;

use std::io;
use std::path::{Path, PathBuf};

use bascule_core::{BootView, BootedGroup, Group, Settings, TargetGroup, Tries};

use crate::{BootBackend, BootError};

use contents::SortKeys;
pub use image::{ImagePlace, NewImage, check_new_images};
use listing::{Faults, Listing};
use names::{Kind, Owner};
use plan::Refusal;
pub use plan::Step;

/// The loader's configuration that we ship: the first of our entries, no menu without a key, nothing of its own beside them.
///
/// The pattern keeps entries of others from being started unattended, whatever their names sort like.
pub const LOADER_CONF: &str = "default bascule-[0-9]*\ntimeout 0\neditor no\nauto-entries no\nauto-firmware no\n";

/// The loader's configuration on the boot partition.
const MARK: &str = "loader/loader.conf";

/// Keeps the choice of group in the names of boot entries.
#[derive(Debug, Clone)]
pub struct SdBootBackend {
    root: PathBuf,
    kind: Kind,
}

/// One call of the trait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Act {
    /// [`BootBackend::mark_unbootable`]
    MarkUnbootable(TargetGroup),
    /// [`BootBackend::activate`]
    Activate(TargetGroup, Tries),
    /// [`BootBackend::mark_good`]
    MarkGood(BootedGroup),
    /// [`BootBackend::roll_back`]
    RollBack(BootedGroup),
}

impl SdBootBackend {
    /// A backend for the boot partition that is mounted at `root`, such as `/boot/efi`, with entries of this kind.
    #[must_use]
    pub fn new(root: PathBuf, kind: Kind) -> Self {
        SdBootBackend { root, kind }
    }

    /// The durable steps that this act would take now, in order.
    ///
    /// # Errors
    /// Those of the act itself, found before anything is written.
    pub fn steps(&self, act: Act) -> Result<Vec<Step>, BootError> {
        let listing = self.listing()?;
        let (what, plan) = match act {
            Act::MarkUnbootable(target) => {
                ("give the target group up", plan::mark_unbootable(&listing, target.group()))
            }
            Act::Activate(target, tries) => {
                ("activate the target group", plan::activate(&listing, target.group(), tries))
            }
            Act::MarkGood(booted) => ("commit the booted group", plan::mark_good(&listing, booted.group())),
            Act::RollBack(booted) => ("go back to the opposite group", plan::roll_back(&listing, booted.group())),
        };
        // The booted group's entry comes first in every rebuild.
        let booted = match act {
            Act::MarkUnbootable(target) | Act::Activate(target, _) => target.group().opposite(),
            Act::MarkGood(booted) | Act::RollBack(booted) => booted.group(),
        };
        let is_hopeless = listing.whole(booted).is_none() && !listing.is_kept(booted);
        let steps = plan.map_err(|refusal| match refusal {
            Refusal::NotGood(group) => BootError::NoGoodGroup { act: what, group },
            Refusal::Damaged(damage) if is_hopeless => beyond_repair(&self.directory(), damage),
            Refusal::Damaged(damage) => self.damaged(damage),
        })?;
        if let Act::Activate(target, _) = act {
            self.check_order(&listing, target.group())?;
        }
        Ok(steps)
    }

    /// Takes one step and makes it durable.
    ///
    /// # Errors
    /// When the directory cannot be written, or a lost entry cannot be made anew.
    pub fn take(&self, step: &Step) -> Result<(), BootError> {
        let dir = self.directory();
        match step {
            Step::Rename { from, to } => store::rename(&dir, from, to),
            Step::Create { group, to, may_be_empty } => {
                let kept = self.root.join(copy(*group, self.kind));
                match self.is_kept(*group) {
                    true => store::create(&dir, Some(&kept), to),
                    false if *may_be_empty => store::create(&dir, None, to),
                    // Stopping here is safe: what the loader lists is as it was.
                    false => {
                        Err(beyond_repair(&dir, format!("group {group} has no entry, nor a whole {}", kept.display())))
                    }
                }
            }
        }
    }

    /// The file of the target group's entry: what its next kernel or text is to be put into while it is unbootable.
    ///
    /// # Errors
    /// When the directory cannot be read.
    pub fn target_file(&self, target: TargetGroup) -> Result<Option<PathBuf>, BootError> {
        let listing = self.listing()?;
        Ok(listing.off(target.group()).map(|found| self.directory().join(&found.file)))
    }

    fn perform(&self, act: Act) -> Result<(), BootError> {
        let (steps, dir) = (self.steps(act)?, self.directory());
        for step in &steps {
            self.take(step)?;
        }
        if steps.is_empty() {
            // An earlier call may have been cut off between its rename and its syncs.
            for found in self.listing()?.ours() {
                store::sync_file(&dir.join(&found.file))?;
            }
        }
        store::sync(&dir)
    }

    fn directory(&self) -> PathBuf {
        self.root.join(self.kind.directory())
    }

    /// Refuses a directory without the loader's configuration: the boot partition may not be mounted.
    fn listing(&self) -> Result<Listing, BootError> {
        if !self.root.join(MARK).is_file() {
            return Err(BootError::NotTheLoaders { dir: self.root.clone(), missing: MARK });
        }
        let (dir, names) = (self.directory(), store::names(&self.directory())?);
        let mut faults = Faults::new();
        for name in names.iter().filter(|name| names::owner(name, self.kind) != Owner::Foreign) {
            match contents::fault(self.kind, &dir.join(name)) {
                Ok(fault) => faults.extend(fault.map(|fault| (name.clone(), fault))),
                // Gone since: a name alone, which the act that needs it will not find.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(source) => return Err(BootError::Read { path: dir.join(name), source }),
            }
        }
        let kept = Group::ALL.into_iter().filter(|group| self.is_kept(*group)).collect();
        Ok(Listing::of(names, faults, kept, self.kind))
    }

    /// Whether a whole copy of the group's entry is there.
    fn is_kept(&self, group: Group) -> bool {
        contents::is_whole_copy(self.kind, &self.root.join(copy(group, self.kind)), group)
    }

    /// The loader must list the target's entry, and nothing but the names may decide between the two.
    fn check_order(&self, listing: &Listing, target: Group) -> Result<(), BootError> {
        let keys = |group: Group| {
            let file = listing.entry(group).map(|found| found.file.as_str()).unwrap_or_default();
            let path = self.directory().join(file);
            SortKeys::read(&self.root, self.kind, &path).map_err(|damage| beyond_repair(&path, damage))
        };
        // Stopping here is safe: nothing was written.
        if keys(target)? == keys(target.opposite())? {
            Ok(())
        } else {
            let differ = "the entries differ in what the loader sorts by before their names".into();
            Err(beyond_repair(&self.directory(), differ))
        }
    }

    /// The file of a group's entry that the loader does not list, nor any other of the group: nothing starts what is written
    /// there.
    fn unlisted(&self, group: Group) -> Result<PathBuf, BootError> {
        let listing = self.listing()?;
        // Stopping here is safe: nothing was written. A torn text in the file is what an earlier call left.
        if let Some(damage) = listing.damage_listed() {
            return Err(self.damaged(damage));
        }
        let off = listing.off(group).filter(|_| listing.listed().all(|found| !found.is_of(group)));
        let listed = || format!("the loader may start group {group}, whose entry was to be written");
        let off = off.ok_or_else(|| beyond_repair(&self.directory(), listed()))?;
        Ok(self.directory().join(&off.file))
    }

    fn damaged(&self, damage: String) -> BootError {
        BootError::Damaged { path: self.directory(), damage }
    }
}

impl BootBackend for SdBootBackend {
    fn name(&self) -> &'static str {
        "systemd-boot"
    }

    fn view(&self, booted: BootedGroup) -> Result<BootView, BootError> {
        let listing = self.listing()?;
        // What was booted has been tried or committed, whatever became of its entry's contents since.
        let status = |group| if group == booted.group() { listing.status(group) } else { listing.status_held(group) };
        Ok(BootView {
            settings: if listing.damage().is_none() { Settings::Intact } else { Settings::Damaged },
            primary: listing.primary(booted.group()).unwrap_or(booted.group()),
            a: status(Group::A),
            b: status(Group::B),
        })
    }

    fn mark_unbootable(&self, target: TargetGroup) -> Result<(), BootError> {
        self.perform(Act::MarkUnbootable(target))
    }

    fn activate(&self, target: TargetGroup, tries: Tries) -> Result<(), BootError> {
        self.perform(Act::Activate(target, tries))
    }

    fn mark_good(&self, booted: BootedGroup) -> Result<(), BootError> {
        self.perform(Act::MarkGood(booted))
    }

    fn roll_back(&self, booted: BootedGroup) -> Result<(), BootError> {
        self.perform(Act::RollBack(booted))
    }
}

/// Which kind of entries a boot partition has of ours; `None` where there is neither an entry nor a copy of one.
///
/// Names that the loader does not list count only where it lists none of ours: they may be left from the other kind.
///
/// # Errors
/// [`BootError::NotTheLoaders`] without the loader's configuration, [`BootError::MixedEntries`] where there are both kinds.
pub fn kind_on(root: &Path) -> Result<Option<Kind>, BootError> {
    if !root.join(MARK).is_file() {
        return Err(BootError::NotTheLoaders { dir: root.to_owned(), missing: MARK });
    }
    let mut ours = Vec::new();
    for kind in Kind::ALL {
        let names = match store::names(&root.join(kind.directory())) {
            Err(BootError::Read { source, .. }) if source.kind() == io::ErrorKind::NotFound => Vec::new(),
            names => names?,
        };
        ours.extend(names.iter().filter_map(|name| match names::owner(name, kind) {
            Owner::Foreign => None,
            Owner::Ours(entry) => Some((kind, entry.is_listed())),
            Owner::Odd(_) => Some((kind, true)),
        }));
        let is_kept = Group::ALL.into_iter().any(|group| root.join(copy(group, kind)).is_file());
        ours.extend(is_kept.then_some((kind, false)));
    }
    let has = |kind: Kind, listed: bool| ours.iter().any(|it| it.0 == kind && (it.1 || !listed));
    for listed in [true, false] {
        match Kind::ALL.map(|kind| has(kind, listed)) {
            [true, true] => return Err(BootError::MixedEntries { dir: root.to_owned() }),
            [true, false] => return Ok(Some(Kind::Text)),
            [false, true] => return Ok(Some(Kind::Image)),
            [false, false] => {}
        }
    }
    Ok(None)
}

/// Where a copy of a group's entry is kept, from the root of the boot partition.
fn copy(group: Group, kind: Kind) -> String {
    format!("bascule/{}{}", group.letter(), kind.suffix())
}

/// No rebuild would put it right.
fn beyond_repair(path: &Path, damage: String) -> BootError {
    BootError::BeyondRepair { path: path.to_owned(), damage }
}
