//! A disk's GUID partition table, read only.
//!
//! Through the `gpt` crate, but around its `GptDisk::open`: that one gives up when the primary entries are damaged,
//! stops the program at an entry size it does not expect, and reserves as much memory as the header asks for.

use std::fs::File;
use std::io::{Cursor, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use gpt::disk::LogicalBlockSize;
use gpt::header::{Header, read_header_from_arbitrary_device};
use gpt::partition::file_read_partitions;

use super::DiskError;
use super::sysfs::Partition;

/// More entries than any disk of ours has; the standard number is 128.
const MAX_ENTRIES: u32 = 1024;

/// The one entry size in use, and the only one the `gpt` crate reads.
const ENTRY_SIZE: u32 = 128;

/// Sysfs counts in these whatever the disk's sector size.
const SYSFS_SECTOR: u64 = 512;

/// Which copies of a partition table are usable.
///
/// The kernel reads the primary copy, and the backup only when started with `gpt` on its command line. We read the
/// backup where the primary is damaged, because every entry is held against what the kernel uses before it is believed;
/// a caller should warn a person unless both are whole. Of ours only the backend `gpt` writes one, and of it only attributes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TableCopies {
    /// Both copies are valid and the same.
    Both,
    /// The backup at the end of the disk is damaged or not there.
    PrimaryOnly,
    /// The primary copy is damaged.
    BackupOnly,
}

/// A partition table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Table {
    /// The disk's GUID, lower case.
    pub(super) guid: String,
    /// The used entries, by number.
    pub(super) entries: Vec<Entry>,
    /// Which copies were usable.
    pub(super) copies: TableCopies,
}

/// One used entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Entry {
    /// Its number, from 1.
    pub(super) number: u32,
    /// Its name.
    pub(super) label: String,
    /// Its GUID, lower case.
    pub(super) guid: String,
    /// Its first byte on the disk.
    pub(super) start: u64,
    /// Its length in bytes.
    pub(super) size: u64,
}

impl Table {
    /// Reads the table of a disk or a disk image.
    pub(super) fn read(device: &Path, sector_size: u64) -> Result<Table, DiskError> {
        match Table::copies(device, sector_size)? {
            [Ok(primary), Ok(backup)] if primary.guid != backup.guid || primary.entries != backup.entries => {
                Err(DiskError::TableCopiesDiffer { device: device.to_owned() })
            }
            [Ok(primary), Ok(_)] => Ok(Table { copies: TableCopies::Both, ..primary }),
            [Ok(primary), Err(_)] => Ok(Table { copies: TableCopies::PrimaryOnly, ..primary }),
            [Err(_), Ok(backup)] => Ok(Table { copies: TableCopies::BackupOnly, ..backup }),
            [Err(error), Err(_)] => Err(error),
        }
    }

    /// The primary copy and the backup, each by itself.
    pub(super) fn copies(device: &Path, sector_size: u64) -> Result<[Result<Table, DiskError>; 2], DiskError> {
        let failed = |source| DiskError::Read { path: device.to_owned(), source };
        let wrong = |what: &str| DiskError::NoTable { device: device.to_owned(), what: what.to_owned() };
        let sector = match sector_size {
            512 => LogicalBlockSize::Lb512,
            4096 => LogicalBlockSize::Lb4096,
            _ => return Err(wrong("the sector size is neither 512 nor 4096")),
        };
        let mut file = File::open(device).map_err(failed)?;
        let length = file.seek(SeekFrom::End(0)).map_err(failed)?;
        if length < sector_size.saturating_mul(4) {
            return Err(wrong("the disk is too small"));
        }
        let last = length / sector_size - 1;
        Ok([1, last].map(|lba| copy_at(&mut file, lba, sector, device, length)))
    }

    /// The entry of that number.
    pub(super) fn entry(&self, number: u32) -> Option<&Entry> {
        self.entries.iter().find(|entry| entry.number == number)
    }

    /// What another disk's table has that should be ours alone, in words; of its labels only these count.
    pub(super) fn shared_with(&self, theirs: &Table, labels: &[&str]) -> Option<String> {
        if theirs.guid == self.guid {
            return Some(format!("disk GUID {}", self.guid));
        }
        let ours = |entry: &&Entry| self.entries.iter().any(|our| our.guid == entry.guid);
        if let Some(entry) = theirs.entries.iter().find(ours) {
            return Some(format!("partition GUID {}", entry.guid));
        }
        let label = theirs.entries.iter().find(|entry| labels.contains(&entry.label.as_str()));
        label.map(|entry| format!("partition label {}", entry.label))
    }

