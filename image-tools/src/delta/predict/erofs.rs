//! Where the regular files of an erofs image lie that are stored as they are. Only on the developer's host. The layout is
//! that of the kernel's documentation, "EROFS - Enhanced Read-Only File System", and of its header `erofs_fs.h`.

use super::ext4::Extent;
use super::scan::{u16_at, u32_at, u64_at};

const SUPERBLOCK: usize = 1024;
const MAGIC: u32 = 0xe0f5_e1e2;
/// Inodes are found by numbers of such units.
const SLOT: u64 = 32;
/// How the data of an inode are laid out: in whole blocks, or with what is left of them behind the inode.
const PLAIN: u16 = 0;
const INLINE: u16 = 2;
const REGULAR: u16 = 0x8000;
const FOLDER: u16 = 0x4000;
const FORMAT: u16 = 0xf000;
/// Length of an entry of a folder, without its name.
const ENTRY: usize = 12;
/// Folders deeper than this are not looked at.
const MAX_DEPTH: usize = 64;

struct Image<'i> {
    bytes: &'i [u8],
    block: u64,
    inodes: u64,
}

/// All regular files with their paths, without the leading slash; `None` where `bytes` are no erofs image.
pub(crate) fn named_files(bytes: &[u8]) -> Option<Vec<(String, Vec<Extent>)>> {
    let superblock = bytes.get(SUPERBLOCK..)?.get(..128)?;
    let bits = superblock.get(12).copied().filter(|bits| (9..=16).contains(bits))?;
    if u32_at(superblock, 0)? != MAGIC {
        return None;
    }
    let block = 1u64 << bits;
    let image = Image { bytes, block, inodes: u64::from(u32_at(superblock, 40)?) * block };
    let mut found = Vec::new();
    let mut folders = vec![(String::new(), u64::from(u16_at(superblock, 14)?), 0)];
    while let Some((path, number, depth)) = folders.pop() {
        let Some((FOLDER, extents)) = image.inode(number) else { continue };
        for (name, number) in image.entries(&extents) {
            let Some((form, extents)) = image.inode(number) else { continue };
            let name = format!("{path}{name}");
            if form == REGULAR {
                found.push((name, extents));
            } else if depth < MAX_DEPTH {
                folders.push((format!("{name}/"), number, depth + 1));
            }
        }
    }
    // A file of several names is there once.
    found.sort_by_key(|(_, extents)| extents.first().map(|extent| extent.start));
    found.dedup_by_key(|(_, extents)| extents.first().map(|extent| extent.start));
    Some(found)
}

