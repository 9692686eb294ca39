//! What can go wrong with a boot loader's settings.

use std::io;
use std::path::PathBuf;

use bascule_core::{Disposition, Group};

use crate::custom::CustomError;
use crate::efi::EfiError;
use crate::gpt::GptError;
use crate::tryboot::TrybootError;
use crate::uboot::config::ConfigError;

/// Why the boot settings could not be read or changed.
#[derive(Debug, thiserror::Error)]
pub enum BootError {
    /// The directory of the settings is not the loader's: the boot partition is not mounted, or another one is.
    #[error("{} is not the boot loader's directory: it holds no {missing}", .dir.display())]
    NotTheLoaders {
        /// The directory.
        dir: PathBuf,
        /// The file that marks it.
        missing: &'static str,
    },
    /// A settings file could not be read.
    #[error("cannot read the boot settings in {}", .path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// A settings file could not be written or synced.
    #[error("cannot write the boot settings in {}", .path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// What was read back from the device is not what was written.
    #[error("the boot settings in {} read back differently from what was written", .path.display())]
    ReadBack {
        /// The file.
        path: PathBuf,
    },
    /// The settings are damaged and this act needs them whole.
    #[error("the boot settings in {} are damaged: {damage}", .path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with them.
        damage: String,
    },
    /// The settings are damaged, and there is nothing to rebuild them from.
    #[error("the boot settings in {} are damaged and cannot be rebuilt: {damage}", .path.display())]
    BeyondRepair {
        /// The file or directory.
        path: PathBuf,
        /// What is wrong with them.
        damage: String,
    },
    /// Both copies of U-Boot's environment are lost, and what it begins with is not known.
    #[error(
        "the boot settings in {} are damaged ({damage}), and there is no {} with a bootcmd to make them anew from",
        .path.display(),
        .initial.display()
    )]
    NoInitialEnvironment {
        /// The first copy.
        path: PathBuf,
        /// What is wrong with it.
        damage: String,
        /// The file that has to be there.
        initial: PathBuf,
    },
    /// Entries of ours are there of both kinds.
    #[error("{} has boot entries of Bascule in loader/entries and in EFI/Linux", .dir.display())]
    MixedEntries {
        /// The boot partition.
        dir: PathBuf,
    },
    /// A unified kernel image cannot be a group's entry.
    #[error("the unified kernel image of group {group} cannot be taken: {fault}")]
    Image {
        /// The group.
        group: Group,
        /// What is wrong with it.
        fault: String,
    },
    /// Other people's variables leave no room for ours: in GRUB's environment block, all of which must lie in its first 512
    /// bytes, or in U-Boot's environment.
    #[error("the variables of others in {} leave no room for ours", .path.display())]
    NoRoom {
        /// The file.
        path: PathBuf,
    },
    /// The change would leave the loader without a good group to start.
    #[error("cannot {act}: group {group} is not good, and the loader would have nothing to fall back on")]
    NoGoodGroup {
        /// What was asked for.
        act: &'static str,
        /// The group that would have to be good.
        group: Group,
    },
    /// No loader that we know is on this device.
    #[error("no boot loader is found: {looked}")]
    NoLoader {
        /// What was looked at.
        looked: String,
    },
    /// More than one loader could be the one that starts this device.
    #[error("{found} are both on this device, and which one starts it cannot be seen")]
    SeveralLoaders {
        /// Their names.
        found: String,
    },
    /// Where U-Boot's environment lies is not said as it must be.
    #[error("cannot use U-Boot's environment")]
    Environment(#[from] ConfigError),
    /// The firmware's variables cannot be used as they are.
    #[error(transparent)]
    Efi(#[from] EfiError),
    /// The partition table cannot keep the choice as it is.
    #[error(transparent)]
    Gpt(#[from] GptError),
    /// The firmware's file cannot keep the choice as it is.
    #[error(transparent)]
    Tryboot(#[from] TrybootError),
    /// An integrator's program did not do what it was asked for.
    #[error(transparent)]
    Custom(#[from] CustomError),
}

impl BootError {
    /// Stable code of `docs/errors.md`.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            BootError::NotTheLoaders { .. } => "boot.not-the-loaders",
            BootError::Read { .. } => "boot.read",
            BootError::Write { .. } => "boot.write",
            BootError::ReadBack { .. } => "boot.read-back",
            BootError::Damaged { .. } => "boot.damaged",
            BootError::BeyondRepair { .. } => "boot.beyond-repair",
            BootError::NoInitialEnvironment { .. } => "boot.no-initial-env",
            BootError::MixedEntries { .. } => "boot.mixed-entries",
            BootError::Image { .. } => "boot.image",
            BootError::NoRoom { .. } => "boot.no-room",
            BootError::NoGoodGroup { .. } => "boot.no-good-group",
            BootError::NoLoader { .. } => "boot.no-loader",
            BootError::SeveralLoaders { .. } => "boot.several-loaders",
            BootError::Environment(error) => error.code(),
            BootError::Efi(error) => error.code(),
            BootError::Gpt(error) => error.code(),
            BootError::Tryboot(error) => error.code(),
            BootError::Custom(error) => error.code(),
        }
    }

    /// What a person can do about it.
    #[must_use]
    pub fn hint(&self) -> String {
        match self {
            BootError::NotTheLoaders { dir, .. } => {
                format!("mount the boot partition that holds {} (see `findmnt` and fstab)", dir.display())
            }
            BootError::Read { .. } => "check that the boot partition is mounted and its medium healthy".into(),
            BootError::Write { .. } => "check that the boot partition is mounted read-write and has free space".into(),
            BootError::ReadBack { .. } => "the medium of the boot partition loses writes: replace it".into(),
            BootError::Damaged { .. } => "the daemon rebuilds them by itself at its next look".into(),
            BootError::BeyondRepair { .. } => {
                "put it right by hand: docs/loaders.md says what has to be there, and nothing was changed".into()
            }
            BootError::NoInitialEnvironment { initial, .. } => {
                format!(
                    "put the environment that this U-Boot was built with there as {} (its build makes the file): the daemon \
                     then makes the settings anew by itself",
                    initial.display()
                )
            }
            BootError::MixedEntries { .. } => {
                "a device has its entries in one of the two: remove those in the other one, after a look at what started".into()
            }
            BootError::Image { .. } => {
                "make the image as docs/loaders.md says under \"Unified kernel images\"; nothing was changed".into()
            }
            BootError::NoRoom { path } => {
                let path = path.display();
                format!(
                    "remove variables of others that nobody needs: with `grub-editenv {path} unset NAME` where GRUB reads it, with \
                     `fw_setenv NAME` where U-Boot does"
                )
            }
            BootError::NoGoodGroup { group, .. } => {
                format!("make group {group} good first: `bascule commit` does when it is the booted one")
            }
            BootError::NoLoader { .. } => "mount the boot partition, or name the loader: `backend` under [boot]".into(),
            BootError::SeveralLoaders { .. } => "name the loader: `backend` under [boot]".into(),
            BootError::Environment(error) => error.hint(),
            BootError::Efi(error) => error.hint(),
            BootError::Gpt(error) => error.hint(),
            BootError::Tryboot(error) => error.hint(),
            BootError::Custom(error) => error.hint(),
        }
    }

    /// What is to be done about it.
    #[must_use]
    pub fn disposition(&self) -> Disposition {
        match self {
            BootError::NotTheLoaders { .. }
            | BootError::NoLoader { .. }
            | BootError::Read { .. }
            | BootError::Write { .. }
            | BootError::Damaged { .. } => Disposition::Retry,
            BootError::SeveralLoaders { .. } | BootError::MixedEntries { .. } => Disposition::Person,
            BootError::Image { .. } => Disposition::GiveUp,
            BootError::Environment(error) => error.disposition(),
            BootError::ReadBack { .. }
            | BootError::BeyondRepair { .. }
            | BootError::NoInitialEnvironment { .. }
            | BootError::NoRoom { .. }
            | BootError::NoGoodGroup { .. } => Disposition::Person,
            BootError::Efi(error) => error.disposition(),
            BootError::Gpt(error) => error.disposition(),
            BootError::Tryboot(error) => error.disposition(),
            BootError::Custom(error) => error.disposition(),
        }
    }
}
