//! Which boot files belong to the device and not to the image: its configuration, a splash screen, an overlay for its board.

use globset::{GlobBuilder, GlobSet, GlobSetBuilder};

/// A list of globs over the names in a set, such as `overlays/site-*.dtbo`.
///
/// `*` and `?` do not match `/`, `**` does; letters match in either case, as they do on FAT.
#[derive(Debug, Clone, Default)]
pub struct KeepList {
    globs: GlobSet,
}

impl KeepList {
    /// Reads globs.
    ///
    /// # Errors
    /// The first that is none, and what is wrong with it.
    pub fn new<'g>(globs: impl IntoIterator<Item = &'g str>) -> Result<Self, String> {
        let mut set = GlobSetBuilder::new();
        for glob in globs {
            let read = GlobBuilder::new(glob).literal_separator(true).case_insensitive(true).build();
            set.add(read.map_err(|error| error.to_string())?);
        }
        let globs = set.build().map_err(|error| error.to_string())?;
        Ok(KeepList { globs })
    }

    /// Whether the file of this name stays what it is on the device.
    #[must_use]
    pub fn keeps(&self, name: &str) -> bool {
        self.globs.is_match(name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn globs_stay_within_a_folder_and_take_either_case() {
        let keep = KeepList::new(["config.txt", "overlays/site-*.dtbo"]).unwrap();
        assert!(keep.keeps("config.txt") && keep.keeps("CONFIG.TXT") && keep.keeps("overlays/site-7.dtbo"));
        assert!(!keep.keeps("sub/config.txt") && !keep.keeps("overlays/site-7/x.dtbo"));
        assert!(!KeepList::default().keeps("config.txt"));
        assert!(KeepList::new(["a[", "b"]).is_err());
    }
}
