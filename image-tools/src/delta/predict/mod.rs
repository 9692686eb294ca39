//! Reference prediction: before a patch is applied, the addresses in its source are replaced by those that they will
//! probably be.
//!
//! Most bytes that differ between two builds of a program say where something else is, and that has moved. A delta
//! therefore tells where executables lie in the base image, and for each where its parts went; whoever applies it finds
//! the references in the bytes of a chunk's source ([`scan`]) and moves them along ([`map`]). A wrong guess costs bytes
//! in the patch, never correctness: the encoder patches what really comes out, and the chunk's digest decides.
//!
//! | module | subject |
//! |---|---|
//! | [`map`] | where addresses went |
//! | [`scan`] | references in the sections of ELF files |
//! | [`code`] | references in x86-64 instructions |
//! | [`arm64`] | references in aarch64 instructions |
//! | [`btf`] | references in the type information of Linux |
//! | [`side`] | the prediction's bytes at the end of a delta table |
//! | [`ext4`], [`erofs`], [`elf`], [`flat`] | finds files in an image, and their sections (host) |
//! | [`learn`], [`entries`], [`fit`] | finds out where addresses went (host) |

pub(crate) mod arm64;
pub(crate) mod btf;
pub(crate) mod code;
pub(crate) mod elf;
pub(crate) mod entries;
pub(crate) mod erofs;
pub(crate) mod ext4;
pub(crate) mod fit;
pub(crate) mod flat;
pub(crate) mod learn;
pub(crate) mod map;
pub(crate) mod scan;
pub(crate) mod side;

use self::ext4::Extent;
use self::map::{Piece, Space, Span};
use self::scan::{Anchor, Context, Kind, Operand, Reference, u32_at};
use super::table::BaseRange;

/// What is known about the executables of a base image and where their parts went.
///
/// Its memory is bounded by [`MAX_AREAS`](crate::limits::MAX_AREAS), [`MAX_PIECES`](crate::limits::MAX_PIECES) and
/// their like. Applying it takes no memory but the source, and time by the source's length.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Prediction {
    pub(crate) files: Vec<ElfFile>,
    pub(crate) sections: Vec<Section>,
    /// In the order of the image, without overlap.
    pub(crate) areas: Vec<Area>,
    pub(crate) pieces: Vec<Piece>,
    /// Pieces for what no file has pieces of its own for.
    pub(crate) shared: [Span; Space::ALL.len()],
    /// Of all files one after the other: symbols of sections, and the sections' addresses.
    pub(crate) symbols: Vec<(u32, u32)>,
}

/// One executable, shared object or object file.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct ElfFile {
    /// The lowest address; all others are counted from it.
    pub(crate) low: u64,
    /// How many bytes its addresses take up.
    pub(crate) room: u32,
    /// Where its pieces are.
    pub(crate) spans: [Span; Space::ALL.len()],
    /// Where its section symbols are.
    pub(crate) symbols: Span,
}

/// One section of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Section {
    pub(crate) file: u32,
    pub(crate) kind: Kind,
    /// See [`Context::base`].
    pub(crate) base: u32,
    pub(crate) length: u32,
}

/// A stretch of the image that holds a part of a section.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Area {
    pub(crate) start: u64,
    pub(crate) length: u32,
    pub(crate) section: u32,
    /// Where in the section it begins.
    pub(crate) skip: u32,
}

impl Area {
    pub(crate) fn end(&self) -> u64 {
        self.start.saturating_add(u64::from(self.length))
    }
}

impl Prediction {
    /// Whether it changes nothing at all.
    pub(crate) fn is_empty(&self) -> bool {
        self.areas.is_empty()
    }

    /// What it says of the image before `end`.
    pub(crate) fn until(&self, end: u64) -> Self {
        let mut until = self.clone();
        until.areas.retain(|area| area.end() <= end);
        until
    }

    /// Replaces the references in `source`, which is the base image's `ranges` one after the other.
    pub fn apply(&self, ranges: &[BaseRange], source: &mut [u8]) {
        let mut rest = source;
        for range in ranges {
            let Some((bytes, behind)) = usize::try_from(range.len).ok().and_then(|len| rest.split_at_mut_checked(len))
            else {
                return;
            };
            self.apply_to(range.offset, bytes);
            rest = behind;
        }
    }

