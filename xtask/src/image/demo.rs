//! The demo systems: what each version adds to the base tree.

use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;

use anyhow::{Context, Result};

use super::places;
use crate::arch::Arch;

/// How one demo version behaves once it is installed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Behaviour {
    /// Boots, and every check passes.
    Good,
    /// Boots, but a required health check fails.
    Unhealthy,
    /// The kernel finds no init and panics.
    NoInit,
    /// Boots, but no program of the agent can run.
    NoAgent,
}

/// One demo system.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Version {
    /// Its short name in file names: `v1`.
    pub(crate) name: &'static str,
    /// Its version: `1.0.0`.
    pub(crate) version: &'static str,
    /// Its place in the order of versions.
    pub(crate) order: u64,
    /// What it does once installed.
    pub(crate) behaviour: Behaviour,
}

/// The factory system and the updates offered to it.
pub(crate) const VERSIONS: [Version; 6] = [
    Version { name: "v1", version: "1.0.0", order: 1, behaviour: Behaviour::Good },
    Version { name: "v2", version: "2.0.0", order: 2, behaviour: Behaviour::Good },
    Version { name: "v3", version: "3.0.0", order: 3, behaviour: Behaviour::Unhealthy },
    Version { name: "v4", version: "4.0.0", order: 4, behaviour: Behaviour::NoInit },
    Version { name: "v5", version: "5.0.0", order: 5, behaviour: Behaviour::Good },
    Version { name: "v6", version: "6.0.0", order: 6, behaviour: Behaviour::NoAgent },
];

/// The order of the system that brings a hook of its own, which runs before it is started.
const HOOKED: u64 = 5;

/// The mode of a file that is no program.
pub(super) const PLAIN: u32 = 0o644;
/// The mode of a program.
pub(super) const PROGRAM: u32 = 0o755;

/// Files that all demo systems share, with their modes.
const FILES: [(&str, u32, &str); 27] = [
    ("etc/fstab", PLAIN, include_str!("files/fstab")),
    // Where U-Boot has its environment, on the devices that start through it.
    ("etc/fw_env.config", PLAIN, "/boot/efi/uboot.env 0 0x4000\n/boot/efi/uboot-redund.env 0 0x4000\n"),
    ("etc/hostname", PLAIN, "bascule-demo\n"),
    ("etc/hosts", PLAIN, "127.0.0.1 localhost bascule-demo\n"),
    ("etc/resolv.conf", PLAIN, "nameserver 10.0.2.3\n"),
    // Empty: systemd takes an identifier for this boot, from the machine's UUID where there is one.
    ("etc/machine-id", 0o444, ""),
    ("etc/modules-load.d/demo.conf", PLAIN, "virtio_pci\nvirtio_net\nvirtio_rng\n"),
    ("etc/systemd/journald.conf.d/demo.conf", PLAIN, include_str!("files/journald.conf")),
    ("etc/systemd/system.conf.d/demo.conf", PLAIN, include_str!("files/system.conf")),
    ("etc/systemd/system/systemd-udev-trigger.service.d/demo.conf", PLAIN, include_str!("files/udev-trigger.conf")),
    ("etc/systemd/system/demo-network.service", PLAIN, include_str!("files/demo-network.service")),
    ("etc/systemd/system/ping.service", PLAIN, include_str!("files/ping.service")),
    ("etc/systemd/system/demo-watchdog.service", PLAIN, include_str!("files/demo-watchdog.service")),
    ("etc/systemd/system.conf.d/watchdog.conf", PLAIN, include_str!("files/watchdog.conf")),
    ("etc/systemd/system/demo-fault.service", PLAIN, include_str!("files/demo-fault.service")),
    ("usr/lib/demo/fault", PROGRAM, include_str!("files/fault")),
    ("etc/systemd/system/shell-ttyS0.service", PLAIN, include_str!("files/shell-ttyS0.service")),
    ("etc/systemd/system/shell-ttyS1.service", PLAIN, include_str!("files/shell-ttyS1.service")),
    ("etc/systemd/system/bascule-deadman.timer.d/demo.conf", PLAIN, "[Timer]\nOnBootSec=\nOnBootSec=60s\n"),
    ("etc/bascule/config.toml", PLAIN, include_str!("files/config.toml")),
    ("usr/lib/systemd/system-generators/demo-slow-host", PROGRAM, include_str!("files/slow-host")),
    ("usr/lib/bascule/boot/files/demo/site.txt", PLAIN, "the image's\n"),
    ("usr/lib/demo/ping", PROGRAM, include_str!("files/ping")),
    ("usr/lib/demo/pong", PROGRAM, include_str!("files/pong")),
    ("usr/lib/demo/command-server", PROGRAM, include_str!("files/command-server")),
    ("etc/inputrc", PLAIN, include_str!("files/inputrc")),
    ("root/.profile", PLAIN, "PS1='demo# '\n"),
];

/// Units of the demo that start with the system.
const ENABLED: [&str; 6] = [
    "demo-network.service",
    "demo-watchdog.service",
    "demo-fault.service",
    "ping.service",
    "shell-ttyS0.service",
    "shell-ttyS1.service",
];

