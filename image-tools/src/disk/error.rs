//! Why a disk image could not be made.

use std::io;
use std::path::{Path, PathBuf};

use bascule_boot::BootError;
use bascule_core::Group;
use bascule_core::boot_set::boot_image;

/// A disk or file system image that could not be made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DiskError {
    /// A tool is not installed.
    #[error("the program {program} cannot be started")]
    ToolMissing {
        /// Its name.
        program: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A tool failed.
    #[error("{program} failed: {said}")]
    ToolFailed {
        /// Its name.
        program: String,
        /// What it wrote last.
        said: String,
    },
    /// A file cannot be read or written.
    #[error("{what} {path:?} failed")]
    File {
        /// What was being done.
        what: &'static str,
        /// To which file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// An image is larger than its partition.
    #[error("{image:?} does not fit into partition {part} of {size} bytes")]
    TooSmall {
        /// The partition.
        part: String,
        /// Its size in bytes.
        size: u64,
        /// The image.
        image: PathBuf,
    },
    /// A size makes no sense.
    #[error("a size of {size} bytes for {part} is not a whole number of MiB of at least {least} MiB")]
    Size {
        /// The partition.
        part: String,
        /// The size.
        size: u64,
        /// The least size in MiB.
        least: u64,
    },
    /// A loader's settings could not be made.
    #[error("cannot make the loader's settings: {0}")]
    Entry(String),
    /// The partition table could not be written.
    #[error("writing the partition table failed")]
    Table(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// A file of the loader breaks a rule.
    #[error("the loader's file {path:?} {fault}")]
    BootFile {
        /// Which.
        path: PathBuf,
        /// Which rule.
        fault: &'static str,
    },
    /// Unified kernel images are asked for with a loader that goes by none.
    #[error("only systemd-boot starts groups by unified kernel images")]
    OtherLoader,
    /// A root has no unified kernel image for the group that it goes into.
    #[error("{root:?} has no unified kernel image for group {group}: no regular file /{} with anything in it", boot_image(*.group))]
    NoImage {
        /// The root's tree or image.
        root: PathBuf,
        /// The group.
        group: Group,
    },
    /// The roots' unified kernel images cannot be boot entries of this disk.
    #[error("the disk's boot entries cannot be made")]
    Image(#[source] BootError),
}

impl DiskError {
    pub(crate) fn at(what: &'static str, path: &Path) -> impl Fn(io::Error) -> DiskError + use<> {
        let path = path.to_owned();
        move |source| DiskError::File { what, path: path.clone(), source }
    }

    /// The stable code.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            DiskError::ToolMissing { .. } => "disk.tool-missing",
            DiskError::ToolFailed { .. } => "disk.tool-failed",
            DiskError::File { .. } => "disk.file",
            DiskError::TooSmall { .. } => "disk.too-small",
            DiskError::Size { .. } => "disk.size",
            DiskError::Table(_) => "disk.table",
            DiskError::BootFile { .. } => "disk.boot-file",
            DiskError::Entry(_) => "disk.boot-settings",
            DiskError::OtherLoader => "disk.other-loader",
            DiskError::NoImage { .. } => "disk.no-unified-image",
            DiskError::Image(_) => "disk.unified-image",
        }
    }

    /// What a person can do about it.
    #[must_use]
    pub fn hint(&self) -> String {
        match self {
            DiskError::ToolMissing { program, .. } => {
                let package = match program.as_str() {
                    "grub-mkimage" => "grub-common and grub-efi-amd64-bin",
                    _ => "e2fsprogs",
                };
                format!("install the Debian package {package}")
            }
            DiskError::ToolFailed { program, .. } if program == "mke2fs" => {
                "if the tree does not fit, make the slot larger with --slot-size or --size".into()
            }
            DiskError::ToolFailed { .. } => "see what the program said".into(),
            DiskError::File { .. } => "check the path, its permissions and free space".into(),
            DiskError::TooSmall { .. } => "make the slot larger with --slot-size".into(),
            DiskError::Size { .. } => "give sizes such as 512M or 2G".into(),
            DiskError::Table(_) => "this is a fault in Bascule: please report it".into(),
            DiskError::Entry(_) => "check the loader's files, named with --boot-files".into(),
            DiskError::BootFile { .. } => {
                "take the files of bootloader-glue/grub, or name their directory with --boot-files".into()
            }
            DiskError::OtherLoader => "add --loader systemd-boot, or leave --unified out".into(),
            DiskError::NoImage { group, .. } => format!(
                "make it with `ukify`, for the root that `bascule-image disk layout` names, and put it into the root as /{}; \
                 docs/loaders.md says how. Without --unified the disk starts by the root's /boot/vmlinuz",
                boot_image(*group)
            ),
            DiskError::Image(_) => {
                "make the images for this disk: `bascule-image disk layout` with the same --seed says its \
                 PARTUUIDs, docs/loaders.md how"
                    .into()
            }
        }
    }
}
