//! One target slot, open for writing past the page cache.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, FcntlArg, OFlag, PosixFadviseAdvice, fallocate, fcntl, posix_fadvise};

use super::buffer::ALIGN;

/// An open target slot.
pub(super) struct SlotFile {
    file: File,
    /// Size of the slot in bytes.
    size: u64,
    /// False only on file systems that know no O_DIRECT, where a slot is a regular file of a rehearsal.
    direct: bool,
}

impl SlotFile {
    /// Turns the page cache off for `file`, which was opened exclusively by `bascule-boot`.
    pub(super) fn new(file: File, size: u64) -> io::Result<Self> {
        let direct = match fcntl(&file, FcntlArg::F_SETFL(OFlag::O_DIRECT)) {
            Ok(_) => true,
            Err(Errno::EINVAL) if file.metadata()?.is_file() => false,
            Err(errno) => return Err(errno.into()),
        };
        Ok(SlotFile { file, size, direct })
    }

    /// The length to transfer so that `len` bytes at `offset` end on a boundary: the slot may end before the next
    /// 4096-byte one, never before the next sector.
    pub(super) fn padded(&self, offset: u64, len: usize) -> usize {
        let padded = len.next_multiple_of(ALIGN);
        let room = usize::try_from(self.size.saturating_sub(offset)).unwrap_or(usize::MAX);
        if padded <= room { padded } else { len.next_multiple_of(512) }
    }

    pub(super) fn write(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.file.write_all_at(bytes, offset)
    }

    /// Makes a range read as zeroes, by one command where the device has it. `Ok(false)`: it has none.
    pub(super) fn zero(&self, offset: u64, len: u64) -> io::Result<bool> {
        let range = |value: u64| i64::try_from(value).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput));
        let flags = FallocateFlags::FALLOC_FL_ZERO_RANGE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
        match fallocate(&self.file, flags, range(offset)?, range(len)?) {
            Ok(()) => Ok(true),
            Err(Errno::EOPNOTSUPP | Errno::ENOSYS | Errno::EINVAL | Errno::ENODEV) => Ok(false),
            Err(errno) => Err(errno.into()),
        }
    }

    /// After this the device holds everything, whatever happens to the power.
    pub(super) fn sync(&self) -> io::Result<()> {
        self.file.sync_all()?;
        if !self.direct {
            // So that reading back asks the medium and not the page cache.
            posix_fadvise(&self.file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED)?;
        }
        Ok(())
    }

    pub(super) fn read(&self, bytes: &mut [u8], offset: u64) -> io::Result<()> {
        self.file.read_exact_at(bytes, offset)
    }
}
