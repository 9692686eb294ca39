//! Power cuts at the switch: where in the log of a boot it was, what it wrote, and the disks that a cut there leaves.

use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use bascule_core::BootStatus;
use bascule_image::disk::Loader;

use super::partition;
use super::write_log::{Entry, WriteLog};
use crate::factory::{BOOT_PARTITION, DATA_PARTITION};

const SECTOR: u64 = 512;
/// Longer writes to the boot partition are kernels.
pub(super) const LONGEST_SETTING: u64 = 64 << 10;
/// Only the record of an armed loader has this key, which says in which boot it was armed.
const ARMED_RECORD: &[u8] = b"\"armed_in\"";

/// One block of the data partition's file system.
const JOURNAL_BLOCK: u64 = 4096;
/// How the last block of a transaction begins: the magic number of the kernel's jbd2, and the type of a commit block.
const JOURNAL_COMMIT: &[u8] = &[0xc0, 0x3b, 0x39, 0x98, 0, 0, 0, 2];

/// Where the power is cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Cut {
    /// Everything up to the last flush before the switch.
    Before,
    /// The same, and the write that switches up to the first sector that it changes.
    Torn,
    /// The same, and the whole write that switches, of several in flight it alone.
    During,
    /// Everything up to the flush that follows the switch.
    After,
}

/// The switch in a log: numbers of entries.
#[derive(Debug, Clone)]
pub(super) struct Switch {
    /// Everything before this one is durable when the switch begins.
    before: usize,
    /// The write after which the loader's settings say that the new group is to be tried.
    write: usize,
    /// Everything before this one is durable when the switch is.
    after: usize,
    /// How much of that write is on the disk when it is torn, in bytes.
    torn: u64,
    /// Whether a torn write has changed all that it changes: then it is one sector that decides.
    pub(super) one_sector_decides: bool,
    /// What was written to the boot partition between the two flushes, in words.
    pub(super) seen: String,
}

impl Switch {
    /// Finds the switch to group b, by replaying the log on `disk`, which is as it was before it.
    pub(super) fn find(log: &WriteLog, disk: &Path, loader: Loader) -> Result<Switch> {
        let drive = File::options().read(true).write(true).open(disk)?;
        let (mut before, mut since, mut write) = (0, Vec::new(), None);
        for (number, entry) in log.entries.iter().enumerate() {
            if entry.is_flush && write.is_some() {
                break;
            }
            if entry.is_flush {
                since = Vec::new();
            }
            if write.is_none() && is_durable(log, entry)? {
                before = number + 1;
            }
            let changed = changed_sectors(log, entry, &drive)?;
            log.replay_part(entry, 0..entry.length, &drive)?;
            if !is_in(entry, BOOT_PARTITION) {
                continue;
            }
            since.push((number, *entry, changed));
            if write.is_none() && entry.length <= LONGEST_SETTING && is_armed(disk, loader) {
                write = Some((number, *entry));
            }
        }
        let (write, entry) = write.context("the log has no write after which the loader would try group b")?;
        let flush = log.entries.iter().skip(write).position(|entry| entry.is_flush);
        let after = write + flush.context("the switch was never flushed")? + 1;
        let seen = tell(&since);
        let changed = since.iter().find(|(number, ..)| *number == write).map(|(.., changed)| changed.as_slice());
        let changed = changed.unwrap_or_default();
        let first = changed.first().map_or(0, |(sector, _)| BOOT_PARTITION.0 + (sector + 1) * SECTOR - entry.at);
        check(&since, write, loader).with_context(|| format!("between the two flushes around the switch: {seen}"))?;
        Ok(Switch { before, write, after, torn: first, one_sector_decides: changed.len() == 1, seen })
    }

    /// Everything before this entry is durable when the switch begins.
    pub(super) fn begins(&self) -> usize {
        self.before
    }

    /// Makes `disk`, which is as it was before the log, what this cut leaves.
    pub(super) fn cut(&self, log: &WriteLog, cut: Cut, disk: &Path) -> Result<()> {
        let drive = File::options().read(true).write(true).open(disk)?;
        let before = if cut == Cut::After { self.after } else { self.before };
        log.replay(0..before, &drive)?;
        let entry = log.entries.get(self.write).context("the log is shorter")?;
        match cut {
            Cut::Before | Cut::After => Ok(()),
            Cut::Torn => log.replay_part(entry, 0..self.torn, &drive),
            Cut::During => log.replay_part(entry, 0..entry.length, &drive),
        }
    }
}

