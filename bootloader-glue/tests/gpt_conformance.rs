//! The GPT backend keeps the contract, against the simulators of two loaders that read such bits.
//!
//! The suite damages the file of the commit point: the primary copy of the table. The backup is a file of its own, and the
//! rig puts both into the image of a disk around each call. Nothing is played beside that: where the primary copy is lost,
//! both loaders go by the backup.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test stops where it fails"
)]

mod gpt_rig;

use std::cell::RefCell;
use std::fs;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use bascule_boot::conformance::{self, Rig};
use bascule_boot::gpt::TableCopy;
use bascule_boot::gpt::bits::Bits;
use bascule_boot::gpt::simulator::{self, Ending, Loader};
use bascule_boot::{BootBackend, BootError};
use bascule_core::{BootStatus, BootView, BootedGroup, Group, Settings, TargetGroup, Tries};
use gpt_rig::{Disk, ENTRIES, SLOTS, bits};

const A: Group = Group::A;
const B: Group = Group::B;
const LOADERS: [Loader; 2] = [Loader::Vboot, Loader::GptPrio];
const COPIES: [TableCopy; 2] = [TableCopy::Primary, TableCopy::Backup];

/// A disk, and its two copies of the table as files around each call.
struct Split {
    disk: Disk,
    files: tempfile::TempDir,
    /// What the last act left of the backup, and what was last in the file of the primary copy. Where the suite has put
    /// another primary copy there, it has gone back to that act: a start since then may have counted in the backup.
    acted: RefCell<Vec<u8>>,
    left: RefCell<Vec<u8>>,
}

impl Split {
    fn file(&self, copy: TableCopy) -> PathBuf {
        self.files.path().join(if copy == TableCopy::Primary { "primary" } else { "backup" })
    }

    fn around<T>(&self, call: impl FnOnce(&Disk) -> T) -> T {
        let sector = self.disk.sector as usize;
        if fs::read(self.file(TableCopy::Primary)).ok() != Some(self.left.borrow().clone()) {
            fs::write(self.file(TableCopy::Backup), &*self.acted.borrow()).unwrap();
        }
        let table = COPIES.map(|copy| {
            let mut bytes = fs::read(self.file(copy)).unwrap_or_default();
            bytes.resize(sector + ENTRIES, 0);
            (bytes[..sector].to_vec(), bytes[sector..].to_vec())
        });
        self.disk.put_table(&table);
        let result = call(&self.disk);
        if self.disk.table() != table {
            self.pack();
        }
        *self.left.borrow_mut() = fs::read(self.file(TableCopy::Primary)).unwrap_or_default();
        result
    }

    fn act<T>(&self, call: impl FnOnce(&Disk) -> T) -> T {
        let result = self.around(call);
        *self.acted.borrow_mut() = fs::read(self.file(TableCopy::Backup)).unwrap();
        result
    }

    fn pack(&self) {
        for copy in COPIES {
            let (header, entries) = self.disk.copy(copy);
            fs::write(self.file(copy), [header, entries].concat()).unwrap();
        }
    }
}

/// The backend's calls on the two files.
struct Backend(Arc<Mutex<Split>>);

impl Backend {
    fn call<T>(&self, call: impl FnOnce(&Disk) -> T) -> T {
        self.0.lock().unwrap().act(call)
    }
}

impl BootBackend for Backend {
    fn name(&self) -> &'static str {
        "gpt"
    }

    fn view(&self, booted: BootedGroup) -> Result<BootView, BootError> {
        self.0.lock().unwrap().around(|disk| disk.backend().view(booted))
    }

    fn mark_unbootable(&self, target: TargetGroup) -> Result<(), BootError> {
        self.call(|disk| disk.backend().mark_unbootable(target))
    }

    fn activate(&self, target: TargetGroup, tries: Tries) -> Result<(), BootError> {
        self.call(|disk| disk.backend().activate(target, tries))
    }

    fn mark_good(&self, booted: BootedGroup) -> Result<(), BootError> {
        self.call(|disk| disk.backend().mark_good(booted))
    }

    fn roll_back(&self, booted: BootedGroup) -> Result<(), BootError> {
        self.call(|disk| disk.backend().roll_back(booted))
    }
}

