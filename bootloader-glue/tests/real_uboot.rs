//! U-Boot itself, in a virtual machine, makes the same choices as the simulator: same marker lines, same bytes afterwards.
//!
//! `cargo xtask image uboot` builds it. One machine start runs every case: a driver puts the case's files in place, has
//! U-Boot load its environment anew and sources the script we ship, in which the line that starts a kernel says so instead.
//! The life of a device is played with the script as it is: one machine start for each boot, and a kernel that answers.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test stops where it fails"
)]

mod uboot_qemu;

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use bascule_boot::uboot::config::{Copies, EnvConfig, Place};
use bascule_boot::uboot::env::{Variables, redundant};
use bascule_boot::uboot::simulator::{self, Ending, Saving};
use bascule_boot::uboot::{FALLBACK, FALLBACK_LEN, SCRIPT};
use bascule_boot::{BootBackend, UbootBackend};
use bascule_core::{BootStatus, BootedGroup, Group, Tries};
use uboot_qemu::cases::{self, Case};
use uboot_qemu::{COPIES, Disk, ENV_SIZE, Machine, SECTOR, built, kernel};

const A: Group = Group::A;
const B: Group = Group::B;

/// Room for the files of one case on the data partition.
const STRIDE: u64 = 2 * ENV_SIZE as u64 + 2 * FALLBACK_LEN as u64;

/// What stands where a file had no byte.
const NOTHING: u8 = 0xee;

/// The script we ship with another line in place of the one that starts a kernel; after it no group is looked at any more.
fn script_that_says_so() -> String {
    let starts = SCRIPT.lines().filter(|line| line.contains(" || zboot ")).collect::<Vec<_>>();
    let [starts] = starts[..] else { panic!("the script starts kernels in another way now") };
    let says =
        "echo \"<started ${bascule_group}> ${bootargs}\"; bascule_first=none; bascule_second=none; bascule_tried=yes";
    assert_eq!(SCRIPT.matches("/boot/vmlinuz").count(), 1);
    SCRIPT.replace(starts, says).replace("/boot/vmlinuz", "/${case_loads}/vmlinuz")
}

/// A script that runs every case. It lies where U-Boot looks for ours.
fn driver(cases: &[Case], data: u64) -> String {
    // Shell variables are only seen where the environment has none of that name.
    let mut text = "nvme device 0\nsetenv kernel_addr_r\nkernel_addr_r=0x1000000\n\
        load nvme 0:1 0x6000000 under-test.scr\n"
        .to_owned();
    let names = COPIES.join(" ");
    for (number, case) in cases.iter().enumerate() {
        if case.copies.iter().flatten().any(|bytes| bytes.len() < ENV_SIZE) {
            // U-Boot does not notice that a file ends early: the rest is what its stack holds, so let that be known.
            text.push_str("mw.b 0x3000000 ff 4000\n");
            writeln!(text, "for name in {names}; do fatwrite nvme 0:1 0x3000000 ${{name}} {ENV_SIZE:x}; done").unwrap();
            text.push_str("env load\nsetenv kernel_addr_r\n");
        }
        let block = (data + STRIDE * number as u64) / SECTOR;
        writeln!(text, "echo \"<files {number}>\"\nnvme read 0x2000000 {block:x} {:x}", STRIDE / SECTOR).unwrap();
        for (offset, name, bytes) in case.files() {
            let address = 0x200_0000 + offset;
            writeln!(text, "fatrm nvme 0:1 {name}").unwrap();
            if let Some(bytes) = bytes {
                writeln!(text, "fatwrite nvme 0:1 {address:x} {name} {:x}", bytes.len()).unwrap();
            }
        }
        let loads = case.loads.map(|loads| if loads { "yes" } else { "no" });
        writeln!(text, "case_loads={}-{}\nenv load", loads[0], loads[1]).unwrap();
        writeln!(text, "echo \"<case {number}>\"\nsource 0x6000000\necho \"<after {number}>\"").unwrap();
        writeln!(text, "mw.b 0x2000000 {NOTHING:x} {:x}", 2 * ENV_SIZE).unwrap();
        for (offset, name) in [(0, COPIES[0]), (ENV_SIZE, COPIES[1])] {
            writeln!(text, "load nvme 0:1 {:x} {name} {ENV_SIZE:x}", 0x200_0000 + offset).unwrap();
        }
        writeln!(text, "nvme write 0x2000000 {block:x} {:x}", 2 * ENV_SIZE as u64 / SECTOR).unwrap();
    }
    text.push_str("echo \"<end>\"\nreset\n");
    text
}

