//! Where a group's boot files are: in its root, and on the boot partition for a loader that cannot read the root.
//!
//! The host that makes a disk and the device that prepares a group mean the same files by these names.

use crate::words::Group;

/// Where a root has its kernel.
pub const KERNEL: &str = "boot/vmlinuz";
/// Where a root has its other boot files: device trees, firmware files, an initramfs, in folders of any names.
pub const BOOT_FILES: &str = "usr/lib/bascule/boot/files";
/// The kernel's name in a set.
pub const SET_KERNEL: &str = "linux";

/// Where a root has the unified kernel images of the groups, for a loader that starts them by such: each group has its own, for
/// the words that the kernel is started with are in it.
pub const BOOT_IMAGES: &str = "usr/lib/bascule/boot/uki";

/// A group's unified kernel image in a root.
#[must_use]
pub fn boot_image(group: Group) -> String {
    format!("{BOOT_IMAGES}/{}.efi", group.letter())
}

/// The folder of a group's set, from the root of the boot partition.
#[must_use]
pub fn boot_set(group: Group) -> String {
    format!("bascule/{}", group.letter())
}
