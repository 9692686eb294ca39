//! What of the running system speaks against an update or a reboot now: locks, inhibitors, power, space.
//!
//! | looked at | where |
//! |---|---|
//! | locks of applications | every file in `/run/bascule/locks` on which somebody holds an flock; its first line says why |
//! | inhibitors of logind | `/run/systemd/inhibit`, those that block a shutdown |
//! | power | `/sys/class/power_supply`, where the device has a battery |
//! | space | the file system of the state directory |
//!
//! Everything is read anew each time; nothing is taken from a file of process numbers.

use std::fs::{self, File};
use std::path::Path;

use bascule_core::Blocker;
use nix::fcntl::{Flock, FlockArg};

use crate::durable;
use crate::paths::Paths;

/// The longest reason of a lock that is shown, in characters.
const REASON_LIMIT: usize = 200;
/// No file looked at here is longer, in bytes.
const FILE_LIMIT: u64 = 64 << 10;
/// The record and its copies need no more than this; in bytes.
const SPACE_NEEDED: u64 = 4 << 20;

/// Locks and inhibitors: somebody is at work and must not be interrupted.
#[must_use]
pub fn locks(paths: &Paths) -> Vec<Blocker> {
    let mut found = Vec::new();
    for entry in entries(&paths.locks()).into_iter().filter(|entry| is_plain(entry)) {
        let Ok(file) = File::open(&entry) else { continue };
        // A lock that can be had is nobody's: it is let go again at once.
        if Flock::lock(file, FlockArg::LockExclusiveNonblock).is_ok() {
            continue;
        }
        let (name, said) = (name(&entry), first_line(&entry));
        let why = if said.is_empty() { String::new() } else { format!(": {said}") };
        found.push(Blocker::new(
            "device.locked",
            format!("the lock {name} is held{why}"),
            "it goes on when the lock is released, or after activate.lock_wait as activate.lock_policy says",
        ));
    }
    // Beside each of them lies a pipe, which somebody holds open for as long as the inhibitor lasts.
    found.extend(
        entries(&paths.inhibitors()).iter().filter(|entry| is_plain(entry)).filter_map(|entry| inhibitor(entry)),
    );
    found
}

fn inhibitor(path: &Path) -> Option<Blocker> {
    let text = text(path);
    let value = |key: &str| text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('='));
    let blocks = value("WHAT")?.split(':').any(|what| what == "shutdown") && value("MODE") == Some("block");
    let who = value("WHO").unwrap_or("somebody");
    let why = value("WHY").unwrap_or_default();
    blocks.then(|| {
        let reason: String = format!("{who} inhibits a shutdown: {why}").chars().take(REASON_LIMIT).collect();
        Blocker::new("device.inhibited", reason, "wait until it is done: `systemd-inhibit --list`")
    })
}

/// Power: on mains, or enough in the battery. A device that has neither is not asked.
#[must_use]
pub fn power(paths: &Paths, least: u32) -> Option<Blocker> {
    let supplies = entries(&paths.power_supplies());
    let read = |supply: &Path, file: &str| text(&supply.join(file)).trim().to_owned();
    let of_type = |wanted: &'static [&'static str]| {
        supplies.iter().filter(move |supply| wanted.contains(&read(supply, "type").as_str()))
    };
    let on_mains = of_type(&["Mains", "USB", "Wireless"]).any(|supply| read(supply, "online") == "1");
    let charges = of_type(&["Battery"]).filter(|supply| read(supply, "scope") != "Device");
    let charge = charges.filter_map(|supply| read(supply, "capacity").parse::<u32>().ok()).max()?;
    (!on_mains && charge < least).then(|| {
        Blocker::new(
            "device.power",
            format!("the battery is at {charge} %, and activate.min_battery is {least} %"),
            "connect the device to mains, or let it charge",
        )
    })
}

/// Space for the record.
#[must_use]
pub fn space(state: &Path) -> Option<Blocker> {
    let free = free_space(state)?;
    (free < SPACE_NEEDED).then(|| {
        Blocker::new(
            "device.no-space",
            format!("{} has {free} bytes free, and {SPACE_NEEDED} are needed for the record", state.display()),
            "make room on the data partition",
        )
    })
}

