//! Power cuts in the middle of copying boot files: every boot partition that the log of a boot lets a cut leave, looked at
//! without starting from it.
//!
//! A cut leaves everything up to a write; or, where the drive has a cache, everything up to a flush and of what follows it
//! any one write. Of a write it leaves the whole or the first half.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use bascule_core::{BootStatus, Group};
use bascule_image::disk::Loader;

use super::cuts::LONGEST_SETTING;
use super::partition;
use super::write_log::{Entry, WriteLog};
use crate::factory::BOOT_PARTITION;

const SECTOR: u64 = 512;
/// Copied at once.
const PIECE: usize = 1 << 20;
/// The kernel that is copied, and the folder that it is in.
const FOLDER: &str = "bascule/b";
const KERNEL: &str = "linux";

/// A disk that a cut leaves: what the log has before an entry, and of one more entry the beginning.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Cut {
    all: usize,
    then: usize,
    bytes: u64,
}

/// What was looked at.
#[derive(Debug)]
pub(super) struct Looked {
    /// Boot partitions.
    pub(super) count: usize,
    /// Flushes among the writes to the boot partition.
    pub(super) flushes: usize,
    /// In the middle of the kernel's bytes.
    pub(super) middle: Cut,
}

/// Looks at every boot partition that a cut before the entry `end` leaves of a device that runs group a. `before` is the disk
/// as it was before the log, `scratch` a folder for copies of the partition.
pub(super) fn look(log: &WriteLog, before: &Path, end: usize, loader: Loader, scratch: &Path) -> Result<Looked> {
    let durable = Partition::copied(before, scratch.join("durable.fat"))?;
    let ordered = Partition::copied(before, scratch.join("ordered.fat"))?;
    let running = Running { files: files_of_a(&ordered.path)?, loader };
    ensure!(running.files.keys().any(|path| path.starts_with("/bascule/a/")), "group a has no boot files there");
    let kernel = |entry: &&(usize, Entry)| is_in_boot_partition(&entry.1) && entry.1.length > LONGEST_SETTING;
    let numbered = || log.entries.iter().take(end).copied().enumerate();
    let kernels: Vec<usize> = numbered().filter(|entry| kernel(&entry)).map(|(number, _)| number).collect();
    let middle = *kernels.get(kernels.len() / 2).context("no kernel was written")?;
    let middle_length = log.entries.get(middle).map_or(0, half);
    let mut looked = Looked { count: 0, flushes: 0, middle: Cut { all: middle, then: middle, bytes: middle_length } };
    let (mut pending, mut flushed) = (Vec::new(), 0);
    for (number, entry) in numbered() {
        if entry.is_flush {
            looked.flushes += usize::from(!pending.is_empty());
            pending.drain(..).try_for_each(|entry| durable.apply(log, &entry, entry.length))?;
            flushed = number + 1;
        }
        if !is_in_boot_partition(&entry) {
            continue;
        }
        let alone = durable.bytes(&entry)?;
        for bytes in [half(&entry), entry.length] {
            let cuts = [(&ordered, number), (&durable, flushed)];
            for (partition, all) in cuts {
                partition.apply(log, &entry, bytes)?;
                let cut = Cut { all, then: number, bytes };
                running.check(&partition.path).with_context(|| format!("{cut:?} of {entry:?}"))?;
                looked.count += 1;
            }
        }
        durable.put(&entry, &alone)?;
        pending.push(entry);
    }
    Ok(looked)
}

impl Cut {
    /// Makes `disk`, which is as it was before the log, what this cut leaves.
    pub(super) fn make(&self, log: &WriteLog, disk: &Path) -> Result<()> {
        let drive = File::options().read(true).write(true).open(disk)?;
        log.replay(0..self.all, &drive)?;
        let entry = log.entries.get(self.then).context("the log is shorter")?;
        log.replay_part(entry, 0..self.bytes, &drive)
    }
}

fn half(entry: &Entry) -> u64 {
    (entry.length / 2).next_multiple_of(SECTOR)
}

