//! Who makes the systems and signs the bundles of a rehearsal.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use bascule_core::{Digest, Requires};
use bascule_image::Timestamp;
use bascule_image::keys::{KeyDir, NewKeys};
use bascule_image::manifest::BlobsPlace;
use bascule_image::release::Release;
use bascule_image::write::{BaseSpec, BundleSpec, create_bundle};
use sha2::{Digest as _, Sha256};

use super::scratch;

/// The product and the hardware of every system, unless a test says otherwise.
const PRODUCT: &str = "demo";
const HARDWARE: &str = "qemu-x86_64";
/// Bytes of a system's image.
const IMAGE_BYTES: usize = 160 << 10;
/// Bytes of a chunk.
const CHUNK_BYTES: u32 = 16 << 10;
const YEAR: i64 = 31_557_600;

/// What a system is like once it is started.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Temper {
    /// Comes up and passes its health checks.
    Good,
    /// Comes up, and a required health check fails until the deadline.
    Unhealthy,
    /// Comes up, and the agent never does anything; only the watchdog of the deadline runs.
    Hangs,
    /// Never gets as far as the agent.
    Panics,
}

/// One system: its image, and the bundle that brings it.
#[derive(Debug, Clone)]
pub struct System {
    /// What it says of itself.
    pub release: Release,
    /// What it is like.
    pub temper: Temper,
    /// Length of its image in bytes.
    pub size: usize,
    /// SHA-256 of its image.
    pub sha256: [u8; 32],
    /// The image.
    pub image: PathBuf,
    /// The bundle, signed by the vendor that made the system.
    pub bundle: PathBuf,
    /// The bundle's identity.
    pub manifest: Digest,
}

impl System {
    /// Whether `slot` begins with the whole image.
    #[must_use]
    pub fn is_in(&self, slot: &[u8]) -> bool {
        slot.get(..self.size).is_some_and(|head| sha256(head) == self.sha256)
    }
}

/// What a system is made from; [`SystemSpec::new`] has the usual values.
#[derive(Debug, Clone)]
pub struct SystemSpec {
    /// What it says of itself.
    pub release: Release,
    /// What it is like.
    pub temper: Temper,
    /// Length of its image in bytes.
    pub size: usize,
    /// The system that it is an update of: its bundle has a delta against that one's image.
    pub base: Option<System>,
    /// Where the bundle's full data are.
    pub full: BlobsPlace,
}

impl SystemSpec {
    /// Version `order`.0.0 of the product, for the hardware of the rehearsal.
    #[must_use]
    pub fn new(order: u64, temper: Temper) -> Self {
        let release = Release {
            product: PRODUCT.into(),
            version: format!("{order}.0.0"),
            order,
            compatible: vec![HARDWARE.into()],
            security_epoch: 0,
            requires: Requires::default(),
        };
        SystemSpec { release, temper, size: IMAGE_BYTES, base: None, full: BlobsPlace::Inside }
    }

    /// A good system that shares most of its image with `base`; the delta says which version it is against.
    #[must_use]
    pub fn update_of(base: &System, order: u64) -> Self {
        SystemSpec { size: base.size, base: Some(base.clone()), ..SystemSpec::new(order, Temper::Good) }
    }
}

/// A vendor with keys, in a folder of its own that goes when the vendor does.
#[derive(Debug)]
pub struct Vendor {
    dir: tempfile::TempDir,
    keys: KeyDir,
}

