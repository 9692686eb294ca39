//! What an update of the demo changes: a map of many megabytes and a folder of notes about it.
//!
//! Of the map's second edition a quarter is new, in many places, so that a delta from the first system to the second is
//! some megabytes and not a few kilobytes. It is noise, which no compressor makes smaller, and the same in every build.

use std::fmt::Write as _;
use std::path::Path;

use anyhow::{Context, Result};

use super::demo::{PLAIN, Version, write};

const MAP_BYTES: usize = 32 << 20;
/// In each stretch of this many bytes, one piece changes.
const STRETCH: usize = 256 << 10;
/// So long is the piece that changes.
const PIECE: usize = STRETCH / 4;
/// Notes in the first edition.
const NOTES: u64 = 40;

/// Writes the edition that a version carries. The systems after the second carry none: their bundles hold no delta, and
/// are quicker to install without.
pub(super) fn write_places(overlay: &Path, version: &Version) -> Result<()> {
    if version.order > 2 {
        return Ok(());
    }
    let folder = "usr/share/demo/places";
    // The second edition has one note more, and every eighth has grown.
    for note in 1..NOTES + version.order {
        let mut text = String::new();
        let lines = if note % 8 == 0 { 12 + version.order } else { 12 };
        for line in 1..=lines {
            writeln!(text, "place {note}, line {line}: {:016x}", Noise::new(note * 100 + line).next())?;
        }
        write(overlay, &format!("{folder}/note-{note:02}.txt"), PLAIN, &text)?;
    }
    let map = overlay.join(folder).join("map.bin");
    std::fs::write(&map, map_of(version.order)).with_context(|| format!("cannot write {}", map.display()))
}

/// The bytes of one edition of the map.
fn map_of(edition: u64) -> Vec<u8> {
    let mut map = vec![0; MAP_BYTES];
    Noise::new(1).fill(&mut map);
    if edition > 1 {
        let mut noise = Noise::new(edition);
        for stretch in map.chunks_mut(STRETCH) {
            // On no boundary of blocks.
            let start = noise.next() as usize % (STRETCH - PIECE);
            if let Some(piece) = stretch.get_mut(start..start + PIECE) {
                noise.fill(piece);
            }
        }
    }
    map
}

/// Numbers that look like chance and always come in the same order: the generator `SplitMix64`.
struct Noise(u64);

impl Noise {
    fn new(seed: u64) -> Noise {
        Noise(seed.wrapping_mul(0xd1b5_4a32_d192_ed03))
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn fill(&mut self, bytes: &mut [u8]) {
        for piece in bytes.chunks_mut(8) {
            let next = self.next().to_le_bytes();
            piece.copy_from_slice(next.get(..piece.len()).unwrap_or_default());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn about_a_quarter_of_the_second_edition_is_new_and_it_is_the_same_every_time() {
        let (first, second) = (map_of(1), map_of(2));
        let new = first.iter().zip(&second).filter(|(a, b)| a != b).count();
        assert!((MAP_BYTES / 5..=MAP_BYTES / 4).contains(&new), "{new} bytes differ");
        assert_eq!(second, map_of(2));
    }
}
