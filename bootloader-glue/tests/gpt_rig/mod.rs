//! A disk in a file whose partition table keeps the choice, with the backend and the simulated loaders on it.

#![allow(dead_code, reason = "each test uses a part of it")]

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use bascule_boot::disk::rehearsal::DiskFile;
use bascule_boot::disk::{SlotTable, Sysfs, locate};
use bascule_boot::gpt::simulator::{self, Ending, Loader};
use bascule_boot::gpt::{Act, SlotEntry, Step, TableCopy};
use bascule_boot::uboot::env::crc32;
use bascule_boot::{BootBackend, BootError, GptBackend};
use bascule_core::{BootView, BootedGroup, Group, Tries};

/// Bytes of all entries of a table with the standard number of them.
pub(crate) const ENTRIES: usize = 128 * 128;

/// The numbers of the slots.
pub(crate) const SLOTS: [u32; 2] = [3, 4];

pub(crate) struct Disk {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) image: PathBuf,
    pub(crate) sector: u64,
    pub(crate) slots: [SlotEntry; 2],
}

impl Disk {
    /// Partitioned, no bits set, the slots found as the agent finds them.
    pub(crate) fn bare(sector: u64) -> Disk {
        Disk::within(tempfile::tempdir().unwrap(), sector)
    }

    fn within(dir: tempfile::TempDir, sector: u64) -> Disk {
        let disk = DiskFile { sector_size: sector, ..DiskFile::of_device("nvme0n1", 64 << 10) };
        disk.lay_out(dir.path()).unwrap();
        disk.mount_root(dir.path(), 3).unwrap();
        let image = disk.image(dir.path());
        let [a, b] = ["partlabel:root-a", "partlabel:root-b"].map(|label| label.parse().unwrap());
        let layout = locate(&Sysfs { root: dir.path().to_owned() }, &SlotTable::of_root(a, b)).unwrap();
        let slots = Group::ALL.map(|group| {
            let slot = layout.slot("root", group).unwrap();
            SlotEntry { number: slot.partition, guid: slot.partuuid.clone() }
        });
        assert_eq!(slots.each_ref().map(|slot| slot.number), SLOTS);
        Disk { dir, image, sector, slots }
    }

    /// Group `a` good, group `b` unbootable.
    pub(crate) fn factory(sector: u64) -> Disk {
        let disk = Disk::bare(sector);
        disk.backend().mark_good(BootedGroup::proven(Group::A)).unwrap();
        disk
    }

    /// The same in memory, where there is such a place: for thousands of states.
    pub(crate) fn factory_in_memory(sector: u64) -> Disk {
        let disk = Disk::within(tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap(), sector);
        disk.perform(Group::A, "good").unwrap();
        disk
    }

    pub(crate) fn backend(&self) -> GptBackend {
        GptBackend::new(self.image.clone(), self.sector, self.slots.clone())
    }

    pub(crate) fn view(&self, booted: Group) -> BootView {
        self.backend().view(BootedGroup::proven(booted)).unwrap()
    }

    pub(crate) fn perform(&self, booted: Group, word: &str) -> Result<(), BootError> {
        let (backend, booted) = (self.backend(), BootedGroup::proven(booted));
        match act(booted.group(), word) {
            Act::MarkUnbootable(target) => backend.mark_unbootable(target),
            Act::Activate(target, tries) => backend.activate(target, tries),
            Act::MarkGood(booted) => backend.mark_good(booted),
            Act::RollBack(booted) => backend.roll_back(booted),
        }
    }

    /// Powers the device on.
    pub(crate) fn start(&self, loader: Loader) -> Option<Group> {
        match simulator::start(&self.image, self.sector, &self.slots, loader, |_| true).unwrap().ending {
            Ending::Started(group) => Some(group),
            Ending::Recovery => None,
        }
    }

    /// Which group the loader would start, without its traces.
    pub(crate) fn choice(&self, loader: Loader) -> Option<Group> {
        let held = self.table();
        let started = self.start(loader);
        self.put_table(&held);
        started
    }

    pub(crate) fn bytes(&self) -> Vec<u8> {
        fs::read(&self.image).unwrap()
    }

    /// Where header and entries of a copy lie, in bytes.
    pub(crate) fn places(&self, copy: TableCopy) -> (u64, u64) {
        let sector = self.sector;
        let last = fs::metadata(&self.image).unwrap().len() / sector - 1;
        match copy {
            TableCopy::Primary => (sector, 2 * sector),
            TableCopy::Backup => (last * sector, last * sector - ENTRIES as u64),
        }
    }

