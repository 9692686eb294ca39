//! ELF files in an image, and their sections that hold references. Only on the developer's host.

use std::collections::{BTreeMap, HashMap};

use super::ext4::Extent;
use super::scan::{Kind, SECTION_BITS, u16_at, u32_at, u64_at};
use super::{btf, flat};
use crate::delta::explain::Matter;

/// An ELF file of an image.
#[derive(Debug, Clone, Default)]
pub(crate) struct Found {
    /// Where it lies, in the order of the file.
    pub(crate) extents: Vec<Extent>,
    pub(crate) low: u64,
    pub(crate) room: u32,
    pub(crate) is_object: bool,
    pub(crate) sections: Vec<FoundSection>,
    /// Names of all sections, by number.
    pub(crate) names: Vec<Vec<u8>>,
    /// Symbols that stand for sections, and the sections' numbers.
    pub(crate) symbols: Vec<(u32, u32)>,
    /// Where BTF begins in the file, and its length.
    pub(crate) types: Option<(u64, u32)>,
}

/// A section with references.
#[derive(Debug, Clone, Copy)]
pub(crate) struct FoundSection {
    pub(crate) number: u32,
    pub(crate) kind: Kind,
    /// Where it begins in the file.
    pub(crate) at: u64,
    pub(crate) length: u32,
    /// Its address, counted from the file's lowest; of object files the number of the section that addresses are in.
    pub(crate) address: u32,
}

impl FoundSection {
    /// What [`Context::base`](super::scan::Context) is to be. Sections of an object file are known by the numbers that
    /// `numbers` has for them.
    pub(crate) fn base(&self, is_object: bool, numbers: &HashMap<u32, u32>) -> Option<u32> {
        if is_object { Some(numbers.get(&self.address)? << SECTION_BITS) } else { Some(self.address) }
    }
}

/// A kernel that is no ELF file is not shorter.
const LEAST_FLAT: u64 = 1 << 20;
/// Bytes of a block, where files begin.
const BLOCK: usize = 4096;
const MAGIC: &[u8] = b"\x7fELF\x02\x01\x01";

/// All ELF files of an image and among `others`, in the order of their places.
pub(crate) fn find(image: &[u8], others: &[Vec<Extent>]) -> Vec<Found> {
    let own = others.iter().flatten().map(|extent| extent.start as usize).min().unwrap_or(image.len());
    let mut lists = super::files(image).unwrap_or_else(|| contiguous(image.get(..own).unwrap_or_default()));
    lists.extend(others.iter().cloned());
    let mut found: Vec<_> = lists.into_iter().filter_map(|extents| Found::read(image, extents)).collect();
    found.sort_by_key(|file| file.extents.first().map(|extent| extent.start));
    found
}

/// Files as they may lie in an image of unknown form: each begins at a block and is in one piece.
fn contiguous(image: &[u8]) -> Vec<Vec<Extent>> {
    let mut lists = Vec::new();
    let mut end = 0;
    for start in (0..image.len()).step_by(BLOCK) {
        let Some(bytes) = image.get(start..).filter(|bytes| start >= end && bytes.starts_with(MAGIC)) else { continue };
        if let Some(length) = elf_length(bytes) {
            lists.push(vec![Extent { at: 0, start: start as u64, length }]);
            end = start.saturating_add(length as usize);
        }
    }
    lists
}

/// How long the ELF file at the head of `bytes` is: its section headers are the last of it.
fn elf_length(bytes: &[u8]) -> Option<u64> {
    let end = u64_at(bytes, 40)?.checked_add(u64::from(u16_at(bytes, 60)?) * 64)?;
    (end <= bytes.len() as u64).then_some(end)
}

/// The bytes of a file, with zeroes between its extents.
pub(crate) fn content(image: &[u8], extents: &[Extent]) -> Vec<u8> {
    let end = extents.last().map_or(0, |extent| extent.at + extent.length);
    let mut bytes = vec![0; end as usize];
    for extent in extents {
        let from = image.get(extent.start as usize..(extent.start + extent.length) as usize);
        let to = bytes.get_mut(extent.at as usize..(extent.at + extent.length) as usize);
        if let (Some(from), Some(to)) = (from, to) {
            to.copy_from_slice(from);
        }
    }
    bytes
}

