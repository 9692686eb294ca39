//! `release.toml`: what a root says it is, on the host before it is bundled and on the device where it runs.

use std::path::{Path, PathBuf};

use bascule_core::Requires;
use serde::{Deserialize, Serialize};

/// What `/usr/lib/bascule/release.toml` says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Release {
    /// The product's name.
    pub product: String,
    /// The version as people write it.
    pub version: String,
    /// The version as machines compare it.
    pub order: u64,
    /// Names of the hardware it runs on.
    pub compatible: Vec<String>,
    /// Anti-rollback epoch.
    #[serde(default)]
    pub security_epoch: u64,
    /// What must hold before it may be installed.
    #[serde(default)]
    pub requires: Requires,
}

impl Release {
    /// Reads the file at `path`.
    ///
    /// # Errors
    /// When it cannot be read or has a fault, then with line and column.
    pub fn read(path: &Path) -> Result<Self, ReleaseError> {
        let text =
            std::fs::read_to_string(path).map_err(|source| ReleaseError::Read { path: path.to_owned(), source })?;
        toml::from_str(&text).map_err(|source| ReleaseError::Parse { path: path.to_owned(), source: Box::new(source) })
    }
}

/// A `release.toml` that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ReleaseError {
    /// It cannot be read.
    #[error("reading {path:?} failed")]
    Read {
        /// Which file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// It has a fault.
    #[error("{path:?} is not a valid release.toml")]
    Parse {
        /// Which file.
        path: PathBuf,
        /// Where and what.
        #[source]
        source: Box<toml::de::Error>,
    },
}
