//! Finds references in stretches of ELF files: fields that hold where something else is.
//!
//! The same bytes give the same references, wherever a stretch is cut: that is all the format asks for. A field that
//! only looks like a reference costs bytes, no more. The layouts are those of the System V ABI (gABI, x86-64 psABI), the
//! Linux Standard Base (`.eh_frame`), and Linux (`__versions`, BTF).

use super::map::Space;
use super::{arm64, btf, code};

/// What an area of the base image holds, and so how references are found in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Kind {
    /// x86-64 instructions: relative calls and jumps, and operands relative to the instruction.
    Code,
    /// x86-64 instructions of an object file: calls and jumps inside of the section.
    ObjectCode,
    /// `.eh_frame`: functions and their tables, relative to the field.
    Frames,
    /// `.eh_frame_hdr`: functions and their frames, relative to the section.
    FrameIndex,
    /// RELA entries of a program or a shared object: place, symbol, and the addend where it is an address.
    Relocations,
    /// RELA entries for data of an object file: place in the section they are for, symbol, addend.
    ObjectRelocations,
    /// RELA entries for code of an object file, whose addends are from the end of a field of four bytes.
    ObjectCodeRelocations,
    /// Symbols of a program or a shared object.
    Symbols,
    /// Symbols of an object file, counted from their sections.
    ObjectSymbols,
    /// Words of eight bytes, some of which are addresses.
    Words,
    /// `__versions`: checksums of a kernel's symbols, with their names.
    Versions,
    /// Checksums of a kernel's symbols alone.
    Checksums,
    /// BTF, read from its beginning only.
    Types,
    /// x86-64 instructions at a fixed address: those of [`Kind::Code`], and absolute addresses as operands.
    FixedCode,
    /// Words of four bytes, relative to themselves.
    RelativeWords,
    /// Words of four bytes, some of which are addresses, sign-extended.
    LowWords,
    /// The types of BTF from the beginning of one of them on.
    TypeRecords,
    /// Words of four bytes, some of which are addresses: with all bits inverted, counted from the file's lowest one.
    Complements,
    /// aarch64 instructions.
    Arm64Code,
    /// Words of four bytes, counted from the file's lowest address.
    Offsets,
}

impl Kind {
    /// All of them; a kind's place is its number in the format.
    pub(crate) const ALL: [Kind; 20] = [
        Kind::Code,
        Kind::ObjectCode,
        Kind::Frames,
        Kind::FrameIndex,
        Kind::Relocations,
        Kind::ObjectRelocations,
        Kind::ObjectCodeRelocations,
        Kind::Symbols,
        Kind::ObjectSymbols,
        Kind::Words,
        Kind::Versions,
        Kind::Checksums,
        Kind::Types,
        Kind::FixedCode,
        Kind::RelativeWords,
        Kind::LowWords,
        Kind::TypeRecords,
        Kind::Complements,
        Kind::Arm64Code,
        Kind::Offsets,
    ];
}

/// What a stretch is a part of.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Context<'c> {
    pub(crate) kind: Kind,
    /// Address of the section's first byte; of relocations of an object file, of the section they are for.
    pub(crate) base: u32,
    /// Where the stretch begins in the section.
    pub(crate) skip: u32,
    /// Where the section ends, counted from its first byte.
    pub(crate) length: u32,
    /// The lowest address of the file, that all others are counted from.
    pub(crate) low: u64,
    /// How many bytes the addresses of the file take up.
    pub(crate) room: u32,
    /// Of an object file: symbols that stand for sections, ascending, with the sections' addresses.
    pub(crate) sections: &'c [(u32, u32)],
}

/// What a field's value is counted from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Anchor {
    /// Something that does not move.
    Fixed,
    /// The place of the field itself.
    Place,
    /// The section's first byte.
    Base,
    /// The place of the field itself, from which the value leads backwards.
    Until,
    /// Something that does not move, from which the value leads backwards.
    FixedUntil,
}