fn is_in_boot_partition(entry: &Entry) -> bool {
    let (start, length) = BOOT_PARTITION;
    entry.length > 0 && entry.at >= start && entry.at + entry.length <= start + length
}

/// The boot partition alone, in a file.
struct Partition {
    path: PathBuf,
    file: File,
}

impl Partition {
    fn copied(disk: &Path, path: PathBuf) -> Result<Partition> {
        let from = File::open(disk)?;
        let file = File::options().read(true).write(true).create(true).truncate(true).open(&path)?;
        let (start, length) = BOOT_PARTITION;
        file.set_len(length)?;
        let mut piece = vec![0; PIECE];
        for at in (0..length).step_by(PIECE) {
            from.read_exact_at(&mut piece, start + at)?;
            if piece.iter().any(|byte| *byte != 0) {
                file.write_all_at(&piece, at)?;
            }
        }
        Ok(Partition { path, file })
    }

    /// Does the beginning of an entry.
    fn apply(&self, log: &WriteLog, entry: &Entry, length: u64) -> Result<()> {
        let bytes = log.bytes(entry)?;
        self.put(entry, bytes.get(..usize::try_from(length)?).unwrap_or_default())
    }

    fn put(&self, entry: &Entry, bytes: &[u8]) -> Result<()> {
        Ok(self.file.write_all_at(bytes, entry.at - BOOT_PARTITION.0)?)
    }

    /// What is where the entry writes.
    fn bytes(&self, entry: &Entry) -> Result<Vec<u8>> {
        let mut bytes = vec![0; usize::try_from(entry.length)?];
        self.file.read_exact_at(&mut bytes, entry.at - BOOT_PARTITION.0)?;
        Ok(bytes)
    }
}

/// What the running group needs.
struct Running {
    files: BTreeMap<String, Vec<u8>>,
    loader: Loader,
}

impl Running {
    /// That a partition has it, byte for byte, on clusters of its own, and the loader would start it; and that nothing on the
    /// partition has a length or a name without its clusters, which would make Linux take it for read-only.
    fn check(&self, partition: &Path) -> Result<()> {
        let volume = partition::open_alone(partition)?;
        for (path, bytes) in &self.files {
            let there = partition::read(&volume, path)?;
            ensure!(&there == bytes, "{path} is another file: {} bytes of {}", there.len(), bytes.len());
        }
        let output = Command::new("fsck.vfat").arg("-n").arg(partition).output().context("cannot start fsck.vfat")?;
        let told = String::from_utf8_lossy(&output.stdout);
        // A chain that is longer than the length is `> N bytes`: that is how a file is while it is written.
        let short = told.lines().any(|line| line.contains("cluster chain length is ") && !line.contains("length is >"));
        let is_faulty =
            short || ["share clusters", "Contains a ", "Start cluster"].iter().any(|words| told.contains(words));
        ensure!(!is_faulty, "fsck.vfat: {told}");
        if self.loader == Loader::SystemdBoot {
            let view = partition::view_of(&volume, self.loader)?;
            let starts_a = view.primary == Group::A && view.a == BootStatus::Good;
            ensure!(starts_a && view.b == BootStatus::Unbootable, "the loader would not start group a: {view:?}");
        }
        let length = partition::length(&volume, FOLDER, KERNEL);
        let has = partition::read(&volume, &format!("{FOLDER}/{KERNEL}")).map_or(0, |bytes| bytes.len() as u64);
        ensure!(length.is_none_or(|length| has == length), "the new kernel has {has} of {length:?} bytes");
        Ok(())
    }
}

/// Every file that is on the partition, by its path, but for those of group b.
fn files_of_a(partition: &Path) -> Result<BTreeMap<String, Vec<u8>>> {
    let volume = partition::open_alone(partition)?;
    let mut files = partition::files(&volume)?;
    files.retain(|path, _| {
        let name = path.rsplit('/').next().unwrap_or_default();
        !(path.starts_with("/bascule/b") || name.starts_with("bascule-") && name.contains("-b"))
    });
    Ok(files)
}
