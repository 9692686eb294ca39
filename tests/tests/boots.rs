//! The demo's systems on the real firmware and the real boot loader, without the agent's help.

use std::time::Duration;

use anyhow::Result;
use bascule_tests::{HttpServer, Images, Machine};

/// Time for one start of a guest; an emulated processor on a busy host needs a good part of it.
const BOOT: Duration = Duration::from_secs(20 * 60);

/// Time for one long command in a guest.
const LONG: Duration = Duration::from_secs(20 * 60);

#[test]
fn the_factory_disk_starts_its_service_and_starts_again_after_a_reset() -> Result<()> {
    let images = Images::load()?;
    let mut machine = Machine::builder("boots-factory", &images).build()?;
    machine.start()?;
    assert_eq!(machine.wait_for_ping(BOOT)?.version, "1.0.0");
    let command_line = machine.succeed("cat /proc/cmdline")?;
    assert!(command_line.contains("bascule.group=a"), "{command_line}");
    let root = machine.succeed("grep ' / ' /proc/mounts")?;
    assert!(root.contains(" ext4 ro,"), "the root is writable: {root}");
    assert_eq!(machine.run("systemctl --failed --no-legend --plain")?.text.trim(), "");
    let identity = machine.succeed("cat /etc/machine-id")?;

    machine.begin("systemctl reboot")?;
    machine.follow_reset(BOOT)?;
    assert_eq!(machine.wait_for_ping(BOOT)?.version, "1.0.0");
    assert_eq!(machine.succeed("cat /etc/machine-id")?, identity, "the device became another");
    Ok(())
}

#[test]
fn a_system_without_init_uses_up_its_tries_and_the_loader_comes_back() -> Result<()> {
    let images = Images::load()?;
    let server = HttpServer::serve(&images.directory)?;
    let mut machine = Machine::builder("boots-fallback", &images).build()?;
    machine.start()?;
    machine.wait_ready(BOOT)?;
    let url = server.url_for_guest("v4.ext4");
    let write = format!("busybox wget -q -O - {url} | dd of=/dev/disk/by-partlabel/root-b bs=4M iflag=fullblock");
    let written = machine.run_within(&write, LONG)?;
    assert_eq!(written.code, 0, "{}", written.text);
    arm_group_b(&mut machine, 2)?;

    machine.begin("systemctl reboot")?;
    assert_eq!(machine.follow_resets_until_ready(5, BOOT)?, 3, "two tries and the start of the old system");
    let command_line = machine.succeed("cat /proc/cmdline")?;
    assert!(command_line.contains("bascule.group=a"), "{command_line}");
    // The loader leaves 0; the agent of the old system, where it has run already, says that nobody knows this trial.
    let left = machine.succeed("grep -a ^group_b= /boot/efi/bascule/grubenv")?.trim().to_owned();
    assert!(matches!(left.as_str(), "group_b=0" | "group_b=bad"), "{left}");
    Ok(())
}

/// Writes the loader's settings in place, as the agent would: `b` first, with this many tries.
///
/// The agent is stopped before: each of its looks disarms a group that no update of its own has armed.
fn arm_group_b(machine: &mut Machine, tries: u8) -> Result<()> {
    machine.succeed("systemctl stop basculed.service")?;
    let settings = format!("# GRUB Environment Block\norder=b a\ngroup_a=good\ngroup_b={tries}\n");
    let block = format!("{settings}{}", "#".repeat(1024 - settings.len()));
    machine.succeed(&format!("printf %s '{block}' | dd of=/boot/efi/bascule/grubenv conv=notrunc,fsync"))?;
    Ok(())
}
