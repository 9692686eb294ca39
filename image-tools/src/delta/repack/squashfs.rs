//! Where the blocks of a squashfs image lie that is packed by zstd, and which file is in which. Only on the developer's
//! host. The layout is that of the kernel's `squashfs_fs.h`, version 4.0.
//!
//! ```text
//! superblock | blocks of files, packed one by one | inodes | folders | fragments | ...
//! ```
//! The tables behind the files are packed as well, 8 KiB at a time. A file's blocks follow each other. What is shorter
//! than a block may lie in a *fragment*: a block that several files share.

use std::collections::{BTreeMap, HashMap};

use crate::delta::predict::scan::{u16_at, u32_at, u64_at};
use crate::limits::MAX_BLOCK_BYTES;

/// How every squashfs image begins.
pub(crate) const MAGIC_BYTES: &[u8] = b"hsqs";
const MAGIC: u32 = 0x7371_7368;
const SUPERBLOCK: usize = 96;
const ZSTD: u16 = 6;
/// The superblock is followed by a table's block with the level of zstd.
const HAS_OPTIONS: u16 = 0x400;
/// The level of `mksquashfs` where nothing else is said.
const USUAL_LEVEL: i32 = 15;
/// Content of a table's block.
const TABLE_BLOCK: usize = 8 << 10;
/// Of a table's block: it is not packed.
const PLAIN_TABLE: u16 = 1 << 15;
/// Of a file's block: it is not packed.
const PLAIN_BLOCK: u32 = 1 << 24;
const NONE: u32 = u32::MAX;
const HEAD: usize = 16;
const MAX_DEPTH: usize = 64;

/// A block of files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Block {
    /// Where it lies in the image.
    pub(crate) start: u64,
    pub(crate) length: u32,
    pub(crate) is_packed: bool,
    /// How long its content is; of a fragment that is only known by unpacking it.
    pub(crate) content: Option<u32>,
}

/// A regular file. What lies between its parts is zeroes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct File {
    pub(crate) path: String,
    pub(crate) parts: Vec<FilePart>,
}

/// What a file has of one block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct FilePart {
    /// Where in the file it begins.
    pub(crate) at: u64,
    pub(crate) length: u64,
    /// The place of the block in the image.
    pub(crate) block: u64,
    /// Where in the block's content it begins.
    pub(crate) skip: u32,
}

/// What is known of an image.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Layout {
    /// The level of zstd, 1 to 22.
    pub(crate) level: u8,
    /// In the order of the image.
    pub(crate) blocks: Vec<Block>,
    pub(crate) files: Vec<File>,
}

/// A table of the image, unpacked, and where each of its blocks went.
#[derive(Default)]
struct Table {
    bytes: Vec<u8>,
    /// From where a block begins, counted from the table's begin, to where its content does.
    starts: HashMap<u64, usize>,
}

/// The layout of `image`; `None` where it is no squashfs image of zstd, or one with longer blocks.
pub(crate) fn read(image: &[u8]) -> Option<Layout> {
    let head = image.get(..SUPERBLOCK)?;
    let block_bytes = u32_at(head, 12)?;
    let is_ours = u32_at(head, 0)? == MAGIC && u16_at(head, 28)? == 4 && u16_at(head, 20)? == ZSTD;
    if !is_ours || block_bytes == 0 || block_bytes > MAX_BLOCK_BYTES {
        return None;
    }
    let options = u16_at(head, 24)? & HAS_OPTIONS != 0;
    let level = if options { u32_at(image, SUPERBLOCK + 2)?.cast_signed() } else { USUAL_LEVEL };
    let level = u8::try_from(level).ok().filter(|level| (1..=22).contains(level))?;
    let (inodes, folders) = (u64_at(head, 64)?, u64_at(head, 72)?);
    let fragments = fragments(image, u64_at(head, 80)?, u32_at(head, 16)?)?;
    // Behind the folders lies the first table that there is: of fragments, of inodes by number, of owners.
    let behind =
        [80, 88, 48].into_iter().filter_map(|place| u64_at(image, usize::try_from(u64_at(head, place)?).ok()?));
    let end = behind.min()?;
    let inodes = table(image, inodes, folders)?;
    let folders = table(image, folders, end)?;
    let mut reader = Reader { block_bytes, fragments: &fragments, ..Reader::default() };
    reader.inodes(&inodes.bytes)?;
    let names = reader.names(&folders);
    let mut blocks: BTreeMap<u64, Block> = reader.blocks.iter().map(|block| (block.start, *block)).collect();
    blocks.extend(fragments.iter().map(|block| (block.start, *block)));
    let is_inside = |block: &Block| block.start.saturating_add(u64::from(block.length)) <= image.len() as u64;
    if !blocks.values().all(is_inside) {
        return None;
    }
    let path = |number| path(&names, number);
    let mut files: Vec<File> =
        reader.files.into_iter().map(|(number, file)| File { path: path(number), ..file }).collect();
    let first = |file: &mut File| file.parts.first().map(|part| (part.block, part.skip));
    files.sort_by_key(|file| first(&mut file.clone()));
    // A file of several names, or of the same content as another, is there once.
    files.dedup_by_key(first);
    Some(Layout { level, blocks: blocks.into_values().collect(), files })
}

