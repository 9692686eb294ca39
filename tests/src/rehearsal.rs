//! The whole agent on a folder that looks like a device: slots are files, the loader is its simulator, time stands
//! still unless a program moves it, and a boot takes milliseconds.
//!
//! ```text
//! boot: simulated loader over grubenv and fallback -> which slot -> is there a whole known image in it?
//!       -> mountinfo, boot id, uptime, release.toml and health check of the system that started
//! run:  the real `basculed --root FOLDER run-to-rest`, until it rests (0) or wants a reboot (4)
//! ```

mod serving;
mod vendor;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context, Result, bail, ensure};
use bascule_boot::disk::rehearsal::{DiskFile, machine};
use bascule_boot::grub::simulator::{self, Ending, Saving};
use bascule_boot::grub::{FACTORY_FALLBACK, FACTORY_GRUBENV, SCRIPT};
use bascule_core::{Group, Record};

pub use serving::Serving;
pub(crate) use vendor::read;
pub use vendor::{System, SystemSpec, Temper, Vendor, system_in};

/// Bytes of each root slot.
const SLOT_BYTES: u64 = 1 << 20;
const DISK: &str = "nvme0n1";
/// `basculed run-to-rest` ends with this when the system is to be started again.
const REBOOT_NEEDED: i32 = 4;

/// No two boots of any device have the same identifier.
static BOOTS: AtomicU64 = AtomicU64::new(1);

/// Nothing waits for wall-clock time: the one round of checks comes at once, and a failing check moves the clock.
const CONFIG: &str = r#"
[slots.root]
a = "partlabel:root-a"
b = "partlabel:root-b"
[prepare]
retry_wait = "100ms"
[activate]
reboot_delay = "0s"
[health]
settle = "0s"
interval = "100ms"
passes = 1
deadline = "15min"
"#;

/// A device made of files.
#[derive(Debug)]
pub struct Rehearsal {
    root: PathBuf,
    program: PathBuf,
    disk: DiskFile,
    systems: Vec<System>,
    booted: Option<Group>,
    _dir: Option<tempfile::TempDir>,
}

/// How one start of the device went.
#[derive(Debug, Clone)]
pub enum Boot {
    /// The system is up; the agent can run.
    Up {
        /// The group that was started.
        group: Group,
        /// What it holds.
        system: System,
    },
    /// The system was started and died before the agent could run.
    Panicked {
        /// The group that was started.
        group: Group,
        /// What it holds.
        system: System,
    },
}

/// How one run of the agent ended.
#[derive(Debug, Clone)]
pub struct Run {
    /// The exit code; none when it was killed.
    pub code: Option<i32>,
    /// What it printed on standard error.
    pub said: String,
}

impl Run {
    /// What a command of the agent came to.
    #[must_use]
    pub fn of(output: Output) -> Self {
        Run { code: output.status.code(), said: String::from_utf8_lossy(&output.stderr).into_owned() }
    }

    /// Whether it wants the device to be started again.
    #[must_use]
    pub fn wants_reboot(&self) -> bool {
        self.code == Some(REBOOT_NEEDED)
    }

    /// The stable code of the error it ended with.
    #[must_use]
    pub fn error_code(&self) -> Option<&str> {
        let line = self.said.lines().rev().find_map(|line| line.strip_prefix("error: ["))?;
        line.split_once(']').map(|(code, _)| code)
    }
}

impl Rehearsal {
    /// A new device of `vendor` that runs `factory` from group `a`; group `b` is empty. It is not started yet.
    ///
    /// `systems` are all systems that may ever be complete in a slot, `factory` among them.
    ///
    /// # Errors
    /// When a file cannot be written, or `basculed` is not built.
    pub fn new(vendor: &Vendor, factory: &System, systems: &[System]) -> Result<Self> {
        let dir = scratch()?;
        let mut device = Self::new_in(dir.path(), vendor, factory, systems)?;
        device._dir = Some(dir);
        Ok(device)
    }

