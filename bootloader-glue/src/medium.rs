//! What a medium holds, not what memory does: reads past the page cache, of any bytes of a file or a block device.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
use nix::libc;

/// Alignment that direct input asks for on every device we know.
const DIRECT_ALIGNMENT: usize = 4096;

/// Reads past the page cache: directly where the file system can, else after dropping its pages.
pub(crate) fn read_from_device(path: &Path, offset: u64, length: usize) -> io::Result<Vec<u8>> {
    match read_direct(path, offset, length) {
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
            let file = open(path, false, 0)?;
            file.sync_all()?;
            posix_fadvise(&file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED).map_err(io::Error::from)?;
            let mut bytes = vec![0; length];
            let read = fill(&file, &mut bytes, offset)?;
            bytes.truncate(read);
            Ok(bytes)
        }
        other => other,
    }
}

/// Reads the aligned blocks around the bytes in one call.
fn read_direct(path: &Path, offset: u64, length: usize) -> io::Result<Vec<u8>> {
    let file = open(path, false, libc::O_DIRECT)?;
    let before = usize::try_from(offset % DIRECT_ALIGNMENT as u64).map_err(io::Error::other)?;
    let window = (before + length).next_multiple_of(DIRECT_ALIGNMENT);
    let mut memory = vec![0u8; window + DIRECT_ALIGNMENT];
    let first = memory.as_ptr().align_offset(DIRECT_ALIGNMENT);
    let aligned = memory.get_mut(first..first.saturating_add(window)).ok_or(io::ErrorKind::InvalidInput)?;
    let read = file.read_at(aligned, offset - before as u64)?;
    Ok(aligned.get(before..read.min(before + length)).unwrap_or_default().to_vec())
}

/// Reads up to the end of the buffer or of the file; how much.
pub(crate) fn fill(file: &File, bytes: &mut [u8], start: u64) -> io::Result<usize> {
    let mut length = 0;
    while let Some(rest) = bytes.get_mut(length..).filter(|rest| !rest.is_empty()) {
        match file.read_at(rest, start.saturating_add(length as u64)) {
            Ok(0) => break,
            Ok(more) => length += more,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(length)
}

/// Devices have names that are links, so links are followed; a pipe in a device's place is not waited for.
pub(crate) fn open(path: &Path, write: bool, flags: libc::c_int) -> io::Result<File> {
    OpenOptions::new().read(true).write(write).custom_flags(flags | libc::O_NONBLOCK).open(path)
}
