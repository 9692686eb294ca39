//! The GPT backend: ChromeOS-style bits in the attributes of the two slots' partition entries.
//!
//! **No loader of Debian reads these bits.** They are for firmware of ChromeOS' kind (vboot) and for the GRUB of CoreOS and
//! its heirs (`gptprio`). This backend is tested against our simulator of both, and against `sgdisk` and `cgpt`, which
//! write and read the same bits; neither loader was started.
//!
//! | group | priority | tries | successful | the loader |
//! |---|---|---|---|---|
//! | good | 1 to 15 | 0 | 1 | starts it, uncounted |
//! | on trial | one above the good group's | 1 to 9 | 0 | takes a try away, then starts it |
//! | exhausted | any | 0 | 0 | passes over it; vboot takes the priority away with the last try |
//! | unbootable | 0 | 15 | 0 | passes over it: priority 0 is never started |
//!
//! | act | changes the bits of | so that |
//! |---|---|---|
//! | mark unbootable | the target | it is unbootable |
//! | activate | the target | it is on trial, before the booted group |
//! | mark good | the booted group | it is good, and before the opposite group if that one may be started |
//! | roll back | the booted group | it is unbootable: the opposite group, which is good, is first |
//!
//! So each act changes one entry, in one commit point. Where a priority above 15 would be needed, the other group steps down
//! before, in a commit point of its own that changes no choice (activate), or only the order of two groups that are both
//! complete (mark good). Settings that are lost are rebuilt in two as well, the booted group first.
//!
//! # One commit point: two steps
//!
//! The table lies on the disk twice, each copy a header in one sector, entries in others, and a checksum over each.
//!
//! | what is done | after a cut in the middle of it | after it |
//! |---|---|---|
//! | 1. backup: the sector of the entry, then the header; sync; read back | the primary copy is whole and **old**; the backup is old, broken or new | primary old, backup new |
//! | 2. primary: the same | broken: a checksum of the primary does not fit, and the backup is whole and **new**. Or neither sector was written: **old**. Or both: **new** | both new |
//!
//! A loader goes by the primary copy while its checksums fit, else by the backup. So the first sector of step 2 that reaches
//! the medium *is* the change, and it is atomic as a sector is. The next act of ours finishes what was cut: it takes the
//! copy that a loader goes by, makes the primary whole from it before the backup is touched, and goes on from there.
//!
//! Which means, said openly: when power fails in the middle of step 2, **a loader has to read the backup**, as both do, and so
//! has the kernel, which does so only with `gpt` on its command line, unless the loader repairs the primary before it starts
//! the kernel, as both do. Put `gpt` there.
//!
//! # What is refused
//!
//! Only the nine bits of our entries and the checksums are ever changed; numbers, GUIDs, types, ranges, names and other
//! attributes stay as they are, and nothing outside the table's sectors is written. Two whole copies that differ in anything
//! but our bits are refused, and so are an entry with another GUID than when the device was looked at, slots of different
//! types, and a third partition of their type that the loader may start. A primary copy that is lost altogether (not cut off
//! by an act of ours) is *damage* like bits that allow neither group: what the backup says is obeyed, and the next
//! [`mark_unbootable`](BootBackend::mark_unbootable) or [`mark_good`](BootBackend::mark_good) repairs it. With neither copy
//! whole nothing is written: a partition table is not ours to invent.

pub mod bits;
mod error;
mod plan;
pub mod simulator;
mod store;
mod table;

use std::path::PathBuf;

use bascule_core::{BootView, BootedGroup, Group, TargetGroup, Tries, Warning};

use crate::{BootBackend, BootError};

pub use crate::sdboot::Act;
use bits::Bits;
pub use error::GptError;
use plan::{Plan, Refusal};
use store::Store;
use table::{Entries, Health, Refused, Table};
pub use table::{Step, TableCopy, Write};

/// The partition entry that keeps a group's bits: of the partition that the loader starts from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SlotEntry {
    /// Its number, from 1.
    pub number: u32,
    /// The partition's GUID, as `8-4-4-4-12` hexadecimal digits.
    pub guid: String,
}

/// Keeps the choice of group in the partition table of a disk.
#[derive(Debug, Clone)]
pub struct GptBackend {
    store: Store,
    sector_size: u64,
    slots: [SlotEntry; 2],
}

/// What lies on the disk.
struct Stored {
    table: Table,
    entries: Entries,
    plan: Plan,
}

impl GptBackend {
    /// A backend for the table of a disk or an image, with sectors of 512 or 4096 bytes, and the entries of groups `a`
    /// and `b` in it. Whether that table is the one that the kernel uses, [`crate::disk::locate`] has looked at.
    #[must_use]
    pub fn new(device: PathBuf, sector_size: u64, slots: [SlotEntry; 2]) -> Self {
        GptBackend { store: Store::new(device), sector_size, slots }
    }

    /// The durable steps that this act would take now, in order.
    ///
    /// # Errors
    /// Those of the act itself, found before anything is written.
    pub fn steps(&self, act: Act) -> Result<Vec<Step>, BootError> {
        let Stored { table, entries, plan } = self.stored()?;
        let (what, changes) = match act {
            Act::MarkUnbootable(target) => ("give the target group up", plan.mark_unbootable(target.group())),
            Act::Activate(target, tries) => ("activate the target group", plan.activate(target.group(), tries)),
            Act::MarkGood(booted) => ("commit the booted group", Ok(plan.mark_good(booted.group()))),
            Act::RollBack(booted) => ("go back to the opposite group", plan.roll_back(booted.group())),
        };
        // Stopping here is safe: nothing was written.
        let changes = changes.map_err(|refusal| match refusal {
            Refusal::NotGood(group) => BootError::NoGoodGroup { act: what, group },
            Refusal::Damaged => {
                let damage = "the loader starts neither group, or the first copy of the table is lost".to_owned();
                BootError::Damaged { path: self.store.path().to_owned(), damage }
            }
        })?;
        let each = changes.into_iter().scan(entries, |entries, (group, bits)| {
            *entries = entries.with_bits(self.slot(group).number, bits);
            Some(entries.clone())
        });
        Ok(table.steps(&each.collect::<Vec<_>>()))
    }

