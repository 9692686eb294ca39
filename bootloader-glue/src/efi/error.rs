//! What can go wrong with the firmware's variables, beside what can go wrong with any loader's settings.

use std::io;
use std::path::PathBuf;

use bascule_core::{Disposition, Group};

use super::option::description;
use crate::disk::DiskError;

/// Why the firmware's variables cannot be used as they are.
#[derive(Debug, thiserror::Error)]
pub enum EfiError {
    /// The directory holds no variable of the firmware.
    #[error("{} holds no variable of the firmware", .dir.display())]
    NotMounted {
        /// The directory.
        dir: PathBuf,
    },
    /// A group's boot entry is lost, or somebody made a second one.
    #[error("{found} boot entries in {} are called `{}`, not one", .dir.display(), description(*.group))]
    Entry {
        /// The directory of the variables.
        dir: PathBuf,
        /// The group.
        group: Group,
        /// How many entries have its description.
        found: usize,
    },
    /// A group's boot entry starts something else than the kernel that is written for the group.
    #[error("{} starts {found}, but the kernel of group {group} is written to {wanted}", .path.display())]
    OtherProgram {
        /// The variable's file.
        path: PathBuf,
        /// The group.
        group: Group,
        /// What the entry starts, in words.
        found: String,
        /// What it would have to start.
        wanted: String,
    },
    /// It cannot be told which partition is mounted where kernels are written to.
    #[error("cannot tell which partition is mounted at {}", .path.display())]
    BootPartition {
        /// Where it would have to be mounted.
        path: PathBuf,
        /// Why not; `None` where no partition of a GUID partition table is.
        #[source]
        source: Option<DiskError>,
    },
    /// The firmware has no room for the variable.
    #[error("the firmware has no room for {}", .path.display())]
    Full {
        /// The variable's file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The firmware or the kernel does not let the variable be changed.
    #[error("the firmware or the kernel refuses a change of {}", .path.display())]
    Refused {
        /// The variable's file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// A text that a boot entry cannot hold.
    #[error("a boot entry cannot hold this {what}: {text:?}")]
    Text {
        /// What the text is.
        what: &'static str,
        /// The text.
        text: String,
    },
}

impl EfiError {
    /// Stable code of `docs/errors.md`.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            EfiError::NotMounted { .. } => "boot.efi-not-mounted",
            EfiError::Entry { .. } => "boot.efi-entry",
            EfiError::OtherProgram { .. } => "boot.efi-other-program",
            EfiError::BootPartition { .. } => "boot.efi-partition",
            EfiError::Full { .. } => "boot.efi-full",
            EfiError::Refused { .. } => "boot.efi-refused",
            EfiError::Text { .. } => "boot.efi-text",
        }
    }

    /// What a person can do about it.
    #[must_use]
    pub fn hint(&self) -> String {
        match self {
            EfiError::NotMounted { dir } => {
                format!("start the system by UEFI and mount efivarfs there: `mount -t efivarfs efivarfs {}`", dir.display())
            }
            EfiError::Entry { group, found: 0, .. } => format!(
                "make the entry again with `efibootmgr --create-only --label '{}' --disk DISK --part NUMBER --loader FILE`",
                description(*group)
            ),
            EfiError::Entry { .. } => {
                "look with `efibootmgr -v` which of them is right, and delete the others with `efibootmgr -B -b NUMBER`".into()
            }
            EfiError::OtherProgram { group, .. } => format!(
                "delete it with `efibootmgr -B -b NUMBER` and make it again with `efibootmgr --create-only --label '{}' --disk \
                 DISK --part NUMBER --loader '\\bascule\\{group}\\linux'`, for the partition that is mounted as boot partition",
                description(*group)
            ),
            EfiError::BootPartition { path, .. } => {
                format!("mount the boot partition that the firmware starts from at {}", path.display())
            }
            EfiError::Full { .. } => {
                "the firmware's variable store is full: delete variables that nobody needs, such as `dump-type0-*`".into()
            }
            EfiError::Refused { .. } => {
                "check that efivarfs is mounted read-write, that the firmware allows changes after the start, and that the \
                 daemon has the capability CAP_LINUX_IMMUTABLE"
                    .into()
            }
            EfiError::Text { .. } => {
                "use characters of the basic multilingual plane, none of them NUL, and fewer than 30000 of them".into()
            }
        }
    }

    /// What is to be done about it.
    #[must_use]
    pub fn disposition(&self) -> Disposition {
        match self {
            EfiError::NotMounted { .. } => Disposition::Retry,
            EfiError::BootPartition { .. } => Disposition::Retry,
            EfiError::OtherProgram { .. }
            | EfiError::Entry { .. }
            | EfiError::Full { .. }
            | EfiError::Refused { .. }
            | EfiError::Text { .. } => Disposition::Person,
        }
    }
}
