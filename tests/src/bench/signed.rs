//! Bundles for the measurements, and images that the demo does not have.

use std::fs::{self, File};
use std::io::{BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Result, ensure};
use bascule_core::Requires;
use bascule_image::Timestamp;
use bascule_image::keys::{KeyDir, NewKeys};
use bascule_image::limits::MAX_CHUNK_BYTES;
use bascule_image::release::Release;
use bascule_image::write::{BaseSpec, BundleSpec, create_bundle};

const DAY: Duration = Duration::from_secs(24 * 60 * 60);
/// Quick to make; how fast a bundle is decoded hardly depends on it.
const LEVEL: i32 = 3;

/// A bundle and the trust root of whoever signed it.
#[derive(Debug, Clone)]
pub(super) struct Signed {
    pub(super) file: PathBuf,
    pub(super) root: PathBuf,
}

impl Signed {
    /// Makes a bundle of `image` in a new folder, signed by keys of its own, as version 2 of the demo's product.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub(super) fn make(image: &Path, folder: &Path) -> Result<Signed> {
        Signed::of(image, Vec::new(), folder)
    }

    /// The same with a delta from the image `old` too, which a device of version 1 runs.
    ///
    /// # Errors
    /// As [`Signed::make`].
    pub(super) fn with_delta(image: &Path, old: &Path, folder: &Path) -> Result<Signed> {
        let version = Some("1.0.0".to_owned());
        let base = BaseSpec { role: "root".into(), image: old.to_owned(), version };
        Signed::of(image, vec![base], folder)
    }

    fn of(image: &Path, bases: Vec<BaseSpec>, folder: &Path) -> Result<Signed> {
        fs::create_dir_all(folder)?;
        let now = Timestamp::now();
        let expires = now.checked_add(DAY)?;
        let keys = KeyDir::init(folder.join("keys"), NewKeys { count: 1, threshold: 1, expires })?;
        let release = Release {
            product: "demo".into(),
            version: "2.0.0".into(),
            order: 2,
            compatible: vec!["qemu-x86_64".into()],
            security_epoch: 0,
            requires: Requires::default(),
        };
        let payloads = vec![("root".into(), image.to_owned())];
        let spec = BundleSpec { level: LEVEL, bases, ..BundleSpec::new(release, payloads, now, expires) };
        let file = folder.join("bundle.bascule");
        create_bundle(&spec, &keys, &file, &mut |_| ())?;
        Ok(Signed { file, root: folder.join("keys/root.json") })
    }
}

/// Writes the first `bytes` of an image to `to`.
///
/// # Errors
/// When a file cannot be read or written.
pub(super) fn head_of(image: &Path, bytes: u64, to: &Path) -> Result<()> {
    std::io::copy(&mut File::open(image)?.take(bytes), &mut File::create(to)?)?;
    Ok(())
}

/// Writes an image as long as `image` that holds what `image` holds, over and over, but no chunk of zeroes: the
/// worst case for whoever saves work on them.
///
/// # Errors
/// When a file cannot be read or written.
pub(super) fn without_zeroes(image: &Path, to: &Path) -> Result<()> {
    let length = fs::metadata(image)?.len();
    let mut output = File::create(to)?;
    let mut written = 0;
    while written < length {
        let before = written;
        let mut input = BufReader::new(File::open(image)?);
        let mut chunk = Vec::new();
        while written < length {
            chunk.clear();
            let wanted = u64::from(MAX_CHUNK_BYTES).min(length - written);
            if (&mut input).take(wanted).read_to_end(&mut chunk)? == 0 {
                break;
            }
            if chunk.iter().any(|&byte| byte != 0) {
                output.write_all(&chunk)?;
                written += chunk.len() as u64;
            }
        }
        ensure!(written > before, "the image is all zeroes");
    }
    Ok(output.sync_all()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_without_zeroes_is_as_long_and_has_none() {
        let folder = tempfile::tempdir().unwrap();
        let (image, full) = (folder.path().join("image"), folder.path().join("full"));
        let mib = MAX_CHUNK_BYTES as usize;
        let mut bytes = vec![0; 5 * mib + 4096];
        bytes[mib..2 * mib].fill(1);
        bytes[3 * mib + 5] = 2;
        fs::write(&image, &bytes).unwrap();
        without_zeroes(&image, &full).unwrap();
        let full = fs::read(&full).unwrap();
        assert_eq!(full.len(), bytes.len());
        assert!(full.chunks(mib).all(|chunk| chunk.iter().any(|&byte| byte != 0)));
    }
}
