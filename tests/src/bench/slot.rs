//! The slot that everybody writes: a loop device over a file that holds the old system, densely.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use bascule_core::Digest;
use sha2::{Digest as _, Sha256};

const PIECE: usize = 1 << 20;

/// A loop device; it is detached when this is dropped.
#[derive(Debug)]
pub(super) struct LoopSlot {
    device: PathBuf,
    backing: PathBuf,
    old: PathBuf,
    size: u64,
    direct_io: bool,
}

impl LoopSlot {
    /// Makes a slot as large as the image `old`.
    ///
    /// # Errors
    /// When this machine has no loop devices for us.
    pub(super) fn new(backing: &Path, old: &Path) -> Result<LoopSlot> {
        let size = fs::metadata(old)?.len();
        File::create(backing)?.set_len(size)?;
        let attach = |direct: &str| {
            let mut command = Command::new("losetup");
            command.args(["--find", "--show", direct]).arg(backing).output().context("cannot start losetup")
        };
        let (output, direct_io) = match attach("--direct-io=on")? {
            output if output.status.success() => (output, true),
            _ => (attach("--direct-io=off")?, false),
        };
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr);
            bail!(
                "no loop device can be had here: losetup says {:?}; run this as root, with /dev/loop-control there",
                said.trim()
            );
        }
        let device = PathBuf::from(String::from_utf8(output.stdout)?.trim());
        let slot = LoopSlot { device, backing: backing.to_owned(), old: old.to_owned(), size, direct_io };
        slot.restore()?;
        Ok(slot)
    }

    /// The device.
    pub(super) fn device(&self) -> &Path {
        &self.device
    }

    /// Its length in bytes.
    pub(super) fn size(&self) -> u64 {
        self.size
    }

    /// Whether it goes past the page cache to the file below.
    pub(super) fn direct_io(&self) -> bool {
        self.direct_io
    }

    /// Fills the slot with the old system again, so that each measurement starts from the same blocks: each of them
    /// allocated and written, also those of zeroes.
    ///
    /// # Errors
    /// When it cannot be written.
    pub(super) fn restore(&self) -> Result<()> {
        let (mut from, mut to) = (File::open(&self.old)?, OpenOptions::new().write(true).open(&self.device)?);
        let mut piece = vec![0; PIECE];
        loop {
            let count = from.read(&mut piece)?;
            if count == 0 {
                break;
            }
            to.write_all(piece.get(..count).unwrap_or_default())?;
        }
        drop(to);
        // What anybody left to be written must not be written while something is measured.
        ensure!(Command::new("sync").status()?.success(), "sync failed");
        let allocated = std::os::unix::fs::MetadataExt::blocks(&fs::metadata(&self.backing)?) * 512;
        ensure!(allocated >= self.size, "the file below the slot has holes");
        Ok(())
    }
}

impl Drop for LoopSlot {
    fn drop(&mut self) {
        Command::new("losetup").arg("--detach").arg(&self.device).status().ok();
    }
}

/// SHA-256 of a whole file or device.
///
/// # Errors
/// When it cannot be read.
pub(super) fn sha256(path: &Path) -> Result<Digest> {
    let mut file = File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
    let mut hash = Sha256::new();
    let mut piece = vec![0; PIECE];
    loop {
        let count = file.read(&mut piece)?;
        if count == 0 {
            return Ok(Digest(hash.finalize().into()));
        }
        hash.update(piece.get(..count).unwrap_or_default());
    }
}