impl Anchor {
    /// Whether the field's value falls as its target moves up.
    pub(crate) fn is_backwards(self) -> bool {
        matches!(self, Anchor::Until | Anchor::FixedUntil)
    }
}

/// How a field holds a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Operand {
    /// As a little-endian number.
    Plain,
    /// In an aarch64 branch.
    Branch,
    /// In an `ADRP` of aarch64: the page of the target.
    Page,
    /// In the instruction behind one: the rest, in units of this power of two.
    Low(u8),
}

/// A field that says where something is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Reference {
    /// Where the field begins in the stretch.
    pub(crate) at: usize,
    /// Its length in bytes: 4 or 8.
    pub(crate) width: usize,
    /// What it points at, and in which terms.
    pub(crate) space: Space,
    pub(crate) target: u32,
    pub(crate) anchor: Anchor,
    pub(crate) operand: Operand,
}

impl Reference {
    /// A number that is counted from something that does not move.
    pub(crate) fn fixed(at: usize, width: usize, space: Space, target: u32) -> Self {
        Reference { at, width, space, target, anchor: Anchor::Fixed, operand: Operand::Plain }
    }
}

/// Calls `visit` with each reference of a stretch, in order. It may change the field, and nothing else.
pub(crate) fn scan(context: &Context<'_>, bytes: &mut [u8], visit: &mut dyn FnMut(&mut [u8], Reference)) {
    match context.kind {
        Kind::Code | Kind::ObjectCode | Kind::FixedCode => code::scan(context, bytes, visit),
        Kind::Arm64Code => arm64::scan(context, bytes, visit),
        Kind::Frames => frames(context, bytes, visit),
        Kind::FrameIndex => frame_index(context, bytes, visit),
        Kind::Relocations | Kind::ObjectRelocations | Kind::ObjectCodeRelocations => {
            relocations(context, bytes, visit);
        }
        Kind::Symbols | Kind::ObjectSymbols => symbols(context, bytes, visit),
        Kind::Words => words(context, bytes, visit),
        Kind::Versions => {
            each(context, bytes.len(), VERSION_BYTES, |at| checksum(bytes, at, visit));
        }
        Kind::Checksums => {
            each(context, bytes.len(), 4, |at| checksum(bytes, at, visit));
        }
        Kind::Types | Kind::TypeRecords => btf::scan(context, bytes, visit),
        Kind::RelativeWords | Kind::LowWords | Kind::Complements | Kind::Offsets => half_words(context, bytes, visit),
    }
}

pub(crate) fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

pub(crate) fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

pub(crate) fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

impl Context<'_> {
    /// The address of the byte at `at` of the stretch.
    pub(crate) fn address(&self, at: usize) -> u32 {
        self.base.wrapping_add(self.skip).wrapping_add(at as u32)
    }

    /// An absolute address counted from the file's lowest one, where it is in the file.
    pub(crate) fn inside(&self, absolute: u64) -> Option<u32> {
        let address = u32::try_from(absolute.checked_sub(self.low)?).ok()?;
        (address <= self.room).then_some(address)
    }

    /// What a signed distance from `from` leads to, where that is in the file.
    pub(crate) fn relative(&self, from: u32, distance: u32) -> Option<u32> {
        let address = i64::from(from).checked_add(i64::from(distance as i32))?;
        let address = u32::try_from(address).ok()?;
        (address <= self.room).then_some(address)
    }
}

/// Length of a RELA entry and of a symbol of ELF64, and of an entry of `__versions`.
const ENTRY_BYTES: usize = 24;
const VERSION_BYTES: usize = 64;

/// Calls `visit` with the place of each whole entry of `size` bytes, counted from the section's beginning.
pub(crate) fn each(context: &Context<'_>, length: usize, size: usize, mut visit: impl FnMut(usize)) {
    let before = context.skip as usize % size;
    let first = if before == 0 { 0 } else { size - before };
    let mut at = first;
    while at.saturating_add(size) <= length {
        visit(at);
        at += size;
    }
}