/// One section header.
struct Header {
    name: Vec<u8>,
    kind: u32,
    flags: u64,
    address: u64,
    at: u64,
    length: u64,
    info: u32,
}

const EXECUTABLE: u64 = 4;
const ALLOCATED: u64 = 2;
const WRITABLE: u64 = 1;
const THREAD_LOCAL: u64 = 0x400;

impl Found {
    fn read(image: &[u8], extents: Vec<Extent>) -> Option<Self> {
        let first = extents.first().filter(|extent| extent.at == 0)?;
        if !image.get(first.start as usize..)?.starts_with(MAGIC) {
            let is_long = extents.iter().map(|extent| extent.length).sum::<u64>() >= LEAST_FLAT;
            return if is_long { flat::read(&content(image, &extents), extents) } else { None };
        }
        let bytes = content(image, &extents);
        let (form, machine) = (u16_at(&bytes, 16)?, u16_at(&bytes, 18)?);
        let headers = headers(&bytes)?;
        let is_object = form == 1;
        let allocated = || headers.iter().filter(|header| header.flags & ALLOCATED != 0 && header.address > 0);
        let low = if is_object { 0 } else { allocated().map(|header| header.address).min()? };
        // What is not far above zero is counted from there: so offsets that are not addresses do no harm either.
        let low = if low < 1 << 20 { 0 } else { low };
        let high = allocated().map(|header| header.address.saturating_add(header.length)).max().unwrap_or(0);
        let room = if is_object { u32::MAX } else { u32::try_from(high.checked_sub(low)?).ok()? };
        let mut found = Found {
            extents,
            low,
            room,
            is_object,
            sections: Vec::new(),
            names: headers.iter().map(|header| header.name.clone()).collect(),
            symbols: Vec::new(),
            types: None,
        };
        let form = Form { is_object, is_fixed: form == FIXED, is_kernel: low >= KERNEL, machine };
        for (number, header) in headers.iter().enumerate() {
            let Some(kind) = kind(header, &headers, &form) else { continue };
            if header.length == 0 || header.at.checked_add(header.length)? > bytes.len() as u64 {
                continue;
            }
            let Ok(length) = u32::try_from(header.length) else { continue };
            let address = match kind {
                Kind::ObjectRelocations | Kind::ObjectCodeRelocations => header.info,
                _ if is_object => number as u32,
                Kind::Relocations => 0,
                _ => header.address.checked_sub(low).and_then(|address| u32::try_from(address).ok()).unwrap_or(0),
            };
            let section = FoundSection { number: number as u32, kind, at: header.at, length, address };
            let content = bytes.get(header.at as usize..)?.get(..length as usize)?;
            if kind == Kind::ObjectSymbols {
                found.symbols = section_symbols(content);
            }
            found.push(section, content, form.is_kernel);
        }
        if form.is_kernel {
            found.push_tail(&bytes);
        }
        Some(found)
    }

    /// Adds a section; one that is read better in parts, in these.
    pub(super) fn push(&mut self, section: FoundSection, content: &[u8], is_kernel: bool) {
        let mut parts = vec![(section.kind, 0)];
        match section.kind {
            Kind::Types => {
                self.types = Some((section.at, section.length));
                let cuts = btf::cuts(content, TYPES_BYTES).unwrap_or_default();
                // Behind the last type are strings.
                parts.extend(cuts.iter().take(cuts.len().saturating_sub(1)).map(|cut| (Kind::TypeRecords, *cut)));
            }
            Kind::Words if is_kernel => {
                if let Some((from, to)) = complements(content, self.room) {
                    parts.extend([(Kind::Complements, from), (Kind::Words, to)]);
                }
            }
            _ => {}
        }
        let ends = parts.iter().skip(1).map(|(_, at)| *at).chain([content.len()]).collect::<Vec<_>>();
        for ((kind, from), to) in parts.into_iter().zip(ends) {
            if from < to {
                let (at, length) = (section.at + from as u64, (to - from) as u32);
                self.sections.push(FoundSection {
                    kind,
                    at,
                    length,
                    address: section.address + from as u32,
                    ..section
                });
            }
        }
    }

