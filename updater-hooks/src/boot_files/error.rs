//! Why a group's boot files are not where the loader looks for them.

use std::io;
use std::path::PathBuf;

use bascule_core::Disposition;
use bascule_core::boot_set::{BOOT_FILES, KERNEL};

/// An error of boot files. No group that may be started was touched.
#[derive(Debug, thiserror::Error)]
pub enum BootFileError {
    /// The prepared root cannot be looked into.
    #[error("cannot mount the prepared root to take its boot files: {reason}")]
    Mount {
        /// What the kernel said.
        reason: String,
    },
    /// The prepared root has none.
    #[error("the prepared root has no kernel at /{KERNEL}, and the boot loader cannot look for one in the slot")]
    NoKernel(#[source] io::Error),
    /// The prepared root has no image for the group.
    #[error("the prepared root has no unified kernel image at /{name}, and the boot loader starts the group by one")]
    NoImage {
        /// Its path from the root.
        name: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Somebody has exchanged the file between the look at it and the end of the write.
    #[error("the boot image was written to {path}, which is no longer the file that the loader would start")]
    Moved {
        /// Where it was written.
        path: PathBuf,
    },
    /// A file cannot be taken into the set.
    #[error("the boot file {name} cannot be taken: {fault}")]
    Unfit {
        /// Its path below the folder it was found in.
        name: String,
        /// What is wrong with it.
        fault: String,
    },
    /// A source cannot be read.
    #[error("cannot read the boot files in {path}")]
    Read {
        /// The folder or file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The boot partition is too small.
    #[error("the boot files take {needed} bytes, and the boot partition has {free} for them, in {path}")]
    NoRoom {
        /// The folder they were to go to.
        path: PathBuf,
        /// Bytes they take in whole clusters, their folders included.
        needed: u64,
        /// Bytes that are free or taken by the set that they replace.
        free: u64,
    },
    /// The boot partition is not there.
    #[error("{path} is not on a partition of its own: the boot partition is not mounted")]
    NotMounted {
        /// The folder with the sets.
        path: PathBuf,
    },
    /// The loader's entry names a file that the set has not.
    #[error("the boot loader's entry of the prepared group names {name}, which is not among its boot files")]
    Missing {
        /// The file, from the root of the boot partition.
        name: String,
    },
    /// It could not be written.
    #[error("cannot write the boot file {path}")]
    Write {
        /// Where.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Other bytes came back.
    #[error("the boot file {path} reads back as other bytes than were written")]
    ReadBack {
        /// Where.
        path: PathBuf,
    },
}

impl BootFileError {
    /// Stable code of `docs/errors.md`.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            BootFileError::Mount { .. } => "boot-files.mount",
            BootFileError::NoKernel(_) => "boot-files.no-kernel",
            BootFileError::NoImage { .. } => "boot-files.no-image",
            BootFileError::Moved { .. } => "boot-files.moved",
            BootFileError::Unfit { .. } => "boot-files.unfit",
            BootFileError::Read { .. } => "boot-files.read",
            BootFileError::NoRoom { .. } => "boot-files.no-room",
            BootFileError::NotMounted { .. } => "boot-files.not-mounted",
            BootFileError::Missing { .. } => "boot-files.missing",
            BootFileError::Write { .. } => "boot-files.write",
            BootFileError::ReadBack { .. } => "boot-files.read-back",
        }
    }

    /// What a person can do about it.
    #[must_use]
    pub fn hint(&self) -> String {
        match self {
            BootFileError::Mount { .. } => "build its file system into this kernel, or load the module".into(),
            BootFileError::NoKernel(_) => "put the kernel into the image when it is built".into(),
            BootFileError::NoImage { .. } => {
                "put an image for each group into the image when it is built: docs/loaders.md".into()
            }
            BootFileError::Moved { .. } => {
                "check the boot partition with `fsck.vfat -n`: it may have one file under two names".into()
            }
            BootFileError::Unfit { .. } => format!("see what is in the image's /{BOOT_FILES}: docs/loaders.md"),
            BootFileError::Read { .. } => "check the image, and the boot partition (`fsck.vfat -n`)".into(),
            BootFileError::NoRoom { .. } => {
                "make room on the boot partition, which holds the boot files of both groups, or make them smaller"
                    .into()
            }
            BootFileError::NotMounted { .. } => "mount the boot partition (see `findmnt` and fstab)".into(),
            BootFileError::Missing { .. } => {
                format!("put the file into the image's /{BOOT_FILES}, or take it out of the loader's entry")
            }
            BootFileError::Write { .. } => "check that the boot partition is mounted read-write and healthy".into(),
            BootFileError::ReadBack { .. } => {
                "check the boot partition (`fsck.vfat -n`); a medium that loses writes has to be replaced".into()
            }
        }
    }

    /// What is to be done about it.
    #[must_use]
    pub fn disposition(&self) -> Disposition {
        Disposition::Person
    }
}
