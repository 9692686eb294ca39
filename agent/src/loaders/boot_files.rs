//! What a loader that cannot read the slots starts: a group's set of boot files, or its unified kernel image.

use std::fs;
use std::path::{Path, PathBuf};

use bascule_boot::{BootError, SdBootBackend};
use bascule_core::boot_set::{SET_KERNEL, boot_set};
use bascule_core::{ErrorReport, Group, Phase, TargetGroup};
use bascule_hooks::boot_files::Installed;
use bascule_hooks::{BootFileError, BootFileSet, BootImage};

use crate::device::DeviceError;

/// What of the prepared group is to be on the boot partition before the loader is armed.
#[derive(Debug, Clone)]
pub enum BootFiles {
    /// A folder with the kernel and its files.
    Set(Sets),
    /// One file, which is the loader's entry itself.
    Image(ImageEntry),
}

impl BootFiles {
    /// Where the boot partition is mounted.
    #[must_use]
    pub fn partition(&self) -> &PathBuf {
        match self {
            BootFiles::Set(sets) => &sets.partition,
            BootFiles::Image(entry) => &entry.partition,
        }
    }
}

/// The target group's unified kernel image on the boot partition.
#[derive(Debug, Clone)]
pub struct ImageEntry {
    pub(super) partition: PathBuf,
    pub(super) backend: SdBootBackend,
    pub(super) target: TargetGroup,
    /// The GUID of the target's root slot.
    pub(super) root: String,
}

impl ImageEntry {
    /// Brings the group's image from the prepared root, mounted at `root`, to where the loader starts it from once it is armed.
    ///
    /// Everything about the image that can be looked at is looked at before the first write.
    ///
    /// # Errors
    /// When the image is not there or would not be started as this group's, the loader may start what is to be written, or the
    /// bytes do not reach the medium.
    pub fn install(&self, root: &Path) -> Result<Installed, ErrorReport> {
        let place = self.backend.image_place(self.target).map_err(loader_said)?;
        let image = BootImage::find(root, self.target.group()).map_err(|error| told(&error))?;
        self.backend.check_image(self.target, image.file(), &self.root).map_err(loader_said)?;
        let installed = image.install(&place.file, place.copy.as_deref()).map_err(|error| told(&error))?;
        // What was written has to be what the activation renames: on a damaged FAT two names may share one file.
        let now = self.backend.image_place(self.target).map_err(loader_said)?;
        if now.file == place.file { Ok(installed) } else { Err(told(&BootFileError::Moved { path: place.file })) }
    }
}

/// An error of boot files, as people see it.
#[must_use]
pub fn told(error: &BootFileError) -> ErrorReport {
    ErrorReport::new(error.code(), Phase::Activate, error, error.hint(), error.disposition())
}

/// An error of the loader's settings that came up with the boot files, as people see it.
#[must_use]
pub fn loader_said(error: BootError) -> ErrorReport {
    DeviceError::Boot(error).report(Phase::Activate)
}

/// Where the boot files of the groups are, for a loader that cannot read the slots.
#[derive(Debug, Clone)]
pub struct Sets {
    /// Where the boot partition is mounted.
    pub partition: PathBuf,
    /// The folder with the set of the running group.
    pub running: PathBuf,
    /// The folder with the set of the target group.
    pub prepared: PathBuf,
    pub(super) entry: Option<PathBuf>,
    pub(super) group: Group,
}

impl Sets {
    /// The first file that the loader's entry of the target names and the set has not: the loader would pass over the entry.
    ///
    /// # Errors
    /// When the entry cannot be read, or starts another kernel: that would run an old one on the new root.
    pub fn lacking(&self, set: &BootFileSet) -> Result<Option<String>, BootError> {
        let Some(path) = &self.entry else { return Ok(None) };
        let text = fs::read_to_string(path).map_err(|source| BootError::Read { path: path.clone(), source })?;
        let named = |keys: &'static [&'static str]| {
            let values = text.lines().filter_map(|line| line.trim().split_once(char::is_whitespace));
            values.filter(move |(key, _)| keys.contains(key)).flat_map(|(_, value)| value.split_whitespace())
        };
        let folder = format!("/{}/", boot_set(self.group));
        let kernel = format!("{folder}{SET_KERNEL}");
        if !named(&["linux"]).eq([kernel.as_str()]) {
            let damage = format!("it does not start {kernel}, where the new kernel is written");
            return Err(BootError::BeyondRepair { path: path.clone(), damage });
        }
        let has = |name: &str| name.strip_prefix(&folder).is_some_and(|name| set.has(name));
        let mut others = named(&["initrd", "devicetree", "devicetree-overlay"]);
        Ok(others.find(|name| !has(name)).map(str::to_owned))
    }
}

#[cfg(test)]
mod tests {
    use bascule_hooks::{KeepList, SetPlaces};

    use super::*;

    fn put(root: &Path, path: &str, text: &str) {
        let path = root.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    #[test]
    fn an_entry_has_to_start_the_new_kernel_and_to_name_files_of_the_set() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        put(root, "root/boot/vmlinuz", "kernel");
        put(root, "root/usr/lib/bascule/boot/files/board.dtb", "tree");
        let (partition, entry) = (root.join("esp"), root.join("entry.conf"));
        let sets = Sets {
            running: partition.join("bascule/a"),
            prepared: partition.join("bascule/b"),
            entry: Some(entry.clone()),
            group: Group::B,
            partition,
        };
        let places = SetPlaces { root: &root.join("root"), running: &sets.running, target: &sets.prepared };
        let set = BootFileSet::collect(places, &KeepList::default()).unwrap();
        let lacking = |text: &str| {
            fs::write(&entry, text).unwrap();
            sets.lacking(&set).map_err(|error| error.code())
        };
        let linux = "title x\nlinux /bascule/b/linux\noptions initrd=/elsewhere\n";
        assert_eq!(lacking(linux), Ok(None));
        assert_eq!(lacking(&format!("{linux}devicetree\t/bascule/b/board.dtb\n")), Ok(None));
        let named = "/bascule/b/initrd.img".to_owned();
        assert_eq!(lacking(&format!("{linux}initrd {named}\n")), Ok(Some(named)));
        let others = "/bascule/a/board.dtb".to_owned();
        assert_eq!(lacking(&format!("{linux}devicetree {others}\n")), Ok(Some(others)));
        for other in ["linux /bascule/a/linux\n", "linux /vmlinuz\n", "", "linux /bascule/b/linux\nlinux /vmlinuz\n"] {
            assert_eq!(lacking(other), Err("boot.beyond-repair"), "{other}");
        }
    }
}
