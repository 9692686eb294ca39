//! The bytes of `autoboot.txt`, changed where they lie.
//!
//! One `pwrite` of the whole file, then `fsync`, then a read from the device. The file is never made, truncated, renamed
//! over or lengthened: on FAT each of these has crash states in which it is empty or gone, and there is no second copy.

use std::fs::{File, OpenOptions};
use std::io::{self, Read as _};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use nix::libc;

use crate::BootError;
use crate::medium::read_from_device;

use super::error::TrybootError;
use super::file::FILE_LEN;

/// The file's bytes, which are [`FILE_LEN`].
pub(super) fn read(path: &Path) -> Result<Vec<u8>, BootError> {
    let failed = |source| BootError::Read { path: path.to_owned(), source };
    let file = open(path, false).map_err(failed)?;
    check_length(path, &file)?;
    let mut bytes = Vec::with_capacity(FILE_LEN);
    file.take(FILE_LEN as u64).read_to_end(&mut bytes).map_err(failed)?;
    Ok(bytes)
}

/// Makes the file hold exactly these bytes, durably. Writes nothing when the device holds them already.
pub(super) fn put(path: &Path, bytes: &[u8]) -> Result<(), BootError> {
    let failed = |source| BootError::Write { path: path.to_owned(), source };
    let unreadable = |source| BootError::Read { path: path.to_owned(), source };
    let file = open(path, true).map_err(failed)?;
    // Stopping here is safe: nothing was written.
    check_length(path, &file)?;
    let mut cached = vec![0; FILE_LEN];
    file.read_exact_at(&mut cached, 0).map_err(unreadable)?;
    if cached != bytes || read_from_device(path, 0, FILE_LEN).map_err(unreadable)? != bytes {
        let written = file.write_at(bytes, 0).map_err(failed)?;
        if written != bytes.len() {
            return Err(failed(io::ErrorKind::WriteZero.into()));
        }
    }
    file.sync_all().map_err(failed)?;
    let read_back = read_from_device(path, 0, FILE_LEN).map_err(unreadable)?;
    if read_back == bytes { Ok(()) } else { Err(BootError::ReadBack { path: path.to_owned() }) }
}

fn check_length(path: &Path, file: &File) -> Result<(), BootError> {
    let data = file.metadata().map_err(|source| BootError::Read { path: path.to_owned(), source })?;
    if data.is_file() && data.len() == FILE_LEN as u64 {
        return Ok(());
    }
    let what = format!("it is {} bytes long, and not {FILE_LEN}", data.len());
    Err(TrybootError::Shape { path: path.to_owned(), what }.into())
}

fn open(path: &Path, write: bool) -> io::Result<File> {
    OpenOptions::new().read(true).write(write).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK).open(path)
}
