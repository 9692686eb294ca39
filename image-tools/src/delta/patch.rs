//! Patches: one chunk's output as bytes of its source with differences, and bytes that are new.
//!
//! ```text
//! patch      = length of packed control, length of packed differences (varints), control, differences, new bytes
//! each part  = nothing, or one zstd frame that states its content size
//! control    = operations: copy (varint), new (varint), seek (signed varint)
//! ```
//! An operation first moves the place in the source by `seek`, then makes `copy` bytes, each the source's byte plus the
//! next difference (modulo 256), and then takes `new` bytes as they are. The idea of adding differences where old and
//! new nearly agree is Colin Percival's (bsdiff, 2003); the layout is ours.
//!
//! The decoder holds one patch's parts at a time: at most [`MAX_CONTROL_BYTES`] and twice as many bytes as the output.
//! Whatever the bytes are, it never reads outside of the source nor writes outside of the output, and the work is
//! bounded by both their lengths.

use zstd::zstd_safe;

use super::varint;
use crate::decode::check_frame;
use crate::format::Fields;
use crate::limits::MAX_CONTROL_BYTES;

/// One operation of a patch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Operation {
    /// How far the place in the source moves before, from where the last copy ended.
    pub seek: i64,
    /// Bytes made from the source and the differences.
    pub copy: u64,
    /// Bytes that are new.
    pub new: u64,
}

impl Operation {
    /// Appends it to a control stream.
    pub fn push_to(&self, control: &mut Vec<u8>) {
        varint::push(control, self.copy);
        varint::push(control, self.new);
        varint::push_signed(control, self.seek);
    }

    fn take(fields: &mut Fields<'_>) -> Option<Operation> {
        let (copy, new) = (varint::take(fields)?, varint::take(fields)?);
        Some(Operation { seek: varint::take_signed(fields)?, copy, new })
    }
}

/// Why a patch is not one; a rule of the format, in words.
pub(crate) type Fault = &'static str;

/// Applies patches one by one with reused memory. May live on a thread of its own.
#[derive(Default)]
pub struct Patcher {
    context: zstd_safe::DCtx<'static>,
    control: Vec<u8>,
    differences: Vec<u8>,
    new: Vec<u8>,
}

impl std::fmt::Debug for Patcher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Patcher").finish_non_exhaustive()
    }
}

impl Patcher {
    /// Fills `out` from `patch` and `source`. After an error `out` holds rubbish.
    ///
    /// # Errors
    /// The rule of the format that the patch breaks.
    pub fn apply(&mut self, patch: &[u8], source: &[u8], out: &mut [u8]) -> Result<(), Fault> {
        self.take(patch, out.len() as u64)?;
        self.run(source, out)
    }

    /// Takes the parts of a patch that makes `room` bytes.
    pub(super) fn take(&mut self, patch: &[u8], room: u64) -> Result<(), Fault> {
        let mut fields = Fields(patch);
        let mut part = || usize::try_from(varint::take(&mut fields)?).ok();
        let (Some(control), Some(differences)) = (part(), part()) else { return Err("its patch is cut off") };
        let mut take = |length| fields.take(length).map_err(|_| "its patch is cut off");
        let (control, differences) = (take(control)?, take(differences)?);
        unpack(&mut self.context, control, u64::from(MAX_CONTROL_BYTES), &mut self.control)?;
        unpack(&mut self.context, differences, room, &mut self.differences)?;
        unpack(&mut self.context, fields.0, room, &mut self.new)
    }

    /// The operations of the patch that was taken last.
    pub(super) fn operations(&self) -> impl Iterator<Item = Operation> {
        let mut control = Fields(&self.control);
        std::iter::from_fn(move || Operation::take(&mut control))
    }

    /// Its differences.
    pub(super) fn differences(&self) -> &[u8] {
        &self.differences
    }

    fn run(&self, source: &[u8], out: &mut [u8]) -> Result<(), Fault> {
        let mut control = Fields(&self.control);
        let (mut differences, mut new) = (self.differences.as_slice(), self.new.as_slice());
        let (mut place, mut out) = (0u64, out);
        while !control.0.is_empty() {
            let operation = Operation::take(&mut control).ok_or("its control stream is cut off")?;
            if operation.copy == 0 && operation.new == 0 {
                return Err("an operation makes nothing");
            }
            place = place.checked_add_signed(operation.seek).ok_or("an operation reads before the source")?;
            let made = split(&mut out, operation.copy).ok_or("it makes more than the output")?;
            let differ = take(&mut differences, operation.copy).ok_or("its differences end early")?;
            let old = usize::try_from(place).ok().and_then(|place| source.get(place..));
            let old = old.and_then(|rest| rest.get(..made.len())).ok_or("an operation reads behind the source")?;
            for ((byte, old), differ) in made.iter_mut().zip(old).zip(differ) {
                *byte = old.wrapping_add(*differ);
            }
            // It is within the source, for that was read up to there.
            place = place.saturating_add(operation.copy);
            let made = split(&mut out, operation.new).ok_or("it makes more than the output")?;
            made.copy_from_slice(take(&mut new, operation.new).ok_or("its new bytes end early")?);
        }
        if out.is_empty() && differences.is_empty() && new.is_empty() {
            return Ok(());
        }
        Err("its patch makes another length")
    }
}

fn split<'a>(bytes: &mut &'a mut [u8], length: u64) -> Option<&'a mut [u8]> {
    let (head, rest) = std::mem::take(bytes).split_at_mut_checked(usize::try_from(length).ok()?)?;
    *bytes = rest;
    Some(head)
}

fn take<'a>(bytes: &mut &'a [u8], length: u64) -> Option<&'a [u8]> {
    let (head, rest) = bytes.split_at_checked(usize::try_from(length).ok()?)?;
    *bytes = rest;
    Some(head)
}

/// Replaces `into` by the content of `packed`, which is nothing or one frame of at most `limit` bytes.
fn unpack(context: &mut zstd_safe::DCtx<'static>, packed: &[u8], limit: u64, into: &mut Vec<u8>) -> Result<(), Fault> {
    into.clear();
    if packed.is_empty() {
        return Ok(());
    }
    let length = match zstd_safe::get_frame_content_size(packed) {
        Ok(Some(length)) if length <= limit => length,
        _ => return Err("a part of its patch does not state its length, or too great a one"),
    };
    check_frame(packed, length)?;
    into.resize(usize::try_from(length).map_err(|_| "a part of its patch is too long")?, 0);
    // What comes out is as long as the frame states, or it is an error.
    context.decompress(into.as_mut_slice(), packed).map_err(|_| "a part of its patch does not decompress")?;
    Ok(())
}

#[cfg(test)]
mod tests;
