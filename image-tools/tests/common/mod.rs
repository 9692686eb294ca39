//! Keys, images and bundles of a few kilobytes, and a reader that takes a bundle whole.
#![allow(dead_code, reason = "each test program uses its own part of this")]

use std::path::{Path, PathBuf};

use bascule_image::format::Header;
use bascule_image::keys::{KeyDir, NewKeys};
use bascule_image::release::Release;
use bascule_image::write::{BundleSpec, create_bundle};
use bascule_image::{BundleError, BundleReader, ForwardOnly, Timestamp, TrustStore};

/// The time at which everything here happens, unless a test says otherwise.
pub(crate) fn now() -> Timestamp {
    "2026-11-21T00:00:00Z".parse().unwrap()
}

pub(crate) fn years(count: i64) -> Timestamp {
    Timestamp::from_second(now().as_second() + count * 31_557_600).unwrap()
}

/// One vendor with keys, and one device that pins its root.
pub(crate) struct House {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) keys: KeyDir,
    pub(crate) trust: TrustStore,
}

impl House {
    pub(crate) fn new() -> Self {
        House::with_threshold(1)
    }

    pub(crate) fn with_threshold(threshold: u64) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let new = NewKeys { count: threshold, threshold, expires: years(10) };
        let keys = KeyDir::init(dir.path().join("keys"), new).unwrap();
        std::fs::copy(dir.path().join("keys/root.json"), dir.path().join("pinned.json")).unwrap();
        let trust = TrustStore::new(dir.path().join("pinned.json"), dir.path().join("accepted.json"));
        House { dir, keys, trust }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A bundle of `images`, one payload each, with the first role `root`.
    pub(crate) fn bundle(&self, order: u64, images: &[&[u8]]) -> Vec<u8> {
        self.bundle_at(order, images, now(), years(2))
    }

    pub(crate) fn bundle_at(&self, order: u64, images: &[&[u8]], now: Timestamp, expires: Timestamp) -> Vec<u8> {
        let output = self.path(&format!("bundle-{order}"));
        let spec = BundleSpec { now, expires, ..self.spec(order, images) };
        create_bundle(&spec, &self.keys, &output, &mut |_| ()).unwrap();
        std::fs::read(output).unwrap()
    }

    pub(crate) fn spec(&self, order: u64, images: &[&[u8]]) -> BundleSpec {
        let roles = ["root", "boot", "app"];
        let payloads = images.iter().zip(roles).map(|(image, role)| {
            let path = self.path(role);
            std::fs::write(&path, image).unwrap();
            (role.to_owned(), path)
        });
        let plain = BundleSpec::new(release(order), payloads.collect(), now(), years(2));
        BundleSpec { level: 3, chunk_bytes: 4096, ..plain }
    }

    /// Signs any manifest with the vendor's keys and puts it together with tables and blobs.
    pub(crate) fn forge(&self, version: u16, name: &str, manifest: &[u8], rest: &[u8]) -> Vec<u8> {
        let metadata = self.keys.sign_manifest(name, manifest, now(), years(1)).unwrap().to_bytes().unwrap();
        let header = Header { version, metadata: metadata.len() as u64, manifest: manifest.len() as u64 };
        [&header.to_bytes()[..], &metadata, manifest, rest].concat()
    }

    pub(crate) fn open(&self, bundle: &[u8]) -> Result<BundleReader, BundleError> {
        self.open_at(bundle, now())
    }

    pub(crate) fn open_at(&self, bundle: &[u8], now: Timestamp) -> Result<BundleReader, BundleError> {
        BundleReader::open(stream(bundle), &self.trust, now)
    }

    /// Every payload's image, or the first error.
    pub(crate) fn read(&self, bundle: &[u8]) -> Result<Vec<Vec<u8>>, BundleError> {
        read_all(self.open(bundle)?)
    }
}

pub(crate) fn release(order: u64) -> Release {
    Release {
        product: "demo".into(),
        version: format!("1.{order}.0"),
        order,
        compatible: vec!["qemu-x86_64".into()],
        security_epoch: 0,
        requires: bascule_core::Requires::default(),
    }
}

pub(crate) fn stream(bundle: &[u8]) -> Box<ForwardOnly<std::io::Cursor<Vec<u8>>>> {
    Box::new(ForwardOnly::new(std::io::Cursor::new(bundle.to_vec())))
}

pub(crate) fn read_all(mut reader: BundleReader) -> Result<Vec<Vec<u8>>, BundleError> {
    let mut images = Vec::new();
    let mut buffer = vec![0; 1 << 20];
    for index in 0..reader.payloads().len() {
        reader.begin_payload(index)?;
        let mut image = Vec::new();
        while let Some(chunk) = reader.next_chunk(&mut buffer)? {
            assert_eq!(chunk.offset, image.len() as u64);
            image.extend_from_slice(&buffer[..chunk.len as usize]);
        }
        images.push(image);
    }
    reader.finish()?;
    Ok(images)
}

/// One chunk of zeroes, one of text, and 300 bytes of noise: for tests that try every byte.
pub(crate) fn small_image(seed: u8) -> Vec<u8> {
    let whole = image(seed);
    [&whole[4096..8192], &whole[8192..8192 + 4096], &whole[14000..14300]].concat()
}

/// An image with zeroes, text that compresses and noise that does not.
pub(crate) fn image(seed: u8) -> Vec<u8> {
    let mut noise = u32::from(seed) + 1;
    let mut image = vec![0; 8192];
    image.extend(b"the quick brown fox ".iter().cycle().take(5000));
    image.extend((0..4096 * 2).map(|_| {
        noise = noise.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (noise >> 24) as u8
    }));
    image.extend([seed; 100]);
    image
}

pub(crate) fn code(result: Result<impl Sized, BundleError>) -> &'static str {
    match result {
        Ok(_) => "taken",
        Err(error) => error.code(),
    }
}

pub(crate) fn exists(path: &Path) -> bool {
    path.exists()
}
