//! U-Boot as `cargo xtask image uboot` builds it, in QEMU, with a disk laid out as a device's.

#![allow(dead_code, reason = "each test uses its part")]

pub(crate) mod cases;

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use bascule_boot::disk::rehearsal::DiskFile;

/// Size of one copy of the environment: `CONFIG_ENV_SIZE` in `uboot/qemu-x86.config`.
pub(crate) const ENV_SIZE: usize = 0x4000;

/// The two copies, on the first partition.
pub(crate) const COPIES: [&str; 2] = ["uboot.env", "uboot-redund.env"];

pub(crate) const SECTOR: u64 = 512;

/// U-Boot's answer when it has nothing more to do.
const PROMPT: &[u8] = b"\n=> ";

/// How many seconds of a processor one start may take; it takes one, and four with every case.
const LIMIT_S: &str = "100";

/// The folder with the firmware and U-Boot's own tools. Nothing, and a line that libtest does not swallow, where it is missing.
pub(crate) fn built() -> Option<PathBuf> {
    let there = std::env::var_os("BASCULE_UBOOT").map(PathBuf::from);
    let folder = there.unwrap_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/bascule/uboot"));
    let found = |tool: &&str| std::env::split_paths(&search_path()).any(|folder| folder.join(tool).is_file());
    let missing = if folder.join("u-boot.rom").is_file() {
        let tools = ["qemu-system-x86_64", "mformat", "mcopy", "mke2fs"];
        tools.into_iter().find(|tool| !found(tool)).map(|tool| format!("{tool} is not installed"))
    } else {
        Some("U-Boot is not built, `cargo xtask image uboot` does it".to_owned())
    };
    let Some(missing) = missing else { return Some(folder) };
    // Not with `eprintln!`: libtest keeps what that says to itself.
    io::stderr().write_all(format!("skipped: real U-Boot is not tested: {missing}\n").as_bytes()).unwrap();
    None
}

/// Where programs are, those of root too.
fn search_path() -> OsString {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::join_paths(std::env::split_paths(&path).chain(["/usr/sbin", "/sbin"].map(PathBuf::from))).unwrap()
}

/// One device's disk with U-Boot for firmware.
pub(crate) struct Machine {
    dir: tempfile::TempDir,
    built: PathBuf,
    /// First byte of each partition.
    pub(crate) starts: Vec<u64>,
    /// The partitions' identities in the table.
    pub(crate) uuids: Vec<String>,
}

impl Machine {
    /// A disk with an empty FAT32 partition, root slots with `slots` in them, and `data_size` bytes of data partition.
    pub(crate) fn new(built: &Path, slots: [&Path; 2], data_size: u64) -> Self {
        const MIB: u64 = 1 << 20;
        let dir = tempfile::tempdir().unwrap();
        let mut disk = DiskFile::of_device("disk", 2 * MIB);
        disk.partitions[0].1 = 40 * MIB;
        disk.partitions[4].1 = data_size;
        disk.lay_out(dir.path()).unwrap();
        let table = gpt::GptConfig::new().writable(false).open(disk.image(dir.path())).unwrap();
        let partitions = table.partitions();
        let starts: Vec<u64> = partitions.values().map(|partition| partition.first_lba * SECTOR).collect();
        let uuids = partitions.values().map(|partition| partition.part_guid.to_string()).collect();
        let machine = Machine { dir, built: built.to_owned(), starts, uuids };
        let place = machine.esp();
        run(Command::new("mformat").args(["-i", &place, "-F", "-T", &(40u32 << 11).to_string()]).args([
            "-h",
            "16",
            "-s",
            "63",
            "-H",
            &(machine.starts[0] / SECTOR).to_string(),
            "::",
        ]));
        for (slot, tree) in [2, 3].into_iter().zip(slots) {
            let offset = format!("offset={}", machine.starts[slot]);
            run(Command::new("mke2fs")
                .env("PATH", search_path())
                .args(["-q", "-F", "-t", "ext4", "-E", &offset, "-d"])
                .arg(tree)
                .arg(machine.image())
                .arg("2M"));
        }
        machine
    }

    pub(crate) fn image(&self) -> PathBuf {
        self.dir.path().join("dev/disk")
    }

    fn esp(&self) -> String {
        format!("{}@@{}", self.image().display(), self.starts[0])
    }

    /// Puts a file onto the first partition, or takes it away.
    pub(crate) fn put(&self, name: &str, bytes: Option<&[u8]>) {
        let Some(bytes) = bytes else {
            if self.get(name).is_some() {
                run(Command::new("mdel").args(["-i", &self.esp(), &format!("::{name}")]));
            }
            return;
        };
        let copy = self.dir.path().join("copy");
        fs::write(&copy, bytes).unwrap();
        run(Command::new("mcopy").args(["-n", "-o", "-i", &self.esp()]).arg(&copy).arg(format!("::{name}")));
    }

    /// A file of the first partition.
    pub(crate) fn get(&self, name: &str) -> Option<Vec<u8>> {
        let copy = self.dir.path().join("copy");
        let mut command = Command::new("mcopy");
        command.args(["-n", "-o", "-i", &self.esp(), &format!("::{name}")]).arg(&copy);
        command.output().unwrap().status.success().then(|| fs::read(copy).unwrap())
    }