fn rig(loader: Loader, sector: u64) -> Rig {
    let (disk, files) = (Disk::factory_in_memory(sector), tempfile::tempdir().unwrap());
    let split = Split { disk, files, acted: RefCell::default(), left: RefCell::default() };
    split.pack();
    for (kept, copy) in [(&split.left, TableCopy::Primary), (&split.acted, TableCopy::Backup)] {
        *kept.borrow_mut() = fs::read(split.file(copy)).unwrap();
    }
    let files = COPIES.map(|copy| split.file(copy)).to_vec();
    let shared = Arc::new(Mutex::new(split));
    let running = Arc::clone(&shared);
    Rig {
        backend: Box::new(Backend(Arc::clone(&shared))),
        settings: files[0].clone(),
        files,
        start: Box::new(move || running.lock().unwrap().around(|disk| disk.start(loader))),
        keep: Box::new(shared),
    }
}

#[test]
fn the_gpt_backend_keeps_the_contract_with_vboot() {
    conformance::check(&|| rig(Loader::Vboot, 512));
}

#[test]
fn the_gpt_backend_keeps_the_contract_with_gptprio() {
    conformance::check(&|| rig(Loader::GptPrio, 512));
}

#[test]
fn the_gpt_backend_keeps_the_contract_on_sectors_of_4096_bytes() {
    conformance::check(&|| rig(Loader::Vboot, 4096));
}

#[test]
fn a_disk_whose_bits_nobody_has_set_is_damage_and_the_booted_group_is_made_good() {
    for booted in Group::ALL {
        let disk = Disk::bare(512);
        assert_eq!((disk.view(booted).settings, disk.start(Loader::Vboot)), (Settings::Damaged, None));
        assert_eq!(disk.perform(booted, "activate").unwrap_err().code(), "boot.damaged");
        assert_eq!(disk.perform(booted, "back").unwrap_err().code(), "boot.no-good-group");
        disk.perform(booted, "unbootable").unwrap();
        let view = disk.view(booted);
        assert_eq!((view.settings, view.primary), (Settings::Intact, booted));
        assert_eq!((view.status(booted), view.status(booted.opposite())), (BootStatus::Good, BootStatus::Unbootable));
        assert_eq!(disk.start(Loader::GptPrio), Some(booted));
    }
}

#[test]
fn the_meaning_of_all_bits_is_what_the_loaders_do_with_them() {
    let disk = Disk::factory(512);
    let cases = (0..512_u64).map(|nine| (nine & 15, nine >> 4 & 15, nine >> 8));
    for (priority, tries, successful) in cases {
        // The other group is good, and comes after whatever may be started at all.
        disk.set_attributes(3, bits(u64::from(priority > 1), 0, 1));
        disk.set_attributes(4, bits(priority, tries, successful));
        let (view, status) = (disk.view(A), disk.view(A).b);
        for loader in LOADERS {
            let case = format!("{priority} {tries} {successful}, {loader:?}: {view:?}");
            let picked = simulator::start(disk.path(), 512, &disk.slots, loader, |_| false).unwrap().picked;
            assert_eq!(picked.contains(&4), priority > 0 && (tries > 0 || successful > 0), "{case}");
            let started = matches!(status, BootStatus::Good | BootStatus::Trial { .. });
            assert_eq!(picked.contains(&4), started, "{case}");
            disk.set_attributes(3, bits(u64::from(priority > 1), 0, 1));
            disk.set_attributes(4, bits(priority, tries, successful));
        }
        assert_eq!(Bits::of(disk.attributes(4)).in_attributes(0), bits(priority, tries, successful));
    }
}

