//! What is on the boot partition of a disk that starts through systemd-boot: the loader, both entries, and the kernel of
//! group `a`. Each group's kernel is a file of its own, which the agent writes when it has prepared that group.

use std::fs;
use std::path::{Path, PathBuf};

use bascule_boot::sdboot::partition::{Kernel, SecondGroup, factory_files};

use super::error::DiskError;
use super::layout::{Part, ROOT_A, ROOT_B};
use super::{DiskSpec, SlotContent, tool};

/// The loader's name in the folder of boot files, and where Debian's package systemd-boot-efi has it.
const PROGRAM: &str = "systemd-bootx64.efi";
const PACKAGED: &str = "/usr/lib/systemd/boot/efi/systemd-bootx64.efi";
/// Where a root has its kernel.
const KERNEL: &str = "boot/vmlinuz";

/// The files, by their paths on the partition.
pub(super) fn files(spec: &DiskSpec, parts: &[Part], scratch: &Path) -> Result<Vec<(String, Vec<u8>)>, DiskError> {
    let given = spec.boot_files.join(PROGRAM);
    let program = if given.is_file() { given } else { PathBuf::from(PACKAGED) };
    let mut files = vec![("EFI/BOOT/BOOTX64.EFI".to_owned(), read(&program)?)];
    files.extend(kernels(spec, scratch)?);
    let second = if is_empty(&spec.root_b) { SecondGroup::Empty } else { SecondGroup::Filled };
    let entry = |slot: &str, linux: &str| {
        let part = parts.iter().find(|part| part.name == slot);
        let partuuid = part.map(|part| part.partuuid.as_str()).unwrap_or_default();
        let options = format!("root=PARTUUID={partuuid} rootwait panic=-1 quiet console=ttyS0");
        Kernel::new("Bascule", linux, &options).map_err(|fault| DiskError::Entry(fault.to_string()))
    };
    let (a, b) = (entry(ROOT_A, "/bascule/linux-a")?, entry(ROOT_B, "/bascule/linux-b")?);
    files.extend(factory_files(&a, &b, second));
    Ok(files)
}

/// The kernel of each group that is not empty.
pub(super) fn kernels(spec: &DiskSpec, scratch: &Path) -> Result<Vec<(String, Vec<u8>)>, DiskError> {
    let groups = [("bascule/linux-a", &spec.root_a), ("bascule/linux-b", &spec.root_b)];
    let filled = groups.into_iter().filter(|(_, slot)| !is_empty(slot));
    filled.map(|(path, slot)| Ok((path.to_owned(), kernel(slot, scratch)?))).collect()
}

fn is_empty(slot: &SlotContent) -> bool {
    matches!(slot, SlotContent::Empty)
}

fn kernel(slot: &SlotContent, scratch: &Path) -> Result<Vec<u8>, DiskError> {
    let (place, kernel) = match slot {
        SlotContent::Tree(tree) => {
            let place = tree.join(KERNEL);
            // A link could lead to a file of this host.
            let is_file = fs::symlink_metadata(&place).is_ok_and(|about| about.is_file());
            (place.clone(), if is_file { read(&place)? } else { Vec::new() })
        }
        SlotContent::Image(image) => {
            // debugfs ends with 0 also when there is no such file, or when it is a link: then nothing comes out.
            let place = scratch.join("kernel");
            fs::write(&place, []).map_err(DiskError::at("writing", &place))?;
            let request = format!("dump /{KERNEL} {}", place.display());
            tool::run("debugfs", vec!["-R".into(), request.into(), image.into()], &[])?;
            (image.clone(), read(&place)?)
        }
        SlotContent::Empty => return Ok(Vec::new()),
    };
    if kernel.is_empty() {
        return Err(DiskError::BootFile { path: place, fault: "is no regular file /boot/vmlinuz with a kernel" });
    }
    Ok(kernel)
}

fn read(path: &Path) -> Result<Vec<u8>, DiskError> {
    fs::read(path).map_err(DiskError::at("reading", path))
}
