//! Finds out where the addresses of a base image's executables went, from stretches that the differ found to be alike.
//! Only on the developer's host.

#![allow(clippy::indexing_slicing, reason = "on the developer's host, over places that this module made itself")]

use std::collections::{BTreeMap, HashMap};

use super::elf::{self, Found, FoundSection};
use super::entries::{self, Table};
use super::ext4::Extent;
use super::fit::Votes;
use super::map::{self, Piece, Space};
use super::scan::{self, Anchor, Context, Kind, Operand, Reference, SECTION_BITS, u16_at, u32_at, u64_at};
use super::{Area, ElfFile, Prediction, Section, arm64, btf};
use crate::limits::{MAX_AREAS, MAX_PIECES, MAX_PREDICTED_FILES, MAX_SECTION_SYMBOLS};

/// A stretch of the new image that is nearly that of the old one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Move {
    pub(crate) old: u64,
    pub(crate) new: u64,
    pub(crate) length: u64,
}

/// One reference of an old file, and how its field changed on the way to the new one.
#[derive(Clone, Copy)]
struct Seen {
    space: Space,
    target: u32,
    /// Address that the value is counted from, where that moves.
    anchor: Option<u32>,
    /// How far the anchor moved.
    anchor_by: i32,
    /// How much was added to the field, or taken from one that leads backwards.
    by: i32,
    /// The section's place in the file's list, or [`NO_FIELD`].
    section: u32,
}

/// What is known of a place without a field that says so.
const NO_FIELD: u32 = u32::MAX;

/// An old file and the new one that most of its bytes went to.
struct Pair<'p> {
    old: &'p Found,
    seen: Vec<Seen>,
    /// First number of a type, and first offset of a string, that are the module's own.
    own_types: Option<(u32, u32)>,
}

/// Bytes that a wrong field costs, and those that a section and a piece cost, in halves of a byte.
const WRONG: usize = 4;
const SECTION: usize = 10;
const PIECE: usize = 7;

/// What follows from `moves`, in the order of the new image, for executables of `old` that are others in `new`.
/// Beside the files of each image, those may be executables whose extents are named.
pub(crate) fn learn(
    (old, old_others): (&[u8], &[Vec<Extent>]),
    (new, new_others): (&[u8], &[Vec<Extent>]),
    moves: &[Move],
) -> Prediction {
    let (old_files, new_files) = (elf::find(old, old_others), elf::find(new, new_others));
    let mut pairs = Vec::new();
    for ((one, other), moves) in paired(&old_files, &new_files, moves) {
        let (one, other) = (&old_files[one], &new_files[other]);
        let bytes = (elf::content(old, &one.extents), elf::content(new, &other.extents));
        if bytes.0 != bytes.1 {
            pairs.push(look(one, other, &bytes.0, &bytes.1, &moves));
        }
    }
    Builder::new(&pairs).build(&pairs)
}

/// Moves from one file to another, in places of the files.
type FileMoves = Vec<Move>;

/// For each old file the new one that most bytes went to.
fn paired(old: &[Found], new: &[Found], moves: &[Move]) -> BTreeMap<(usize, usize), FileMoves> {
    let places = |files: &[Found]| {
        let mut all: Vec<(u64, u64, u64, usize)> = Vec::new();
        for (number, file) in files.iter().enumerate() {
            all.extend(file.extents.iter().map(|extent| (extent.start, extent.length, extent.at, number)));
        }
        all.sort_unstable();
        all
    };
    let (old, new) = (places(old), places(new));
    let mut found: BTreeMap<(usize, usize), FileMoves> = BTreeMap::new();
    for one in moves {
        for &(start, length, at, file) in touching(&old, one.old, one.length) {
            let from = one.old.max(start);
            let to = (one.old + one.length).min(start + length);
            let there = one.new + (from - one.old);
            for &(new_start, new_length, new_at, new_file) in touching(&new, there, to - from) {
                let first = there.max(new_start);
                let end = (there + (to - from)).min(new_start + new_length);
                let old_place = at + (from + (first - there) - start);
                let stretch = Move { old: old_place, new: new_at + (first - new_start), length: end - first };
                found.entry((file, new_file)).or_default().push(stretch);
            }
        }
    }
    let mut best: BTreeMap<usize, (u64, usize)> = BTreeMap::new();
    for (&(one, other), moves) in &found {
        let bytes = moves.iter().map(|stretch| stretch.length).sum();
        let entry = best.entry(one).or_insert((bytes, other));
        if bytes > entry.0 {
            *entry = (bytes, other);
        }
    }
    found.retain(|(one, other), _| best.get(one).is_some_and(|(_, chosen)| chosen == other));
    found.values_mut().for_each(|moves| moves.sort_unstable());
    found
}

