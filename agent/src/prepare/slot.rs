//! One target slot, open for writing past the page cache.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Instant;

use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, FcntlArg, OFlag, PosixFadviseAdvice, fallocate, fcntl, posix_fadvise};

use super::buffer::ALIGN;
use crate::pace::Pace;

/// What all slots of one preparation have together.
pub(crate) type SlotPace = Arc<Mutex<Pace>>;

/// At a pace, this much is read or written at once: others who use the disk wait for no longer than it takes.
const PIECE: usize = 128 << 10;

/// An open target slot.
pub(super) struct SlotFile {
    file: File,
    /// Size of the slot in bytes.
    size: u64,
    /// False only on file systems that know no O_DIRECT, where a slot is a regular file of a rehearsal.
    direct: bool,
    pace: Option<SlotPace>,
}

impl SlotFile {
    /// Turns the page cache off for `file`, which was opened exclusively by `bascule-boot`.
    pub(super) fn new(file: File, size: u64) -> io::Result<Self> {
        let direct = match fcntl(&file, FcntlArg::F_SETFL(OFlag::O_DIRECT)) {
            Ok(_) => true,
            Err(Errno::EINVAL) if file.metadata()?.is_file() => false,
            Err(errno) => return Err(errno.into()),
        };
        Ok(SlotFile { file, size, direct, pace: None })
    }

    /// The same, read and written at this pace.
    pub(super) fn paced(self, pace: Option<SlotPace>) -> Self {
        SlotFile { pace, ..self }
    }

    /// The length to transfer so that `len` bytes at `offset` end on a boundary: the slot may end before the next
    /// 4096-byte one, never before the next sector.
    pub(super) fn padded(&self, offset: u64, len: usize) -> usize {
        let padded = len.next_multiple_of(ALIGN);
        let room = usize::try_from(self.size.saturating_sub(offset)).unwrap_or(usize::MAX);
        if padded <= room { padded } else { len.next_multiple_of(512) }
    }

    pub(super) fn write(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        let piece = self.piece(bytes.len());
        let mut at = offset;
        for bytes in bytes.chunks(piece) {
            self.file.write_all_at(bytes, at)?;
            at = at.saturating_add(bytes.len() as u64);
            self.keep_pace(bytes.len());
        }
        Ok(())
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
        let piece = self.piece(bytes.len());
        let mut at = offset;
        for bytes in bytes.chunks_mut(piece) {
            self.file.read_exact_at(bytes, at)?;
            at = at.saturating_add(bytes.len() as u64);
            self.keep_pace(bytes.len());
        }
        Ok(())
    }

    fn piece(&self, whole: usize) -> usize {
        if self.pace.is_some() { PIECE } else { whole.max(1) }
    }

    fn keep_pace(&self, bytes: usize) {
        let Some(pace) = &self.pace else { return };
        let wait = pace.lock().unwrap_or_else(PoisonError::into_inner).wait(bytes as u64, Instant::now());
        thread::sleep(wait);
    }
}

#[cfg(test)]
mod tests {
    use super::super::buffer::Buffer;
    use super::*;

    #[test]
    fn at_a_pace_the_same_bytes_are_written_and_read_no_faster_than_it() {
        const LEN: usize = 512 << 10;
        let dir = tempfile::tempdir().unwrap();
        let file = File::options().read(true).write(true).create_new(true).open(dir.path().join("slot")).unwrap();
        file.set_len(1 << 20).unwrap();
        let pace = Pace::new(Some(4 << 20)).map(|pace| Arc::new(Mutex::new(pace)));
        let slot = SlotFile::new(file, 1 << 20).unwrap().paced(pace);
        let (mut written, mut read) = (Buffer::new(LEN), Buffer::new(LEN));
        for (at, byte) in written.head_mut(LEN).iter_mut().enumerate() {
            *byte = (at % 251) as u8;
        }
        let begun = Instant::now();
        slot.write(written.head(LEN), 4096).unwrap();
        slot.read(read.head_mut(LEN), 4096).unwrap();
        assert!(begun.elapsed() >= std::time::Duration::from_millis(200), "1 MiB at 4 MiB/s: {:?}", begun.elapsed());
        assert!(written.head(LEN) == read.head(LEN), "other bytes came back");
    }
}
