//! What can be wrong with `autoboot.txt`, and with what the firmware says it started.

use std::path::PathBuf;

use bascule_core::{Disposition, Group};

/// Why the firmware's file cannot keep the choice.
#[derive(Debug, thiserror::Error)]
pub enum TrybootError {
    /// The file is somebody else's, or of another form than the one that is changed in place.
    #[error("{} is not of the form that can be changed in place: {what}", .path.display())]
    Shape {
        /// The file.
        path: PathBuf,
        /// What is different.
        what: String,
    },
    /// The configuration does not say which partitions the firmware starts.
    #[error("the configuration names no slots of the role boot, which the firmware starts")]
    NoSlots,
    /// Firmware files and root are not of one group.
    #[error("the firmware started partition {partition}, and the root is that of group {group}, which has {expected}")]
    OtherPartition {
        /// The partition that the firmware started.
        partition: u32,
        /// The group of the mounted root.
        group: Group,
        /// The partition of that group.
        expected: u32,
    },
}

impl TrybootError {
    /// Stable code of `docs/errors.md`.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            TrybootError::Shape { .. } => "boot.tryboot-shape",
            TrybootError::NoSlots => "boot.tryboot-no-slots",
            TrybootError::OtherPartition { .. } => "boot.tryboot-other-partition",
        }
    }

    /// What a person can do about it.
    #[must_use]
    pub fn hint(&self) -> String {
        match self {
            TrybootError::Shape { .. } => "make it anew, 512 bytes long, as docs/loaders.md says".into(),
            TrybootError::NoSlots => {
                "name each group's boot partition: `[slots.boot]`, `a = \"partnum:2\"`, `b = \"partnum:3\"`".into()
            }
            TrybootError::OtherPartition { .. } => {
                "correct root= in the cmdline.txt of that partition, or the slots of the role boot".into()
            }
        }
    }

    /// What is to be done about it.
    #[must_use]
    pub fn disposition(&self) -> Disposition {
        Disposition::Person
    }
}
