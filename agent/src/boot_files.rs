//! The kernel of a prepared group, brought to where a loader finds it that cannot read the slot: the boot partition.
//!
//! Each group has a file of its own there, so that no group is ever a mix of two versions: it is written while the loader
//! refuses the group, and the loader's one write chooses both the group and its file. A cut in the middle leaves rubbish in
//! a file that nothing starts, and the next attempt writes it again. It is overwritten in place, so that a FAT's chains change
//! as little as they can.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use bascule_core::Disposition;
use nix::fcntl::{OFlag, OpenHow, PosixFadviseAdvice, ResolveFlag, openat2, posix_fadvise};
use nix::sys::statvfs::statvfs;
use sha2::{Digest, Sha256};

/// Where a root has its kernel.
pub const KERNEL: &str = "boot/vmlinuz";
/// Read and written at once, in bytes.
const PIECE: usize = 1 << 20;
/// More than any kernel has, in bytes.
const MOST_BYTES: u64 = 256 << 20;

/// Why a kernel is not where the loader looks for it.
#[derive(Debug, thiserror::Error)]
pub enum BootFileError {
    /// The prepared root cannot be looked into.
    #[error("cannot mount the prepared root to take its kernel for the boot partition: {reason}")]
    Mount {
        /// What the kernel said.
        reason: String,
    },
    /// The prepared root has none.
    #[error("the prepared root has no kernel at /{KERNEL}, and the boot loader cannot look for one in the slot")]
    NoKernel(#[source] io::Error),
    /// The boot partition is too small.
    #[error("the boot partition has {free} bytes for a kernel of {size} bytes, in {path}")]
    NoRoom {
        /// Where it was to go.
        path: PathBuf,
        /// Bytes it takes in whole clusters.
        size: u64,
        /// Bytes that are free or taken by the kernel it replaces.
        free: u64,
    },
    /// The boot partition is not there.
    #[error("{path} is not on a partition of its own: the boot partition is not mounted")]
    NotMounted {
        /// The folder with the kernels.
        path: PathBuf,
    },
    /// It could not be written.
    #[error("cannot write the kernel {path}")]
    Write {
        /// Where.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Other bytes came back.
    #[error("the kernel {path} reads back as other bytes than were written")]
    ReadBack {
        /// Where.
        path: PathBuf,
    },
}

impl BootFileError {
    /// Stable code of `docs/errors.md`.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            BootFileError::Mount { .. } => "boot-files.mount",
            BootFileError::NoKernel(_) => "boot-files.no-kernel",
            BootFileError::NoRoom { .. } => "boot-files.no-room",
            BootFileError::NotMounted { .. } => "boot-files.not-mounted",
            BootFileError::Write { .. } => "boot-files.write",
            BootFileError::ReadBack { .. } => "boot-files.read-back",
        }
    }

    /// What a person can do about it.
    #[must_use]
    pub fn hint(&self) -> String {
        match self {
            BootFileError::Mount { .. } => "build its file system into this kernel, or load the module".into(),
            BootFileError::NoKernel(_) => "put the kernel into the image when it is built".into(),
            BootFileError::NoRoom { .. } => "make room on the boot partition; each group has one kernel there".into(),
            BootFileError::NotMounted { .. } => "mount the boot partition (see `findmnt` and fstab)".into(),
            BootFileError::Write { .. } => "check that the boot partition is mounted read-write and healthy".into(),
            BootFileError::ReadBack { .. } => "the medium of the boot partition loses writes: replace it".into(),
        }
    }

    /// What is to be done about it.
    #[must_use]
    pub fn disposition(&self) -> Disposition {
        Disposition::Person
    }
}

/// Makes `to` hold the kernel of the root that is mounted at `root`, durably and read back. What is so already is not written.
///
/// # Errors
/// [`BootFileError`]; before the first write where there is no room.
pub fn install_kernel(root: &Path, to: &Path) -> Result<(), BootFileError> {
    let mut source = open_below(root, KERNEL).map_err(BootFileError::NoKernel)?;
    let wanted = digest(&mut source).map_err(BootFileError::NoKernel)?;
    let failed = |source| BootFileError::Write { path: to.to_owned(), source };
    // What an earlier attempt wrote may be in memory only.
    if stored_digest(to).is_ok_and(|there| there == wanted) {
        return Ok(());
    }
    check_room(&source, to)?;
    source.seek(SeekFrom::Start(0)).map_err(BootFileError::NoKernel)?;
    copy(&mut source, to).map_err(failed)?;
    match stored_digest(to) {
        Ok(there) if there == wanted => Ok(()),
        Ok(_) => Err(BootFileError::ReadBack { path: to.to_owned() }),
        Err(error) => Err(failed(error)),
    }
}

/// Refuses a folder on the root: what is written there no loader would find.
///
/// # Errors
/// [`BootFileError::NotMounted`].
pub fn check_mounted(root: &Path, to: &Path) -> Result<(), BootFileError> {
    let folder = to.parent().unwrap_or(to);
    let device = |path: &Path| fs::metadata(path).map(|about| about.dev());
    match (device(root), device(folder)) {
        (Ok(root), Ok(folder)) if root != folder => Ok(()),
        _ => Err(BootFileError::NotMounted { path: folder.to_owned() }),
    }
}

