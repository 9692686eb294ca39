//! A boot partition in a folder, with the backend, the kernel's files and the simulated firmware on it.

#![allow(dead_code, reason = "each test uses a part of it")]

use std::cell::Cell;
use std::fs;
use std::path::PathBuf;

use bascule_boot::tryboot::simulator::{self, Ending, Flag};
use bascule_boot::tryboot::{FILE, ThisBoot};
use bascule_boot::{BootBackend, BootError, TrybootBackend};
use bascule_core::{BootView, BootedGroup, Group, Tries};

/// The boot partitions of both groups.
pub(crate) const PARTITIONS: [u32; 2] = [2, 3];

pub(crate) struct Pi {
    pub(crate) dir: tempfile::TempDir,
    booted: Cell<Group>,
    boots: Cell<u32>,
}

impl Pi {
    /// Group `a` good and booted, group `b` unbootable.
    pub(crate) fn factory() -> Pi {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("bootloader")).unwrap();
        fs::write(dir.path().join(FILE), TrybootBackend::factory(PARTITIONS)).unwrap();
        let pi = Pi { dir, booted: Cell::new(Group::A), boots: Cell::new(0) };
        pi.came_up(Group::A, Flag::Clear);
        pi
    }

    pub(crate) fn file(&self) -> PathBuf {
        self.dir.path().join(FILE)
    }

    pub(crate) fn bytes(&self) -> Vec<u8> {
        fs::read(self.file()).unwrap()
    }

    pub(crate) fn put(&self, bytes: &[u8]) {
        fs::write(self.file(), bytes).unwrap();
    }

    /// What is in the file before its padding.
    pub(crate) fn text(&self) -> String {
        String::from_utf8(self.bytes()).unwrap().trim_end().to_owned()
    }

    pub(crate) fn booted(&self) -> Group {
        self.booted.get()
    }

    pub(crate) fn backend(&self) -> TrybootBackend {
        let [boot_id, bootloader] = ["boot_id", "bootloader"].map(|name| self.dir.path().join(name));
        TrybootBackend::new(self.dir.path(), PARTITIONS, ThisBoot { boot_id, bootloader })
    }

    pub(crate) fn view(&self) -> BootView {
        self.backend().view(BootedGroup::proven(self.booted())).unwrap()
    }

    /// An act in the booted group.
    pub(crate) fn perform(&self, word: &str) -> Result<(), BootError> {
        let (backend, booted) = (self.backend(), BootedGroup::proven(self.booted()));
        match word {
            "unbootable" => backend.mark_unbootable(booted.target()),
            "activate" => backend.activate(booted.target(), Tries::ONE),
            "good" => backend.mark_good(booted),
            "back" => backend.roll_back(booted),
            "reboot" => backend.reboot_argument(booted).map(drop),
            _ => panic!("no such act"),
        }
    }

    /// What a reboot by the agent hands to the firmware.
    pub(crate) fn flag(&self) -> Flag {
        let argument = self.backend().reboot_argument(BootedGroup::proven(self.booted())).unwrap();
        if argument == Some("0 tryboot") { Flag::Tryboot } else { Flag::Clear }
    }

    /// Starts the firmware: a plain start is what a power cut, a crash or a person brings.
    pub(crate) fn start(&self, flag: Flag) -> Option<Group> {
        match simulator::start(&self.bytes(), flag, PARTITIONS, |_| true) {
            Ending::Started(group) => {
                self.came_up(group, flag);
                Some(group)
            }
            Ending::Recovery => None,
        }
    }

    /// Another boot, of this group.
    pub(crate) fn came_up(&self, group: Group, flag: Flag) {
        self.booted.set(group);
        self.boots.set(self.boots.get() + 1);
        let boot_id = format!("{:08x}-0000-4000-8000-000000000000\n", self.boots.get());
        fs::write(self.dir.path().join("boot_id"), boot_id).unwrap();
        self.say("partition", PARTITIONS[group as usize]);
        self.say("tryboot", u32::from(flag == Flag::Tryboot));
    }

    /// A property of the device tree.
    pub(crate) fn say(&self, name: &str, value: u32) {
        fs::write(self.dir.path().join("bootloader").join(name), value.to_be_bytes()).unwrap();
    }

    /// The same boot again, for looking at it from elsewhere.
    pub(crate) fn state(&self) -> (Vec<u8>, Group, u32) {
        (self.bytes(), self.booted(), self.boots.get())
    }
}
