//! Control groups for integrators' programs: the daemon's own group is made ready for them at start, and each program
//! enters its group through `basculed contained`.
//!
//! A control group (v2) that hands controllers down must not hold processes itself. So [`prepare_own_cgroup`] moves the
//! daemon one level down and leaves its group to the groups of its children:
//!
//! ```text
//! system.slice/basculed.service        what the service manager gave us (Delegate=); holds no process afterwards
//!     daemon                           ourselves
//!     run-PID-N                        one hook or check each: pids.max, memory.max, ended through cgroup.kill
//! ```
//!
//! The daemon calls it once, before it starts anything, and hands the result to every child's limits:
//!
//! ```text
//! let groups = match contained::prepare_own_cgroup(&paths) {
//!     Ok(groups) => Some(groups),
//!     Err(error) => { tracing::warn!(code = error.code(), …, "hooks run without control groups"); None }
//! };
//! let containment = groups.as_ref().map(|groups| groups.containment(TASKS, MEMORY_BYTES));
//! let limits = Limits::within(timeout).contained(containment);
//! ```

use std::ffi::OsString;
use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::process::CommandExt;
use std::path::{Component, Path, PathBuf};
use std::process::ExitCode;

use bascule_core::Disposition;
use bascule_hooks::runner::{CANNOT_ENTER, CANNOT_START, CANNOT_START_PREFIX, Containment};

use crate::device;
use crate::paths::Paths;

/// The most tasks of one hook or check.
pub const TASKS: u64 = 256;
/// The most memory of one hook or check in bytes.
pub const MEMORY_BYTES: u64 = 128 * 1024 * 1024;

/// Where the daemon goes in its own group.
const DAEMON: &str = "daemon";
/// What children are limited by.
const CONTROLLERS: [&str; 2] = ["pids", "memory"];

/// Where children's control groups can be made, and which limits they can have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Groups {
    parent: PathBuf,
    trampoline: PathBuf,
    enabled: Vec<&'static str>,
}

impl Groups {
    /// What a child's limits take: at most `tasks` tasks and `memory` bytes, as far as the controllers are there.
    #[must_use]
    pub fn containment(&self, tasks: u64, memory: u64) -> Containment {
        Containment {
            groups: self.parent.clone(),
            trampoline: self.trampoline.clone(),
            tasks: self.enabled.contains(&"pids").then_some(tasks),
            memory: self.enabled.contains(&"memory").then_some(memory),
        }
    }

    /// The controllers that are not there (`pids`, `memory`): children are ended as a whole, but not limited by these.
    #[must_use]
    pub fn missing(&self) -> Vec<&'static str> {
        CONTROLLERS.into_iter().filter(|controller| !self.enabled.contains(controller)).collect()
    }
}

/// Why children have no control groups; they run in process groups then.
#[derive(Debug, thiserror::Error)]
pub enum NoGroups {
    /// No unified hierarchy is mounted, or our group is not below its mount point.
    #[error("our control group (v2) is not to be found below {mounts}")]
    NoHierarchy {
        /// What was looked through.
        mounts: PathBuf,
    },
    /// What the kernel says about ourselves cannot be read.
    #[error("{path} cannot be read")]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Nobody lets us make groups in our own.
    #[error("no control group can be made in {group}")]
    NotDelegated {
        /// Our group's folder.
        group: PathBuf,
        /// Why.
        source: io::Error,
    },
}

impl NoGroups {
    /// The stable code of `docs/errors.md`.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            NoGroups::NoHierarchy { .. } => "contained.no-hierarchy",
            NoGroups::Unreadable { .. } => "contained.unreadable",
            NoGroups::NotDelegated { .. } => "contained.not-delegated",
        }
    }

    /// What a person can do about it.
    #[must_use]
    pub fn hint(&self) -> &'static str {
        match self {
            NoGroups::NoHierarchy { .. } => "boot with control groups v2 (systemd.unified_cgroup_hierarchy=1)",
            NoGroups::Unreadable { .. } => "mount proc where programs expect it",
            NoGroups::NotDelegated { .. } => "keep Delegate=pids memory in basculed.service",
        }
    }

    /// What is to be done about it.
    #[must_use]
    pub fn disposition(&self) -> Disposition {
        Disposition::Person
    }
}

