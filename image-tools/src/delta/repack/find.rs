//! Finds separately compressed units in an image, by content: nothing is believed that does not unpack. Only on the
//! developer's host.

use std::collections::{BTreeMap, HashMap};

use super::squashfs::FilePart;
use super::units::Stretch;
use super::{Codec, lz4, squashfs, zstd};
use crate::delta::predict;
use crate::delta::predict::ext4::Extent;
use crate::delta::predict::scan::u32_at;
use crate::limits::{BASE_BLOCK_BYTES, MAX_BLOCK_BYTES, MAX_UNIT_BYTES};

/// A unit of an image, unpacked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct FoundUnit {
    pub(crate) codec: Codec,
    /// Where it lies in the image.
    pub(crate) stretches: Vec<Stretch>,
    /// Where its content begins among that of all units.
    pub(crate) at: usize,
    /// Length of its content.
    pub(crate) length: u32,
}

/// The units of an image and what they hold.
#[derive(Debug, Clone, Default)]
pub(crate) struct Found {
    pub(crate) units: Vec<FoundUnit>,
    /// The content of all units, each beginning at a block.
    pub(crate) content: Vec<u8>,
    /// Stretches of the content that were one file before it was cut into units and packed, in order.
    pub(crate) files: Vec<Unpacked>,
}

/// A file among the content of units.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Unpacked {
    /// Where it lies in the content, in the order of the file.
    pub(crate) extents: Vec<Extent>,
    /// Its path in the image; `None` of what is packed inside of a file.
    pub(crate) path: Option<String>,
}

/// How the frames begin that Linux kernels are packed in: "legacy" of the LZ4 Frame Format Description.
const LEGACY: [u8; 4] = 0x184C_2102_u32.to_le_bytes();
/// All blocks of such a frame but the last hold so much.
const LEGACY_BLOCK: usize = MAX_UNIT_BYTES as usize;
/// A shorter frame is not worth the while.
const LEAST_FRAME: usize = 256 << 10;

/// All units of an image.
pub(crate) fn find(image: &[u8]) -> Found {
    match squashfs::read(image) {
        Some(layout) => Found::blocks(image, layout),
        None => kernels(image),
    }
}

/// The kernels of an image that are packed by LZ4.
fn kernels(image: &[u8]) -> Found {
    let mut extents: Vec<(Extent, usize)> = Vec::new();
    let files = predict::files(image);
    for (number, file) in files.iter().flatten().enumerate() {
        extents.extend(file.iter().map(|extent| (*extent, number)));
    }
    extents.sort_unstable_by_key(|(extent, _)| extent.start);
    let mut found = Found::default();
    let mut at = 0usize;
    while let Some(place) = image.get(at..).and_then(|rest| position(rest, &LEGACY)) {
        let start = at.saturating_add(place);
        at = start.saturating_add(LEGACY.len());
        if let Some(end) = found.frame(image, &tail(image, &extents, start, files.is_some())) {
            at = at.max(end);
        }
    }
    found
}

fn position(bytes: &[u8], wanted: &[u8]) -> Option<usize> {
    let first = wanted.first()?;
    let mut from = 0usize;
    loop {
        let rest = bytes.get(from..)?;
        let at = from.saturating_add(rest.iter().position(|byte| byte == first)?);
        if bytes.get(at..)?.starts_with(wanted) {
            return Some(at);
        }
        from = at.saturating_add(1);
    }
}

/// Where the file that `start` is in goes on from there, until a part of it is not stored; without files, the image.
fn tail(image: &[u8], extents: &[(Extent, usize)], start: usize, has_files: bool) -> Vec<Stretch> {
    let stretch = |from: u64, to: u64| Stretch { start: from, length: u32::try_from(to - from).unwrap_or(u32::MAX) };
    if !has_files {
        return vec![stretch(start as u64, image.len() as u64)];
    }
    let place = extents.partition_point(|(extent, _)| extent.start <= start as u64);
    let Some((first, file)) = place.checked_sub(1).and_then(|place| extents.get(place)) else { return Vec::new() };
    let end = first.start + first.length;
    if start as u64 >= end {
        return Vec::new();
    }
    let mut found = vec![stretch(start as u64, end)];
    let mut others: Vec<_> =
        extents.iter().filter(|(extent, of)| of == file && extent.at > first.at).map(|(extent, _)| *extent).collect();
    others.sort_unstable_by_key(|extent| extent.at);
    let mut reached = first.at + first.length;
    for extent in others {
        if extent.at != reached {
            break;
        }
        found.push(stretch(extent.start, extent.start + extent.length));
        reached += extent.length;
    }
    found
}

/// `length` bytes from `from` on of what lies in `stretches`.
fn part(stretches: &[Stretch], from: usize, length: usize) -> Vec<Stretch> {
    let (mut skip, mut left) = (from as u64, length as u64);
    let mut found = Vec::new();
    for stretch in stretches {
        let whole = u64::from(stretch.length);
        if skip >= whole {
            skip -= whole;
            continue;
        }
        let taken = (whole - skip).min(left);
        if taken > 0 {
            found.push(Stretch { start: stretch.start + skip, length: taken as u32 });
        }
        (left, skip) = (left - taken, 0);
    }
    found
}