impl Vendor {
    /// A vendor with new keys.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub fn new() -> Result<Self> {
        let dir = scratch()?;
        let expires = Timestamp::now().checked_add(jiff_seconds(10 * YEAR))?;
        let keys = KeyDir::init(dir.path().join("keys"), NewKeys { count: 1, threshold: 1, expires })?;
        Ok(Vendor { dir, keys })
    }

    /// What a device of this vendor pins.
    #[must_use]
    pub fn root(&self) -> PathBuf {
        self.dir.path().join("keys/root.json")
    }

    /// A place for a file that goes when the vendor does.
    #[must_use]
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Makes the system of version `order`.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub fn system(&self, order: u64, temper: Temper) -> Result<System> {
        self.make(SystemSpec::new(order, temper))
    }

    /// Makes a system.
    ///
    /// # Errors
    /// When a file cannot be written, or no bundle can be made of the specification.
    pub fn make(&self, spec: SystemSpec) -> Result<System> {
        let name = format!("{}-{}", spec.release.version, spec.release.compatible.join("+"));
        let (image, bundle) = (self.path(&format!("{name}.image")), self.path(&format!("{name}.bascule")));
        let fresh = image_bytes(spec.release.order, spec.size);
        let bytes = match &spec.base {
            Some(base) => update(&read(&base.image)?, fresh),
            None => fresh,
        };
        fs::write(&image, &bytes)?;
        let now = Timestamp::now();
        let payloads = vec![("root".into(), image.clone())];
        let plain = BundleSpec::new(spec.release.clone(), payloads, now, now.checked_add(jiff_seconds(2 * YEAR))?);
        let base = |base: &System| BaseSpec {
            role: "root".into(),
            image: base.image.clone(),
            version: Some(base.release.version.clone()),
        };
        let (bases, full) = (spec.base.iter().map(base).collect(), spec.full);
        let bundle_spec = BundleSpec { level: 3, chunk_bytes: CHUNK_BYTES, bases, full, ..plain };
        let made = create_bundle(&bundle_spec, &self.keys, &bundle, &mut |_| ()).context("cannot make the bundle")?;
        let SystemSpec { release, temper, size, .. } = spec;
        Ok(System { release, temper, size, sha256: sha256(&bytes), image, bundle, manifest: made.digest })
    }
}

fn jiff_seconds(seconds: i64) -> std::time::Duration {
    std::time::Duration::from_secs(seconds.unsigned_abs())
}

/// An image with zeroes, text that compresses and noise that does not, different for each `order` in every chunk but
/// the zeroes.
fn image_bytes(order: u64, size: usize) -> Vec<u8> {
    let mut noise = order.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(size);
    while bytes.len() < size {
        let chunk = bytes.len() / CHUNK_BYTES as usize;
        if chunk % 5 == 3 {
            bytes.resize(bytes.len() + CHUNK_BYTES as usize, 0);
        } else if chunk.is_multiple_of(2) {
            let line = format!("system {order}, chunk {chunk}\n");
            bytes.extend(line.bytes().cycle().take(CHUNK_BYTES as usize));
        } else {
            bytes.extend((0..CHUNK_BYTES).map(|_| {
                noise ^= noise << 13;
                noise ^= noise >> 7;
                noise ^= noise << 17;
                noise.to_le_bytes()[3]
            }));
        }
    }
    bytes.truncate(size);
    bytes
}

/// An update of `old`: of five chunks in a row one is as it was, one has moved by some bytes, one has bytes changed here
/// and there, one is zeroes, and one is `fresh`.
fn update(old: &[u8], mut fresh: Vec<u8>) -> Vec<u8> {
    let length = CHUNK_BYTES as usize;
    let shift = 100;
    for (number, chunk) in fresh.chunks_mut(length).enumerate() {
        let start = number * length;
        let same = old.get(start..start + chunk.len());
        match (number % 5, same, old.get(start + shift..start + shift + chunk.len())) {
            (0, Some(same), _) => chunk.copy_from_slice(same),
            (1, _, Some(moved)) => chunk.copy_from_slice(moved),
            (2, Some(same), _) => {
                chunk.copy_from_slice(same);
                chunk.iter_mut().step_by(1000).for_each(|byte| *byte = byte.wrapping_add(3));
            }
            _ => {}
        }
    }
    fresh
}

/// SHA-256 of bytes in memory.
fn sha256(bytes: &[u8]) -> [u8; 32] {
    Sha256::digest(bytes).into()
}

/// The system whose whole image a slot holds.
#[must_use]
pub fn system_in<'s>(slot: &[u8], systems: &'s [System]) -> Option<&'s System> {
    systems.iter().find(|system| system.is_in(slot))
}

/// Reads a file for a message that names it.
pub(crate) fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("cannot read {}", path.display()))
}