/// The blocks that files share.
fn fragments(image: &[u8], table_at: u64, count: u32) -> Option<Vec<Block>> {
    let mut found = Vec::new();
    if count == 0 {
        return Some(found);
    }
    let pointers = (count as usize * 16).div_ceil(TABLE_BLOCK);
    for number in 0..pointers {
        let at = u64_at(image, usize::try_from(table_at).ok()?.checked_add(number * 8)?)?;
        let (content, _) = table_block(image, at)?;
        for entry in content.chunks_exact(16) {
            let (start, size) = (u64_at(entry, 0)?, u32_at(entry, 8)?);
            let length = size & (PLAIN_BLOCK - 1);
            let is_packed = size & PLAIN_BLOCK == 0;
            found.push(Block { start, length, is_packed, content: (!is_packed).then_some(length) });
        }
    }
    found.truncate(count as usize);
    Some(found)
}

/// One block of a table, and where the next one begins.
fn table_block(image: &[u8], at: u64) -> Option<(Vec<u8>, u64)> {
    let start = usize::try_from(at).ok()?;
    let head = u16_at(image, start)?;
    let length = usize::from(head & !PLAIN_TABLE);
    let bytes = image.get(start.checked_add(2)?..)?.get(..length)?;
    let content =
        if head & PLAIN_TABLE != 0 { bytes.to_vec() } else { zstd::bulk::decompress(bytes, TABLE_BLOCK).ok()? };
    Some((content, at.saturating_add(2 + length as u64)))
}

/// All blocks of a table that lies in `from..to`.
fn table(image: &[u8], from: u64, to: u64) -> Option<Table> {
    let mut table = Table::default();
    let mut at = from;
    while at < to {
        let (content, next) = table_block(image, at)?;
        table.starts.insert(at - from, table.bytes.len());
        table.bytes.extend(content);
        at = next;
    }
    Some(table)
}

/// Goes through the inodes.
#[derive(Default)]
struct Reader<'f> {
    block_bytes: u32,
    fragments: &'f [Block],
    blocks: Vec<Block>,
    files: Vec<(u32, File)>,
    /// Of each folder: number, block of the table, place in it, length.
    folders: Vec<(u32, u64, usize, usize)>,
}

