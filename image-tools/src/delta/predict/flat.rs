//! Linux for aarch64 as it is started: no ELF file, but what one would be loaded to. Its parts are told by what is in
//! them. Only on the developer's host.

use std::collections::HashMap;

use super::elf::{Found, FoundSection, ascending};
use super::ext4::Extent;
use super::scan::{Kind, RELATIVE, u32_at, u64_at};
use super::{arm64, btf};

/// `ARM\x64` at this place of the header, by the kernel's "Booting AArch64 Linux".
const MAGIC: (usize, &[u8]) = (56, b"ARM\x64");
/// Stretches of this length are code, or they are not.
const BLOCK: usize = 64 << 10;
/// In a stretch of code, at least so many words are calls inside of the kernel.
const LEAST_CALLS: usize = BLOCK / 4 / 64;
/// Length of a relocation, and the fewest that are a table.
const ENTRY: usize = 24;
const LEAST_ENTRIES: usize = 1024;
/// How BTF begins: magic, version, flags, length of the header.
const TYPES: [u8; 8] = [0x9f, 0xeb, 1, 0, 24, 0, 0, 0];

/// The kernel in `extents`, whose content is `bytes`, if it is one.
pub(crate) fn read(bytes: &[u8], extents: Vec<Extent>) -> Option<Found> {
    if bytes.get(MAGIC.0..)?.get(..MAGIC.1.len())? != MAGIC.1 {
        return None;
    }
    let table = relocations(bytes)?;
    let room = u32::try_from(bytes.len()).ok()?;
    let mut parts: Vec<(usize, usize, Kind)> = vec![(table.0, table.1, Kind::Relocations)];
    parts.extend(types(bytes).map(|(from, to)| (from, to, Kind::Types)));
    parts.extend(code(bytes));
    let offsets = ascending(bytes, room, |word| word);
    parts.extend(offsets.map(|(from, to)| (from, to, Kind::Offsets)));
    parts.sort_unstable_by_key(|part| part.0);
    let mut whole: Vec<(usize, usize, Kind)> = Vec::new();
    let mut at = 0usize;
    for (from, to, kind) in parts.into_iter().chain([(bytes.len(), bytes.len(), Kind::RelativeWords)]) {
        let from = from.max(at);
        if at < from {
            whole.push((at, from, Kind::RelativeWords));
        }
        if from < to {
            whole.push((from, to, kind));
            at = to;
        }
        at = at.max(from);
    }
    let mut found = Found { extents, low: table.2, room, ..Found::default() };
    let mut seen: HashMap<u8, usize> = HashMap::new();
    for (from, to, kind) in whole {
        // The n-th part of a kind stands for the n-th.
        let nth = seen.entry(kind as u8).or_default();
        found.names.push(format!("{kind:?} {nth}").into_bytes());
        *nth += 1;
        let (number, length) = (found.names.len() as u32 - 1, (to - from) as u32);
        let address = if kind == Kind::Relocations { 0 } else { from as u32 };
        let section = FoundSection { number, kind, at: from as u64, length, address };
        found.push(section, bytes.get(from..to)?, false);
    }
    Some(found)
}

/// The table of relocations: first byte, the one behind the last, and the kernel's address.
fn relocations(bytes: &[u8]) -> Option<(usize, usize, u64)> {
    let is_entry = |at: usize| {
        u64_at(bytes, at + 8).is_some_and(|info| RELATIVE.iter().any(|kind| info == u64::from(*kind)))
            && u64_at(bytes, at).is_some_and(|place| place >> 47 == 0x1_ffff)
    };
    let mut at = 0;
    while at < bytes.len() {
        let end = (at..bytes.len()).step_by(ENTRY).find(|at| !is_entry(*at)).unwrap_or(bytes.len());
        if (end - at) / ENTRY >= LEAST_ENTRIES {
            let entries = bytes.get(at..end)?.chunks_exact(ENTRY);
            let low = entries.filter_map(|entry| u64_at(entry, 16)).filter(|addend| addend >> 47 == 0x1_ffff).min()?;
            // The kernel begins at a multiple of its pages of at most 64 KiB, and what is first in it is led to.
            return Some((at, end, low & !0xffff));
        }
        at = end.max(at + 8);
    }
    None
}

/// Where type information is.
fn types(bytes: &[u8]) -> Option<(usize, usize)> {
    let at = bytes.windows(TYPES.len()).step_by(4).position(|window| window == TYPES)? * 4;
    let field = |place| u32_at(bytes, at + place).map(|value| value as usize);
    let end = at + field(4)? + field(16)? + field(20)?;
    let section = bytes.get(at..end)?;
    btf::cuts(section, BLOCK)?;
    Some((at, end))
}

/// Stretches of code.
fn code(bytes: &[u8]) -> Vec<(usize, usize, Kind)> {
    let mut found: Vec<(usize, usize, Kind)> = Vec::new();
    for (number, block) in bytes.chunks(BLOCK).enumerate() {
        let start = number * BLOCK;
        let calls = block.as_chunks::<4>().0.iter().enumerate().filter(|(place, word)| {
            let word = u32::from_le_bytes(**word);
            let target = (start + place * 4) as i64 + i64::from(arm64::distance(word));
            word >> 26 == 0x25 && (0..bytes.len() as i64).contains(&target)
        });
        if calls.count() < LEAST_CALLS {
            continue;
        }
        let end = start + block.len();
        match found.last_mut() {
            Some(last) if last.1 == start => last.1 = end,
            _ => found.push((start, end, Kind::Arm64Code)),
        }
    }
    found
}
