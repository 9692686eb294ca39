//! The EFI backend keeps the contract, against the simulator of the firmware's boot manager.
//!
//! The suite damages the one file of the commit point. A firmware keeps its variables in one flash area, so the rig keeps
//! those that change in one file, and a damaged file is variables that are lost.
//!
//! Two things that the suite asks for no firmware has, so the rig adds them around the backend, and what they touch is not
//! shown here: trials of more than one try (the rig arms again as an agent in the old group would), and a complete group
//! that is started when `BootOrder` is lost (the rig plays what lies at `\EFI\BOOT`, told by each act as GRUB's fallback is).

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test stops where it fails"
)]

mod efi_rig;

use std::fs;
use std::path::Path;
use std::sync::{Arc, Mutex};

use bascule_boot::conformance::{self, Rig};
use bascule_boot::{BootBackend, BootError, EfiBackend};
use bascule_core::{BootStatus, BootView, BootedGroup, Group, Settings, TargetGroup, Tries};
use efi_rig::{Firmware, MARK};

/// The firmware, and its variables as one file around each call.
struct Flash {
    firmware: Firmware,
    files: tempfile::TempDir,
    /// The group on trial, and the tries that it has beside the firmware's one.
    more: Option<(Group, u8)>,
}

impl Flash {
    fn around<T>(&mut self, call: impl FnOnce(&mut Self) -> T) -> T {
        let held = fs::read_to_string(self.files.path().join("flash")).unwrap_or_default();
        self.unpack(&held);
        let before = self.pack();
        let result = call(self);
        let after = self.pack();
        if after != before {
            fs::write(self.files.path().join("flash"), after).unwrap();
        }
        result
    }

    fn paths(&self) -> Vec<std::path::PathBuf> {
        let of_firmware = ["BootOrder", "BootNext", "BootCurrent"].map(|name| self.firmware.path(name));
        of_firmware.into_iter().chain([self.firmware.dir().join(MARK)]).collect()
    }

    fn pack(&self) -> String {
        let hex = |bytes: Vec<u8>| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        let lines = self.paths().into_iter().map(|path| fs::read(path).map_or("none".to_owned(), hex));
        let more = self.more.map_or("none".to_owned(), |(group, more)| format!("{group}{more}"));
        lines.chain([more]).collect::<Vec<_>>().join("\n")
    }

    fn unpack(&mut self, text: &str) {
        let lines: Vec<&str> = text.split('\n').collect();
        let byte = |hex: &[u8]| u8::from_str_radix(std::str::from_utf8(hex).unwrap(), 16).unwrap();
        for (index, path) in self.paths().into_iter().enumerate() {
            match lines.get(index).filter(|line| lines.len() == 5 && **line != "none") {
                Some(hex) => fs::write(path, hex.as_bytes().chunks(2).map(byte).collect::<Vec<u8>>()).unwrap(),
                None => drop(fs::remove_file(path)),
            }
        }
        let more = lines.get(4).and_then(|more| more.split_at_checked(1));
        self.more = more.and_then(|(group, more)| Some((group.parse().ok()?, more.parse().ok()?)));
    }

    fn set_fallback(&self, group: Group) {
        fs::write(self.files.path().join("fallback"), group.letter()).unwrap();
    }

    fn start(&mut self) -> Option<Group> {
        let view = self.firmware.view(Group::A);
        if let Some((group, more)) = self.more
            && more > 0
            && view.settings == Settings::Intact
            && view.status(group) == BootStatus::Exhausted
        {
            let target = BootedGroup::proven(group.opposite()).target();
            self.firmware.backend().activate(target, Tries::new(1).unwrap()).unwrap();
            self.more = Some((group, more - 1));
        }
        let fallback = fs::read_to_string(self.files.path().join("fallback")).unwrap().parse().ok();
        self.firmware.start().or_else(|| fallback.filter(|_| view.settings == Settings::Damaged))
    }
}

/// The backend's calls on the one file.
struct Backend(Arc<Mutex<Flash>>);

impl Backend {
    fn call<T>(&self, call: impl FnOnce(&mut Flash, EfiBackend) -> T) -> T {
        self.0.lock().unwrap().around(|flash| {
            let backend = flash.firmware.backend();
            call(flash, backend)
        })
    }
}

