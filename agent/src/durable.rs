//! The one place where small files become durable: temp, fsync, rename, fsync of the directory, read back.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// A step of making a file durable that failed.
#[derive(Debug, thiserror::Error)]
#[error("cannot {doing} {path}")]
pub struct DurableError {
    /// What was being done, such as `write`.
    pub doing: &'static str,
    /// To which file.
    pub path: PathBuf,
    /// What the system said.
    #[source]
    pub source: io::Error,
}

/// Replaces `path` by `bytes` so that a power cut leaves the old file or the new one, and the new one once this returns.
///
/// # Errors
/// [`DurableError`] names the step; the old file is then still in place, or the new one is complete.
pub fn replace(path: &Path, bytes: &[u8]) -> Result<(), DurableError> {
    let temp = temp_path(path);
    let failed = |doing, path: &Path| {
        let path = path.to_owned();
        move |source| DurableError { doing, path, source }
    };
    // A left-over of an earlier cut may be there: it was never renamed, so nobody reads it.
    match fs::remove_file(&temp) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed("remove", &temp)(error)),
        _ => {}
    }
    let mut file =
        OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temp).map_err(failed("create", &temp))?;
    file.write_all(bytes).map_err(failed("write", &temp))?;
    file.sync_all().map_err(failed("sync", &temp))?;
    drop(file);
    fs::rename(&temp, path).map_err(failed("rename onto", path))?;
    let directory = path.parent().unwrap_or(Path::new("."));
    File::open(directory).and_then(|dir| dir.sync_all()).map_err(failed("sync the directory of", path))?;
    let held = read_bounded(path, bytes.len() as u64 + 1).map_err(failed("read back", path))?;
    if held != bytes {
        let source = io::Error::new(io::ErrorKind::InvalidData, "it holds other bytes than were written");
        return Err(failed("read back", path)(source));
    }
    Ok(())
}

/// Reads at most `limit` bytes of a file; more is an error, not a prefix.
///
/// # Errors
/// Those of the file system, and `FileTooLarge` beyond the limit.
pub fn read_bounded(path: &Path, limit: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?.take(limit.saturating_add(1)).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > limit {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, format!("it has more than {limit} bytes")));
    }
    Ok(bytes)
}

fn temp_path(path: &Path) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".new");
    path.with_file_name(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_left_over_of_a_cut_does_not_stop_the_next_write_and_none_is_left() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("record");
        fs::write(dir.path().join("record.new"), "torn").unwrap();
        replace(&path, b"whole").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"whole");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_file_beyond_the_limit_is_refused_not_cut() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("large");
        fs::write(&path, [0; 10]).unwrap();
        assert_eq!(read_bounded(&path, 10).unwrap().len(), 10);
        assert!(read_bounded(&path, 9).is_err());
    }
}
