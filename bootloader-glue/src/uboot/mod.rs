//! The U-Boot backend: variables in U-Boot's redundant environment, obeyed by the script we ship.
//!
//! ```text
//! both copies of the environment (where fw_env.config says)
//!   bascule_order=a b | b a, bascule_a and bascule_b = good | bad | 9..0
//! <boot directory>/boot.scr             the script (bootloader-glue/uboot/boot.cmd, packed by mkimage)
//! <boot directory>/bascule-fallback     512 bytes, an environment of the single form:
//!   bascule_fallback=a | b              a group that is complete, for the time neither copy can be obeyed
//!   bascule_refused=a | b               a group that is being written: not started whatever a copy says
//! <boot directory>/u-boot-initial-env   what an environment begins with when both copies are lost; ours is to read it
//! ```
//! As with GRUB there is one variable per group: `good` starts uncounted, a digit is the tries that are left of a trial,
//! `0` an exhausted trial, anything else is unbootable. The count is ours (U-Boot's own `bootcount` is not used): the
//! script counts down and saves before it loads a kernel, and starts no trial that it could not save. U-Boot does not notice
//! that a disk refused a write where its environment is a file, so the script reads `uboot.env` and `uboot-redund.env` back
//! where they lie beside it. A quote or a backslash in a value, which nobody writes, is taken away by U-Boot's shell.
//!
//! Each act is one write of one copy, the older one, with the flag of the newer one plus one: a power cut leaves the
//! newer copy as it is and a torn one with a wrong checksum, and U-Boot goes by the newer copy. When that one rots later,
//! U-Boot goes by the older one, which is one act behind. That is why `bascule-fallback` names the group that is being written.
//!
//! An environment of our variables alone has no `bootcmd` and starts nothing. So lost settings are rebuilt from the
//! variables of a copy that is whole, else from `u-boot-initial-env`, and without either not at all: U-Boot then runs on
//! its built-in environment, and the script on the fallback. That built-in environment must have no variable of ours.

pub mod config;
pub mod env;
mod settings;
pub mod simulator;
mod store;

use std::fs;
use std::io::Read as _;
use std::path::PathBuf;

use bascule_core::{BootStatus, BootView, BootedGroup, Group, Settings, TargetGroup, Tries, Warning};

use crate::script::{self, order};
use crate::{BootBackend, BootError};

use config::{ConfigError, Copies, EnvConfig, Place};
use env::{Damage, Variables};
pub use settings::FALLBACK_LEN;
use settings::{Fallback, GroupSettings, variable};
use store::Missing;

/// The script we ship, before `mkimage -A arm64 -T script -C none -d boot.cmd boot.scr`.
pub const SCRIPT: &str = include_str!("../../uboot/boot.cmd");

/// The file of the fallback, beside the script.
pub const FALLBACK: &str = "bascule-fallback";

/// What an environment begins with, beside the script.
const INITIAL: &str = "u-boot-initial-env";

/// The most bytes a `u-boot-initial-env` can sensibly have.
const INITIAL_LIMIT: u64 = env::MAX_SIZE as u64;

/// Keeps the choice of group in U-Boot's environment.
#[derive(Debug, Clone)]
pub struct UbootBackend {
    places: [Place; 2],
    size: usize,
    dir: PathBuf,
}

/// One copy whose checksum fits.
struct Copy {
    flag: u8,
    bytes: Vec<u8>,
    /// Its variables, unless U-Boot refuses them.
    variables: Result<Variables, Damage>,
}

/// What lies on the disk.
struct Stored {
    copies: [Option<Copy>; 2],
    /// The copy U-Boot takes.
    newer: Option<usize>,
    fallback: Fallback,
    /// What the copy that U-Boot takes says about the groups.
    settings: Result<GroupSettings, Damage>,
}

impl UbootBackend {
    /// A backend for the environment that `fw_env.config` describes, and the directory of the boot partition that holds
    /// `boot.scr`, `bascule-fallback` and `u-boot-initial-env`.
    ///
    /// # Errors
    /// [`ConfigError::NotRedundant`] when there is one copy only.
    pub fn new(config: EnvConfig, boot_dir: PathBuf) -> Result<Self, ConfigError> {
        match config.copies {
            Copies::Redundant(places) => Ok(UbootBackend { places, size: config.size, dir: boot_dir }),
            Copies::Single(_) => Err(ConfigError::NotRedundant),
        }
    }

