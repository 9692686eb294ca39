//! Deltas with predictions and packed chunks, of real programs: valid ones, ones damaged anywhere, and ones whose base is
//! damaged. Whatever is said, a chunk is refused or it is the right one, in time, without a panic.
//!
//! The programs are this machine's, so a case follows from seed and number on machines with the same programs.

#![allow(clippy::indexing_slicing, reason = "over images that this module made itself")]

use std::fs::File;
use std::io::Write as _;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use bascule_image::delta::apply::InMemory;
use bascule_image::delta::image::{DeltaSpec, encode_image};
use bascule_image::delta::index::BaseIndex;
use bascule_image::manifest::sha256;
use bascule_image::{Chunk, ChunkKind, ChunkMaker, ChunkTable, DeltaTable};

use super::judge::{Finding, Outcome, timed};
use super::random::Random;

/// Length of a chunk's output.
const CHUNK: usize = 64 << 10;
/// Programs of these lengths are taken.
const LENGTHS: std::ops::Range<u64> = (16 << 10)..(200 << 10);
/// A packed file shorter than this is not looked for.
const LEAST_PACKED: usize = 256 << 10;

/// Two images of programs and the delta between them.
pub(super) struct Pair {
    old: Vec<u8>,
    new: Vec<u8>,
    table: Vec<u8>,
    blobs: Vec<u8>,
    stored: u64,
    full: ChunkTable,
}

impl Pair {
    /// # Errors
    /// When the encoder fails.
    pub(super) fn new(random: &mut Random) -> Result<Self, Finding> {
        let failed = |error: std::io::Error| Finding::new("the encoder failed", &error.to_string());
        let programs: Vec<_> = (0..3).map(|_| program(random)).collect();
        let by = 16 * (1 + random.below(8));
        let is_squashfs = random.below(2) == 0;
        let image = |by: u64| {
            if is_squashfs {
                return squashfs(&programs, by);
            }
            let mut image = Vec::new();
            for program in &programs {
                image.extend(moved(program, by));
                image.resize(image.len().next_multiple_of(4096), 0);
            }
            let mut kernel = moved(&programs[0], by);
            kernel.resize(kernel.len().max(LEAST_PACKED), 0x90);
            image.extend(packed(&kernel)?);
            image.resize(image.len().next_multiple_of(4096), 0);
            Ok(image)
        };
        let (old, new) = (image(0).map_err(failed)?, image(by).map_err(failed)?);
        let mut file: File = tempfile::tempfile().map_err(failed)?;
        file.write_all(&new).map_err(failed)?;
        let mut index = BaseIndex::new(old.clone()).map_err(failed)?;
        let spec = DeltaSpec { workers: 1, ..DeltaSpec::new(CHUNK as u32, 1) };
        let mut blobs = Vec::new();
        let made = encode_image(&mut index, &file, new.len() as u64, spec, &mut blobs, &mut |_| ()).map_err(failed)?;
        let full = outputs(&new)?;
        Ok(Pair { old, new, table: made.table, blobs, stored: made.blobs, full })
    }
}

/// One of the programs of this machine; noise where there are none.
fn program(random: &mut Random) -> Vec<u8> {
    let folders = ["/usr/bin", "/usr/sbin", "/usr/lib/x86_64-linux-gnu", "/usr/lib/aarch64-linux-gnu"];
    let mut all: Vec<PathBuf> = Vec::new();
    for folder in folders {
        let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
        let fits = |entry: &std::fs::DirEntry| {
            entry.metadata().is_ok_and(|about| about.is_file() && LENGTHS.contains(&about.len()))
        };
        all.extend(entries.filter(fits).map(|entry| entry.path()));
    }
    all.sort();
    let chosen = all.get(random.place(all.len())).and_then(|path| std::fs::read(path).ok());
    chosen.unwrap_or_else(|| random.bytes(LENGTHS.start as usize))
}

/// The program with what its relocations lead to moved by `by`, from the middle of its addresses on.
fn moved(program: &[u8], by: u64) -> Vec<u8> {
    let mut moved = program.to_vec();
    let word = |at: usize| program.get(at..)?.first_chunk::<8>().map(|bytes| u64::from_le_bytes(*bytes));
    let (Some(headers), true) = (word(40), program.starts_with(b"\x7fELF\x02")) else { return moved };
    let count = program.get(60..62).map_or(0, |two| usize::from(two[0]) | usize::from(two[1]) << 8);
    for header in (0..count).map(|number| headers as usize + number * 64) {
        let (Some(kind), Some(at), Some(length)) = (program.get(header + 4), word(header + 24), word(header + 32))
        else {
            break;
        };
        if *kind != 4 {
            continue;
        }
        for entry in (at as usize..(at + length) as usize).step_by(24) {
            let Some(addend) = word(entry + 16).filter(|addend| *addend >= 0x4000) else { continue };
            if let Some(place) = moved.get_mut(entry + 16..entry + 24) {
                place.copy_from_slice(&(addend + by).to_le_bytes());
            }
        }
    }
    moved
}

