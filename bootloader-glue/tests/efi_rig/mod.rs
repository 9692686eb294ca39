//! The variables of a firmware in a folder, with the backend and the simulated boot manager on it.

#![allow(dead_code, reason = "each test uses its part")]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use bascule_boot::efi::option::{LoadOption, Partition};
use bascule_boot::efi::simulator::{self, Ending, Start};
use bascule_boot::efi::{Act, Step};
use bascule_boot::{BootBackend, BootError, EfiBackend};
use bascule_core::{BootView, BootedGroup, Group, Tries};

pub(crate) const GLOBAL: &str = "8be4df61-93ca-11d2-aa0d-00e098032b8c";
pub(crate) const MARK: &str = "BasculeTrial-6f1d3b52-9c0e-4d57-8a44-2be1c37f90a6";

/// The numbers of our entries, and those of others: an empty drive, another system, one that is not active.
pub(crate) const A: u16 = 0x0003;
pub(crate) const B: u16 = 0x00AF;
pub(crate) const DRIVE: u16 = 0x0000;
pub(crate) const OTHER: u16 = 0x0107;
pub(crate) const SLEEPING: u16 = 0xBEEF;

pub(crate) struct Firmware {
    dir: tempfile::TempDir,
}

/// The files by name.
pub(crate) type Files = BTreeMap<String, Vec<u8>>;

impl Firmware {
    /// A new device: `a` good, `b` unbootable; three entries of others, and variables that are nobody's business.
    pub(crate) fn factory() -> Self {
        let firmware = Firmware { dir: tempfile::tempdir().unwrap() };
        for (group, number) in [(Group::A, A), (Group::B, B)] {
            firmware.put(&entry(number), 7, &option(group).to_bytes().unwrap());
        }
        for (number, attributes, text) in [(DRIVE, 1, "UEFI Drive"), (OTHER, 1, "Bascule"), (SLEEPING, 0, "Bascule a ")]
        {
            let foreign = LoadOption { attributes, description: text.into(), ..option(Group::A) };
            firmware.put(&entry(number), 7, &foreign.to_bytes().unwrap());
        }
        firmware.set_order(&[A, DRIVE, OTHER]);
        firmware.put("BootCurrent", 6, &A.to_le_bytes());
        firmware.put("BootOptionSupport", 6, &[3, 0, 0, 0]);
        firmware.put("Boot00af", 7, b"not a number of the firmware's");
        fs::write(firmware.dir().join("Boot0003-4a67b082-0a4c-41cf-b6c7-440b29bb8c4f"), [7, 0, 0, 0, 1]).unwrap();
        firmware
    }

    pub(crate) fn dir(&self) -> &Path {
        self.dir.path()
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir().join(format!("{name}-{GLOBAL}"))
    }

    pub(crate) fn backend(&self) -> EfiBackend {
        EfiBackend::new(self.dir().to_owned())
    }

    pub(crate) fn put(&self, name: &str, attributes: u32, data: &[u8]) {
        fs::write(self.path(name), [&attributes.to_le_bytes()[..], data].concat()).unwrap();
    }

    pub(crate) fn set_order(&self, numbers: &[u16]) {
        self.put("BootOrder", 7, &numbers.iter().flat_map(|number| number.to_le_bytes()).collect::<Vec<_>>());
    }

    pub(crate) fn set_next(&self, number: u16) {
        self.put("BootNext", 7, &number.to_le_bytes());
    }

    pub(crate) fn set_mark(&self, text: &str) {
        fs::write(self.dir().join(MARK), [&7_u32.to_le_bytes()[..], text.as_bytes()].concat()).unwrap();
    }

    /// The numbers of a variable; `None` when there is none.
    pub(crate) fn numbers(&self, name: &str) -> Option<Vec<u16>> {
        let bytes = fs::read(self.path(name)).ok()?;
        assert_eq!(bytes[..4], [7, 0, 0, 0], "attributes of {name}");
        Some(bytes[4..].chunks(2).map(|unit| u16::from_le_bytes(unit.try_into().unwrap())).collect())
    }

    pub(crate) fn order(&self) -> Vec<u16> {
        self.numbers("BootOrder").unwrap()
    }

    pub(crate) fn remove(&self, name: &str) {
        fs::remove_file(self.path(name)).unwrap();
    }

    pub(crate) fn files(&self) -> Files {
        let files = fs::read_dir(self.dir()).unwrap().map(|file| file.unwrap().path());
        files.map(|path| (path.file_name().unwrap().to_str().unwrap().to_owned(), fs::read(path).unwrap())).collect()
    }

    /// Exactly these files.
    pub(crate) fn restore(&self, files: &Files) {
        let held = self.files();
        for name in held.keys().filter(|name| !files.contains_key(*name)) {
            fs::remove_file(self.dir().join(name)).unwrap();
        }
        for (name, bytes) in files.iter().filter(|(name, bytes)| held.get(*name) != Some(*bytes)) {
            fs::write(self.dir().join(name), bytes).unwrap();
        }
    }

    pub(crate) fn view(&self, booted: Group) -> BootView {
        self.backend().view(BootedGroup::proven(booted)).unwrap()
    }

    pub(crate) fn simulate(&self, loads: impl Fn(Group) -> bool) -> Start {
        simulator::start(self.dir(), loads).unwrap()
    }

    pub(crate) fn start(&self) -> Option<Group> {
        started(&self.simulate(|_| true))
    }

    pub(crate) fn perform(&self, booted: Group, word: &str) -> Result<(), BootError> {
        let backend = self.backend();
        match act(booted, word) {
            Act::MarkUnbootable(target) => backend.mark_unbootable(target),
            Act::Activate(target, tries) => backend.activate(target, tries),
            Act::MarkGood(booted) => backend.mark_good(booted),
            Act::RollBack(booted) => backend.roll_back(booted),
        }
    }
}

pub(crate) fn started(start: &Start) -> Option<Group> {
    match start.ending {
        Ending::Started(group) => Some(group),
        Ending::Recovery => None,
    }
}

pub(crate) fn entry(number: u16) -> String {
    format!("Boot{number:04X}")
}

/// The variable that a step changes, such as `BootOrder`.
pub(crate) fn changed(step: &Step) -> String {
    let (Step::Put { path, .. } | Step::Delete { path }) = step;
    let name = path.file_name().unwrap().to_str().unwrap().split('-').next().unwrap().to_owned();
    if matches!(step, Step::Delete { .. }) { format!("no {name}") } else { name }
}

pub(crate) fn act(booted: Group, word: &str) -> Act {
    let booted = BootedGroup::proven(booted);
    match word {
        "unbootable" => Act::MarkUnbootable(booted.target()),
        "activate" => Act::Activate(booted.target(), Tries::new(1).unwrap()),
        "good" => Act::MarkGood(booted),
        "back" => Act::RollBack(booted),
        _ => panic!("no such act: {word}"),
    }
}

/// The option of a group's kernel on a partition of its own.
pub(crate) fn option(group: Group) -> LoadOption {
    let guid = [0x78, 0x56, 0x34, 0x12, 0xbc, 0x9a, 0xf0, 0xde, 1, 2, 3, 4, 5, 6, 7, 8];
    let partition = Partition { number: 1, start: 2048, blocks: 131_072, guid };
    let file = format!("\\bascule\\linux-{group}.efi");
    LoadOption::for_group(group, &partition, &file, &format!("root=/dev/nvme0n1p3 bascule.group={group}")).unwrap()
}