    /// As [`Rehearsal::new`], in a folder that stays.
    ///
    /// # Errors
    /// As [`Rehearsal::new`].
    pub fn new_in(root: &Path, vendor: &Vendor, factory: &System, systems: &[System]) -> Result<Self> {
        let (_, disk) = machine(root, DISK, SLOT_BYTES)?;
        let device = Rehearsal {
            root: root.to_owned(),
            program: basculed()?,
            disk,
            systems: systems.to_vec(),
            booted: None,
            _dir: None,
        };
        for folder in ["etc/bascule", "usr/lib/bascule/health.d/required", "boot/efi/bascule", "data/bascule"] {
            fs::create_dir_all(root.join(folder))?;
        }
        fs::create_dir_all(root.join("proc/sys/kernel/random"))?;
        fs::write(root.join("etc/bascule/config.toml"), CONFIG)?;
        fs::copy(vendor.root(), root.join("etc/bascule/root.json"))?;
        fs::write(root.join("boot/efi/bascule/grub.cfg"), SCRIPT)?;
        fs::write(device.grubenv(), FACTORY_GRUBENV)?;
        fs::write(device.fallback(), FACTORY_FALLBACK)?;
        let mut slot = read(&factory.image)?;
        slot.resize(SLOT_BYTES as usize, 0);
        fs::write(device.slot(Group::A), slot)?;
        Ok(device)
    }

    /// Adds settings to the configuration, as a drop-in that replaces the one before.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn configure(&self, text: &str) -> Result<()> {
        let folder = self.root.join("etc/bascule/config.d");
        fs::create_dir_all(&folder)?;
        Ok(fs::write(folder.join("50-rehearsal.toml"), text)?)
    }

    /// The folder.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The file that is a group's root slot.
    #[must_use]
    pub fn slot(&self, group: Group) -> PathBuf {
        self.root.join("dev").join(self.disk.partition_name(partition(group)))
    }

    /// The loader's settings.
    #[must_use]
    pub fn grubenv(&self) -> PathBuf {
        self.root.join("boot/efi/bascule/grubenv")
    }

    /// The loader's fallback.
    #[must_use]
    pub fn fallback(&self) -> PathBuf {
        self.root.join("boot/efi/bascule/fallback")
    }

    /// The state directory.
    #[must_use]
    pub fn state(&self) -> PathBuf {
        self.root.join("data/bascule")
    }

    /// The systems a slot may hold.
    #[must_use]
    pub fn systems(&self) -> &[System] {
        &self.systems
    }

    /// The durable record.
    ///
    /// # Errors
    /// When no copy of it can be read although one is there.
    pub fn record(&self) -> Result<Record> {
        Ok(bascule_agent::state::load(&self.state())?)
    }

    /// What a group's slot holds, if it is a whole known image.
    ///
    /// # Errors
    /// When the slot cannot be read.
    pub fn holds(&self, group: Group) -> Result<Option<&System>> {
        Ok(system_in(&read(&self.slot(group))?, &self.systems))
    }

    /// Starts the device once: the loader picks, and what it picked comes up.
    ///
    /// # Errors
    /// When the loader has nothing to start, or starts a slot without a whole known image: a bricked device.
    pub fn boot(&mut self) -> Result<Boot> {
        let grubenv = optional(&self.grubenv())?;
        let start =
            simulator::start(grubenv.as_deref(), optional(&self.fallback())?.as_deref(), |_| true, Saving::Works);
        if let Some(counted) = start.grubenv.filter(|counted| Some(counted) != grubenv.as_ref()) {
            fs::write(self.grubenv(), counted)?;
        }
        let Ending::Started(group) = start.ending else { bail!("the loader has nothing to start: {:?}", start.said) };
        let Some(system) = self.holds(group)?.cloned() else {
            bail!("the loader started group {group}, which holds no complete system: {:?}", start.said);
        };
        self.booted = Some(group);
        if system.temper == Temper::Panics {
            return Ok(Boot::Panicked { group, system });
        }
        self.come_up(group, &system)?;
        Ok(Boot::Up { group, system })
    }

    /// The group that was started last.
    #[must_use]
    pub fn booted(&self) -> Option<Group> {
        self.booted
    }

    fn come_up(&self, group: Group, system: &System) -> Result<()> {
        self.disk.mount_root(&self.root, partition(group))?;
        let boot_id = format!("boot-{}\n", BOOTS.fetch_add(1, Ordering::Relaxed));
        fs::write(self.root.join("proc/sys/kernel/random/boot_id"), boot_id)?;
        // Where the agent hangs, nothing is to be seen before the deadline has passed.
        let uptime = if system.temper == Temper::Hangs { "100000.00 1.00\n" } else { "1.00 1.00\n" };
        fs::write(self.root.join("proc/uptime"), uptime)?;
        let runtime = self.root.join("run/bascule");
        match fs::remove_dir_all(&runtime) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error.into()),
            _ => fs::create_dir_all(&runtime)?,
        }
        fs::write(self.root.join("usr/lib/bascule/release.toml"), release_text(system))?;
        let check = self.root.join("usr/lib/bascule/health.d/required/self-test");
        let text = match system.temper {
            Temper::Good | Temper::Hangs => "#!/bin/sh\nexit 0\n".to_owned(),
            // A check that fails for as long as probation lasts: the clock is moved beyond the deadline.
            _ => format!("#!/bin/sh\necho '100000.00 1.00' > '{}'\nexit 1\n", self.root.join("proc/uptime").display()),
        };
        fs::write(&check, text)?;
        Ok(fs::set_permissions(&check, fs::Permissions::from_mode(0o755))?)
    }

    /// The agent's command line on this device.
    #[must_use]
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command.arg("--root").arg(&self.root).args(arguments);
        command
    }

    /// Runs the agent until it rests or wants a reboot; where it hangs, the watchdog of the deadline, which reboots.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn run(&self) -> Result<Run> {
        let mut run = Run::of(self.command(&[self.program_of_boot()?]).output()?);
        run.code = self.code_of_boot(run.code)?;
        Ok(run)
    }

    /// What runs on the booted system: the agent, or only the watchdog of the deadline.
    pub(crate) fn program_of_boot(&self) -> Result<&'static str> {
        Ok(if self.hangs()? { "rollback-health" } else { "run-to-rest" })
    }

    /// The watchdog ends well after it has asked for a reboot.
    pub(crate) fn code_of_boot(&self, code: Option<i32>) -> Result<Option<i32>> {
        Ok(if self.hangs()? && code == Some(0) { Some(REBOOT_NEEDED) } else { code })
    }

    fn hangs(&self) -> Result<bool> {
        let Some(booted) = self.booted else { return Ok(false) };
        Ok(self.holds(booted)?.is_some_and(|system| system.temper == Temper::Hangs))
    }

    /// Offers a bundle and runs the agent until it rests or wants a reboot.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn install(&self, bundle: &Path) -> Result<Run> {
        Ok(Run::of(self.command(&["run-to-rest", "--install"]).arg(bundle).output()?))
    }

    /// Runs the watchdog that finishes a fallback of the loader.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn rollback_altboot(&self) -> Result<Run> {
        Ok(Run::of(self.command(&["rollback-altboot"]).output()?))
    }

    /// Starts the device as often as it takes until a system is up and the agent rests. Returns what was started.
    ///
    /// # Errors
    /// When a start bricks the device, the agent fails, the booted slot changes, or it takes more than `limit` starts.
    pub fn settle(&mut self, limit: usize) -> Result<Vec<Boot>> {
        let mut boots = Vec::new();
        while boots.len() < limit {
            let boot = self.boot()?;
            boots.push(boot.clone());
            if let Boot::Up { group, .. } = boot {
                let before = read(&self.slot(group))?;
                let watchdog = self.rollback_altboot()?;
                ensure!(watchdog.code == Some(0), "rollback-altboot failed: {watchdog:?}");
                let run = self.run()?;
                ensure!(read(&self.slot(group))? == before, "the booted slot was written");
                match run.code {
                    Some(0) => return Ok(boots),
                    Some(REBOOT_NEEDED) => {}
                    _ => bail!("the agent failed: {run:?}"),
                }
            }
        }
        bail!("not at rest after {limit} starts: {:?}", self.record()?.state)
    }
}

