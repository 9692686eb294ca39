//! A second reading of delta tables and patches, written from docs/bundle-format.md in another way than the agent's: numbers
//! cannot overflow, every byte that is written or read is ticked off in a map.

#![allow(clippy::indexing_slicing, reason = "a panic here is found by the fuzzer, too")]

use bascule_image::limits::{BASE_BLOCK_BYTES, MAX_CONTROL_BYTES, MAX_RANGES, MAX_SOURCE_BYTES, MAX_ZSTD_WINDOW_BYTES};

/// Why something must be refused.
pub(super) type Refusal = &'static str;

/// One record of a delta table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Record {
    pub(super) kind: u8,
    pub(super) stored_len: u64,
    /// Offset and length of each source range.
    pub(super) source: Vec<(u64, u64)>,
}

/// Reads a delta table for outputs of these lengths.
pub(super) fn read_table(bytes: &[u8], outputs: &[u32], base: u64, blobs: u64) -> Result<Vec<Record>, Refusal> {
    let mut bytes = Bytes(bytes);
    let (mut records, mut stored) = (Vec::new(), 0u128);
    for &len in outputs {
        let record = read_record(&mut bytes, len, base)?;
        stored += u128::from(record.stored_len);
        records.push(record);
    }
    if !bytes.0.is_empty() {
        return Err("more bytes than records");
    }
    if stored == u128::from(blobs) { Ok(records) } else { Err("other blobs") }
}

fn read_record(bytes: &mut Bytes<'_>, len: u32, base: u64) -> Result<Record, Refusal> {
    let (kind, transform) = (bytes.byte()?, bytes.byte()?);
    if kind > 4 || transform > 0 {
        return Err("unknown kind or transform");
    }
    let stored_len = match kind {
        1 => u64::from(len),
        2 | 4 => bytes.number()?,
        _ => 0,
    };
    if (kind == 2 || kind == 4) && !(1..u64::from(len)).contains(&stored_len) {
        return Err("stored length");
    }
    let mut source = Vec::new();
    if kind >= 3 {
        let count = bytes.number()?;
        if !(1..=MAX_RANGES).contains(&count) {
            return Err("number of ranges");
        }
        let blocks_of_base = i128::from(base).div_euclid(4096) + i128::from(!base.is_multiple_of(BASE_BLOCK_BYTES));
        let (mut before, mut total) = (0i128, 0u64);
        for number in 0..count {
            let first = before + bytes.signed()?;
            let blocks = i128::from(bytes.number()?);
            if kind == 4 && first < before {
                return Err("descending ranges");
            }
            if first < 0 || blocks == 0 || first + blocks > blocks_of_base {
                return Err("range outside of the base");
            }
            if number > 0 && total % BASE_BLOCK_BYTES > 0 {
                return Err("range behind the last block");
            }
            let (from, to) = (first * 4096, i128::from(base).min((first + blocks) * 4096));
            source.push((from as u64, (to - from) as u64));
            total += (to - from) as u64;
            if total > MAX_SOURCE_BYTES {
                return Err("source too long");
            }
            before = first + blocks;
        }
        if kind == 3 && total != u64::from(len) {
            return Err("copy of another length");
        }
    }
    if kind == 4 {
        for _ in 0..32 {
            bytes.byte()?;
        }
    }
    Ok(Record { kind, stored_len, source })
}

/// What a patch makes of `source`, if it makes `len` bytes.
pub(super) fn read_patch(patch: &[u8], source: &[u8], len: usize) -> Result<Vec<u8>, Refusal> {
    let mut bytes = Bytes(patch);
    let (control, differences) = (bytes.number()?, bytes.number()?);
    let control = unpack(bytes.take(control)?, u64::from(MAX_CONTROL_BYTES))?;
    let differences = unpack(bytes.take(differences)?, len as u64)?;
    let fresh = unpack(bytes.0, len as u64)?;
    let mut map = Map { output: vec![None; len], next: 0 };
    let mut control = Bytes(&control);
    let (mut place, mut differ, mut new) = (0i128, 0usize, 0usize);
    while !control.0.is_empty() {
        let (copy, fresh_count, seek) = (control.number()?, control.number()?, control.signed()?);
        if copy == 0 && fresh_count == 0 {
            return Err("operation without effect");
        }
        place += seek;
        if place < 0 || place > i128::from(u64::MAX) {
            return Err("place outside of the source");
        }
        if place + i128::from(copy) > source.len() as i128 {
            return Err("read behind the source");
        }
        for _ in 0..copy {
            let old = source[usize::try_from(place).map_err(|_| "place")?];
            let difference = *differences.get(differ).ok_or("too few differences")?;
            map.write(((u16::from(old) + u16::from(difference)) % 256) as u8)?;
            place += 1;
            differ += 1;
        }
        for _ in 0..fresh_count {
            map.write(*fresh.get(new).ok_or("too few new bytes")?)?;
            new += 1;
        }
    }
    if differ < differences.len() || new < fresh.len() {
        return Err("bytes left over");
    }
    map.output.into_iter().collect::<Option<Vec<u8>>>().ok_or("output not filled")
}

