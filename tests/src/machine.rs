//! One QEMU machine: its disk, its firmware's variables, and one QEMU process for each boot.

mod commands;
mod host;
mod qemu;
mod serial;

use std::fs::File;
use std::io::Write;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

pub use commands::CommandOutput;
use commands::Commands;
pub(crate) use host::copy_sparse;
use serial::Serial;

use bascule_image::disk::{Arch, Loader};

use crate::factory;
use crate::images::Images;
use crate::ping::{PingWatch, Pong};

/// How long an ordinary command in the guest may take; on a slow host an emulated processor has a third of its speed.
const COMMAND_PATIENCE: Duration = Duration::from_secs(300);

/// How a machine starts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Boot {
    /// UEFI firmware, then the boot loader on the disk.
    Firmware,
    /// A BIOS, then the boot loader on the disk.
    Bios,
    /// U-Boot as the firmware, which `cargo xtask image uboot` builds.
    Uboot,
    /// UEFI firmware that is given the demo's kernel by the machine.
    FirmwareKernel {
        /// The kernel's command line.
        command_line: String,
    },
    /// The demo's kernel at once, without firmware and boot loader.
    Kernel {
        /// The kernel's command line.
        command_line: String,
    },
}

/// How one boot of a machine ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stopped {
    /// The guest reset or powered itself off.
    ByGuest,
    /// The test killed QEMU.
    Killed,
}

/// What a machine is made from.
#[derive(Debug)]
pub struct MachineBuilder {
    scene: String,
    images: Images,
    factory: Option<(Loader, String)>,
    copy: Option<(Loader, Snapshot)>,
    boot: Boot,
    memory_mib: u32,
    watchdog: bool,
}

/// A machine's disk and its firmware's variables as they were at one moment, in two files.
#[derive(Debug, Clone)]
pub struct Snapshot {
    /// The disk image.
    pub disk: PathBuf,
    /// The variables.
    pub variables: PathBuf,
}

/// Where QEMU logs every write and flush, in the format of the kernel's dm-log-writes.
#[derive(Debug, Clone)]
pub struct WriteLogs {
    /// Those of the disk.
    pub disk: PathBuf,
    /// Those of the flash chip with the firmware's variables.
    pub variables: PathBuf,
}

/// A machine with a disk of its own. It is off until [`Machine::start`], and its QEMU is killed when it is dropped.
#[derive(Debug)]
pub struct Machine {
    images: Images,
    logs: PathBuf,
    scratch: tempfile::TempDir,
    boot: Boot,
    memory_mib: u32,
    watchdog: bool,
    has_clone: bool,
    loader: Loader,
    ping_port: u16,
    boots: u32,
    running: Option<Running>,
}

#[derive(Debug)]
struct Running {
    qemu: Child,
    console_input: ChildStdin,
    console: Serial,
    errors: Serial,
    commands: Commands,
    started: Instant,
}

impl MachineBuilder {
    /// Left the factory with this loader and this system, instead of the demo's GRUB and `v1`.
    #[must_use]
    pub fn factory(mut self, loader: Loader, system: &str) -> Self {
        self.boot = factory::boot(loader);
        self.factory = Some((loader, system.to_owned()));
        self
    }

    /// Begins with copies of these instead of as it left the factory.
    #[must_use]
    pub fn copy_of(mut self, loader: Loader, snapshot: &Snapshot) -> Self {
        self.boot = factory::boot(loader);
        self.copy = Some((loader, snapshot.clone()));
        self
    }

    /// Starts this way instead of through the firmware.
    #[must_use]
    pub fn boot(mut self, boot: Boot) -> Self {
        self.boot = boot;
        self
    }

    /// Gives the guest this much memory instead of 512 MiB.
    #[must_use]
    pub fn memory_mib(mut self, memory_mib: u32) -> Self {
        self.memory_mib = memory_mib;
        self
    }

    /// Gives it a hardware watchdog, which resets it when nobody feeds it any more.
    #[must_use]
    pub fn watchdog(mut self) -> Self {
        self.watchdog = true;
        self
    }

