//! A group's unified kernel image, brought from the prepared root to where the loader finds it.
//!
//! ```text
//! prepared root                          boot partition
//!   /usr/lib/bascule/boot/uki/b.efi -->    EFI/Linux/bascule-5-b.off      the loader does not list it
//! ```
//!
//! Which file that is, the loader's backend says, and what the image has to hold; here are its bytes alone. They are written in
//! place: the file was the group's last image, and a rename over it, or a second file and a deletion, would each have states on
//! FAT in which clusters are lost or shared. A cut leaves a torn image that nothing starts; the next attempt writes it anew.
//!
//! A copy of the group's last image, which a lost entry could be made anew from, is removed first: it would bring an old kernel
//! onto the new root. None is made of the new image, which would cost its room once more: the root has it.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use bascule_core::Group;
use bascule_core::boot_set::boot_image;
use nix::sys::statvfs::statvfs;

use super::error::BootFileError;
use super::set::{MOST_BYTES, Wanted, open_below, regular};
use super::{Installed, check_stored, room, write};

/// An image, looked at and not yet written.
#[derive(Debug)]
pub struct BootImage {
    wanted: Wanted,
}

impl BootImage {
    /// Finds the group's image in the prepared root that is mounted at `root`. Nothing is written.
    ///
    /// # Errors
    /// [`BootFileError::NoImage`], or [`BootFileError::Unfit`] where it is too large.
    pub fn find(root: &Path, group: Group) -> Result<Self, BootFileError> {
        let name = boot_image(group);
        let found = open_below(root, Path::new(&name)).and_then(regular);
        let (source, size) = found.map_err(|source| BootFileError::NoImage { name: name.clone(), source })?;
        if size > MOST_BYTES {
            let fault = format!("it has {size} bytes, and a boot file at most {MOST_BYTES}");
            return Err(BootFileError::Unfit { name, fault });
        }
        Ok(BootImage { wanted: Wanted { name, source, size } })
    }

    /// Its bytes, to look at.
    #[must_use]
    pub fn file(&self) -> &File {
        &self.wanted.source
    }

    /// Makes this file hold the image, durably and read back. The loader must not start it. A `copy` of the file's last image is
    /// removed before, unless it is one of the new image.
    ///
    /// # Errors
    /// [`BootFileError`]; before the first change where there is no room.
    pub fn install(mut self, to: &Path, copy: Option<&Path>) -> Result<Installed, BootFileError> {
        let name = PathBuf::from(&self.wanted.name);
        let unread = |source| BootFileError::Read { path: name, source };
        let digest = write::digest(&mut self.wanted.source).map_err(unread)?;
        let is_new = |path: &Path| write::stored_digest(path).is_ok_and(|there| there == digest);
        let outdated = copy.filter(|copy| !is_new(copy));
        if outdated.is_none() && is_new(to) {
            return Ok(Installed { files: 1, ..Installed::default() });
        }
        self.check_room(to, outdated)?;
        if let Some(copy) = outdated {
            write::remove(copy).map_err(|source| BootFileError::Write { path: copy.to_owned(), source })?;
        }
        let written = write::write(&mut self.wanted, to, write::Clusters::Kept);
        written.map_err(|source| BootFileError::Write { path: to.to_owned(), source })?;
        check_stored(to, digest)?;
        Ok(Installed { files: 1, written: 1, bytes: self.wanted.size })
    }

    /// One cluster more than the image takes: the folder may grow for the name that arms the loader, and for those that it
    /// counts with.
    fn check_room(&self, to: &Path, outdated: Option<&Path>) -> Result<(), BootFileError> {
        let folder = to.parent().unwrap_or(to);
        let unread = |error: nix::Error| BootFileError::Read { path: folder.to_owned(), source: error.into() };
        let about = statvfs(folder).map_err(unread)?;
        let cluster = about.fragment_size().max(1);
        let taken = |path: &Path| room::whole(fs::metadata(path).map_or(0, |about| about.len()), cluster);
        let needed = room::whole(self.wanted.size, cluster).saturating_add(cluster);
        let replaced = taken(to).saturating_add(outdated.map_or(0, taken));
        let free = about.blocks_available().saturating_mul(cluster).saturating_add(replaced);
        if needed > free {
            return Err(BootFileError::NoRoom { path: folder.to_owned(), needed, free });
        }
        Ok(())
    }
}
