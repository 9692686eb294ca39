//! Opening the one device that may be written.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};

use bascule_core::TargetGroup;
use nix::libc;
use nix::sys::stat::{major, minor};

use super::{DiskError, Slot, Sysfs};

/// Opens a slot of the target group for reading and writing, exclusively.
///
/// Never creates and never truncates. The open device is the one that was located: same device number, same place on
/// the disk, not mounted. In a rehearsal (`sysfs.root` is not `/`) the node is a regular file and has no device number.
///
/// # Errors
/// [`DiskError::NotATarget`] when the slot may not be written, [`DiskError::Held`] when someone uses it,
/// [`DiskError::TableChanged`] when the partition moved since it was located.
pub fn open_target(slot: &Slot, target: TargetGroup, sysfs: &Sysfs) -> Result<File, DiskError> {
    // Stopping anywhere in here is safe: nothing is written before the caller has the file.
    let refuse = |why: &str| DiskError::NotATarget { role: slot.role.clone(), group: slot.group, why: why.to_owned() };
    if slot.group != target.group() {
        return Err(refuse("it belongs to the booted group"));
    }
    let mounts = sysfs.mounts()?;
    if mounts.iter().any(|mount| mount.point == "/" && mount.dev == slot.dev) {
        return Err(refuse("it is the mounted root"));
    }
    if let Some(mount) = mounts.iter().find(|mount| mount.dev == slot.dev) {
        return Err(DiskError::Held { device: slot.device.clone(), holder: format!("mounted at {}", mount.point) });
    }
    if sysfs.extent(slot.dev)? != (slot.start, slot.size) {
        return Err(DiskError::TableChanged { disk: slot.device.display().to_string(), partition: slot.partition });
    }
    let file = OpenOptions::new().read(true).write(true).custom_flags(libc::O_EXCL).open(&slot.device);
    let file = file.map_err(|source| match source.raw_os_error() {
        Some(libc::EBUSY) => DiskError::Held { device: slot.device.clone(), holder: holder(slot, sysfs) },
        _ => DiskError::Open { device: slot.device.clone(), source },
    })?;
    if sysfs.is_system() {
        let opened = file.metadata().map_err(|source| DiskError::Open { device: slot.device.clone(), source })?;
        let number = opened.rdev();
        let same = (major(number), minor(number)) == (u64::from(slot.dev.0), u64::from(slot.dev.1));
        if !opened.file_type().is_block_device() || !same {
            return Err(refuse("its device node is not the partition that was located"));
        }
    }
    Ok(file)
}

/// Says who keeps a device from being opened exclusively.
fn holder(slot: &Slot, sysfs: &Sysfs) -> String {
    let holders = sysfs.holders(slot.dev);
    if !holders.is_empty() {
        return format!("part of {}", holders.join(", "));
    }
    let swaps = fs::read_to_string(sysfs.path("proc/swaps")).unwrap_or_default();
    let node = slot.device.to_string_lossy();
    if swaps.lines().any(|line| line.split_whitespace().next() == Some(&*node)) {
        return "used as swap".to_owned();
    }
    "another process has it open exclusively, or it is mounted in another namespace".to_owned()
}