    /// Copies the disk and the firmware's variables. The machine is off.
    ///
    /// # Errors
    /// When the copies cannot be made or the firmware is missing.
    pub fn build(self) -> Result<Machine> {
        let logs = self.images.directory.join("logs").join(&self.scene);
        std::fs::remove_dir_all(&logs).ok();
        std::fs::create_dir_all(&logs)?;
        let machines = self.images.directory.join("machines");
        std::fs::create_dir_all(&machines)?;
        let scratch = tempfile::Builder::new().prefix("m").tempdir_in(&machines)?;
        let machine = Machine {
            loader: match (&self.copy, &self.factory) {
                (Some((loader, _)), _) | (None, Some((loader, _))) => *loader,
                (None, None) => factory::usual_loader(&self.images),
            },
            images: self.images,
            logs,
            boot: self.boot,
            memory_mib: self.memory_mib,
            watchdog: self.watchdog,
            has_clone: false,
            ping_port: host::free_port()?,
            boots: 0,
            running: None,
            scratch,
        };
        if let Some((_, snapshot)) = &self.copy {
            host::copy_sparse(&snapshot.disk, &machine.disk())?;
            std::fs::copy(&snapshot.variables, machine.variables()).context("cannot copy the variables")?;
            return Ok(machine);
        }
        match &self.factory {
            Some((loader, system)) => factory::create(&machine.images, *loader, system, &machine.disk())?,
            None => host::copy_sparse(&machine.images.disk, &machine.disk())?,
        }
        if machine.images.arch == Arch::X86_64 {
            let variables = qemu::firmware("VARS")?;
            std::fs::copy(variables, machine.variables()).context("cannot copy the firmware's variables")?;
        }
        Ok(machine)
    }
}

impl Machine {
    /// A machine with the factory disk, whose logs go to `target/bascule/logs/<scene>/`.
    #[must_use]
    pub fn builder(scene: &str, images: &Images) -> MachineBuilder {
        MachineBuilder {
            scene: scene.to_owned(),
            images: images.clone(),
            factory: None,
            copy: None,
            boot: factory::boot(factory::usual_loader(images)),
            memory_mib: 512,
            watchdog: false,
        }
    }

    /// What it left the factory with.
    #[must_use]
    pub fn loader(&self) -> Loader {
        self.loader
    }

    /// The machine's own disk image; to be read or changed only while it is off.
    #[must_use]
    pub fn disk(&self) -> PathBuf {
        self.scratch.path().join("disk.img")
    }

    /// Copies the disk as it is now, byte for byte, and puts the copy into the machine beside it from the next start on;
    /// where the copy is.
    ///
    /// # Errors
    /// When the machine is on, or the copy cannot be made.
    pub fn plug_in_clone(&mut self) -> Result<PathBuf> {
        ensure!(self.running.is_none(), "the machine is on");
        host::copy_sparse(&self.disk(), &self.clone_disk())?;
        self.has_clone = true;
        Ok(self.clone_disk())
    }

    /// Takes the copy out of the machine again; its file stays.
    pub fn unplug_clone(&mut self) {
        self.has_clone = false;
    }

    fn clone_disk(&self) -> PathBuf {
        self.scratch.path().join("clone.img")
    }

    /// The folder with `boot-N.console.log`, `boot-N.commands.log` and `boot-N.qemu.log`.
    #[must_use]
    pub fn logs(&self) -> &Path {
        &self.logs
    }

    /// How often it was started.
    #[must_use]
    pub fn boots(&self) -> u32 {
        self.boots
    }

    /// Switches it on: one boot, which ends with [`Machine::wait_for_stop`] or [`Machine::kill`].
    ///
    /// # Errors
    /// When it is on already or QEMU does not start.
    pub fn start(&mut self) -> Result<()> {
        self.start_by(&self.boot.clone(), None)
    }

    /// Switches it on for one boot in which every write of its disk and of its variables is logged.
    ///
    /// # Errors
    /// Like [`Machine::start`].
    pub fn start_logged(&mut self, logs: &WriteLogs) -> Result<()> {
        self.start_by(&self.boot.clone(), Some(logs))
    }

    /// Copies the disk and the variables as they are now; the machine is off.
    ///
    /// # Errors
    /// When it is on, or the copies cannot be made.
    pub fn snapshot(&self, snapshot: &Snapshot) -> Result<()> {
        ensure!(self.running.is_none(), "the machine is on");
        host::copy_sparse(&self.disk(), &snapshot.disk)?;
        std::fs::copy(self.variables(), &snapshot.variables).context("cannot copy the variables").map(drop)
    }

    /// Switches it on for one boot in which its firmware is given the demo's kernel, whatever it would start by itself.
    ///
    /// # Errors
    /// Like [`Machine::start`].
    pub fn start_kernel(&mut self, command_line: &str) -> Result<()> {
        self.start_by(&Boot::FirmwareKernel { command_line: command_line.to_owned() }, None)
    }

