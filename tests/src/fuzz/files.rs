//! Delta files of small images: valid ones, damaged ones with every digest made right again, and what comes of applying
//! them.

#![allow(clippy::indexing_slicing, reason = "over images that this module made itself")]

use std::io::Cursor;

use bascule_image::delta::apply::InMemory;
use bascule_image::delta::encode::ChunkEncoder;
use bascule_image::delta::file::{Head, MAGIC};
use bascule_image::delta::index::BaseIndex;
use bascule_image::manifest::sha256;
use bascule_image::{ChunkMaker, DeltaError, DeltaFile, ForwardOnly, Way};
use serde_json::{Value, json};

use super::judge::{Finding, Outcome, timed};
use super::pack::Packer;
use super::random::{Random, fold};
use super::tables::Record;

/// Two images and the delta between them, from which many damaged files are made.
pub(super) struct Family {
    old: Vec<u8>,
    new: Vec<u8>,
    chunk_bytes: u64,
    records: Vec<Record>,
    stored: Vec<Vec<u8>>,
}

impl Family {
    /// # Errors
    /// When the encoder fails.
    pub(super) fn new(random: &mut Random) -> Result<Self, Finding> {
        let old = image(random);
        let new = if random.once_in(8) { image(random) } else { edited(&old, random) };
        let chunk_bytes = 4096 * (1 + random.below(4));
        let failed = |error: std::io::Error| Finding::new("the encoder failed", &error.to_string());
        let base = BaseIndex::new(old.clone()).map_err(failed)?;
        let mut encoder = ChunkEncoder::new(&base, 1).map_err(failed)?;
        let (mut records, mut stored) = (Vec::new(), Vec::new());
        for output in new.chunks(chunk_bytes as usize) {
            let encoded = encoder.encode(output).map_err(failed)?;
            let mut record = Record { stored_len: encoded.stored.len() as u64, ..Record::default() };
            record.kind = match encoded.way {
                Way::Zeroes => 0,
                Way::Raw => 1,
                Way::Zstd => 2,
                Way::Copied => 3,
                Way::Patched { source } => {
                    record.digest = source.0.to_vec();
                    4
                }
                Way::Packed => return Err(Finding::new("the encoder packs a chunk without being told of units", "")),
            };
            let mut end = 0i64;
            for range in &encoded.source {
                let (first, count) = ((range.offset / 4096) as i64, range.len.div_ceil(4096));
                record.ranges.push((fold(first - end), count));
                end = first + count as i64;
            }
            stored.push(if record.kind == 1 { output.to_vec() } else { encoded.stored });
            records.push(record);
        }
        Ok(Family { old, new, chunk_bytes, records, stored })
    }
}

/// Makes a file, damages it most of the time, and applies it.
pub(super) fn run(family: &Family, packer: &mut Packer, random: &mut Random) -> Result<Outcome, Finding> {
    let damaged = !random.once_in(8);
    let file = family.file(packer, random, damaged);
    let (applied, took) = timed(family.new.len(), || apply(&file, family))?;
    match applied? {
        Ok(made) if made == family.new => Ok(Outcome { taken: true, bytes: made.len(), took }),
        Ok(made) if damaged => Ok(Outcome { taken: true, bytes: made.len(), took }),
        Err(_) if damaged => Ok(Outcome { taken: false, bytes: 0, took }),
        Ok(_) => Err(Finding::new("a good delta file makes another image", "")),
        Err(error) => Err(Finding::new("a good delta file is refused", &error.to_string())),
    }
}

/// What the file makes of the family's old image; `Err` outside for what must never be.
fn apply(file: &[u8], family: &Family) -> Result<Result<Vec<u8>, DeltaError>, Finding> {
    let opened = DeltaFile::open(Box::new(ForwardOnly::new(Cursor::new(file.to_vec()))));
    let mut delta = match opened {
        Ok(delta) => delta,
        Err(error) => return Ok(Err(error)),
    };
    let head = delta.head().clone();
    bounds(&head).map_err(|what| Finding::new("took a delta file", what))?;
    let (base, size) = (head.delta.base.size, head.size);
    if base > family.old.len() as u64 || size > 1 << 20 {
        return Ok(Ok(Vec::new()));
    }
    let mut maker = ChunkMaker::new(delta.prediction());
    let mut old = InMemory::new(&family.old[..base as usize], delta.units());
    let mut written = vec![false; size as usize];
    let (mut image, mut stored, mut out) = (Vec::new(), Vec::new(), vec![0; 1 << 20]);
    loop {
        let chunk = match delta.fetch_next(&mut stored) {
            Ok(Some(chunk)) => chunk,
            Ok(None) => break,
            Err(error) => return Ok(Err(error)),
        };
        let end = delta.units().map_or(base, |units| units.end());
        let ranges = || chunk.with_source().flat_map(|one| &one.source);
        if ranges().any(|range| range.end() > end) {
            return Err(Finding::new("a range outside of the base", &format!("{chunk:?}")));
        }
        let made = match maker.make(&chunk, &stored, &mut old, &mut out) {
            Ok(made) => made,
            Err(error) => return Ok(Err(error.into())),
        };
        if sha256(made) != chunk.output.digest {
            return Err(Finding::new("gave out bytes that are not proven", &format!("{chunk:?}")));
        }
        for place in chunk.output.offset..chunk.output.offset + made.len() as u64 {
            match written.get_mut(place as usize) {
                Some(byte) if !*byte => *byte = true,
                _ => return Err(Finding::new("a byte written twice or outside", &format!("{place}"))),
            }
        }
        image.extend_from_slice(made);
    }
    if written.contains(&false) {
        return Err(Finding::new("a byte of the output was not written", ""));
    }
    Ok(delta.finish().map(|()| image))
}

