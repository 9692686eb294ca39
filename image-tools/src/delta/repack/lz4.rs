//! LZ4 blocks, as Linux kernels hold their compressed image: read from a stream without keeping more than a window of
//! what came out, and packed again.
//!
//! The layout is that of "LZ4 Block Format Description": sequences of a token, literals, the distance of a match and
//! its length. A match reaches back 65535 bytes at most, so that much is kept.

use super::Codec;
use super::units::{Fault, PackedBytes, Stretch, Units, Wanted};
use crate::delta::table::BaseRange;

/// The level at which kernels are packed: `lz4 -9` of their makefiles.
const LEVEL: i32 = 9;
/// A match reaches no further back.
pub(super) const REACH: usize = 1 << 16;
/// So much is kept before the oldest is let go.
const KEPT: usize = 4 * REACH;
/// Lengths in a token from here on go on in bytes of their own.
const LONG: usize = 15;
/// The shortest match.
const LEAST_MATCH: usize = 4;
/// A short sequence has both lengths in its token: at most 14 literals and a match of 18 bytes. So many are copied for
/// either, whatever it has; the next sequence overwrites what is too much.
const SHORT_LITERALS: usize = 16;
const SHORT_MATCH: usize = 24;
/// The packed bytes that are looked at for one: its token, its literals, the distance.
const SHORT_SEQUENCE: usize = 1 + SHORT_LITERALS + 2;

/// Packs `content` into the head of `packed`; `None` where it does not fit.
pub(super) fn pack(content: &[u8], packed: &mut [u8]) -> Option<usize> {
    let mode = lz4::block::CompressionMode::HIGHCOMPRESSION(LEVEL);
    lz4::block::compress_to_buffer(content, Some(mode), false, packed).ok()
}

/// Hands what `input` unpacks to, `length` bytes, to `wanted` until that has all it wants.
pub(super) fn unpack(input: &mut PackedBytes<'_, '_>, length: u64, wanted: &mut Wanted<'_>) -> Result<(), Fault> {
    let mut made = Made { bytes: vec![0; ROOM], end: 0, gone: 0, offered: 0, length };
    loop {
        let taken = made.short_sequences(input.left());
        input.skip(taken);
        made.hand_on(wanted)?;
        let token = usize::from(input.byte()?.ok_or(CUT_OFF)?);
        let mut left = long(input, token >> 4)?;
        while left > 0 {
            let bytes = input.some(left.min(REACH))?;
            if bytes.is_empty() {
                return Err(CUT_OFF);
            }
            left -= bytes.len();
            made.push(bytes);
            made.hand_on(wanted)?;
        }
        let Some(low) = input.byte()? else { break };
        let high = input.byte()?.ok_or(CUT_OFF)?;
        let length = long(input, token & 0xf)?.saturating_add(LEAST_MATCH);
        made.repeat(usize::from(u16::from_le_bytes([low, high])), length, wanted)?;
        if wanted.is_done() {
            return Ok(());
        }
    }
    made.offer(wanted);
    if made.all() == length { Ok(()) } else { Err(OTHER_LENGTH) }
}

const OTHER_LENGTH: Fault = Fault::Packed("it unpacks to another length");
const CUT_OFF: Fault = Fault::Packed("it is cut off");

/// A length whose first part is in the token.
fn long(input: &mut PackedBytes<'_, '_>, first: usize) -> Result<usize, Fault> {
    let mut length = first;
    if first == LONG {
        loop {
            let byte = input.byte()?.ok_or(CUT_OFF)?;
            length = length.saturating_add(usize::from(byte));
            if byte != 0xff {
                break;
            }
        }
    }
    Ok(length)
}

/// The last bytes that came out.
struct Made {
    /// [`ROOM`] bytes, of which those up to `end` came out.
    bytes: Vec<u8>,
    end: usize,
    /// How many came out before these.
    gone: u64,
    /// How many of these were handed on.
    offered: usize,
    /// How many may come out.
    length: u64,
}

/// Memory for what came out: what is kept, the most that is added before [`Made::hand_on`], and what a step over short
/// sequences may write beyond their end.
const ROOM: usize = KEPT + REACH + SHORT_SEQUENCE + SHORT_MATCH;

impl Made {
    /// How much came out in all.
    fn all(&self) -> u64 {
        self.gone.saturating_add(self.end as u64)
    }

    /// Takes short sequences, which nearly all are, from the head of `input` in steps of a fixed length, and tells how
    /// many bytes of it these were. It stops at the first other one, and leaves faults to those who read it then.
    fn short_sequences(&mut self, input: &[u8]) -> usize {
        let mut taken = 0usize;
        while self.end < KEPT {
            let sequence = input.get(taken..).and_then(|rest| rest.first_chunk::<SHORT_SEQUENCE>());
            let Some(length) = sequence.and_then(|sequence| self.short_sequence(sequence)) else { break };
            taken = taken.saturating_add(length);
        }
        taken
    }