/// The last entry that is durable before the record says that the loader is armed: for loaders whose choice is elsewhere.
pub(super) fn before_the_record(log: &WriteLog) -> Result<usize> {
    let mut durable = 0;
    for (number, entry) in log.entries.iter().enumerate() {
        if is_durable(log, entry)? {
            durable = number + 1;
        }
        if entry.at >= DATA_PARTITION && entry.length <= LONGEST_SETTING && holds(&log.bytes(entry)?, ARMED_RECORD) {
            return Ok(durable);
        }
    }
    anyhow::bail!("no write of the log holds the record of an armed loader")
}

/// The first entry of a log of firmware variables that brings the variable of this name.
pub(super) fn first_write_of(log: &WriteLog, variables: &Path, name: &str) -> Result<usize> {
    let drive = File::options().read(true).write(true).open(variables)?;
    let wide: Vec<u8> = name.encode_utf16().flat_map(u16::to_le_bytes).collect();
    let length = drive.metadata()?.len();
    for (number, entry) in log.entries.iter().enumerate() {
        log.replay_part(entry, 0..entry.length, &drive)?;
        // A name may begin in the sector before this one.
        let from = entry.at.saturating_sub(SECTOR);
        let to = (entry.at + entry.length + SECTOR).min(length);
        let mut bytes = vec![0; usize::try_from(to.saturating_sub(from))?];
        drive.read_exact_at(&mut bytes, from)?;
        if entry.length > 0 && holds(&bytes, &wide) {
            return Ok(number);
        }
    }
    anyhow::bail!("no write of the log brings the variable {name}")
}

/// Whether everything up to this entry counts as durable: after a flush, and after the block that ends a transaction of the
/// data partition's journal. That one is written past the drive's cache (FUA), which QEMU's log does not note.
fn is_durable(log: &WriteLog, entry: &Entry) -> Result<bool> {
    let may_commit = entry.at >= DATA_PARTITION && entry.length == JOURNAL_BLOCK;
    Ok(entry.is_flush || (may_commit && log.bytes(entry)?.starts_with(JOURNAL_COMMIT)))
}

fn holds(bytes: &[u8], wanted: &[u8]) -> bool {
    bytes.windows(wanted.len()).any(|window| window == wanted)
}

fn is_in(entry: &Entry, (start, length): (u64, u64)) -> bool {
    entry.length > 0 && entry.at >= start && entry.at < start + length
}

/// A half-written directory may not be readable; then it does not say anything either.
fn is_armed(disk: &Path, loader: Loader) -> bool {
    partition::view(disk, loader).is_ok_and(|view| matches!(view.b, BootStatus::Trial { .. }))
}

/// The sectors of the drive whose bytes this entry changes, counted from the beginning of the boot partition.
fn changed_sectors(log: &WriteLog, entry: &Entry, drive: &File) -> Result<Vec<(u64, Kind)>> {
    if !is_in(entry, BOOT_PARTITION) || entry.length > LONGEST_SETTING {
        return Ok(Vec::new());
    }
    let new = log.bytes(entry)?;
    let mut old = vec![0; new.len()];
    drive.read_exact_at(&mut old, entry.at)?;
    let sectors = new.chunks(SECTOR as usize).zip(old.chunks(SECTOR as usize)).zip(0..);
    let first = (entry.at - BOOT_PARTITION.0) / SECTOR;
    Ok(sectors.filter(|((new, old), _)| new != old).map(|((new, _), place)| (first + place, kind(new))).collect())
}

/// What a sector of the boot partition is, by its bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// The first of a GRUB environment block.
    GrubBlock,
    /// A directory: it has an entry of a long name, or the two that every directory begins with.
    Directory,
    /// Data of a file, or of the file system itself.
    Other,
}

fn kind(sector: &[u8]) -> Kind {
    let long_name = |entry: &[u8]| entry.get(11) == Some(&0x0f) && entry.get(26..28) == Some(&[0, 0]);
    if sector.starts_with(b"# GRUB Environment Block\n") {
        Kind::GrubBlock
    } else if sector.starts_with(b".          ") || sector.chunks(32).any(long_name) {
        Kind::Directory
    } else {
        Kind::Other
    }
}