/// A machine with the cases on its data partition and the driver in place of our script.
fn machine_with(cases: &[Case], built: &Path) -> Machine {
    let trees = tempfile::tempdir().unwrap();
    let slots = [trees.path().join("a"), trees.path().join("b")];
    for (slot, folders) in slots.iter().zip([["yes-yes", "yes-no"], ["yes-yes", "no-yes"]]) {
        for folder in folders {
            fs::create_dir_all(slot.join(folder)).unwrap();
            fs::write(slot.join(folder).join("vmlinuz"), kernel()).unwrap();
        }
    }
    let machine = Machine::new(built, [&slots[0], &slots[1]], STRIDE * cases.len() as u64);
    for (number, case) in cases.iter().enumerate() {
        for (offset, _, bytes) in case.files() {
            // A file may be longer than its place: the next one, written after it, stands there again.
            machine.write_data(STRIDE * number as u64 + offset, bytes.unwrap_or_default());
        }
    }
    machine.put("under-test.scr", Some(&machine.pack(&script_that_says_so())));
    machine.put("boot.scr", Some(&machine.pack(&driver(cases, machine.starts[4]))));
    machine
}

/// The marker lines of each case and the line with which it ended.
fn spoken(serial: &str) -> Vec<(Vec<&str>, &str)> {
    let mut cases: Vec<(Vec<&str>, &str)> = Vec::new();
    let mut is_over = true;
    for line in serial.lines().map(str::trim_end) {
        if line.starts_with("<case ") {
            cases.push((Vec::new(), ""));
            is_over = false;
        }
        let Some((said, ending)) = cases.last_mut().filter(|_| !is_over) else { continue };
        if line.starts_with("<started ") || line.starts_with("bascule: recovery") || line.starts_with("<after ") {
            *ending = line;
            is_over = true;
        } else if line.starts_with("bascule: ") {
            said.push(line);
        }
    }
    cases
}

/// What U-Boot is to say at its end.
fn ending_of(ending: Ending, said: &[String], machine: &Machine) -> String {
    let Ending::Started(group) = ending else { return "bascule: recovery, no group could be started".into() };
    let uuid = &machine.uuids[if group == A { 2 } else { 3 }];
    let counted = said.last().and_then(|last| last.strip_suffix(" tries left")?.rsplit(' ').next());
    let trial = counted.unwrap_or_default();
    let uuid = uuid.to_lowercase();
    format!(
        "<started {group}> root=PARTUUID={uuid} rootwait panic=-1 quiet bascule.group={group} bascule.trial={trial}"
    )
}

/// A file as it stands in its place on the data partition.
fn placed(bytes: Option<&Vec<u8>>) -> Vec<u8> {
    let mut placed = bytes.cloned().unwrap_or_default();
    placed.resize(ENV_SIZE, NOTHING);
    placed
}

