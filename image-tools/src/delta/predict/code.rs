//! References in x86-64 instructions, without decoding them: an instruction is known by its opcode and by leading to an
//! address of the file, which hardly anything else does by chance.

use super::map::Space;
use super::scan::{Anchor, Context, Kind, Reference, u32_at};

/// Operand bytes behind a displacement, by the opcode before its ModRM byte.
fn immediate(opcode: u8, extension: u8) -> usize {
    match opcode {
        0x80 | 0x83 | 0xc0 | 0xc1 | 0xc6 | 0x6b => 1,
        0xf6 if extension < 2 => 1,
        0x81 | 0xc7 | 0x69 => 4,
        0xf7 if extension < 2 => 4,
        _ => 0,
    }
}

/// Whether four bytes behind these two are an operand that holds an absolute address: of a move or a comparison to it, or
/// of a table's first entry where there is no base register.
fn is_absolute(first: u8, second: u8) -> bool {
    match (first, second) {
        (0xc7, 0xc0..=0xc7) | (0x48, 0x3d) => true,
        (0x81, modrm) => modrm >= 0xc0,
        (modrm, scale) => modrm & 0xc7 == 0x04 && scale & 7 == 5,
    }
}

/// Calls `visit` with each reference of a stretch of code.
pub(crate) fn scan(context: &Context<'_>, bytes: &mut [u8], visit: &mut dyn FnMut(&mut [u8], Reference)) {
    let of_object = context.kind == Kind::ObjectCode;
    let (low, high) =
        if of_object { (context.base, context.base.saturating_add(context.length)) } else { (0, context.room) };
    let mut at = 0usize;
    while let (Some(&first), Some(&second)) = (bytes.get(at), bytes.get(at.saturating_add(1))) {
        if context.kind == Kind::FixedCode
            && is_absolute(first, second)
            && let Some(value) = u32_at(bytes, at + 2)
            && let Some(target) = context.inside(i64::from(value as i32).cast_unsigned())
        {
            visit(bytes, Reference::fixed(at + 2, 4, Space::Address, target));
            at += 6;
            continue;
        }
        let (field, behind) = match (first, second) {
            (0xe8 | 0xe9, _) => (at + 1, 0),
            (0x0f, 0x80..=0x8f) => (at + 2, 0),
            (opcode, modrm) if modrm & 0xc7 == 0x05 && !of_object => (at + 2, immediate(opcode, modrm >> 3 & 7)),
            _ => {
                at += 1;
                continue;
            }
        };
        let Some(distance) = u32_at(bytes, field) else { return };
        let end = context.address(field).wrapping_add(4).wrapping_add(behind as u32);
        let target = context.relative(end, distance).filter(|target| (low..high).contains(target));
        let Some(target) = target else {
            at += 1;
            continue;
        };
        visit(bytes, Reference { anchor: Anchor::Place, ..Reference::fixed(field, 4, Space::Address, target) });
        at = field + 4;
    }
}
