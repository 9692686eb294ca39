//! Opening the slots of the booted group: to read, never to write.

use std::fs::{File, OpenOptions};

use bascule_core::BootedGroup;

use super::{DiskError, Slot, Sysfs, is_located};

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
    if !is_located(&file.metadata().map_err(failed)?, slot, sysfs) {
        return Err(refuse("its device node is not the partition that was located"));
    }
    Ok(file)
}