/// The bytes of some stretches, one after the other.
pub(crate) fn bytes_of(image: &[u8], stretches: &[Stretch]) -> Vec<u8> {
    let places = stretches.iter().map(|s| s.start as usize..(s.start + u64::from(s.length)) as usize);
    places.filter_map(|place| image.get(place)).flatten().copied().collect()
}

impl Unpacked {
    /// Where it is in a long image whose units' content begins at `start`.
    pub(crate) fn behind(&self, start: u64) -> Vec<Extent> {
        self.extents.iter().map(|extent| Extent { start: extent.start.saturating_add(start), ..*extent }).collect()
    }

    /// The file whose parts lie at these places of the content.
    fn new(path: String, parts: impl Iterator<Item = Extent>) -> Self {
        let mut extents: Vec<Extent> = Vec::new();
        for part in parts {
            match extents.last_mut() {
                Some(last) if (last.at + last.length, last.start + last.length) == (part.at, part.start) => {
                    last.length += part.length;
                }
                _ => extents.push(part),
            }
        }
        Unpacked { extents, path: Some(path) }
    }
}

impl Found {
    /// The unit that holds byte `at` of the content.
    pub(crate) fn unit(&self, at: usize) -> Option<&FoundUnit> {
        let behind = self.units.partition_point(|unit| unit.at <= at);
        self.units.get(behind.checked_sub(1)?).filter(|unit| at < unit.at.saturating_add(unit.length as usize))
    }

    /// The blocks of a squashfs image.
    fn blocks(image: &[u8], layout: squashfs::Layout) -> Self {
        let mut found = Found::default();
        // From a block's place in the image to that of its content.
        let mut places = HashMap::new();
        for block in layout.blocks {
            let stretch = Stretch { start: block.start, length: block.length };
            let packed = bytes_of(image, &[stretch]);
            let (codec, content) = match block.is_packed {
                true => (Codec::Zstd(layout.level), zstd::whole(&packed, MAX_BLOCK_BYTES as usize)),
                false => (Codec::Plain, Some(packed)),
            };
            let is_it = |content: &Vec<u8>| block.content.is_none_or(|length| length as usize == content.len());
            let content = content.filter(|content| !content.is_empty() && is_it(content));
            if let Some(content) = content {
                places.insert(block.start, found.push(codec, vec![stretch], &content) as u64);
            }
        }
        // Where extents that were told begin and end.
        let mut told: BTreeMap<u64, u64> = BTreeMap::new();
        for file in layout.files {
            let place = |part: &FilePart| {
                let start = places.get(&part.block)? + u64::from(part.skip);
                Some(Extent { at: part.at, start, length: part.length })
            };
            let Some(parts) = file.parts.iter().map(place).collect::<Option<Vec<_>>>() else { continue };
            let file = Unpacked::new(file.path, parts.into_iter());
            // Two files may share a part of their bytes: then only one of them is told.
            let is_free = |extent: &Extent| {
                let end = extent.start + extent.length;
                let before = told.range(..end).next_back().map_or(0, |(_, end)| *end);
                before <= extent.start && end <= found.content.len() as u64
            };
            if file.extents.iter().all(is_free) {
                told.extend(file.extents.iter().map(|extent| (extent.start, extent.start + extent.length)));
                found.files.push(file);
            }
        }
        found
    }

    /// Adds a unit with its content, and tells where that begins.
    fn push(&mut self, codec: Codec, stretches: Vec<Stretch>, content: &[u8]) -> usize {
        self.content.resize(self.content.len().next_multiple_of(BASE_BLOCK_BYTES as usize), 0);
        let at = self.content.len();
        self.content.extend_from_slice(content);
        self.units.push(FoundUnit { codec, stretches, at, length: content.len() as u32 });
        at
    }

    /// Takes the frame at the head of `stretches`, if there is one, and tells where in the image it ends.
    fn frame(&mut self, image: &[u8], stretches: &[Stretch]) -> Option<usize> {
        // A kernel's frame is followed by its length, and not long: so not the whole rest of an image is copied.
        const MOST: usize = 256 << 20;
        let bytes = bytes_of(image, &part(stretches, 0, MOST));
        let mut blocks: Vec<(usize, Vec<u8>)> = Vec::new();
        let mut at = LEGACY.len();
        while blocks.last().is_none_or(|(_, content)| content.len() == LEGACY_BLOCK) {
            let Some(length) = u32_at(&bytes, at).map(|length| length as usize) else { break };
            let Some(packed) = bytes.get(at + 4..).and_then(|rest| rest.get(..length)) else { break };
            let Some(content) = lz4::whole(packed, LEGACY_BLOCK) else { break };
            blocks.push((at + 4, content));
            at += 4 + length;
        }
        if blocks.iter().map(|(_, content)| content.len()).sum::<usize>() < LEAST_FRAME {
            return None;
        }
        let start = self.content.len().next_multiple_of(BASE_BLOCK_BYTES as usize);
        let ends: Vec<usize> = blocks.iter().skip(1).map(|(begin, _)| begin - 4).chain([at]).collect();
        for ((begin, content), end) in blocks.iter().zip(ends) {
            self.push(Codec::Lz4, part(stretches, *begin, end - begin), content);
        }
        let whole = Extent { at: 0, start: start as u64, length: (self.content.len() - start) as u64 };
        self.files.push(Unpacked { extents: vec![whole], path: None });
        let last = part(stretches, 0, at);
        last.iter().map(|stretch| (stretch.start + u64::from(stretch.length)) as usize).max()
    }
}
