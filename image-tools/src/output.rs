//! Files that appear whole or not at all.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use tempfile::NamedTempFile;

/// A file without its name; it is gone again unless it is [kept](Self::keep).
#[derive(Debug)]
pub(crate) struct Output {
    file: NamedTempFile,
    path: PathBuf,
}

impl Output {
    /// Begins the file that will be `path`, in the same directory.
    pub(crate) fn begin(path: &Path) -> io::Result<Self> {
        let file = tempfile::Builder::new().prefix(".partial-").tempfile_in(directory(path))?;
        Ok(Output { file, path: path.to_owned() })
    }

    /// The file, to be written.
    pub(crate) fn file(&mut self) -> &mut File {
        self.file.as_file_mut()
    }

    /// Gives it its name, durably, in place of what had it before.
    pub(crate) fn keep(self) -> io::Result<()> {
        let path = self.path.clone();
        self.keep_as(&path)
    }

    /// Gives it another name in the same directory.
    pub(crate) fn keep_as(self, path: &Path) -> io::Result<()> {
        let open = self.file.as_file();
        open.set_permissions(fs::Permissions::from_mode(0o644))?;
        open.sync_all()?;
        self.file.persist(path).map_err(|error| error.error)?;
        File::open(directory(path))?.sync_all()
    }
}

/// Where `path` lies.
pub(crate) fn directory(path: &Path) -> &Path {
    path.parent().filter(|path| !path.as_os_str().is_empty()).unwrap_or(Path::new("."))
}
