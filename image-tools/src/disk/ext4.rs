//! Makes ext4 images with `mke2fs`: the same tree, size and seed give the same bytes.

use std::ffi::OsString;
use std::fmt::Write;
use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::error::DiskError;
use super::layout::identifier;
use super::tool;

/// The time stamp that is used where none is given: 2026-01-01.
pub const FALLBACK_EPOCH: u64 = 1_767_225_600;

/// Named one by one, so that the host's mke2fs.conf changes nothing. Without `metadata_csum_seed` and `orphan_file`, which
/// older GRUBs refuse, and without `resize_inode`, for a slot never grows.
const FEATURES: &str = "none,has_journal,ext_attr,dir_index,filetype,extent,64bit,flex_bg,sparse_super,large_file,\
                        huge_file,dir_nlink,extra_isize,metadata_csum";

/// Below this size the journal has the least size there is, 4 MiB, else 8 MiB.
const SMALL_BYTES: u64 = 64 << 20;

/// What an ext4 image is made of.
#[derive(Debug, Clone)]
pub struct Ext4 {
    /// The tree to fill it with, owners and modes as `lstat` tells them; empty without one.
    pub tree: Option<PathBuf>,
    /// Size of the image in bytes.
    pub size: u64,
    /// The file system's label.
    pub label: String,
    /// What its identifiers are derived from, with the label.
    pub seed: String,
    /// Seconds since 1970 for all time stamps of the file system itself.
    pub epoch: u64,
}

impl Ext4 {
    /// Makes the image `output`, whole or not at all, sparse.
    ///
    /// # Errors
    /// When `mke2fs` is missing or fails, mostly because the tree does not fit.
    pub fn create(&self, output: &Path) -> Result<(), DiskError> {
        let unfinished = output.with_extension("unfinished");
        let failed = DiskError::at("writing", output);
        let file = File::create(&unfinished).map_err(&failed)?;
        file.set_len(self.size).map_err(&failed)?;
        if let Err(error) = self.fill(&unfinished) {
            // Nothing refers to it yet, so a leftover is all that a failure here would be.
            let _ = fs::remove_file(&unfinished);
            return Err(error);
        }
        file.sync_all().map_err(&failed)?;
        fs::rename(&unfinished, output).map_err(&failed)
    }

    fn fill(&self, image: &Path) -> Result<(), DiskError> {
        let uuid = identifier(&self.seed, &format!("file system {}", self.label)).to_string();
        let hash_seed = identifier(&self.seed, &format!("hash seed {}", self.label));
        let extended = format!("hash_seed={hash_seed},lazy_itable_init=0,lazy_journal_init=0,nodiscard,root_owner=0:0");
        let journal = if self.size < SMALL_BYTES { "size=4" } else { "size=8" };
        let mut arguments: Vec<OsString> =
            ["-q", "-F", "-t", "ext4", "-b", "4096", "-I", "256", "-m", "0", "-O", FEATURES]
                .into_iter()
                .chain(["-J", journal, "-E", &extended, "-U", &uuid, "-L", &self.label])
                .map(OsString::from)
                .collect();
        if let Some(tree) = &self.tree {
            arguments.extend(["-d".into(), tree.into()]);
        }
        arguments.push(image.into());
        let settings = [
            ("MKE2FS_CONFIG", "/dev/null".to_owned()),
            ("MKE2FS_SKIP_PROGRESS", "1".to_owned()),
            ("E2FSPROGS_FAKE_TIME", self.epoch.to_string()),
            ("SOURCE_DATE_EPOCH", self.epoch.to_string()),
        ];
        tool::run("mke2fs", arguments, &settings)?;
        match &self.tree {
            Some(tree) => settle_times(tree, image, self.epoch),
            None => Ok(()),
        }
    }
}

/// Gives every file its time of last change as its times of access and of status change too, for these tell when the tree
/// was copied or read on the host. Names with a line feed cannot be told to `debugfs` and keep theirs.
fn settle_times(tree: &Path, image: &Path, epoch: u64) -> Result<(), DiskError> {
    let mut script = String::new();
    script_for(tree, "", &mut script)?;
    let commands = image.with_extension("times");
    fs::write(&commands, script).map_err(DiskError::at("writing", &commands))?;
    let arguments = ["-w".into(), "-f".into(), commands.clone().into(), image.into()];
    let done = tool::run("debugfs", arguments.into(), &[("E2FSPROGS_FAKE_TIME", epoch.to_string())]);
    fs::remove_file(&commands).map_err(DiskError::at("removing", &commands))?;
    done
}

fn script_for(path: &Path, inside: &str, script: &mut String) -> Result<(), DiskError> {
    let failed = DiskError::at("reading", path);
    let about = fs::symlink_metadata(path).map_err(&failed)?;
    let quoted = if inside.is_empty() { "/".into() } else { inside.replace('"', "\"\"") };
    for field in ["atime", "ctime"] {
        let _ = writeln!(script, "set_inode_field \"{quoted}\" {field} @{}", about.mtime());
    }
    if !about.is_dir() {
        return Ok(());
    }
    let mut names = Vec::new();
    for entry in fs::read_dir(path).map_err(&failed)? {
        names.push(entry.map_err(&failed)?.file_name());
    }
    names.sort();
    for name in names {
        match name.to_str().filter(|name| !name.contains('\n')) {
            Some(text) => script_for(&path.join(&name), &format!("{inside}/{text}"), script)?,
            None => continue,
        }
    }
    Ok(())
}