impl Reader<'_> {
    fn inodes(&mut self, bytes: &[u8]) -> Option<()> {
        let mut at = 0usize;
        while let Some(inode) = bytes.get(at..).filter(|rest| rest.len() >= HEAD) {
            let number = u32_at(inode, 12)?;
            let long = |place: usize| Some(u32_at(inode, place)? as usize);
            at += match u16_at(inode, 0)? {
                1 => {
                    let (block, size, place) = (u32_at(inode, 16)?, u16_at(inode, 24)?, u16_at(inode, 26)?);
                    self.folders.push((number, u64::from(block), usize::from(place), usize::from(size)));
                    32
                }
                2 => {
                    let (start, size) = (u64::from(u32_at(inode, 16)?), u64::from(u32_at(inode, 28)?));
                    32 + self.file(inode.get(32..)?, number, (start, size), (u32_at(inode, 20)?, u32_at(inode, 24)?))?
                }
                3 => 24 + long(20)?,
                4 | 5 | 13 | 14 => 24,
                6 | 7 => 20,
                8 => {
                    let (size, block, place) = (long(20)?, u32_at(inode, 24)?, u16_at(inode, 34)?);
                    self.folders.push((number, u64::from(block), usize::from(place), size));
                    let mut end = 40usize;
                    for _ in 0..u16_at(inode, 32)? {
                        end += 12 + long(end + 8)? + 1;
                    }
                    end
                }
                9 => {
                    let (start, size) = (u64_at(inode, 16)?, u64_at(inode, 24)?);
                    56 + self.file(inode.get(56..)?, number, (start, size), (u32_at(inode, 44)?, u32_at(inode, 48)?))?
                }
                10 => 28 + long(20)?,
                11 | 12 => 28,
                _ => return None,
            };
        }
        Some(())
    }

    /// Takes the blocks of a file, whose lengths are `sizes`; returns how many bytes these take up.
    fn file(&mut self, sizes: &[u8], number: u32, (start, size): (u64, u64), fragment: (u32, u32)) -> Option<usize> {
        let room = u64::from(self.block_bytes);
        let count = if fragment.0 == NONE { size.div_ceil(room) } else { size / room };
        let count = usize::try_from(count).ok()?;
        let mut start = start;
        let mut parts = Vec::new();
        for place in 0..count {
            let length = u32_at(sizes, place * 4)?;
            let at = place as u64 * room;
            let content = (size - at).min(room);
            let (length, is_packed) = (length & (PLAIN_BLOCK - 1), length & PLAIN_BLOCK == 0);
            // A block without bytes is a hole.
            if length > 0 {
                self.blocks.push(Block { start, length, is_packed, content: Some(content as u32) });
                parts.push(FilePart { at, length: content, block: start, skip: 0 });
            }
            start = start.saturating_add(u64::from(length));
        }
        if let Some(shared) = self.fragments.get(fragment.0 as usize) {
            let at = count as u64 * room;
            parts.push(FilePart { at, length: size.saturating_sub(at), block: shared.start, skip: fragment.1 });
        }
        parts.retain(|part| part.length > 0);
        if !parts.is_empty() {
            self.files.push((number, File { path: String::new(), parts }));
        }
        Some(count * 4)
    }

    /// From the number of an inode to the folder that it is in, and its name there.
    fn names(&self, table: &Table) -> HashMap<u32, (u32, String)> {
        let mut names = HashMap::new();
        for &(folder, block, place, size) in &self.folders {
            let start = table.starts.get(&block).map(|start| start + place);
            // Three bytes of the length stand for the entries "." and "..", which are not stored.
            let bytes = start.and_then(|start| table.bytes.get(start..)?.get(..size.saturating_sub(3)));
            for (number, name) in bytes.map(entries).unwrap_or_default() {
                names.insert(number, (folder, name));
            }
        }
        names
    }
}

/// Numbers and names in a folder.
fn entries(bytes: &[u8]) -> Vec<(u32, String)> {
    let mut found = Vec::new();
    let mut at = 0usize;
    while let (Some(count), Some(first)) = (u32_at(bytes, at), u32_at(bytes, at + 8)) {
        at += 12;
        for _ in 0..=count {
            let (Some(by), Some(length)) = (u16_at(bytes, at + 2), u16_at(bytes, at + 6)) else { return found };
            let name = bytes.get(at + 8..).and_then(|rest| rest.get(..usize::from(length) + 1)).unwrap_or_default();
            let number = first.wrapping_add_signed(i32::from(by.cast_signed()));
            found.push((number, String::from_utf8_lossy(name).into_owned()));
            at += 8 + usize::from(length) + 1;
        }
    }
    found
}