#[test]
fn claim_g15_uboot_itself_chooses_and_counts_as_the_simulator_does() {
    let Some(built) = built() else { return };
    let cases = cases::all();
    let machine = machine_with(&cases, &built);
    let serial = machine.start(Disk::Writable);
    if let Ok(path) = std::env::var("BASCULE_SERIAL_LOG") {
        fs::write(path, &serial).unwrap();
    }
    let spoken = spoken(&serial);
    assert!(serial.contains("<end>") && spoken.len() == cases.len(), "U-Boot did not come to the end:\n{serial}");
    let mut wrong = String::new();
    for (number, (case, (said, ending))) in cases.iter().zip(&spoken).enumerate() {
        let loads = |group: Group| case.loads[usize::from(group == B)];
        let copies = case.copies.each_ref().map(Option::as_deref);
        let expected = simulator::start(copies, ENV_SIZE, case.fallback.as_deref(), loads, Saving::Works);
        let expected_ending = ending_of(expected.ending, &expected.said, &machine);
        let after = machine.read_data(STRIDE * number as u64, 2 * ENV_SIZE);
        let expected_after = expected.copies.each_ref().map(|copy| placed(copy.as_ref())).concat();
        if *said != expected.said || *ending != expected_ending || after != expected_after {
            let at = after.iter().zip(&expected_after).position(|(is, should)| is != should);
            let text = |bytes: &[u8]| {
                String::from_utf8_lossy(&bytes[..bytes.len().min(700)]).trim_end_matches('\0').to_owned()
            };
            let copies = case.copies.each_ref().map(|copy| copy.as_deref().map(text));
            writeln!(
                wrong,
                "case {number}, loads {:?}, fallback {:?}\n  {copies:?}\nU-Boot     {said:?} {ending:?}\nsimulated  {:?} {expected_ending:?}\ncopies differ at {at:?}: {:?}\n           {:?}",
                case.loads,
                case.fallback.as_deref().map(text),
                expected.said,
                [&after[..ENV_SIZE], &after[ENV_SIZE..]].map(text),
                [&expected_after[..ENV_SIZE], &expected_after[ENV_SIZE..]].map(text),
            )
            .unwrap();
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
}

/// The loader's folder of one device, and the machine that is started with it.
struct Device {
    dir: tempfile::TempDir,
    machine: Machine,
}

impl Device {
    /// Group `a` good, group `b` empty, and a kernel in both.
    fn factory(built: &Path) -> Self {
        let slot = tempfile::tempdir().unwrap();
        fs::create_dir(slot.path().join("boot")).unwrap();
        fs::write(slot.path().join("boot/vmlinuz"), kernel()).unwrap();
        let machine = Machine::new(built, [slot.path(), slot.path()], 1 << 20);
        let dir = tempfile::tempdir().unwrap();
        let initial = fs::read_to_string(built.join("u-boot-initial-env")).unwrap();
        fs::write(dir.path().join("u-boot-initial-env"), initial + "bascule_args=console=ttyS0\n").unwrap();
        fs::write(dir.path().join("boot.scr"), machine.pack(SCRIPT)).unwrap();
        let device = Device { dir, machine };
        device.backend().mark_unbootable(BootedGroup::proven(A).target()).unwrap();
        device
    }

    fn backend(&self) -> UbootBackend {
        let place = |name| Place { path: self.dir.path().join(name), offset: 0 };
        let copies = Copies::Redundant(COPIES.map(place));
        UbootBackend::new(EnvConfig { copies, size: ENV_SIZE }, self.dir.path().to_owned()).unwrap()
    }

    fn status(&self, group: Group) -> BootStatus {
        self.backend().view(BootedGroup::proven(group.opposite())).unwrap().status(group)
    }

    /// Starts the machine once: what its kernel was told, or nothing when none was started.
    fn start(&self, disk: Disk) -> Option<String> {
        let files = [COPIES[0], COPIES[1], FALLBACK, "boot.scr"];
        for name in files {
            self.machine.put(name, fs::read(self.dir.path().join(name)).ok().as_deref());
        }
        let said = self.machine.start(disk);
        for name in files {
            match self.machine.get(name) {
                Some(bytes) => fs::write(self.dir.path().join(name), bytes).unwrap(),
                None => drop(fs::remove_file(self.dir.path().join(name))),
            }
        }
        let (_, told) = said.split_once("\nStarting kernel ...\n")?;
        Some(told.trim().to_owned())
    }

    fn told(&self, group: Group, trial: &str) -> Option<String> {
        let uuid = self.machine.uuids[if group == A { 2 } else { 3 }].to_lowercase();
        let root = format!("root=PARTUUID={uuid} rootwait panic=-1 quiet");
        Some(format!("{root} bascule.group={group} bascule.trial={trial} console=ttyS0"))
    }

    /// Makes a copy useless, as a write does that was cut.
    fn tear(&self, name: &str) {
        let path = self.dir.path().join(name);
        let mut bytes = fs::read(&path).unwrap();
        bytes[20..600].fill(0);
        fs::write(path, bytes).unwrap();
    }
}

#[test]
fn uboot_itself_carries_a_device_through_an_update_that_fails_and_one_that_is_cut() {
    let Some(built) = built() else { return };
    let device = Device::factory(&built);
    let (a, b) = (BootedGroup::proven(A), BootedGroup::proven(B));
    assert_eq!(device.start(Disk::Writable), device.told(A, ""));

    device.backend().activate(a.target(), Tries::DEFAULT).unwrap();
    for left in ["2", "1", "0"] {
        assert_eq!(device.start(Disk::Writable), device.told(B, left));
    }
    assert_eq!(device.start(Disk::Writable), device.told(A, ""));
    assert_eq!(device.status(B), BootStatus::Exhausted);

    device.backend().activate(a.target(), Tries::DEFAULT).unwrap();
    assert_eq!(device.start(Disk::Writable), device.told(B, "2"));
    device.backend().mark_good(b).unwrap();
    assert_eq!(device.start(Disk::Writable), device.told(B, ""));

    // Group a is being written when the newest copy rots: the other one says that a is good, and a is not started.
    device.backend().mark_unbootable(b.target()).unwrap();
    assert_eq!(device.start(Disk::Writable), device.told(B, ""));
    let newest = COPIES.into_iter().find(|name| {
        let bytes = fs::read(device.dir.path().join(name)).unwrap();
        let variables = Variables::parse(redundant(&bytes).unwrap().1).unwrap();
        variables.get("bascule_a").unwrap() == b"bad"
    });
    device.tear(newest.unwrap());
    assert_eq!(device.start(Disk::Writable), device.told(B, ""));

    // Neither copy can be obeyed: U-Boot runs on its built-in environment, and the script on the fallback.
    COPIES.into_iter().for_each(|name| device.tear(name));
    let without_arguments = device.told(B, "").map(|told| told.replace(" console=ttyS0", ""));
    let told = device.start(Disk::Writable);
    assert_eq!(told, without_arguments);
}

#[test]
fn uboot_itself_starts_no_trial_that_its_disk_does_not_keep() {
    let Some(built) = built() else { return };
    let device = Device::factory(&built);
    device.backend().activate(BootedGroup::proven(A).target(), Tries::DEFAULT).unwrap();
    assert_eq!(device.start(Disk::ReadOnly), device.told(A, ""));
    assert_eq!(device.start(Disk::Writable), device.told(B, "2"));
}
