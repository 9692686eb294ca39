//! The manifest: what a bundle is, for which devices, and which bytes belong to it. A target of its metadata.

use bascule_core::{Digest, Offer, OfferedPayload, Requires};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::error::BundleError;
use crate::limits::{
    MAX_DELTAS, MAX_LIST, MAX_MANIFEST_BYTES, MAX_NAME, MAX_PAYLOAD_BYTES, MAX_PAYLOADS, MAX_TABLES_BYTES, MAX_TEXT,
};
use crate::strict_json;

/// What the signed manifest says. Unknown keys are ignored unless `critical` names them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// The product's name.
    pub product: String,
    /// The version as people write it; a name, never compared.
    pub version: String,
    /// The version as machines compare it.
    pub order: u64,
    /// Names of the hardware it runs on.
    pub compatible: Vec<String>,
    /// What must hold before it may be installed.
    #[serde(default)]
    pub requires: Requires,
    /// Anti-rollback epoch.
    #[serde(default)]
    pub security_epoch: u64,
    /// What goes into which slot, in the order of the file.
    pub payloads: Vec<Payload>,
    /// Keys of this manifest that a reader must know, or refuse.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub critical: Vec<String>,
}

/// One payload: an image for one slot role, and where its bytes are.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Payload {
    /// The slot role, such as `root`.
    pub role: String,
    /// Size of the image in bytes.
    pub size: u64,
    /// SHA-256 of the whole image.
    pub sha256: Digest,
    /// Its chunk table.
    pub chunk_table: TableRef,
    /// Its blobs: the full data.
    pub blobs: BlobsRef,
    /// Ways to make the image of others that a device may run; their order is the order in the file.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub deltas: Vec<DeltaRef>,
}

/// A way to make a payload's image of another image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeltaRef {
    /// The other image.
    pub base: BaseImage,
    /// The delta's table.
    pub table: TableRef,
    /// Length of the delta's blobs in bytes.
    pub blobs: u64,
}

/// The image that a delta is made against.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BaseImage {
    /// The version whose image it is, where that is known: devices of other versions pass the delta over.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// Its size in bytes.
    pub size: u64,
    /// SHA-256 of it. Nothing is decided by it: what a device holds is found out by the digests in the table.
    pub sha256: Digest,
}

/// Where a table ends, and what it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct TableRef {
    /// Length in bytes, as it is stored.
    pub length: u64,
    /// SHA-256 of what is stored.
    pub sha256: Digest,
    /// Length in bytes once it is unpacked, where it is stored as a zstd frame.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unpacked: Option<u64>,
}

impl TableRef {
    /// How much memory the table takes once it is read.
    #[must_use]
    pub fn memory(&self) -> u64 {
        self.unpacked.unwrap_or_default().max(self.length)
    }
}

/// How long a payload's full data are, and where.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlobsRef {
    /// Length in bytes.
    pub length: u64,
    /// Where they are.
    #[serde(default, skip_serializing_if = "BlobsPlace::is_inside")]
    pub place: BlobsPlace,
}

/// Where a payload's full data are.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum BlobsPlace {
    /// In the bundle, behind the payload's deltas.
    #[default]
    Inside,
    /// In a file of their own beside the bundle, see [`Manifest::full_data_name`].
    Beside,
    /// Nowhere: the bundle can only be installed over the bases of its deltas.
    Absent,
}

impl BlobsPlace {
    fn is_inside(&self) -> bool {
        *self == BlobsPlace::Inside
    }
}

/// The top-level keys this code knows, which `critical` may therefore name.
const KNOWN_KEYS: [&str; 8] =
    ["product", "version", "order", "compatible", "requires", "security_epoch", "payloads", "critical"];

impl Manifest {
    /// Reads and checks a manifest whose digest was found to be the signed one.
    ///
    /// # Errors
    /// [`BundleError::ManifestInvalid`], [`BundleError::UnknownCritical`] or [`BundleError::TooLarge`].
    pub fn parse(bytes: &[u8]) -> Result<Self, BundleError> {
        crate::format::within("a manifest", bytes.len() as u64, MAX_MANIFEST_BYTES)?;
        let invalid = |error: serde_json::Error| BundleError::ManifestInvalid(error.to_string());
        strict_json::check(bytes).map_err(invalid)?;
        /// Read first and alone: what is critical may change the meaning of all the rest.
        #[derive(Deserialize)]
        struct Critical {
            #[serde(default)]
            critical: Vec<String>,
        }
        let Critical { critical } = serde_json::from_slice(bytes).map_err(invalid)?;
        if let Some(unknown) = critical.iter().find(|key| !KNOWN_KEYS.contains(&key.as_str())) {
            return Err(BundleError::UnknownCritical(unknown.chars().take(MAX_NAME).collect()));
        }
        let manifest: Manifest = serde_json::from_slice(bytes).map_err(invalid)?;
        manifest.check()?;
        Ok(manifest)
    }

