//! Steps on the directory of the entries, made durable.
//!
//! A rename goes to a name that no file has, then the directory is synced and looked at. On vfat the sector with the new
//! name decides: measured, a power cut leaves the old name or the new one. Where the directory's sectors reach the disk in
//! another order, both names or neither can be left of the file that was renamed; the other group's file is never touched.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};
use nix::libc;

use crate::BootError;

/// More files than a directory of boot entries can sensibly have.
const MOST_FILES: usize = 4096;
/// More than any boot entry can sensibly have; a unified kernel image holds an initramfs.
const MOST_BYTES: u64 = 1 << 30;
/// What is not finished yet; the loader does not list it.
const UNFINISHED: &str = "bascule-new.tmp";

/// The names in the directory. One that is not UTF-8 cannot be ours.
pub(super) fn names(dir: &Path) -> Result<Vec<String>, BootError> {
    let failed = |source| BootError::Read { path: dir.to_owned(), source };
    let mut names = Vec::new();
    for entry in fs::read_dir(dir).map_err(failed)? {
        if names.len() == MOST_FILES {
            return Err(failed(io::Error::new(io::ErrorKind::InvalidData, "too many files")));
        }
        names.extend(entry.map_err(failed)?.file_name().into_string().ok());
    }
    Ok(names)
}

/// One rename, durable.
pub(super) fn rename(dir: &Path, from: &str, to: &str) -> Result<(), BootError> {
    let failed = |source| BootError::Write { path: dir.join(to), source };
    rename_to_new(&dir.join(from), &dir.join(to)).map_err(failed)?;
    sync(dir)?;
    let names = names(dir)?;
    let has = |name: &str| names.iter().any(|is| is == name);
    if has(to) && !has(from) { Ok(()) } else { Err(BootError::ReadBack { path: dir.join(to) }) }
}

/// Makes the directory's names durable.
pub(super) fn sync(dir: &Path) -> Result<(), BootError> {
    let synced = File::open(dir).and_then(|dir| dir.sync_all());
    synced.map_err(|source| BootError::Write { path: dir.to_owned(), source })
}

/// A new file with the bytes of `kept`, or an empty one: written and synced under another name, then renamed.
pub(super) fn create(dir: &Path, kept: Option<&Path>, to: &str) -> Result<(), BootError> {
    let unfinished = dir.join(UNFINISHED);
    let failed = |source| BootError::Write { path: unfinished.clone(), source };
    match fs::remove_file(&unfinished) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
        _ => {}
    }
    let new = OpenOptions::new().write(true).create_new(true).custom_flags(libc::O_NOFOLLOW).open(&unfinished);
    let mut new = new.map_err(failed)?;
    if let Some(kept) = kept {
        let source = |source| BootError::Read { path: kept.to_owned(), source };
        let mut bytes = File::open(kept).map_err(source)?.take(MOST_BYTES);
        io::copy(&mut bytes, &mut new).map_err(failed)?;
    }
    new.sync_all().map_err(failed)?;
    drop(new);
    rename(dir, UNFINISHED, to)
}

/// Never over an existing file, not even over one that appears at this moment.
fn rename_to_new(from: &Path, to: &Path) -> io::Result<()> {
    match renameat2(AT_FDCWD, from, AT_FDCWD, to, RenameFlags::RENAME_NOREPLACE) {
        // A file system that does not know the flag: nobody else writes here, the daemon holds its lock.
        Err(Errno::EINVAL | Errno::ENOSYS) => match fs::symlink_metadata(to) {
            Ok(_) => Err(io::ErrorKind::AlreadyExists.into()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => fs::rename(from, to),
            Err(error) => Err(error),
        },
        other => other.map_err(io::Error::from),
    }
}
