//! Our own installs: the real daemon on a device made of files whose target slot is the loop device.

use std::fs::{self, File};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use bascule_boot::disk::rehearsal::machine;
use bascule_boot::grub::{FACTORY_FALLBACK, FACTORY_GRUBENV, SCRIPT};
use bascule_image::{BundleReader, ChunkKind, Timestamp, TrustStore};

use super::process::{self, Usage};
use super::signed::Signed;
use super::slot::LoopSlot;
use crate::HttpServer;

const DISK: &str = "nvme0n1";
/// `basculed run-to-rest` ends with this when the new system is to be started.
const REBOOT_NEEDED: i32 = 4;
/// How long the daemon is left alone before its idle memory is read.
const SETTLE: Duration = Duration::from_secs(2);
const START_LIMIT: Duration = Duration::from_secs(20);
/// The system that runs on the device: the demo's first one.
const RELEASE: &str =
    "product = \"demo\"\nversion = \"1.0.0\"\norder = 1\ncompatible = [\"qemu-x86_64\"]\nsecurity_epoch = 0\n";
const CONFIG: &str =
    "[slots.root]\na = \"partlabel:root-a\"\nb = \"partlabel:root-b\"\n[activate]\nreboot_delay = \"0s\"\n";

/// A device that runs v1 and whose target slot is a real block device.
#[derive(Debug)]
pub(super) struct Device {
    folder: PathBuf,
    bundle: Signed,
    slot: PathBuf,
    slot_bytes: u64,
    booted: Option<PathBuf>,
    more: String,
    stands_back: bool,
}

/// What ranges of zeroes cost.
#[derive(Debug, Clone, Copy)]
pub(super) struct Zeroes {
    /// Bytes of the image in chunks of zeroes.
    pub(super) bytes: u64,
    /// Bytes that the server sent for one install.
    pub(super) fetched: u64,
    /// Bytes that the daemon wrote in one install.
    pub(super) written: u64,
}

impl Device {
    /// Plans the device, which trusts whoever signed `bundle`; it is made anew for each install.
    ///
    /// # Errors
    /// When the daemon is not built.
    pub(super) fn new(folder: &Path, bundle: &Signed, slot: &LoopSlot) -> Result<Device> {
        super::built("basculed")?;
        let (slot, slot_bytes) = (slot.device().to_owned(), slot.size());
        Ok(Device {
            folder: folder.to_owned(),
            bundle: bundle.clone(),
            slot,
            slot_bytes,
            booted: None,
            more: String::new(),
            stands_back: false,
        })
    }

    /// The same device, whose booted slot is a real block device too.
    pub(super) fn booted_from(self, slot: &LoopSlot) -> Device {
        Device { booted: Some(slot.device().to_owned()), ..self }
    }

    /// The same device with more configuration.
    pub(super) fn configured(self, more: &str) -> Device {
        Device { more: more.to_owned(), ..self }
    }

    /// The same device, whose daemon stands behind all others.
    pub(super) fn standing_back(self) -> Device {
        Device { stands_back: true, ..self }
    }

    /// Installs over loopback HTTP, and is killed after this time.
    ///
    /// # Errors
    /// When the daemon cannot be started.
    pub(super) fn install_for(&self, span: Duration) -> Result<()> {
        self.make()?;
        let bundle = &self.bundle.file;
        let server = HttpServer::serve(bundle.parent().context("a bundle lies in a folder")?)?;
        let url = server.url(&bundle.file_name().unwrap_or_default().to_string_lossy());
        let mut command = self.daemon(&self.folder.join("log"))?;
        let mut child = command.args(["run-to-rest", "--install", &url]).spawn()?;
        let until = Instant::now() + span;
        while Instant::now() < until && child.try_wait()?.is_none() {
            thread::sleep(Duration::from_millis(20));
        }
        child.kill().ok();
        child.wait()?;
        Ok(())
    }

    /// Installs from a file.
    ///
    /// # Errors
    /// When the daemon does not get as far as the reboot.
    pub(super) fn install(&self) -> Result<Usage> {
        self.run_to_rest(&self.bundle.file.to_string_lossy())
    }

    /// Installs over loopback HTTP.
    ///
    /// # Errors
    /// When the daemon does not get as far as the reboot.
    pub(super) fn install_over_http(&self) -> Result<Usage> {
        self.over_http().map(|(usage, _)| usage)
    }

    /// An install over HTTP, and how many bytes the server sent for it.
    ///
    /// # Errors
    /// When the daemon does not get as far as the reboot.
    pub(super) fn over_http(&self) -> Result<(Usage, u64)> {
        let bundle = &self.bundle.file;
        let server = HttpServer::serve(bundle.parent().context("a bundle lies in a folder")?)?;
        let name = bundle.file_name().unwrap_or_default().to_string_lossy();
        let usage = self.run_to_rest(&server.url(&name))?;
        Ok((usage, server.body_bytes()))
    }

