//! Finds where the bytes of a chunk come from: the cheapest row of copies and new bytes.
//!
//! 1. Blocks that are equal to a block of the base are taken as they are; runs of other blocks are *gaps*.
//! 2. In a gap, seeds vote in each window for *diagonals* (distance from a place in the new image to the one in the
//!    base). A window keeps the best few, and those of its neighbours.
//! 3. Over the gap, dynamic programming picks for every byte the diagonal it is copied along, or that it is new, so
//!    that the sum of estimated costs is least: differences, new bytes, and changes of the diagonal.

#![allow(clippy::indexing_slicing, reason = "on the developer's host, over places that this module made itself")]

use std::collections::HashMap;

use super::index::{BLOCK, BaseIndex, SEED, is_zero};

/// Bytes of a chunk that come from one place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Piece {
    /// Where they begin in the base, and are nearly equal; `None` for new bytes.
    pub(super) from: Option<usize>,
    /// How many there are.
    pub(super) len: usize,
}

/// How many bytes share one choice of diagonals.
const WINDOW: usize = 1024;
/// Diagonals that a window keeps of its own.
const KEPT: usize = 8;
/// Diagonals of a window with those of its neighbours.
const MOST: usize = 20;
/// A match so long is believed without asking the index for others.
const SURE: usize = 48;

/// Estimated costs, in eighths of a byte of the packed patch.
mod cost {
    /// A new byte, and one that repeats the byte before.
    pub(super) const NEW: u32 = 5;
    pub(super) const REPEATED: u32 = 1;
    /// A difference after an equal byte, and after another difference.
    pub(super) const DIFFERENCE: u32 = 12;
    pub(super) const NEXT_DIFFERENCE: u32 = 7;
    /// Going over to another diagonal, and to new bytes.
    pub(super) const JUMP: u32 = 40;
    pub(super) const STOP: u32 = 4;
}

/// Takes `new` apart.
pub(super) fn align(base: &BaseIndex, new: &[u8]) -> Vec<Piece> {
    let mut pieces = Pieces::default();
    let mut gap = 0;
    let mut at = 0;
    let mut last: Option<i64> = None;
    while at < new.len() {
        let block = &new[at..new.len().min(at + BLOCK)];
        let found = equal(base, block, at, last);
        if let Some(place) = found {
            if gap < at {
                fill(base, new, gap, at, last, Some(place as i64 - at as i64), &mut pieces);
            }
            pieces.push(Some(place), block.len());
            last = Some(place as i64 - at as i64);
            gap = at + block.len();
        }
        at += block.len();
    }
    if gap < new.len() {
        fill(base, new, gap, new.len(), last, None, &mut pieces);
    }
    pieces.0
}

/// Where `block`, at `at` of the chunk, is found whole: on the diagonal before it if it can be.
fn equal(base: &BaseIndex, block: &[u8], at: usize, last: Option<i64>) -> Option<usize> {
    if is_zero(block) {
        return None;
    }
    let straight = last.and_then(|diagonal| usize::try_from(at as i64 + diagonal).ok());
    if let Some(place) = straight
        && base.bytes().get(place..place + block.len()) == Some(block)
    {
        return Some(place);
    }
    if block.len() == BLOCK { base.equal_block(block) } else { None }
}

/// Pieces in order, neighbours of one diagonal put together.
#[derive(Default)]
struct Pieces(Vec<Piece>);

impl Pieces {
    fn push(&mut self, from: Option<usize>, len: usize) {
        if let Some(last) = self.0.last_mut()
            && (last.from.is_none() && from.is_none() || last.from.is_some_and(|at| Some(at + last.len) == from))
        {
            last.len += len;
            return;
        }
        self.0.push(Piece { from, len });
    }
}

