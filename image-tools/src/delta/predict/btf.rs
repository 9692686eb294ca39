//! References in BTF, the type information of Linux: numbers of types and offsets of names.
//!
//! Types have no fixed length, so a section is read from its beginning, and not at all where that is missing.

use super::map::Space;
use super::scan::{Anchor, Context, Reference, u16_at, u32_at};

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
            (self.visit)(self.bytes, Reference { at, width: 4, space, target: value, anchor: Anchor::Fixed });
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
    if context.skip != 0 || u16_at(bytes, 0) != Some(MAGIC) {
        return;
    }
    let field = |at| u32_at(bytes, at).map(|value| value as usize);
    let (Some(head), Some(offset), Some(length)) = (field(4), field(8), field(12)) else { return };
    let at = head.saturating_add(offset);
    let mut walk = Walk { end: at.saturating_add(length).min(bytes.len()), at, bytes, visit };
    while walk.at < walk.end && walk.step().is_some() {}
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
