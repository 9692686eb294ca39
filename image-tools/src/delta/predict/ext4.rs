//! Where the regular files of an ext4 image lie. Only on the developer's host: what is found here is sent to devices as
//! plain places of the image. The layout is that of the kernel's documentation, "ext4 Data Structures and Algorithms".

use std::collections::HashMap;

use super::scan::{u16_at, u32_at};

/// A stretch of a file that is stored. What lies between two is zeroes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Extent {
    /// Where it begins in the file.
    pub(crate) at: u64,
    /// Where it begins in the image.
    pub(crate) start: u64,
    pub(crate) length: u64,
}

const SUPERBLOCK: usize = 1024;
const MAGIC: u16 = 0xef53;
/// `INCOMPAT_64BIT`.
const WIDE_GROUPS: u32 = 0x80;
/// `EXT4_EXTENTS_FL`.
const HAS_EXTENTS: u32 = 0x8_0000;
/// `EXT4_BG_INODE_UNINIT`.
const NO_INODES: u16 = 1;
const REGULAR: u16 = 0x8000;
const FOLDER: u16 = 0x4000;
/// The inode of the topmost folder.
const ROOT: u32 = 2;
const FORMAT: u16 = 0xf000;
const EXTENT_MAGIC: u16 = 0xf30a;
/// Deepest tree of extents that ext4 makes.
const MAX_DEPTH: usize = 5;
/// Longest extent that was written; longer ones are room without content.
const MAX_EXTENT: u16 = 0x8000;
/// Most extents of one file that are looked at.
const MAX_EXTENTS: usize = 4096;

struct Image<'i> {
    bytes: &'i [u8],
    block: u64,
}

/// A regular file or a folder.
pub(crate) struct Inode {
    pub(crate) number: u32,
    pub(crate) is_folder: bool,
    pub(crate) extents: Vec<Extent>,
}

/// The extents of all regular files, one list for each; `None` where `bytes` are no ext4 image.
pub(crate) fn files(bytes: &[u8]) -> Option<Vec<Vec<Extent>>> {
    Some(inodes(bytes)?.into_iter().filter(|inode| !inode.is_folder).map(|inode| inode.extents).collect())
}

/// All regular files with a path of each, without the leading slash; `None` where `bytes` are no ext4 image.
pub(crate) fn named_files(bytes: &[u8]) -> Option<Vec<(String, Vec<Extent>)>> {
    let mut inodes: HashMap<u32, Inode> = inodes(bytes)?.into_iter().map(|inode| (inode.number, inode)).collect();
    let mut found = Vec::new();
    let mut folders = vec![(String::new(), inodes.remove(&ROOT)?)];
    while let Some((path, folder)) = folders.pop() {
        let mut content = Vec::new();
        for extent in &folder.extents {
            let start = usize::try_from(extent.start).ok()?;
            content.extend_from_slice(bytes.get(start..)?.get(..usize::try_from(extent.length).ok()?)?);
        }
        let mut rest = content.as_slice();
        while let (Some(number), Some(length), Some(&name_length)) = (u32_at(rest, 0), u16_at(rest, 4), rest.get(6)) {
            let name = rest.get(8..8 + usize::from(name_length)).unwrap_or_default();
            // Each inode is taken once, so a loop of folders ends, and of several names of a file one is told.
            if name != b"."
                && name != b".."
                && let Some(inode) = inodes.remove(&number)
            {
                let name = format!("{path}{}", String::from_utf8_lossy(name));
                if inode.is_folder {
                    folders.push((format!("{name}/"), inode))
                } else {
                    found.push((name, inode.extents))
                }
            }
            rest = rest.get(usize::from(length).max(8)..).unwrap_or_default();
        }
    }
    Some(found)
}