impl BootBackend for Backend {
    fn name(&self) -> &'static str {
        "efi"
    }

    fn view(&self, booted: BootedGroup) -> Result<BootView, BootError> {
        self.call(|flash, backend| {
            let mut view = backend.view(booted)?;
            if let Some((group, more)) = flash.more.filter(|(_, more)| *more > 0) {
                let status = if group == Group::A { &mut view.a } else { &mut view.b };
                match status {
                    BootStatus::Trial { tries_left } => *tries_left += more,
                    BootStatus::Exhausted => *status = BootStatus::Trial { tries_left: more },
                    _ => {}
                }
            }
            Ok(view)
        })
    }

    fn mark_unbootable(&self, target: TargetGroup) -> Result<(), BootError> {
        let booted = target.group().opposite();
        self.call(|flash, backend| {
            backend.mark_unbootable(target)?;
            flash.set_fallback(booted);
            Ok(())
        })
    }

    fn activate(&self, target: TargetGroup, tries: Tries) -> Result<(), BootError> {
        self.call(|flash, backend| {
            backend.activate(target, tries)?;
            flash.more = Some((target.group(), tries.get() - 1));
            flash.set_fallback(target.group().opposite());
            Ok(())
        })
    }

    fn mark_good(&self, booted: BootedGroup) -> Result<(), BootError> {
        self.call(|flash, backend| {
            backend.mark_good(booted)?;
            flash.set_fallback(booted.group());
            Ok(())
        })
    }

    fn roll_back(&self, booted: BootedGroup) -> Result<(), BootError> {
        self.call(|flash, backend| {
            backend.roll_back(booted)?;
            flash.set_fallback(booted.group().opposite());
            Ok(())
        })
    }
}

fn rig() -> Rig {
    let files = tempfile::tempdir().unwrap();
    let [flash_file, fallback] = ["flash", "fallback"].map(|name| files.path().join(name));
    let flash = Flash { firmware: Firmware::factory(), files, more: None };
    flash.set_fallback(Group::A);
    fs::write(&flash_file, flash.pack()).unwrap();
    let shared = Arc::new(Mutex::new(flash));
    let running = Arc::clone(&shared);
    Rig {
        backend: Box::new(Backend(Arc::clone(&shared))),
        settings: flash_file.clone(),
        files: vec![flash_file, fallback],
        start: Box::new(move || running.lock().unwrap().around(Flash::start)),
        keep: Box::new(shared),
    }
}

#[test]
fn the_efi_backend_keeps_the_contract() {
    conformance::check(&rig);
}

#[test]
fn a_trial_is_started_once_whatever_number_of_tries_is_asked_for() {
    let firmware = Firmware::factory();
    let target = BootedGroup::proven(Group::A).target();
    firmware.backend().activate(target, Tries::new(9).unwrap()).unwrap();
    assert_eq!(firmware.view(Group::A).b, BootStatus::Trial { tries_left: 1 });
    assert_eq!(firmware.view(Group::A).primary, Group::B);
    assert_eq!(firmware.start(), Some(Group::B));
    assert_eq!(firmware.view(Group::B).b, BootStatus::Exhausted, "on trial");
    assert_eq!(firmware.view(Group::B).a, BootStatus::Good, "there is a way back");
    for _ in 0..3 {
        assert_eq!(firmware.start(), Some(Group::A));
        assert_eq!(firmware.view(Group::A).b, BootStatus::Exhausted, "fallen back");
    }
}

#[test]
fn a_target_that_does_not_load_falls_back_in_the_same_start() {
    let firmware = Firmware::factory();
    firmware.perform(Group::A, "activate").unwrap();
    let start = firmware.simulate(|group| group == Group::A);
    assert_eq!((efi_rig::started(&start), start.tried), (Some(Group::A), vec![efi_rig::B, efi_rig::A]));
    assert_eq!(firmware.view(Group::A).b, BootStatus::Exhausted);
}

#[test]
fn a_folder_without_variables_is_an_error_and_nothing_is_made_in_it() {
    let dir = tempfile::tempdir().unwrap();
    let backend = EfiBackend::new(dir.path().to_owned());
    let booted = BootedGroup::proven(Group::A);
    assert_eq!(backend.view(booted).unwrap_err().code(), "boot.efi-not-mounted");
    assert_eq!(backend.mark_unbootable(booted.target()).unwrap_err().code(), "boot.efi-not-mounted");
    assert_eq!(backend.mark_good(booted).unwrap_err().code(), "boot.efi-not-mounted");
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    let gone = EfiBackend::new(Path::new(dir.path()).join("gone"));
    assert_eq!(gone.view(booted).unwrap_err().code(), "boot.read");
}
