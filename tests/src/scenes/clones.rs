//! A second disk that is a byte-for-byte copy of the device's own: the agent does nothing before one of them is gone.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use anyhow::{Result, ensure};
use sha2::{Digest, Sha256};

use super::Stage;
use super::guest::PATIENCE;
use crate::factory::SLOTS;
use crate::matrix::boot_files;

/// What one disk holds that an update would change: digests of both slots, and the files of its boot partition.
#[derive(Debug, PartialEq, Eq)]
struct Held {
    slots: [[u8; 32]; 2],
    boot: BTreeMap<String, Vec<u8>>,
}

impl Stage {
    /// The device on the stage is off. With a clone in it the agent refuses and names both disks, and neither is written to;
    /// without it an install is prepared and armed.
    ///
    /// # Errors
    /// When any step is not as told.
    pub fn does_nothing_beside_a_clone(&mut self, name: &str) -> Result<()> {
        self.timeline.heading("A second disk is a clone of the device's own");
        let disk = self.machine.disk();
        let clone = self.machine.plug_in_clone()?;
        let before = held(&disk)?;
        ensure!(before == held(&clone)?, "the copy is another disk");
        self.machine.start()?;
        self.machine.wait_ready(PATIENCE)?;
        let mounts = self.machine.succeed("findmnt -nro TARGET,SOURCE -t ext4,vfat | sort")?;
        for line in mounts.lines() {
            self.say("kernel", format!("mounted {line}"), "both disks answer to its name");
        }
        self.is_refused_for_the_clone(name)?;
        self.machine.succeed("sync")?;
        self.machine.kill()?;
        for disk in [&disk, &clone] {
            ensure!(held(disk)? == before, "slots or boot files of {} changed", disk.display());
        }
        self.say("disks", "both have the slots and boot files that they had".into(), "no byte was written");
        self.machine.unplug_clone();
        self.machine.start()?;
        self.machine.wait_ready(PATIENCE)?;
        self.came_up()?;
        self.install(name)?;
        self.wait_for_state(&["activated"])?;
        ensure!(held(&clone)? == before, "the clone changed while it was not plugged in");
        Ok(())
    }

    fn is_refused_for_the_clone(&mut self, name: &str) -> Result<()> {
        let url = self.server.url_for_guest(&self.images.system(name)?.bundle_name());
        // The daemon ends with the reason, and is started again until the clone is gone.
        self.machine.run_within(
            "until journalctl -u basculed | grep -q 'disk.cloned\\|have the same'; do sleep 1; done",
            PATIENCE,
        )?;
        for command in ["status", "check", &format!("install {url}")] {
            let output = self.machine.run(&format!("NO_COLOR=1 bascule {command}"))?;
            ensure!(output.code == 1, "`bascule {command}` ended with {}: {}", output.code, output.text);
            let told = output.text.lines().find(|line| line.contains("[disk.cloned]")).unwrap_or_default();
            let both = ["nvme0n1", "nvme1n1"].iter().all(|disk| told.contains(disk));
            ensure!(both, "`bascule {command}` does not name both disks: {}", output.text);
            self.say("agent", format!("{command}: {}", told.trim()), "");
        }
        Ok(())
    }
}

fn held(disk: &Path) -> Result<Held> {
    let (start, length) = SLOTS;
    let slot = |number: u64| digest(disk, start + number * length, length);
    Ok(Held { slots: [slot(0)?, slot(1)?], boot: boot_files(disk)? })
}

fn digest(disk: &Path, start: u64, length: u64) -> Result<[u8; 32]> {
    let (file, mut sha, mut piece) = (File::open(disk)?, Sha256::new(), vec![0; 1 << 20]);
    for at in (start..start + length).step_by(piece.len()) {
        file.read_exact_at(&mut piece, at)?;
        sha.update(&piece);
    }
    Ok(sha.finalize().into())
}
