//! zstd frames as the format wants them, and as it does not.

use super::random::Random;

/// Packs bytes with one reused context.
pub(super) struct Packer(zstd::bulk::Compressor<'static>);

impl Packer {
    pub(super) fn new() -> Self {
        Packer(zstd::bulk::Compressor::default())
    }

    /// One good frame, or nothing for nothing.
    pub(super) fn part(&mut self, content: &[u8]) -> Vec<u8> {
        if content.is_empty() { Vec::new() } else { self.0.compress(content).unwrap_or_default() }
    }

    /// A good frame, or rarely an odd one of the same content.
    pub(super) fn frame(&mut self, content: &[u8], random: &mut Random) -> Vec<u8> {
        let good = self.part(content);
        if !random.once_in(12) {
            return good;
        }
        match random.below(9) {
            0 => [&good[..], &good].concat(),
            1 => [&[0x50, 0x2a, 0x4d, 0x18, 2, 0, 0, 0, 7, 7], &good[..]].concat(),
            2 => [&good[..], &[0]].concat(),
            3 => self.0.compress(&[]).unwrap_or_default(),
            4 => {
                let mut damaged = good;
                random.damage(&mut damaged);
                damaged
            }
            8 => {
                let mut damaged = good;
                let at = damaged.len() / 2 + random.place(damaged.len() / 2);
                damaged.iter_mut().skip(at).take(1).for_each(|byte| *byte ^= 1 << random.below(8));
                damaged
            }
            5 => self.0.compress(&vec![0; 1 << random.below(24)]).unwrap_or_default(),
            _ => by_hand(content, random),
        }
    }
}

/// A frame of one raw block, with any descriptor, window and stated length.
fn by_hand(content: &[u8], random: &mut Random) -> Vec<u8> {
    let mut frame = vec![0x28, 0xb5, 0x2f, 0xfd];
    let single = random.once_in(2);
    let odd = if random.once_in(4) { random.next() as u8 & 0b1_1111 } else { 0 };
    frame.push(0b1000_0000 | u8::from(single) << 5 | odd);
    if !single {
        frame.push(if random.once_in(2) { (random.below(14) as u8) << 3 } else { random.next() as u8 });
    }
    let length = content.len() as u64;
    let length = if random.once_in(3) { random.instead_of(length) } else { length };
    frame.extend((length as u32).to_le_bytes());
    let last = u32::from(!random.once_in(8));
    let kind = if random.once_in(8) { random.below(4) as u32 } else { 0 };
    frame.extend(((content.len() as u32) << 3 | kind << 1 | last).to_le_bytes().iter().take(3));
    frame.extend_from_slice(content);
    frame
}
