//! Steps on the directory of the entries, made durable.
//!
//! A rename goes to a name that no file has, then the directory is synced and looked at. On vfat the sector with the new
//! name decides: measured, a power cut leaves the old name or the new one. Where the directory's sectors reach the disk in
//! another order, both names or neither can be left of the file that was renamed; the other group's file is never touched.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
use nix::libc;
use rustix::fs::{CWD, RenameFlags, renameat_with};
use rustix::io::Errno;

use crate::BootError;

/// More files than a directory of boot entries can sensibly have.
const MOST_FILES: usize = 4096;
/// More than any boot entry can sensibly have; a unified kernel image holds an initramfs.
const MOST_BYTES: u64 = 1 << 30;
/// More than the text of an entry that we write has: one page.
const MOST_TEXT_BYTES: u64 = DIRECT_ALIGNMENT as u64;
/// Alignment that direct input asks for on every device we know.
const DIRECT_ALIGNMENT: usize = 4096;
/// What is not finished yet has this name with a number; the loader does not list it, and it is no name of ours.
fn unfinished_name(number: usize) -> String {
    format!("bascule-new-{number}.tmp")
}

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
    sync_file(&dir.join(to))?;
    sync(dir)?;
    let names = names(dir)?;
    let has = |name: &str| names.iter().any(|is| is == name);
    if has(to) && !has(from) { Ok(()) } else { Err(BootError::ReadBack { path: dir.join(to) }) }
}

/// Makes a name durable with what it names: vfat writes a new name with no length and no cluster first. These are in the
/// file's inode, which the directory's sync does not write. Measured: a cut within half a minute left an empty file.
pub(super) fn sync_file(path: &Path) -> Result<(), BootError> {
    match File::open(path).and_then(|file| file.sync_all()) {
        // A name that is not there is seen by whoever looks at the names.
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(BootError::Write { path: path.to_owned(), source: error })
        }
        _ => Ok(()),
    }
}

/// Makes the directory's names durable.
pub(super) fn sync(dir: &Path) -> Result<(), BootError> {
    let synced = File::open(dir).and_then(|dir| dir.sync_all());
    synced.map_err(|source| BootError::Write { path: dir.to_owned(), source })
}

/// A new file with the bytes of `kept`, or an empty one: written and synced under a name that no file has, then renamed.
///
/// What an earlier call left that was cut off is neither deleted nor written to, nor is its name taken again. Linux' vfat
/// writes the new name of a rename before it takes the old one away, and the sync of the renamed file brings the first to
/// the medium without the second where the two are in different sectors of the directory. After a cut there the left-over
/// is a second name of the entry's own clusters: to delete it would free them, and the next file to be written would be
/// what the loader reads as the entry. No contents tell such a left-over from one that was never renamed, because entries
/// are written in place later. What a call made itself and could not finish, and did not rename, it takes away.
pub(super) fn create(dir: &Path, kept: Option<&Path>, to: &str) -> Result<(), BootError> {
    let (unfinished, mut new) = unfinished(dir)?;
    let written = fill(&mut new, &dir.join(&unfinished), kept);
    drop(new);
    if let Err(error) = written {
        // A full boot partition is tried again and again: each attempt must not take a name and what room there was.
        drop(fs::remove_file(dir.join(&unfinished)));
        return Err(error);
    }
    rename(dir, &unfinished, to)
}

/// A new file under the first name for what is unfinished that no file has, and that name.
fn unfinished(dir: &Path) -> Result<(String, File), BootError> {
    for name in (0..MOST_FILES).map(unfinished_name) {
        let path = dir.join(&name);
        let new = OpenOptions::new().write(true).create_new(true).custom_flags(libc::O_NOFOLLOW).open(&path);
        match new {
            Ok(new) => return Ok((name, new)),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(source) => return Err(BootError::Write { path, source }),
        }
    }
    let source = io::Error::new(io::ErrorKind::AlreadyExists, "too many unfinished files");
    Err(BootError::Write { path: dir.to_owned(), source })
}

/// Copies what was kept into a new file, durably.
fn fill(new: &mut File, path: &Path, kept: Option<&Path>) -> Result<(), BootError> {
    let failed = |source| BootError::Write { path: path.to_owned(), source };
    if let Some(kept) = kept {
        let source = |source| BootError::Read { path: kept.to_owned(), source };
        let mut bytes = File::open(kept).map_err(source)?.take(MOST_BYTES);
        io::copy(&mut bytes, new).map_err(failed)?;
    }
    new.sync_all().map_err(failed)
}

/// Makes a file that is there hold exactly these bytes, durably: written in place, synced, and read back from the device.
///
/// For what the loader does not list: a cut can leave it torn. Never by a rename over it, which on FAT can leave two names
/// of one file, nor by a new file, whose old one nobody may delete.
pub(super) fn overwrite(path: &Path, bytes: &[u8]) -> Result<(), BootError> {
    let failed = |source| BootError::Write { path: path.to_owned(), source };
    let open = |flags| OpenOptions::new().read(true).write(true).custom_flags(flags | libc::O_NOFOLLOW).open(path);
    let file = open(0).map_err(failed)?;
    file.write_all_at(bytes, 0).map_err(failed)?;
    file.set_len(bytes.len() as u64).map_err(failed)?;
    file.sync_all().map_err(failed)?;
    let unread = |source| BootError::Read { path: path.to_owned(), source };
    let read_back = match open(libc::O_DIRECT).and_then(|file| read_direct(&file)) {
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
            posix_fadvise(&file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED)
                .map_err(|errno| unread(errno.into()))?;
            let mut bytes = Vec::new();
            (&file).take(MOST_TEXT_BYTES).read_to_end(&mut bytes).map(|_| bytes)
        }
        other => other,
    };
    let same = read_back.map_err(unread)? == bytes;
    if same { Ok(()) } else { Err(BootError::ReadBack { path: path.to_owned() }) }
}

/// The file's first [`MOST_TEXT_BYTES`] bytes, past the page cache.
fn read_direct(file: &File) -> io::Result<Vec<u8>> {
    let mut memory = vec![0u8; DIRECT_ALIGNMENT * 2];
    let start = memory.as_ptr().align_offset(DIRECT_ALIGNMENT);
    let aligned = memory.get_mut(start..start.saturating_add(DIRECT_ALIGNMENT)).ok_or(io::ErrorKind::InvalidInput)?;
    let length = file.read_at(aligned, 0)?;
    Ok(aligned.get(..length).unwrap_or_default().to_vec())
}

/// Never over an existing file, not even over one that appears at this moment.
fn rename_to_new(from: &Path, to: &Path) -> io::Result<()> {
    // rustix has this call for every C library; nix only for glibc.
    match renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
        // A file system that does not know the flag: nobody else writes here, the daemon holds its lock.
        Err(Errno::INVAL | Errno::NOSYS) => match fs::symlink_metadata(to) {
            Ok(_) => Err(io::ErrorKind::AlreadyExists.into()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => fs::rename(from, to),
            Err(error) => Err(error),
        },
        other => other.map_err(io::Error::from),
    }
}
