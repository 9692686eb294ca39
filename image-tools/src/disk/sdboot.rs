//! What is on the boot partition of a disk that starts through systemd-boot: the loader, both entries, and the boot files of
//! group `a`. Each group's set is a folder of its own, which the agent fills when it has prepared that group.

use std::fs;
use std::path::{Path, PathBuf};

use bascule_boot::sdboot::partition::{Kernel, SecondGroup, factory_files};
use bascule_core::Group;
use bascule_core::boot_set::{SET_KERNEL, boot_set};

use super::error::DiskError;
use super::layout::{Part, ROOT_A, ROOT_B};
use super::{DiskSpec, boot_sets};

/// The loader's name in the folder of boot files, and where Debian's package systemd-boot-efi has it.
const PROGRAM: &str = "systemd-bootx64.efi";
const PACKAGED: &str = "/usr/lib/systemd/boot/efi/systemd-bootx64.efi";

/// The files, by their paths on the partition.
pub(super) fn files(spec: &DiskSpec, parts: &[Part], scratch: &Path) -> Result<Vec<(String, Vec<u8>)>, DiskError> {
    let given = spec.boot_files.join(PROGRAM);
    let program = if given.is_file() { given } else { PathBuf::from(PACKAGED) };
    let mut files = vec![("EFI/BOOT/BOOTX64.EFI".to_owned(), read(&program)?)];
    files.extend(boot_sets::files(spec, scratch)?);
    let second = if boot_sets::is_empty(&spec.root_b) { SecondGroup::Empty } else { SecondGroup::Filled };
    let entry = |slot: &str, group: Group| {
        let part = parts.iter().find(|part| part.name == slot);
        let partuuid = part.map(|part| part.partuuid.as_str()).unwrap_or_default();
        let options = format!("root=PARTUUID={partuuid} rootwait panic=-1 quiet console=ttyS0");
        let linux = format!("/{}/{SET_KERNEL}", boot_set(group));
        Kernel::new("Bascule", &linux, &options).map_err(|fault| DiskError::Entry(fault.to_string()))
    };
    let (a, b) = (entry(ROOT_A, Group::A)?, entry(ROOT_B, Group::B)?);
    files.extend(factory_files(&a, &b, second));
    Ok(files)
}

fn read(path: &Path) -> Result<Vec<u8>, DiskError> {
    fs::read(path).map_err(DiskError::at("reading", path))
}
