//! The EFI backend: variables of a UEFI firmware that starts kernels with an EFI stub itself.
//!
//! ```text
//! Boot####      a load option for each group, known by its description "Bascule a" or "Bascule b", never by its number
//! BootOrder     the durable choice: the firmware starts the first entry that can be started
//! BootNext      the trial: started once, deleted before the start
//! BootCurrent   the entry that was started (not kept without power)
//! BasculeTrial  ours: "armed b" or "given-up b", what became of a trial that was not committed
//! ```
//! The firmware makes each change of a variable atomic. In this table `b` is the target, and a dot says that it does not
//! matter:
//!
//! | state | `BootOrder` | `BootNext` | `BasculeTrial` | the firmware starts |
//! |---|---|---|---|---|
//! | `b` is unbootable, may be half written | `a` | - | - or `given-up b` | `a` |
//! | activated | `a` | `b` | `armed b` | `b`, having deleted `BootNext` |
//! | on trial, or fallen back: exhausted | `a` | - | `armed b` | `a` |
//! | committed | `b a` | - | . | `b` |
//! | rolled back | `a` | - | `given-up b` | `a` |
//!
//! | act | writes, in order | why every cut is safe |
//! |---|---|---|
//! | mark unbootable | delete the mark; delete `BootNext` if it names the target; **`BootOrder`** without the target | each of the last two takes one way to the target away; the booted group stays in `BootOrder` |
//! | activate | **`BootNext`**; mark `armed` | the first is the commit point, both groups are complete; after a cut before the mark a target that never comes up is seen as unbootable, and may be armed once more |
//! | mark good | **`BootOrder`** | both groups are complete |
//! | roll back | mark `given-up`; **`BootOrder`** without the booted group, if it was in it | only the opposite group, which is good, is left; until then the mark of a good group counts for nothing |
//!
//! No cut makes a group look exhausted that was not tried: the daemon would deny its bundle.
//!
//! What is so already is not written. There is one try, whatever number `activate` is given: the policy must grant one. The
//! mark is needed because the firmware keeps no trace of a trial: without it a target that fell back, one that was given up
//! and one that was never tried would look the same. The firmware never reads it.
//!
//! Entries of others stay in `BootOrder` in their order; a commit puts ours before them. A `BootOrder` that is lost, odd or
//! without both of ours, is *damage*, which [`mark_unbootable`](BootBackend::mark_unbootable) and
//! [`mark_good`](BootBackend::mark_good) rebuild, and so is an entry of ours that somebody made inactive. An entry that is
//! lost or doubled is damage that they cannot rebuild: they do what is safe and end with [`EfiError::Entry`].
//!
//! Measured with OVMF: an entry that is not in `BootOrder` counts as free, and the firmware writes an entry of its own over
//! it when its number is the lowest that is. So ours are created with high numbers, such as `BootBA5A` and `BootBA5B`.
//!
//! What no variable can change: a firmware whose settings are reset to their defaults starts `\EFI\BOOT\BOOT*.EFI`. What
//! lies there must not be a group that may be half written.

mod error;
pub mod option;
mod plan;
mod settings;
pub mod simulator;
mod store;

use std::path::PathBuf;

use bascule_core::{BootView, BootedGroup, Group, TargetGroup, Tries};

use crate::{BootBackend, BootError};

pub use crate::sdboot::Act;
pub use error::EfiError;
use option::{LoadOption, Program};
pub use plan::Step;
use plan::{Plan, Refusal};
use settings::{Mark, Stored, entry_name, order_path};
use store::Store;

/// Keeps the choice of group in the firmware's variables.
#[derive(Debug, Clone)]
pub struct EfiBackend {
    store: Store,
}

impl EfiBackend {
    /// A backend for the variables in this directory, where efivarfs is mounted.
    #[must_use]
    pub fn new(dir: PathBuf) -> Self {
        EfiBackend { store: Store::new(dir) }
    }

    /// Whether the firmware has a load option for each group.
    #[must_use]
    pub fn has_entries(&self) -> bool {
        let stored = Stored::read(&self.store);
        stored.is_ok_and(|stored| Group::ALL.into_iter().all(|group| !stored.entries(group).is_empty()))
    }

