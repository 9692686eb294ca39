//! The loader's settings are damaged while the device is off, or behind the agent's back; at rest, or while the loader is
//! armed for v5 in group a.

use std::time::Duration;

use anyhow::{Result, ensure};
use bascule_core::Group;
use bascule_image::disk::Loader;

use super::{BACK, End, Scenario, but_efi, only_efi, only_systemd_boot, with_fallback};
use crate::factory;
use crate::matrix::kept::Kept;
use crate::matrix::settings::{Damage, damage};
use crate::scenes::guest::PATIENCE;

const REPAIRED: &str = "the boot settings were damaged and are made anew";
const LOST: &str = "the boot settings were damaged and the loader fell back";
/// How long nothing may start before a person is called.
const SILENCE: Duration = Duration::from_secs(45);
/// The vendor of the variables of the specification.
const GLOBAL: &str = "8be4df61-93ca-11d2-aa0d-00e098032b8c";
/// The agent's own mark.
const MARK: &str = "BasculeTrial-6f1d3b52-9c0e-4d57-8a44-2be1c37f90a6";

pub(super) const RANDOM: Scenario = Scenario {
    name: "random-armed",
    about: "the settings are random bytes while the loader is armed",
    is_on: but_efi,
    play: |kept| while_armed(kept, Damage::Random),
    end: |_| End { ending: "settings-lost", explained: &[LOST, REPAIRED], ..BACK }.after(1),
};
pub(super) const TORN: Scenario = Scenario {
    name: "torn-armed",
    about: "the settings are torn while the loader is armed",
    is_on: but_efi,
    play: |kept| while_armed(kept, Damage::Torn),
    end: |loader| match loader {
        // The other copy is whole and says the same.
        Loader::Uboot => End::of("a", "5.0.0", "committed").after(1),
        _ => End { ending: "settings-lost", explained: &[LOST, REPAIRED], ..BACK }.after(1),
    },
};
pub(super) const ROTTEN: Scenario = Scenario {
    name: "rotten-armed",
    about: "the newer copy has rotted while the loader is armed: the older one is one act behind",
    is_on: |loader| loader == Loader::Uboot,
    play: |kept| while_armed(kept, Damage::Rotten),
    end: |_| End { ending: "gave-up-unrecorded", ..BACK }.after(1),
};
pub(super) const ZEROED_ARMED: Scenario = Scenario {
    name: "zeroed-armed",
    about: "the settings are zeroes while the loader is armed",
    is_on: but_efi,
    play: |kept| while_armed(kept, Damage::Zeroed),
    // Under systemd-boot too, whose names are whole: an entry without a kernel is damage.
    end: |_| End { ending: "settings-lost", explained: &[LOST, REPAIRED], ..BACK }.after(1),
};
pub(super) const BOTH_NAMES: Scenario = Scenario {
    name: "both-names",
    about: "the loader's own rename was cut off: the entry that is tried has both names",
    is_on: only_systemd_boot,
    play: |kept| while_armed(kept, Damage::BothNames),
    end: |_| End::of("a", "5.0.0", "committed").explained(&[REPAIRED]).after(1),
};
pub(super) const ZEROED: Scenario = Scenario {
    name: "zeroed",
    about: "the settings are zeroes at rest",
    is_on: with_fallback,
    play: |kept| at_rest(kept, Damage::Zeroed),
    end: |_| End { ending: "committed", explained: &[REPAIRED], ..BACK }.after(1),
};
pub(super) const ZEROED_WITH_FALLBACK: Scenario = Scenario {
    name: "zeroed-both",
    about: "the settings are zeroes at rest, and the file that names a complete group is too",
    is_on: with_fallback,
    play: |kept| at_rest(kept, Damage::ZeroedWithFallback),
    end: |_| End::of("a", "1.0.0", "committed").explained(&[REPAIRED]).after(1),
};
pub(super) const EFI_RANDOM: Scenario = Scenario {
    name: "random",
    about: "BootNext and the mark are random, BootOrder has numbers that are no entries",
    is_on: only_efi,
    play: |kept| {
        let next = variable("BootNext", GLOBAL, r"\x37\x13");
        let order = variable("BootOrder", GLOBAL, r"\x34\x12\x5b\xba\x99\x77\x5a\xba");
        let mark = format!("printf '\\x07\\x00\\x00\\x00\\x93\\x00\\xff\\x41' > /sys/firmware/efi/efivars/{MARK}");
        with_variables(kept, &[next, order, unlocked(&mark)])
    },
    end: |_| End { ending: "committed", ..BACK }.after(1),
};
pub(super) const EFI_MARK: Scenario = Scenario {
    name: "torn",
    about: "the mark says that group a was armed, BootNext is not there, and BootOrder does not name it",
    is_on: only_efi,
    play: |kept| {
        let order = variable("BootOrder", GLOBAL, r"\x5b\xba");
        let mark = format!("printf '\\x07\\x00\\x00\\x00armed a' > /sys/firmware/efi/efivars/{MARK}");
        with_variables(kept, &[order, unlocked(&mark)])
    },
    end: |_| End { ending: "committed", ..BACK }.after(1),
};
pub(super) const NOTHING_LEFT: Scenario = Scenario {
    name: "nothing-left",
    about: "no entry of ours is left at all: a person has to make them anew",
    is_on: |loader| matches!(loader, Loader::SystemdBoot | Loader::Efi),
    play: nothing_left,
    end: |loader| match loader {
        Loader::Efi => End { ending: "committed", ..BACK },
        _ => End { is_up: false, ..BACK },
    },
};

