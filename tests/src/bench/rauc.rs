//! RAUC on the same slot: its service on a message bus of its own, a signed plain bundle of the same image.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use super::process::{self, Usage};

const START_LIMIT: Duration = Duration::from_secs(20);
const COMPATIBLE: &str = "bench";

/// RAUC with its keys, its bundle and its settings in one folder.
#[derive(Debug)]
pub(super) struct Rauc {
    folder: PathBuf,
    bundle: PathBuf,
    slot: PathBuf,
    version: String,
    _bus: Running,
}

impl Rauc {
    /// Makes keys and a bundle of `image`, and starts a message bus.
    ///
    /// # Errors
    /// When RAUC or something that it needs is missing or fails.
    pub(super) fn new(folder: &Path, image: &Path, slot: &Path) -> Result<Rauc> {
        fs::create_dir_all(folder.join("content"))?;
        let output = Command::new("rauc").arg("--version").output().context("rauc is not installed")?;
        let version = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        // RAUC looks for mounted bundles there, and a file system of bundles needs a place.
        fs::create_dir_all(folder.join("mnt"))?;
        fs::write(folder.join("system.conf"), settings(folder, slot))?;
        let key = ["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=bench"];
        run(Command::new("openssl").args(key).args(["-keyout", "key.pem", "-out", "cert.pem"]), folder)?;
        // A link to the image, not a copy: both lie in one file system.
        fs::hard_link(image, folder.join("content/root.ext4"))?;
        let manifest = format!(
            "[update]\ncompatible={COMPATIBLE}\nversion=2\n[bundle]\nformat=plain\n[image.rootfs]\nfilename=root.ext4\n"
        );
        fs::write(folder.join("content/manifest.raucm"), manifest)?;
        let made = ["bundle", "--cert=cert.pem", "--key=key.pem", "--keyring=cert.pem", "content", "bundle.raucb"];
        run(Command::new("rauc").args(made), folder)?;
        let bus = start_bus(folder)?;
        Ok(Rauc {
            folder: folder.to_owned(),
            bundle: folder.join("bundle.raucb"),
            slot: slot.to_owned(),
            version,
            _bus: bus,
        })
    }

    /// The bundle.
    pub(super) fn bundle(&self) -> &Path {
        &self.bundle
    }

    /// What it calls itself.
    pub(super) fn version(&self) -> &str {
        &self.version
    }

    /// Installs with a new service, whose start is not measured.
    ///
    /// # Errors
    /// When it fails.
    pub(super) fn install(&self) -> Result<Usage> {
        let service = self.start_service()?;
        let pid = service.child.id();
        let before = process::cpu_seconds(pid);
        let mut command = self.rauc();
        command.arg("install").arg(&self.bundle).stdout(Stdio::null());
        command.stderr(File::create(self.folder.join("install.log"))?);
        let mut usage = process::run(&mut command, &self.slot, &[0]).with_context(|| self.said())?;
        usage.cpu_seconds += process::cpu_seconds(pid) - before;
        usage.peak_bytes = usage.peak_bytes.max(process::status_bytes(pid, "VmHWM:"));
        usage.written_bytes = process::written_bytes(pid);
        Ok(usage)
    }

    fn start_service(&self) -> Result<Running> {
        let log = File::create(self.folder.join("service.log"))?;
        let mut command = self.rauc();
        command.args(["--override-boot-slot=A", "service"]).stdout(log.try_clone()?).stderr(log);
        let mut service = Running { child: command.spawn().context("cannot start the service of rauc")? };
        let started = Instant::now();
        // It answers as soon as it has its name on the bus.
        while !self.rauc().arg("status").stdout(Stdio::null()).stderr(Stdio::null()).status()?.success() {
            if started.elapsed() > START_LIMIT || service.child.try_wait()?.is_some() {
                bail!("the service of rauc does not start: {}", self.said());
            }
            thread::sleep(Duration::from_millis(100));
        }
        Ok(service)
    }

    fn rauc(&self) -> Command {
        let mut command = Command::new("rauc");
        command.arg("--conf").arg(self.folder.join("system.conf"));
        command.env("DBUS_SYSTEM_BUS_ADDRESS", address(&self.folder)).current_dir(&self.folder);
        command
    }

    fn said(&self) -> String {
        let said =
            ["install.log", "service.log"].map(|log| fs::read_to_string(self.folder.join(log)).unwrap_or_default());
        format!("rauc said: {}", said.join(" | "))
    }
}

fn settings(folder: &Path, slot: &Path) -> String {
    let folder = folder.display();
    format!(
        "[system]\ncompatible={COMPATIBLE}\nbootloader=noop\nmountprefix={folder}/mnt\nstatusfile={folder}/status\n\
         bundle-formats=plain\n[keyring]\npath={folder}/cert.pem\n\
         [slot.rootfs.0]\ndevice={folder}/booted\ntype=raw\nbootname=A\n\
         [slot.rootfs.1]\ndevice={}\ntype=raw\nbootname=B\n",
        slot.display()
    )
}

fn address(folder: &Path) -> String {
    format!("unix:path={}/bus", folder.display())
}

/// A bus that lets everybody do everything; only root can reach its socket.
fn start_bus(folder: &Path) -> Result<Running> {
    let settings = format!(
        "<busconfig><type>system</type><listen>{}</listen><auth>EXTERNAL</auth><policy context=\"default\">\
         <allow send_destination=\"*\" eavesdrop=\"true\"/><allow eavesdrop=\"true\"/><allow own=\"*\"/>\
         <allow user=\"*\"/></policy></busconfig>",
        address(folder)
    );
    let file = folder.join("bus.conf");
    fs::write(&file, settings)?;
    let mut command = Command::new("dbus-daemon");
    command.arg("--config-file").arg(&file).args(["--nofork", "--nopidfile", "--nosyslog"]);
    let bus = Running { child: command.stderr(Stdio::null()).spawn().context("cannot start dbus-daemon")? };
    let started = Instant::now();
    while !folder.join("bus").exists() {
        ensure!(started.elapsed() < START_LIMIT, "dbus-daemon does not open its socket");
        thread::sleep(Duration::from_millis(20));
    }
    Ok(bus)
}

fn run(command: &mut Command, folder: &Path) -> Result<()> {
    let name = command.get_program().to_string_lossy().into_owned();
    let output = command.current_dir(folder).output().with_context(|| format!("{name} is not installed"))?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{name} ended with {}: {}", output.status, said.trim());
    Ok(())
}

/// A program that runs until this is dropped.
#[derive(Debug)]
struct Running {
    child: Child,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}
