//! The QEMU command line, and which accelerator a guest really runs under.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::sync::mpsc;
use std::time::Duration;

use anyhow::{Context, Result};

use bascule_image::disk::Arch;

use super::{Boot, WriteLogs};

/// How long a guest may take to say something under KVM before it counts as unusable.
const KVM_PATIENCE: Duration = Duration::from_secs(2);

/// Everything one start of QEMU needs.
pub(super) struct Configuration<'a> {
    pub(super) arch: Arch,
    pub(super) disk: &'a Path,
    pub(super) clone: Option<&'a Path>,
    pub(super) variables: &'a Path,
    pub(super) memory_mib: u32,
    pub(super) boot: &'a Boot,
    pub(super) kernel: &'a Path,
    pub(super) uboot: &'a Path,
    pub(super) ping_port: u16,
    pub(super) command_socket: &'a Path,
    pub(super) watchdog: bool,
    pub(super) logs: Option<&'a WriteLogs>,
}

/// Builds the command; the serial console is on its standard input and output.
pub(super) fn command(configuration: &Configuration<'_>) -> Result<Command> {
    let mut command = match configuration.arch {
        Arch::X86_64 => {
            let accelerator = accelerator(configuration.kernel);
            let mut command = tied_to_us("qemu-system-x86_64");
            command.args([
                "-M",
                "q35",
                "-accel",
                accelerator,
                "-cpu",
                if accelerator == "kvm" { "host" } else { "max" },
            ]);
            command
        }
        Arch::Aarch64 => {
            let mut command = tied_to_us("qemu-system-aarch64");
            // Pointer authentication, which `max` has, costs more to emulate than all the rest.
            command.args(["-M", "virt", "-accel", "tcg", "-cpu", "cortex-a53"]);
            command
        }
    };
    command.args(["-smp", "1", "-nodefaults", "-display", "none", "-no-reboot"]);
    command.args(["-m", &configuration.memory_mib.to_string()]);
    // From it systemd takes a machine-id that is the same in both groups.
    command.args(["-uuid", "6b617363-756c-4065-8d61-63682d696431"]);
    match configuration.boot {
        Boot::Firmware => {
            drive(&mut command, "if=pflash,format=raw,readonly=on", firmware("CODE")?.as_path());
            variables(&mut command, configuration);
        }
        Boot::FirmwareKernel { command_line } => {
            drive(&mut command, "if=pflash,format=raw,readonly=on", firmware("CODE")?.as_path());
            variables(&mut command, configuration);
            command.arg("-kernel").arg(configuration.kernel).args(["-append", command_line]);
        }
        Boot::Bios => {}
        Boot::Uboot => {
            command.arg("-bios").arg(configuration.uboot);
        }
        Boot::Kernel { command_line } => {
            command.arg("-kernel").arg(configuration.kernel).args(["-append", command_line]);
        }
    }
    match configuration.logs {
        Some(logs) => logged_drive(&mut command, "if=none,id=disk", configuration.disk, &logs.disk),
        None => drive(&mut command, "if=none,id=disk,format=raw", configuration.disk),
    }
    command.args(["-device", "nvme,drive=disk,serial=bascule"]);
    if let Some(clone) = configuration.clone {
        drive(&mut command, "if=none,id=clone,format=raw", clone);
        command.args(["-device", "nvme,drive=clone,serial=clone"]);
    }
    let forward = format!("user,id=net,hostfwd=tcp:127.0.0.1:{}-:7000", configuration.ping_port);
    command.args(["-netdev", &forward, "-device", "virtio-net-pci,netdev=net,romfile="]);
    command.args(["-device", "virtio-rng-pci", "-serial", "stdio"]);
    let socket = format!("socket,id=commands,path={}", configuration.command_socket.display());
    command.args(["-chardev", &socket]);
    match configuration.arch {
        Arch::X86_64 => command.args(["-serial", "chardev:commands"]),
        // The board has one port.
        Arch::Aarch64 => command.args(["-device", "pci-serial,chardev=commands"]),
    };
    if configuration.watchdog {
        // The demo's systems look for it at this address.
        command.args(["-device", "i6300esb,addr=0x10", "-action", "watchdog=reset"]);
    }
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    Ok(command)
}

/// Finds a part of the UEFI firmware: `CODE`, or `VARS` as the template of a machine's variables.
pub(super) fn firmware(part: &str) -> Result<PathBuf> {
    let places = [
        format!("/usr/share/OVMF/OVMF_{part}_4M.fd"),
        format!("/usr/share/OVMF/OVMF_{part}.fd"),
        format!("/usr/share/edk2/x64/OVMF_{part}.4m.fd"),
    ];
    let found = places.into_iter().map(PathBuf::from).find(|path| path.exists());
    found.with_context(|| format!("there is no UEFI firmware OVMF_{part}: install the package ovmf"))
}

/// A command that the kernel kills when the thread that started it ends, however that happens.
fn tied_to_us(program: &str) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", "--", program]);
    command
}

fn drive(command: &mut Command, options: &str, file: &Path) {
    command.arg("-drive").arg(format!("{options},file={}", name(file)));
}

fn variables(command: &mut Command, configuration: &Configuration<'_>) {
    match configuration.logs {
        Some(logs) => logged_drive(command, "if=pflash", configuration.variables, &logs.variables),
        None => drive(command, "if=pflash,format=raw", configuration.variables),
    }
}

/// A drive whose writes and flushes go to `log` as well, each before it is answered.
fn logged_drive(command: &mut Command, options: &str, file: &Path, log: &Path) {
    let nodes = format!(
        "driver=blklogwrites,log-sector-size=512,log.driver=file,log.filename={},file.driver=raw,file.file.driver=file,file.file.filename={}",
        name(log),
        name(file)
    );
    command.arg("-drive").arg(format!("{options},{nodes}"));
}

/// A comma in a file name would begin another option; QEMU reads two as one.
fn name(file: &Path) -> String {
    file.display().to_string().replace(',', ",,")
}

/// `kvm` where a Linux guest speaks under it within two seconds, else `tcg`.
fn accelerator(kernel: &Path) -> &'static str {
    static FOUND: OnceLock<&'static str> = OnceLock::new();
    FOUND.get_or_init(|| if speaks_under_kvm(kernel).unwrap_or(false) { "kvm" } else { "tcg" })
}

fn speaks_under_kvm(kernel: &Path) -> Result<bool> {
    if std::fs::File::options().read(true).write(true).open("/dev/kvm").is_err() {
        return Ok(false);
    }
    let mut command = tied_to_us("qemu-system-x86_64");
    command.args(["-M", "q35", "-accel", "kvm", "-cpu", "host", "-m", "256", "-nodefaults", "-display", "none"]);
    command.args(["-no-reboot", "-serial", "stdio", "-append", "console=ttyS0 panic=-1", "-kernel"]).arg(kernel);
    let mut guest = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn()?;
    let spoke = says_linux(&mut guest);
    guest.kill().ok();
    guest.wait()?;
    Ok(spoke)
}

fn says_linux(guest: &mut Child) -> bool {
    let Some(mut output) = guest.stdout.take() else { return false };
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || {
        let mut said = Vec::new();
        let mut buffer = [0u8; 256];
        while let Ok(count @ 1..) = output.read(&mut buffer) {
            said.extend_from_slice(buffer.get(..count).unwrap_or_default());
            if said.windows(13).any(|window| window == b"Linux version") {
                sender.send(()).ok();
                return;
            }
        }
    });
    receiver.recv_timeout(KVM_PATIENCE).is_ok()
}