/// The path of an inode, without the leading slash.
fn path(names: &HashMap<u32, (u32, String)>, number: u32) -> String {
    let mut parts = Vec::new();
    let mut number = number;
    while let Some((folder, name)) = names.get(&number).filter(|_| parts.len() < MAX_DEPTH) {
        parts.push(name.as_str());
        number = *folder;
    }
    parts.reverse();
    parts.join("/")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const BLOCK: usize = 4096;

    fn put(bytes: &mut [u8], at: usize, value: &[u8]) {
        bytes[at..at + value.len()].copy_from_slice(value);
    }

    /// A table's block that is not packed.
    fn table_of(content: &[u8]) -> Vec<u8> {
        [&(content.len() as u16 | PLAIN_TABLE).to_le_bytes(), content].concat()
    }

    /// An image of `f/a`, a packed block and one as it is, and `b` in a fragment behind ten other bytes.
    fn image() -> Vec<u8> {
        let mut image = vec![0; SUPERBLOCK];
        let packed = zstd::bulk::compress(&[7; BLOCK], 15).unwrap();
        image.extend(&packed);
        image.extend([1, 2, 3]);
        let fragment_at = image.len() as u64;
        image.extend([9; 30]);
        let words = |words: &[u32]| words.iter().flat_map(|word| word.to_le_bytes()).collect::<Vec<_>>();
        let head = |kind: u32, number: u32| words(&[kind, 0, 0, number]);
        let inodes = [
            head(2, 1),
            words(&[SUPERBLOCK as u32, NONE, 0, BLOCK as u32 + 3, packed.len() as u32, 3 | PLAIN_BLOCK]),
            head(2, 2),
            words(&[0, 0, 10, 20]),
            // A folder, `f`, whose entry begins at byte 0 of the folders, and the topmost one behind it.
            head(1, 3),
            words(&[0, 2, (12 + 9 + 3), 4]),
            head(1, 4),
            words(&[0, 3, (12 + 18 + 3) | 21 << 16, 5]),
        ]
        .concat();
        let entry = |by: i16, name: u8| [&[0, 0][..], &by.to_le_bytes(), &[2, 0, 0, 0, name]].concat();
        let folders = [words(&[0, 0, 1]), entry(0, b'a'), words(&[1, 0, 1]), entry(1, b'b'), entry(2, b'f')].concat();
        let inodes_at = image.len();
        image.extend(table_of(&inodes));
        let folders_at = image.len();
        image.extend(table_of(&folders));
        let entries_at = image.len() as u64;
        let fragment = [&fragment_at.to_le_bytes()[..], &words(&[30 | PLAIN_BLOCK, 0])].concat();
        image.extend(table_of(&fragment));
        let fragments_at = image.len();
        image.extend(entries_at.to_le_bytes());
        put(&mut image, 0, &MAGIC.to_le_bytes());
        put(&mut image, 12, &(BLOCK as u32).to_le_bytes());
        put(&mut image, 16, &1u32.to_le_bytes());
        put(&mut image, 20, &ZSTD.to_le_bytes());
        put(&mut image, 28, &4u16.to_le_bytes());
        for (place, at) in [(48, usize::MAX), (64, inodes_at), (72, folders_at), (80, fragments_at), (88, usize::MAX)] {
            put(&mut image, place, &(at as u64).to_le_bytes());
        }
        image
    }

    #[test]
    fn files_are_found_with_their_blocks() {
        let image = image();
        let layout = read(&image).unwrap();
        let packed = zstd::bulk::compress(&[7; BLOCK], 15).unwrap().len() as u32;
        let (first, second) = (SUPERBLOCK as u64, SUPERBLOCK as u64 + u64::from(packed));
        assert_eq!(layout.level, 15);
        assert_eq!(
            layout.blocks,
            [
                Block { start: first, length: packed, is_packed: true, content: Some(BLOCK as u32) },
                Block { start: second, length: 3, is_packed: false, content: Some(3) },
                Block { start: second + 3, length: 30, is_packed: false, content: Some(30) },
            ]
        );
        let part = |at, length, block, skip| FilePart { at, length, block, skip };
        let file = |path: &str, parts: &[FilePart]| File { path: path.into(), parts: parts.to_vec() };
        let block = BLOCK as u64;
        assert_eq!(
            layout.files,
            [
                file("f/a", &[part(0, block, first, 0), part(block, 3, second, 0)]),
                file("b", &[part(0, 20, second + 3, 10)]),
            ],
        );
    }

    #[test]
    fn what_is_not_such_an_image_is_told() {
        for (place, byte) in [(0, 0), (28, 3), (20, 1), (15, 1), (24, 0)] {
            let mut other = image();
            other[place] = byte;
            let is_same = place == 24;
            assert_eq!(read(&other).is_some(), is_same, "{place}");
        }
        // With options behind the superblock the level is there.
        let mut other = image();
        put(&mut other, 24, &HAS_OPTIONS.to_le_bytes());
        assert_eq!(read(&other), None);
        assert_eq!(read(b"hsqs"), None);
    }

    proptest! {
        #[test]
        fn a_damaged_image_is_read_or_not(
            damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
            end in any::<prop::sample::Index>(),
        ) {
            let mut image = image();
            for (place, byte) in damage {
                let place = place.index(image.len());
                image[place] = byte;
            }
            if let Some(layout) = read(&image) {
                let inside = |block: &Block| block.start + u64::from(block.length) <= image.len() as u64;
                prop_assert!(layout.blocks.iter().all(inside));
                let _ = super::super::find::find(&image);
            }
            let _ = read(&image[..end.index(image.len())]);
        }
    }
}
