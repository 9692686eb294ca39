//! Sectors of the disk's partition table, read past the page cache and made durable.
//!
//! The disk is locked while a table is changed: udev looks at no disk that is locked so, and would otherwise read the table
//! between two steps. Nothing else of the kernel's is told: partitions stay where they are.

use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, FileTypeExt};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};

use crate::BootError;
use crate::medium::{open, read_from_device};

use super::table::Step;

/// udev looks at a disk for a moment only.
const LOCK_ATTEMPTS: u32 = 50;
const LOCK_WAIT: Duration = Duration::from_millis(100);

/// A disk, or an image of one.
#[derive(Debug, Clone)]
pub(super) struct Store {
    path: PathBuf,
}

/// The disk while it may be changed.
pub(super) struct Locked<'a> {
    store: &'a Store,
    file: Flock<File>,
}

impl Store {
    pub(super) fn new(path: PathBuf) -> Self {
        Store { path }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// The disk's length in bytes.
    pub(super) fn length(&self) -> io::Result<u64> {
        let mut file = open(&self.path, false, 0)?;
        let kind = file.metadata()?.file_type();
        if !kind.is_file() && !kind.is_block_device() {
            return Err(io::Error::new(io::ErrorKind::Unsupported, "neither a disk nor an image of one"));
        }
        file.seek(SeekFrom::End(0))
    }

    /// What the device itself holds there; fewer bytes at its end.
    pub(super) fn read(&self, offset: u64, length: usize) -> io::Result<Vec<u8>> {
        read_from_device(&self.path, offset, length)
    }

    pub(super) fn lock(&self) -> Result<Locked<'_>, BootError> {
        let failed = |source| BootError::Write { path: self.path.clone(), source };
        let mut file = open(&self.path, true, 0).map_err(failed)?;
        for _ in 1..LOCK_ATTEMPTS {
            match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
                Ok(file) => return Ok(Locked { store: self, file }),
                Err((back, Errno::EAGAIN)) => {
                    file = back;
                    thread::sleep(LOCK_WAIT);
                }
                Err((_, error)) => return Err(failed(error.into())),
            }
        }
        // Stopping here is safe: nothing was written.
        Err(failed(Errno::EAGAIN.into()))
    }
}

impl Locked<'_> {
    /// Takes one step; it is durable then.
    pub(super) fn take(&self, step: &Step) -> Result<(), BootError> {
        for write in &step.writes {
            self.file.write_all_at(&write.bytes, write.offset).map_err(|source| self.failed(source))?;
        }
        self.sync()?;
        for write in &step.writes {
            let path = self.store.path.clone();
            match self.store.read(write.offset, write.bytes.len()) {
                Ok(bytes) if bytes == write.bytes => {}
                Ok(_) => return Err(BootError::ReadBack { path }),
                Err(source) => return Err(BootError::Read { path, source }),
            }
        }
        Ok(())
    }

    /// What the device holds is on its medium.
    pub(super) fn sync(&self) -> Result<(), BootError> {
        self.file.sync_all().map_err(|source| self.failed(source))
    }

    fn failed(&self, source: io::Error) -> BootError {
        BootError::Write { path: self.store.path.clone(), source }
    }
}
