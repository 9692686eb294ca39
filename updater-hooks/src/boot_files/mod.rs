//! A group's boot files, brought to where a loader finds them that cannot read the slot: the boot partition.
//!
//! ```text
//! prepared root                            boot partition
//!   /boot/vmlinuz ----------------------->   bascule/b/linux
//!   /usr/lib/bascule/boot/files/x/y.dtb -->  bascule/b/x/y.dtb
//!                        bascule/a/site.dtbo ->  bascule/b/site.dtbo       where the keep-list names it
//! ```
//!
//! Each group has a *set* of its own there, a folder that only the group's entry of the loader names. It is written while the
//! loader refuses the group, and the loader's one write chooses the group and its set: no group is ever a mix of two versions,
//! and on the way back there is nothing to restore, whichever way it is. A cut in the middle leaves rubbish in a folder that
//! nothing starts from, and the next attempt makes it what it has to be.
//!
//! Where the loader starts groups by unified kernel images, there is one file in place of a set: the module [`image`].
//!
//! Before the first write it is known that the set fits (the module `room`) and that every name can be had on FAT. What is
//! there already is not written again; what is written is read back from the medium.

mod error;
mod image;
mod keep;
mod room;
mod set;
mod write;

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::sys::statvfs::statvfs;

pub use error::BootFileError;
pub use image::BootImage;
pub use keep::KeepList;
pub use set::MOST_FILES;
use set::Wanted;
use write::{Below, Clusters, Sha};

/// Where boot files come from and go to.
#[derive(Debug, Clone, Copy)]
pub struct SetPlaces<'p> {
    /// The prepared root, mounted.
    pub root: &'p Path,
    /// The set of the running group, which kept files are taken from.
    pub running: &'p Path,
    /// The set of the prepared group, which the loader must refuse as long as it is written.
    pub target: &'p Path,
}

/// A new set, looked at and not yet written.
#[derive(Debug)]
pub struct BootFileSet {
    files: Vec<Wanted>,
    target: PathBuf,
}

/// What it took to bring a set to its place.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Installed {
    /// Files of the set.
    pub files: usize,
    /// Those that were written: the others were there.
    pub written: usize,
    /// Bytes that were written.
    pub bytes: u64,
}

impl BootFileSet {
    /// Finds what the set is made of. Nothing is written.
    ///
    /// # Errors
    /// When there is no kernel, a file cannot be read, or FAT cannot have its name.
    pub fn collect(places: SetPlaces<'_>, keep: &KeepList) -> Result<Self, BootFileError> {
        let files = set::collect(places.root, places.running, keep)?;
        Ok(BootFileSet { files, target: places.target.to_owned() })
    }

    /// Whether the set has a file of this name, as FAT compares names.
    #[must_use]
    pub fn has(&self, name: &str) -> bool {
        self.files.iter().any(|wanted| set::folded(&wanted.name) == set::folded(name))
    }

    /// Makes the folder of the prepared group hold this set and nothing else, durably and read back.
    ///
    /// # Errors
    /// [`BootFileError`]; before the first write where there is no room.
    pub fn install(mut self) -> Result<Installed, BootFileError> {
        self.check_room()?;
        // Files that shrink first: see the module `room`.
        let sizes: Vec<(String, u64)> = self.there()?;
        let old = |name: &str| sizes.iter().find(|(there, _)| *there == set::folded(name)).map_or(0, |(_, size)| *size);
        self.files.sort_by_key(|wanted| i128::from(wanted.size) - i128::from(old(&wanted.name)));
        let mut installed = Installed { files: self.files.len(), ..Installed::default() };
        write::remove_others(&self.target, &self.files)?;
        write::make_folders(&self.target, &self.files)?;
        for wanted in &mut self.files {
            let to = self.target.join(&wanted.name);
            let read = |source| BootFileError::Read { path: PathBuf::from(&wanted.name), source };
            let digest = write::digest(&mut wanted.source).map_err(read)?;
            // A file that cannot be read now is written anew.
            if write::stored_digest(&to).is_ok_and(|there| there == digest) {
                continue;
            }
            installed.written += 1;
            installed.bytes = installed.bytes.saturating_add(wanted.size);
            let written = write::write(wanted, &to, Clusters::New);
            written.map_err(|source| BootFileError::Write { path: to.clone(), source })?;
            check_stored(&to, digest)?;
        }
        Ok(installed)
    }

    fn check_room(&self) -> Result<(), BootFileError> {
        let at = self.target.ancestors().find(|path| path.is_dir()).unwrap_or(&self.target);
        let room = statvfs(at).map_err(|error| BootFileError::Read { path: at.to_owned(), source: error.into() })?;
        let cluster = room.fragment_size().max(1);
        let needed = room::needed(self.files.iter().map(|wanted| (wanted.name.as_str(), wanted.size)), cluster);
        // Folders too: those that stay have their clusters, the others are removed first.
        let folder = fs::metadata(&self.target).map_or(0, |about| about.len());
        let sizes = self.below()?.into_iter().map(|found| found.size).chain([folder]);
        let replaced = sizes.fold(0u64, |sum, size| sum.saturating_add(room::whole(size, cluster)));
        let free = room.blocks_available().saturating_mul(cluster).saturating_add(replaced);
        if needed > free {
            return Err(BootFileError::NoRoom { path: self.target.clone(), needed, free });
        }
        Ok(())
    }

    /// Files that are there, with their sizes, by their names as FAT compares them.
    fn there(&self) -> Result<Vec<(String, u64)>, BootFileError> {
        let files = self.below()?.into_iter().filter(|found| !found.is_folder);
        Ok(files.map(|found| (set::folded(&found.name), found.size)).collect())
    }

    fn below(&self) -> Result<Vec<Below>, BootFileError> {
        write::below(&self.target).map_err(|source| BootFileError::Read { path: self.target.clone(), source })
    }
}

/// Refuses a folder on the root: what is written there no loader would find. `partition` is where the boot partition is
/// mounted.
///
/// # Errors
/// [`BootFileError::NotMounted`].
pub fn check_mounted(root: &Path, partition: &Path) -> Result<(), BootFileError> {
    let device = |path: &Path| fs::metadata(path).map(|about| about.dev());
    match (device(root), device(partition)) {
        (Ok(root), Ok(partition)) if root != partition => Ok(()),
        _ => Err(BootFileError::NotMounted { path: partition.to_owned() }),
    }
}

fn check_stored(path: &Path, wanted: Sha) -> Result<(), BootFileError> {
    match write::stored_digest(path) {
        Ok(there) if there == wanted => Ok(()),
        Ok(_) => Err(BootFileError::ReadBack { path: path.to_owned() }),
        Err(source) => Err(BootFileError::Write { path: path.to_owned(), source }),
    }
}
