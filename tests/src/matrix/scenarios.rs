//! The scenarios: what is done to a device, and the table of how each has to end.

mod cut_off;
mod damaged;

use anyhow::{Context, Result, ensure};
use bascule_image::disk::Loader;

use super::end::End;
use super::kept::{Kept, lay_fault};
use crate::factory;
use crate::scenes::guest::PATIENCE;

/// One way in which an update, or what the loader goes by, fails.
pub(super) struct Scenario {
    pub(super) name: &'static str,
    pub(super) about: &'static str,
    pub(super) is_on: fn(Loader) -> bool,
    /// Plays it; what else was seen, in words, or nothing.
    pub(super) play: fn(&mut Kept) -> Result<String>,
    pub(super) end: fn(Loader) -> End,
}

/// The kernel of v5 panics a moment after v5 has come up.
const PANICS: &str = "#!/bin/sh\necho -1 > /proc/sys/kernel/panic\necho c > /proc/sysrq-trigger\n";

/// At each start another fault that only a hardware watchdog ends: a program that leaves no processor time to anybody, an
/// init that has crashed and stays, a kernel that has panicked and was told not to reboot.
const HANGS: &str = "#!/bin/sh
case $1 in
1) echo -1 > /proc/sys/kernel/sched_rt_runtime_us; exec chrt --fifo 99 sh -c 'while :; do :; done' ;;
2) kill -SEGV 1 ;;
3) echo 0 > /proc/sys/kernel/panic; echo c > /proc/sysrq-trigger ;;
esac
";

const NOT_PROVEN: &str = "it came up, but was started anew before it had finished probation";
const BACK: End = End::of("b", "2.0.0", "");
const UPDATED: End = End::of("b", "2.0.0", "committed").explained(&["the loader says good", "committed at"]);

fn everywhere(_: Loader) -> bool {
    true
}

fn only_systemd_boot(loader: Loader) -> bool {
    loader == Loader::SystemdBoot
}

fn only_efi(loader: Loader) -> bool {
    loader == Loader::Efi
}

fn but_efi(loader: Loader) -> bool {
    loader != Loader::Efi
}

/// Loaders that cannot read the slots: a group's boot files are copied to the boot partition.
fn with_boot_files(loader: Loader) -> bool {
    matches!(loader, Loader::SystemdBoot | Loader::Efi)
}

/// Loaders with a file of ours that names a complete group for the time their settings are lost.
fn with_fallback(loader: Loader) -> bool {
    matches!(loader, Loader::Grub | Loader::GrubBios | Loader::Uboot)
}

/// All of them, in an order in which most go on where the one before ended.
pub(super) const SCENARIOS: [Scenario; 22] = [
    Scenario {
        name: "committed",
        about: "a good system is installed, started and committed",
        is_on: everywhere,
        play: committed,
        end: |_| UPDATED.after(1),
    },
    Scenario {
        name: "unhealthy",
        about: "a system that boots, and whose required check fails",
        is_on: everywhere,
        play: |kept| resting(kept, |kept| kept.stage.rolls_back_an_unhealthy_system()),
        end: |_| End { ending: "unhealthy", explained: &["it was unhealthy", "deny-list"], ..BACK }.after(2),
    },
    Scenario {
        name: "no-init",
        about: "a system without init: the kernel panics at once",
        is_on: everywhere,
        play: |kept| resting(kept, |kept| kept.stage.comes_back_from_a_system_that_does_not_boot()),
        end: |loader| {
            let explained = &["it did not boot: the loader used up its tries and fell back"];
            End { ending: "did-not-boot", explained, ..BACK }.after(factory::tries(loader) + 1)
        },
    },
    Scenario {
        name: "panic",
        about: "a system whose kernel panics in probation, at every start",
        is_on: everywhere,
        play: |kept| every_start_fails(kept, PANICS, false),
        end: every_try_was_used,
    },
    Scenario {
        name: "hang",
        about: "a system that hangs in probation, at every start in another way, with a hardware watchdog",
        is_on: everywhere,
        play: |kept| every_start_fails(kept, HANGS, true),
        end: every_try_was_used,
    },
    damaged::RANDOM,
    damaged::TORN,
    damaged::ROTTEN,
    damaged::ZEROED_ARMED,
    damaged::BOTH_NAMES,
    cut_off::FILES,
    cut_off::BEFORE,
    cut_off::TORN,
    cut_off::DURING,
    cut_off::AFTER,
    cut_off::EFI_TORN,
    cut_off::EFI_BETWEEN,
    damaged::ZEROED,
    damaged::ZEROED_WITH_FALLBACK,
    damaged::EFI_RANDOM,
    damaged::EFI_MARK,
    damaged::NOTHING_LEFT,
];

fn every_try_was_used(loader: Loader) -> End {
    End { ending: "not-proven", explained: &[NOT_PROVEN, "deny-list"], ..BACK }.after(factory::tries(loader) + 1)
}

fn committed(kept: &mut Kept) -> Result<String> {
    let recorded = kept.recorded()?;
    kept.put(&recorded.after)?;
    kept.stage.machine.start()?;
    kept.is_committed()?;
    kept.is_resting = true;
    Ok(String::new())
}

/// Begins on a device that is up and good, and ends with one.
fn resting(kept: &mut Kept, play: impl FnOnce(&mut Kept) -> Result<()>) -> Result<String> {
    kept.rest()?;
    play(kept)?;
    Ok(String::new())
}

/// The loader is armed for v5, which is given this fault; then every start is one that fails, until the loader falls back.
fn every_start_fails(kept: &mut Kept, fault: &str, with_watchdog: bool) -> Result<String> {
    let armed = kept.armed()?;
    if with_watchdog {
        kept.put_with_watchdog(&armed)?;
    } else {
        kept.put(&armed)?;
    }
    lay_fault(&kept.stage.machine.disk(), fault)?;
    let tries = factory::tries(kept.loader);
    for start in 1..=tries {
        kept.stage.machine.start()?;
        kept.stage.machine.wait_ready(PATIENCE).with_context(|| format!("start {start}"))?;
        kept.stage.machine.wait_for_stop(PATIENCE).with_context(|| format!("start {start}"))?;
        kept.stage.say("device", format!("came up and was reset, start {start}"), "");
    }
    kept.stage.machine.start()?;
    kept.stage.machine.wait_ready(PATIENCE)?;
    let counted = kept.stage.machine.succeed("cat /data/fault-5.0.0.starts")?;
    ensure!(counted.trim() == tries.to_string(), "it was started {counted} times");
    Ok(String::new())
}
