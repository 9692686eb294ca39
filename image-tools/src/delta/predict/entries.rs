//! Pairs the entries of two tables of relocations by what they lead to. Only on the developer's host.
//!
//! Entries are so much alike that a differ takes the n-th for the n-th, although one was inserted before.

#![allow(clippy::indexing_slicing, reason = "on the developer's host, over places that this module made itself")]

use std::collections::HashMap;

use super::learn::Move;
use super::map::{self, Piece};
use super::scan::{RELATIVE, u32_at, u64_at};

/// Length of an entry.
pub(crate) const ENTRY_BYTES: usize = 24;

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
    in_order(&before, &after, (old.at, new.at), ENTRY_BYTES)
}

/// Entries of `size` bytes that lead to the same, in ascending order, of two tables that begin at `starts`; `None` where
/// those are less than half of all.
pub(crate) fn in_order<T: Copy + Eq + std::hash::Hash>(
    before: &[T],
    after: &[T],
    starts: (u64, u64),
    size: usize,
) -> Option<Vec<Move>> {
    let start = |at: u64, number: usize| at + (number * size) as u64;
    let moves = pairs_in_order(before, after)?.into_iter().map(|(number, place)| Move {
        old: start(starts.0, number),
        new: start(starts.1, place),
        length: size as u64,
    });
    Some(moves.collect())
}

/// Places of what is equal in both, in ascending order; `None` where that is less than half of `before`. What is there
/// once in both tells where the rest belongs.
pub(crate) fn pairs_in_order<T: Copy + Eq + std::hash::Hash>(before: &[T], after: &[T]) -> Option<Vec<(usize, usize)>> {
    let mut pairs = Vec::new();
    let (mut one, mut other) = (0, 0);
    let ends = (before.len(), after.len());
    for (next_one, next_other) in anchors(before, after).into_iter().chain([ends]) {
        while one < next_one && other < next_other && before[one] == after[other] {
            pairs.push((one, other));
            (one, other) = (one + 1, other + 1);
        }
        let (mut back, start) = (0, pairs.len());
        while next_one - back > one && next_other - back > other {
            let (last_one, last_other) = (next_one - back - 1, next_other - back - 1);
            if before[last_one] != after[last_other] {
                break;
            }
            pairs.push((last_one, last_other));
            back += 1;
        }
        pairs[start..].reverse();
        (one, other) = (next_one, next_other);
    }
    (pairs.len() * 2 > before.len()).then_some(pairs)
}

/// Places of what is there once in both, and of what is equal before and behind it, in ascending order of the first.
pub(crate) fn pairs<T: Copy + Eq + std::hash::Hash>(before: &[T], after: &[T]) -> Vec<(usize, usize)> {
    let mut found: Vec<Option<usize>> = vec![None; before.len()];
    for (one, other) in once(before, after) {
        found[one] = Some(other);
    }
    // What stands beside two that belong together, and is equal, belongs together too.
    for one in 1..before.len() {
        let next = found[one - 1].map(|other| other + 1);
        found[one] = found[one].or(next.filter(|other| after.get(*other) == before.get(one)));
    }
    for one in (1..before.len()).rev() {
        let next = found[one].and_then(|other| other.checked_sub(1));
        found[one - 1] = found[one - 1].or(next.filter(|other| after.get(*other) == before.get(one - 1)));
    }
    found.into_iter().enumerate().filter_map(|(one, other)| Some((one, other?))).collect()
}

/// Places of what is there once in both, in ascending order of the first.
fn once<T: Copy + Eq + std::hash::Hash>(before: &[T], after: &[T]) -> Vec<(usize, usize)> {
    let places = |all: &[T]| {
        let mut places: HashMap<T, Option<usize>> = HashMap::new();
        for (place, key) in all.iter().enumerate() {
            places.entry(*key).and_modify(|place| *place = None).or_insert(Some(place));
        }
        places
    };
    let (once, other) = (places(before), places(after));
    let both = |(place, key): (usize, &T)| {
        once.get(key).copied().flatten()?;
        Some((place, other.get(key).copied().flatten()?))
    };
    before.iter().enumerate().filter_map(both).collect()
}

/// The longest row of what is there once in both and ascends in both.
fn anchors<T: Copy + Eq + std::hash::Hash>(before: &[T], after: &[T]) -> Vec<(usize, usize)> {
    let candidates = once(before, after);
    // Of rows of each length the one that ends lowest, and before each candidate the one that it goes on from.
    let (mut ends, mut from): (Vec<usize>, Vec<Option<usize>>) = (Vec::new(), Vec::new());
    for (number, (_, place)) in candidates.iter().enumerate() {
        let length = ends.partition_point(|end| candidates[*end].1 < *place);
        from.push(length.checked_sub(1).map(|shorter| ends[shorter]));
        match ends.get_mut(length) {
            Some(end) => *end = number,
            None => ends.push(number),
        }
    }
    let mut row = Vec::new();
    let mut next = ends.last().copied();
    while let Some(number) = next {
        row.push(candidates[number]);
        next = from[number];
    }
    row.reverse();
    row
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_there_once_tells_where_the_rest_belongs() {
        let pairs = |before: &str, after: &str| pairs_in_order(before.as_bytes(), after.as_bytes());
        let row = |pairs: &[(usize, usize)]| Some(pairs.to_vec());
        assert_eq!(pairs("pApBp", "ppApBp"), row(&[(0, 0), (1, 2), (2, 3), (3, 4), (4, 5)]));
        assert_eq!(pairs("ApppB", "AppB"), row(&[(0, 0), (1, 1), (2, 2), (4, 3)]));
        assert_eq!(pairs("ABCDE", "CABDE"), row(&[(0, 1), (1, 2), (3, 3), (4, 4)]));
        assert_eq!(pairs("xyz", "xyz"), row(&[(0, 0), (1, 1), (2, 2)]));
        assert_eq!(pairs("aaaa", "bbbb"), None);
        assert_eq!(pairs("", ""), None);
        let anywhere = |before: &str, after: &str| super::pairs(before.as_bytes(), after.as_bytes());
        assert_eq!(anywhere("pApBqC", "CpBqpA"), [(0, 4), (1, 5), (2, 1), (3, 2), (4, 3), (5, 0)]);
        assert_eq!(anywhere("pp", "pp"), []);
    }
}
