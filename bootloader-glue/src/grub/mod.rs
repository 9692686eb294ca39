//! The GRUB backend: two environment blocks on the EFI system partition, obeyed by the script we ship.
//!
//! ```text
//! <esp>/bascule/grub.cfg    the script (bootloader-glue/grub/grub.cfg)
//! <esp>/bascule/grubenv     order=a b | b a, group_a and group_b = good | bad | 9..0
//! <esp>/bascule/fallback    fallback=a | b: a group that is complete, for the time grubenv cannot be read
//! ```
//! One variable per group, so that no two have to agree: `good` starts uncounted, a digit is the tries that are left
//! of a trial, `0` an exhausted trial, anything else is unbootable. `docs/boot.md` has every byte and every order.

pub mod env;
mod settings;
pub mod simulator;
mod store;

use std::path::PathBuf;

use bascule_core::{BootStatus, BootView, BootedGroup, Group, Settings, TargetGroup, Tries};

use crate::script::{self, order};
use crate::{BootBackend, BootError};

use env::{Block, Damage};
use settings::{GroupSettings, fallback_group, variable};

/// The script we ship; `bascule-image disk create` puts it on the EFI system partition.
pub const SCRIPT: &str = include_str!("../../grub/grub.cfg");

/// The settings of a new device: group `a` is good, group `b` empty.
pub const FACTORY_GRUBENV: &[u8] = include_bytes!("../../grub/grubenv");

/// The fallback of a new device: group `a`.
pub const FACTORY_FALLBACK: &[u8] = include_bytes!("../../grub/fallback");

/// Keeps the choice of group in GRUB environment blocks.
#[derive(Debug, Clone)]
pub struct GrubBackend {
    dir: PathBuf,
}

/// What the file `grubenv` holds.
enum Stored {
    /// A block of our form.
    Intact(Block, GroupSettings),
    /// Anything else, and what GRUB makes of it all the same.
    Damaged(Damage, Option<GroupSettings>),
}

impl GrubBackend {
    /// A backend for the directory that holds `grub.cfg`, `grubenv` and `fallback`, such as `/boot/efi/bascule`.
    #[must_use]
    pub fn new(esp_dir: PathBuf) -> Self {
        GrubBackend { dir: esp_dir }
    }

    fn grubenv(&self) -> PathBuf {
        self.dir.join("grubenv")
    }

    fn fallback(&self) -> PathBuf {
        self.dir.join("fallback")
    }

    fn stored(&self) -> Result<Stored, BootError> {
        script::must_lie_in(&self.dir, "grub.cfg")?;
        let Some(bytes) = store::read(&self.grubenv())? else { return Ok(Stored::Damaged(Damage::Missing, None)) };
        let intact = Block::parse(&bytes).and_then(|block| GroupSettings::of_block(&block).map(|read| (block, read)));
        Ok(match intact {
            Ok((block, settings)) => Stored::Intact(block, settings),
            Err(damage) => Stored::Damaged(damage, GroupSettings::read_as_grub(&bytes)),
        })
    }

    fn stored_fallback(&self) -> Result<Option<Group>, BootError> {
        Ok(store::read(&self.fallback())?.as_deref().and_then(fallback_group))
    }

    /// The commit point.
    fn put_grubenv(&self, block: &Block) -> Result<(), BootError> {
        let bytes = block.to_bytes().ok_or_else(|| BootError::NoRoom { path: self.grubenv() })?;
        store::put(&self.grubenv(), &bytes)
    }

    fn put_fallback(&self, group: Group) -> Result<(), BootError> {
        let block = Block::of(&[("fallback", group.letter())]);
        let bytes = block.to_bytes().ok_or_else(|| BootError::NoRoom { path: self.fallback() })?;
        store::put(&self.fallback(), &bytes)
    }
}

