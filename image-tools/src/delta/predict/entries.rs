//! Pairs the entries of two tables of relocations by what they lead to. Only on the developer's host.
//!
//! Entries are so much alike that a differ takes the n-th for the n-th, although one was inserted before.

use std::collections::HashMap;

use super::learn::Move;
use super::map::{self, Piece};
use super::scan::{RELATIVE, u32_at, u64_at};

/// Length of an entry.
pub(crate) const ENTRY_BYTES: usize = 24;
/// How many entries may be passed over at once.
const WINDOW: usize = 512;

/// A table of relocations in a file.
pub(crate) struct Table<'t> {
    pub(crate) bytes: &'t [u8],
    /// Where it begins in the file.
    pub(crate) at: u64,
    /// Symbols that stand for sections, with the sections' addresses.
    pub(crate) sections: &'t [(u32, u32)],
}

/// What an entry leads to: the type, the symbol if it is no section, and the address.
type Target = (u32, u32, u64);

impl Table<'_> {
    fn targets(&self, of_object: bool, address: impl Fn(u32) -> i32, symbol: impl Fn(u32) -> i32) -> Vec<Target> {
        let sections: HashMap<u32, u32> = self.sections.iter().copied().collect();
        let moved = |place: u32| u64::from(place.wrapping_add_signed(address(place)));
        let target = |entry: &[u8]| {
            let (kind, number, addend) = (u32_at(entry, 8)?, u32_at(entry, 12)?, u64_at(entry, 16)?);
            Some(match sections.get(&number).filter(|_| of_object) {
                Some(base) => (kind, 0, moved(base.wrapping_add(addend as u32))),
                None if !of_object && RELATIVE.contains(&kind) => (kind, 0, moved(addend as u32)),
                None => (kind, number.wrapping_add_signed(symbol(number)), addend),
            })
        };
        self.bytes.chunks_exact(ENTRY_BYTES).map(|entry| target(entry).unwrap_or_default()).collect()
    }
}

/// Entries that lead to the same, in ascending order; `None` where those are less than half of all.
pub(crate) fn matched(
    old: &Table<'_>,
    new: &Table<'_>,
    of_object: bool,
    addresses: &[Piece],
    symbols: &[Piece],
) -> Option<Vec<Move>> {
    let shift = |pieces: &[Piece], place| map::shift(pieces, place).unwrap_or(0);
    let before = old.targets(of_object, |place| shift(addresses, place), |number| shift(symbols, number));
    let after = new.targets(of_object, |_| 0, |_| 0);
    let mut places: HashMap<Target, Vec<usize>> = HashMap::new();
    for (place, target) in after.iter().enumerate() {
        places.entry(*target).or_default().push(place);
    }
    let mut moves = Vec::new();
    let mut next = 0;
    for (number, target) in before.iter().enumerate() {
        let Some(list) = places.get(target) else { continue };
        let Some(place) = list.get(list.partition_point(|place| *place < next)) else { continue };
        if *place > next + WINDOW {
            continue;
        }
        next = place + 1;
        let start = |table: &Table<'_>, number: usize| table.at + (number * ENTRY_BYTES) as u64;
        moves.push(Move { old: start(old, number), new: start(new, *place), length: ENTRY_BYTES as u64 });
    }
    (moves.len() * 2 > before.len()).then_some(moves)
}