impl Image<'_> {
    fn at(&self, start: u64, length: u64) -> Option<&[u8]> {
        self.bytes.get(usize::try_from(start).ok()?..)?.get(..usize::try_from(length).ok()?)
    }

    /// What an inode is, a regular file or a folder, and its extents.
    fn inode(&self, number: u64) -> Option<(u16, Vec<Extent>)> {
        let start = self.inodes.checked_add(number.checked_mul(SLOT)?)?;
        let inode = self.at(start, SLOT)?;
        let (format, attributes) = (u16_at(inode, 0)?, u64::from(u16_at(inode, 2)?));
        let is_long = format & 1 != 0;
        let form = u16_at(inode, 4)? & FORMAT;
        let size = if is_long { u64_at(inode, 8)? } else { u64::from(u32_at(inode, 8)?) };
        let data = u64::from(u32_at(inode, 16)?) * self.block;
        let layout = format >> 1 & 7;
        if size == 0 || !(form == REGULAR || form == FOLDER) || !(layout == PLAIN || layout == INLINE) {
            return None;
        }
        let tail = if layout == INLINE { size % self.block } else { 0 };
        let behind = if attributes == 0 { 0 } else { 12 + (attributes - 1) * 4 };
        let inline = start + if is_long { 2 * SLOT } else { SLOT } + behind;
        let whole = Extent { at: 0, start: data, length: size - tail };
        let rest = Extent { at: size - tail, start: inline, length: tail };
        let extents: Vec<_> = [whole, rest].into_iter().filter(|extent| extent.length > 0).collect();
        extents.iter().all(|extent| self.at(extent.start, extent.length).is_some()).then_some((form, extents))
    }

    /// Names and numbers in a folder.
    fn entries(&self, extents: &[Extent]) -> Vec<(String, u64)> {
        let content: Vec<u8> =
            extents.iter().filter_map(|extent| self.at(extent.start, extent.length)).flatten().copied().collect();
        let mut found = Vec::new();
        for block in content.chunks(self.block as usize) {
            let count = u16_at(block, 8).map_or(0, usize::from) / ENTRY;
            for place in 0..count {
                let (number, name) = (u64_at(block, place * ENTRY), u16_at(block, place * ENTRY + 8));
                let next =
                    if place + 1 < count { u16_at(block, (place + 1) * ENTRY + 8).map(usize::from) } else { None };
                let end = next.unwrap_or(block.len());
                let name = name.and_then(|name| block.get(usize::from(name)..end)).unwrap_or_default();
                let name = name.split(|byte| *byte == 0).next().unwrap_or_default();
                if let Some(number) = number.filter(|_| name != b"." && name != b".." && !name.is_empty()) {
                    found.push((String::from_utf8_lossy(name).into_owned(), number));
                }
            }
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BLOCK: usize = 4096;

    /// An inode of the short form at byte `at`.
    fn put_inode(image: &mut [u8], at: usize, (layout, form): (u16, u16), size: u32, block: u32) {
        image[at..at + 2].copy_from_slice(&(layout << 1).to_le_bytes());
        image[at + 4..at + 6].copy_from_slice(&form.to_le_bytes());
        image[at + 8..at + 12].copy_from_slice(&size.to_le_bytes());
        image[at + 16..at + 20].copy_from_slice(&block.to_le_bytes());
    }

    /// An image with a file `f/a` of two blocks and a hundred bytes, and a compressed file `b`.
    fn image() -> Vec<u8> {
        let mut image = vec![0u8; 6 * BLOCK];
        image[SUPERBLOCK..SUPERBLOCK + 4].copy_from_slice(&MAGIC.to_le_bytes());
        image[SUPERBLOCK + 12] = 12;
        image[SUPERBLOCK + 40..SUPERBLOCK + 44].copy_from_slice(&1u32.to_le_bytes());
        let folder = |image: &mut [u8], at: usize, names: &[(&str, u64)]| {
            let mut bytes = Vec::new();
            let mut place = names.len() * ENTRY;
            for (name, number) in names {
                bytes.extend(number.to_le_bytes());
                bytes.extend((place as u16).to_le_bytes());
                bytes.extend([0, 0]);
                place += name.len();
            }
            names.iter().for_each(|(name, _)| bytes.extend(name.bytes()));
            put_inode(image, at, (INLINE, FOLDER), bytes.len() as u32, 0);
            image[at + 32..at + 32 + bytes.len()].copy_from_slice(&bytes);
        };
        folder(&mut image, BLOCK, &[(".", 0), ("..", 0), ("b", 20), ("f", 8)]);
        folder(&mut image, BLOCK + 8 * 32, &[(".", 8), ("..", 0), ("a", 16)]);
        put_inode(&mut image, BLOCK + 16 * 32, (INLINE, REGULAR), 2 * BLOCK as u32 + 100, 3);
        put_inode(&mut image, BLOCK + 20 * 32, (1, REGULAR), 100, 5);
        image
    }

    #[test]
    fn a_file_is_found_with_what_is_left_of_it_behind_its_inode() {
        let image = image();
        let found = named_files(&image).unwrap();
        let whole = Extent { at: 0, start: 3 * BLOCK as u64, length: 2 * BLOCK as u64 };
        let rest = Extent { at: 2 * BLOCK as u64, start: (BLOCK + 17 * 32) as u64, length: 100 };
        assert_eq!(found, [("f/a".to_owned(), vec![whole, rest])]);
        assert!(named_files(&image[..SUPERBLOCK + 64]).is_none());
        assert!(named_files(&vec![0; 8192]).is_none());
    }

    #[test]
    fn a_damaged_image_is_read_or_refused() {
        let good = image();
        for place in SUPERBLOCK..3 * BLOCK {
            let mut damaged = good.clone();
            damaged[place] ^= (1 << (place % 8)) | 0x80;
            let _ = named_files(&damaged);
        }
    }
}