/// The extents that share bytes with `length` bytes at `start`.
fn touching(extents: &[(u64, u64, u64, usize)], start: u64, length: u64) -> &[(u64, u64, u64, usize)] {
    let first = extents.partition_point(|(at, len, ..)| at + len <= start);
    let behind = extents.partition_point(|(at, ..)| *at < start + length);
    extents.get(first..behind).unwrap_or_default()
}

/// The context of a whole section.
fn context<'c>(file: &Found, section: &FoundSection, base: u32, sections: &'c [(u32, u32)]) -> Context<'c> {
    let (low, room) = (file.low, file.room);
    Context { kind: section.kind, base, skip: 0, length: section.length, low, room, sections }
}

/// Symbols of sections with the sections' addresses.
fn bases(symbols: &[(u32, u32)], numbers: &HashMap<u32, u32>) -> Vec<(u32, u32)> {
    let known = symbols.iter().filter_map(|(symbol, section)| Some((*symbol, *numbers.get(section)?)));
    known.filter(|(_, number)| number >> (32 - SECTION_BITS) == 0).map(|(s, n)| (s, n << SECTION_BITS)).collect()
}

/// What a file calls its own sections.
fn own_numbers(file: &Found) -> HashMap<u32, u32> {
    (0..file.names.len() as u32).filter(|number| number >> (32 - SECTION_BITS) == 0).map(|n| (n, n)).collect()
}

/// An old file and a new one, and what is known of both.
struct Look<'l> {
    old: &'l Found,
    new: &'l Found,
    old_bytes: &'l [u8],
    new_bytes: &'l [u8],
    /// What the new file's sections are called, and the section symbols of both.
    numbers: HashMap<u32, u32>,
    old_symbols: Vec<(u32, u32)>,
    new_symbols: Vec<(u32, u32)>,
    seen: Vec<Seen>,
}

/// Compares every reference of an old file with what is at its place in the new one.
fn look<'p>(old: &'p Found, new: &'p Found, old_bytes: &[u8], new_bytes: &[u8], moves: &[Move]) -> Pair<'p> {
    let mut numbers = elf::pair_sections(old, new);
    numbers.retain(|_, number| *number >> (32 - SECTION_BITS) == 0);
    let old_numbers = own_numbers(old);
    let (old_symbols, new_symbols) = (bases(&old.symbols, &old_numbers), bases(&new.symbols, &numbers));
    let mut look = Look { old, new, old_bytes, new_bytes, numbers, old_symbols, new_symbols, seen: Vec::new() };
    let is_words = |kind| matches!(kind, Kind::RelativeWords | Kind::LowWords | Kind::Complements | Kind::Offsets);
    let is_table = |section: &FoundSection| {
        matches!(section.kind, Kind::Relocations | Kind::ObjectRelocations) || is_words(section.kind)
    };
    let own_types = old.types.and_then(|(at, length)| btf::own(&old_bytes[at as usize..][..length as usize]));
    let types = look.types();
    let is_types = |kind| matches!(kind, Kind::Types | Kind::TypeRecords);
    for (number, section) in old.sections.iter().enumerate().filter(|(_, section)| !is_table(section)) {
        let Some(base) = section.base(old.is_object, &old_numbers) else { continue };
        look.section(number, base, types.as_deref().filter(|_| is_types(section.kind)).unwrap_or(moves));
    }
    // Entries of tables look much alike: they are told apart by what they lead to, once that is known.
    let known = |space| votes(&look.seen, space).pieces(true);
    let (addresses, symbols) = (known(Space::Address), known(Space::Symbol));
    for (number, section) in old.sections.iter().enumerate().filter(|(_, section)| is_table(section)) {
        let Some(base) = section.base(old.is_object, &old_numbers) else { continue };
        let matched = match is_words(section.kind) {
            true => look.words(section, base, &addresses),
            false => look.entries(section, &addresses, &symbols),
        };
        look.section(number, base, matched.as_deref().unwrap_or(moves));
    }
    Pair { old, seen: look.seen, own_types }
}

