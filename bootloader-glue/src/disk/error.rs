//! What can be wrong with a device's disks.

use std::io;
use std::path::PathBuf;

use bascule_core::{Disposition, Group};

/// Why the booted group or the slots could not be told, or a target not be opened.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// A file of the kernel or a device could not be read.
    #[error("cannot read {}", .path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// A file of the kernel does not have the form it has on every kernel we know.
    #[error("{} does not read as expected: {text:?}", .path.display())]
    Form {
        /// The file.
        path: PathBuf,
        /// The start of what it said.
        text: String,
    },
    /// `/` is not a plain partition of a disk.
    #[error("the mounted root is {what}, not a partition of a disk")]
    RootNotAPartition {
        /// What it is, such as `an overlay file system`.
        what: String,
    },
    /// `/` is a partition, but not a root slot.
    #[error("the mounted root {partition} is neither root slot of the configuration")]
    RootIsNoSlot {
        /// The kernel's name of the partition.
        partition: String,
    },
    /// The loader says that it started another group than the one whose root slot is mounted.
    #[error("the boot loader started group {told}, but the mounted root {partition} is the root slot of group {group}")]
    OtherGroup {
        /// The group on the kernel's command line.
        told: Group,
        /// The kernel's name of the mounted partition.
        partition: String,
        /// The group whose root slot that is by the configuration.
        group: Group,
    },
    /// The configuration names no slots of the role `root`.
    #[error("the configuration names no slots of the role root")]
    NoRootRole,
    /// A role stands in the configuration twice.
    #[error("the configuration names the role {role} twice")]
    RoleTwice {
        /// The role.
        role: String,
    },
    /// A selector is not of its form.
    #[error("{text:?} does not select a partition")]
    Selector {
        /// What stood there.
        text: String,
    },
    /// No partition fits a selector.
    #[error("no partition of the root's disk is {selector}, the {role} slot of group {group}")]
    NoSuchPartition {
        /// The selector.
        selector: String,
        /// The role.
        role: String,
        /// The group.
        group: Group,
    },
    /// More than one partition fits a selector.
    #[error("partitions {first} and {second} of the root's disk are both {selector}")]
    Ambiguous {
        /// The selector.
        selector: String,
        /// One of them.
        first: u32,
        /// Another one.
        second: u32,
    },
    /// Two slots are the same partition.
    #[error("partition {partition} is both {first} and {second}")]
    SlotShared {
        /// Its number.
        partition: u32,
        /// One slot.
        first: String,
        /// The other one.
        second: String,
    },
    /// The disk has no usable partition table.
    #[error("{} has no usable GPT: {what}", .device.display())]
    NoTable {
        /// The disk.
        device: PathBuf,
        /// What is wrong.
        what: String,
    },
    /// Both copies of the table are valid, and they differ.
    #[error("the two copies of the partition table of {} differ", .device.display())]
    TableCopiesDiffer {
        /// The disk.
        device: PathBuf,
    },
    /// Two entries of the table overlap.
    #[error("partitions {first} and {second} of {} overlap", .device.display())]
    Overlap {
        /// The disk.
        device: PathBuf,
        /// One entry.
        first: u32,
        /// The other one.
        second: u32,
    },
    /// The kernel uses another table than the disk holds.
    #[error("partition {partition} of {disk} is not where the kernel has it: the table was changed")]
    TableChanged {
        /// The disk.
        disk: String,
        /// The partition's number.
        partition: u32,
    },
    /// Another disk is a clone of this one, or passes for it by the labels that the slots are selected by.
    #[error("the disks {disk} and {clone} have the same {what}")]
    Cloned {
        /// The root's disk.
        disk: String,
        /// The other one.
        clone: String,
        /// What they share.
        what: String,
    },
    /// A slot that may not be written was about to be opened for writing.
    #[error("slot {role} of group {group} is not a target: {why}")]
    NotATarget {
        /// The slot's role.
        role: String,
        /// The slot's group.
        group: Group,
        /// Why not.
        why: String,
    },
    /// A slot of the booted group was to be read and is none.
    #[error("slot {role} of group {group} cannot be read as the booted one: {why}")]
    NotBooted {
        /// The slot's role.
        role: String,
        /// The slot's group.
        group: Group,
        /// Why not.
        why: String,
    },
    /// Someone holds the target.
    #[error("{} is in use: {holder}", .device.display())]
    Held {
        /// The slot's device.
        device: PathBuf,
        /// Who holds it.
        holder: String,
    },
    /// The target could not be opened.
    #[error("cannot open {} for writing", .device.display())]
    Open {
        /// The slot's device.
        device: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
}