fn checksum(bytes: &mut [u8], at: usize, visit: &mut dyn FnMut(&mut [u8], Reference)) {
    if let Some(value) = u32_at(bytes, at) {
        visit(bytes, Reference::fixed(at, 4, Space::Checksum, value));
    }
}

/// Types of relocations whose addend is an address: `R_X86_64_RELATIVE` and `_IRELATIVE`, `R_AARCH64_RELATIVE` and
/// `_IRELATIVE`.
pub(crate) const RELATIVE: [u32; 4] = [8, 37, 1027, 1032];

fn relocations(context: &Context<'_>, bytes: &mut [u8], visit: &mut dyn FnMut(&mut [u8], Reference)) {
    let of_object = context.kind != Kind::Relocations;
    let before_end = if context.kind == Kind::ObjectCodeRelocations { 4 } else { 0 };
    each(context, bytes.len(), ENTRY_BYTES, |at| {
        let (Some(place), Some(kind), Some(symbol), Some(addend)) =
            (u64_at(bytes, at), u32_at(bytes, at + 8), u32_at(bytes, at + 12), u64_at(bytes, at + 16))
        else {
            return;
        };
        let place = if of_object { place.checked_add(u64::from(context.base)) } else { Some(place) };
        if let Some(place) = place.and_then(|place| context.inside(place)) {
            visit(bytes, Reference::fixed(at, 8, Space::Address, place));
        }
        if symbol != 0 {
            visit(bytes, Reference::fixed(at + 12, 4, Space::Symbol, symbol));
        }
        let target = if of_object {
            let section = context.sections.binary_search_by_key(&symbol, |(symbol, _)| *symbol).ok();
            let section = section.and_then(|number| context.sections.get(number));
            section.and_then(|(_, base)| context.relative(base.wrapping_add(before_end), addend as u32))
        } else {
            RELATIVE.contains(&kind).then(|| context.inside(addend)).flatten()
        };
        if let Some(target) = target {
            visit(bytes, Reference::fixed(at + 16, 8, Space::Address, target));
        }
    });
}

/// Sections of an object file have addresses of this many bytes each.
pub(crate) const SECTION_BITS: u32 = 24;
/// `st_shndx` from here on stands for no section.
const RESERVED_SECTIONS: u16 = 0xff00;
/// The type of symbols that are counted from the thread's storage.
const THREAD_LOCAL: u8 = 6;

fn symbols(context: &Context<'_>, bytes: &mut [u8], visit: &mut dyn FnMut(&mut [u8], Reference)) {
    each(context, bytes.len(), ENTRY_BYTES, |at| {
        let (Some(name), Some(section), Some(value)) =
            (u32_at(bytes, at), u16_at(bytes, at + 6), u64_at(bytes, at + 8))
        else {
            return;
        };
        if name != 0 {
            visit(bytes, Reference::fixed(at, 4, Space::Name, name));
        }
        let kind = bytes.get(at + 4).copied().unwrap_or_default() & 0xf;
        if section == 0 || section >= RESERVED_SECTIONS || kind == THREAD_LOCAL {
            return;
        }
        let absolute = if context.kind == Kind::ObjectSymbols {
            let fits = value < 1 << SECTION_BITS && u32::from(section) < 1 << (32 - SECTION_BITS);
            fits.then(|| (u64::from(section) << SECTION_BITS) + value)
        } else {
            Some(value)
        };
        if let Some(target) = absolute.and_then(|absolute| context.inside(absolute)) {
            visit(bytes, Reference::fixed(at + 8, 8, Space::Address, target));
        }
    });
}

/// Words below this are numbers, not addresses.
const LEAST_ADDRESS: u64 = 0x1000;