/// Makes our own control group ready for those of our children: moves us into a group inside it and hands the
/// controllers `pids` and `memory` down, as far as they are there ([`Groups::missing`] says which are not).
///
/// To be called once, by the daemon, before it starts anything. What it changes lasts until the service manager removes
/// the group; a daemon that is started again finds itself in a fresh one.
///
/// # Errors
/// [`NoGroups`]: a reason to log once, and to go on without.
pub fn prepare_own_cgroup(paths: &Paths) -> Result<Groups, NoGroups> {
    let own = own_group(paths)?;
    let failed = |source| NoGroups::NotDelegated { group: own.clone(), source };
    let daemon = own.join(DAEMON);
    match fs::create_dir(&daemon) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(failed(error)),
        _ => enter(&daemon).map_err(failed)?,
    }
    let enabled = CONTROLLERS.into_iter().filter(|controller| hand_down(&own, controller)).collect();
    Ok(Groups { parent: own, trampoline: paths.root().join("proc/self/exe"), enabled })
}

/// The trampoline `basculed contained GROUP PROGRAM ARGS...`: enters the group and becomes the program. It only returns
/// when it could not, with the reason printed and 126 (not entered) or 127 (not started).
#[must_use]
pub fn become_contained(group: &Path, command: &[OsString]) -> ExitCode {
    if let Err(error) = enter(group) {
        eprintln!("{CANNOT_START_PREFIX}{} cannot be entered: {error}", group.display());
        return ExitCode::from(CANNOT_ENTER);
    }
    let Some((program, arguments)) = command.split_first() else {
        eprintln!("{CANNOT_START_PREFIX}no program was named");
        return ExitCode::from(CANNOT_START);
    };
    // On success nothing of us is left to see this line.
    let error = std::process::Command::new(program).args(arguments).exec();
    eprintln!("{CANNOT_START_PREFIX}{error}");
    ExitCode::from(CANNOT_START)
}

/// Moves ourselves, with all threads.
fn enter(group: &Path) -> io::Result<()> {
    write(&group.join("cgroup.procs"), "0")
}

/// Whether a controller is there for groups made in `group`.
fn hand_down(group: &Path, controller: &str) -> bool {
    let control = group.join("cgroup.subtree_control");
    // Refused where the controller is not there or somebody else's process lives in the group: reading back tells.
    let _ = write(&control, &format!("+{controller}"));
    fs::read_to_string(control).is_ok_and(|handed| handed.split_ascii_whitespace().any(|word| word == controller))
}

/// Writes to a file of the kernel; never creates one.
fn write(path: &Path, value: &str) -> io::Result<()> {
    OpenOptions::new().write(true).open(path)?.write_all(value.as_bytes())
}

/// The folder of the group we are in.
fn own_group(paths: &Paths) -> Result<PathBuf, NoGroups> {
    let (own, mounts) = (paths.root().join("proc/self/cgroup"), paths.root().join("proc/self/mountinfo"));
    let text = fs::read_to_string(&own).map_err(|source| NoGroups::Unreadable { path: own, source })?;
    let group = text.lines().find_map(v2_group);
    let mounted = device::sysfs(paths)
        .mounted("cgroup2")
        .map_err(|error| NoGroups::Unreadable { path: mounts.clone(), source: io::Error::other(error) })?;
    let folder = group.and_then(|group| mounted.iter().find_map(|(shown, at)| below_mount(shown, at, &group)));
    folder.map(|folder| paths.resolve(&folder)).ok_or(NoGroups::NoHierarchy { mounts })
}

