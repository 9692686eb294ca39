//! References in BTF, the type information of Linux: numbers of types and offsets of names.
//!
//! Types have no fixed length, so a section is read from its beginning, and not at all where that is missing.

use std::hash::{DefaultHasher, Hash, Hasher};

use super::entries;
use super::map::Space;
use super::scan::{Context, Kind, Reference, u16_at, u32_at};

const MAGIC: u16 = 0xeb9f;

/// What the words behind a type's head are, each time over.
#[derive(Clone, Copy)]
enum Word {
    Name,
    Type,
    Number,
}

/// Whether the head's last word is a type, and the words behind it: those that are there once, and for each member.
fn layout(kind: u32) -> Option<(bool, &'static [Word], &'static [Word])> {
    use Word::{Name, Number, Type};
    Some(match kind {
        1 | 17 | 14 => (kind != 1, &[Number], &[]),
        2 | 8 | 9 | 10 | 11 | 12 | 18 => (true, &[], &[]),
        3 => (false, &[Type, Type, Number], &[]),
        4 | 5 => (false, &[], &[Name, Type, Number]),
        6 => (false, &[], &[Name, Number]),
        7 | 16 => (false, &[], &[]),
        13 => (true, &[], &[Name, Type]),
        15 => (false, &[], &[Type, Number, Number]),
        19 => (false, &[], &[Name, Number, Number]),
        _ => return None,
    })
}

struct Walk<'w> {
    bytes: &'w mut [u8],
    visit: &'w mut dyn FnMut(&mut [u8], Reference),
    at: usize,
    end: usize,
}

impl Walk<'_> {
    /// Visits the word at hand and goes on; `None` at the end.
    fn word(&mut self, word: Word) -> Option<()> {
        let at = self.at;
        let value = u32_at(self.bytes, at).filter(|_| at < self.end)?;
        self.at = at.checked_add(4)?;
        let space = match word {
            Word::Number => return Some(()),
            Word::Name => Space::TypeName,
            Word::Type => Space::Type,
        };
        if value != 0 {
            (self.visit)(self.bytes, Reference::fixed(at, 4, space, value));
        }
        Some(())
    }

    fn all(&mut self, words: &[Word]) -> Option<()> {
        words.iter().try_for_each(|word| self.word(*word))
    }

    /// Visits one type.
    fn step(&mut self) -> Option<()> {
        let info = u32_at(self.bytes, self.at.checked_add(4)?)?;
        let (is_type, once, member) = layout(info >> 24 & 0x1f)?;
        self.all(&[Word::Name, Word::Number, if is_type { Word::Type } else { Word::Number }])?;
        self.all(once)?;
        if member.is_empty() {
            return Some(());
        }
        (0..info & 0xffff).try_for_each(|_| self.all(member))
    }
}

/// Calls `visit` with each reference of a section, of which the stretch is the beginning.
pub(crate) fn scan(context: &Context<'_>, bytes: &mut [u8], visit: &mut dyn FnMut(&mut [u8], Reference)) {
    if context.skip != 0 {
        return;
    }
    if context.kind == Kind::TypeRecords {
        let mut walk = Walk { end: bytes.len(), at: 0, bytes, visit };
        while walk.at < walk.end && walk.step().is_some() {}
        return;
    }
    if u16_at(bytes, 0) != Some(MAGIC) {
        return;
    }
    let field = |at| u32_at(bytes, at).map(|value| value as usize);
    let (Some(head), Some(offset), Some(length)) = (field(4), field(8), field(12)) else { return };
    let at = head.saturating_add(offset);
    let mut walk = Walk { end: at.saturating_add(length).min(bytes.len()), at, bytes, visit };
    while walk.at < walk.end && walk.step().is_some() {}
}

/// Where a section can be cut into parts of about `size` bytes, each of which but the first begins with a type. The last
/// place is where the types end.
pub(crate) fn cuts(section: &[u8], size: usize) -> Option<Vec<usize>> {
    let field = |at| u32_at(section, at).map(|value| value as usize);
    let at = field(4)?.checked_add(field(8)?)?;
    let end = at.checked_add(field(12)?)?.min(section.len());
    let mut copy = section.to_vec();
    let mut walk = Walk { bytes: &mut copy, visit: &mut |_, _| (), at, end };
    let (mut cuts, mut last) = (Vec::new(), 0usize);
    while walk.at < walk.end && walk.step().is_some() {
        if walk.at.saturating_sub(last) >= size || walk.at >= walk.end {
            cuts.push(walk.at);
            last = walk.at;
        }
    }
    Some(cuts)
}

/// A type of a section.
struct Record {
    /// Where it begins in the section, and how long it is.
    at: usize,
    length: usize,
    /// What it is, whatever the numbers of other types are.
    key: u64,
    /// Numbers of types that it refers to.
    types: Vec<u32>,
}