    fn stored(&self) -> Result<Stored, BootError> {
        script::must_lie_in(&self.dir, "boot.scr")?;
        let [first, second] = &self.places;
        let copies = [self.copy(first)?, self.copy(second)?];
        let fallback = self.fallback()?;
        let newer = env::newer(copies.each_ref().map(|copy| copy.as_ref().map(|copy| copy.flag)));
        let taken = newer.and_then(|newer| copies.get(newer)?.as_ref()).ok_or(Damage::Checksum);
        let variables = taken.and_then(|copy| copy.variables.as_ref().map_err(|damage| *damage));
        let settings = variables.and_then(|variables| GroupSettings::of(variables, fallback.refused));
        Ok(Stored { copies, newer, fallback, settings })
    }

    fn copy(&self, place: &Place) -> Result<Option<Copy>, BootError> {
        let bytes = store::read(place, self.size, self.missing(place))?.filter(|bytes| bytes.len() == self.size);
        let Some(bytes) = bytes else { return Ok(None) };
        let read = env::redundant(&bytes).map(|(flag, data)| (flag, Variables::parse(data)));
        Ok(read.map(|(flag, variables)| Copy { flag, bytes, variables }))
    }

    /// A copy may be made anew only where the loader's directory was just seen to be.
    fn missing(&self, place: &Place) -> Missing {
        if place.path.parent() == Some(&self.dir) { Missing::Make } else { Missing::Refuse }
    }

    fn fallback_place(&self) -> Place {
        Place { path: self.dir.join(FALLBACK), offset: 0 }
    }

    fn fallback(&self) -> Result<Fallback, BootError> {
        let bytes = store::read(&self.fallback_place(), FALLBACK_LEN + 1, Missing::Make)?;
        Ok(bytes.map_or_else(Fallback::default, |bytes| Fallback::read(&bytes)))
    }

    fn put_fallback(&self, group: Group, refused: Option<Group>) -> Result<(), BootError> {
        let place = self.fallback_place();
        let bytes = Fallback { group: Some(group), refused }.to_bytes();
        let bytes = bytes.ok_or_else(|| BootError::NoRoom { path: place.path.clone() })?;
        store::shorten(&place.path, FALLBACK_LEN)?;
        store::put(&place, &bytes, Missing::Make)
    }

    /// The commit point: the older copy becomes the newer one.
    fn put(&self, stored: &Stored, variables: &Variables) -> Result<(), BootError> {
        let [first, second] = &self.places;
        let (taken, older) = if stored.newer == Some(1) { (second, first) } else { (first, second) };
        let newer = stored.newer_copy();
        if let Some(copy) = newer.filter(|copy| copy.variables.as_ref() == Ok(variables)) {
            return store::confirm(taken, &copy.bytes);
        }
        let flag = newer.map_or(0, |copy| copy.flag).wrapping_add(1);
        let older = if newer.is_some() { older } else { first };
        let bytes = variables.to_redundant(flag, self.size);
        let bytes = bytes.ok_or_else(|| BootError::NoRoom { path: older.path.clone() })?;
        store::put(older, &bytes, self.missing(older))
    }

    fn damaged(&self, damage: String) -> BootError {
        let [first, _] = &self.places;
        BootError::Damaged { path: first.path.clone(), damage }
    }

    /// New settings in which `good` is good and primary, and the opposite group unbootable.
    fn rebuilt(&self, stored: &Stored, damage: Damage, good: Group) -> Result<Variables, BootError> {
        let whole = stored.newer_copy().into_iter().chain(stored.copies.iter().flatten());
        let kept = whole.filter_map(|copy| copy.variables.as_ref().ok()).find(|variables| !variables.is_empty());
        let mut variables = match kept {
            Some(variables) => variables.clone(),
            // Stopping here is safe: nothing was written, and U-Boot starts from its built-in environment as before.
            None => {
                let [first, _] = &self.places;
                let missing = || BootError::NoInitialEnvironment {
                    path: first.path.clone(),
                    damage: damage.to_string(),
                    initial: self.dir.join(INITIAL),
                };
                self.initial()?.ok_or_else(missing)?
            }
        };
        variables.set("bascule_order", order(good));
        variables.set(variable(good), "good");
        variables.set(variable(good.opposite()), "bad");
        Ok(variables)
    }

    fn initial(&self) -> Result<Option<Variables>, BootError> {
        let path = self.dir.join(INITIAL);
        let mut text = Vec::new();
        let read = fs::File::open(&path).and_then(|file| file.take(INITIAL_LIMIT).read_to_end(&mut text));
        match read {
            // Without a command to start with, what is saved would start nothing at all.
            Ok(_) => Ok(Variables::of_text(&text).filter(|variables| variables.get("bootcmd").is_some())),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(BootError::Read { path, source }),
        }
    }
}

impl Stored {
    fn newer_copy(&self) -> Option<&Copy> {
        self.newer.and_then(|newer| self.copies.get(newer)?.as_ref())
    }

