//! The systemd-boot backend keeps the contract, against the simulator of the loader.
//!
//! The suite damages the file of the commit point. Here that is a name in a directory, so the rig keeps the directory in
//! two files: the name of the entry that was renamed last, and all other names of ours. A damaged file is then a rename
//! that lost its entry.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test stops where it fails"
)]

mod sdboot_rig;

use std::collections::BTreeSet;
use std::fs;
use std::sync::{Arc, Mutex};

use bascule_boot::conformance::{self, Rig};
use bascule_boot::sdboot::names::Kind;
use bascule_boot::sdboot::simulator::Renaming;
use bascule_boot::{BootBackend, BootError};
use bascule_core::{BootView, BootedGroup, TargetGroup, Tries};
use sdboot_rig::Esp;

/// The backend, and the directory as two files around each call.
struct InFiles {
    esp: Esp,
    files: tempfile::TempDir,
}

impl InFiles {
    fn around<T>(&self, call: impl FnOnce(&Esp) -> T) -> T {
        let text = |name: &str| fs::read(self.files.path().join(name)).unwrap_or_default();
        let lines = |name: &str| -> Vec<String> {
            let text = String::from_utf8_lossy(&text(name)).into_owned();
            text.lines().filter(|line| line.starts_with("bascule-")).map(str::to_owned).collect()
        };
        let all: BTreeSet<String> = lines("renamed").into_iter().chain(lines("others")).collect();
        self.esp.set(&all.iter().map(String::as_str).collect::<Vec<_>>());
        let result = call(&self.esp);
        let after: BTreeSet<String> = self.esp.ours().into_iter().collect();
        if let Some(new) = after.difference(&all).next() {
            let others: Vec<String> = after.iter().filter(|name| *name != new).cloned().collect();
            fs::write(self.files.path().join("renamed"), new).unwrap();
            fs::write(self.files.path().join("others"), others.join("\n")).unwrap();
        }
        result
    }
}

/// The backend's calls on the two files.
struct Backend(Arc<Mutex<InFiles>>);

impl Backend {
    fn call<T>(&self, call: impl FnOnce(&dyn BootBackend) -> T) -> T {
        self.0.lock().unwrap().around(|esp| call(&esp.backend()))
    }
}

impl BootBackend for Backend {
    fn name(&self) -> &'static str {
        "systemd-boot"
    }
    fn view(&self, booted: BootedGroup) -> Result<BootView, BootError> {
        self.call(|backend| backend.view(booted))
    }
    fn mark_unbootable(&self, target: TargetGroup) -> Result<(), BootError> {
        self.call(|backend| backend.mark_unbootable(target))
    }
    fn activate(&self, target: TargetGroup, tries: Tries) -> Result<(), BootError> {
        self.call(|backend| backend.activate(target, tries))
    }
    fn mark_good(&self, booted: BootedGroup) -> Result<(), BootError> {
        self.call(|backend| backend.mark_good(booted))
    }
    fn roll_back(&self, booted: BootedGroup) -> Result<(), BootError> {
        self.call(|backend| backend.roll_back(booted))
    }
}

fn rig(kind: Kind) -> Rig {
    let files = tempfile::tempdir().unwrap();
    let (renamed, others) = (files.path().join("renamed"), files.path().join("others"));
    fs::write(&renamed, "bascule-0-b.off").unwrap();
    fs::write(&others, format!("bascule-1-a{}", kind.suffix())).unwrap();
    let shared = Arc::new(Mutex::new(InFiles { esp: Esp::factory(kind), files }));
    let loader = Arc::clone(&shared);
    Rig {
        backend: Box::new(Backend(Arc::clone(&shared))),
        start: Box::new(move || loader.lock().unwrap().around(|esp| esp.start(Renaming::Works))),
        settings: renamed.clone(),
        files: vec![renamed, others],
        keep: Box::new(shared),
    }
}

#[test]
fn the_systemd_boot_backend_keeps_the_contract_with_type_1_entries() {
    conformance::check(&|| rig(Kind::Text));
}

#[test]
fn the_systemd_boot_backend_keeps_the_contract_with_unified_kernel_images() {
    conformance::check(&|| rig(Kind::Image));
}
