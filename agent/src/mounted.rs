//! The prepared root, mounted read-only for as long as hooks look at it.

use std::fs;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};

use crate::paths::Paths;

/// A mounted root; dropping it unmounts.
#[derive(Debug)]
pub struct MountedRoot {
    at: PathBuf,
}

impl MountedRoot {
    /// Mounts a slot's device with whichever of the kernel's file systems knows it. Nothing is written to it: a journal
    /// that is left over is not replayed.
    ///
    /// # Errors
    /// What the kernel said last.
    pub fn mount(paths: &Paths, device: &Path) -> Result<Self, nix::Error> {
        let at = paths.target_root();
        fs::create_dir_all(&at).map_err(|error| Errno::from_raw(error.raw_os_error().unwrap_or_default()))?;
        // What an earlier run left mounted is not what is prepared now.
        while umount2(&at, MntFlags::MNT_DETACH).is_ok() {}
        let flags = MsFlags::MS_RDONLY | MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
        let mut last = Errno::ENODEV;
        for kind in file_systems(paths) {
            let data = kind.starts_with("ext").then_some("noload");
            match mount(Some(device), &at, Some(kind.as_str()), flags, data) {
                Ok(()) => return Ok(MountedRoot { at }),
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    /// Where it is mounted.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.at
    }
}

impl Drop for MountedRoot {
    fn drop(&mut self) {
        // Whoever still looks may do so to its end; nobody new finds it.
        let _ = umount2(&self.at, MntFlags::MNT_DETACH);
    }
}

/// The file systems that the kernel knows and that live on a device.
fn file_systems(paths: &Paths) -> Vec<String> {
    let text = fs::read_to_string(paths.file_systems()).unwrap_or_default();
    text.lines().filter(|line| !line.starts_with("nodev")).map(|line| line.trim().to_owned()).collect()
}