/// What was seen in one space.
fn votes(all: &[Seen], space: Space) -> Votes {
    let mut votes = Votes::default();
    for seen in all {
        if seen.space == space {
            votes.add(seen.target, seen.by.wrapping_add(seen.anchor_by));
        }
        if let Some(anchor) = seen.anchor.filter(|_| space == Space::Address) {
            votes.add(anchor, seen.anchor_by);
        }
    }
    votes
}

impl Look<'_> {
    /// Entries of a table that stand for the same in both files.
    fn entries(&self, section: &FoundSection, addresses: &[Piece], symbols: &[Piece]) -> Option<Vec<Move>> {
        let other = self
            .new
            .sections
            .iter()
            .find(|other| other.kind == section.kind && self.numbers.get(&other.number) == Some(&section.number))?;
        let of_object = section.kind != Kind::Relocations;
        let old = Table { bytes: part(self.old_bytes, section), at: section.at, sections: &self.old_symbols };
        let new = Table { bytes: part(self.new_bytes, other), at: other.at, sections: &self.new_symbols };
        entries::matched(&old, &new, of_object, addresses, symbols)
    }

    /// Types that are in both files, where these stand for themselves; their numbers are seen by that alone.
    fn types(&mut self) -> Option<Vec<Move>> {
        let (old, new) = (self.old.types?, self.new.types?);
        let part = |bytes: &'_ [u8], (at, length): (u64, u32)| bytes[at as usize..][..length as usize].to_vec();
        let matched = btf::matched(&part(self.old_bytes, old), &part(self.new_bytes, new))?;
        self.seen.extend(matched.iter().map(|one| {
            let (target, by) = (one.numbers.0, one.numbers.1.wrapping_sub(one.numbers.0).cast_signed());
            Seen { space: Space::Type, target, anchor: None, anchor_by: 0, by, section: NO_FIELD }
        }));
        let moved = |one: &btf::Matched| Move {
            old: old.0 + one.old as u64,
            new: new.0 + one.new as u64,
            length: one.length as u64,
        };
        Some(matched.iter().map(moved).collect())
    }

    /// Words of a table that lead to the same in both files.
    fn words(&self, section: &FoundSection, base: u32, addresses: &[Piece]) -> Option<Vec<Move>> {
        let other = self.new.sections.iter().find(|other| {
            other.kind == section.kind
                && self.old.names.get(section.number as usize) == self.new.names.get(other.number as usize)
        })?;
        let targets = |file: &Found, bytes: &[u8], section: &FoundSection, base: u32, shift: &dyn Fn(u32) -> i32| {
            let mut stretch = part(bytes, section).to_vec();
            let words = stretch.as_chunks::<4>().0.iter().map(|word| (false, u32::from_le_bytes(*word)));
            let mut targets: Vec<_> = words.collect();
            scan::scan(&context(file, section, base, &[]), &mut stretch, &mut |_, reference| {
                let target = reference.target;
                targets[reference.at / 4] = (true, target.wrapping_add_signed(shift(target)));
            });
            targets
        };
        let shift = |place| map::shift(addresses, place).unwrap_or(0);
        let before = targets(self.old, self.old_bytes, section, base, &shift);
        let after = targets(self.new, self.new_bytes, other, other.address, &|_| 0);
        entries::in_order(&before, &after, (section.at, other.at), 4)
    }

    /// Compares the references of one section.
    fn section(&mut self, number: usize, base: u32, moves: &[Move]) {
        let section = &self.old.sections[number];
        let context = context(self.old, section, base, &self.old_symbols);
        let mut stretch = part(self.old_bytes, section).to_vec();
        let mut seen = Vec::new();
        scan::scan(&context, &mut stretch, &mut |bytes, reference| {
            let one = self.reference(section, &context, bytes, &reference, moves);
            seen.extend(one.map(|one| Seen { section: number as u32, ..one }));
        });
        if matches!(section.kind, Kind::Symbols | Kind::ObjectSymbols) {
            seen.extend(self.numbers_of_symbols(section, moves));
        }
        self.seen.extend(seen);
    }

    fn reference(
        &self,
        section: &FoundSection,
        context: &Context<'_>,
        bytes: &[u8],
        reference: &Reference,
        moves: &[Move],
    ) -> Option<Seen> {
        let there = moved(moves, section.at + reference.at as u64, reference.width as u64)?;
        let target = self.new.sections.iter().find(|other| other.kind == section.kind && within(other, there))?;
        let new_base = target.base(self.new.is_object, &self.numbers)?;
        let now = (self.new_bytes, there as usize);
        if !same_section(context, bytes, reference, now, (&self.new_symbols, &self.numbers)) {
            return None;
        }
        let there_now = new_base.wrapping_add((there - target.at) as u32);
        let by = change(context, bytes, reference, now, there_now)?;
        let by = if reference.anchor.is_backwards() { by.wrapping_neg() } else { by };
        let anchor = match reference.anchor {
            Anchor::Fixed | Anchor::FixedUntil => None,
            Anchor::Place | Anchor::Until => {
                let before = context.address(reference.at);
                Some((before, there_now.wrapping_sub(before) as i32))
            }
            Anchor::Base => Some((context.base, new_base.wrapping_sub(context.base) as i32)),
        };
        let (anchor_by, anchor) = (anchor.map_or(0, |(_, by)| by), anchor.map(|(anchor, _)| anchor));
        Some(Seen { space: reference.space, target: reference.target, anchor, anchor_by, by, section: 0 })
    }

    /// Symbols that were found again, as numbers.
    fn numbers_of_symbols(&self, section: &FoundSection, moves: &[Move]) -> Vec<Seen> {
        let bytes = entries::ENTRY_BYTES as u64;
        let entries = 0..u64::from(section.length) / bytes;
        let found = entries.filter_map(|number| {
            let there = moved(moves, section.at + number * bytes, bytes)?;
            let other = self.new.sections.iter().find(|other| other.kind == section.kind && within(other, there))?;
            let by = ((there - other.at) / bytes) as i32 - number as i32;
            let target = number as u32;
            Some(Seen { space: Space::Symbol, target, anchor: None, anchor_by: 0, by, section: NO_FIELD })
        });
        found.collect()
    }
}