fn words(context: &Context<'_>, bytes: &mut [u8], visit: &mut dyn FnMut(&mut [u8], Reference)) {
    each(context, bytes.len(), 8, |at| {
        let Some(value) = u64_at(bytes, at).filter(|value| *value >= LEAST_ADDRESS) else { return };
        if let Some(target) = context.inside(value) {
            visit(bytes, Reference::fixed(at, 8, Space::Address, target));
        }
    });
}

/// Words of four bytes.
fn half_words(context: &Context<'_>, bytes: &mut [u8], visit: &mut dyn FnMut(&mut [u8], Reference)) {
    each(context, bytes.len(), 4, |at| {
        let Some(value) = u32_at(bytes, at) else { return };
        let (target, anchor) = match context.kind {
            Kind::LowWords => (context.inside(i64::from(value as i32).cast_unsigned()), Anchor::Fixed),
            Kind::Offsets => (Some(value).filter(|target| *target <= context.room), Anchor::Fixed),
            Kind::Complements => (Some(!value).filter(|target| *target <= context.room), Anchor::FixedUntil),
            _ => (context.relative(context.address(at), value), Anchor::Place),
        };
        if let Some(target) = target {
            visit(bytes, Reference { anchor, ..Reference::fixed(at, 4, Space::Address, target) });
        }
    });
}

/// Longest description of one function's frame that is believed.
const MAX_FRAME_BYTES: u32 = 4096;

/// A frame is known by its length, the distance of its common part, and a function inside of the file: so it is found
/// without those before it.
fn frames(context: &Context<'_>, bytes: &mut [u8], visit: &mut dyn FnMut(&mut [u8], Reference)) {
    let before = context.skip as usize % 4;
    let first = if before == 0 { 8 } else { 12 - before };
    let mut at = first;
    while let (Some(length), Some(common), Some(function)) =
        (u32_at(bytes, at.wrapping_sub(8)), u32_at(bytes, at.wrapping_sub(4)), u32_at(bytes, at))
    {
        let here = context.address(at);
        let known = (12..=MAX_FRAME_BYTES).contains(&length) && length % 4 == 0 && common != 0 && common % 4 == 0;
        let known = known && common <= context.skip.saturating_add(at as u32).saturating_sub(4);
        let target = context.relative(here, function).filter(|_| known);
        let Some(target) = target else {
            at += 4;
            continue;
        };
        let before = Reference { anchor: Anchor::Until, ..Reference::fixed(at - 4, 4, Space::Address, 0) };
        visit(bytes, Reference { target: here.wrapping_sub(4).wrapping_sub(common), ..before });
        visit(bytes, Reference { anchor: Anchor::Place, ..Reference::fixed(at, 4, Space::Address, target) });
        // A table of exceptions, where the frame has four bytes of extra data.
        if bytes.get(at.saturating_add(8)) == Some(&4)
            && let Some(table) = u32_at(bytes, at + 9).filter(|table| *table != 0)
            && let Some(target) = context.relative(context.address(at + 9), table)
        {
            let anchor = Anchor::Place;
            visit(bytes, Reference { anchor, ..Reference::fixed(at + 9, 4, Space::Address, target) });
        }
        // The next one's function is eight bytes behind its beginning.
        at = at.saturating_add(length as usize).saturating_add(4);
    }
}

/// Length of the header before the sorted table.
const FRAME_INDEX_HEAD: u32 = 12;

fn frame_index(context: &Context<'_>, bytes: &mut [u8], visit: &mut dyn FnMut(&mut [u8], Reference)) {
    each(context, bytes.len(), 4, |at| {
        if context.skip.saturating_add(at as u32) < FRAME_INDEX_HEAD {
            return;
        }
        let target = u32_at(bytes, at).and_then(|value| context.relative(context.base, value));
        if let Some(target) = target {
            visit(bytes, Reference { anchor: Anchor::Base, ..Reference::fixed(at, 4, Space::Address, target) });
        }
    });
}