    /// Behind the section headers of a kernel for x86-64 are the places that hold addresses, for when it is loaded
    /// elsewhere.
    fn push_tail(&mut self, bytes: &[u8]) {
        let Some(end) = elf_length(bytes) else { return };
        if let Ok(length) = u32::try_from((bytes.len() as u64).saturating_sub(end)) {
            let number = self.names.len() as u32;
            self.names.push(b"relocations".to_vec());
            self.sections.push(FoundSection { number, kind: Kind::LowWords, at: end, length, address: 0 });
        }
    }
}

/// What kind of a file it is.
struct Form {
    is_object: bool,
    is_fixed: bool,
    is_kernel: bool,
    machine: u16,
}

/// `ET_EXEC`.
const FIXED: u16 = 2;
/// Linux on x86-64 is linked to be above this.
const KERNEL: u64 = 0xffff_ffff_0000_0000;
/// BTF is cut into parts of this many bytes, because each can only be read from its beginning.
const TYPES_BYTES: usize = 16 << 10;
/// Fewer words in a row may be there by chance.
const LEAST_COMPLEMENTS: usize = 2048;

/// Where a table of complements is, which are the addresses of a kernel's symbols: a long row of them that descends.
fn complements(content: &[u8], room: u32) -> Option<(usize, usize)> {
    ascending(content, room, |word| !word)
}

/// The longest row of words that are addresses once `read`, and ascend.
pub(crate) fn ascending(content: &[u8], room: u32, read: impl Fn(u32) -> u32) -> Option<(usize, usize)> {
    let mut best = 0..0;
    let mut start = 0usize;
    let mut before = None;
    for (number, word) in content.as_chunks::<4>().0.iter().enumerate() {
        // Long rows of zeroes are everywhere.
        let value = if *word == [0; 4] { u32::MAX } else { read(u32::from_le_bytes(*word)) };
        let follows = value <= room && before.is_none_or(|before| value >= before);
        if !follows {
            start = if value <= room { number } else { number + 1 };
        }
        before = Some(value).filter(|value| *value <= room);
        if number + 1 - start > best.len() {
            best = start..number + 1;
        }
    }
    (best.len() >= LEAST_COMPLEMENTS).then_some((best.start * 4, best.end * 4))
}

fn headers(bytes: &[u8]) -> Option<Vec<Header>> {
    let (at, size) = (usize::try_from(u64_at(bytes, 40)?).ok()?, u16_at(bytes, 58)?);
    let (count, names) = (u16_at(bytes, 60)?, u16_at(bytes, 62)?);
    if size != 64 || count == 0 || names >= count {
        return None;
    }
    let mut headers = Vec::new();
    let mut offsets = Vec::new();
    for entry in bytes.get(at..)?.chunks_exact(64).take(usize::from(count)) {
        let word = |at| u64_at(entry, at);
        offsets.push(u32_at(entry, 0)? as usize);
        headers.push(Header {
            name: Vec::new(),
            kind: u32_at(entry, 4)?,
            flags: word(8)?,
            address: word(16)?,
            at: word(24)?,
            length: word(32)?,
            info: u32_at(entry, 44)?,
        });
    }
    let strings = headers.get(usize::from(names))?;
    let strings = bytes.get(usize::try_from(strings.at).ok()?..)?.get(..usize::try_from(strings.length).ok()?)?;
    for (header, offset) in headers.iter_mut().zip(offsets) {
        header.name = strings.get(offset..)?.split(|byte| *byte == 0).next()?.to_vec();
    }
    Some(headers)
}

/// What the sections of an ELF file are: first byte, the one behind the last, matter.
pub(crate) fn parts(bytes: &[u8]) -> Option<Vec<(u64, u64, Matter)>> {
    if !bytes.starts_with(MAGIC) {
        return None;
    }
    let headers = headers(bytes)?;
    let length = bytes.len() as u64;
    let mut parts: Vec<_> = headers
        .iter()
        .filter(|header| header.kind != NOTHING_STORED)
        .map(|header| (header.at, header.at.saturating_add(header.length).min(length), matter(header)))
        .collect();
    // Behind the section headers of a kernel are its relocations.
    parts.extend(elf_length(bytes).map(|end| (end, length, Matter::Relocations)));
    Some(parts)
}