/// The inodes of all regular files and folders that are in use.
fn inodes(bytes: &[u8]) -> Option<Vec<Inode>> {
    let superblock = bytes.get(SUPERBLOCK..)?.get(..1024)?;
    let field = |at| u32_at(superblock, at);
    if u16_at(superblock, 56)? != MAGIC || field(24)? > 6 {
        return None;
    }
    let image = Image { bytes, block: 1024 << field(24)? };
    let (inodes, per_group) = (field(0)?, field(40)?);
    let inode_bytes = u64::from(u16_at(superblock, 88)?);
    let wide = field(96)? & WIDE_GROUPS != 0;
    let group_bytes = if wide { u64::from(u16_at(superblock, 254)?) } else { 32 };
    if per_group == 0 || inode_bytes < 128 || group_bytes < 32 {
        return None;
    }
    let groups = (u64::from(field(20)?) + 1) * image.block;
    let mut found = Vec::new();
    for number in 0..u64::from(inodes.div_ceil(per_group)) {
        let Some(group) = image.at(groups + number * group_bytes, group_bytes) else { break };
        if u16_at(group, 18)? & NO_INODES != 0 {
            continue;
        }
        let high = if group_bytes >= 64 { u32_at(group, 40)? } else { 0 };
        let table = (u64::from(high) << 32 | u64::from(u32_at(group, 8)?)).checked_mul(image.block)?;
        for place in 0..u64::from(per_group) {
            let Some(inode) = image.at(table.checked_add(place * inode_bytes)?, inode_bytes) else { break };
            let Some((is_folder, extents)) = image.inode(inode) else { continue };
            let number = u32::try_from(number * u64::from(per_group) + place + 1).ok()?;
            found.push(Inode { number, is_folder, extents });
        }
    }
    Some(found)
}

impl<'i> Image<'i> {
    fn at(&self, start: u64, length: u64) -> Option<&'i [u8]> {
        self.bytes.get(usize::try_from(start).ok()?..)?.get(..usize::try_from(length).ok()?)
    }

    /// Whether it is a folder, and the extents of a file or folder, cut at its end.
    fn inode(&self, inode: &[u8]) -> Option<(bool, Vec<Extent>)> {
        let form = u16_at(inode, 0)? & FORMAT;
        let is_known = (form == REGULAR || form == FOLDER) && u16_at(inode, 26)? > 0;
        if !is_known || u32_at(inode, 32)? & HAS_EXTENTS == 0 {
            return None;
        }
        let size = u64::from(u32_at(inode, 108)?) << 32 | u64::from(u32_at(inode, 4)?);
        let mut extents = Vec::new();
        self.tree(inode.get(40..100)?, MAX_DEPTH, &mut extents)?;
        extents.sort_by_key(|extent| extent.at);
        let mut end = 0;
        for extent in &mut extents {
            extent.length = extent.length.min(size.saturating_sub(extent.at));
            if extent.at < end {
                return None;
            }
            end = extent.at + extent.length;
        }
        Some((form == FOLDER, extents))
    }

    fn tree(&self, node: &[u8], depth: usize, extents: &mut Vec<Extent>) -> Option<()> {
        if u16_at(node, 0)? != EXTENT_MAGIC || depth == 0 || extents.len() > MAX_EXTENTS {
            return None;
        }
        let (entries, is_leaf) = (usize::from(u16_at(node, 2)?), u16_at(node, 6)? == 0);
        for entry in node.get(12..)?.chunks_exact(12).take(entries) {
            let (low, high) = if is_leaf { (8, 6) } else { (4, 8) };
            let block = u64::from(u16_at(entry, high)?) << 32 | u64::from(u32_at(entry, low)?);
            let start = block.checked_mul(self.block)?;
            if !is_leaf {
                self.tree(self.at(start, self.block)?, depth - 1, extents)?;
                continue;
            }
            let blocks = u16_at(entry, 4)?;
            if blocks <= MAX_EXTENT {
                let (at, length) = (u64::from(u32_at(entry, 0)?) * self.block, u64::from(blocks) * self.block);
                self.at(start, length)?;
                match extents.last_mut() {
                    Some(last) if last.at + last.length == at && last.start + last.length == start => {
                        last.length += length;
                    }
                    _ => extents.push(Extent { at, start, length }),
                }
            }
        }
        Some(())
    }
}