/// Bytes that are free on the file system of a folder; `None` where it cannot be asked.
#[must_use]
pub fn free_space(folder: &Path) -> Option<u64> {
    let stat = nix::sys::statvfs::statvfs(folder).ok()?;
    Some(stat.blocks_available().saturating_mul(stat.fragment_size()))
}

fn entries(folder: &Path) -> Vec<std::path::PathBuf> {
    let mut found: Vec<_> = fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path()).collect();
    found.sort();
    found
}

/// Whether it is a file: a pipe would be waited for, and a link may lead to a file that somebody else locks.
fn is_plain(path: &Path) -> bool {
    path.symlink_metadata().is_ok_and(|about| about.is_file())
}

fn text(path: &Path) -> String {
    String::from_utf8_lossy(&durable::read_bounded(path, FILE_LIMIT).unwrap_or_default()).into_owned()
}

fn name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

fn first_line(path: &Path) -> String {
    text(path).lines().next().unwrap_or_default().chars().take(REASON_LIMIT).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn device() -> (tempfile::TempDir, Paths) {
        let dir = tempfile::tempdir().unwrap();
        let paths = Paths::under(dir.path());
        (dir, paths)
    }

    fn write(path: &Path, text: &str) {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    #[test]
    fn only_a_lock_that_somebody_holds_counts_and_it_says_why() {
        let (_dir, paths) = device();
        assert!(locks(&paths).is_empty());
        let path = paths.locks().join("brew");
        write(&path, "coffee is being made\nmore\n");
        assert!(locks(&paths).is_empty(), "a file that is left over locks nothing");
        for kind in [FlockArg::LockShared, FlockArg::LockExclusive] {
            let held = Flock::lock(File::open(&path).unwrap(), kind).unwrap();
            let found = locks(&paths);
            assert_eq!((found.len(), found[0].code.as_str()), (1, "device.locked"));
            assert_eq!(found[0].reason, "the lock brew is held: coffee is being made");
            drop(held);
            assert!(locks(&paths).is_empty());
        }
        let held = Flock::lock(File::create(paths.root().join("other")).unwrap(), FlockArg::LockExclusive).unwrap();
        std::os::unix::fs::symlink(paths.root().join("other"), paths.locks().join("link")).unwrap();
        nix::unistd::mkfifo(&paths.locks().join("pipe"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        assert!(locks(&paths).is_empty());
        drop(held);
    }

    #[test]
    fn of_the_inhibitors_those_count_that_block_a_shutdown() {
        let (_dir, paths) = device();
        let put = |name: &str, text: &str| write(&paths.inhibitors().join(name), text);
        put("1", "WHAT=sleep\nMODE=block\nWHO=a\nWHY=b\n");
        put("2", "WHAT=shutdown\nMODE=delay\nWHO=a\nWHY=b\n");
        assert!(locks(&paths).is_empty());
        // As logind does: held open, it never ends.
        let pipe = paths.inhibitors().join("2.ref");
        nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).unwrap();
        let _held = fs::OpenOptions::new().read(true).write(true).open(&pipe).unwrap();
        assert!(locks(&paths).is_empty());
        put("3", "WHAT=shutdown:sleep\nWHO=dump\nWHY=the disk is copied\nMODE=block\nUID=0\nPID=1\n");
        let found = locks(&paths);
        assert_eq!((found.len(), found[0].reason.as_str()), (1, "dump inhibits a shutdown: the disk is copied"));
    }

    #[test]
    fn a_low_battery_counts_only_without_mains_and_a_mouse_has_no_say() {
        let (_dir, paths) = device();
        let put = |name: &str, text: &str| write(&paths.power_supplies().join(name), text);
        assert_eq!(power(&paths, 20), None);
        put("mouse/type", "Battery\n");
        put("mouse/scope", "Device\n");
        put("mouse/capacity", "3\n");
        assert_eq!(power(&paths, 20), None);
        put("bat/type", "Battery\n");
        put("bat/capacity", "19\n");
        assert_eq!(power(&paths, 20).map(|blocker| blocker.code), Some("device.power".into()));
        assert_eq!(power(&paths, 19), None);
        put("ac/type", "Mains\n");
        put("ac/online", "1\n");
        assert_eq!(power(&paths, 20), None);
    }
}