fn partition(group: Group) -> u32 {
    match group {
        Group::A => 3,
        Group::B => 4,
    }
}

fn release_text(system: &System) -> String {
    let release = &system.release;
    format!(
        "product = {:?}\nversion = {:?}\norder = {}\ncompatible = {:?}\nsecurity_epoch = {}\n",
        release.product, release.version, release.order, release.compatible, release.security_epoch
    )
}

fn optional(path: &Path) -> Result<Option<Vec<u8>>> {
    match fs::read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| format!("cannot read {}", path.display())),
    }
}

/// A temporary folder, in memory where there is such a place.
pub(crate) fn scratch() -> Result<tempfile::TempDir> {
    let mut builder = tempfile::Builder::new();
    builder.prefix("bascule-rehearsal-");
    Ok(builder.tempdir_in("/dev/shm").or_else(|_| builder.tempdir())?)
}

/// The daemon's program, which cargo puts two folders above a test's.
fn basculed() -> Result<PathBuf> {
    let test = std::env::current_exe()?;
    let program = test.ancestors().nth(2).context("a test runs in target/PROFILE/deps")?.join("basculed");
    ensure!(
        program.is_file(),
        "{} is missing: build it first with `cargo build -p bascule-agent --bins` and the same profile",
        program.display()
    );
    Ok(program)
}
