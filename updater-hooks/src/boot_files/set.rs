//! What a new set is made of: the prepared root's kernel and boot files, and what is kept of the running group's set.
//!
//! The prepared root's links lead where they would if it were the root of the system, and only to regular files: a link
//! `board.dtb -> /usr/lib/linux-image/board.dtb` is how an image has a file in two places.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;
use std::path::Path;

use bascule_core::boot_set::{BOOT_FILES, KERNEL, SET_KERNEL};
use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};

use super::error::BootFileError;
use super::keep::KeepList;
use crate::paths;

/// How many files a set may have.
pub const MOST_FILES: usize = 256;
/// How deep its folders may nest.
const MOST_FOLDERS: usize = 8;
/// More than any kernel or initramfs has, in bytes.
pub(super) const MOST_BYTES: u64 = 256 << 20;
/// The longest name on FAT, in UTF-16 units.
const LONGEST_NAME: usize = 255;
/// What no name on FAT may hold.
const NOT_IN_NAMES: [char; 9] = ['"', '*', ':', '<', '>', '?', '|', '\\', '\u{7f}'];

/// One file of a new set.
#[derive(Debug)]
pub(super) struct Wanted {
    /// Its path in the set.
    pub(super) name: String,
    /// Its bytes.
    pub(super) source: File,
    /// Their number.
    pub(super) size: u64,
}

/// Everything that the new set has, by name.
pub(super) fn collect(root: &Path, running: &Path, keep: &KeepList) -> Result<Vec<Wanted>, BootFileError> {
    let kernel = open_below(root, Path::new(KERNEL)).and_then(regular).map_err(BootFileError::NoKernel)?;
    let mut found = Found::default();
    found.add(SET_KERNEL.to_owned(), kernel)?;
    found.walk(root, Path::new(BOOT_FILES), "")?;
    let mut kept = Found::default();
    kept.walk(running, Path::new("."), "")?;
    for (_, wanted) in kept.files {
        // The kernel is the image's, whatever a list says: an old one on a new root is what sets are there against.
        if wanted.name != SET_KERNEL && keep.keeps(&wanted.name) {
            found.files.remove(&folded(&wanted.name));
            found.add(wanted.name, (wanted.source, wanted.size))?;
        }
    }
    Ok(found.files.into_values().collect())
}

/// Files by their names as FAT compares them.
#[derive(Default)]
struct Found {
    files: BTreeMap<String, Wanted>,
}

impl Found {
    fn add(&mut self, name: String, (source, size): (File, u64)) -> Result<(), BootFileError> {
        let unfit = |fault: String| Err(BootFileError::Unfit { name: name.clone(), fault });
        if self.files.len() >= MOST_FILES {
            return unfit(format!("a set has at most {MOST_FILES} files"));
        }
        if size > MOST_BYTES {
            return unfit(format!("it has {size} bytes, and a boot file at most {MOST_BYTES}"));
        }
        let wanted = Wanted { name: name.clone(), source, size };
        match self.files.insert(folded(&name), wanted) {
            None => Ok(()),
            Some(other) if other.name == SET_KERNEL || name == SET_KERNEL => {
                unfit(format!("{SET_KERNEL} is the kernel's name, which comes from /{KERNEL}"))
            }
            Some(other) => unfit(format!("on FAT it is the same name as {}", other.name)),
        }
    }

    /// Adds every file below `folder`, itself below `root`; none where there is no such folder.
    fn walk(&mut self, root: &Path, folder: &Path, prefix: &str) -> Result<(), BootFileError> {
        let at = root.join(folder);
        let failed = |source| BootFileError::Read { path: at.clone(), source };
        if prefix.matches('/').count() > MOST_FOLDERS {
            return Err(BootFileError::Unfit { name: prefix.to_owned(), fault: "its folders nest too deep".into() });
        }
        let open = match open_below(root, folder) {
            Err(error) if prefix.is_empty() && error.kind() == io::ErrorKind::NotFound => return Ok(()),
            open => open.map_err(failed)?,
        };
        // By the open folder: its path would follow links of the prepared root into the running one.
        let open_path = format!("{}/{}", paths::OPEN_FILES, open.as_raw_fd());
        let mut entries: Vec<_> = fs::read_dir(open_path).map_err(failed)?.collect::<Result<_, _>>().map_err(failed)?;
        entries.sort_by_key(fs::DirEntry::file_name);
        for entry in entries {
            let name = fit_name(prefix, &entry.file_name())?;
            let path = folder.join(entry.file_name());
            let unfit = |fault: String| BootFileError::Unfit { name: name.clone(), fault };
            if entry.file_type().map_err(failed)?.is_dir() {
                self.walk(root, &path, &format!("{name}/"))?;
                continue;
            }
            let file = open_below(root, &path).and_then(regular).map_err(|error| unfit(error.to_string()))?;
            self.add(name, file)?;
        }
        Ok(())
    }
}

/// The name in the set, if FAT can have it.
fn fit_name(prefix: &str, entry: &std::ffi::OsStr) -> Result<String, BootFileError> {
    let lossy = format!("{prefix}{}", entry.to_string_lossy());
    let unfit = |fault: &str| Err(BootFileError::Unfit { name: lossy.clone(), fault: fault.to_owned() });
    let Some(text) = entry.to_str() else { return unfit("its name is not UTF-8") };
    if text.contains(char::is_control) || text.contains(NOT_IN_NAMES) {
        return unfit("its name holds a character that FAT does not have in names");
    }
    if text.ends_with(['.', ' ']) || text.starts_with(' ') {
        return unfit("its name begins with a space or ends with a space or a dot, which FAT takes away");
    }
    if text.encode_utf16().count() > LONGEST_NAME {
        return unfit("its name is longer than FAT has them");
    }
    Ok(lossy)
}

/// A name as FAT compares it.
pub(super) fn folded(name: &str) -> String {
    name.to_uppercase()
}

/// A file or folder; links lead where they would if `root` were the root of the system.
pub(super) fn open_below(root: &Path, path: &Path) -> io::Result<File> {
    let flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK;
    let resolve = ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS;
    let how = OpenHow::new().flags(flags).resolve(resolve);
    Ok(File::from(openat2(File::open(root)?, path, how)?))
}

/// A regular file, with its length.
pub(super) fn regular(file: File) -> io::Result<(File, u64)> {
    let about = file.metadata()?;
    if about.is_file() { Ok((file, about.len())) } else { Err(Errno::EINVAL.into()) }
}