    fn start_by(&mut self, boot: &Boot, logs: Option<&WriteLogs>) -> Result<()> {
        ensure!(self.running.is_none(), "the machine is on already");
        self.boots += 1;
        let socket = host::command_socket(self.scratch.path())?;
        let listener = UnixListener::bind(socket.path())?;
        let mut command = qemu::command(&qemu::Configuration {
            disk: &self.disk(),
            clone: self.has_clone.then(|| self.clone_disk()).as_deref(),
            variables: &self.variables(),
            memory_mib: self.memory_mib,
            boot,
            kernel: &self.images.kernel,
            arch: self.images.arch,
            uboot: &self.images.directory.join("uboot/u-boot.rom"),
            ping_port: self.ping_port,
            command_socket: socket.path(),
            watchdog: self.watchdog,
            logs,
        })?;
        let mut qemu = command.spawn().context("cannot start QEMU")?;
        let console_input = qemu.stdin.take().context("QEMU has no input")?;
        let output = qemu.stdout.take().context("QEMU has no output")?;
        let errors = qemu.stderr.take().context("QEMU has no error output")?;
        let console = Serial::follow(output, self.log("console")?);
        let errors = Serial::follow(errors, self.log("qemu")?);
        let port = match host::accept(&listener, &mut qemu) {
            Ok(port) => port,
            Err(error) => {
                qemu.kill().ok();
                qemu.wait()?;
                return Err(error.context(errors.all()));
            }
        };
        let commands = Commands::new(port.try_clone()?, Serial::follow(port, self.log("commands")?));
        self.running = Some(Running { qemu, console_input, console, errors, commands, started: Instant::now() });
        Ok(())
    }

    /// Waits until `text` appears on the serial console, after everything waited for before in this boot.
    ///
    /// # Errors
    /// When it does not come in time or the machine stops first.
    pub fn wait_for(&mut self, text: &str, patience: Duration) -> Result<String> {
        Ok(self.wait_for_any(&[text], patience)?.1)
    }

    /// Waits until one of several texts appears; returns which one, and the console's text up to it.
    ///
    /// # Errors
    /// When none comes in time or the machine stops first.
    pub fn wait_for_any(&mut self, texts: &[&str], patience: Duration) -> Result<(usize, String)> {
        self.running()?.console.wait_for_any(texts, patience)
    }

    /// Everything the serial console printed in this boot.
    ///
    /// # Errors
    /// When the machine is off.
    pub fn console(&mut self) -> Result<String> {
        Ok(self.running()?.console.all())
    }

    /// Types on the serial console.
    ///
    /// # Errors
    /// When the machine is off.
    pub fn type_bytes(&mut self, bytes: &[u8]) -> Result<()> {
        let input = &mut self.running()?.console_input;
        input.write_all(bytes)?;
        Ok(input.flush()?)
    }

    /// Whether the guest has reset or powered off since the last start.
    ///
    /// # Errors
    /// When the machine was not started.
    pub fn has_stopped(&mut self) -> Result<bool> {
        Ok(self.running()?.qemu.try_wait()?.is_some())
    }

    /// Waits until userspace takes commands.
    ///
    /// # Errors
    /// When it does not in time or the machine stops first.
    pub fn wait_ready(&mut self, patience: Duration) -> Result<()> {
        let running = self.running()?;
        let ready = running.commands.wait_ready(patience);
        ready.with_context(|| format!("the console said:\n{}", host::last_lines(&running.console.all(), 30)))
    }

    /// Runs a command in the guest as root and waits for its end, at most five minutes.
    ///
    /// # Errors
    /// When the guest takes no commands or the command does not end; its exit code is no error.
    pub fn run(&mut self, command: &str) -> Result<CommandOutput> {
        self.run_within(command, COMMAND_PATIENCE)
    }

    /// Runs a command in the guest as root and waits for its end.
    ///
    /// # Errors
    /// When the guest takes no commands or the command does not end; its exit code is no error.
    pub fn run_within(&mut self, command: &str, patience: Duration) -> Result<CommandOutput> {
        self.wait_ready(patience)?;
        self.running()?.commands.run(command, patience)
    }

    /// Runs a command in the guest that must end with exit code 0; returns what it printed.
    ///
    /// # Errors
    /// Like [`Machine::run`], and when the exit code is another.
    pub fn succeed(&mut self, command: &str) -> Result<String> {
        let output = self.run(command)?;
        ensure!(output.code == 0, "`{command}` ended with {}: {}", output.code, output.text);
        Ok(output.text)
    }

    /// Starts a command in the guest and does not wait for it, as for one that reboots.
    ///
    /// # Errors
    /// When the guest takes no commands.
    pub fn begin(&mut self, command: &str) -> Result<()> {
        self.wait_ready(COMMAND_PATIENCE)?;
        self.running()?.commands.begin(&format!("({command}) &")).map(drop)
    }