    fn run_to_rest(&self, bundle: &str) -> Result<Usage> {
        self.make()?;
        let log = self.folder.join("log");
        let mut command = self.daemon(&log)?;
        let usage = process::run(command.args(["run-to-rest", "--install", bundle]), &self.slot, &[REBOOT_NEEDED]);
        usage.with_context(|| format!("the daemon said: {}", fs::read_to_string(&log).unwrap_or_default()))
    }

    /// Counts what ranges of zeroes cost in one install over HTTP.
    ///
    /// # Errors
    /// When the bundle is not trusted, or the install fails.
    pub(super) fn zeroes(&self) -> Result<Zeroes> {
        let trust = TrustStore::new(&self.bundle.root, self.folder.with_extension("trust"));
        let mut reader = BundleReader::open(Box::new(File::open(&self.bundle.file)?), &trust, Timestamp::now())?;
        reader.read_tables(&|_, _| false)?;
        let table = reader.chunk_table(0).context("the bundle has no payload")?;
        let zeroes = table.chunks().filter(|chunk| chunk.kind == ChunkKind::Zeroes);
        let bytes = zeroes.map(|chunk| u64::from(chunk.len)).sum();
        let (usage, fetched) = self.over_http()?;
        Ok(Zeroes { bytes, fetched, written: usage.written_bytes })
    }

    /// Resident memory of a daemon that serves: before it was asked anything, and after it prepared the bundle.
    ///
    /// # Errors
    /// When it does not start or prepare.
    pub(super) fn idle(&self) -> Result<(u64, u64)> {
        self.make()?;
        let mut daemon = Serving { child: self.daemon(&self.folder.join("log"))?.spawn()? };
        let socket = self.folder.join("run/bascule/api.sock");
        let started = Instant::now();
        while !socket.exists() {
            ensure!(started.elapsed() < START_LIMIT && daemon.child.try_wait()?.is_none(), "the daemon does not serve");
            thread::sleep(Duration::from_millis(20));
        }
        thread::sleep(SETTLE);
        let idle = process::status_bytes(daemon.child.id(), "VmRSS:");
        let mut prepare = Command::new(super::built("bascule")?);
        prepare.arg("--root").arg(&self.folder).arg("prepare").arg(&self.bundle.file).stdout(Stdio::null());
        ensure!(prepare.status()?.success(), "`bascule prepare` failed");
        thread::sleep(SETTLE);
        Ok((idle, process::status_bytes(daemon.child.id(), "VmRSS:")))
    }

    fn daemon(&self, log: &Path) -> Result<Command> {
        let program = super::built("basculed")?;
        let mut command = match self.stands_back {
            true => Command::new("nice"),
            false => Command::new(&program),
        };
        if self.stands_back {
            command.args(["-n", "19", "ionice", "-c", "2", "-n", "7"]).arg(&program);
        }
        // As the unit has it.
        command.env("GLIBC_TUNABLES", "glibc.malloc.mmap_threshold=131072");
        command.arg("--root").arg(&self.folder).stdout(Stdio::null()).stderr(File::create(log)?);
        Ok(command)
    }

    /// Makes the folder that the agent takes for a device, as it left the factory.
    fn make(&self) -> Result<()> {
        let root = &self.folder;
        if root.exists() {
            fs::remove_dir_all(root)?;
        }
        let (_, disk) = machine(root, DISK, self.slot_bytes)?;
        for (number, device) in [(3, self.booted.as_ref()), (4, Some(&self.slot))] {
            let Some(device) = device else { continue };
            let node = root.join("dev").join(disk.partition_name(number));
            fs::remove_file(&node)?;
            symlink(device, &node)?;
        }
        for folder in ["etc/bascule", "usr/lib/bascule", "boot/efi/bascule", "data/bascule", "proc/sys/kernel/random"] {
            fs::create_dir_all(root.join(folder))?;
        }
        fs::create_dir_all(root.join("run/bascule"))?;
        fs::write(root.join("etc/bascule/config.toml"), format!("{CONFIG}{}", self.more))?;
        fs::copy(&self.bundle.root, root.join("etc/bascule/root.json"))?;
        fs::write(root.join("usr/lib/bascule/release.toml"), RELEASE)?;
        fs::write(root.join("boot/efi/bascule/grub.cfg"), SCRIPT)?;
        fs::write(root.join("boot/efi/bascule/grubenv"), FACTORY_GRUBENV)?;
        fs::write(root.join("boot/efi/bascule/fallback"), FACTORY_FALLBACK)?;
        fs::write(root.join("proc/sys/kernel/random/boot_id"), "bench\n")?;
        Ok(fs::write(root.join("proc/uptime"), "100.00 100.00\n")?)
    }
}

/// A daemon that serves until this is dropped.
struct Serving {
    child: Child,
}

impl Drop for Serving {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}
