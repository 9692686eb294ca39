//! Bytes of a small settings file, made durable.
//!
//! The file is never truncated, renamed over or created anew while it has its right length: one `pwrite` of the whole
//! block, then `fsync`, then a read from the device. Measured on vfat, that is one write of one extent, of which only
//! the first sector changes; truncating or renaming over has crash states in which the file is empty.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
use nix::libc;

use crate::BootError;

use super::env::BLOCK_LEN;

/// More than any settings file can sensibly have; a longer one is damaged whatever it holds.
const READ_LIMIT: u64 = 4096;

/// Alignment that direct input asks for on every device we know.
const DIRECT_ALIGNMENT: usize = 4096;

/// The file's bytes up to [`READ_LIMIT`]; `None` when there is no file.
pub(super) fn read(path: &Path) -> Result<Option<Vec<u8>>, BootError> {
    let failed = |source| BootError::Read { path: path.to_owned(), source };
    let file = match open(path, false, 0) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed(error)),
    };
    let mut bytes = Vec::new();
    io::Read::read_to_end(&mut io::Read::take(file, READ_LIMIT), &mut bytes).map_err(failed)?;
    Ok(Some(bytes))
}

/// Makes the file hold exactly these [`BLOCK_LEN`] bytes, durably. Writes nothing when the device holds them already.
pub(super) fn put(path: &Path, block: &[u8]) -> Result<(), BootError> {
    let failed = |source| BootError::Write { path: path.to_owned(), source };
    match open(path, true, 0) {
        Ok(file) if file.metadata().map_err(failed)?.len() == block.len() as u64 => {
            if !holds(&file, path, block)? {
                overwrite(&file, block).map_err(failed)?;
            }
            file.sync_all().map_err(failed)?;
        }
        Ok(_) => recreate(path, block).map_err(failed)?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => recreate(path, block).map_err(failed)?,
        Err(error) => return Err(failed(error)),
    }
    let read_back = read_from_device(path).map_err(|source| BootError::Read { path: path.to_owned(), source })?;
    if read_back == block { Ok(()) } else { Err(BootError::ReadBack { path: path.to_owned() }) }
}

/// Whether both the page cache and the device hold the block.
fn holds(file: &File, path: &Path, block: &[u8]) -> Result<bool, BootError> {
    let failed = |source| BootError::Read { path: path.to_owned(), source };
    let mut cached = vec![0; block.len()];
    file.read_exact_at(&mut cached, 0).map_err(failed)?;
    Ok(cached == block && read_from_device(path).map_err(failed)? == block)
}

/// One `pwrite`. A short one is an error: the same call may be made again.
fn overwrite(file: &File, block: &[u8]) -> io::Result<()> {
    let written = file.write_at(block, 0)?;
    if written == block.len() { Ok(()) } else { Err(io::Error::from(io::ErrorKind::WriteZero)) }
}

/// Makes the file anew: a temporary file, synced, renamed, the directory synced.
///
/// On FAT a power cut in here can leave an empty file or none. That is safe because the file was useless before, and
/// the loader goes by the other one of the pair: `fallback` when this is `grubenv`, `grubenv` when this is `fallback`.
fn recreate(path: &Path, block: &[u8]) -> io::Result<()> {
    let dir = path.parent().ok_or(io::ErrorKind::InvalidInput)?;
    let temporary = path.with_extension("new");
    match fs::remove_file(&temporary) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = OpenOptions::new().write(true).create_new(true).custom_flags(libc::O_NOFOLLOW).open(&temporary)?;
    let written = file.write_all(block).and_then(|()| file.sync_all());
    let renamed = written.and_then(|()| fs::rename(&temporary, path));
    if renamed.is_err() {
        // The half-made file would only take up the space that the next attempt needs.
        drop(fs::remove_file(&temporary));
    }
    renamed?;
    File::open(dir)?.sync_all()
}

/// Reads the file past the page cache: directly where the file system can, else after dropping its pages.
fn read_from_device(path: &Path) -> io::Result<Vec<u8>> {
    match read_direct(path) {
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
            let file = open(path, false, 0)?;
            file.sync_all()?;
            posix_fadvise(&file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED).map_err(io::Error::from)?;
            let mut bytes = vec![0; BLOCK_LEN];
            file.read_exact_at(&mut bytes, 0)?;
            Ok(bytes)
        }
        other => other,
    }
}

fn read_direct(path: &Path) -> io::Result<Vec<u8>> {
    let file = open(path, false, libc::O_DIRECT)?;
    let mut memory = vec![0u8; DIRECT_ALIGNMENT * 2];
    let start = memory.as_ptr().align_offset(DIRECT_ALIGNMENT);
    let aligned = memory.get_mut(start..start.saturating_add(DIRECT_ALIGNMENT)).ok_or(io::ErrorKind::InvalidInput)?;
    let length = file.read_at(aligned, 0)?;
    Ok(aligned.get(..length).unwrap_or_default().to_vec())
}

fn open(path: &Path, write: bool, flags: libc::c_int) -> io::Result<File> {
    OpenOptions::new().read(true).write(write).custom_flags(flags | libc::O_NOFOLLOW).open(path)
}
