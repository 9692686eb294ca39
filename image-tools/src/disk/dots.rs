//! Repairs the `.` and `..` entries of a fresh FAT32 volume.
//!
//! `fatfs` 0.3 puts a long name before each, and lets `..` of a directory in the root name the root's cluster. The FAT
//! specification wants both entries first, without long names, and 0 for the root; `fsck.fat` "repairs" the rest of the
//! directory away otherwise.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

const ENTRY: usize = 32;
const ATTRIBUTES: usize = 11;
const DIRECTORY: u8 = 0x10;
const LONG_NAME: u8 = 0x0f;
const DELETED: u8 = 0xe5;

/// Where clusters are.
struct Volume<'a> {
    image: &'a File,
    data: u64,
    cluster: u64,
    root: u32,
}

/// Repairs all directories of the volume in `image`, each of which must fill at most one cluster.
///
/// # Errors
/// When reading or writing fails.
pub(super) fn repair(image: &File) -> io::Result<()> {
    let mut boot = [0; 512];
    image.read_exact_at(&mut boot, 0)?;
    let sector = u64::from(number16(&boot, 11));
    let fats = u64::from(boot.get(16).copied().unwrap_or_default()) * u64::from(number32(&boot, 36));
    let volume = Volume {
        image,
        data: (u64::from(number16(&boot, 14)) + fats) * sector,
        cluster: u64::from(boot.get(13).copied().unwrap_or_default()) * sector,
        root: number32(&boot, 44),
    };
    volume.repair_below(volume.root, 0)
}

impl Volume<'_> {
    /// Repairs the directories that the one at `cluster` holds, then those below them. `parent` is what their `..` names.
    fn repair_below(&self, cluster: u32, parent: u32) -> io::Result<()> {
        let mut directory = self.read(cluster)?;
        if cluster != self.root {
            self.put_dots_first(&mut directory, cluster, parent);
            self.image.write_all_at(&directory, self.place(cluster))?;
        }
        let names_us = if cluster == self.root { 0 } else { cluster };
        for entry in directory.chunks_exact(ENTRY) {
            let is_dot = entry.first() == Some(&b'.');
            let is_directory = entry.get(ATTRIBUTES) == Some(&DIRECTORY) && entry.first() != Some(&DELETED);
            if is_directory && !is_dot {
                self.repair_below(first_cluster(entry), names_us)?;
            }
        }
        Ok(())
    }

    fn put_dots_first(&self, directory: &mut [u8], own: u32, parent: u32) {
        let is_dot = |entry: &&[u8]| {
            entry.get(ATTRIBUTES).is_some_and(|&bits| bits == DIRECTORY) && entry.first() == Some(&b'.')
        };
        let dots: Vec<Vec<u8>> = directory.chunks_exact(ENTRY).filter(is_dot).map(<[u8]>::to_vec).collect();
        let [mut dot, mut dot_dot] = match <[Vec<u8>; 2]>::try_from(dots) {
            Ok(dots) => dots,
            Err(_) => return,
        };
        set_first_cluster(&mut dot, own);
        set_first_cluster(&mut dot_dot, parent);
        let mut entries = directory.chunks_exact_mut(ENTRY);
        for whole in [dot, dot_dot] {
            if let Some(place) = entries.next() {
                place.copy_from_slice(&whole);
            }
        }
        // What the long names took up before.
        for left_over in entries.take(2) {
            left_over.fill(0);
            if let Some(first) = left_over.first_mut() {
                *first = DELETED;
            }
            if let Some(bits) = left_over.get_mut(ATTRIBUTES) {
                *bits = LONG_NAME;
            }
        }
    }

    fn read(&self, cluster: u32) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; usize::try_from(self.cluster).unwrap_or_default()];
        self.image.read_exact_at(&mut bytes, self.place(cluster))?;
        Ok(bytes)
    }

    fn place(&self, cluster: u32) -> u64 {
        self.data.saturating_add(u64::from(cluster.saturating_sub(2)).saturating_mul(self.cluster))
    }
}

fn first_cluster(entry: &[u8]) -> u32 {
    u32::from(number16(entry, 20)) << 16 | u32::from(number16(entry, 26))
}

fn set_first_cluster(entry: &mut [u8], cluster: u32) {
    let [a, b, c, d] = cluster.to_le_bytes();
    for (place, byte) in [(26, a), (27, b), (20, c), (21, d)] {
        if let Some(field) = entry.get_mut(place) {
            *field = byte;
        }
    }
}

fn number16(bytes: &[u8], at: usize) -> u16 {
    bytes.get(at..).and_then(|rest| rest.first_chunk()).copied().map_or(0, u16::from_le_bytes)
}

fn number32(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..).and_then(|rest| rest.first_chunk()).copied().map_or(0, u32::from_le_bytes)
}
