//! What is on the boot partition of a disk that starts through systemd-boot: the loader, both entries, and the boot files of
//! group `a`. Each group's set is a folder of its own, which the agent fills when it has prepared that group.
//!
//! Where the entries are unified kernel images there are no sets: an image is the entry and has everything.

use std::fs::{self, File};
use std::path::Path;

use bascule_boot::sdboot::partition::{Kernel, SecondGroup, factory_files, factory_images};
use bascule_boot::sdboot::{NewImage, check_new_images};
use bascule_core::Group;
use bascule_core::boot_set::{SET_KERNEL, boot_set};

use super::error::DiskError;
use super::layout::{Part, ROOT_A, ROOT_B};
use super::{DiskSpec, Entries, SYSTEMD_BOOT_FILES, boot_sets};

/// The loader's name in the folder of boot files, and in the host's.
const PROGRAM: &str = "systemd-bootx64.efi";

/// The files, by their paths on the partition.
pub(super) fn files(spec: &DiskSpec, parts: &[Part], scratch: &Path) -> Result<Vec<(String, Vec<u8>)>, DiskError> {
    let given = spec.boot_files.join(PROGRAM);
    let program = if given.is_file() { given } else { Path::new(SYSTEMD_BOOT_FILES).join(PROGRAM) };
    let mut files = vec![("EFI/BOOT/BOOTX64.EFI".to_owned(), read(&program)?)];
    files.extend(match spec.entries {
        Entries::Texts => texts(spec, parts, scratch)?,
        Entries::Images => images(spec, parts, scratch)?,
    });
    Ok(files)
}

fn texts(spec: &DiskSpec, parts: &[Part], scratch: &Path) -> Result<Vec<(String, Vec<u8>)>, DiskError> {
    let mut files = boot_sets::files(spec, scratch)?;
    let second = if boot_sets::is_empty(&spec.root_b) { SecondGroup::Empty } else { SecondGroup::Filled };
    let entry = |slot: &str, group: Group| {
        let options = format!("root=PARTUUID={} rootwait panic=-1 quiet console=ttyS0", partuuid(parts, slot));
        let linux = format!("/{}/{SET_KERNEL}", boot_set(group));
        Kernel::new("Bascule", &linux, &options).map_err(|fault| DiskError::Entry(fault.to_string()))
    };
    let (a, b) = (entry(ROOT_A, Group::A)?, entry(ROOT_B, Group::B)?);
    files.extend(factory_files(&a, &b, second));
    Ok(files)
}

/// The roots bring them. They are looked at as the agent does with each that follows: what is wrong here would be found out
/// only when the device does not start.
fn images(spec: &DiskSpec, parts: &[Part], scratch: &Path) -> Result<Vec<(String, Vec<u8>)>, DiskError> {
    let open = |slot, group| {
        let found = boot_sets::image(slot, group, scratch)?;
        found.map(|path| File::open(&path).map(|file| (file, path.clone())).map_err(at(&path))).transpose()
    };
    let a = open(&spec.root_a, Group::A)?;
    let (image, path) =
        a.as_ref().ok_or_else(|| DiskError::Entry("group a has no root to take its image from".into()))?;
    let b = open(&spec.root_b, Group::B)?;
    let mut new = vec![NewImage { group: Group::A, image, root: partuuid(parts, ROOT_A) }];
    new.extend(b.iter().map(|(image, _)| NewImage { group: Group::B, image, root: partuuid(parts, ROOT_B) }));
    check_new_images(&new).map_err(DiskError::Image)?;
    Ok(factory_images(read(path)?, b.as_ref().map(|(_, path)| read(path)).transpose()?))
}

fn partuuid<'p>(parts: &'p [Part], slot: &str) -> &'p str {
    parts.iter().find(|part| part.name == slot).map(|part| part.partuuid.as_str()).unwrap_or_default()
}

fn at(path: &Path) -> impl Fn(std::io::Error) -> DiskError + use<> {
    DiskError::at("reading", path)
}

fn read(path: &Path) -> Result<Vec<u8>, DiskError> {
    fs::read(path).map_err(at(path))
}