fn while_armed(kept: &mut Kept, what: Damage) -> Result<String> {
    let armed = kept.armed()?;
    kept.put(&armed)?;
    damage(&kept.stage.machine.disk(), kept.loader, what)?;
    starts(kept)
}

fn at_rest(kept: &mut Kept, what: Damage) -> Result<String> {
    let committed = kept.committed()?;
    kept.put(&committed)?;
    damage(&kept.stage.machine.disk(), kept.loader, what)?;
    starts(kept)
}

fn starts(kept: &mut Kept) -> Result<String> {
    kept.stage.machine.start()?;
    kept.stage.machine.wait_ready(PATIENCE)?;
    let status = kept.stage.status()?;
    let details = crate::scenes::guest::text_at(&status, "/details");
    kept.stage.say("agent", "came up".into(), &details);
    Ok(String::new())
}

/// Changes variables of the firmware from inside the device that runs v2, and restarts it.
fn with_variables(kept: &mut Kept, commands: &[String]) -> Result<String> {
    let committed = kept.committed()?;
    kept.put(&committed)?;
    kept.stage.machine.start()?;
    kept.stage.machine.wait_ready(PATIENCE)?;
    kept.stage.status()?;
    kept.stage.machine.succeed("systemctl stop basculed.service")?;
    for command in commands {
        kept.stage.machine.succeed(command)?;
    }
    kept.stage.machine.begin("systemctl reboot")?;
    kept.stage.machine.wait_for_stop(PATIENCE)?;
    kept.begin();
    starts(kept)
}

fn variable(name: &str, vendor: &str, data: &str) -> String {
    format!("printf '\\x07\\x00\\x00\\x00{data}' > /sys/firmware/efi/efivars/{name}-{vendor}")
}

/// The kernel protects variables that it does not know.
fn unlocked(command: &str) -> String {
    format!("chattr -i /sys/firmware/efi/efivars/{MARK} 2>/dev/null; {command}")
}

/// Nothing comes up until a person helps; with the firmware's own variables that is what the factory does.
fn nothing_left(kept: &mut Kept) -> Result<String> {
    let committed = kept.committed()?;
    kept.put(&committed)?;
    match kept.loader {
        Loader::Efi => kept.stage.machine.forget_variables()?,
        loader => damage(&kept.stage.machine.disk(), loader, Damage::NothingLeft)?,
    }
    kept.stage.machine.start()?;
    let woke = kept.stage.machine.wait_ready(SILENCE);
    ensure!(woke.is_err() && !kept.stage.machine.has_stopped()?, "something started: {woke:?}");
    kept.stage.machine.kill()?;
    kept.stage.say("device", "starts nothing".into(), "no entry of ours is left");
    if kept.loader == Loader::Efi {
        factory::make_load_options(&mut kept.stage.machine, Group::B)?;
        starts(kept)?;
        return Ok("nothing started by itself; after the factory's efibootmgr it did".into());
    }
    Ok(String::new())
}