    /// The group whose trial was armed, and that was not committed since: a commit leaves the mark as it is.
    #[must_use]
    pub fn armed(&self) -> Option<Group> {
        let stored = Stored::read(&self.store).ok()?;
        match stored.mark {
            Some(Mark::Armed(group)) if !stored.is_good(group) => Some(group),
            _ => None,
        }
    }

    /// The durable steps that this act would take now, in order.
    ///
    /// # Errors
    /// Those of the act itself, found before anything is written.
    pub fn steps(&self, act: Act) -> Result<Vec<Step>, BootError> {
        self.plan(&Stored::read(&self.store)?, act)
    }

    /// Takes one step; it is durable then.
    ///
    /// # Errors
    /// When the firmware or the kernel does not make the change.
    pub fn take(&self, step: &Step) -> Result<(), BootError> {
        match step {
            Step::Put { path, attributes, data } => self.store.put(path, *attributes, data),
            Step::Delete { path } => self.store.delete(path),
        }
    }

    /// Refuses an entry of the target that does not start this file of this partition: the firmware would start an old
    /// kernel on the new root, or none. The file is told from the root of the partition, with backslashes; FAT does not
    /// tell upper from lower case. Writes nothing.
    ///
    /// # Errors
    /// [`EfiError::OtherProgram`], and [`EfiError::Entry`] when the entry is lost or doubled.
    pub fn check_program(&self, target: TargetGroup, program: &Program) -> Result<(), BootError> {
        let stored = Stored::read(&self.store)?;
        let [entry] = stored.entries(target.group()) else { return Err(self.no_entry(&stored, target.group())) };
        let found = LoadOption::parse(&entry.value.data).and_then(|option| option.program());
        let is_same = |found: &Program| {
            found.file.eq_ignore_ascii_case(&program.file) && found.partition.eq_ignore_ascii_case(&program.partition)
        };
        if found.as_ref().is_some_and(is_same) {
            return Ok(());
        }
        Err(EfiError::OtherProgram {
            path: self.store.global(&entry_name(entry.number)),
            group: target.group(),
            found: found.map_or_else(|| "no file on a partition with a GUID".to_owned(), |found| found.to_string()),
            wanted: program.to_string(),
        }
        .into())
    }

    fn plan(&self, stored: &Stored, act: Act) -> Result<Vec<Step>, BootError> {
        let plan = Plan::new(&self.store, stored);
        let (what, steps) = match act {
            Act::MarkUnbootable(target) => ("give the target group up", plan.mark_unbootable(target.group())),
            Act::Activate(target, _) => ("activate the target group", plan.activate(target.group())),
            Act::MarkGood(booted) => ("commit the booted group", plan.mark_good(booted.group())),
            Act::RollBack(booted) => ("go back to the opposite group", plan.roll_back(booted.group())),
        };
        // Stopping here is safe: nothing was written.
        steps.map_err(|refusal| match refusal {
            Refusal::NotGood(group) => BootError::NoGoodGroup { act: what, group },
            Refusal::NoEntry(group) => self.no_entry(stored, group),
            Refusal::Damaged(damage) => BootError::Damaged { path: order_path(&self.store), damage: damage.to_owned() },
        })
    }

    fn perform(&self, act: Act) -> Result<(), BootError> {
        let stored = Stored::read(&self.store)?;
        for step in self.plan(&stored, act)? {
            self.take(&step)?;
        }
        // Stopping here is safe: the act is done. But settings without one entry for each group stay damaged.
        match Group::ALL.into_iter().find(|group| stored.entries(*group).len() != 1) {
            Some(group) => Err(self.no_entry(&stored, group)),
            None => Ok(()),
        }
    }

    fn no_entry(&self, stored: &Stored, group: Group) -> BootError {
        EfiError::Entry { dir: self.store.dir().to_owned(), group, found: stored.entries(group).len() }.into()
    }
}

impl BootBackend for EfiBackend {
    fn name(&self) -> &'static str {
        "efi"
    }

    fn view(&self, booted: BootedGroup) -> Result<BootView, BootError> {
        Ok(Stored::read(&self.store)?.view(booted.group()))
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