    /// Takes one step; it is durable then.
    ///
    /// # Errors
    /// When it cannot be written, or reads back differently.
    pub fn take(&self, step: &Step) -> Result<(), BootError> {
        self.store.lock()?.take(step)
    }

    fn perform(&self, act: Act) -> Result<(), BootError> {
        let disk = self.store.lock()?;
        let steps = self.steps(act)?;
        for step in &steps {
            disk.take(step)?;
        }
        // An earlier call may have died between its writes and its sync.
        if steps.is_empty() { disk.sync() } else { Ok(()) }
    }

    fn stored(&self) -> Result<Stored, BootError> {
        let (path, device) = (self.store.path().to_owned(), self.store.path().to_owned());
        let read = |offset, length| self.store.read(offset, length);
        let numbers = self.slots.each_ref().map(|slot| slot.number);
        let table = self.store.length().map_err(Refused::Io);
        let table = table.and_then(|length| Table::read(&read, length, self.sector_size, numbers));
        let table = table.map_err(|refused| match refused {
            Refused::Io(source) => BootError::Read { path, source },
            Refused::NoTable(what) => GptError::NoTable { device, what }.into(),
            Refused::Differ => GptError::CopiesDiffer { device }.into(),
        })?;
        let entries = table.entries();
        self.check(&entries)?;
        let [a, b] = numbers;
        let lower = if a < b { Group::A } else { Group::B };
        let plan = Plan::new(numbers.map(|number| entries.bits(number)), lower, table.primary_health() == Health::Lost);
        Ok(Stored { table, entries, plan })
    }

    /// The entries are the slots', and the loader picks among them alone.
    fn check(&self, entries: &Entries) -> Result<(), BootError> {
        let device = || self.store.path().to_owned();
        let kinds = self.slots.each_ref().map(|slot| entries.kind(slot.number));
        for group in Group::ALL {
            let SlotEntry { number, guid } = self.slot(group);
            let refuse = |what| Err(GptError::Entry { device: device(), number: *number, group, what }.into());
            match entries.kind(*number) {
                None => return refuse("there is none with that number"),
                Some(_) if entries.guid(*number) != guid_bytes(guid) => return refuse("its GUID is another one"),
                kind if kinds != [kind, kind] => return refuse("the types of the two differ"),
                Some(_) => {}
            }
        }
        let ours = |number: &u32| self.slots.iter().any(|slot| slot.number == *number);
        let is_rival =
            |number: &u32| !ours(number) && kinds.contains(&entries.kind(*number)) && entries.bits(*number).may_start();
        match entries.numbers().find(is_rival) {
            Some(number) => Err(GptError::Rival { device: device(), number }.into()),
            None => Ok(()),
        }
    }

    fn slot(&self, group: Group) -> &SlotEntry {
        let [a, b] = &self.slots;
        if group == Group::A { a } else { b }
    }
}

impl BootBackend for GptBackend {
    fn name(&self) -> &'static str {
        "gpt"
    }

    fn view(&self, booted: BootedGroup) -> Result<BootView, BootError> {
        Ok(self.stored()?.plan.view(booted.group()))
    }

    fn damaged_copy(&self) -> Result<Option<Warning>, BootError> {
        let Stored { table, plan, .. } = self.stored()?;
        Ok(table.damaged().filter(|_| !plan.is_damaged()).map(|copy| {
            let (damaged, whole) = match copy {
                TableCopy::Primary => ("primary copy", "backup"),
                TableCopy::Backup => ("backup", "primary copy"),
            };
            let disk = self.store.path().display();
            let reason = format!("the {damaged} of the partition table of {disk} is damaged: the {whole} serves");
            let hint = "the next change of the settings, or `bascule check`, makes it whole; look at the medium if it happens again";
            Warning::new("boot.gpt-copy-damaged", reason, hint)
        }))
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

/// A GUID as the table has it: the first three parts little endian.
fn guid_bytes(text: &str) -> Option<[u8; 16]> {
    let digits: String = text.chars().filter(|digit| *digit != '-').collect();
    let mut bytes = u128::from_str_radix(&digits, 16).ok().filter(|_| digits.len() == 32)?.to_be_bytes();
    for part in [0..4, 4..6, 6..8] {
        bytes.get_mut(part)?.reverse();
    }
    Some(bytes)
}

/// What the bytes of a disk's image say: for reading what nobody made on purpose. `None` where they are refused.
#[must_use]
pub fn bits_of_image(image: &[u8], sector_size: u64, numbers: [u32; 2]) -> Option<[Bits; 2]> {
    let read = |offset: u64, length: usize| {
        let rest = usize::try_from(offset).ok().and_then(|offset| image.get(offset..)).unwrap_or_default();
        Ok(rest.get(..length).unwrap_or(rest).to_vec())
    };
    let table = Table::read(&read, image.len() as u64, sector_size, numbers).ok()?;
    let entries = table.entries();
    Some(numbers.map(|number| entries.bits(number)))
}
