//! Where addresses went: rows of pieces, each with the shift of everything from its start to the next piece's.

use std::ops::Range;

/// Everything from `start` to the start of the next piece moved by `shift`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Piece {
    /// The first old place.
    pub(crate) start: u32,
    /// New place less the old one, modulo 2³².
    pub(crate) shift: i32,
}

/// What places of one kind are counted in. Each has a row of pieces of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Space {
    /// Addresses, from the lowest of the file.
    Address,
    /// Offsets in a table of strings.
    Name,
    /// Numbers of symbols.
    Symbol,
    /// Numbers of types of BTF.
    Type,
    /// Offsets in the strings of BTF.
    TypeName,
    /// Checksums of a kernel's symbols: whole values, each for itself.
    Checksum,
}

impl Space {
    /// All of them, in the order of the format.
    pub(crate) const ALL: [Space; 6] =
        [Space::Address, Space::Name, Space::Symbol, Space::Type, Space::TypeName, Space::Checksum];
}

/// The pieces of one file and space, in a row of all of them.
pub(crate) type Span = Range<usize>;

/// The shift of `place`: that of the last piece that does not begin behind it; `None` before the first.
pub(crate) fn shift(pieces: &[Piece], place: u32) -> Option<i32> {
    let behind = pieces.partition_point(|piece| piece.start <= place);
    Some(pieces.get(behind.checked_sub(1)?)?.shift)
}

/// The shift of a value that has a piece of its own.
pub(crate) fn shift_of_value(pieces: &[Piece], value: u32) -> Option<i32> {
    let found = pieces.binary_search_by_key(&value, |piece| piece.start).ok()?;
    Some(pieces.get(found)?.shift)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_piece_reaches_to_the_next_and_the_last_to_the_end() {
        let pieces = [(10, 5), (20, -3), (30, 0)].map(|(start, shift)| Piece { start, shift });
        let found = [0, 9, 10, 19, 20, 29, 30, u32::MAX].map(|place| shift(&pieces, place));
        assert_eq!(found, [None, None, Some(5), Some(5), Some(-3), Some(-3), Some(0), Some(0)]);
        assert_eq!(shift(&[], 7), None);
        assert_eq!([9, 10, 11, 20].map(|value| shift_of_value(&pieces, value)), [None, Some(5), None, Some(-3)]);
    }
}