fn fill(
    base: &BaseIndex,
    new: &[u8],
    start: usize,
    end: usize,
    before: Option<i64>,
    after: Option<i64>,
    pieces: &mut Pieces,
) {
    let windows: Vec<_> = (start..end).step_by(WINDOW).map(|from| (from, end.min(from + WINDOW))).collect();
    let mut sets = Vec::with_capacity(windows.len());
    let mut known: Vec<i64> = before.into_iter().collect();
    for &(from, to) in &windows {
        let own = if is_zero(&new[from..to]) { Vec::new() } else { vote(base, new, from, to, &known) };
        if !own.is_empty() {
            known.clone_from(&own);
        }
        sets.push(own);
    }
    let edge = |diagonal: Option<i64>| diagonal.into_iter().collect::<Vec<_>>();
    let (first, last) = (edge(before), edge(after));
    let mut path = Path::new(base.bytes(), new, before);
    for (number, &(from, to)) in windows.iter().enumerate() {
        let left = if number == 0 { &first } else { &sets[number - 1] };
        let right = sets.get(number + 1).unwrap_or(&last);
        let mut set: Vec<i64> = Vec::with_capacity(MOST);
        for &diagonal in sets[number].iter().chain(left).chain(right) {
            if set.len() < MOST && !set.contains(&diagonal) {
                set.push(diagonal);
            }
        }
        path.window(from, to, &set);
    }
    path.trace(start, after, pieces);
}

/// The diagonals that the bytes of one window speak for, the best first.
fn vote(base: &BaseIndex, new: &[u8], from: usize, to: usize, known: &[i64]) -> Vec<i64> {
    let old = base.bytes();
    let mut votes: HashMap<i64, usize> = HashMap::new();
    let mut sure_until = from;
    let mut credited: HashMap<i64, usize> = HashMap::new();
    for at in from..to {
        if at < sure_until {
            continue;
        }
        let mut best = 0;
        for &diagonal in known {
            let len = matching(old, new, at, diagonal);
            if len >= SEED {
                best = best.max(len);
                credit(&mut votes, &mut credited, diagonal, at, len);
            }
        }
        if best >= SURE {
            sure_until = at + best;
            continue;
        }
        let Some(seed) = new.get(at..at + SEED) else { break };
        for place in base.places(seed) {
            let diagonal = place as i64 - at as i64;
            if credited.get(&diagonal).is_some_and(|&end| end > at) {
                continue;
            }
            let len = matching(old, new, at, diagonal);
            best = best.max(len);
            credit(&mut votes, &mut credited, diagonal, at, len);
        }
        if best >= SURE {
            sure_until = at + best;
        }
    }
    let mut ranked: Vec<(i64, usize)> = votes.into_iter().collect();
    ranked.sort_unstable_by_key(|&(diagonal, score)| (std::cmp::Reverse(score), diagonal.abs(), diagonal));
    ranked.truncate(KEPT);
    ranked.into_iter().map(|(diagonal, _)| diagonal).collect()
}

/// Counts each byte of a match once for its diagonal.
fn credit(votes: &mut HashMap<i64, usize>, credited: &mut HashMap<i64, usize>, diagonal: i64, at: usize, len: usize) {
    let until = credited.entry(diagonal).or_insert(0);
    let fresh = (at + len).saturating_sub(at.max(*until));
    *until = (*until).max(at + len);
    *votes.entry(diagonal).or_insert(0) += fresh;
}

/// How many bytes from `at` on are equal along a diagonal, up to a few windows.
fn matching(old: &[u8], new: &[u8], at: usize, diagonal: i64) -> usize {
    let Some(there) = usize::try_from(at as i64 + diagonal).ok().and_then(|place| old.get(place..)) else { return 0 };
    let here = &new[at..new.len().min(at + 4 * WINDOW)];
    let mut len = 0;
    for (a, b) in here.chunks(8).zip(there.chunks(8)) {
        if a != b {
            return len + a.iter().zip(b).take_while(|(a, b)| a == b).count();
        }
        len += a.len();
    }
    len
}

/// The cheapest way so far to every state, and how it was reached.
struct Path<'a> {
    old: &'a [u8],
    new: &'a [u8],
    /// Diagonals of the window at hand; the state behind the last is "new bytes".
    set: Vec<i64>,
    costs: Vec<u32>,
    /// Per window: its first byte, its diagonals.
    windows: Vec<(usize, Vec<i64>)>,
    /// Per byte: states that were entered from elsewhere at this byte, as bits, and the state they came from.
    entered: Vec<(u32, u8)>,
}