    /// The variables that the loader obeys, and what they mean.
    fn intact(&self) -> Result<(Variables, GroupSettings), Damage> {
        let settings = self.settings?;
        let variables = self.newer_copy().and_then(|copy| copy.variables.clone().ok());
        variables.map(|variables| (variables, settings)).ok_or(Damage::Checksum)
    }
}

impl BootBackend for UbootBackend {
    fn name(&self) -> &'static str {
        "uboot"
    }

    fn view(&self, _booted: BootedGroup) -> Result<BootView, BootError> {
        let stored = self.stored()?;
        let (settings, read) = match stored.settings {
            Ok(read) => (Settings::Intact, read),
            Err(_) => (Settings::Damaged, GroupSettings::only(stored.fallback.group.unwrap_or(Group::A))),
        };
        let [a, b] = read.statuses;
        Ok(BootView { settings, primary: read.primary(), a, b })
    }

    fn damaged_copy(&self) -> Result<Option<Warning>, BootError> {
        let stored = self.stored()?;
        let is_damaged = |copy: &Option<Copy>| copy.as_ref().is_none_or(|copy| copy.variables.is_err());
        let damaged = stored.copies.iter().zip(&self.places).find(|(copy, _)| is_damaged(copy));
        Ok(damaged.filter(|_| stored.settings.is_ok()).map(|(_, place)| {
            let Place { path, offset } = place;
            let reason =
                format!("one of the two copies of U-Boot's environment is damaged, in {} at {offset}", path.display());
            let hint = "the next change of the settings writes it anew; look at the medium if it happens again";
            Warning::new("boot.env-copy-damaged", reason, hint)
        }))
    }

    fn mark_unbootable(&self, target: TargetGroup) -> Result<(), BootError> {
        let (target, booted) = (target.group(), target.group().opposite());
        let stored = self.stored()?;
        let variables = match stored.intact() {
            Ok((_, read)) if read.status(booted) != BootStatus::Good => {
                // Stopping here is safe: nothing was written.
                return Err(BootError::NoGoodGroup { act: "give the target group up", group: booted });
            }
            Ok((mut variables, _)) => {
                variables.set("bascule_order", order(booted));
                variables.set(variable(target), "bad");
                variables
            }
            Err(damage) => self.rebuilt(&stored, damage, booted)?,
        };
        // The fallback first: from the commit point on the target may be written, and the older copy may call it good.
        self.put_fallback(booted, Some(target))?;
        self.put(&stored, &variables)
    }

    fn activate(&self, target: TargetGroup, tries: Tries) -> Result<(), BootError> {
        let (target, booted) = (target.group(), target.group().opposite());
        let stored = self.stored()?;
        let (mut variables, read) = stored.intact().map_err(|damage| self.damaged(damage.to_string()))?;
        if read.status(booted) != BootStatus::Good {
            // Stopping here is safe: nothing was written.
            return Err(BootError::NoGoodGroup { act: "activate the target group", group: booted });
        }
        variables.set("bascule_order", order(target));
        variables.set(variable(target), &tries.get().to_string());
        // The fallback first: the target is complete, and until the commit point the settings themselves refuse it.
        self.put_fallback(booted, None)?;
        self.put(&stored, &variables)
    }

    fn mark_good(&self, booted: BootedGroup) -> Result<(), BootError> {
        let booted = booted.group();
        let stored = self.stored()?;
        let variables = match stored.intact() {
            Ok((mut variables, _)) => {
                variables.set("bascule_order", order(booted));
                variables.set(variable(booted), "good");
                variables
            }
            Err(damage) => self.rebuilt(&stored, damage, booted)?,
        };
        // The settings first: they are the verdict. A target that is being written stays refused.
        self.put(&stored, &variables)?;
        self.put_fallback(booted, stored.fallback.refused.filter(|refused| *refused != booted))
    }

    fn roll_back(&self, booted: BootedGroup) -> Result<(), BootError> {
        let (booted, opposite) = (booted.group(), booted.group().opposite());
        let refused = BootError::NoGoodGroup { act: "go back to the opposite group", group: opposite };
        let stored = self.stored()?;
        // Stopping here is safe: nothing was written.
        let variables = match stored.intact() {
            Ok((_, read)) if read.status(opposite) != BootStatus::Good => return Err(refused),
            Ok((mut variables, _)) => {
                variables.set("bascule_order", order(opposite));
                variables.set(variable(booted), "bad");
                variables
            }
            Err(_) if stored.fallback.group != Some(opposite) => return Err(refused),
            Err(damage) => self.rebuilt(&stored, damage, opposite)?,
        };
        // The settings first: they are the verdict, and the fallback names a complete group whichever it is.
        self.put(&stored, &variables)?;
        self.put_fallback(opposite, None)
    }
}
