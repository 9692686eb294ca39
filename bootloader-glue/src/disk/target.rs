//! Opening the one device that may be written.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;

use bascule_core::TargetGroup;
use nix::libc;

use super::table::Table;
use super::{DiskError, Slot, Sysfs, is_located};

/// Opens a slot of the target group for reading and writing, exclusively.
///
/// Never creates and never truncates. Whatever was located before is looked at again, because disks come and go and
/// tables are changed while an update is under way:
///
/// - neither the slot nor anything stacked on it is mounted;
/// - it lies on the disk of the mounted root, where it was found, in the kernel's table and in the one on the disk;
/// - the device that was opened has the number that was located.
///
/// In a rehearsal (`sysfs.root` is not `/`) the node is a regular file and has no device number.
///
/// # Errors
/// [`DiskError::NotATarget`] when the slot may not be written, [`DiskError::Held`] when someone uses it,
/// [`DiskError::TableChanged`] when the partition moved since it was located.
pub fn open_target(slot: &Slot, target: TargetGroup, sysfs: &Sysfs) -> Result<File, DiskError> {
    // Stopping anywhere in here is safe: nothing is written before the caller has the file.
    if slot.group != target.group() {
        return Err(refused(slot, "it belongs to the booted group"));
    }
    check_unused(slot, sysfs)?;
    check_place(slot, sysfs)?;
    let file = OpenOptions::new().read(true).write(true).custom_flags(libc::O_EXCL).open(&slot.device);
    let file = file.map_err(|source| match source.raw_os_error() {
        Some(libc::EBUSY) => held(slot, holder(slot, sysfs)),
        _ => DiskError::Open { device: slot.device.clone(), source },
    })?;
    let opened = file.metadata().map_err(|source| DiskError::Open { device: slot.device.clone(), source })?;
    if is_located(&opened, slot, sysfs) {
        Ok(file)
    } else {
        Err(refused(slot, "its device node is not the partition that was located"))
    }
}

/// Refuses a slot that is mounted, or that a mounted volume is made of. The exclusive open refuses most of this as well,
/// but not every loop device, and it cannot say who it is.
fn check_unused(slot: &Slot, sysfs: &Sysfs) -> Result<(), DiskError> {
    let mounts = sysfs.mounts()?;
    let users: Vec<&str> = mounts
        .iter()
        .filter(|mount| sysfs.is_made_of(mount, slot.dev, &slot.device))
        .map(|mount| mount.point.as_str())
        .collect();
    if users.contains(&"/") {
        return Err(refused(slot, "it is the mounted root"));
    }
    if let Some(point) = users.first() {
        return Err(held(slot, format!("mounted at {point}")));
    }
    match sysfs.holders(slot.dev, &slot.device).as_slice() {
        [] => Ok(()),
        holders => Err(held(slot, format!("part of {}", holders.join(", ")))),
    }
}

/// Refuses a slot that is not where it was found: on the disk of the mounted root, in the kernel's table, and in the
/// table on the disk, which the kernel reads at its next start.
fn check_place(slot: &Slot, sysfs: &Sysfs) -> Result<(), DiskError> {
    let partition = sysfs.partition_numbered(slot.dev)?;
    let (root, disk) = (sysfs.disk_of(&sysfs.mounted_root()?)?, sysfs.disk_of(&partition)?);
    if root != disk {
        return Err(refused(slot, "it is not on the disk of the mounted root"));
    }
    let moved = || DiskError::TableChanged { disk: disk.name.clone(), partition: slot.partition };
    if (partition.number, partition.start, partition.size) != (slot.partition, slot.start, slot.size) {
        return Err(moved());
    }
    let table = Table::read(&disk.device, disk.sector_size)?;
    match table.entry(slot.partition) {
        Some(entry) if (entry.start, entry.size) == (slot.start, slot.size) && entry.guid == slot.partuuid => Ok(()),
        _ => Err(moved()),
    }
}

fn refused(slot: &Slot, why: &str) -> DiskError {
    DiskError::NotATarget { role: slot.role.clone(), group: slot.group, why: why.to_owned() }
}

fn held(slot: &Slot, holder: String) -> DiskError {
    DiskError::Held { device: slot.device.clone(), holder }
}

/// Says who keeps a device from being opened exclusively.
fn holder(slot: &Slot, sysfs: &Sysfs) -> String {
    let swaps = fs::read_to_string(sysfs.path("proc/swaps")).unwrap_or_default();
    let node = slot.device.to_string_lossy();
    if swaps.lines().any(|line| line.split_whitespace().next() == Some(&*node)) {
        return "used as swap".to_owned();
    }
    "another process has it open exclusively, or it is mounted in another namespace".to_owned()
}
