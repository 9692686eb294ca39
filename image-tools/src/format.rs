//! The fixed header and the framing of the metadata section; docs/bundle-format.md is the page to read beside this.

use crate::error::BundleError;
use crate::limits::{
    FORMAT_VERSION, MAX_MANIFEST_BYTES, MAX_METADATA_BYTES, MAX_ROOT_BYTES, MAX_ROOTS, MAX_SNAPSHOT_BYTES,
    MAX_TARGETS_BYTES, MAX_TIMESTAMP_BYTES,
};

/// The first eight bytes of a bundle. They do not survive a transfer as text.
pub const MAGIC: [u8; 8] = *b"\x89BSC\r\n\x1a\n";
/// Length of the fixed header in bytes.
pub const HEADER_BYTES: usize = 32;
const ENTRY_BYTES: usize = 16;

/// The fixed header: how long the two sections after it are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// The format's version: 1, or 2 where there are deltas, packed tables or full data outside of the bundle.
    pub version: u16,
    /// Length of the metadata section in bytes.
    pub metadata: u64,
    /// Length of the manifest in bytes.
    pub manifest: u64,
}

impl Header {
    /// The header's bytes.
    #[must_use]
    pub fn to_bytes(self) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        let parts: [&[u8]; 5] =
            [&MAGIC, &self.version.to_le_bytes(), &[0; 6], &self.metadata.to_le_bytes(), &self.manifest.to_le_bytes()];
        let flat = parts.concat();
        for (place, byte) in bytes.iter_mut().zip(flat) {
            *place = byte;
        }
        bytes
    }

    /// Reads a header.
    ///
    /// # Errors
    /// Not a bundle, too new, or a length above its bound.
    pub fn parse(bytes: &[u8; HEADER_BYTES]) -> Result<Self, BundleError> {
        let mut rest = Fields(bytes);
        let magic: [u8; 8] = rest.array()?;
        if magic != MAGIC {
            return Err(BundleError::NotABundle(magic.iter().map(|b| format!("{b:02x}")).collect()));
        }
        let version = u16::from_le_bytes(rest.array()?);
        if version > FORMAT_VERSION {
            return Err(BundleError::FormatTooNew { found: version, known: FORMAT_VERSION });
        }
        if version == 0 || rest.array::<6>()? != [0; 6] {
            return Err(BundleError::Framing("version 0, or a reserved field of the header is set"));
        }
        let header = Header {
            version,
            metadata: u64::from_le_bytes(rest.array()?),
            manifest: u64::from_le_bytes(rest.array()?),
        };
        within("a metadata section", header.metadata, MAX_METADATA_BYTES)?;
        within("a manifest", header.manifest, MAX_MANIFEST_BYTES)?;
        Ok(header)
    }
}

/// The signed metadata of The Update Framework that a bundle carries, each as its raw JSON.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Metadata {
    /// `N.root.json` with their versions, ascending without gaps. Root 1 is pinned in devices, so it starts at 2.
    pub roots: Vec<(u64, Vec<u8>)>,
    /// `timestamp.json`.
    pub timestamp: Vec<u8>,
    /// `snapshot.json`.
    pub snapshot: Vec<u8>,
    /// `targets.json`.
    pub targets: Vec<u8>,
}

const ROLE_ROOT: u8 = 1;
const ROLE_TIMESTAMP: u8 = 2;
const ROLE_SNAPSHOT: u8 = 3;
const ROLE_TARGETS: u8 = 4;

impl Metadata {
    /// The metadata section's bytes.
    ///
    /// # Errors
    /// [`BundleError::TooLarge`] when a part is above its bound, so that no bundle is made that none can read.
    pub fn to_bytes(&self) -> Result<Vec<u8>, BundleError> {
        let mut bytes = Vec::new();
        for (version, root) in &self.roots {
            push_entry(&mut bytes, ROLE_ROOT, *version, root)?;
        }
        push_entry(&mut bytes, ROLE_TIMESTAMP, 0, &self.timestamp)?;
        push_entry(&mut bytes, ROLE_SNAPSHOT, 0, &self.snapshot)?;
        push_entry(&mut bytes, ROLE_TARGETS, 0, &self.targets)?;
        within("a metadata section", bytes.len() as u64, MAX_METADATA_BYTES)?;
        Ok(bytes)
    }