impl<'a> Path<'a> {
    /// `before` is the diagonal of the byte before the gap: it goes on for nothing.
    fn new(old: &'a [u8], new: &'a [u8], before: Option<i64>) -> Self {
        let set: Vec<i64> = before.into_iter().collect();
        let costs = if set.is_empty() { vec![0] } else { vec![0, cost::STOP] };
        Path { old, new, set, costs, windows: Vec::new(), entered: Vec::new() }
    }

    fn window(&mut self, from: usize, to: usize, set: &[i64]) {
        // Costs move over by diagonal; a diagonal that was not there before can only be entered.
        let never = u32::MAX / 2;
        let least = self.costs.iter().copied().min().unwrap_or(0);
        let old_cost = |diagonal: &i64| {
            self.set.iter().position(|known| known == diagonal).map_or(never, |at| self.costs[at] - least)
        };
        let mut costs: Vec<u32> = set.iter().map(old_cost).collect();
        costs.push(self.costs.last().map_or(0, |cost| cost - least));
        self.windows.push((from, set.to_vec()));
        // What was best may be gone from the set: it still is where a jump comes from.
        let gone = self.costs.iter().position(|&cost| cost == least).unwrap_or(0);
        let mut best = (0u32, gone as u8);
        self.set = set.to_vec();
        let news = set.len();
        let place = |diagonal: i64, at: usize| {
            usize::try_from(at as i64 + diagonal).ok().and_then(|place| self.old.get(place)).copied()
        };
        let mut was_equal = vec![true; news];
        if from > 0 {
            for (state, &diagonal) in set.iter().enumerate() {
                was_equal[state] = place(diagonal, from - 1) == Some(self.new[from - 1]);
            }
        }
        for at in from..to {
            let byte = self.new[at];
            let repeated = at > 0 && self.new[at - 1] == byte;
            let mut entered = 0u32;
            let mut next = (u32::MAX, 0u8);
            for state in 0..=news {
                let (jump, step) = if state == news {
                    (cost::STOP, if repeated { cost::REPEATED } else { cost::NEW })
                } else {
                    match place(set[state], at) {
                        Some(old) if old == byte => {
                            was_equal[state] = true;
                            (cost::JUMP, 0)
                        }
                        Some(_) => {
                            let first = std::mem::replace(&mut was_equal[state], false);
                            (cost::JUMP, if first { cost::DIFFERENCE } else { cost::NEXT_DIFFERENCE })
                        }
                        None => (never, never),
                    }
                };
                let mut total = costs[state];
                let jumped = best.0 + jump;
                if jumped < total {
                    total = jumped;
                    entered |= 1 << state;
                }
                total = (total + step).min(never);
                costs[state] = total;
                if total < next.0 {
                    next = (total, state as u8);
                }
            }
            self.entered.push((entered, best.1));
            best = next;
        }
        self.costs = costs;
    }

    /// Goes back from the cheapest end, and tells the pieces in order. `start` is the first window's first byte,
    /// `after` the diagonal behind the gap: to any other state's cost comes that of going over to it.
    fn trace(self, start: usize, after: Option<i64>, pieces: &mut Pieces) {
        let over = |state: usize| if after.is_some() && self.set.get(state) != after.as_ref() { cost::JUMP } else { 0 };
        let ends = self.costs.iter().enumerate().map(|(state, cost)| (cost.saturating_add(over(state)), state));
        let mut state = ends.min().map_or(0, |(_, state)| state);
        let mut found: Vec<(Option<usize>, usize)> = Vec::new();
        let mut end = start + self.entered.len();
        for (number, (from, set)) in self.windows.iter().enumerate().rev() {
            let mut until = end;
            for at in (*from..end).rev() {
                let (entered, source) = self.entered[at - start];
                let jumped = entered & 1 << state != 0;
                if !jumped && at > *from {
                    continue;
                }
                found.push((set.get(state).map(|diagonal| (at as i64 + diagonal) as usize), until - at));
                until = at;
                if number == 0 && at == *from {
                    break;
                }
                if at > *from {
                    state = source as usize;
                } else {
                    let before = &self.windows[number - 1].1;
                    state = if jumped {
                        source as usize
                    } else {
                        let diagonal = set.get(state);
                        diagonal.and_then(|d| before.iter().position(|known| known == d)).unwrap_or(before.len())
                    };
                }
            }
            end = *from;
        }
        for (from, len) in found.into_iter().rev() {
            pieces.push(from, len);
        }
    }
}
