//! What a device pins, and what it has accepted so far.

use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use bascule_core::Digest;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tough::schema::{Root, Signed};

use super::error::TrustError;
use crate::limits::MAX_STORE_BYTES;

/// The pinned root and the store of accepted metadata of one device.
#[derive(Debug, Clone)]
pub struct TrustStore {
    pinned: PathBuf,
    store: PathBuf,
    scratch: PathBuf,
}

/// The metadata that was accepted last, as one file so that one rename replaces it whole.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Stored {
    pub(crate) schema: u32,
    pub(crate) root: Value,
    pub(crate) timestamp: Value,
    pub(crate) snapshot: Value,
    pub(crate) targets: Value,
}

/// The trusted root to start from, and what was accepted under it.
#[derive(Debug)]
pub(crate) struct Known {
    pub(crate) root: Vec<u8>,
    pub(crate) stored: Option<Stored>,
}

impl TrustStore {
    /// Names the pinned `root.json` and the file of accepted metadata (made at the first acceptance; its directory must
    /// exist). Checks run in a temporary directory of `std::env::temp_dir()`.
    pub fn new(pinned_root: impl Into<PathBuf>, store_file: impl Into<PathBuf>) -> Self {
        TrustStore { pinned: pinned_root.into(), store: store_file.into(), scratch: std::env::temp_dir() }
    }

    /// Sets the directory for the temporary files of a check, a few kilobytes; best on a memory file system.
    #[must_use]
    pub fn scratch(mut self, directory: impl Into<PathBuf>) -> Self {
        self.scratch = directory.into();
        self
    }

    pub(crate) fn scratch_dir(&self) -> &Path {
        &self.scratch
    }

    pub(crate) fn store_path(&self) -> &Path {
        &self.store
    }

    pub(crate) fn pinned_path(&self) -> &Path {
        &self.pinned
    }

    /// The last accepted signed time: no clock of this device can truly be earlier. `None` before the first.
    ///
    /// # Errors
    /// When the pinned root or the store cannot be used.
    pub fn floor(&self) -> Result<Option<Timestamp>, TrustError> {
        Ok(super::verify::floor(&self.load()?))
    }

    /// Reads both. The root to start from is the stored one where it is newer than the pinned one: it was reached from
    /// a pinned one by a chain of signatures, and keys that it revoked must stay revoked.
    pub(crate) fn load(&self) -> Result<Known, TrustError> {
        let damaged = |source: Box<dyn std::error::Error + Send + Sync>| TrustError::RootDamaged {
            path: self.pinned.clone(),
            source,
        };
        let pinned = match read_bounded(&self.pinned) {
            Ok(Some(bytes)) => bytes,
            Ok(None) => return Err(TrustError::NoRoot(self.pinned.clone())),
            Err(source) => return Err(damaged(source.into())),
        };
        let root: Signed<Root> = serde_json::from_slice(&pinned).map_err(|e| damaged(e.into()))?;
        root.signed.verify_role(&root).map_err(|e| damaged(e.into()))?;
        let Some(stored) = self.load_stored()? else {
            return Ok(Known { root: pinned, stored: None });
        };
        let stored_root: Signed<Root> =
            serde_json::from_value(stored.root.clone()).map_err(|e| self.store_damaged(e.into()))?;
        stored_root.signed.verify_role(&stored_root).map_err(|e| self.store_damaged(e.into()))?;
        let newest = if stored_root.signed.version > root.signed.version {
            serde_json::to_vec(&stored.root).map_err(|e| self.store_damaged(e.into()))?
        } else {
            pinned
        };
        Ok(Known { root: newest, stored: Some(stored) })
    }

    fn load_stored(&self) -> Result<Option<Stored>, TrustError> {
        let bytes = read_bounded(&self.store).map_err(|source| TrustError::Storage {
            what: "reading the store of accepted metadata",
            path: self.store.clone(),
            source,
        })?;
        bytes.map(|bytes| serde_json::from_slice(&bytes).map_err(|e| self.store_damaged(e.into()))).transpose()
    }

    fn store_damaged(&self, source: Box<dyn std::error::Error + Send + Sync>) -> TrustError {
        TrustError::StoreDamaged { path: self.store.clone(), source }
    }
}

/// A manifest that passed every check, and the metadata that says so.
#[derive(Debug, Clone)]
#[must_use = "the device forgets what it accepted unless `persist` is called"]
pub struct Accepted {
    pub(crate) manifest: Digest,
    pub(crate) name: String,
    pub(crate) signed_at: Option<Timestamp>,
    pub(crate) expires: Timestamp,
    pub(crate) stored: Stored,
    pub(crate) store: PathBuf,
}

impl Accepted {
    /// SHA-256 of the manifest's bytes: the bundle's identity.
    #[must_use]
    pub fn manifest_digest(&self) -> Digest {
        self.manifest
    }

    /// The name under which the manifest is signed.
    #[must_use]
    pub fn target_name(&self) -> &str {
        &self.name
    }

    /// When the bundle was signed, by its signer's clock.
    #[must_use]
    pub fn signed_at(&self) -> Option<Timestamp> {
        self.signed_at
    }

    /// When the first of its roles expires.
    #[must_use]
    pub fn expires(&self) -> Timestamp {
        self.expires
    }

    /// Makes the device remember this metadata, so that older metadata is refused from now on. Durable when it returns:
    /// written beside the old file, synced, renamed over it, the directory synced, read back.
    ///
    /// # Errors
    /// [`TrustError::Storage`]; the old store is then still whole.
    pub fn persist(&self) -> Result<(), TrustError> {
        let failed = |source| TrustError::Storage {
            what: "writing the store of accepted metadata",
            path: self.store.clone(),
            source,
        };
        let bytes = serde_json::to_vec(&self.stored).map_err(|e| failed(e.into()))?;
        let directory = self.store.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let temporary = self.store.with_extension("new");
        write_synced(&temporary, &bytes).map_err(failed)?;
        fs::rename(&temporary, &self.store).map_err(failed)?;
        File::open(directory).and_then(|d| d.sync_all()).map_err(failed)?;
        match read_bounded(&self.store).map_err(failed)? {
            Some(held) if held == bytes => Ok(()),
            _ => Err(failed(std::io::Error::new(ErrorKind::InvalidData, "it holds other bytes than were written"))),
        }
    }
}

fn write_synced(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

/// Reads a small file; `None` when there is none.
fn read_bounded(path: &Path) -> std::io::Result<Option<Vec<u8>>> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let mut bytes = Vec::new();
    file.take(MAX_STORE_BYTES.saturating_add(1)).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > MAX_STORE_BYTES {
        return Err(std::io::Error::new(ErrorKind::InvalidData, "the file is too large to be what it should be"));
    }
    Ok(Some(bytes))
}
