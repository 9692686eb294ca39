//! The devices that scenarios begin with, each made once and kept as a copy of its disk and its firmware's variables.

use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use bascule_image::disk::Loader;

use crate::MachineBuilder;
use crate::factory::{self, DATA_PARTITION};
use crate::machine::{Snapshot, WriteLogs};
use crate::scenes::Stage;
use crate::scenes::guest::{PATIENCE, text_at};

/// The update with which a device gets from the factory's system to the next.
pub(super) const GOOD: &str = "v2";
/// The system that is given faults.
pub(super) const FAULTY: (&str, &str) = ("v5", "5.0.0");

/// A logged boot in which v2 was installed and armed.
#[derive(Debug, Clone)]
pub(super) struct Recorded {
    /// Before that boot.
    pub(super) before: Snapshot,
    /// After it.
    pub(super) after: Snapshot,
    /// Everything it wrote.
    pub(super) logs: WriteLogs,
}

/// One loader's stage and the devices that were kept.
pub(super) struct Kept {
    pub(super) loader: Loader,
    pub(super) stage: Stage,
    /// The device on the stage is up, runs v2 from group b, and nothing is on its way.
    pub(super) is_resting: bool,
    folder: tempfile::TempDir,
    recorded: Option<Recorded>,
    committed: Option<Snapshot>,
    armed: Option<Snapshot>,
    scenes: u32,
    starts_before: u32,
}

impl Kept {
    pub(super) fn new(loader: Loader) -> Result<Kept> {
        let stage = Stage::dark(&scene(loader, 0), |builder| builder.factory(loader, "v1"))?;
        let folder = tempfile::Builder::new().prefix("kept").tempdir_in(stage.images.directory.join("machines"))?;
        Ok(Kept {
            loader,
            stage,
            is_resting: false,
            folder,
            recorded: None,
            committed: None,
            armed: None,
            scenes: 0,
            starts_before: 0,
        })
    }

    /// From here on starts count for the scenario.
    pub(super) fn begin(&mut self) {
        self.starts_before = self.stage.boots();
    }

    /// Starts since then.
    pub(super) fn starts(&self) -> u32 {
        self.stage.boots() - self.starts_before
    }

    /// A place for a copy of this name.
    pub(super) fn place(&self, name: &str) -> Snapshot {
        let file = |end: &str| self.folder.path().join(format!("{name}.{end}"));
        Snapshot { disk: file("img"), variables: file("fd") }
    }

    /// Puts a copy of a device on the stage; it is off.
    pub(super) fn put(&mut self, snapshot: &Snapshot) -> Result<()> {
        let loader = self.loader;
        self.put_with(|builder| builder.copy_of(loader, snapshot))
    }

    /// The same with a hardware watchdog.
    pub(super) fn put_with_watchdog(&mut self, snapshot: &Snapshot) -> Result<()> {
        let loader = self.loader;
        self.put_with(|builder| builder.copy_of(loader, snapshot).watchdog())
    }

    fn put_with(&mut self, make: impl FnOnce(MachineBuilder) -> MachineBuilder) -> Result<()> {
        self.scenes += 1;
        self.is_resting = false;
        self.stage.put(&scene(self.loader, self.scenes), make)?;
        self.begin();
        Ok(())
    }

    /// A device from the factory that has installed v2, is armed and off; with the log of every write.
    pub(super) fn recorded(&mut self) -> Result<Recorded> {
        if let Some(recorded) = &self.recorded {
            return Ok(recorded.clone());
        }
        let (before, after) = (self.place("before"), self.place("after"));
        let file = |name: &str| self.folder.path().join(name);
        let logs = WriteLogs { disk: file("disk.log"), variables: file("variables.log") };
        for log in [&logs.disk, &logs.variables] {
            fs::write(log, [])?;
        }
        factory::finish(&mut self.stage.machine)?;
        self.stage.machine.snapshot(&before)?;
        self.stage.machine.start_logged(&logs)?;
        self.stage.machine.wait_ready(PATIENCE)?;
        self.stage.came_up()?;
        self.arm(GOOD)?;
        self.stage.machine.snapshot(&after)?;
        let recorded = Recorded { before, after, logs };
        self.recorded = Some(recorded.clone());
        Ok(recorded)
    }

    /// Installs a system on the device that is up, and waits until that resets.
    fn arm(&mut self, system: &str) -> Result<()> {
        self.stage.install(system)?;
        self.stage.wait_for_state(&["activated"])?;
        self.stage.machine.wait_for_stop(PATIENCE).map(drop)
    }

    /// A device that runs v2 from group b, committed; v1 is in group a.
    pub(super) fn committed(&mut self) -> Result<Snapshot> {
        if let Some(committed) = &self.committed {
            return Ok(committed.clone());
        }
        let recorded = self.recorded()?;
        self.put(&recorded.after)?;
        self.stage.machine.start()?;
        self.is_committed()?;
        self.keep_committed()
    }

    /// Waits until v2 is committed on the device that has just been started.
    pub(super) fn is_committed(&mut self) -> Result<()> {
        self.stage.machine.wait_ready(PATIENCE)?;
        let version = self.stage.images.system(GOOD)?.version.clone();
        self.stage.wait_for_verdict(&version)?;
        let status = self.stage.status()?;
        ensure!(text_at(&status, "/booted") == "b", "another group is booted: {status}");
        Ok(())
    }

    /// Switches the device off that has just committed v2, and keeps it.
    pub(super) fn keep_committed(&mut self) -> Result<Snapshot> {
        let place = self.place("committed");
        self.stage.machine.succeed("sync")?;
        self.stage.machine.kill()?;
        self.is_resting = false;
        self.stage.machine.snapshot(&place)?;
        self.committed = Some(place.clone());
        Ok(place)
    }

    /// The device on the stage is up, runs v2 from group b, and nothing is on its way.
    pub(super) fn rest(&mut self) -> Result<()> {
        if !self.is_resting {
            let committed = self.committed()?;
            self.put(&committed)?;
            self.stage.machine.start()?;
            self.stage.machine.wait_ready(PATIENCE)?;
            self.stage.came_up()?;
            self.is_resting = true;
        }
        self.begin();
        Ok(())
    }

    /// A device whose loader is about to try v5 in group a for the first time; v2 is good in group b.
    pub(super) fn armed(&mut self) -> Result<Snapshot> {
        if let Some(armed) = &self.armed {
            return Ok(armed.clone());
        }
        self.rest()?;
        self.is_resting = false;
        self.arm(FAULTY.0)?;
        let place = self.place("armed");
        self.stage.machine.snapshot(&place)?;
        self.armed = Some(place.clone());
        Ok(place)
    }
}

/// Lays a fault where v5, and no other, runs it; the machine with that disk is off.
pub(super) fn lay_fault(disk: &Path, script: &str) -> Result<()> {
    let mut file = tempfile::NamedTempFile::new()?;
    file.write_all(script.as_bytes())?;
    fs::set_permissions(file.path(), fs::Permissions::from_mode(0o755))?;
    let image = format!("{}?offset={DATA_PARTITION}", disk.display());
    let request = format!("write {} /fault-{}", file.path().display(), FAULTY.1);
    let output = Command::new("debugfs").args(["-w", "-R", &request, &image]).output();
    let output = output.context("cannot start debugfs")?;
    ensure!(output.status.success(), "debugfs, {request}: {output:?}");
    Ok(())
}

fn scene(loader: Loader, number: u32) -> String {
    format!("matrix-{}/{number:02}", factory::name(loader))
}