    /// Takes the sequence at the head of `input` if it is short, and tells how many bytes of it that was.
    #[inline]
    fn short_sequence(&mut self, input: &[u8; SHORT_SEQUENCE]) -> Option<usize> {
        let token = usize::from(input[0]);
        let (literals, matched) = (token >> 4, (token & 0xf) + LEAST_MATCH);
        if literals == LONG || matched == LONG + LEAST_MATCH {
            return None;
        }
        let distance = input.get(1 + literals..)?.first_chunk::<2>()?;
        let distance = usize::from(u16::from_le_bytes(*distance));
        let at = self.end + literals;
        // Eight bytes are copied at a time, so none of them may be what the copy itself is to make.
        let from = at.checked_sub(distance).filter(|_| distance >= 8)?;
        *self.bytes.get_mut(self.end..)?.first_chunk_mut()? = *input.get(1..)?.first_chunk::<SHORT_LITERALS>()?;
        if distance >= SHORT_MATCH {
            let bytes = *self.bytes.get(from..)?.first_chunk::<SHORT_MATCH>()?;
            *self.bytes.get_mut(at..)?.first_chunk_mut()? = bytes;
        } else {
            for step in [0, 8, 16] {
                let bytes = *self.bytes.get(from + step..)?.first_chunk::<8>()?;
                *self.bytes.get_mut(at + step..)?.first_chunk_mut()? = bytes;
            }
        }
        self.end = at + matched;
        Some(1 + literals + 2)
    }

    /// Adds at most [`REACH`] bytes.
    fn push(&mut self, bytes: &[u8]) {
        let end = self.end.saturating_add(bytes.len());
        if let Some(place) = self.bytes.get_mut(self.end..end) {
            place.copy_from_slice(bytes);
            self.end = end;
        }
    }

    fn repeat(&mut self, distance: usize, length: usize, wanted: &mut Wanted<'_>) -> Result<(), Fault> {
        if distance == 0 || distance > self.end {
            return Err(Fault::Packed("it repeats what is not there"));
        }
        let (mut left, mut reach) = (length, distance);
        while left > 0 {
            let start = self.end.saturating_sub(reach);
            let count = left.min(reach);
            // `reach` is REACH at most, and so much room is left.
            self.bytes.copy_within(start..start.saturating_add(count), self.end);
            self.end = self.end.saturating_add(count);
            left -= count;
            // What repeats with a distance repeats with twice that as well.
            if count == reach && reach.saturating_mul(2) <= REACH {
                reach = reach.saturating_mul(2);
            }
            self.hand_on(wanted)?;
        }
        Ok(())
    }

    /// Lets go of the oldest bytes when there are many.
    fn hand_on(&mut self, wanted: &mut Wanted<'_>) -> Result<(), Fault> {
        if self.all() > self.length {
            return Err(OTHER_LENGTH);
        }
        if self.end >= KEPT {
            self.offer(wanted);
            let old = self.end.saturating_sub(REACH);
            self.bytes.copy_within(old..self.end, 0);
            self.gone = self.gone.saturating_add(old as u64);
            self.end = self.end.saturating_sub(old);
            self.offered = self.end;
        }
        Ok(())
    }

    fn offer(&mut self, wanted: &mut Wanted<'_>) {
        let new = self.bytes.get(self.offered..self.end).unwrap_or_default();
        wanted.offer(self.gone.saturating_add(self.offered as u64), new);
        self.offered = self.end;
    }
}

/// Where a sequence begins: in the content, and in the packed bytes.
pub(super) type Sequence = (u32, u32);

/// Where sequences begin; `None` where the packed bytes are no LZ4 block. On the host.
pub(super) fn sequences(packed: &[u8]) -> Option<Vec<Sequence>> {
    walk(packed).map(|(sequences, _)| sequences)
}

/// How long the content of a block is.
fn length(packed: &[u8]) -> Option<usize> {
    walk(packed).map(|(_, length)| length).filter(|length| *length > 0)
}

fn walk(packed: &[u8]) -> Option<(Vec<Sequence>, usize)> {
    let (mut at, mut content) = (0usize, 0usize);
    let mut found = Vec::new();
    let length = |at: &mut usize, first: usize| {
        let mut length = first;
        let mut goes_on = first == LONG;
        while goes_on {
            let byte = *packed.get(*at)?;
            *at += 1;
            length += usize::from(byte);
            goes_on = byte == 0xff;
        }
        Some(length)
    };
    while let Some(token) = packed.get(at) {
        found.push((u32::try_from(content).ok()?, u32::try_from(at).ok()?));
        at += 1;
        let literals = length(&mut at, usize::from(token >> 4))?;
        (at, content) = (at + literals, content + literals);
        if at >= packed.len() {
            break;
        }
        at += 2;
        content += length(&mut at, usize::from(token & 0xf))? + LEAST_MATCH;
    }
    (at == packed.len()).then_some((found, content))
}

/// The content of a block, of at most `most` bytes, as a device would read it; `None` where it is none. On the host.
pub(super) fn whole(packed: &[u8], most: usize) -> Option<Vec<u8>> {
    let length = length(packed)?;
    if length > most {
        return None;
    }
    let stretch = Stretch { start: 0, length: u32::try_from(packed.len()).ok()? };
    let mut units = Units::behind(0);
    units.push(Codec::Lz4, u32::try_from(length).ok()?, &[stretch])?;
    let mut content = vec![0; length];
    let mut read_at = |at: u64, place: &mut [u8]| {
        place.copy_from_slice(packed.get(at as usize..).and_then(|rest| rest.get(..place.len())).unwrap_or_default());
        Ok(())
    };
    units.read(&[BaseRange { offset: 0, len: length as u64 }], &mut content, &mut read_at).ok()?;
    Some(content)
}
