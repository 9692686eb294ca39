//! The prepared root, mounted read-only for as long as hooks look at it.

use std::fs;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};

use crate::paths::Paths;

/// How often unmounting is tried, 50 ms apart, before the mount is only hidden.
const PATIENCE: u32 = 20;

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
        Self::forget(paths);
        let flags = MsFlags::MS_RDONLY | MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
        let mut last = Errno::ENODEV;
        for kind in file_systems(paths) {
            let data = match kind.as_str() {
                "ext2" | "ext3" | "ext4" => Some("noload"),
                "xfs" => Some("norecovery"),
                _ => None,
            };
            match mount(Some(device), &at, Some(kind.as_str()), flags, data) {
                Ok(()) => return Ok(MountedRoot { at }),
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    /// Unmounts what a run left behind that ended in the middle: it would keep the slot from being opened alone.
    pub fn forget(paths: &Paths) {
        while umount2(&paths.target_root(), MntFlags::MNT_DETACH).is_ok() {}
    }

    /// Where it is mounted.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.at
    }
}

impl Drop for MountedRoot {
    fn drop(&mut self) {
        // While somebody still looks, the slot cannot be opened alone: what was looking is being ended.
        for _ in 0..PATIENCE {
            match umount2(&self.at, MntFlags::empty()) {
                Err(Errno::EBUSY) => thread::sleep(Duration::from_millis(50)),
                _ => return,
            }
        }
        let _ = umount2(&self.at, MntFlags::MNT_DETACH);
    }
}

/// Where a root has units, and the links that enable them.
const UNIT_FOLDERS: [&str; 3] = ["etc/systemd/system", "usr/lib/systemd/system", "lib/systemd/system"];

/// What a prepared root lacks to be taken back when it is bad, where the device runs systemd: after the switch nobody
/// else could. `may_be_blessed`: systemd knows how to commit under this device's loader.
#[must_use]
pub fn lacks_watchdog(root: &Path, may_be_blessed: bool) -> Option<String> {
    const UNIT: &str = "bascule-rollback-health.service";
    const GATE: &str = "bascule-boot-complete.service";
    const BLESSING: &str = "systemd-bless-boot.service";
    // A system whose programs lie in another slot cannot be judged from here.
    if !root.join("usr/lib/systemd").exists() {
        return None;
    }
    // A link in the other system leads nowhere here: that it is there says enough.
    let is_there = |path: &str| root.join(path).symlink_metadata().is_ok();
    let in_folders = |name: String| UNIT_FOLDERS.iter().any(|folder| is_there(&format!("{folder}/{name}")));
    let is_masked = |unit: &str| {
        fs::read_link(root.join(UNIT_FOLDERS[0]).join(unit)).is_ok_and(|to| to == Path::new(Paths::NOWHERE))
    };
    if is_masked(UNIT) {
        return Some(format!("{UNIT} is masked in it"));
    }
    if !in_folders(format!("sysinit.target.wants/{UNIT}")) {
        return Some(format!("{UNIT} is not enabled in it"));
    }
    let is_blessed = may_be_blessed && in_folders(BLESSING.to_owned()) && !is_masked(BLESSING);
    if is_blessed && (is_masked(GATE) || !in_folders(format!("boot-complete.target.requires/{GATE}"))) {
        return Some(format!("its {BLESSING} would commit without a health check, and {GATE} is not enabled in it"));
    }
    (!is_there("usr/sbin/basculed")).then(|| "it has no usr/sbin/basculed".to_owned())
}

/// The file systems that the kernel knows and that live on a device.
fn file_systems(paths: &Paths) -> Vec<String> {
    let text = fs::read_to_string(paths.file_systems()).unwrap_or_default();
    text.lines().filter(|line| !line.starts_with("nodev")).map(|line| line.trim().to_owned()).collect()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn a_system_without_its_watchdog_is_known_before_it_is_started() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        let lacks = || lacks_watchdog(root, false).unwrap_or_default();
        assert_eq!(lacks_watchdog(root, false), None, "its programs are elsewhere");
        fs::create_dir_all(root.join("usr/lib/systemd")).unwrap();
        assert!(lacks().contains("not enabled"));
        let wants = root.join("usr/lib/systemd/system/sysinit.target.wants");
        fs::create_dir_all(&wants).unwrap();
        symlink("../bascule-rollback-health.service", wants.join("bascule-rollback-health.service")).unwrap();
        assert!(lacks().contains("no usr/sbin/basculed"));
        fs::create_dir_all(root.join("usr/sbin")).unwrap();
        fs::write(root.join("usr/sbin/basculed"), "").unwrap();
        assert_eq!(lacks_watchdog(root, false), None);
        fs::create_dir_all(root.join("etc/systemd/system")).unwrap();
        symlink(Paths::NOWHERE, root.join("etc/systemd/system/bascule-rollback-health.service")).unwrap();
        assert!(lacks().contains("masked"));
    }

    #[test]
    fn a_system_that_systemd_would_commit_is_known_before_it_is_started() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        let units = root.join("usr/lib/systemd/system");
        for folder in ["sysinit.target.wants", "boot-complete.target.requires"] {
            fs::create_dir_all(units.join(folder)).unwrap();
        }
        symlink("../x", units.join("sysinit.target.wants/bascule-rollback-health.service")).unwrap();
        fs::create_dir_all(root.join("usr/sbin")).unwrap();
        fs::write(root.join("usr/sbin/basculed"), "").unwrap();
        assert_eq!(lacks_watchdog(root, true), None);
        fs::write(units.join("systemd-bless-boot.service"), "").unwrap();
        assert!(lacks_watchdog(root, true).is_some_and(|lack| lack.contains("bless")));
        assert_eq!(lacks_watchdog(root, false), None, "the loader is another one");
        symlink("../x", units.join("boot-complete.target.requires/bascule-boot-complete.service")).unwrap();
        assert_eq!(lacks_watchdog(root, true), None);
    }
}