impl DiskError {
    /// Stable code of `docs/errors.md`.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            DiskError::Read { .. } => "disk.read",
            DiskError::Form { .. } => "disk.form",
            DiskError::RootNotAPartition { .. } => "disk.root-not-a-partition",
            DiskError::RootIsNoSlot { .. } => "disk.root-is-no-slot",
            DiskError::OtherGroup { .. } => "disk.other-group",
            DiskError::NoRootRole => "disk.no-root-role",
            DiskError::RoleTwice { .. } => "disk.role-twice",
            DiskError::Selector { .. } => "disk.selector",
            DiskError::NoSuchPartition { .. } => "disk.no-such-partition",
            DiskError::Ambiguous { .. } => "disk.ambiguous",
            DiskError::SlotShared { .. } => "disk.slot-shared",
            DiskError::NoTable { .. } => "disk.no-table",
            DiskError::TableCopiesDiffer { .. } => "disk.table-copies-differ",
            DiskError::Overlap { .. } => "disk.overlap",
            DiskError::TableChanged { .. } => "disk.table-changed",
            DiskError::Cloned { .. } => "disk.cloned",
            DiskError::NotATarget { .. } => "disk.not-a-target",
            DiskError::NotBooted { .. } => "disk.not-booted",
            DiskError::Held { .. } => "disk.held",
            DiskError::Open { .. } => "disk.open",
        }
    }

    /// What a person can do about it.
    #[must_use]
    pub fn hint(&self) -> String {
        let hint = match self {
            DiskError::Read { .. } | DiskError::Form { .. } => {
                "the daemon needs /proc, /sys and /dev of the host, as root"
            }
            DiskError::RootNotAPartition { .. } => {
                "start the system from one of its slots: live systems, overlays, network roots, LUKS and LVM are not updated"
            }
            DiskError::RootIsNoSlot { .. } | DiskError::NoSuchPartition { .. } => {
                "compare the slots of the configuration with `lsblk -o NAME,PARTLABEL,PARTUUID`"
            }
            DiskError::OtherGroup { .. } => {
                "labels, GUIDs or the slots of the configuration were swapped: compare them with the partitions that the loader \
                 starts the groups from"
            }
            DiskError::NoRootRole => "name both root slots in the configuration",
            DiskError::RoleTwice { .. } => "name each role once, with a selector for each group",
            DiskError::Selector { .. } => "write partlabel:NAME, partuuid:UUID or partnum:NUMBER",
            DiskError::Ambiguous { .. } => {
                "select the slot by partuuid: or partnum:, or give the partitions different labels"
            }
            DiskError::SlotShared { .. } => "each slot needs a partition of its own",
            DiskError::NoTable { .. } => "repair the partition table, for instance with `sgdisk --verify`",
            DiskError::TableCopiesDiffer { .. } => "decide which copy is right and repair the other one with `sgdisk`",
            DiskError::Overlap { .. } => "repair the partition table: one of the entries is wrong",
            DiskError::TableChanged { .. } => "restart the device, so that the kernel reads the partition table again",
            DiskError::Cloned { .. } => {
                "remove one of the disks, or give it new GUIDs with `sgdisk --randomize-guids`, and other labels where the slots \
                 are selected by partlabel:"
            }
            DiskError::NotATarget { .. } | DiskError::NotBooted { .. } => {
                "this is a fault of the program; please report it"
            }
            DiskError::Held { .. } => "unmount or stop what holds it; nothing was written",
            DiskError::Open { .. } => "the daemon must run as root, and the device must be writable",
        };
        hint.to_owned()
    }

    /// What is to be done about it.
    #[must_use]
    pub fn disposition(&self) -> Disposition {
        match self {
            DiskError::Read { .. } | DiskError::Held { .. } | DiskError::Open { .. } => Disposition::Retry,
            _ => Disposition::Person,
        }
    }
}
