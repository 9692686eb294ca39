//! `bascule-image keys`.

use std::path::PathBuf;

use bascule_image::keys::{KeyDir, NewKeys};
use clap::{Subcommand, ValueEnum};
use tough::schema::RoleType;

use super::{show, value};

/// The commands about keys.
#[derive(Debug, Subcommand)]
pub(crate) enum Keys {
    /// Make a new set of keys, and the root.json that devices pin.
    Init {
        /// The directory to make them in.
        directory: PathBuf,
        /// How many of the root and targets keys must sign.
        #[arg(long, default_value_t = 1)]
        threshold: u64,
        /// How many root and targets keys to make [default: the threshold].
        #[arg(long)]
        count: Option<u64>,
        /// When the root expires: a span or a date.
        #[arg(long, default_value = "10y", value_parser = value::expiry)]
        expires: value::Expiry,
    },
    /// Replace the keys of one role; devices follow with the next bundle.
    Rotate {
        /// The directory of keys.
        directory: PathBuf,
        /// Whose keys.
        role: Role,
        /// When the new root expires: a span or a date.
        #[arg(long, default_value = "10y", value_parser = value::expiry)]
        expires: value::Expiry,
    },
}

/// A role of The Update Framework.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub(crate) enum Role {
    Root,
    Targets,
    Snapshot,
    Timestamp,
}

impl Keys {
    pub(crate) fn run(self) -> anyhow::Result<()> {
        let now = value::now()?;
        match self {
            Keys::Init { directory, threshold, count, expires } => {
                let new = NewKeys { count: count.unwrap_or(threshold), threshold, expires: expires.from(now)? };
                KeyDir::init(&directory, new)?;
                show::line(format_args!("pin this in devices:   {}", directory.join("root.json").display()));
                show::line(format_args!("keep this secret:      {}", directory.join("private").display()));
            }
            Keys::Rotate { directory, role, expires } => {
                let role = match role {
                    Role::Root => RoleType::Root,
                    Role::Targets => RoleType::Targets,
                    Role::Snapshot => RoleType::Snapshot,
                    Role::Timestamp => RoleType::Timestamp,
                };
                let keys = KeyDir::open(&directory);
                keys.rotate(role, expires.from(now)?)?;
                show::line(format_args!("root version {} replaces the {role} keys", keys.root()?.signed.version));
            }
        }
        Ok(())
    }
}
