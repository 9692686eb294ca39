//! Images that devices may run now, as `--from` names them: raw, or in an older bundle.

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail, ensure};
use bascule_image::format::MAGIC;
use bascule_image::limits::MAX_CHUNK_BYTES;
use bascule_image::manifest::check_name;
use bascule_image::write::BaseSpec;
use bascule_image::{BundleFile, BundleReader, ChunkKind, Timestamp, TrustStore};
use tempfile::NamedTempFile;

use super::show;

/// One `--from`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct From {
    role: Option<String>,
    version: Option<String>,
    file: PathBuf,
}

/// Reads `FILE`, `ROLE=FILE`, `@VERSION=FILE` or `ROLE@VERSION=FILE`. What stands before the first `=` is a file's name
/// all the same where it cannot be a role and a version: `./a=b` is a file.
pub(crate) fn from(text: &str) -> Result<From, String> {
    let name = |text: &str| text.is_empty() || check_name("name", text).is_ok();
    if let Some((before, file)) = text.split_once('=') {
        let (role, version) = before.split_once('@').unwrap_or((before, ""));
        if name(role) && name(version) && !before.is_empty() && !file.is_empty() {
            let some = |text: &str| (!text.is_empty()).then(|| text.to_owned());
            return Ok(From { role: some(role), version: some(version), file: file.into() });
        }
    }
    if text.is_empty() {
        return Err("it is not [ROLE][@VERSION=]FILE, such as old.ext4 or root@1.0.0=old.ext4".into());
    }
    Ok(From { role: None, version: None, file: text.into() })
}

/// The bases of a bundle, and the files that some of them were unpacked to.
#[derive(Debug, Default)]
pub(crate) struct Bases {
    pub(crate) specs: Vec<BaseSpec>,
    unpacked: Vec<NamedTempFile>,
}

impl Bases {
    /// Finds what each `--from` stands for. Older bundles must be signed by the keys in `keys`; their images are unpacked
    /// beside `output`.
    pub(crate) fn open(from: &[From], roles: &[&str], keys: &Path, output: &Path) -> anyhow::Result<Self> {
        let mut bases = Bases::default();
        for from in from {
            if let Some(role) = &from.role {
                ensure!(roles.contains(&role.as_str()), "--from names the role {role:?}, but there is no such payload");
            }
            if is_bundle(&from.file)? {
                bases.unpack(from, roles, keys, output)?;
                continue;
            }
            let role = match (&from.role, roles) {
                (Some(role), _) => role.clone(),
                (None, [role]) => (*role).to_owned(),
                _ => bail!("say which payload {:?} is an older image of: --from ROLE={0}", from.file.display()),
            };
            bases.specs.push(BaseSpec { role, image: from.file.clone(), version: from.version.clone() });
        }
        Ok(bases)
    }

    fn unpack(&mut self, from: &From, roles: &[&str], keys: &Path, output: &Path) -> anyhow::Result<()> {
        let about = || format!("taking {:?} as an older bundle failed", from.file);
        ensure!(from.version.is_none(), "{:?} is a bundle: it tells its version itself", from.file);
        let mut reader = open_older(&from.file, keys).with_context(about)?;
        let version = reader.manifest().version.clone();
        let wanted = |role: &str| from.role.as_deref().map_or(roles.contains(&role), |only| only == role);
        let payloads: Vec<_> = reader.payloads().iter().map(|payload| (payload.role.clone(), payload.size)).collect();
        let before = self.specs.len();
        for (index, (role, size)) in payloads.into_iter().enumerate() {
            if !wanted(&role) {
                continue;
            }
            let beside = output.parent().filter(|path| !path.as_os_str().is_empty()).unwrap_or(Path::new("."));
            let file = tempfile::Builder::new().prefix(".base-").tempfile_in(beside).with_context(about)?;
            unpack_payload(&mut reader, index, file.as_file(), size).with_context(about)?;
            let (image, version) = (file.path().to_owned(), Some(version.clone()));
            self.specs.push(BaseSpec { role, image, version });
            self.unpacked.push(file);
        }
        ensure!(self.specs.len() > before, "{:?} has no payload of the roles {roles:?}", from.file);
        Ok(())
    }
}

fn is_bundle(path: &Path) -> anyhow::Result<bool> {
    let mut magic = Vec::new();
    let file = File::open(path).with_context(|| format!("opening {path:?} failed"))?;
    file.take(MAGIC.len() as u64).read_to_end(&mut magic).with_context(|| format!("reading {path:?} failed"))?;
    Ok(magic == MAGIC)
}

/// Opens a bundle that these keys signed once: it may have expired, and keys may have been replaced, since. Nothing of it
/// gets into the new bundle but differences to it and the name of its version.
fn open_older(path: &Path, keys: &Path) -> anyhow::Result<BundleReader> {
    let scratch = tempfile::tempdir().context("making a temporary directory failed")?;
    let first = keys.join("1.root.json");
    let root = if first.exists() { first } else { keys.join("root.json") };
    let trust = TrustStore::new(root, scratch.path().join("accepted.json"));
    let input = BundleFile::open(path)?;
    // The time of its own signing is taken where it is later.
    Ok(BundleReader::open(Box::new(input), &trust, Timestamp::UNIX_EPOCH)?)
}

fn unpack_payload(reader: &mut BundleReader, index: usize, file: &File, size: u64) -> anyhow::Result<()> {
    reader.begin_payload(index)?;
    file.set_len(size)?;
    let bar = show::progress(size, "unpacking");
    let mut buffer = vec![0; MAX_CHUNK_BYTES as usize];
    while let Some(chunk) = reader.next_chunk(&mut buffer)? {
        if chunk.kind != ChunkKind::Zeroes {
            file.write_all_at(buffer.get(..chunk.len as usize).unwrap_or_default(), chunk.offset)?;
        }
        bar.inc(u64::from(chunk.len));
    }
    bar.finish_and_clear();
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_role_and_a_version_stand_before_the_first_equals_sign_and_nothing_else_does() {
        let read = |text: &str| {
            let from = from(text).unwrap();
            (from.role.unwrap_or_default(), from.version.unwrap_or_default(), from.file.display().to_string())
        };
        let told = |role: &str, version: &str, file: &str| (role.to_owned(), version.to_owned(), file.to_owned());
        assert_eq!(read("old.ext4"), told("", "", "old.ext4"));
        assert_eq!(read("old@1.ext4"), told("", "", "old@1.ext4"));
        assert_eq!(read("root=old.ext4"), told("root", "", "old.ext4"));
        assert_eq!(read("@1.0.0=old.ext4"), told("", "1.0.0", "old.ext4"));
        assert_eq!(read("root@1.0.0=a=b"), told("root", "1.0.0", "a=b"));
        assert_eq!(read("./a=b"), told("", "", "./a=b"));
        assert_eq!(read("=b"), told("", "", "=b"));
        assert!(from("").is_err());
    }
}