    /// The manifest's bytes, as they are signed.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = serde_json::to_vec_pretty(self).unwrap_or_default();
        bytes.push(b'\n');
        bytes
    }

    /// Checks every rule that does not need the blobs.
    ///
    /// # Errors
    /// The first rule that is broken.
    pub fn check(&self) -> Result<(), BundleError> {
        let lists = [("compatible", self.compatible.len(), MAX_LIST), ("payloads", self.payloads.len(), MAX_PAYLOADS)];
        for (what, length, most) in lists {
            if length == 0 || length > most {
                return Err(BundleError::ManifestInvalid(format!("{what} has {length} entries, it is 1 to {most}")));
            }
        }
        let names = [("product", &self.product), ("version", &self.version)].into_iter();
        let names = names.chain(self.compatible.iter().map(|name| ("compatible", name)));
        for (what, name) in names.chain(self.payloads.iter().map(|payload| ("role", &payload.role))) {
            check_name(what, name)?;
        }
        for text in [&self.requires.via, &self.requires.min_agent].into_iter().flatten() {
            if text.is_empty() || text.len() > MAX_TEXT || text.chars().any(char::is_control) {
                return Err(BundleError::ManifestInvalid(
                    "a text of `requires` is empty, too long or not plain".into(),
                ));
            }
        }
        self.check_payloads()
    }

    fn check_payloads(&self) -> Result<(), BundleError> {
        let mut tables = 0u64;
        for (index, payload) in self.payloads.iter().enumerate() {
            if self.payloads.iter().take(index).any(|earlier| earlier.role == payload.role) {
                return Err(BundleError::ManifestInvalid(format!("two payloads have the role {:?}", payload.role)));
            }
            if payload.size == 0 {
                return Err(BundleError::ManifestInvalid(format!("the payload {:?} is empty", payload.role)));
            }
            crate::format::within("a payload", payload.size, MAX_PAYLOAD_BYTES)?;
            // A chunk is never stored longer than it is, so neither is a payload.
            crate::format::within("a payload's blobs", payload.blobs.length, payload.size)?;
            check_table(&payload.chunk_table)?;
            tables = tables.saturating_add(payload.chunk_table.memory());
            check_deltas(payload)?;
        }
        crate::format::within("the chunk tables", tables, MAX_TABLES_BYTES)
    }

    /// The name of the file with a payload's full data, where they are beside the bundle.
    #[must_use]
    pub fn full_data_name(&self, role: &str) -> String {
        format!("{}-{}.{role}.blobs", self.product, self.version)
    }

    /// The name under which the manifest is a signed target.
    #[must_use]
    pub fn target_name(&self) -> String {
        format!("{}-{}.manifest.json", self.product, self.version)
    }

    /// What the daemon decides about: the same facts in the words of `bascule-core`.
    #[must_use]
    pub fn offer(&self, manifest: Digest) -> Offer {
        let payloads = self.payloads.iter();
        Offer {
            manifest,
            product: self.product.clone(),
            version: self.version.clone(),
            order: self.order,
            compatible: self.compatible.clone(),
            requires: self.requires.clone(),
            security_epoch: self.security_epoch,
            payloads: payloads.map(|p| OfferedPayload { role: p.role.clone(), size: p.size }).collect(),
        }
    }
}

fn check_table(table: &TableRef) -> Result<(), BundleError> {
    crate::format::within("a table", table.length, MAX_TABLES_BYTES)?;
    crate::format::within("an unpacked table", table.memory(), MAX_TABLES_BYTES)
}

fn check_deltas(payload: &Payload) -> Result<(), BundleError> {
    crate::format::within("the list of deltas", payload.deltas.len() as u64, MAX_DELTAS as u64)?;
    if payload.deltas.is_empty() && payload.blobs.place == BlobsPlace::Absent {
        let fault = format!("the payload {:?} has neither full data nor deltas", payload.role);
        return Err(BundleError::ManifestInvalid(fault));
    }
    for delta in &payload.deltas {
        if let Some(version) = &delta.base.version {
            check_name("the version of a base", version)?;
        }
        check_table(&delta.table)?;
        crate::format::within("a base image", delta.base.size, MAX_PAYLOAD_BYTES)?;
        crate::format::within("a delta's blobs", delta.blobs, payload.size)?;
    }
    Ok(())
}

/// Accepts `[a-z0-9][a-z0-9._-]{0,63}` only: such a name is never a path out of a directory.
///
/// # Errors
/// [`BundleError::ManifestInvalid`] with `what` the name is for.
pub fn check_name(what: &str, name: &str) -> Result<(), BundleError> {
    let mut bytes = name.bytes();
    let head = bytes.next().is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
    let rest = bytes.all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'.' | b'_' | b'-'));
    if head && rest && name.len() <= MAX_NAME {
        return Ok(());
    }
    let shown: String = name.chars().take(MAX_NAME).collect();
    Err(BundleError::ManifestInvalid(format!(
        "{what} {shown:?} is not 1 to {MAX_NAME} of a-z 0-9 . _ - beginning with a letter or digit"
    )))
}

/// The SHA-256 digest of `bytes`.
#[must_use]
pub fn sha256(bytes: &[u8]) -> Digest {
    Digest(Sha256::digest(bytes).into())
}