impl BootBackend for GrubBackend {
    fn name(&self) -> &'static str {
        "grub"
    }

    fn view(&self, _booted: BootedGroup) -> Result<BootView, BootError> {
        let (settings, read) = match self.stored()? {
            Stored::Intact(_, read) => (Settings::Intact, read),
            Stored::Damaged(_, Some(read)) => (Settings::Damaged, read),
            Stored::Damaged(_, None) => (Settings::Damaged, only(self.stored_fallback()?.unwrap_or(Group::A))),
        };
        let [a, b] = read.statuses;
        Ok(BootView { settings, primary: read.primary(), a, b })
    }

    fn mark_unbootable(&self, target: TargetGroup) -> Result<(), BootError> {
        let (target, booted) = (target.group(), target.group().opposite());
        let block = match self.stored()? {
            Stored::Intact(_, read) if read.status(booted) != BootStatus::Good => {
                // Stopping here is safe: nothing was written.
                return Err(BootError::NoGoodGroup { act: "give the target group up", group: booted });
            }
            Stored::Intact(mut block, _) => {
                block.set("order", order(booted));
                block.set(variable(target), "bad");
                block
            }
            Stored::Damaged(..) => rebuilt(booted),
        };
        // The fallback first: from the commit point on the target may be written, and must not be what it names.
        self.put_fallback(booted)?;
        self.put_grubenv(&block)
    }

    fn activate(&self, target: TargetGroup, tries: Tries) -> Result<(), BootError> {
        let (target, booted) = (target.group(), target.group().opposite());
        let mut block = match self.stored()? {
            Stored::Intact(block, read) if read.status(booted) == BootStatus::Good => block,
            // Stopping here is safe: nothing was written.
            Stored::Intact(..) => {
                return Err(BootError::NoGoodGroup { act: "activate the target group", group: booted });
            }
            Stored::Damaged(damage, _) => {
                return Err(BootError::Damaged { path: self.grubenv(), damage: damage.to_string() });
            }
        };
        block.set("order", order(target));
        block.set(variable(target), &tries.get().to_string());
        // The fallback first: should the settings be lost during the trial, the booted group is the one known to be good.
        self.put_fallback(booted)?;
        self.put_grubenv(&block)
    }

    fn mark_good(&self, booted: BootedGroup) -> Result<(), BootError> {
        let booted = booted.group();
        let block = match self.stored()? {
            Stored::Intact(mut block, _) => {
                block.set("order", order(booted));
                block.set(variable(booted), "good");
                block
            }
            Stored::Damaged(..) => rebuilt(booted),
        };
        // The settings first: they are the verdict, and until the next preparation both groups the fallback may name
        // are complete.
        self.put_grubenv(&block)?;
        self.put_fallback(booted)
    }

    fn roll_back(&self, booted: BootedGroup) -> Result<(), BootError> {
        let (booted, opposite) = (booted.group(), booted.group().opposite());
        let refused = BootError::NoGoodGroup { act: "go back to the opposite group", group: opposite };
        // Stopping here is safe: nothing was written.
        let block = match self.stored()? {
            Stored::Intact(_, read) if read.status(opposite) != BootStatus::Good => return Err(refused),
            Stored::Intact(mut block, _) => {
                block.set("order", order(opposite));
                block.set(variable(booted), "bad");
                block
            }
            Stored::Damaged(..) if self.stored_fallback()? != Some(opposite) => return Err(refused),
            Stored::Damaged(..) => rebuilt(opposite),
        };
        // The settings first: they are the verdict, and the fallback names a complete group whichever it is.
        self.put_grubenv(&block)?;
        self.put_fallback(opposite)
    }
}

/// Settings in which only `group` may be started.
fn only(group: Group) -> GroupSettings {
    let status = |of: Group| if of == group { BootStatus::Good } else { BootStatus::Unbootable };
    GroupSettings { first: group, statuses: [status(Group::A), status(Group::B)] }
}

/// A whole new block: `good` is good and primary, the opposite group unbootable.
fn rebuilt(good: Group) -> Block {
    let word = |group: Group| if group == good { "good" } else { "bad" };
    Block::of(&[("order", order(good)), ("group_a", word(Group::A)), ("group_b", word(Group::B))])
}