/// Files of the version that this function's caller lays over the base tree, with the trust root to pin.
pub(super) fn write_overlay(overlay: &Path, arch: Arch, version: &Version, trust_root: &Path) -> Result<()> {
    for (path, mode, text) in FILES {
        write(overlay, &with_ports(path, arch), mode, &with_ports(text, arch))?;
    }
    for unit in ENABLED.map(|unit| with_ports(unit, arch)) {
        let wants = overlay.join("etc/systemd/system/multi-user.target.wants");
        std::fs::create_dir_all(&wants)?;
        symlink(format!("../{unit}"), wants.join(&unit))?;
    }
    symlink("/usr/lib/systemd/system/multi-user.target", overlay.join("etc/systemd/system/default.target"))?;
    // Interface names stay as the kernel gives them: eth0.
    let links = overlay.join("etc/systemd/network");
    std::fs::create_dir_all(&links)?;
    symlink("/dev/null", links.join("99-default.link"))?;
    // There is nothing to remount: the root stays as the kernel mounted it.
    symlink("/dev/null", overlay.join("etc/systemd/system/systemd-remount-fs.service"))?;
    for mount_point in ["data", "boot/efi"] {
        std::fs::create_dir_all(overlay.join(mount_point))?;
    }
    write(overlay, "usr/lib/bascule/release.toml", PLAIN, &release(version, arch.hardware()))?;
    write(overlay, "usr/lib/bascule/boot/files/demo/version.txt", PLAIN, &format!("{}\n", version.version))?;
    let check = match version.behaviour {
        Behaviour::Unhealthy => include_str!("files/50-app-unhealthy"),
        Behaviour::Good | Behaviour::NoInit | Behaviour::NoAgent => include_str!("files/50-app"),
    };
    write(overlay, "usr/lib/bascule/health.d/required/50-app", PROGRAM, check)?;
    if version.order == HOOKED {
        let hook = "usr/lib/bascule/hooks.d/pre-activate/20-note";
        write(overlay, hook, PROGRAM, include_str!("files/20-note"))?;
    }
    places::write_places(overlay, version)?;
    if trust_root.exists() {
        std::fs::copy(trust_root, overlay.join("etc/bascule/root.json")).context("cannot copy the trust root")?;
    }
    Ok(())
}

/// A text that names the console and the second serial port, as they are called on this processor's machines.
fn with_ports(text: &str, arch: Arch) -> String {
    match arch {
        Arch::X86_64 => text.to_owned(),
        // The console is a port of the board, the other one is on PCI.
        Arch::Aarch64 => text.replace("ttyS0", "ttyAMA0").replace("ttyS1", "ttyS0"),
    }
}

/// The text of `release.toml`: what this system is and for which hardware.
pub(super) fn release(version: &Version, compatible: &str) -> String {
    format!(
        "product = \"demo\"\nversion = \"{}\"\norder = {}\ncompatible = [\"{compatible}\"]\nsecurity_epoch = 0\n",
        version.version, version.order
    )
}

/// Writes one file of an overlay with its mode, and the folders above it.
pub(super) fn write(overlay: &Path, path: &str, mode: u32, text: &str) -> Result<()> {
    let file = overlay.join(path);
    if let Some(folder) = file.parent() {
        std::fs::create_dir_all(folder)?;
    }
    std::fs::write(&file, text).with_context(|| format!("cannot write {}", file.display()))?;
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(mode))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    /// What the generator wrote when the kernel had been up for so long: the timer's part, the configuration, and whether
    /// systemd is asked to lay that over the image's.
    fn generated(uptime: &str) -> (Option<String>, Option<String>, bool) {
        let place = tempfile::tempdir().unwrap();
        let at = |path: &str| place.path().join(path).display().to_string();
        write(place.path(), "uptime", PLAIN, uptime).unwrap();
        write(place.path(), "config.toml", PLAIN, include_str!("files/config.toml")).unwrap();
        let script = include_str!("files/slow-host")
            .replace("/proc/uptime", &at("uptime"))
            .replace("/etc/bascule/config.toml", &at("config.toml"))
            .replace("/run/demo", &at("run"));
        let status = Command::new("sh").args(["-euc", &script, "sh", &at("units")]).status().unwrap();
        assert!(status.success(), "{status}");
        let read = |path: &str| std::fs::read_to_string(at(path)).ok();
        // Through the link, which must lead to the unit; a mount unit is named after its mount point.
        let mount = read("units/sysinit.target.wants/etc-bascule-config.toml.mount").unwrap_or_default();
        let asked = format!("What={}\nWhere={}\n", at("run/config.toml"), at("config.toml"));
        (read("units/bascule-deadman.timer.d/slow-host.conf"), read("run/config.toml"), mount.contains(&asked))
    }

    #[test]
    fn deadlines_grow_with_the_time_that_the_kernel_took_and_nothing_else_of_the_configuration_changes() {
        assert_eq!(generated("4.99 2.00\n"), (None, None, false));
        let (timer, config, mounted) = generated("10.10 2.00\n");
        assert_eq!(timer.unwrap(), "[Timer]\nOnBootSec=\nOnBootSec=180s\n");
        let expected = include_str!("files/config.toml").replace("deadline = \"100s\"", "deadline = \"300s\"");
        assert_eq!(config.unwrap(), expected);
        assert!(mounted);
        assert_ne!(expected, include_str!("files/config.toml"));
    }
}