/// The bytes of a section.
fn part<'b>(bytes: &'b [u8], section: &FoundSection) -> &'b [u8] {
    &bytes[section.at as usize..section.at as usize + section.length as usize]
}

fn within(section: &FoundSection, place: u64) -> bool {
    (section.at..section.at + u64::from(section.length)).contains(&place)
}

/// Where the bytes at `place` of the old file are in the new one.
fn moved(moves: &[Move], place: u64, length: u64) -> Option<u64> {
    let behind = moves.partition_point(|stretch| stretch.old <= place);
    let stretch = moves.get(behind.checked_sub(1)?)?;
    (place + length <= stretch.old + stretch.length).then(|| stretch.new + (place - stretch.old))
}

/// Of object files: whether an addend or a symbol's value is counted from the same section before and after.
fn same_section(
    context: &Context<'_>,
    old: &[u8],
    reference: &Reference,
    (new, there): (&[u8], usize),
    (symbols, numbers): (&[(u32, u32)], &HashMap<u32, u32>),
) -> bool {
    if reference.width != 8 || reference.space != Space::Address {
        return true;
    }
    let at = reference.at;
    match context.kind {
        Kind::ObjectSymbols => {
            let (before, after) = (u16_at(old, at - 2), there.checked_sub(2).and_then(|at| u16_at(new, at)));
            let after = after.and_then(|number| numbers.get(&u32::from(number)));
            before.map(u32::from).as_ref() == after
        }
        Kind::ObjectRelocations | Kind::ObjectCodeRelocations if at % 24 == 16 => {
            let base = |list: &[(u32, u32)], symbol: Option<u32>| {
                let symbol = symbol?;
                list.iter().find(|(number, _)| *number == symbol).map(|(_, base)| *base)
            };
            let after = there.checked_sub(4).and_then(|at| u32_at(new, at));
            base(context.sections, u32_at(old, at - 4)) == base(symbols, after)
        }
        _ => true,
    }
}

