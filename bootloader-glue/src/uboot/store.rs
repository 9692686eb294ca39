//! Bytes of one copy of the environment, made durable where they lie in a file or on a block device.
//!
//! One `pwrite` of the whole copy, then `fsync`, then a read from the device. Nothing is truncated or renamed over: the
//! copy under write is the older one, and what a power cut leaves of it fails its checksum.

use std::fs::{File, OpenOptions};
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, FileTypeExt};
use std::path::Path;

use crate::BootError;
use crate::medium::{fill, open, read_from_device};

use super::config::Place;

/// What may be done when there is no file yet, or a short one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Missing {
    /// It is made: the file lies beside the loader's script.
    Make,
    /// It is an error: the place is a device that is not there, or a file that somebody else has to make.
    Refuse,
}

/// The bytes at a place, fewer than `size` when there are no more. `None` when there is no file and one may be made.
pub(super) fn read(place: &Place, size: usize, missing: Missing) -> Result<Option<Vec<u8>>, BootError> {
    let failed = |source| BootError::Read { path: place.path.clone(), source };
    let mut file = match open(&place.path, false, 0) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound && missing == Missing::Make => return Ok(None),
        Err(error) => return Err(failed(error)),
    };
    let Some(start) = start(&mut file, place).map_err(failed)? else { return Ok(Some(Vec::new())) };
    let mut bytes = vec![0; size];
    let length = fill(&file, &mut bytes, start).map_err(failed)?;
    bytes.truncate(length);
    Ok(Some(bytes))
}

/// Makes the place hold exactly these bytes, durably. Writes nothing when the device holds them already.
pub(super) fn put(place: &Place, bytes: &[u8], missing: Missing) -> Result<(), BootError> {
    let path = &place.path;
    let failed = |source| BootError::Write { path: path.clone(), source };
    let unreadable = |source| BootError::Read { path: path.clone(), source };
    let mut file = match open(path, true, 0) {
        Err(error) if error.kind() == io::ErrorKind::NotFound && missing == Missing::Make => {
            make(path).map_err(failed)?
        }
        opened => opened.map_err(failed)?,
    };
    let start = start(&mut file, place).map_err(failed)?;
    let start = start.ok_or_else(|| failed(io::ErrorKind::UnexpectedEof.into()))?;
    let whole = file.seek(SeekFrom::End(0)).map_err(failed)?;
    let end = start.saturating_add(bytes.len() as u64);
    if whole < end && (missing == Missing::Refuse || place.offset < 0) {
        // Stopping here is safe: nothing was written.
        return Err(failed(io::ErrorKind::UnexpectedEof.into()));
    }
    let holds = whole >= end && holds(&file, place, start, bytes).map_err(unreadable)?;
    if !holds {
        let written = file.write_at(bytes, start).map_err(failed)?;
        if written != bytes.len() {
            return Err(failed(io::ErrorKind::WriteZero.into()));
        }
    }
    file.sync_all().map_err(failed)?;
    let read_back = read_from_device(path, start, bytes.len()).map_err(unreadable)?;
    if read_back == bytes { Ok(()) } else { Err(BootError::ReadBack { path: path.clone() }) }
}

/// The bytes, which were read before, are on the device. Writes nothing.
pub(super) fn confirm(place: &Place, bytes: &[u8]) -> Result<(), BootError> {
    let path = &place.path;
    let failed = |source| BootError::Write { path: path.clone(), source };
    let mut file = open(path, true, 0).map_err(failed)?;
    file.sync_all().map_err(failed)?;
    let unreadable = |source| BootError::Read { path: path.clone(), source };
    let start = start(&mut file, place).map_err(unreadable)?.unwrap_or_default();
    let read_back = read_from_device(path, start, bytes.len()).map_err(unreadable)?;
    if read_back == bytes { Ok(()) } else { Err(BootError::ReadBack { path: path.clone() }) }
}

/// Cuts what stands behind the last byte that a file of ours can have: with it the file is useless to the loader.
pub(super) fn shorten(path: &Path, length: usize) -> Result<(), BootError> {
    let failed = |source| BootError::Write { path: path.to_owned(), source };
    let file = match open(path, true, 0) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        opened => opened.map_err(failed)?,
    };
    let long = file.metadata().map_err(failed)?;
    if long.is_file() && long.len() > length as u64 { file.set_len(length as u64).map_err(failed) } else { Ok(()) }
}

/// Whether both the page cache and the device hold the bytes.
fn holds(file: &File, place: &Place, start: u64, bytes: &[u8]) -> io::Result<bool> {
    let mut cached = vec![0; bytes.len()];
    let length = fill(file, &mut cached, start)?;
    Ok(length == bytes.len() && cached == bytes && read_from_device(&place.path, start, bytes.len())? == bytes)
}

/// Makes an empty file that is durably in its directory. A power cut from here to the write leaves an empty file where
/// there was none: a copy without a checksum, as before.
fn make(path: &Path) -> io::Result<File> {
    let dir = path.parent().ok_or(io::ErrorKind::InvalidInput)?;
    let file = OpenOptions::new().read(true).write(true).create_new(true).open(path)?;
    File::open(dir)?.sync_all()?;
    Ok(file)
}

/// Where the place begins; `None` when it would begin before the first byte.
fn start(file: &mut File, place: &Place) -> io::Result<Option<u64>> {
    let kind = file.metadata()?.file_type();
    if !kind.is_file() && !kind.is_block_device() {
        let reason = "not a file or a block device: raw flash has to be erased, which is not done here";
        return Err(io::Error::new(io::ErrorKind::Unsupported, reason));
    }
    match u64::try_from(place.offset) {
        Ok(offset) => Ok(Some(offset)),
        Err(_) => Ok(file.seek(SeekFrom::End(0))?.checked_sub(place.offset.unsigned_abs())),
    }
}
