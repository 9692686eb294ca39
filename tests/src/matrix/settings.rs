//! Damages the loader's settings on the disk of a machine that is off.

use std::path::Path;

use anyhow::{Context, Result, bail};
use bascule_boot::sdboot::names::{EntryName, Kind, Mark, Owner, owner};
use bascule_boot::uboot::env;
use bascule_core::Group;
use bascule_image::disk::Loader;

use super::partition::{Volume, names, open, overwrite, read};

const GRUBENV: &str = "bascule/grubenv";
const GRUB_FALLBACK: &str = "bascule/fallback";
const COPIES: [&str; 2] = ["uboot.env", "uboot-redund.env"];
const UBOOT_FALLBACK: &str = "bascule-fallback";
const ENTRIES: &str = "loader/entries";
/// Where a block of GRUB's is torn: in the middle of `group_b=good`.
const IN_A_VARIABLE: usize = 48;

/// What becomes of the settings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Damage {
    /// Zeroes. systemd-boot: the text of the entry that is to be tried, as FAT leaves a file that was never synced.
    Zeroed,
    /// Zeroes, and the file that says what to start without settings too.
    ZeroedWithFallback,
    /// Random bytes. systemd-boot: in that text, and an entry of a name that is no name of ours.
    Random,
    /// GRUB: cut off within a variable, zeroes up to the next sector. U-Boot: the loader was cut off while it saved the
    /// older copy, whose beginning is new. systemd-boot: the entry that is to be tried has no name any more.
    Torn,
    /// U-Boot: the newer copy has rotted.
    Rotten,
    /// systemd-boot: it has both names, that before the loader's count and that after it.
    BothNames,
    /// systemd-boot: no entry is left at all.
    NothingLeft,
}

/// Damages the settings; the group that is to be tried is `a`.
pub(super) fn damage(disk: &Path, loader: Loader, damage: Damage) -> Result<()> {
    let volume = open(disk)?;
    match loader {
        Loader::Grub | Loader::GrubBios => grub(&volume, damage)?,
        Loader::Uboot => uboot(&volume, damage)?,
        Loader::SystemdBoot => systemd_boot(&volume, damage)?,
        Loader::Efi => bail!("the settings of this loader are not on the disk"),
    }
    volume.unmount().context("cannot write the boot partition")
}

fn grub(volume: &Volume, damage: Damage) -> Result<()> {
    let mut block = read(volume, GRUBENV)?;
    match damage {
        Damage::Zeroed => block.fill(0),
        Damage::ZeroedWithFallback => {
            block.fill(0);
            overwrite(volume, GRUB_FALLBACK, &block)?;
        }
        Damage::Random => block = noise(block.len()),
        Damage::Torn => block.iter_mut().take(512).skip(IN_A_VARIABLE).for_each(|byte| *byte = 0),
        Damage::BothNames | Damage::NothingLeft | Damage::Rotten => bail!("GRUB has no such damage"),
    }
    overwrite(volume, GRUBENV, &block)
}

fn uboot(volume: &Volume, damage: Damage) -> Result<()> {
    let mut copies = [read(volume, COPIES[0])?, read(volume, COPIES[1])?];
    match damage {
        Damage::Zeroed | Damage::ZeroedWithFallback => copies.iter_mut().for_each(|copy| copy.fill(0)),
        Damage::Random => copies.iter_mut().for_each(|copy| *copy = noise(copy.len())),
        Damage::Torn | Damage::Rotten => {
            let flags = copies.each_ref().map(|copy| env::redundant(copy).map(|(flag, _)| flag));
            let newer = env::newer(flags).context("neither copy is whole")?;
            let place = if damage == Damage::Rotten { newer } else { 1 - newer };
            let copy = copies.get_mut(place).context("there are two")?;
            // The variables lie at its beginning; behind them both copies are alike.
            copy.iter_mut().take(256).for_each(|byte| *byte ^= 0x20);
        }
        Damage::BothNames | Damage::NothingLeft => bail!("U-Boot has no such damage"),
    }
    if damage == Damage::ZeroedWithFallback {
        let length = read(volume, UBOOT_FALLBACK)?.len();
        overwrite(volume, UBOOT_FALLBACK, &vec![0; length])?;
    }
    COPIES.iter().zip(&copies).try_for_each(|(name, copy)| overwrite(volume, name, copy))
}

fn systemd_boot(volume: &Volume, damage: Damage) -> Result<()> {
    let folder = volume.root_dir().open_dir(ENTRIES)?;
    let listed = names(volume, ENTRIES)?;
    if damage == Damage::NothingLeft {
        return Ok(listed.iter().try_for_each(|name| folder.remove(name))?);
    }
    let tried = listed.iter().find_map(|name| match owner(name, Kind::Text) {
        Owner::Ours(entry) if entry.group == Group::A && entry.is_listed() => Some((name.clone(), entry)),
        _ => None,
    });
    let (name, entry) = tried.with_context(|| format!("no entry of group a is listed: {listed:?}"))?;
    let path = format!("{ENTRIES}/{name}");
    let text = read(volume, &path)?;
    let create = |name: &str, bytes: &[u8]| -> Result<()> {
        folder.create_file(name)?;
        overwrite(volume, &format!("{ENTRIES}/{name}"), bytes)
    };
    match damage {
        Damage::Zeroed => overwrite(volume, &path, &vec![0; text.len()]),
        Damage::Random => {
            overwrite(volume, &path, &noise(text.len()))?;
            create("bascule-77-a+4711x.conf", &noise(300))
        }
        Damage::Torn => Ok(folder.remove(&name)?),
        Damage::BothNames => {
            let counted = EntryName { mark: Mark::Counted { left: 2, done: 1 }, ..entry };
            create(&counted.file_name(Kind::Text), &text)
        }
        Damage::ZeroedWithFallback | Damage::NothingLeft | Damage::Rotten => bail!("systemd-boot has no such damage"),
    }
}

/// Bytes that look random and are the same in every run.
fn noise(length: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    let byte = |_| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes().get(3).copied().unwrap_or_default()
    };
    (0..length).map(byte).collect()
}