    /// Takes a metadata section apart.
    ///
    /// # Errors
    /// When the entries are not exactly: roots ascending, then timestamp, snapshot and targets, and nothing after.
    pub fn parse(bytes: &[u8]) -> Result<Self, BundleError> {
        let mut rest = Fields(bytes);
        let mut found = Metadata::default();
        let (mut role, mut version, mut part) = take_entry(&mut rest)?;
        while role == ROLE_ROOT {
            let follows = found.roots.last().is_none_or(|(last, _)| last.checked_add(1) == Some(version));
            if !follows || version == 0 || found.roots.len() == MAX_ROOTS {
                return Err(BundleError::Framing("the root versions are not an ascending row"));
            }
            found.roots.push((version, part.to_vec()));
            (role, version, part) = take_entry(&mut rest)?;
        }
        let places = [
            (ROLE_TIMESTAMP, &mut found.timestamp),
            (ROLE_SNAPSHOT, &mut found.snapshot),
            (ROLE_TARGETS, &mut found.targets),
        ];
        for (wanted, place) in places {
            if role != wanted || version != 0 {
                return Err(BundleError::Framing("the metadata is not in the order timestamp, snapshot, targets"));
            }
            *place = part.to_vec();
            if wanted != ROLE_TARGETS {
                (role, version, part) = take_entry(&mut rest)?;
            }
        }
        if rest.0.is_empty() { Ok(found) } else { Err(BundleError::Framing("bytes follow the last metadata entry")) }
    }
}

fn push_entry(bytes: &mut Vec<u8>, role: u8, version: u64, part: &[u8]) -> Result<(), BundleError> {
    let length = part.len() as u64;
    entry_within(role, length)?;
    bytes.extend_from_slice(&[role, 0, 0, 0]);
    bytes.extend_from_slice(&u32::try_from(length).unwrap_or(u32::MAX).to_le_bytes());
    bytes.extend_from_slice(&version.to_le_bytes());
    bytes.extend_from_slice(part);
    Ok(())
}

fn take_entry<'a>(rest: &mut Fields<'a>) -> Result<(u8, u64, &'a [u8]), BundleError> {
    if rest.0.len() < ENTRY_BYTES {
        return Err(BundleError::Framing("the metadata section ends inside an entry"));
    }
    let [role, reserved @ ..] = rest.array::<4>()?;
    if reserved != [0; 3] {
        return Err(BundleError::Framing("a reserved field of a metadata entry is set"));
    }
    let length = u32::from_le_bytes(rest.array()?);
    let version = u64::from_le_bytes(rest.array()?);
    entry_within(role, u64::from(length))?;
    let part = rest.take(length as usize)?;
    Ok((role, version, part))
}

fn entry_within(role: u8, length: u64) -> Result<(), BundleError> {
    match role {
        ROLE_ROOT => within("a root.json", length, MAX_ROOT_BYTES),
        ROLE_TIMESTAMP => within("a timestamp.json", length, MAX_TIMESTAMP_BYTES),
        ROLE_SNAPSHOT => within("a snapshot.json", length, MAX_SNAPSHOT_BYTES),
        ROLE_TARGETS => within("a targets.json", length, MAX_TARGETS_BYTES),
        _ => Err(BundleError::Framing("a metadata entry has an unknown role")),
    }
}

/// Refuses a length above its bound.
pub(crate) fn within(what: &'static str, length: u64, limit: u64) -> Result<(), BundleError> {
    if length > limit { Err(BundleError::TooLarge { what, length, limit }) } else { Ok(()) }
}

/// A cursor over fixed-size fields.
pub(crate) struct Fields<'a>(pub(crate) &'a [u8]);

impl<'a> Fields<'a> {
    pub(crate) fn array<const N: usize>(&mut self) -> Result<[u8; N], BundleError> {
        let (head, rest) = self.0.split_first_chunk::<N>().ok_or(BundleError::Framing("a field is cut off"))?;
        self.0 = rest;
        Ok(*head)
    }

    pub(crate) fn take(&mut self, length: usize) -> Result<&'a [u8], BundleError> {
        let (head, rest) = self
            .0
            .split_at_checked(length)
            .ok_or(BundleError::Framing("a metadata entry is longer than its section"))?;
        self.0 = rest;
        Ok(head)
    }
}