/// How much was added to a field that is at the address `place` now; `None` where that cannot be told.
fn change(
    context: &Context<'_>,
    old: &[u8],
    reference: &Reference,
    (new, there): (&[u8], usize),
    place: u32,
) -> Option<i32> {
    let at = reference.at;
    match reference.operand {
        Operand::Plain if reference.width == 8 => {
            i32::try_from(u64_at(new, there)?.wrapping_sub(u64_at(old, at)?) as i64).ok()
        }
        Operand::Plain => Some(u32_at(new, there)?.wrapping_sub(u32_at(old, at)?) as i32),
        Operand::Branch => Some(arm64::distance(u32_at(new, there)?).wrapping_sub(arm64::distance(u32_at(old, at)?))),
        Operand::Page => {
            let before = reference.target.wrapping_sub(context.address(at)).cast_signed();
            Some(arm64::pair_distance(new, there, place)?.wrapping_sub(before))
        }
        // The page of it is not known here.
        Operand::Low(_) => None,
    }
}

/// Puts a prediction together.
struct Builder {
    made: Prediction,
    shared: [Vec<Piece>; Space::ALL.len()],
    own: Vec<[Vec<Piece>; Space::ALL.len()]>,
}

impl Builder {
    /// Fits pieces to everything that was seen.
    fn new(pairs: &[Pair<'_>]) -> Self {
        // Where a module's own types and strings begin is the same for all modules of one kernel.
        let first = |of: fn((u32, u32)) -> u32| pairs.iter().filter_map(|pair| pair.own_types.map(of)).max();
        let (types, names) = (first(|own| own.0).unwrap_or(0), first(|own| own.1).unwrap_or(0));
        let is_shared = |space, target| match space {
            Space::Checksum => true,
            Space::Type => target < types,
            Space::TypeName => target < names,
            _ => false,
        };
        let mut shared: [Votes; Space::ALL.len()] = Default::default();
        let mut own = Vec::new();
        for pair in pairs {
            let mut votes: [Votes; Space::ALL.len()] = Default::default();
            for seen in &pair.seen {
                let place = seen.space as usize;
                let to = if is_shared(seen.space, seen.target) { &mut shared[place] } else { &mut votes[place] };
                to.add(seen.target, seen.by.wrapping_add(seen.anchor_by));
                if let Some(anchor) = seen.anchor {
                    votes[Space::Address as usize].add(anchor, seen.anchor_by);
                }
            }
            let starts_unmoved = |space| !matches!(space, Space::Type | Space::TypeName);
            own.push(Space::ALL.map(|space| votes[space as usize].pieces(starts_unmoved(space))));
        }
        let shared = Space::ALL.map(|space| {
            let votes = &shared[space as usize];
            if space == Space::Checksum { votes.values() } else { votes.pieces(true) }
        });
        Builder { made: Prediction::default(), shared, own }
    }

    /// Keeps what pays.
    fn build(mut self, pairs: &[Pair<'_>]) -> Prediction {
        for space in Space::ALL {
            self.made.shared[space as usize] = push(&mut self.made.pieces, &self.shared[space as usize]);
        }
        let own = std::mem::take(&mut self.own);
        for (pair, own) in pairs.iter().zip(own) {
            self.add(pair, &own);
        }
        let mut made = self.made;
        if made.files.is_empty() {
            return Prediction::default();
        }
        made.areas.sort_by_key(|area| area.start);
        // A block that two files share belongs to the first.
        let mut end = 0;
        made.areas.retain(|area| {
            let free = area.start >= end;
            end = end.max(if free { area.end() } else { 0 });
            free
        });
        made
    }

    fn add(&mut self, pair: &Pair<'_>, own: &[Vec<Piece>; Space::ALL.len()]) {
        let before = (self.made.pieces.len(), self.made.symbols.len());
        let spans = own.each_ref().map(|pieces| push(&mut self.made.pieces, pieces));
        let file = ElfFile { low: pair.old.low, room: pair.old.room, spans, symbols: 0..0 };
        let (mut right, mut wrong) = (vec![0usize; pair.old.sections.len()], vec![0usize; pair.old.sections.len()]);
        for seen in pair.seen.iter().filter(|seen| seen.section != NO_FIELD) {
            let anchor = seen.anchor.map_or(0, |anchor| self.made.shift(&file, Space::Address, anchor));
            let by = self.made.shift(&file, seen.space, seen.target).wrapping_sub(anchor);
            right[seen.section as usize] += usize::from(seen.by != 0 && by == seen.by);
            wrong[seen.section as usize] += usize::from(seen.by == 0 && by != 0);
        }
        let gain = |number: usize| (right[number].saturating_sub(wrong[number]) * WRONG).saturating_sub(SECTION);
        let kept: Vec<usize> = (0..pair.old.sections.len()).filter(|number| gain(*number) > 0).collect();
        let pieces = self.made.pieces.len() - before.0;
        let all: usize = kept.iter().map(|number| gain(*number)).sum();
        let numbers = own_numbers(pair.old);
        let symbols = bases(&pair.old.symbols, &numbers);
        let fits = self.made.files.len() < MAX_PREDICTED_FILES
            && self.made.areas.len() + kept.len() * (pair.old.extents.len() + 1) <= MAX_AREAS
            && self.made.pieces.len() <= MAX_PIECES
            && self.made.symbols.len() + symbols.len() <= MAX_SECTION_SYMBOLS;
        if !fits || all <= pieces * PIECE {
            self.made.pieces.truncate(before.0);
            return;
        }
        let with_symbols = |number: &usize| {
            matches!(pair.old.sections[*number].kind, Kind::ObjectRelocations | Kind::ObjectCodeRelocations)
        };
        if kept.iter().any(with_symbols) {
            self.made.symbols.extend(symbols);
        }
        let number = self.made.files.len() as u32;
        self.made.files.push(ElfFile { symbols: before.1..self.made.symbols.len(), ..file });
        for section in kept.iter().map(|number| &pair.old.sections[*number]) {
            self.push_section(pair.old, section, number, &numbers);
        }
    }

    fn push_section(&mut self, file: &Found, section: &FoundSection, number: u32, numbers: &HashMap<u32, u32>) {
        let Some(base) = section.base(file.is_object, numbers) else { return };
        let place = self.made.sections.len() as u32;
        self.made.sections.push(Section { file: number, kind: section.kind, base, length: section.length });
        let end = section.at + u64::from(section.length);
        for extent in &file.extents {
            let (from, to) = (section.at.max(extent.at), end.min(extent.at + extent.length));
            if from < to {
                self.made.areas.push(Area {
                    start: extent.start + (from - extent.at),
                    length: (to - from) as u32,
                    section: place,
                    skip: (from - section.at) as u32,
                });
            }
        }
    }
}

/// Appends pieces, and tells where they are.
fn push(all: &mut Vec<Piece>, pieces: &[Piece]) -> std::ops::Range<usize> {
    let start = all.len();
    all.extend(pieces);
    start..all.len()
}
