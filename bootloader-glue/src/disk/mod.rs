//! Which group is booted, and which partitions of the same disk are the slots.
//!
//! Nothing is searched by label over all disks: the way goes from the mounted root through the kernel's own numbers to
//! one disk, and only that disk's partition table is asked. Labels, UUIDs and file system names may exist twice; the
//! device number of `/` does not. docs/integrators.md says which disk is written, and which test proves it.
//!
//! ```text
//! /proc/self/mountinfo "/" -> 259:3 -> /sys/dev/block/259:3 -> partition 3 of nvme0n1 -> /dev/nvme0n1's table
//! ```

mod booted;
mod error;
pub mod rehearsal;
mod slots;
mod sysfs;
mod table;
mod target;

use std::fs::Metadata;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use bascule_core::{BootedGroup, Group, Warning};
pub use booted::open_booted;
pub use error::DiskError;
use nix::sys::stat::{major, minor};
pub use slots::{Selector, SlotRole, SlotTable};
pub use sysfs::Sysfs;
pub use table::TableCopies;
pub use target::open_target;

use sysfs::Partition;
use table::Table;

/// The booted group and every slot, all on the disk of the mounted root.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    /// The group whose root slot is mounted as `/`.
    pub booted: BootedGroup,
    /// The disk they are on.
    pub disk: Disk,
    /// Both slots of each role, in the order of the configuration, `a` before `b`.
    pub slots: Vec<Slot>,
}

impl Layout {
    /// One slot by role and group.
    #[must_use]
    pub fn slot(&self, role: &str, group: Group) -> Option<&Slot> {
        self.slots.iter().find(|slot| slot.role == role && slot.group == group)
    }
}

/// The disk that holds the mounted root.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Disk {
    /// The kernel's name, such as `nvme0n1`.
    pub name: String,
    /// Its device node.
    pub device: PathBuf,
    /// Major and minor number.
    pub dev: (u32, u32),
    /// The disk GUID of its partition table, lower case.
    pub guid: String,
    /// Logical sector size in bytes: 512 or 4096.
    pub sector_size: u64,
    /// Which copies of its partition table are usable.
    pub copies: TableCopies,
}

impl Disk {
    /// The copy of the partition table that is damaged now, while the other one serves; `None` too where the table cannot be
    /// read at all.
    #[must_use]
    pub fn damaged_copy(&self) -> Option<Warning> {
        let (damaged, whole) = match Table::read(&self.device, self.sector_size).ok()?.copies {
            TableCopies::Both => return None,
            TableCopies::PrimaryOnly => ("backup", "primary copy"),
            TableCopies::BackupOnly => ("primary copy", "backup"),
        };
        let reason = format!("the {damaged} of the partition table of {} is damaged: the {whole} is used", self.name);
        let hint = "repair it with `sgdisk`, after `sgdisk --verify`, while no update is on its way; Bascule does not write it";
        Some(Warning::new("disk.table-copy-damaged", reason, hint))
    }
}

/// One partition of one role and group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Slot {
    /// What it is for, such as `root`.
    pub role: String,
    /// The group it boots with.
    pub group: Group,
    /// Its device node.
    pub device: PathBuf,
    /// Its number in the partition table.
    pub partition: u32,
    /// Where it starts on the disk, in bytes.
    pub start: u64,
    /// Its size in bytes.
    pub size: u64,
    /// Major and minor number.
    pub dev: (u32, u32),
    /// Its partition GUID, lower case.
    pub partuuid: String,
}

