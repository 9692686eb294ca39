//! The boot files of the groups on a new disk, for a loader that cannot read the slots: what the agent would have put there
//! when it prepared them.

use std::fs;
use std::path::{Path, PathBuf};

use bascule_core::Group;
use bascule_core::boot_set::{BOOT_FILES, KERNEL, SET_KERNEL, boot_image, boot_set};

use super::error::DiskError;
use super::{DiskSpec, SlotContent, tool};

/// The sets of the groups that are not empty, by their paths on the boot partition.
pub(super) fn files(spec: &DiskSpec, scratch: &Path) -> Result<Vec<(String, Vec<u8>)>, DiskError> {
    let mut files = Vec::new();
    for (group, slot) in [(Group::A, &spec.root_a), (Group::B, &spec.root_b)] {
        let folder = boot_set(group);
        let here = scratch.join(format!("boot-files-{group}"));
        fs::create_dir(&here).map_err(DiskError::at("making", &here))?;
        match slot {
            SlotContent::Empty => continue,
            SlotContent::Tree(tree) => {
                files.push((format!("{folder}/{SET_KERNEL}"), kernel(&tree.join(KERNEL), tree)?));
                walk(&tree.join(BOOT_FILES), &folder, &mut files)?;
            }
            SlotContent::Image(image) => {
                let (kernel_here, others) = (here.join("kernel"), here.join("files"));
                fs::create_dir(&others).map_err(DiskError::at("making", &others))?;
                debugfs(image, &format!("dump /{KERNEL} {}", kernel_here.display()))?;
                debugfs(image, &format!("rdump /{BOOT_FILES} {}", others.display()))?;
                files.push((format!("{folder}/{SET_KERNEL}"), kernel(&kernel_here, image)?));
                let name = Path::new(BOOT_FILES).file_name().unwrap_or_default();
                walk(&others.join(name), &folder, &mut files)?;
            }
        }
    }
    Ok(files)
}

/// A file with the unified kernel image that a slot's root has for the group, which is not empty; `None` for an empty slot.
pub(super) fn image(slot: &SlotContent, group: Group, scratch: &Path) -> Result<Option<PathBuf>, DiskError> {
    let name = boot_image(group);
    let (place, root) = match slot {
        SlotContent::Empty => return Ok(None),
        SlotContent::Tree(tree) => (tree.join(&name), tree),
        SlotContent::Image(image) => {
            let place = scratch.join(format!("boot-image-{group}"));
            debugfs(image, &format!("dump /{name} {}", place.display()))?;
            (place, image)
        }
    };
    let is_there = regular(&place) == Some(true) && fs::metadata(&place).is_ok_and(|about| about.len() > 0);
    if is_there { Ok(Some(place)) } else { Err(DiskError::NoImage { root: root.clone(), group }) }
}

pub(super) fn is_empty(slot: &SlotContent) -> bool {
    matches!(slot, SlotContent::Empty)
}

/// It ends with 0 also when there is no such file: then nothing comes out.
fn debugfs(image: &Path, request: &str) -> Result<(), DiskError> {
    tool::run("debugfs", vec!["-R".into(), request.into(), image.into()], &[])
}

fn kernel(place: &Path, of: &Path) -> Result<Vec<u8>, DiskError> {
    match regular(place) {
        Some(true) => {
            let bytes = fs::read(place).map_err(DiskError::at("reading", place))?;
            if bytes.is_empty() { Err(no_kernel(of)) } else { Ok(bytes) }
        }
        _ => Err(no_kernel(of)),
    }
}

fn no_kernel(of: &Path) -> DiskError {
    DiskError::BootFile { path: of.to_owned(), fault: "has no regular file /boot/vmlinuz with a kernel" }
}

/// Adds every file below `from`, if that is there.
fn walk(from: &Path, folder: &str, files: &mut Vec<(String, Vec<u8>)>) -> Result<(), DiskError> {
    let at = DiskError::at("reading the boot files in", from);
    if regular(from).is_none() {
        return Ok(());
    }
    let mut entries: Vec<_> = fs::read_dir(from).map_err(&at)?.collect::<Result<_, _>>().map_err(&at)?;
    entries.sort_by_key(fs::DirEntry::file_name);
    for entry in entries {
        let (path, name) = (entry.path(), format!("{folder}/{}", entry.file_name().to_string_lossy()));
        match regular(&path) {
            Some(true) => files.push((name, fs::read(&path).map_err(DiskError::at("reading", &path))?)),
            _ if entry.file_type().is_ok_and(|kind| kind.is_dir()) => walk(&path, &name, files)?,
            _ => {
                // A link could lead to a file of this host.
                let fault = "is no regular file: a new disk takes boot files without links";
                return Err(DiskError::BootFile { path, fault });
            }
        }
    }
    Ok(())
}

/// Whether it is a regular file; `None` where there is nothing. Links are not followed.
fn regular(path: &Path) -> Option<bool> {
    fs::symlink_metadata(path).ok().map(|about| about.is_file())
}
