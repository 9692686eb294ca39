//! From what single references say to a short row of pieces: which shift holds from where on, so that what the pieces
//! cost and what is then still wrong is least. Only on the developer's host.

use std::collections::HashMap;

use super::map::Piece;

/// What one more piece costs in terms of references that are wrong.
const PIECE: i64 = 2;
/// A value of its own must be seen so often to be worth its place.
const LEAST_SEEN: i64 = 2;

/// What references say: that what was at a place has moved by a shift, and how often.
#[derive(Debug, Default, Clone)]
pub(crate) struct Votes(HashMap<(u32, i32), i64>);

/// A state that the row of pieces can be in since a place.
struct Entry {
    piece: Piece,
    before: Option<usize>,
}

impl Votes {
    pub(crate) fn add(&mut self, place: u32, shift: i32) {
        *self.0.entry((place, shift)).or_insert(0) += 1;
    }

    fn sorted(&self) -> Vec<(u32, i32, i64)> {
        let mut votes: Vec<_> = self.0.iter().map(|(&(place, shift), &weight)| (place, shift, weight)).collect();
        votes.sort_unstable();
        votes
    }

    /// The cheapest row of pieces. `start`: where nothing moved before the first piece; without it the first piece
    /// begins at the first place.
    pub(crate) fn pieces(&self, starts_unmoved: bool) -> Vec<Piece> {
        let votes = self.sorted();
        let mut entries: Vec<Entry> = Vec::new();
        // Of each shift: the cost so far, less what every state pays alike, and since when.
        let mut states: HashMap<i32, (i64, Option<usize>)> = HashMap::new();
        let mut best: (i64, Option<usize>) = (0, None);
        if starts_unmoved {
            states.insert(0, best);
        }
        for group in votes.chunk_by(|one, next| one.0 == next.0) {
            let before = best;
            for &(start, shift, weight) in group {
                let over = before.0 + PIECE;
                let (cost, entry) = match states.get(&shift) {
                    Some(&(cost, entry)) if cost <= over => (cost, entry),
                    _ => {
                        entries.push(Entry { piece: Piece { start, shift }, before: before.1 });
                        (over, Some(entries.len() - 1))
                    }
                };
                let state = (cost - weight, entry);
                states.insert(shift, state);
                if state.0 < best.0 {
                    best = state;
                }
            }
        }
        let mut pieces = Vec::new();
        let mut next = best.1;
        while let Some(entry) = next.and_then(|number| entries.get(number)) {
            pieces.push(entry.piece);
            next = entry.before;
        }
        pieces.reverse();
        pieces
    }

    /// Values that were seen to become others, each for itself.
    pub(crate) fn values(&self) -> Vec<Piece> {
        let votes = self.sorted();
        let groups = votes.chunk_by(|one, next| one.0 == next.0);
        let most = groups.filter_map(|group| group.iter().max_by_key(|(_, shift, weight)| (*weight, *shift)));
        let worth = most.filter(|(_, shift, weight)| *shift != 0 && *weight >= LEAST_SEEN);
        worth.map(|&(start, shift, _)| Piece { start, shift }).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn votes(all: &[(u32, i32, usize)]) -> Votes {
        let mut votes = Votes::default();
        for &(place, shift, count) in all {
            (0..count).for_each(|_| votes.add(place, shift));
        }
        votes
    }

    fn pieces(all: &[(u32, i32)]) -> Vec<Piece> {
        all.iter().map(|&(start, shift)| Piece { start, shift }).collect()
    }

    #[test]
    fn a_shift_that_holds_for_many_is_one_piece_and_a_stray_is_none() {
        let all: Vec<_> = (0..20).map(|at| (at * 8, if at < 10 { 0 } else { 64 }, 1)).collect();
        assert_eq!(votes(&all).pieces(true), pieces(&[(80, 64)]));
        let stray = [&all[..], &[(124, -3, 1), (20, 7, 1)]].concat();
        assert_eq!(votes(&stray).pieces(true), pieces(&[(80, 64)]));
        let often = [&all[..], &[(124, -3, 9)]].concat();
        assert_eq!(votes(&often).pieces(true), pieces(&[(80, 64), (124, -3), (128, 64)]));
    }

    #[test]
    fn without_a_start_the_first_piece_is_at_the_first_place() {
        assert_eq!(votes(&[(50, 0, 3), (60, 0, 3)]).pieces(false), pieces(&[(50, 0)]));
        assert_eq!(votes(&[]).pieces(false), []);
    }

    #[test]
    fn values_are_taken_by_the_majority_and_not_if_seen_once() {
        let all = [(1, 5, 3), (1, 6, 2), (2, 9, 1), (3, 0, 9), (4, -1, 2)];
        assert_eq!(votes(&all).values(), pieces(&[(1, 5), (4, -1)]));
    }
}