/// What a head that was taken must keep.
fn bounds(head: &Head) -> Result<(), &'static str> {
    let chunk = u64::from(head.chunk_bytes);
    if chunk == 0 || chunk % 4096 != 0 || chunk > 1 << 20 {
        return Err("with a chunk size that is none");
    }
    if head.size > 1 << 40 || head.delta.base.size > 1 << 40 || head.delta.blobs > head.size {
        return Err("with too large an image");
    }
    let chunks = u128::from(head.size.div_ceil(chunk));
    let tables = chunks * 56 + u128::from(head.delta.table.unpacked.unwrap_or(head.delta.table.length));
    if tables > 8 << 20 || head.outputs.unpacked.map(u128::from) != Some(chunks * 32) {
        return Err("with tables that are too long, or none of its chunks");
    }
    Ok(())
}

impl Family {
    fn file(&self, packer: &mut Packer, random: &mut Random, damaged: bool) -> Vec<u8> {
        let (mut records, mut stored) = (self.records.clone(), self.stored.clone());
        let often = |random: &mut Random| damaged && random.once_in(3);
        if often(random) {
            let at = random.place(records.len());
            if let Some(record) = records.get_mut(at) {
                record.damage(random);
            }
        }
        if often(random) {
            let at = random.place(stored.len());
            if let Some(stored) = stored.get_mut(at) {
                random.damage(stored);
            }
        }
        let mut table = Vec::new();
        records.iter().for_each(|record| record.push_to(&mut table));
        let chunks = self.new.chunks(self.chunk_bytes as usize);
        let mut digests: Vec<u8> = chunks.flat_map(|output| sha256(output).0).collect();
        if damaged && random.once_in(12) {
            random.damage(&mut table);
        }
        if damaged && random.once_in(12) {
            random.damage(&mut digests);
        }
        let frame = |content: &[u8], packer: &mut Packer, random: &mut Random| {
            if damaged { packer.frame(content, random) } else { packer.part(content) }
        };
        // A file has a frame even for an empty table.
        let empty = || vec![0x28, 0xb5, 0x2f, 0xfd, 0x20, 0, 1, 0, 0];
        let packed = [&digests, &table].map(|part| if part.is_empty() { empty() } else { frame(part, packer, random) });
        let blobs = stored.concat();
        let about =
            |packed: &[u8], len: usize| json!({ "length": packed.len(), "sha256": sha256(packed), "unpacked": len });
        let mut head = json!({
            "size": self.new.len(), "sha256": sha256(&self.new), "chunk_bytes": self.chunk_bytes,
            "outputs": about(&packed[0], digests.len()),
            "delta": {
                "base": { "size": self.old.len(), "sha256": sha256(&self.old) },
                "table": about(&packed[1], table.len()),
                "blobs": blobs.len(),
            },
        });
        if damaged && random.once_in(3) {
            change_number(&mut head, random);
        }
        let head = head.to_string();
        let length = (head.len() as u64).to_le_bytes();
        let start = [&MAGIC[..], &[1, 0, 0, 0, 0, 0, 0, 0], &length, &[0; 8]].concat();
        let mut file = [&start[..], head.as_bytes(), &packed[0], &packed[1], &blobs].concat();
        if damaged && random.once_in(8) {
            random.damage(&mut file);
        }
        file
    }
}

/// Changes one of the numbers anywhere in a JSON value.
pub(super) fn change_number(value: &mut Value, random: &mut Random) {
    fn paths(value: &Value, at: &str, found: &mut Vec<String>) {
        match value {
            Value::Number(_) => found.push(at.to_owned()),
            Value::Object(keys) => keys.iter().for_each(|(key, inner)| paths(inner, &format!("{at}/{key}"), found)),
            Value::Array(list) => {
                list.iter().enumerate().for_each(|(place, inner)| paths(inner, &format!("{at}/{place}"), found));
            }
            _ => (),
        }
    }
    let mut found = Vec::new();
    paths(value, "", &mut found);
    let at = random.place(found.len());
    let number = found.get(at).and_then(|path| value.pointer_mut(path));
    if let Some(number) = number {
        *number = match random.below(8) {
            0 => (-1).into(),
            1 => Value::from(0.5),
            _ => random.instead_of(number.as_u64().unwrap_or(0)).into(),
        };
    }
}

/// Zeroes, noise and text.
fn image(random: &mut Random) -> Vec<u8> {
    let mut image = Vec::new();
    for _ in 0..random.below(6) {
        let len = random.of_any_length(14) as usize;
        let more = match random.below(3) {
            0 => vec![0; len],
            1 => random.bytes(len),
            _ => random.bytes(len).iter().map(|byte| b"some text "[usize::from(byte % 10)]).collect(),
        };
        image.extend(more);
    }
    if random.once_in(2) {
        image.resize(image.len().next_multiple_of(512), 0);
    }
    image
}

fn edited(old: &[u8], random: &mut Random) -> Vec<u8> {
    let mut new = old.to_vec();
    for _ in 0..random.below(4) {
        random.damage(&mut new);
    }
    new
}
