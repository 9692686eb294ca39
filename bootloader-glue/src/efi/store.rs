//! Variables of the firmware as files of efivarfs: four bytes of attributes, then the data.
//!
//! A change is one `write` of the whole file, which the kernel hands to the firmware as one call; the firmware makes it
//! atomic. To delete one is to unlink its file. The kernel protects files that it does not know with the immutable flag,
//! so the flag is taken off before a change and put back after it. On an ordinary file system, where tests run, there may
//! be no such flag, and a file that becomes shorter is cut after the write.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use nix::libc;
use rustix::fs::{IFlags, ioctl_getflags, ioctl_setflags};

use crate::BootError;

use super::error::EfiError;

/// The vendor of the variables that the specification defines.
const GLOBAL: &str = "8be4df61-93ca-11d2-aa0d-00e098032b8c";

/// Kept without power, seen by the boot manager, seen by the running system.
pub(super) const KEPT: u32 = 7;

/// The bit of the attributes without which the boot manager does not see a variable.
pub(super) const SEEN_AT_START: u32 = 2;

/// More than any variable that we read can sensibly have.
const READ_LIMIT: u64 = 64 * 1024;

/// More variables than any firmware has room for.
const NAMES_LIMIT: usize = 8192;

/// What a variable holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Value {
    pub(super) attributes: u32,
    pub(super) data: Vec<u8>,
}

/// The directory of the variables.
#[derive(Debug, Clone)]
pub(super) struct Store {
    dir: PathBuf,
}

impl Store {
    pub(super) fn new(dir: PathBuf) -> Self {
        Store { dir }
    }

    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    /// The file of a variable that the specification defines.
    pub(super) fn global(&self, name: &str) -> PathBuf {
        self.vendor(name, GLOBAL)
    }

    /// The file of a vendor's variable.
    pub(super) fn vendor(&self, name: &str, vendor: &str) -> PathBuf {
        self.dir.join(format!("{name}-{vendor}"))
    }

    /// The names of the variables that the specification defines, in order; others are left out.
    pub(super) fn names(&self) -> Result<Vec<String>, BootError> {
        let failed = |source| BootError::Read { path: self.dir.clone(), source };
        let mut names = Vec::new();
        for entry in fs::read_dir(&self.dir).map_err(failed)?.take(NAMES_LIMIT) {
            let file = entry.map_err(failed)?.file_name();
            let name = file.to_str().and_then(|file| file.strip_suffix(GLOBAL)?.strip_suffix('-'));
            names.extend(name.map(str::to_owned));
        }
        names.sort();
        Ok(names)
    }

    /// What the variable holds; `None` when there is none, or one that the kernel shows as empty.
    pub(super) fn read(&self, path: &Path) -> Result<Option<Value>, BootError> {
        let failed = |source| BootError::Read { path: path.to_owned(), source };
        let mut bytes = Vec::new();
        match open(path, OpenOptions::new().read(true)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            opened => opened.and_then(|file| file.take(READ_LIMIT).read_to_end(&mut bytes)).map_err(failed)?,
        };
        let parts = bytes.split_first_chunk();
        Ok(parts.map(|(attributes, data)| Value { attributes: u32::from_le_bytes(*attributes), data: data.to_vec() }))
    }

    /// Makes the variable hold these data. Writes nothing when it does already.
    pub(super) fn put(&self, path: &Path, attributes: u32, data: &[u8]) -> Result<(), BootError> {
        let wanted = Some(Value { attributes, data: data.to_vec() });
        if self.read(path)? == wanted {
            return Ok(());
        }
        write(path, &[&attributes.to_le_bytes(), data].concat()).map_err(|source| refused(path, source))?;
        self.sync(path)?;
        if self.read(path)? == wanted { Ok(()) } else { Err(BootError::ReadBack { path: path.to_owned() }) }
    }

    /// Deletes the variable, if there is one.
    pub(super) fn delete(&self, path: &Path) -> Result<(), BootError> {
        let unlocked = unlock(path).map_err(|source| refused(path, source))?;
        match fs::remove_file(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            removed => removed.map_err(|source| refused(path, source))?,
        }
        drop(unlocked);
        self.sync(path)?;
        if self.read(path)?.is_none() { Ok(()) } else { Err(BootError::ReadBack { path: path.to_owned() }) }
    }

    /// Makes the directory durable where it is one on a disk: efivarfs has nothing to sync.
    fn sync(&self, path: &Path) -> Result<(), BootError> {
        let synced = File::open(&self.dir).and_then(|dir| sync(&dir));
        synced.map_err(|source| BootError::Write { path: path.to_owned(), source })
    }
}

/// One `write`. A short one is an error: the same call may be made again.
fn write(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let unlocked = unlock(path)?;
    let is_new = unlocked.is_none();
    let mut file = open(path, OpenOptions::new().write(true).create(is_new))?;
    let written = file.write(bytes).and_then(|length| match length == bytes.len() {
        true => Ok(()),
        false => Err(io::Error::from(io::ErrorKind::WriteZero)),
    });
    if written.is_err() && is_new {
        // The kernel shows an empty file for a variable that the firmware did not take.
        drop(fs::remove_file(path));
    }
    written?;
    if file.metadata()?.len() > bytes.len() as u64 {
        file.set_len(bytes.len() as u64)?;
    }
    sync(&file)
}

/// A file that may be changed as long as this lives.
struct Unlocked {
    file: File,
    flags: Option<IFlags>,
}

/// Takes the immutable flag off; `None` when there is no file.
fn unlock(path: &Path) -> io::Result<Option<Unlocked>> {
    let file = match open(path, OpenOptions::new().read(true)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        opened => opened?,
    };
    // An error here means a file system that knows no such flag.
    let flags = ioctl_getflags(&file).ok().filter(|flags| flags.contains(IFlags::IMMUTABLE));
    if let Some(flags) = flags {
        ioctl_setflags(&file, flags.difference(IFlags::IMMUTABLE))?;
    }
    Ok(Some(Unlocked { file, flags }))
}

impl Drop for Unlocked {
    fn drop(&mut self) {
        if let Some(flags) = self.flags {
            // The flag only guards against a careless `rm`, and the kernel sets it again at the next start.
            let _ = ioctl_setflags(&self.file, flags);
        }
    }
}

fn open(path: &Path, options: &mut OpenOptions) -> io::Result<File> {
    options.custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK).open(path)
}

/// Syncs what can be synced.
fn sync(file: &File) -> io::Result<()> {
    match file.sync_all() {
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => Ok(()),
        synced => synced,
    }
}

fn refused(path: &Path, source: io::Error) -> BootError {
    let path = path.to_owned();
    match source.raw_os_error() {
        Some(libc::ENOSPC) => EfiError::Full { path, source }.into(),
        Some(libc::EROFS | libc::EPERM | libc::EACCES | libc::ENODEV) => EfiError::Refused { path, source }.into(),
        _ => BootError::Write { path, source },
    }
}
