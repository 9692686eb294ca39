//! Opening the slots of the booted group: to read, never to write.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileTypeExt, MetadataExt};

use bascule_core::BootedGroup;
use nix::sys::stat::{major, minor};

use super::{DiskError, Slot, Sysfs};

/// Opens a slot of the booted group for reading. It may be mounted; what is read is what the device holds now.
///
/// # Errors
/// [`DiskError::NotBooted`] when it is not a slot of the booted group, or its node is another device.
pub fn open_booted(slot: &Slot, booted: BootedGroup, sysfs: &Sysfs) -> Result<File, DiskError> {
    let refuse = |why: &str| DiskError::NotBooted { role: slot.role.clone(), group: slot.group, why: why.to_owned() };
    if slot.group != booted.group() {
        return Err(refuse("it belongs to the other group"));
    }
    let failed = |source| DiskError::Open { device: slot.device.clone(), source };
    let file = OpenOptions::new().read(true).open(&slot.device).map_err(failed)?;
    if sysfs.is_system() {
        let opened = file.metadata().map_err(failed)?;
        let number = opened.rdev();
        let same = (major(number), minor(number)) == (u64::from(slot.dev.0), u64::from(slot.dev.1));
        if !opened.file_type().is_block_device() || !same {
            return Err(refuse("its device node is not the partition that was located"));
        }
    }
    Ok(file)
}
