//! What can be wrong with a partition table that is to hold the choice.

use std::path::PathBuf;

use bascule_core::{Disposition, Group};

/// Why the attributes in a partition table cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum GptError {
    /// Neither copy of the table is whole, or it is of a form that is not written here.
    #[error("{} has no partition table to keep the choice in: {what}", .device.display())]
    NoTable {
        /// The disk.
        device: PathBuf,
        /// What is wrong.
        what: &'static str,
    },
    /// The copies differ in more than the bits that are ours.
    #[error("the two copies of the partition table of {} differ in more than the attributes of the slots", .device.display())]
    CopiesDiffer {
        /// The disk.
        device: PathBuf,
    },
    /// An entry is not the one that was found when the device was looked at.
    #[error("partition {number} of {} is not the slot of group {group}: {what}", .device.display())]
    Entry {
        /// The disk.
        device: PathBuf,
        /// The partition's number.
        number: u32,
        /// The group.
        group: Group,
        /// Why not.
        what: &'static str,
    },
    /// The loader would pick from a third partition, too.
    #[error("partition {number} of {} has the slots' type, a priority and tries: the loader may start it", .device.display())]
    Rival {
        /// The disk.
        device: PathBuf,
        /// The partition's number.
        number: u32,
    },
}

impl GptError {
    /// Stable code of `docs/errors.md`.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            GptError::NoTable { .. } => "boot.gpt-no-table",
            GptError::CopiesDiffer { .. } => "boot.gpt-copies-differ",
            GptError::Entry { .. } => "boot.gpt-entry",
            GptError::Rival { .. } => "boot.gpt-rival",
        }
    }

    /// What a person can do about it.
    #[must_use]
    pub fn hint(&self) -> String {
        match self {
            GptError::NoTable { device, .. } => format!("look at it with `sgdisk --verify {}`", device.display()),
            GptError::CopiesDiffer { device } => format!(
                "decide which copy is right and repair the other one with `sgdisk` (`sgdisk --verify {}`)",
                device.display()
            ),
            GptError::Entry { .. } => {
                "restart the device if its disk was partitioned anew; both slots need a type of their own in common"
                    .into()
            }
            GptError::Rival { device, number } => {
                format!("take its priority away: `cgpt add -i {number} -P 0 -T 0 -S 0 {}`", device.display())
            }
        }
    }

    /// What is to be done about it.
    #[must_use]
    pub fn disposition(&self) -> Disposition {
        Disposition::Person
    }
}