/// A frame as kernels are packed in.
fn packed(content: &[u8]) -> std::io::Result<Vec<u8>> {
    let mode = lz4::block::CompressionMode::HIGHCOMPRESSION(9);
    let block = lz4::block::compress(content, Some(mode), false)?;
    Ok([&[0x02, 0x21, 0x4c, 0x18][..], &(block.len() as u32).to_le_bytes(), &block].concat())
}

/// A squashfs image of the programs, at a level that every libzstd packs alike.
fn squashfs(programs: &[Vec<u8>], by: u64) -> std::io::Result<Vec<u8>> {
    let folder = tempfile::tempdir()?;
    let (tree, image) = (folder.path().join("tree"), folder.path().join("image"));
    std::fs::create_dir(&tree)?;
    for (number, program) in programs.iter().enumerate() {
        std::fs::write(tree.join(number.to_string()), moved(program, by))?;
    }
    let status = Command::new("mksquashfs")
        .args([&tree, &image])
        .args(["-quiet", "-no-progress", "-noappend", "-all-root", "-mkfs-time", "0", "-all-time", "0"])
        .args(["-b", "32K", "-comp", "zstd", "-Xcompression-level", "1"])
        .stdout(Stdio::null())
        .status()?;
    if status.success() { std::fs::read(&image) } else { Err(std::io::Error::other("mksquashfs failed")) }
}

fn outputs(image: &[u8]) -> Result<ChunkTable, Finding> {
    let (mut table, mut offset) = (Vec::new(), 0);
    for part in image.chunks(CHUNK) {
        let (kind, digest, len) = (ChunkKind::Raw, sha256(part), part.len() as u32);
        Chunk { index: 0, offset, len, kind, stored_offset: offset, stored_len: len, digest }.push_to(&mut table);
        offset += u64::from(len);
    }
    ChunkTable::parse(table, "root", offset, offset).map_err(|error| Finding::new("no table", &error.to_string()))
}

/// Damages the delta or the base most of the time, and applies it.
pub(super) fn run(pair: &Pair, random: &mut Random) -> Result<Outcome, Finding> {
    let (mut table, mut old, mut blobs) = (pair.table.clone(), pair.old.clone(), pair.blobs.clone());
    let what = random.below(8);
    match what {
        0 => {}
        1 => flip(&mut old, random),
        2 => flip(&mut blobs, random),
        3 => {
            // What follows the records: units and prediction.
            let start = table.len().saturating_sub(1 + random.place(600));
            let mut behind = table.split_off(start);
            random.damage(&mut behind);
            table.extend(behind);
        }
        _ => flip(&mut table, random),
    }
    let work = || apply(pair, table.clone(), &old, &blobs);
    let (made, took) = timed(pair.new.len(), work)?;
    match made? {
        Some(right) if what == 0 && right < pair.full.count() => {
            Err(Finding::new("a good delta makes another image", ""))
        }
        None if what == 0 => Err(Finding::new("a good delta is refused", "")),
        Some(right) => Ok(Outcome { taken: true, bytes: right as usize * CHUNK, took }),
        None => Ok(Outcome { taken: false, bytes: 0, took }),
    }
}

/// Changes a few bytes.
fn flip(bytes: &mut [u8], random: &mut Random) {
    for _ in 0..=random.below(4) {
        let place = random.place(bytes.len());
        if let Some(byte) = bytes.get_mut(place) {
            *byte = random.next() as u8;
        }
    }
}

/// How many chunks come out; `None` where the table is refused.
fn apply(pair: &Pair, table: Vec<u8>, old: &[u8], blobs: &[u8]) -> Result<Option<u64>, Finding> {
    let Ok(table) = DeltaTable::parse(table, "root", old.len() as u64, pair.stored, &pair.full) else {
        return Ok(None);
    };
    let mut base = InMemory::new(old, table.units());
    let mut maker = ChunkMaker::new(table.prediction());
    let mut out = vec![0; CHUNK];
    let mut right = 0;
    for chunk in table.chunks(&pair.full) {
        let from = chunk.stored_offset as usize;
        let stored = blobs.get(from..from + chunk.stored_len as usize);
        let stored = stored.ok_or_else(|| Finding::new("stored bytes outside of the blobs", &format!("{chunk:?}")))?;
        if let Ok(made) = maker.make(&chunk, stored, &mut base, &mut out) {
            let at = chunk.output.offset as usize;
            if pair.new.get(at..at + made.len()) != Some(made) {
                return Err(Finding::new("gave out bytes that are not proven", &format!("{chunk:?}")));
            }
            right += 1;
        }
    }
    Ok(Some(right))
}
