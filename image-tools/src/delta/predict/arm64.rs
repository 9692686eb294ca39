//! References in aarch64 instructions: branches and calls, and addresses that an `ADRP` and the instruction behind it
//! make together. Encodings are those of the "Arm Architecture Reference Manual for A-profile", C4.1.

use super::map::Space;
use super::scan::{Anchor, Context, Operand, Reference, each, u32_at};

/// An `ADRP` is looked for its second half in so many instructions behind it.
const WINDOW: usize = 8;
const PAGE: u32 = 4096;

/// `B` and `BL`.
fn is_branch(word: u32) -> bool {
    word & 0x7c00_0000 == 0x1400_0000
}

fn is_page(word: u32) -> bool {
    word & 0x9f00_0000 == 0x9000_0000
}

/// The distance of a branch in bytes.
pub(crate) fn distance(word: u32) -> i32 {
    ((word << 6).cast_signed() >> 6).wrapping_mul(4)
}

/// A branch over another distance.
pub(crate) fn with_distance(word: u32, distance: i32) -> u32 {
    word & 0xfc00_0000 | (distance >> 2).cast_unsigned() & 0x03ff_ffff
}

/// The distance of an `ADRP` in pages.
fn pages(word: u32) -> i32 {
    let bits = (word >> 5 & 0x7_ffff) << 2 | word >> 29 & 3;
    (bits << 11).cast_signed() >> 11
}

/// An `ADRP` over another number of pages.
fn with_pages(word: u32, pages: i32) -> u32 {
    let bits = pages.cast_unsigned();
    word & 0x9f00_001f | (bits & 3) << 29 | (bits >> 2 & 0x7_ffff) << 5
}

/// What an instruction adds to the page in a register, and its unit as a power of two: `ADD` of an unsigned number, and
/// loads and stores with one. `None` where it is another, or of another register.
fn low_part(word: u32, register: u32) -> Option<(u32, u8)> {
    if word >> 5 & 0x1f != register {
        return None;
    }
    let scale = if word & 0xffc0_0000 == 0x9100_0000 {
        0
    } else if word & 0x3b00_0000 == 0x3900_0000 {
        let is_quad = word & 0xff80_0000 == 0x3d80_0000;
        if is_quad { 4 } else { (word >> 30) as u8 }
    } else {
        return None;
    };
    Some(((word >> 10 & 0xfff) << scale, scale))
}

/// Where the `ADRP` at `at`, whose address is `place`, and each instruction that uses its page lead: place of the
/// instruction, unit, address.
fn halves(bytes: &[u8], at: usize, place: u32) -> Vec<(usize, u8, u32)> {
    let Some(word) = u32_at(bytes, at).filter(|word| is_page(*word)) else { return Vec::new() };
    let register = word & 0x1f;
    let page = (place & !(PAGE - 1)).wrapping_add(pages(word).wrapping_mul(PAGE as i32).cast_unsigned());
    let mut found = Vec::new();
    for step in 1..=WINDOW {
        let next = at.saturating_add(step * 4);
        let Some(word) = u32_at(bytes, next) else { break };
        if let Some((low, scale)) = low_part(word, register) {
            found.push((next, scale, page.wrapping_add(low)));
        }
        // What changes the register ends it.
        if word & 0x1f == register {
            break;
        }
    }
    found
}

/// How far the pair that begins at `at`, whose address is `place`, leads.
pub(crate) fn pair_distance(bytes: &[u8], at: usize, place: u32) -> Option<i32> {
    halves(bytes, at, place).first().map(|(.., target)| target.wrapping_sub(place).cast_signed())
}

/// An `ADRP` at the address `place` that is to lead to `target`.
pub(crate) fn page_to(word: u32, place: u32, target: u32) -> u32 {
    with_pages(word, ((target & !(PAGE - 1)).wrapping_sub(place & !(PAGE - 1)).cast_signed()) >> 12)
}

/// The second half of a pair that is to lead to `target`; unchanged where its unit does not allow that.
pub(crate) fn low_to(word: u32, scale: u8, target: u32) -> u32 {
    let low = target & (PAGE - 1);
    if low & ((1 << scale) - 1) != 0 {
        return word;
    }
    word & !(0xfff << 10) | (low >> scale) << 10
}

/// Calls `visit` with each reference of a stretch of code.
pub(crate) fn scan(context: &Context<'_>, bytes: &mut [u8], visit: &mut dyn FnMut(&mut [u8], Reference)) {
    each(context, bytes.len(), 4, |at| {
        let Some(word) = u32_at(bytes, at) else { return };
        let place = context.address(at);
        let reference = |at, operand, target, anchor| Reference {
            operand,
            anchor,
            ..Reference::fixed(at, 4, Space::Address, target)
        };
        if is_branch(word) {
            if let Some(target) = context.relative(place, distance(word).cast_unsigned()) {
                visit(bytes, reference(at, Operand::Branch, target, Anchor::Place));
            }
        } else if is_page(word) {
            for (number, (next, scale, target)) in halves(bytes, at, place).into_iter().enumerate() {
                if target > context.room {
                    continue;
                }
                if number == 0 {
                    visit(bytes, reference(at, Operand::Page, target, Anchor::Place));
                }
                visit(bytes, reference(next, Operand::Low(scale), target, Anchor::Fixed));
            }
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn operands_come_back_at_every_edge() {
        for distance in [0, 4, -4, (1 << 27) - 4, -(1 << 27)] {
            assert_eq!(super::distance(with_distance(0x9400_0000, distance)), distance);
        }
        for pages in [0, 1, -1, 3, (1 << 20) - 1, -(1 << 20)] {
            let word = with_pages(0x9000_0003, pages);
            assert_eq!((super::pages(word), word & 0x1f, is_page(word)), (pages, 3, true));
        }
        // add x3, x3, #0x123; ldr x1, [x3, #0x18]; ldr q0, [x3, #0x20]; strb w1, [x3, #7]; of another register; sub.
        let words = [0x9104_8c63, 0xf940_0c61, 0x3dc0_0860, 0x3900_1c61, 0xf940_0c41, 0xd104_8c63];
        let found = words.map(|word| low_part(word, 3));
        assert_eq!(found, [Some((0x123, 0)), Some((0x18, 3)), Some((0x20, 4)), Some((7, 0)), None, None]);
        assert_eq!(low_part(low_to(0xf940_0c61, 3, 0x007f_fff8), 3), Some((0xff8, 3)));
        // An address that is no multiple of the unit.
        assert_eq!(low_to(0xf940_0c61, 3, 0x1001), 0xf940_0c61);
    }

    #[test]
    fn a_pair_leads_to_page_and_offset_until_its_register_changes() {
        // adrp x3, +2 pages; nop; add x0, x3, #0x10; ldr x3, [x3, #8]; ldr x1, [x3, #0x18].
        let words = [with_pages(0x9000_0003, 2), 0xd503_201f, 0x9100_4060, 0xf940_0463, 0xf940_0c61];
        let bytes: Vec<u8> = words.iter().flat_map(|word: &u32| word.to_le_bytes()).collect();
        assert_eq!(halves(&bytes, 0, 0x5ff8), [(8, 0, 0x7010), (12, 3, 0x7008)]);
        assert_eq!(pair_distance(&bytes, 0, 0x5ff8), Some(0x7010 - 0x5ff8));
        let moved = page_to(words[0], 0x6004, 0x7020);
        assert_eq!(pages(moved), 1);
    }
}