fn matter(header: &Header) -> Matter {
    match header.kind {
        4 | 9 | 19 => Matter::Relocations,
        2 | 3 | 11 => Matter::Symbols,
        _ if header.flags & EXECUTABLE != 0 => Matter::Code,
        _ if header.name.starts_with(b".eh_frame") || header.name.starts_with(b".orc") => Matter::Frames,
        _ if header.name.starts_with(b".BTF") || header.name.starts_with(b".debug") => Matter::Types,
        _ => Matter::Data,
    }
}

/// `SHT_NOBITS`.
const NOTHING_STORED: u32 = 8;
const X86_64: u16 = 62;
const ARM64: u16 = 183;

/// Tables of a kernel whose words say where something is, relative to themselves.
const RELATIVE_TABLES: [&[u8]; 12] = [
    b"__ksymtab",
    b"__ex_table",
    b"__bug_table",
    b"__jump_table",
    b".orc_unwind_ip",
    b".retpoline_sites",
    b".return_sites",
    b".call_sites",
    b".ibt_endbr_seal",
    b".altinstructions",
    b".smp_locks",
    b".pci_fixup",
];

/// What a section is read as.
fn kind(header: &Header, all: &[Header], form: &Form) -> Option<Kind> {
    let name = header.name.as_slice();
    let is_object = form.is_object;
    match header.kind {
        4 if is_object => {
            let target = all.get(header.info as usize)?;
            let of_code = target.flags & EXECUTABLE != 0;
            Some(if of_code { Kind::ObjectCodeRelocations } else { Kind::ObjectRelocations })
        }
        4 => Some(Kind::Relocations),
        2 if is_object => Some(Kind::ObjectSymbols),
        2 | 11 => Some(Kind::Symbols),
        8 => None,
        _ if name == b"__versions" => Some(Kind::Versions),
        _ if name.starts_with(b"__kcrctab") => Some(Kind::Checksums),
        _ if name == b".BTF" => Some(Kind::Types),
        _ if header.flags & EXECUTABLE != 0 => {
            let linked = if form.is_fixed { Kind::FixedCode } else { Kind::Code };
            let kind = if is_object { Kind::ObjectCode } else { linked };
            match form.machine {
                X86_64 => Some(kind),
                ARM64 => (!is_object).then_some(Kind::Arm64Code),
                _ => None,
            }
        }
        _ if is_object => None,
        _ if form.is_kernel && RELATIVE_TABLES.iter().any(|table| name.starts_with(table)) => Some(Kind::RelativeWords),
        _ if form.is_kernel && header.flags & ALLOCATED != 0 => Some(Kind::Words),
        _ if name == b".eh_frame" => Some(Kind::Frames),
        _ if name == b".eh_frame_hdr" => Some(Kind::FrameIndex),
        _ => {
            let is_data = header.flags & WRITABLE != 0 && header.flags & ALLOCATED != 0;
            (is_data && header.flags & THREAD_LOCAL == 0).then_some(Kind::Words)
        }
    }
}

/// Symbols that stand for a section, with its number.
fn section_symbols(table: &[u8]) -> Vec<(u32, u32)> {
    let mut symbols = Vec::new();
    for (number, symbol) in table.chunks_exact(24).enumerate() {
        if symbol.get(4).is_some_and(|info| info & 0xf == 3)
            && let Some(section) = u16_at(symbol, 6)
        {
            symbols.push((number as u32, u32::from(section)));
        }
    }
    symbols
}

/// Numbers for the sections of `new` that stand for the same as those of `old`: by name, the n-th of a name for the n-th.
pub(crate) fn pair_sections(old: &Found, new: &Found) -> HashMap<u32, u32> {
    let mut by_name: BTreeMap<&[u8], Vec<u32>> = BTreeMap::new();
    for (number, name) in old.names.iter().enumerate() {
        by_name.entry(name).or_default().push(number as u32);
    }
    let mut seen: HashMap<&[u8], usize> = HashMap::new();
    let mut numbers = HashMap::new();
    for (number, name) in new.names.iter().enumerate() {
        let nth = seen.entry(name).or_default();
        if let Some(old) = by_name.get(name.as_slice()).and_then(|list| list.get(*nth)) {
            numbers.insert(number as u32, *old);
        }
        *nth += 1;
    }
    numbers
}