/// Which bytes of the output were written: each once.
struct Map {
    output: Vec<Option<u8>>,
    next: usize,
}

impl Map {
    fn write(&mut self, byte: u8) -> Result<(), Refusal> {
        let place = self.output.get_mut(self.next).ok_or("written behind the output")?;
        if place.replace(byte).is_some() {
            return Err("written twice");
        }
        self.next += 1;
        Ok(())
    }
}

/// The content of nothing, or of one frame of RFC 8878 that this format allows.
fn unpack(frame: &[u8], limit: u64) -> Result<Vec<u8>, Refusal> {
    if frame.is_empty() {
        return Ok(Vec::new());
    }
    let length = read_frame(frame)?;
    if length > limit {
        return Err("part too long");
    }
    let content = zstd::bulk::decompress(frame, length as usize).map_err(|_| "does not decompress")?;
    if content.len() as u64 == length { Ok(content) } else { Err("other length than stated") }
}

/// The stated length of the one frame that fills `frame`.
fn read_frame(frame: &[u8]) -> Result<u64, Refusal> {
    let mut bytes = Bytes(frame);
    if bytes.take(4)? != [0x28, 0xb5, 0x2f, 0xfd] {
        return Err("no frame");
    }
    let descriptor = bytes.byte()?;
    let (size_flag, single, checksum) = (descriptor >> 6, descriptor >> 5 & 1 == 1, descriptor >> 2 & 1 == 1);
    if descriptor & 0b1011 != 0 {
        return Err("dictionary, or a reserved bit");
    }
    let window = if single {
        None
    } else {
        let byte = u64::from(bytes.byte()?);
        Some((1u64 << (10 + (byte >> 3))) / 8 * (8 + (byte & 7)))
    };
    let length = match (size_flag, single) {
        (0, false) => return Err("no stated length"),
        (0, true) => u64::from(bytes.byte()?),
        (1, _) => bytes.little(2)? + 256,
        (2, _) => bytes.little(4)?,
        _ => bytes.little(8)?,
    };
    if window.unwrap_or(length) > MAX_ZSTD_WINDOW_BYTES {
        return Err("window too large");
    }
    loop {
        let header = bytes.little(3)?;
        let size = header >> 3;
        bytes.take(match header >> 1 & 3 {
            0 | 2 => size,
            1 => 1,
            _ => return Err("block of a reserved type"),
        })?;
        if header & 1 == 1 {
            break;
        }
    }
    if checksum {
        bytes.take(4)?;
    }
    if bytes.0.is_empty() { Ok(length) } else { Err("more than one frame") }
}

/// Bytes taken from the front.
struct Bytes<'a>(&'a [u8]);

impl<'a> Bytes<'a> {
    fn take(&mut self, count: u64) -> Result<&'a [u8], Refusal> {
        if count > self.0.len() as u64 {
            return Err("cut off");
        }
        let (head, rest) = self.0.split_at(count as usize);
        self.0 = rest;
        Ok(head)
    }

    fn byte(&mut self) -> Result<u8, Refusal> {
        Ok(self.take(1)?[0])
    }

    fn little(&mut self, count: u64) -> Result<u64, Refusal> {
        Ok(self.take(count)?.iter().rev().fold(0, |sum, byte| sum << 8 | u64::from(*byte)))
    }

    fn number(&mut self) -> Result<u64, Refusal> {
        let mut sum = 0u128;
        for digit in 0..10 {
            let byte = self.byte()?;
            sum += u128::from(byte % 128) << (7 * digit);
            if byte < 128 {
                return u64::try_from(sum).map_err(|_| "number too great");
            }
        }
        Err("number too long")
    }

    fn signed(&mut self) -> Result<i128, Refusal> {
        let folded = i128::from(self.number()?);
        Ok(if folded % 2 == 0 { folded / 2 } else { -(folded + 1) / 2 })
    }
}
