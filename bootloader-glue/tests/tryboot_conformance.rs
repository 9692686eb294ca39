//! The Raspberry Pi backend keeps the contract, against the simulator of the firmware.
//!
//! The suite damages the one file of the commit point. On FAT that file is one sector, which has 512 bytes whatever is in
//! them, so the rig keeps the sector's bytes in a file of its own: what the suite leaves of it is cut or filled with zeroes.
//!
//! Three things that the suite asks for no firmware has, so the rig adds them around the backend, as for EFI: trials of more
//! than one try (the rig arms again as an agent in the old group would), a start into whichever group the suite names (there is
//! no device tree), and a complete group that is started when the sector is garbage (the firmware takes the first partition
//! that it can start; the rig plays a device where that one is complete).

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test stops where it fails"
)]

mod tryboot_rig;

use std::fs;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use bascule_boot::conformance::{self, Rig};
use bascule_boot::tryboot::TrybootError;
use bascule_boot::tryboot::simulator::{Flag, chosen};
use bascule_boot::{BootBackend, BootError, TrybootBackend};
use bascule_core::{BootStatus, BootView, BootedGroup, Group, Settings, TargetGroup, Tries};
use proptest::prelude::*;
use tryboot_rig::{PARTITIONS, Pi};

const A: Group = Group::A;
const B: Group = Group::B;

/// A device, and the sector, the tries that are left, and the complete group as files around each call.
struct Sector {
    pi: Pi,
    files: tempfile::TempDir,
}

impl Sector {
    fn file(&self, name: &str) -> PathBuf {
        self.files.path().join(name)
    }

    fn around<T>(&self, call: impl FnOnce(&Self) -> T) -> T {
        let mut bytes = fs::read(self.file("sector")).unwrap_or_default();
        bytes.resize(512, 0);
        self.pi.put(&bytes);
        // Nobody knows which group the suite thinks is booted.
        for name in ["partition", "tryboot"] {
            let _ = fs::remove_file(self.pi.dir.path().join("bootloader").join(name));
        }
        let result = call(self);
        if self.pi.bytes() != bytes {
            fs::write(self.file("sector"), self.pi.bytes()).unwrap();
        }
        result
    }

    fn more(&self) -> Option<(Group, u8)> {
        let text = fs::read_to_string(self.file("more")).unwrap();
        let (group, more) = text.split_once(' ')?;
        Some((group.parse().ok()?, more.parse().ok()?))
    }

    fn set_more(&self, group: Group, more: u8) {
        fs::write(self.file("more"), format!("{group} {more}")).unwrap();
    }

    fn set_fallback(&self, group: Group) {
        fs::write(self.file("fallback"), group.letter()).unwrap();
    }

    /// The agent reboots in whichever group may start the other one, and the firmware starts.
    fn start(&self) -> Option<Group> {
        let view = |group| self.pi.backend().view(BootedGroup::proven(group)).unwrap();
        if view(A).settings == Settings::Damaged {
            return fs::read_to_string(self.file("fallback")).unwrap().parse().ok();
        }
        if let Some((group, more)) = self.more().filter(|(_, more)| *more > 0)
            && view(group.opposite()).status(group) == BootStatus::Exhausted
        {
            let target = BootedGroup::proven(group.opposite()).target();
            self.pi.backend().activate(target, Tries::ONE).unwrap();
            self.set_more(group, more - 1);
        }
        let ask = |group| self.pi.backend().reboot_argument(BootedGroup::proven(group)).unwrap();
        let flag = if Group::ALL.into_iter().any(|group| ask(group).is_some()) { Flag::Tryboot } else { Flag::Clear };
        self.pi.start(flag)
    }
}

struct Backend(Arc<Mutex<Sector>>);

impl Backend {
    fn call<T>(&self, call: impl FnOnce(&Sector, TrybootBackend) -> T) -> T {
        self.0.lock().unwrap().around(|sector| call(sector, sector.pi.backend()))
    }
}

