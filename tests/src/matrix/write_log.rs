//! What a machine wrote to a drive, in order, with its flushes; and the drive as it was after any of it.
//!
//! QEMU's `blklogwrites` writes the format of the kernel's dm-log-writes: a sector with the magic number, the version, the
//! number of entries and the sector size; then for each entry one sector (where on the drive, how many sectors, flags,
//! length of what follows) and the data. All numbers are little endian.

use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;

use anyhow::{Context, Result, ensure};

/// `WRITE_LOG_MAGIC` of the kernel's dm-log-writes.c.
const MAGIC: u64 = 0x006a_7366_7773_6872;
/// What the machine asks QEMU for.
const SECTOR: u64 = 512;
const FLUSH: u64 = 1;
const DISCARD: u64 = 4;
/// How much is copied at once.
const PIECE: u64 = 1 << 20;

/// One write or flush.
#[derive(Debug, Clone, Copy)]
pub(super) struct Entry {
    /// Where it begins on the drive, in bytes.
    pub(super) at: u64,
    /// Bytes that it writes; 0 for a flush.
    pub(super) length: u64,
    /// Everything before it is durable.
    pub(super) is_flush: bool,
    /// Where its data are in the log.
    data: u64,
}

impl Entry {
    #[cfg(test)]
    pub(super) fn new(at: u64, length: u64) -> Entry {
        Entry { at, length, is_flush: false, data: 0 }
    }
}

/// The log of one boot.
#[derive(Debug)]
pub(super) struct WriteLog {
    file: File,
    /// In the order in which they were done.
    pub(super) entries: Vec<Entry>,
}

impl WriteLog {
    pub(super) fn open(path: &Path) -> Result<WriteLog> {
        let file = File::open(path).with_context(|| format!("there is no log {}", path.display()))?;
        let [magic, _version, count, _] = numbers(&file, 0)?;
        ensure!(magic == MAGIC, "{} is no log of writes: it begins with {magic:x}", path.display());
        let mut entries = Vec::new();
        let mut place = SECTOR;
        for _ in 0..count {
            let [sector, sectors, flags, _] = numbers(&file, place)?;
            place += SECTOR;
            let length = if flags & DISCARD == 0 { sectors * SECTOR } else { 0 };
            entries.push(Entry { at: sector * SECTOR, length, is_flush: flags & FLUSH != 0, data: place });
            place += length;
        }
        Ok(WriteLog { file, entries })
    }

    /// What an entry writes.
    pub(super) fn bytes(&self, entry: &Entry) -> Result<Vec<u8>> {
        let mut bytes = vec![0; usize::try_from(entry.length)?];
        self.file.read_exact_at(&mut bytes, entry.data)?;
        Ok(bytes)
    }

    /// Does entries again, on a drive that is as it was before the first of them.
    pub(super) fn replay(&self, range: Range<usize>, drive: &File) -> Result<()> {
        for entry in self.entries.get(range).context("the log is shorter")? {
            self.replay_part(entry, 0..entry.length, drive)?;
        }
        Ok(())
    }

    /// Does a part of one entry again.
    pub(super) fn replay_part(&self, entry: &Entry, part: Range<u64>, drive: &File) -> Result<()> {
        let mut from = part.start;
        let (mut new, mut old) = (vec![0; PIECE as usize], vec![0; PIECE as usize]);
        while from < part.end {
            let length = usize::try_from((part.end - from).min(PIECE))?;
            let (new, old) = (new.get_mut(..length).unwrap_or_default(), old.get_mut(..length).unwrap_or_default());
            self.file.read_exact_at(new, entry.data + from)?;
            drive.read_exact_at(old, entry.at + from)?;
            // What is there already stays unwritten: a hole stays a hole.
            if new != old {
                drive.write_all_at(new, entry.at + from)?;
            }
            from += length as u64;
        }
        Ok(())
    }
}

fn numbers(file: &File, at: u64) -> Result<[u64; 4]> {
    let mut bytes = [0; 32];
    file.read_exact_at(&mut bytes, at).context("the log ends in the middle of an entry")?;
    let number = |place: usize| {
        let part: [u8; 8] = std::array::from_fn(|byte| bytes.get(place * 8 + byte).copied().unwrap_or_default());
        u64::from_le_bytes(part)
    };
    Ok(std::array::from_fn(number))
}