#[test]
fn the_fields_of_others_in_the_attributes_are_kept() {
    let disk = Disk::factory(512);
    // Required, legacy boot, read-only and no auto-mount.
    let others = 1 | 1 << 2 | 1 << 57 | 1 << 60 | 1 << 63;
    disk.set_attributes(4, others);
    for (word, ours) in [("unbootable", bits(0, 15, 0)), ("activate", bits(2, 3, 0))] {
        disk.perform(A, word).unwrap();
        assert_eq!(disk.attributes(4), others | ours, "{word}");
    }
}

#[test]
fn priorities_never_run_out() {
    for loader in LOADERS {
        let disk = Disk::factory(512);
        let mut booted = A;
        let mut highest = 0;
        for _ in 0..40 {
            disk.perform(booted, "unbootable").unwrap();
            disk.perform(booted, "activate").unwrap();
            assert_eq!(disk.start(loader), Some(booted.opposite()));
            booted = booted.opposite();
            disk.perform(booted, "good").unwrap();
            assert_eq!(disk.view(booted).primary, booted);
            highest = highest.max(Bits::of(disk.attributes(disk.slots[booted as usize].number)).priority);
        }
        assert_eq!(highest, 15);
    }
}

#[test]
fn a_group_becomes_good_above_one_of_the_highest_priority() {
    for [own, other] in [[(15, 3, 0), (15, 0, 1)], [(0, 15, 0), (15, 0, 1)], [(4, 0, 1), (4, 0, 1)]] {
        for booted in Group::ALL {
            let disk = Disk::factory(512);
            let numbers = if booted == A { [3, 4] } else { [4, 3] };
            for (number, (priority, tries, successful)) in numbers.into_iter().zip([own, other]) {
                disk.set_attributes(number, bits(priority, tries, successful));
            }
            disk.perform(booted, "good").unwrap();
            let view = disk.view(booted);
            assert_eq!(
                (view.primary, view.a, view.b),
                (booted, BootStatus::Good, BootStatus::Good),
                "{own:?} {other:?}"
            );
            assert_eq!(disk.start(Loader::Vboot), Some(booted));
        }
    }
}

#[test]
fn a_kernel_that_does_not_load_loses_its_trial_with_vboot() {
    let disk = Disk::factory(512);
    disk.perform(A, "activate").unwrap();
    let start = simulator::start(disk.path(), 512, &disk.slots, Loader::Vboot, |group| group == A).unwrap();
    assert_eq!((start.ending, start.picked), (Ending::Started(A), vec![4, 3]));
    assert_eq!(disk.view(A).b, BootStatus::Exhausted);
}

#[test]
fn the_lost_primary_copy_is_repaired_and_what_the_backup_knows_is_kept() {
    let disk = Disk::factory(512);
    disk.perform(A, "activate").unwrap();
    disk.start(Loader::Vboot);
    disk.perform(B, "good").unwrap();
    let whole = disk.bytes();
    let (header, entries) = disk.places(TableCopy::Primary);
    for (offset, length) in [(header, 512), (entries, 512), (header, 33 * 512)] {
        disk.write(offset, &vec![0x5a; length]);
        assert_eq!((disk.view(B).settings, disk.view(B).a), (Settings::Damaged, BootStatus::Good), "{offset}");
        disk.perform(B, "good").unwrap();
        assert!(disk.bytes() == whole, "{offset}: repaired to something else");
    }
    // The backup lost: nothing that a loader would notice.
    for (offset, length) in [(disk.places(TableCopy::Backup).0, 512), (disk.places(TableCopy::Backup).1, 512)] {
        disk.write(offset, &vec![0x5a; length]);
        assert_eq!(disk.view(B).settings, Settings::Intact);
        disk.perform(B, "good").unwrap();
        assert!(disk.bytes() == whole, "{offset}: repaired to something else");
    }
}