impl BootBackend for Backend {
    fn name(&self) -> &'static str {
        "rpi-tryboot"
    }

    fn view(&self, booted: BootedGroup) -> Result<BootView, BootError> {
        self.call(|sector, backend| {
            let mut view = backend.view(booted)?;
            if let Some((group, more)) = sector.more().filter(|(_, more)| *more > 0) {
                let status = if group == A { &mut view.a } else { &mut view.b };
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
        self.call(|sector, backend| {
            backend.mark_unbootable(target)?;
            sector.set_fallback(target.group().opposite());
            Ok(())
        })
    }

    fn activate(&self, target: TargetGroup, tries: Tries) -> Result<(), BootError> {
        self.call(|sector, backend| {
            backend.activate(target, tries)?;
            sector.set_more(target.group(), tries.get() - 1);
            sector.set_fallback(target.group().opposite());
            Ok(())
        })
    }

    fn mark_good(&self, booted: BootedGroup) -> Result<(), BootError> {
        self.call(|sector, backend| {
            backend.mark_good(booted)?;
            sector.set_fallback(booted.group());
            Ok(())
        })
    }

    fn roll_back(&self, booted: BootedGroup) -> Result<(), BootError> {
        self.call(|sector, backend| {
            backend.roll_back(booted)?;
            sector.set_fallback(booted.group().opposite());
            Ok(())
        })
    }
}

fn rig() -> Rig {
    let sector = Sector { pi: Pi::factory(), files: tempfile::tempdir().unwrap() };
    fs::write(sector.file("sector"), sector.pi.bytes()).unwrap();
    fs::write(sector.file("more"), "").unwrap();
    sector.set_fallback(A);
    let files = ["sector", "more", "fallback"].map(|name| sector.file(name)).to_vec();
    let shared = Arc::new(Mutex::new(sector));
    let running = Arc::clone(&shared);
    Rig {
        backend: Box::new(Backend(Arc::clone(&shared))),
        settings: files[0].clone(),
        files,
        start: Box::new(move || running.lock().unwrap().around(Sector::start)),
        keep: Box::new(shared),
    }
}

#[test]
fn the_tryboot_backend_keeps_the_contract() {
    conformance::check(&rig);
}

#[test]
fn the_file_of_each_state_is_the_one_in_the_documentation() {
    let pi = Pi::factory();
    let file = |all: u32, tryboot: u32, mark: &str| {
        format!("[all]\ntryboot_a_b=1\nboot_partition={all}\n[tryboot]\nboot_partition={tryboot}\n# bascule {mark}")
    };
    assert_eq!(pi.text(), file(2, 2, "b=bad"));
    pi.perform("activate").unwrap();
    assert_eq!(pi.text(), file(2, 3, "b=trial"));
    assert_eq!(pi.flag(), Flag::Tryboot);
    assert_eq!(pi.text(), file(2, 3, "b=sent 00000001-0000-4000-8000-000000000000"));
    assert_eq!(pi.start(Flag::Tryboot), Some(B));
    pi.perform("good").unwrap();
    assert_eq!(pi.text(), file(3, 3, "a=good"));
    pi.perform("back").unwrap();
    assert_eq!(pi.text(), file(2, 2, "b=bad"));
    let page = include_str!("../../docs/loaders.md");
    let shown = String::from_utf8(TrybootBackend::factory(PARTITIONS)).unwrap();
    let lines: Vec<&str> = shown.lines().filter(|line| !line.is_empty()).collect();
    assert!(page.contains(&lines.join("\\n")), "the page shows another file than {lines:?}");
}

#[test]
fn a_trial_is_begun_by_the_agents_reboot_alone() {
    let pi = Pi::factory();
    assert_eq!(pi.flag(), Flag::Clear, "nothing is armed");
    pi.perform("activate").unwrap();
    assert_eq!((pi.view().primary, pi.view().b), (B, BootStatus::Trial { tries_left: 1 }));
    // A power cut: nobody has tried it, and nobody says so.
    assert_eq!(pi.start(Flag::Clear), Some(A));
    assert_eq!(pi.view().b, BootStatus::Trial { tries_left: 1 });
    assert_eq!(pi.flag(), Flag::Tryboot);
    // Asked a second time in the same boot, it is still to be started.
    assert_eq!((pi.view().b, pi.flag()), (BootStatus::Trial { tries_left: 1 }, Flag::Tryboot));
    assert_eq!(pi.start(Flag::Tryboot), Some(B));
    assert_eq!((pi.view().primary, pi.view().b, pi.view().a), (A, BootStatus::Exhausted, BootStatus::Good));
    assert_eq!(pi.flag(), Flag::Clear, "one start");
    for _ in 0..3 {
        assert_eq!(pi.start(Flag::Clear), Some(A));
        assert_eq!((pi.view().primary, pi.view().b, pi.flag()), (A, BootStatus::Exhausted, Flag::Clear));
    }
}

#[test]
fn a_target_that_is_not_armed_is_not_started_even_with_the_flag() {
    for words in
        [&["unbootable"][..], &["activate", "unbootable"], &["activate", "reboot", "unbootable"], &["activate", "good"]]
    {
        let pi = Pi::factory();
        words.iter().for_each(|word| pi.perform(word).unwrap());
        assert_eq!(pi.start(Flag::Tryboot), Some(A), "{words:?}");
    }
}

#[test]
fn a_file_of_another_shape_is_refused_and_left_alone() {
    let ours = TrybootBackend::factory(PARTITIONS);
    let text = |text: &str| {
        let mut bytes = text.as_bytes().to_vec();
        bytes.resize(512, b'\n');
        bytes
    };
    let plain = String::from_utf8(ours.clone()).unwrap();
    let cases = [
        ("empty", Vec::new()),
        ("short", ours[..200].to_vec()),
        ("long", [&ours[..], b"\n"].concat()),
        ("nobody's mark", text("[all]\ntryboot_a_b=1\nboot_partition=2\n[tryboot]\nboot_partition=3\n")),
        ("another partition", text(&plain.trim_end().replace("boot_partition=2", "boot_partition=4"))),
        ("a contradiction", text(&plain.trim_end().replacen("boot_partition=2", "boot_partition=3", 1))),
        ("one more line", text(&plain.trim_end().replace("[tryboot]", "boot_ramdisk=1\n[tryboot]"))),
        ("something behind it", {
            let mut bytes = ours.clone();
            bytes[511] = b'#';
            bytes
        }),
        ("somebody's", text("boot_partition=5\n")),
        ("no boot id", text(&plain.trim_end().replace("b=bad", "b=sent yesterday"))),
    ];
    for (what, bytes) in cases {
        let pi = Pi::factory();
        pi.put(&bytes);
        let view = pi.backend().view(BootedGroup::proven(A));
        assert_eq!(view.unwrap_err().code(), "boot.tryboot-shape", "{what}");
        for word in ["unbootable", "activate", "good", "back", "reboot"] {
            assert_eq!(pi.perform(word).unwrap_err().code(), "boot.tryboot-shape", "{what}, {word}");
        }
        assert!(pi.bytes() == bytes, "{what}: written to all the same");
    }
    let pi = Pi::factory();
    fs::remove_file(pi.file()).unwrap();
    assert_eq!(pi.perform("good").unwrap_err().code(), "boot.not-the-loaders");
    assert!(!pi.file().exists(), "a file was made, which FAT can lose");
}

#[test]
fn a_kernel_of_the_other_group_is_refused() {
    let pi = Pi::factory();
    pi.say("partition", 3);
    for word in ["unbootable", "activate", "good", "back"] {
        assert_eq!(pi.perform(word).unwrap_err().code(), "boot.tryboot-other-partition", "{word}");
    }
    let error = TrybootError::OtherPartition { partition: 3, group: A, expected: 2 };
    assert_eq!(error.to_string(), "the firmware started partition 3, and the root is that of group a, which has 2");
    // Firmware that says nothing, or 0 for the usual one.
    pi.say("partition", 0);
    pi.perform("unbootable").unwrap();
    fs::remove_dir_all(pi.dir.path().join("bootloader")).unwrap();
    pi.perform("unbootable").unwrap();
}

#[test]
fn a_system_on_trial_whose_sector_is_garbage_still_has_to_prove_itself() {
    let pi = Pi::factory();
    pi.perform("activate").unwrap();
    pi.start(pi.flag());
    pi.put(&[0xa5; 512]);
    assert_eq!((pi.view().settings, pi.view().b), (Settings::Damaged, BootStatus::Exhausted));
    assert_eq!(pi.perform("unbootable").unwrap_err().code(), "boot.no-good-group");
    assert_eq!(pi.perform("activate").unwrap_err().code(), "boot.damaged");
    assert_eq!(pi.perform("back").unwrap_err().code(), "boot.no-good-group");
    assert_eq!(pi.flag(), Flag::Clear);
    pi.perform("good").unwrap();
    assert_eq!((pi.view().settings, pi.start(Flag::Clear)), (Settings::Intact, Some(B)));
}

#[test]
fn a_trial_that_cannot_be_counted_is_not_begun() {
    let pi = Pi::factory();
    pi.perform("activate").unwrap();
    fs::write(pi.dir.path().join("boot_id"), "not one").unwrap();
    assert_eq!(pi.perform("reboot").unwrap_err().code(), "boot.read");
    assert!(pi.text().ends_with("b=trial"));
}

#[test]
fn the_simulator_reads_filters_as_they_are_documented() {
    let both = |text: &str| [Flag::Clear, Flag::Tryboot].map(|flag| chosen(text.as_bytes(), flag));
    // From Raspberry Pi's documentation: before and after an update.
    assert_eq!(both("[all]\ntryboot_a_b=1\nboot_partition=2\n[tryboot]\nboot_partition=3\n"), [Some(2), Some(3)]);
    assert_eq!(both("[all]\ntryboot_a_b=1\nboot_partition=3\n[tryboot]\nboot_partition=2\n"), [Some(3), Some(2)]);
    assert_eq!(both("boot_partition=2"), [Some(2), None], "the flag is for tryboot.txt");
    assert_eq!(both("tryboot_a_b=1\n[none]\nboot_partition=2\n[all]\nboot_partition=4"), [Some(4), Some(4)]);
    assert_eq!(both("tryboot_a_b=1\n#boot_partition=2\r\n[pi4]\nboot_partition=3\n"), [None, None]);
    assert_eq!(both(&format!("tryboot_a_b=1\n{}\nboot_partition=2", "\n".repeat(500))), [None, None], "512 bytes");
    assert_eq!(both("boot_partition=0\ntryboot_a_b=1"), [None, None]);
}

proptest! {
    #[test]
    fn no_bytes_make_a_reader_stop(bytes in proptest::collection::vec(any::<u8>(), 512), at in 0..512_usize, byte in any::<u8>()) {
        let pi = Pi::factory();
        let mut flipped = pi.bytes();
        flipped[at] = byte;
        for bytes in [bytes, flipped] {
            pi.put(&bytes);
            let _ = (pi.backend().view(BootedGroup::proven(A)), chosen(&bytes, Flag::Tryboot));
        }
    }
}