/// The path in the line `0::/PATH` of `/proc/self/cgroup`.
fn v2_group(line: &str) -> Option<PathBuf> {
    let group = PathBuf::from(line.strip_prefix("0::")?);
    // A path that leads out of our name space, or a group that was removed, is none that we could use.
    let plain = group.components().all(|part| matches!(part, Component::RootDir | Component::Normal(_)));
    (group.is_absolute() && plain).then_some(group)
}

/// The group's folder, where this mount of the unified hierarchy shows it.
fn below_mount(shown: &Path, mount_point: &Path, group: &Path) -> Option<PathBuf> {
    let inside = group.strip_prefix(shown).ok()?;
    Some(if inside.as_os_str().is_empty() { mount_point.to_owned() } else { mount_point.join(inside) })
}

#[cfg(test)]
mod tests {
    use super::*;

    const V2: &str = "29 23 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate";
    const HYBRID: &str = "9:name=systemd:/\n8:pids:/\n0::/system.slice/basculed.service\n";

    /// A folder with what the kernel shows of a delegated group, as plain files.
    fn device(mounts: &str, own: &str) -> (tempfile::TempDir, PathBuf) {
        let root = tempfile::tempdir().expect("a folder");
        let group = root.path().join("sys/fs/cgroup/system.slice/basculed.service");
        for folder in [root.path().join("proc/self"), group.join(DAEMON)] {
            fs::create_dir_all(folder).expect("a folder");
        }
        fs::write(root.path().join("proc/self/mountinfo"), mounts).expect("a file");
        fs::write(root.path().join("proc/self/cgroup"), own).expect("a file");
        fs::write(group.join("daemon/cgroup.procs"), "").expect("a file");
        (root, group)
    }

    #[test]
    fn our_group_is_left_to_the_groups_of_children() {
        let (root, group) = device(V2, HYBRID);
        fs::write(group.join("cgroup.subtree_control"), "pids").expect("a file");
        let groups = prepare_own_cgroup(&Paths::under(root.path())).expect("groups");
        assert_eq!(fs::read_to_string(group.join("daemon/cgroup.procs")).expect("a file"), "0");
        assert_eq!(groups.containment(7, 9).groups, group);
        // The plain file took the last of the two writes only: so does a kernel without the other controller.
        assert_eq!((groups.containment(7, 9).tasks, groups.missing()), (None, vec!["pids", "memory"]));
    }

    #[test]
    fn without_the_unified_hierarchy_there_are_no_groups() {
        let v1 = "32 31 0:29 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu";
        for (mounts, own) in [(v1, HYBRID), (V2, "8:pids:/\n"), (V2, "0::/../elsewhere\n"), (V2, "0::relative\n")] {
            let (root, _) = device(mounts, own);
            let refused = prepare_own_cgroup(&Paths::under(root.path())).map_err(|error| error.code());
            assert_eq!(refused, Err("contained.no-hierarchy"), "{mounts} {own}");
        }
        let empty = tempfile::tempdir().expect("a folder");
        let refused = prepare_own_cgroup(&Paths::under(empty.path())).map_err(|error| error.code());
        assert_eq!(refused, Err("contained.unreadable"));
    }

    #[test]
    fn a_group_that_is_not_ours_is_not_delegated() {
        let (root, group) = device(V2, HYBRID);
        fs::remove_dir_all(group).expect("the group");
        let refused = prepare_own_cgroup(&Paths::under(root.path())).map_err(|error| error.code());
        assert_eq!(refused, Err("contained.not-delegated"));
    }

    #[test]
    fn a_mount_shows_the_groups_below_its_own_root() {
        let shown =
            |inner: &str, point: &str, group: &str| below_mount(Path::new(inner), Path::new(point), Path::new(group));
        assert_eq!(shown("/", "/sys/fs/cgroup", "/"), Some("/sys/fs/cgroup".into()));
        assert_eq!(shown("/box", "/my groups\\", "/box/a"), Some("/my groups\\/a".into()));
        assert_eq!(shown("/box", "/my groups", "/other"), None);
    }
}
