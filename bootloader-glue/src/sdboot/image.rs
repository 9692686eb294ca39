//! Unified kernel images of the groups: the file that the next one is put into, and what it has to say before it is.
//!
//! An image is the group's entry itself, so it is written into the file that [`mark_unbootable`] has left under a name that
//! the loader does not list, and [`activate`] renames that very file. Kernel, initramfs and the kernel's words are in it, with
//! the group's own word; one image therefore fits one group.
//!
//! [`mark_unbootable`]: crate::BootBackend::mark_unbootable
//! [`activate`]: crate::BootBackend::activate

use std::fs::File;
use std::path::PathBuf;

use bascule_core::{Group, TargetGroup};

use super::contents::{SortKeys, check_whole, words_of_image};
use super::names::Kind;
use super::partition::GROUP_WORD;
use super::{SdBootBackend, beyond_repair, copy};
use crate::BootError;

/// The words that would say where the root is, by the GUID of its partition.
const ROOT_WORD: &str = "root=PARTUUID=";

/// Where a group's next image goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImagePlace {
    /// The group's file, which the loader does not list and an activation would rename.
    pub file: PathBuf,
    /// The copy that a lost entry is made anew from, where the boot partition has one: it must not hold an older image.
    pub copy: Option<PathBuf>,
}

impl SdBootBackend {
    /// Where the target group's next image goes, while the loader lists none of the group.
    ///
    /// # Errors
    /// When the loader may start the group, its names are damaged, or its entries are texts.
    pub fn image_place(&self, target: TargetGroup) -> Result<ImagePlace, BootError> {
        if self.kind != Kind::Image {
            let texts = "the entries are texts, which no image is put into".into();
            return Err(beyond_repair(&self.directory(), texts));
        }
        let copy = self.root.join(copy(target.group(), Kind::Image));
        Ok(ImagePlace { file: self.unlisted(target.group())?, copy: copy.is_file().then_some(copy) })
    }

    /// Whether the loader would list this image as the target group's, in the place among the entries that its name gives it,
    /// and start the group's own root, whose partition has the GUID `root`. Nothing is written.
    ///
    /// # Errors
    /// [`BootError::Image`] when it would not.
    pub fn check_image(&self, target: TargetGroup, image: &File, root: &str) -> Result<(), BootError> {
        let group = target.group();
        let keys = own_words(group, image, root)?;
        let listing = self.listing()?;
        let running = listing.whole(group.opposite()).map(|found| self.directory().join(&found.file));
        let running = running.map(|path| SortKeys::read(&self.root, Kind::Image, &path)).transpose();
        if running.is_ok_and(|running| running.is_none_or(|running| running == keys)) {
            return Ok(());
        }
        let differ =
            "its os-release says another ID or VERSION than that of the running group, by which the loader would sort";
        Err(BootError::Image { group, fault: differ.into() })
    }
}

/// An image that a new device begins with, and the GUID of the partition that its kernel has to take for its root.
#[derive(Debug, Clone, Copy)]
pub struct NewImage<'i> {
    /// Whose it is.
    pub group: Group,
    /// Its bytes.
    pub image: &'i File,
    /// The group's root.
    pub root: &'i str,
}

/// Whether the loader would list these images of a new device, each as its group's, and go by their names alone.
///
/// # Errors
/// [`BootError::Image`] when it would not.
pub fn check_new_images(images: &[NewImage<'_>]) -> Result<(), BootError> {
    let mut first = None;
    for new in images {
        let keys = own_words(new.group, new.image, new.root)?;
        if *first.get_or_insert_with(|| keys.clone()) != keys {
            let differ =
                "its os-release says another ID or VERSION than the other group's, by which the loader would sort";
            return Err(BootError::Image { group: new.group, fault: differ.into() });
        }
    }
    Ok(())
}

/// What the loader sorts an image by, if it is whole and would start this group's own root.
fn own_words(group: Group, image: &File, root: &str) -> Result<SortKeys, BootError> {
    let unfit = |fault: String| BootError::Image { group, fault };
    let keys = SortKeys::of_image(image).map_err(unfit)?;
    check_whole(image).map_err(unfit)?;
    let words = words_of_image(image).map_err(unfit)?;
    let values = |key: &'static str| words.split_ascii_whitespace().filter_map(move |word| word.strip_prefix(key));
    if !values(GROUP_WORD).eq([group.letter()]) {
        return Err(unfit(format!("its command line does not have {GROUP_WORD}{group}, once")));
    }
    if values("bascule.trial=").next().is_some() {
        return Err(unfit("its command line has bascule.trial=, and no tries can be told there".into()));
    }
    if let Some(other) = values(ROOT_WORD).find(|guid| !guid.eq_ignore_ascii_case(root)) {
        return Err(unfit(format!("its command line has {ROOT_WORD}{other}, and the root of group {group} is {root}")));
    }
    Ok(keys)
}