/// A file of the mounted root; links lead where they would if it were the root of the system.
fn open_below(root: &Path, path: &str) -> io::Result<File> {
    let root = File::open(root)?;
    let how = OpenHow::new().flags(OFlag::O_RDONLY | OFlag::O_CLOEXEC).resolve(ResolveFlag::RESOLVE_IN_ROOT);
    Ok(File::from(openat2(root, path, how)?))
}

/// In whole clusters: the file grows from what it has.
fn check_room(source: &File, to: &Path) -> Result<(), BootFileError> {
    let failed = |source| BootFileError::Write { path: to.to_owned(), source };
    let size = source.metadata().map_err(BootFileError::NoKernel)?.len();
    let room = statvfs(to.parent().unwrap_or(to)).map_err(|error| failed(error.into()))?;
    let cluster = room.fragment_size().max(1);
    let whole = |bytes: u64| bytes.div_ceil(cluster).saturating_mul(cluster);
    let replaced = fs::metadata(to).map_or(0, |old| whole(old.len()));
    let free = room.blocks_available().saturating_mul(cluster).saturating_add(replaced);
    let size = whole(size);
    if size > free {
        return Err(BootFileError::NoRoom { path: to.to_owned(), size, free });
    }
    Ok(())
}

/// In place: on FAT the chain of clusters stays what it is for as far as the old kernel goes.
fn copy(source: &mut File, to: &Path) -> io::Result<()> {
    let mut options = OpenOptions::new();
    let mut file = options.write(true).create(true).truncate(false).custom_flags(OFlag::O_NOFOLLOW.bits()).open(to)?;
    let length = io::copy(&mut source.take(MOST_BYTES), &mut file)?;
    file.set_len(length)?;
    file.sync_all()?;
    File::open(to.parent().unwrap_or(to))?.sync_all()
}

/// What the medium holds, not what memory does.
fn stored_digest(path: &Path) -> io::Result<[u8; 32]> {
    let mut file = OpenOptions::new().read(true).write(true).custom_flags(OFlag::O_NOFOLLOW.bits()).open(path)?;
    file.sync_all()?;
    File::open(path.parent().unwrap_or(path))?.sync_all()?;
    posix_fadvise(&file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED)?;
    digest(&mut file)
}

fn digest(file: &mut File) -> io::Result<[u8; 32]> {
    let about = file.metadata()?;
    if !about.is_file() || about.len() > MOST_BYTES {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let (mut hash, mut piece) = (Sha256::new(), vec![0; PIECE]);
    loop {
        let count = file.read(&mut piece)?;
        match piece.get(..count) {
            Some([]) | None => return Ok(hash.finalize().into()),
            Some(bytes) => hash.update(bytes),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kernel_is_copied_whole_over_a_longer_one_and_not_again() {
        let dir = tempfile::tempdir().unwrap();
        let (root, to) = (dir.path().join("root"), dir.path().join("esp/bascule/linux-b"));
        fs::create_dir_all(root.join("boot")).unwrap();
        fs::create_dir_all(to.parent().unwrap()).unwrap();
        fs::write(&to, vec![1; 3 << 20]).unwrap();
        assert_eq!(install_kernel(&root, &to).unwrap_err().code(), "boot-files.no-kernel");
        let kernel: Vec<u8> = (0..(2u32 << 20)).map(|at| (at % 251) as u8).collect();
        fs::write(root.join(KERNEL), &kernel).unwrap();
        install_kernel(&root, &to).unwrap();
        assert_eq!(fs::read(&to).unwrap(), kernel);
        let written = fs::metadata(&to).unwrap().modified().unwrap();
        install_kernel(&root, &to).unwrap();
        assert_eq!(fs::metadata(&to).unwrap().modified().unwrap(), written, "it was written again");
    }

    #[test]
    fn a_root_may_not_lead_out_of_itself_with_a_link() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("root");
        fs::create_dir_all(root.join("boot")).unwrap();
        fs::write(dir.path().join("secret"), "x").unwrap();
        std::os::unix::fs::symlink(dir.path().join("secret"), root.join(KERNEL)).unwrap();
        let to = dir.path().join("linux-b");
        assert_eq!(install_kernel(&root, &to).unwrap_err().code(), "boot-files.no-kernel");
        fs::remove_dir_all(root.join("boot")).unwrap();
        fs::create_dir_all(dir.path().join("boot")).unwrap();
        fs::write(dir.path().join(KERNEL), "the booted system's").unwrap();
        std::os::unix::fs::symlink(dir.path().join("boot"), root.join("boot")).unwrap();
        assert_eq!(install_kernel(&root, &to).unwrap_err().code(), "boot-files.no-kernel");
    }

    #[test]
    fn a_link_within_the_root_is_followed() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("root");
        fs::create_dir_all(root.join("boot")).unwrap();
        fs::write(root.join("boot/vmlinuz-6.1"), "kernel").unwrap();
        std::os::unix::fs::symlink("/boot/vmlinuz-6.1", root.join(KERNEL)).unwrap();
        let to = dir.path().join("linux-b");
        install_kernel(&root, &to).unwrap();
        assert_eq!(fs::read(&to).unwrap(), b"kernel");
    }
}
