//! Copies of an owner's configuration, kept on the data partition before the device is given to a new system.
//!
//! `[backup] paths` go into `STATE/backups/ID.tar`, `[backup] secrets` into `ID.secrets.tar`; only root can read them.
//! The newest `keep` deployments are kept. `tar` of the booted system makes them, so that it can unpack them anywhere.

use std::fs::{self, DirBuilder, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use bascule_core::{ErrorReport, Phase};
use bascule_hooks::runner::{self, Command, Exit, Limits};

use super::Engine;

/// How long copying may take.
const DEADLINE: Duration = Duration::from_secs(120);
const FOLDER: &str = "backups";

impl Engine {
    /// Copies what `[backup]` names. Without a name there nothing is done.
    ///
    /// # Errors
    /// `device.backup-failed`: what the owner wants to be kept could not be, so the device does not go on.
    pub(super) fn back_up(&self) -> Result<(), ErrorReport> {
        let config = &self.device.config.backup;
        let Some(deployment) = self.device.record().state.deployment() else { return Ok(()) };
        let folder = self.state_directory().join(FOLDER);
        for (paths, kind) in [(&config.paths, ""), (&config.secrets, ".secrets")] {
            let present: Vec<&str> = paths.iter().map(|path| path.trim_start_matches('/')).collect();
            let root = self.device.paths.root();
            let present: Vec<&str> = present.into_iter().filter(|path| root.join(path).exists()).collect();
            if present.is_empty() {
                continue;
            }
            let file = folder.join(format!("{}{kind}.tar", deployment.id));
            copy(root, &present, &folder, &file).map_err(|reason| failed(&file, reason))?;
            self.device.tell("backup", format!("{} paths kept in {}", present.len(), file.display()), Vec::new());
        }
        forget(&folder, config.keep as usize, &deployment.id.0);
        Ok(())
    }
}

fn copy(root: &Path, paths: &[&str], folder: &Path, file: &Path) -> Result<(), String> {
    let made = DirBuilder::new().recursive(true).mode(0o700).create(folder).and_then(|()| {
        // Made by us first, so that nobody else could ever have opened it.
        OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(file)
    });
    let file_handle = made.map_err(|error| error.to_string())?;
    let command = Command::new("tar").arg("--create").arg("--file").arg(file).arg("--directory").arg(root).arg("--");
    let command = paths.iter().fold(command, |command, path| command.arg(*path));
    let run = || runner::run(&command, &Limits::within(DEADLINE), &AtomicBool::new(false));
    let mut outcome = run();
    if outcome.exit == Exit::Code(1) {
        // A file changed while it was read, most likely. If it always does, the copy is as good as one can be.
        outcome = run();
    }
    let changed = outcome.exit == Exit::Code(1) && outcome.output_tail.contains("changed as we read it");
    let done = if outcome.succeeded() || changed {
        file_handle.sync_all().map_err(|error| error.to_string())
    } else {
        Err(outcome.reason())
    };
    if done.is_err() {
        let _ = fs::remove_file(file);
    }
    done
}

/// Removes all but the newest copies; their names begin with the time. Those of `newest` stay, whatever the clock said.
fn forget(folder: &Path, keep: usize, newest: &str) {
    let listed = fs::read_dir(folder).and_then(|entries| entries.collect::<io::Result<Vec<_>>>());
    let mut names: Vec<_> = listed.unwrap_or_default().into_iter().map(|entry| entry.path()).collect();
    names.sort();
    let id = |path: &Path| path.file_name().and_then(|name| name.to_str()?.split('.').next().map(str::to_owned));
    let mut ids: Vec<_> = names.iter().filter_map(|path| id(path)).collect();
    ids.dedup();
    ids.retain(|id| id != newest);
    ids.push(newest.to_owned());
    let kept = ids.split_off(ids.len().saturating_sub(keep));
    for path in names.iter().filter(|path| id(path).is_none_or(|id| !kept.contains(&id))) {
        let _ = fs::remove_file(path);
    }
}

fn failed(file: &Path, reason: String) -> ErrorReport {
    ErrorReport {
        code: "device.backup-failed".into(),
        phase: Phase::Activate,
        message: format!("cannot keep a copy of what [backup] names in {}", file.display()),
        cause: vec![reason],
        hint: "make room on the data partition, or correct [backup]; the running system is not touched".into(),
        retryable: false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_can_be_unpacked_and_only_the_newest_are_kept() {
        let dir = tempfile::tempdir().unwrap();
        let (root, folder) = (dir.path().join("root"), dir.path().join("backups"));
        fs::create_dir_all(root.join("etc/app")).unwrap();
        fs::write(root.join("etc/app/settings"), "volume = 11").unwrap();
        for id in ["20260101T000000Z-a", "20260102T000000Z-b", "20260103T000000Z-c"] {
            copy(&root, &["etc/app"], &folder, &folder.join(format!("{id}.tar"))).unwrap();
            copy(&root, &["etc/app"], &folder, &folder.join(format!("{id}.secrets.tar"))).unwrap();
        }
        forget(&folder, 2, "20260103T000000Z-c");
        let names: Vec<_> = fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(names.len(), 4, "{names:?}");
        let archive = folder.join("20260103T000000Z-c.tar");
        let mode = std::os::unix::fs::PermissionsExt::mode(&fs::metadata(&archive).unwrap().permissions());
        assert_eq!(mode & 0o777, 0o600);
        let unpack =
            Command::new("tar").arg("--extract").arg("--file").arg(&archive).arg("--directory").arg(dir.path());
        assert!(runner::run(&unpack, &Limits::within(DEADLINE), &AtomicBool::new(false)).succeeded());
        assert_eq!(fs::read_to_string(dir.path().join("etc/app/settings")).unwrap(), "volume = 11");
        assert!(copy(&root, &["etc/missing"], &folder, &folder.join("x.tar")).is_err());
        assert!(!folder.join("x.tar").exists());
    }
}