    /// Waits until the guest resets or powers off.
    ///
    /// # Errors
    /// When it does not in time, or QEMU itself fails.
    pub fn wait_for_stop(&mut self, patience: Duration) -> Result<Stopped> {
        let deadline = Instant::now() + patience;
        let running = self.running()?;
        loop {
            if let Some(status) = running.qemu.try_wait()? {
                let errors = running.errors.all();
                self.running = None;
                ensure!(status.success(), "QEMU ended with {status}: {errors}");
                return Ok(Stopped::ByGuest);
            }
            if Instant::now() > deadline {
                let said = host::last_lines(&running.console.all(), 30);
                bail!("the guest did not reset in {} s; the console said:\n{said}", patience.as_secs());
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Waits until the guest resets and starts it again, as a device does by itself.
    ///
    /// # Errors
    /// Like [`Machine::wait_for_stop`] and [`Machine::start`].
    pub fn follow_reset(&mut self, patience: Duration) -> Result<()> {
        self.wait_for_stop(patience)?;
        self.start()
    }

    /// Follows resets until userspace takes commands; returns how many starts that took, at most `most`.
    ///
    /// # Errors
    /// When no start within `most` comes up, each within `patience`.
    pub fn follow_resets_until_ready(&mut self, most: u32, patience: Duration) -> Result<u32> {
        for starts in 1..=most {
            self.follow_reset(patience)?;
            let running = self.running()?;
            match running.commands.wait_ready(patience) {
                Ok(()) => return Ok(starts),
                // It stopped before it was ready: a failed start, and the loader has its next turn.
                Err(_) if running.commands.serial.has_ended() => {}
                Err(error) => return Err(error.context(host::last_lines(&running.console.all(), 30))),
            }
        }
        bail!("{most} starts did not come up")
    }

    /// Kills QEMU in the middle of whatever it does. The host keeps what the guest wrote: this is no power cut.
    ///
    /// # Errors
    /// When the machine is off.
    pub fn kill(&mut self) -> Result<Stopped> {
        let mut running = self.running.take().context("the machine is off")?;
        running.qemu.kill()?;
        running.qemu.wait()?;
        Ok(Stopped::Killed)
    }

    /// Asks the demo's own service once.
    ///
    /// # Errors
    /// When it does not answer.
    pub fn ping(&self) -> Result<Pong> {
        Pong::ask(self.ping_address())
    }

    /// Waits until the demo's own service answers.
    ///
    /// # Errors
    /// When it does not in time.
    pub fn wait_for_ping(&self, patience: Duration) -> Result<Pong> {
        let deadline = Instant::now() + patience;
        loop {
            match self.ping() {
                Ok(pong) => return Ok(pong),
                Err(error) if Instant::now() > deadline => return Err(error),
                Err(_) => std::thread::sleep(Duration::from_millis(100)),
            }
        }
    }

    /// Begins to ask the demo's own service again and again.
    #[must_use]
    pub fn watch_ping(&self) -> PingWatch {
        PingWatch::start(self.ping_address())
    }

    /// Seconds since this boot's QEMU was started, and the processor seconds it has used.
    ///
    /// # Errors
    /// When the machine is off.
    pub fn seconds(&mut self) -> Result<(f32, f32)> {
        let running = self.running()?;
        let wall = running.started.elapsed().as_secs_f32();
        let line = std::fs::read_to_string(format!("/proc/{}/stat", running.qemu.id()))?;
        let after_name = line.rsplit_once(')').map_or("", |(_, rest)| rest);
        // The 14th and 15th fields of the line, in hundredths of a second.
        let ticks = after_name.split_whitespace().skip(11).take(2).filter_map(|field| field.parse::<f32>().ok());
        Ok((wall, ticks.sum::<f32>() / 100.0))
    }

    fn running(&mut self) -> Result<&mut Running> {
        self.running.as_mut().context("the machine is off")
    }

    /// Puts the firmware's variables back to those of a new machine, as an empty battery does.
    ///
    /// # Errors
    /// When the firmware's template cannot be copied.
    pub fn forget_variables(&self) -> Result<()> {
        std::fs::copy(qemu::firmware("VARS")?, self.variables()).context("cannot copy the variables").map(drop)
    }

    /// The firmware's variables, as the flash chip holds them; to be read or changed only while it is off.
    #[must_use]
    pub fn variables(&self) -> PathBuf {
        self.scratch.path().join("variables.fd")
    }

    fn log(&self, port: &str) -> Result<File> {
        let file = self.logs.join(format!("boot-{}.{port}.log", self.boots));
        File::create(&file).with_context(|| format!("cannot create {}", file.display()))
    }

    fn ping_address(&self) -> SocketAddr {
        SocketAddr::from((Ipv4Addr::LOCALHOST, self.ping_port))
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        if self.running.is_some() {
            self.kill().ok();
        }
    }
}
