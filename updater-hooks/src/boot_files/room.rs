//! Whether a set fits the boot partition at the worst moment, counted in clusters before the first write.
//!
//! What is not in the new set is removed first, files that shrink are written before files that grow, and each is written
//! in place. So the room that is taken only falls and then only rises: the worst moment is the end, and it is enough to
//! look whether the whole new set fits what is free and what the old one takes.
//!
//! A file takes its bytes in whole clusters. A folder takes 32 bytes for each of its entries on FAT: two for `.` and `..`, and
//! for each name one, and one more for each 13 UTF-16 units of it (a short name in capitals would need fewer: a folder may
//! be counted too large, never too small).

use std::collections::BTreeMap;

/// Bytes of one directory entry on FAT.
const ENTRY_BYTES: u64 = 32;
/// UTF-16 units of a long name that one entry holds.
const ENTRY_UNITS: u64 = 13;

/// Bytes in whole clusters.
pub(super) fn whole(bytes: u64, cluster: u64) -> u64 {
    bytes.div_ceil(cluster).saturating_mul(cluster)
}

/// What files of these names and sizes take below a folder, with the folders that they are in; the folder itself is counted.
pub(super) fn needed<'n>(files: impl IntoIterator<Item = (&'n str, u64)>, cluster: u64) -> u64 {
    let mut folders: BTreeMap<&str, BTreeMap<&str, u64>> = BTreeMap::from([("", BTreeMap::new())]);
    let mut bytes = 0u64;
    for (name, size) in files {
        bytes = bytes.saturating_add(whole(size, cluster));
        let mut path = name;
        while !path.is_empty() {
            let (folder, entry) = path.rsplit_once('/').unwrap_or(("", path));
            let units = u64::try_from(entry.encode_utf16().count()).unwrap_or(u64::MAX);
            folders.entry(folder).or_default().insert(entry, units.div_ceil(ENTRY_UNITS).saturating_add(1));
            path = folder;
        }
    }
    let folder = |entries: &BTreeMap<&str, u64>| {
        let count = entries.values().fold(2u64, |sum, entries| sum.saturating_add(*entries));
        whole(count.saturating_mul(ENTRY_BYTES), cluster)
    };
    folders.values().fold(bytes, |sum, entries| sum.saturating_add(folder(entries)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_and_folders_are_counted_in_whole_clusters() {
        assert_eq!(needed([], 2048), 2048, "the folder itself");
        assert_eq!(needed([("linux", 1)], 2048), 2 * 2048);
        assert_eq!(needed([("linux", 2048), ("linux2", 2049), ("empty", 0)], 2048), 4 * 2048);
        assert_eq!(needed([("overlays/a.dtbo", 1), ("overlays/b.dtbo", 1), ("x/y/z", 1)], 512), (3 + 4) * 512);
    }

    #[test]
    fn a_folder_grows_with_its_names() {
        // 512 bytes hold 16 entries: two of the folder's own, and seven short names of two each.
        let names: Vec<String> = (0..8).map(|number| format!("file{number}")).collect();
        let of = |count: usize| needed(names.iter().take(count).map(|name| (name.as_str(), 0)), 512);
        assert_eq!((of(7), of(8)), (512, 1024));
        let long = "a-name-of-twenty-seven-units".to_owned();
        let with_long = needed(names.iter().take(6).chain([&long]).map(|name| (name.as_str(), 0)), 512);
        assert_eq!(with_long, 1024, "28 units take three entries and one more");
    }
}