/// The types of a section in their order; names before `names` are those of another section.
fn records(section: &[u8], names: u32) -> Option<Vec<Record>> {
    let field = |at| u32_at(section, at).map(|value| value as usize);
    let head = field(4)?;
    let at = head.checked_add(field(8)?)?;
    let end = at.checked_add(field(12)?)?.min(section.len());
    let strings = section.get(head.checked_add(field(16)?)?..)?.get(..field(20)?)?;
    let mut copy = section.to_vec();
    let mut records = Vec::new();
    let mut start = at;
    while start < end {
        let (mut types, mut hasher) = (Vec::new(), DefaultHasher::new());
        let mut look = |bytes: &mut [u8], reference: Reference| {
            if reference.space == Space::Type {
                types.push(reference.target);
            } else {
                let own = reference.target.checked_sub(names).and_then(|offset| strings.get(offset as usize..));
                own.and_then(|name| name.split(|byte| *byte == 0).next()).hash(&mut hasher);
            }
            // What is left are numbers of its own.
            if let Some(word) = bytes.get_mut(reference.at..).and_then(|rest| rest.first_chunk_mut::<4>()) {
                *word = [0; 4];
            }
        };
        let mut walk = Walk { bytes: &mut copy, visit: &mut look, at: start, end };
        walk.step()?;
        let stop = walk.at;
        copy.get(start..stop)?.hash(&mut hasher);
        records.push(Record { at: start, length: stop - start, key: hasher.finish(), types });
        start = stop;
    }
    Some(records)
}

/// What each type is, and the types that it refers to; the first has the number `start`.
fn keys(records: &[Record], start: u32) -> Vec<u64> {
    let key = |record: &Record| {
        let mut hasher = DefaultHasher::new();
        record.key.hash(&mut hasher);
        for number in &record.types {
            let other = number.checked_sub(start).and_then(|place| records.get(place as usize));
            other.map(|other| other.key).hash(&mut hasher);
        }
        hasher.finish()
    };
    records.iter().map(key).collect()
}

/// Types of two sections that are the same but for the numbers of others: where they begin in both, how long they are, and
/// their numbers in both. On the host.
pub(crate) fn matched(old: &[u8], new: &[u8]) -> Option<Vec<Matched>> {
    // That of a kernel stands for itself; its types begin with 1.
    let starts = |section| own(section).unwrap_or((1, 0));
    let (old_starts, new_starts) = (starts(old), starts(new));
    let (old, new) = (records(old, old_starts.1)?, records(new, new_starts.1)?);
    let pairs = entries::pairs(&keys(&old, old_starts.0), &keys(&new, new_starts.0));
    let matched: Vec<_> = pairs
        .into_iter()
        .filter_map(|(one, other)| {
            let (before, after) = (old.get(one)?, new.get(other)?);
            let numbers = (old_starts.0 + one as u32, new_starts.0 + other as u32);
            Some(Matched { old: before.at, new: after.at, length: before.length, numbers })
        })
        .collect();
    (!matched.is_empty()).then_some(matched)
}

/// A type that is in both sections.
pub(crate) struct Matched {
    pub(crate) old: usize,
    pub(crate) new: usize,
    pub(crate) length: usize,
    /// Its number in both.
    pub(crate) numbers: (u32, u32),
}

/// The first number of a type, and the first offset of a string, that may be a module's own: those that are, are so many
/// less than the greatest that are used. Where the last of them is not used, it is less than the truth.
pub(crate) fn own(section: &[u8]) -> Option<(u32, u32)> {
    let field = |at| u32_at(section, at);
    let (mut types, mut names) = (0u32, 0u32);
    let mut copy = section.to_vec();
    let mut look = |_: &mut [u8], reference: Reference| match reference.space {
        Space::Type => types = types.max(reference.target),
        _ => names = names.max(reference.target),
    };
    let at = (field(4)? as usize).checked_add(field(8)? as usize)?;
    let end = at.checked_add(field(12)? as usize)?.min(copy.len());
    let mut walk = Walk { bytes: &mut copy, visit: &mut look, at, end };
    let mut count = 0u32;
    while walk.at < walk.end && walk.step().is_some() {
        count += 1;
    }
    let strings = (field(4)? as usize).checked_add(field(16)? as usize)?;
    let strings = section.get(strings..)?.get(..field(20)? as usize)?;
    let last = strings.strip_suffix(&[0])?.split(|byte| *byte == 0).next_back()?.len() as u32 + 1;
    Some((types.checked_sub(count)?.checked_add(1)?, names.checked_add(last)?.checked_sub(field(20)?)?))
}