    /// Refuses a table that is not the one the kernel uses: repartitioned, resized, or read wrong.
    pub(super) fn check_against_kernel(&self, disk: &str, partitions: &[Partition]) -> Result<(), DiskError> {
        for partition in partitions {
            let same = |entry: &Entry| entry.start == partition.start && entry.size == partition.size;
            if !self.entry(partition.number).is_some_and(same) {
                return Err(DiskError::TableChanged { disk: disk.to_owned(), partition: partition.number });
            }
        }
        let unknown = |entry: &&Entry| !partitions.iter().any(|partition| partition.number == entry.number);
        match self.entries.iter().find(unknown) {
            Some(entry) => Err(DiskError::TableChanged { disk: disk.to_owned(), partition: entry.number }),
            None => Ok(()),
        }
    }
}

/// Reads one copy: its header in sector `lba`, and the entries that header points to.
fn copy_at(
    file: &mut File,
    lba: u64,
    sector: LogicalBlockSize,
    device: &Path,
    length: u64,
) -> Result<Table, DiskError> {
    let failed = |source| DiskError::Read { path: device.to_owned(), source };
    let wrong = |what: String| DiskError::NoTable { device: device.to_owned(), what };
    // The crate looks for a header in sector 1: show it the sector there.
    let mut sectors = vec![0; sector.as_usize() * 2];
    let (_, header_sector) = sectors.split_at_mut(sector.as_usize());
    file.seek(SeekFrom::Start(lba.saturating_mul(sector.as_u64()))).map_err(failed)?;
    file.read_exact(header_sector).map_err(failed)?;
    let header = read_header_from_arbitrary_device(&mut Cursor::new(sectors), sector)
        .map_err(|error| wrong(error.to_string()))?;
    if header.current_lba != lba || header.part_size != ENTRY_SIZE || header.num_parts > MAX_ENTRIES {
        return Err(wrong(format!("{} entries of {} bytes in sector {lba}", header.num_parts, header.part_size)));
    }
    // Said as what it is, not as a disk that cannot be read.
    if header.part_start.checked_mul(sector.as_u64()).is_none_or(|start| start >= length) {
        return Err(wrong(format!("the entries begin in sector {}", header.part_start)));
    }
    let parts = file_read_partitions(file, &header, sector).map_err(|error| match error.raw_os_error() {
        Some(_) => failed(error),
        // What the crate finds wrong with the entries, such as their checksum.
        None => wrong(error.to_string()),
    })?;
    let mut entries = Vec::new();
    for (number, part) in parts.into_iter().filter(|(_, part)| part.is_used()) {
        let place = extent(&header, part.first_lba, part.last_lba, sector.as_u64(), length);
        let (start, size) = place.ok_or_else(|| wrong(format!("partition {number} lies outside the disk")))?;
        entries.push(Entry { number, label: part.name, guid: part.part_guid.to_string(), start, size });
    }
    refuse_overlaps(&entries, device.to_owned())?;
    Ok(Table { guid: header.disk_guid.to_string(), entries, copies: TableCopies::Both })
}

/// Start and size in bytes of an entry that lies where entries may lie.
fn extent(header: &Header, first: u64, last: u64, sector_size: u64, length: u64) -> Option<(u64, u64)> {
    if first < header.first_usable || last > header.last_usable || last < first {
        return None;
    }
    let start = first.checked_mul(sector_size)?;
    let size = last.checked_sub(first)?.checked_add(1)?.checked_mul(sector_size)?;
    (start.checked_add(size)? <= length).then_some((start, size))
}

fn refuse_overlaps(entries: &[Entry], device: PathBuf) -> Result<(), DiskError> {
    let mut by_start: Vec<&Entry> = entries.iter().collect();
    by_start.sort_by_key(|entry| entry.start);
    for (one, two) in by_start.iter().zip(by_start.iter().skip(1)) {
        if one.start.saturating_add(one.size) > two.start {
            return Err(DiskError::Overlap { device, first: one.number, second: two.number });
        }
    }
    Ok(())
}

/// Bytes for a number of sysfs sectors.
pub(super) fn sysfs_bytes(sectors: u64) -> Option<u64> {
    sectors.checked_mul(SYSFS_SECTOR)
}