    /// Header and entries of a copy.
    pub(crate) fn copy(&self, copy: TableCopy) -> (Vec<u8>, Vec<u8>) {
        let (header, entries) = self.places(copy);
        (self.read(header, self.sector as usize), self.read(entries, ENTRIES))
    }

    /// Both copies.
    pub(crate) fn table(&self) -> [(Vec<u8>, Vec<u8>); 2] {
        [TableCopy::Primary, TableCopy::Backup].map(|copy| self.copy(copy))
    }

    pub(crate) fn put_table(&self, table: &[(Vec<u8>, Vec<u8>); 2]) {
        for (copy, (header, entries)) in [TableCopy::Primary, TableCopy::Backup].into_iter().zip(table) {
            let (header_at, entries_at) = self.places(copy);
            self.write(header_at, header);
            self.write(entries_at, entries);
        }
    }

    /// Changes a copy, and makes its checksums fit.
    pub(crate) fn edit(&self, copy: TableCopy, change: impl FnOnce(&mut [u8], &mut [u8])) {
        let (mut header, mut entries) = self.copy(copy);
        change(&mut header, &mut entries);
        let (header_at, entries_at) = self.places(copy);
        header[88..92].copy_from_slice(&crc32(&entries).to_le_bytes());
        header[16..20].fill(0);
        let length = u32::from_le_bytes(header[12..16].try_into().unwrap()) as usize;
        let checksum = crc32(&header[..length]).to_le_bytes();
        header[16..20].copy_from_slice(&checksum);
        self.write(header_at, &header);
        self.write(entries_at, &entries);
    }

    /// Puts a number into a header, and makes the header's own checksum fit where it can.
    pub(crate) fn edit_raw(&self, copy: TableCopy, field: usize, value: u64) {
        let (mut header, _) = self.copy(copy);
        let length = if [12, 20, 80, 84].contains(&field) { 4 } else { 8 };
        header[field..field + length].copy_from_slice(&value.to_le_bytes()[..length]);
        header[16..20].fill(0);
        let length = u32::from_le_bytes(header[12..16].try_into().unwrap()) as usize;
        let checksum = crc32(&header[..length.min(header.len())]).to_le_bytes();
        header[16..20].copy_from_slice(&checksum);
        self.write(self.places(copy).0, &header);
    }

    /// Sets the attributes of one entry in both copies.
    pub(crate) fn set_attributes(&self, number: u32, attributes: u64) {
        for copy in [TableCopy::Primary, TableCopy::Backup] {
            self.edit(copy, |_, entries| attributes_of(entries, number).copy_from_slice(&attributes.to_le_bytes()));
        }
    }

    pub(crate) fn attributes(&self, number: u32) -> u64 {
        let (_, mut entries) = self.copy(TableCopy::Primary);
        u64::from_le_bytes(attributes_of(&mut entries, number).try_into().unwrap())
    }

    pub(crate) fn apply(&self, step: &Step) {
        for write in &step.writes {
            self.write(write.offset, &write.bytes);
        }
    }

    pub(crate) fn read(&self, offset: u64, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        File::open(&self.image).unwrap().read_exact_at(&mut bytes, offset).unwrap();
        bytes
    }

    pub(crate) fn write(&self, offset: u64, bytes: &[u8]) {
        OpenOptions::new().write(true).open(&self.image).unwrap().write_all_at(bytes, offset).unwrap();
    }

    pub(crate) fn path(&self) -> &Path {
        &self.image
    }
}

pub(crate) fn act(booted: Group, word: &str) -> Act {
    let booted = BootedGroup::proven(booted);
    match word {
        "unbootable" => Act::MarkUnbootable(booted.target()),
        "activate" => Act::Activate(booted.target(), Tries::DEFAULT),
        "good" => Act::MarkGood(booted),
        "back" => Act::RollBack(booted),
        _ => panic!("no such act"),
    }
}

/// The place of an entry's attributes.
pub(crate) fn attributes_of(entries: &mut [u8], number: u32) -> &mut [u8] {
    let start = (number as usize - 1) * 128 + 48;
    &mut entries[start..start + 8]
}

/// The attributes of these bits.
pub(crate) fn bits(priority: u64, tries: u64, successful: u64) -> u64 {
    priority << 48 | tries << 52 | successful << 56
}