/// Finds the booted group and the slots.
///
/// The partition table must agree with what the kernel uses; it is only read, never written. When its two copies are
/// both valid and differ, or other entries overlap ours, nothing is guessed. See [`TableCopies`] for a damaged copy.
///
/// A loader that puts `bascule.group=` on the kernel's command line must mean the group that was found: otherwise what
/// it calls `a` is what the configuration calls `b`, and a target would be written that it takes for the booted one.
///
/// # Errors
/// [`DiskError`]: the root is not a plain partition, is no slot of the table, or something on this device is ambiguous.
pub fn locate(sysfs: &Sysfs, slots: &SlotTable) -> Result<Layout, DiskError> {
    let root = sysfs.mounted_root()?;
    let disk = sysfs.disk_of(&root)?;
    let table = Table::read(&disk.device, disk.sector_size)?;
    let partitions = sysfs.partitions(&disk.name)?;
    table.check_against_kernel(&disk.name, &partitions)?;
    let chosen = slots.choose(&table)?;
    let Some(booted) = chosen.iter().find(|(role, _, number)| role == SlotTable::ROOT && *number == root.number) else {
        return Err(DiskError::RootIsNoSlot { partition: root.name });
    };
    let booted = BootedGroup::proven(booted.1);
    if let Some(told) = sysfs.started_groups()?.into_iter().find(|told| *told != booted.group()) {
        return Err(DiskError::OtherGroup { told, partition: root.name, group: booted.group() });
    }
    let labels = slots.labels();
    let slots: Vec<Slot> = chosen
        .into_iter()
        .map(|(role, group, number)| slot(role, group, number, &table, &partitions, &disk.name))
        .collect::<Result<_, _>>()?;
    refuse_clones(sysfs, &disk.name, &table, &labels)?;
    let disk = Disk {
        name: disk.name,
        device: disk.device,
        dev: disk.dev,
        guid: table.guid.clone(),
        sector_size: disk.sector_size,
        copies: table.copies,
    };
    Ok(Layout { booted, disk, slots })
}

fn slot(
    role: String,
    group: Group,
    number: u32,
    table: &Table,
    partitions: &[Partition],
    disk: &str,
) -> Result<Slot, DiskError> {
    let unknown = || DiskError::TableChanged { disk: disk.to_owned(), partition: number };
    let entry = table.entry(number).ok_or_else(unknown)?;
    let partition = partitions.iter().find(|partition| partition.number == number).ok_or_else(unknown)?;
    Ok(Slot {
        role,
        group,
        device: partition.device.clone(),
        partition: number,
        start: partition.start,
        size: partition.size,
        dev: partition.dev,
        partuuid: entry.guid.clone(),
    })
}

/// The GUID of the partition whose file system holds this path of the machine, lower case; `None` where that is no plain
/// partition of a disk with a GUID partition table.
///
/// # Errors
/// [`DiskError::Read`] and [`DiskError::Form`] when the mounts cannot be read.
pub fn partition_guid(sysfs: &Sysfs, path: &Path) -> Result<Option<String>, DiskError> {
    let Some(partition) = sysfs.partition_of(path)? else { return Ok(None) };
    let disk = sysfs.disk_of(&partition)?;
    let table = match Table::read(&disk.device, disk.sector_size) {
        Err(DiskError::NoTable { .. }) => return Ok(None),
        read => read?,
    };
    Ok(table.entry(partition.number).map(|entry| entry.guid.clone()))
}

/// Refuses a second disk with the same disk GUID or one of the same partition GUIDs: a clone of ours, and the kernel
/// may have taken its root from either. And one with a label that our slots are selected by: what is mounted by label
/// beside the root, such as the boot partition, may then be that disk's.
fn refuse_clones(sysfs: &Sysfs, disk: &str, ours: &Table, labels: &[&str]) -> Result<(), DiskError> {
    for (name, device, sector_size) in sysfs.other_disks(disk)? {
        // A disk that cannot be read, or has no partition table, is no clone of ours. Either copy of its table may be.
        let theirs = Table::copies(&device, sector_size).into_iter().flatten().filter_map(Result::ok);
        if let Some(what) = theirs.filter_map(|theirs| ours.shared_with(&theirs, labels)).next() {
            return Err(DiskError::Cloned { disk: disk.to_owned(), clone: name, what });
        }
    }
    Ok(())
}

/// Whether an open node is the partition that was located: a block device with its number. A rehearsal's nodes are
/// regular files, which have none.
fn is_located(node: &Metadata, slot: &Slot, sysfs: &Sysfs) -> bool {
    let number = (major(node.rdev()), minor(node.rdev()));
    let same = number == (u64::from(slot.dev.0), u64::from(slot.dev.1));
    (node.file_type().is_block_device() && same) || (!sysfs.is_system() && node.is_file())
}