    /// Replaces the references in `bytes`, which are at `offset` of the image.
    pub(crate) fn apply_to(&self, offset: u64, bytes: &mut [u8]) {
        let end = offset.saturating_add(bytes.len() as u64);
        let first = self.areas.partition_point(|area| area.end() <= offset);
        for area in self.areas.iter().skip(first).take_while(|area| area.start < end) {
            let (from, to) = (area.start.max(offset), area.end().min(end));
            let place = |at: u64| usize::try_from(at.saturating_sub(offset)).unwrap_or(usize::MAX);
            let Some(stretch) = bytes.get_mut(place(from)..place(to)) else { return };
            if let Some(context) = self.context(area, from) {
                let file = self.section(area).and_then(|section| self.files.get(section.file as usize));
                scan::scan(&context, stretch, &mut |bytes, reference| {
                    self.replace(file, &context, bytes, reference);
                });
            }
        }
    }

    pub(crate) fn section(&self, area: &Area) -> Option<&Section> {
        self.sections.get(area.section as usize)
    }

    /// The context of the part of `area` that begins at `from` of the image.
    pub(crate) fn context(&self, area: &Area, from: u64) -> Option<Context<'_>> {
        let section = self.section(area)?;
        let file = self.files.get(section.file as usize)?;
        Some(Context {
            kind: section.kind,
            base: section.base,
            skip: area.skip.saturating_add(u32::try_from(from.saturating_sub(area.start)).ok()?),
            length: section.length,
            low: file.low,
            room: file.room,
            sections: self.symbols.get(file.symbols.clone()).unwrap_or_default(),
        })
    }

    fn replace(&self, file: Option<&ElfFile>, context: &Context<'_>, bytes: &mut [u8], reference: Reference) {
        let Some(file) = file else { return };
        let address = |place| self.shift(file, Space::Address, place);
        let anchor = match reference.anchor {
            Anchor::Fixed | Anchor::FixedUntil => 0,
            Anchor::Place | Anchor::Until => address(context.address(reference.at)),
            Anchor::Base => address(context.base),
        };
        let target = self.shift(file, reference.space, reference.target);
        let by = target.wrapping_sub(anchor);
        let by = if reference.anchor.is_backwards() { by.wrapping_neg() } else { by };
        let Some(field) = bytes.get_mut(reference.at..) else { return };
        let word = u32_at(field, 0).unwrap_or_default();
        let now = reference.target.wrapping_add_signed(target);
        let word = match reference.operand {
            Operand::Plain => return add(field, reference.width, by),
            Operand::Branch => arm64::with_distance(word, arm64::distance(word).wrapping_add(by)),
            Operand::Page => {
                let place = context.address(reference.at).wrapping_add_signed(anchor);
                arm64::page_to(word, place, now)
            }
            Operand::Low(scale) => arm64::low_to(word, scale, now),
        };
        if let Some(field) = field.first_chunk_mut::<4>() {
            *field = word.to_le_bytes();
        }
    }

    /// How far `place` moved: by the file's own pieces, or by the shared ones before the first of them.
    pub(crate) fn shift(&self, file: &ElfFile, space: Space, place: u32) -> i32 {
        let pieces = |spans: &[Span; Space::ALL.len()]| {
            spans.get(space as usize).and_then(|span| self.pieces.get(span.clone())).unwrap_or_default()
        };
        let (own, shared) = (pieces(&file.spans), pieces(&self.shared));
        if space == Space::Checksum {
            return map::shift_of_value(shared, place).unwrap_or(0);
        }
        map::shift(own, place).or_else(|| map::shift(shared, place)).unwrap_or(0)
    }
}

/// The files of an image with their paths; `None` where its file system is not known. On the host.
pub(crate) fn named_files(image: &[u8]) -> Option<Vec<(String, Vec<Extent>)>> {
    ext4::named_files(image).or_else(|| erofs::named_files(image))
}

/// The extents of the files of an image, one list for each. On the host.
pub(crate) fn files(image: &[u8]) -> Option<Vec<Vec<Extent>>> {
    let of_erofs = || Some(erofs::named_files(image)?.into_iter().map(|(_, extents)| extents).collect());
    ext4::files(image).or_else(of_erofs)
}

/// Adds to the field at the head of `bytes`.
fn add(bytes: &mut [u8], width: usize, by: i32) {
    if width == 8 {
        if let Some(field) = bytes.first_chunk_mut::<8>() {
            *field = u64::from_le_bytes(*field).wrapping_add_signed(i64::from(by)).to_le_bytes();
        }
    } else if let Some(field) = bytes.first_chunk_mut::<4>() {
        *field = u32::from_le_bytes(*field).wrapping_add_signed(by).to_le_bytes();
    }
}

#[cfg(test)]
mod tests;