#[test]
fn one_damaged_copy_is_told_while_the_other_one_serves() {
    for sector in [512, 4096] {
        let disk = Disk::factory(sector);
        let told = || disk.backend().damaged_copy().unwrap().map(|warning| (warning.code, warning.reason));
        assert_eq!(told(), None);
        for place in <[u64; 2]>::from(disk.places(TableCopy::Backup)) {
            disk.write(place, &vec![0x5a; 512]);
            let (code, reason) = told().unwrap();
            assert!(code == "boot.gpt-copy-damaged" && reason.contains("the backup of the"), "{code} {reason}");
            disk.perform(A, "good").unwrap();
            assert_eq!(told(), None, "the next act makes it whole");
        }
        // The primary copy, cut off in the middle of a change of ours: the bits of an entry are new, its checksum is not.
        let (header, entries) = disk.places(TableCopy::Primary);
        let bits = entries + u64::from(SLOTS[1] - 1) * 128 + 48 + 6;
        let byte = disk.read(bits, 1);
        disk.write(bits, &[byte[0] ^ 1]);
        let (_, reason) = told().unwrap();
        assert!(reason.contains("the primary copy of the") && disk.view(A).settings == Settings::Intact, "{reason}");
        // Lost altogether: the settings themselves are damaged, and the view says so.
        disk.write(header, &vec![0x5a; 512]);
        assert_eq!((told(), disk.view(A).settings), (None, Settings::Damaged));
    }
}

#[test]
fn a_table_that_is_not_ours_to_change_is_refused_and_left_alone() {
    type Edit = fn(&Disk);
    let cases: [(&str, &str, Edit); 11] = [
        ("a name in one copy", "boot.gpt-copies-differ", |d| d.edit(TableCopy::Backup, |_, e| e[2 * 128 + 56] ^= 1)),
        ("a range in one copy", "boot.gpt-copies-differ", |d| d.edit(TableCopy::Primary, |_, e| e[3 * 128 + 40] ^= 1)),
        ("a GUID in one copy", "boot.gpt-copies-differ", |d| d.edit(TableCopy::Backup, |_, e| e[4 * 128 + 16] ^= 1)),
        ("other attributes", "boot.gpt-copies-differ", |d| d.edit(TableCopy::Backup, |_, e| e[2 * 128 + 48] ^= 4)),
        ("bits of others", "boot.gpt-copies-differ", |d| d.edit(TableCopy::Backup, |_, e| e[128 + 48 + 6] ^= 1)),
        ("the disk's GUID", "boot.gpt-copies-differ", |d| d.edit(TableCopy::Backup, |h, _| h[56] ^= 1)),
        ("the GUID", "boot.gpt-entry", |d| both(d, |e| e[3 * 128 + 16] ^= 1)),
        ("the type", "boot.gpt-entry", |d| both(d, |e| e[3 * 128] ^= 1)),
        ("no partition", "boot.gpt-entry", |d| both(d, |e| e[3 * 128..3 * 128 + 16].fill(0))),
        ("a rival", "boot.gpt-rival", |d| d.set_attributes(5, bits(1, 1, 0))),
        ("neither copy", "boot.gpt-no-table", |d| {
            d.write(d.places(TableCopy::Primary).0, &[0; 512]);
            d.write(d.places(TableCopy::Backup).1, &[7; 512]);
        }),
    ];
    for (what, code, edit) in cases {
        let disk = Disk::factory(512);
        edit(&disk);
        let before = disk.bytes();
        assert_eq!(disk.backend().view(BootedGroup::proven(A)).unwrap_err().code(), code, "{what}");
        for word in ["unbootable", "activate", "good", "back"] {
            assert_eq!(disk.perform(A, word).unwrap_err().code(), code, "{what}, {word}");
        }
        assert!(disk.bytes() == before, "{what}: written to all the same");
    }
}

fn both(disk: &Disk, change: fn(&mut [u8])) {
    for copy in COPIES {
        disk.edit(copy, |_, entries| change(entries));
    }
}

#[test]
fn a_backup_that_is_not_at_the_end_is_refused() {
    let disk = Disk::factory(512);
    let length = disk.bytes().len() as u64;
    fs::OpenOptions::new().write(true).open(disk.path()).unwrap().set_len(length + (1 << 20)).unwrap();
    let error = disk.perform(A, "activate").unwrap_err();
    assert_eq!(error.code(), "boot.gpt-no-table");
    assert!(error.to_string().contains("sgdisk -e"), "{error}");
}
