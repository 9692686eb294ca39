//! Puts the files of a set where they belong, durably, in an order that leaves no two files on the same clusters.

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, OFlag, PosixFadviseAdvice, fallocate, posix_fadvise};
use sha2::{Digest, Sha256};

use super::error::BootFileError;
use super::set::{MOST_BYTES, Wanted, folded};

/// Read at once, in bytes.
const PIECE: usize = 1 << 20;

/// What a file that is there already keeps while it is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Clusters {
    /// None of its clusters, before it gets new ones. For files that have one name for certain.
    New,
    /// Those that it has, of which another name may know.
    Kept,
}

/// The digest of a file.
pub(super) type Sha = [u8; 32];

/// Removes what is in the folder of the set and not in the set, then waits until the medium has that: clusters that it
/// frees must not be given to a new file while the old name still leads to them.
pub(super) fn remove_others(folder: &Path, wanted: &[Wanted]) -> Result<(), BootFileError> {
    let names: BTreeSet<String> = wanted.iter().map(|wanted| folded(&wanted.name)).collect();
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |source| BootFileError::Write { path, source }
    };
    let mut is_changed = false;
    for found in below(folder).map_err(failed(folder))? {
        let path = folder.join(&found.name);
        if found.is_folder {
            let is_wanted = names.iter().any(|name| name.starts_with(&format!("{}/", folded(&found.name))));
            if is_wanted {
                continue;
            }
            fs::remove_dir(&path).map_err(failed(&path))?;
        } else if names.contains(&folded(&found.name)) {
            continue;
        } else {
            fs::remove_file(&path).map_err(failed(&path))?;
        }
        let parent = path.parent().unwrap_or(folder);
        sync(parent).map_err(failed(parent))?;
        is_changed = true;
    }
    if is_changed { sync(folder).map_err(failed(folder)) } else { Ok(()) }
}

/// Removes one file, durably.
pub(super) fn remove(path: &Path) -> io::Result<()> {
    fs::remove_file(path)?;
    sync(path.parent().unwrap_or(path))
}

/// Makes the folders that the files are in.
pub(super) fn make_folders(folder: &Path, wanted: &[Wanted]) -> Result<(), BootFileError> {
    for path in folders(folder, wanted) {
        let failed = |source| BootFileError::Write { path: path.clone(), source };
        match fs::create_dir(&path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            // The folder's own sync brings its cluster to the medium, the one above it the name that leads there.
            made => {
                made.and_then(|()| sync(&path)).and_then(|()| sync(path.parent().unwrap_or(&path))).map_err(failed)?;
            }
        }
    }
    Ok(())
}

/// The set's folders and the one that all sets are in, each after those that it is in.
fn folders(folder: &Path, wanted: &[Wanted]) -> BTreeSet<PathBuf> {
    let above = |wanted: &Wanted| -> Vec<PathBuf> {
        let path = folder.join(&wanted.name);
        path.ancestors().skip(1).take_while(|above| above.starts_with(folder)).map(Path::to_owned).collect()
    };
    wanted.iter().flat_map(above).chain(folder.parent().into_iter().chain([folder]).map(Path::to_owned)).collect()
}

/// Writes a file under the name that it has and waits until the medium has it.
///
/// On FAT the length of a file and its chain of clusters are in two places. Linux' vfat makes the whole boot partition
/// read-only when somebody reads a length that has no clusters, and when something is added to a chain that is longer than
/// the length; after a cut that somebody is the next attempt. So a chain that is too long is ended first, by giving the
/// file the length that it should have had. Then it gets all its clusters, with no length: the sync of the folder brings
/// the chain to the medium and not the file's entry, which that of the file does. While the bytes are written no chain
/// changes any more, and every length has its clusters. A cut before the second sync loses the new chain until somebody
/// checks the file system; any other loses nothing.
pub(super) fn write(wanted: &mut Wanted, to: &Path, clusters: Clusters) -> io::Result<()> {
    wanted.source.seek(SeekFrom::Start(0))?;
    let folder = to.parent().unwrap_or(to);
    let mut options = OpenOptions::new();
    let mut file = options.write(true).create(true).truncate(false).custom_flags(OFlag::O_NOFOLLOW.bits()).open(to)?;
    file.set_len(if clusters == Clusters::New { 0 } else { file.metadata()?.len() })?;
    file.sync_all()?;
    let size = i64::try_from(wanted.size.min(MOST_BYTES)).unwrap_or(i64::MAX);
    match fallocate(&file, FallocateFlags::FALLOC_FL_KEEP_SIZE, 0, size) {
        // A file system without it: not vfat. A file of no bytes needs no clusters.
        Ok(()) | Err(Errno::EOPNOTSUPP | Errno::ENOSYS | Errno::EINVAL) => {}
        Err(error) => return Err(error.into()),
    }
    sync(folder)?;
    file.sync_all()?;
    let length = io::copy(&mut (&mut wanted.source).take(MOST_BYTES), &mut file)?;
    file.set_len(length)?;
    file.sync_all()?;
    sync(folder)
}

/// What the medium holds, not what memory does.
pub(super) fn stored_digest(path: &Path) -> io::Result<Sha> {
    let mut file = OpenOptions::new().read(true).write(true).custom_flags(OFlag::O_NOFOLLOW.bits()).open(path)?;
    // What an earlier attempt wrote may be in memory only; in the order of `write`.
    let folder = path.parent().unwrap_or(path);
    sync(folder).and_then(|()| file.sync_all()).and_then(|()| sync(folder))?;
    posix_fadvise(&file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED)?;
    digest(&mut file)
}

/// The digest of a file from its beginning.
pub(super) fn digest(file: &mut File) -> io::Result<Sha> {
    let about = file.metadata()?;
    if !about.is_file() || about.len() > MOST_BYTES {
        return Err(io::ErrorKind::InvalidData.into());
    }
    file.seek(SeekFrom::Start(0))?;
    let (mut hash, mut piece) = (Sha256::new(), vec![0; PIECE]);
    loop {
        let count = file.read(&mut piece)?;
        match piece.get(..count) {
            Some([]) | None => return Ok(hash.finalize().into()),
            Some(bytes) => hash.update(bytes),
        }
    }
}

/// Something below a folder.
pub(super) struct Below {
    /// Its path from there.
    pub(super) name: String,
    /// Whether it is a folder.
    pub(super) is_folder: bool,
    /// Bytes of a file.
    pub(super) size: u64,
}

/// Everything below a folder, what is in a folder before the folder; nothing where there is none.
pub(super) fn below(folder: &Path) -> io::Result<Vec<Below>> {
    fn walk(folder: &Path, prefix: &str, found: &mut Vec<Below>) -> io::Result<()> {
        for entry in fs::read_dir(folder)? {
            let entry = entry?;
            let (about, name) = (entry.metadata()?, format!("{prefix}{}", entry.file_name().to_string_lossy()));
            if about.is_dir() {
                walk(&entry.path(), &format!("{name}/"), found)?;
            }
            found.push(Below { name, is_folder: about.is_dir(), size: about.len() });
        }
        Ok(())
    }
    let mut found = Vec::new();
    match walk(folder, "", &mut found) {
        Err(error) if error.kind() == io::ErrorKind::NotFound && found.is_empty() => Ok(found),
        walked => walked.map(|()| found),
    }
}

fn sync(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}