type Written = (usize, Entry, Vec<(u64, Kind)>);

/// The writes to the boot partition between the two flushes, and what they changed there.
fn tell(since: &[Written]) -> String {
    let one = |(_, entry, changed): &Written| {
        let sectors: Vec<String> = runs(changed).into_iter().map(|run| told(&run)).collect();
        let changed = if sectors.is_empty() { "nothing".to_owned() } else { sectors.join(", ") };
        let written = entry.length / SECTOR;
        format!("a write of {written} sector{} changed {changed}", if written == 1 { "" } else { "s" })
    };
    since.iter().map(one).collect::<Vec<_>>().join("; ")
}

fn told((range, kind): &(Range<u64>, Kind)) -> String {
    let what = match kind {
        Kind::GrubBlock => "of grubenv",
        Kind::Directory => "of a directory",
        Kind::Other => "of a file",
    };
    match range.end - range.start {
        1 => format!("sector {} {what}", range.start),
        count => format!("{count} sectors from {} {what}", range.start),
    }
}

fn runs(changed: &[(u64, Kind)]) -> Vec<(Range<u64>, Kind)> {
    let mut runs: Vec<(Range<u64>, Kind)> = Vec::new();
    for (sector, kind) in changed {
        match runs.last_mut() {
            Some((range, of)) if range.end == *sector && of == kind => range.end += 1,
            _ => runs.push((*sector..*sector + 1, *kind)),
        }
    }
    runs
}

/// Claims A3 and A4: between the two flushes nothing of the settings changes but what has to.
fn check(since: &[Written], write: usize, loader: Loader) -> Result<()> {
    let of_switch = since.iter().filter(|(number, ..)| *number == write).flat_map(|(.., changed)| changed);
    let of_switch: Vec<_> = of_switch.copied().collect();
    let beside = since.iter().filter(|(number, ..)| *number != write).flat_map(|(.., changed)| changed);
    let beside: Vec<_> = beside.copied().collect();
    let bookkeeping = |changed: &[(u64, Kind)]| changed.iter().all(|(_, kind)| *kind == Kind::Directory);
    match loader {
        Loader::Grub | Loader::GrubBios => {
            ensure!(matches!(of_switch.as_slice(), [(_, Kind::GrubBlock)]), "the switch is not one sector of grubenv");
            ensure!(bookkeeping(&beside), "something beside grubenv and its times changed");
        }
        Loader::Uboot => {
            let copy = runs(&of_switch).len() <= 2 && of_switch.len() <= 32;
            ensure!(copy, "the switch is not within one copy of the environment");
            ensure!(bookkeeping(&beside), "something beside one copy and its times changed");
        }
        Loader::SystemdBoot => {
            ensure!(matches!(of_switch.as_slice(), [(_, Kind::Directory)]), "the switch is not one directory sector");
            ensure!(bookkeeping(&beside), "something beside the directory changed");
        }
        Loader::Efi => {}
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_switch_that_changes_a_second_sector_of_grubenv_is_found_out() {
        let entry = |at| Entry::new(at, 1024);
        let good = [(7, entry(0), vec![(40, Kind::GrubBlock)]), (8, entry(0), vec![(9, Kind::Directory)])];
        assert!(check(&good, 7, Loader::Grub).is_ok());
        let two = [(7, entry(0), vec![(40, Kind::GrubBlock), (41, Kind::Other)])];
        assert!(check(&two, 7, Loader::Grub).is_err());
        let beside = [(7, entry(0), vec![(40, Kind::GrubBlock)]), (8, entry(0), vec![(90, Kind::Other)])];
        assert!(check(&beside, 7, Loader::Grub).is_err());
        assert!(tell(&two).contains("2 sectors") && tell(&two).contains("sector 40 of grubenv"));
    }

    #[test]
    fn sectors_are_known_by_their_bytes() {
        let mut sector = vec![0; 512];
        assert_eq!(kind(&sector), Kind::Other);
        sector[32 + 11] = 0x0f;
        assert_eq!(kind(&sector), Kind::Directory);
        assert_eq!(kind(b"# GRUB Environment Block\norder=a b\n"), Kind::GrubBlock);
    }
}