    /// Writes `bytes` into the data partition.
    pub(crate) fn write_data(&self, offset: u64, bytes: &[u8]) {
        let image = File::options().write(true).open(self.image()).unwrap();
        image.write_all_at(bytes, self.starts[4] + offset).unwrap();
    }

    /// Reads from the data partition.
    pub(crate) fn read_data(&self, offset: u64, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        File::open(self.image()).unwrap().read_exact_at(&mut bytes, self.starts[4] + offset).unwrap();
        bytes
    }

    /// A script in the form that U-Boot's `source` takes, made by U-Boot's own tool.
    pub(crate) fn pack(&self, script: &str) -> Vec<u8> {
        let (plain, packed) = (self.dir.path().join("script"), self.dir.path().join("script.scr"));
        fs::write(&plain, script).unwrap();
        let mut command = Command::new(self.built.join("mkimage"));
        run(command.args(["-A", "x86", "-T", "script", "-C", "none", "-d"]).arg(&plain).arg(&packed));
        fs::read(packed).unwrap()
    }

    /// Starts the machine once; what it says on its serial line until it resets itself or waits for somebody to type.
    pub(crate) fn start(&self, disk: Disk) -> String {
        let read_only = if disk == Disk::ReadOnly { ",readonly=on" } else { "" };
        let mut machine = Command::new("sh")
            .args(["-c", "ulimit -t \"$0\"; exec \"$@\"", LIMIT_S, "qemu-system-x86_64"])
            .args(["-accel", "tcg", "-M", "q35", "-cpu", "max", "-smp", "1", "-m", "256", "-nodefaults"])
            .args(["-display", "none", "-no-reboot", "-bios"])
            .arg(self.built.join("u-boot.rom"))
            .arg("-drive")
            .arg(format!("file={},format=raw,if=none,id=d{read_only}", self.image().display()))
            .args(["-device", "nvme,drive=d,serial=a", "-serial", "stdio"])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            // QEMU speaks of every write that it refuses.
            .stderr(if disk == Disk::ReadOnly { Stdio::null() } else { Stdio::inherit() })
            .spawn()
            .unwrap();
        let (mut serial, mut said) = (machine.stdout.take().unwrap(), Vec::new());
        let mut piece = [0; 4096];
        while !said.ends_with(PROMPT) {
            match serial.read(&mut piece).unwrap() {
                0 => break,
                length => said.extend_from_slice(&piece[..length]),
            }
        }
        machine.kill().unwrap();
        machine.wait().unwrap();
        String::from_utf8_lossy(&said).replace('\r', "")
    }
}

/// Whether the machine can write its disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Disk {
    Writable,
    ReadOnly,
}

pub(crate) fn run(command: &mut Command) {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// A kernel that says its command line on the serial port and resets the machine.
///
/// Of Linux it has what a loader looks at: the header of a bzImage, protocol 2.06.
pub(crate) fn kernel() -> Vec<u8> {
    /// Entered in 32-bit mode at the first megabyte; `esi` points to the boot parameters.
    const CODE: [u8; 39] = [
        0x8b, 0x9e, 0x28, 0x02, 0x00, 0x00, //       mov ebx, [esi + 0x228]: the command line
        0x8a, 0x0b, //                         next: mov cl, [ebx]
        0x84, 0xc9, //                               test cl, cl
        0x74, 0x11, //                               jz done
        0x66, 0xba, 0xfd, 0x03, //                   mov dx, 0x3fd: the port's state
        0xec, //                               wait: in al, dx
        0xa8, 0x20, //                               test al, 0x20: room for a byte?
        0x74, 0xfb, //                               jz wait
        0xb2, 0xf8, //                               mov dl, 0xf8: the port
        0x88, 0xc8, //                               mov al, cl
        0xee, //                                     out dx, al
        0x43, //                                     inc ebx
        0xeb, 0xe9, //                               jmp next
        0x66, 0xba, 0xf9, 0x0c, //             done: mov dx, 0xcf9: the reset register
        0xb0, 0x06, //                               mov al, 6
        0xee, //                                     out dx, al
        0xf4, //                               halt: hlt
        0xeb, 0xfd, //                               jmp halt
    ];
    let mut image = vec![0; 2048];
    let mut put = |at: usize, bytes: &[u8]| image[at..at + bytes.len()].copy_from_slice(bytes);
    put(0x1f1, &[1]); // sectors of real-mode code behind the first
    put(0x1f4, &64u32.to_le_bytes()); // the rest, in units of 16 bytes
    put(0x1fe, &[0x55, 0xaa]);
    put(0x202, b"HdrS");
    put(0x206, &0x0206u16.to_le_bytes());
    put(0x211, &[1]); // loaded at the first megabyte
    put(0x214, &0x0010_0000u32.to_le_bytes());
    put(0x238, &2047u32.to_le_bytes()); // room for the command line
    put(1024, &CODE);
    image
}
