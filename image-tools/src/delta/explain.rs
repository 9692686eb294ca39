//! Where the bytes of a delta went: by file, and by what they are. Only on the developer's host.
//!
//! ```text
//! new image -> files and their sections -> labels of stretches
//! each chunk's patch -> what each byte of the output cost, about -> the chunk's stored bytes, shared out by label
//! ```
//! A stored byte cannot be traced to one byte of the output, for a patch is packed as a whole. So each output byte gets a
//! weight (none where it is equal to the old one), and a chunk's stored bytes are shared out by these. The sums are exact
//! over all labels.

use std::collections::BTreeMap;

use serde::Serialize;

use super::encode::Encoded;
use super::patch::Patcher;
use super::predict::ext4::Extent;
use super::predict::{self, elf};
use super::repack::find::{Found, Unpacked};
use super::repack::{Codec, squashfs};
use super::table::Way;

/// What bytes of a file are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Matter {
    /// Instructions.
    Code,
    /// Data of programs.
    Data,
    /// Relocations of programs.
    Relocations,
    /// Symbols and their names.
    Symbols,
    /// Tables to unwind the stack.
    Frames,
    /// Type information.
    Types,
    /// Compressed data that are sent as they are.
    Compressed,
    /// Files that are no programs.
    Other,
    /// What is in no file: the file system's own.
    Filesystem,
    /// How chunks are made: the delta's table, with its prediction.
    Table,
}

/// What one file cost.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct FileCost {
    /// Its path in the new image, or what it is called that is in no file.
    pub path: String,
    /// Length of the file in bytes.
    pub length: u64,
    /// Bytes of the delta.
    pub bytes: u64,
    /// These by what they are.
    pub matters: BTreeMap<Matter, u64>,
}

/// Where the bytes of a delta went.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Explanation {
    /// Bytes of the delta by what they are.
    pub matters: BTreeMap<Matter, u64>,
    /// Files that cost anything, the dearest first.
    pub files: Vec<FileCost>,
    /// What an integrator could change, where compressed data are more than a twentieth of the delta.
    pub advice: Option<Advice>,
}

/// What would make the next delta smaller.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Advice {
    /// Files that are compressed in the image should not be.
    StoreFilesPlain,
    /// The squashfs should be made by another libzstd: of this one's blocks not all could be packed again.
    OtherLibzstd,
    /// The squashfs should be one whose blocks can be packed again: none of this one's can.
    OtherSquashfs,
}

/// A stretch of the new image, or of what its units hold, with one label.
#[derive(Debug, Clone, Copy)]
struct Stretch {
    start: u64,
    end: u64,
    label: usize,
}

/// The files of the new image and what is in them.
#[derive(Debug, Default)]
pub(super) struct Labels {
    /// In order and without overlap. What lies between is the file system's.
    stretches: Vec<Stretch>,
    /// File and matter of each label; the first is the file system.
    labels: Vec<(usize, Matter)>,
    files: Vec<(String, u64)>,
    /// What to say if compressed data cost much.
    advice: Option<Advice>,
}

/// What is charged to each label.
pub(super) type Shares = BTreeMap<usize, f64>;

/// The weight of a byte that differs, of a new one, and of an operation.
const DIFFERENCE: f64 = 4.0;
const FRESH: f64 = 3.0;
const OPERATION: f64 = 8.0;

impl Labels {
    /// Finds the files of `image`, and those among what its units hold, which lies at `behind` of the long image.
    pub(super) fn new(image: &[u8], found: &Found, behind: u64) -> Self {
        let mut labels = Labels::default();
        labels.label("(file system)".into(), 0, Matter::Filesystem);
        let files = predict::named_files(image).unwrap_or_default();
        let mut owners = Vec::new();
        for (path, extents) in files {
            let length = extents.iter().map(|extent| extent.length).sum();
            let number = labels.files.len();
            labels.files.push((path, length));
            owners.extend(extents.iter().map(|extent| (extent.start, extent.start + extent.length, number)));
            labels.add_file(image, &extents, number);
        }
        owners.sort_unstable();
        for file in &found.files {
            let owner = match &file.path {
                Some(path) => {
                    labels.files.push((path.clone(), file.extents.iter().map(|extent| extent.length).sum()));
                    labels.files.len() - 1
                }
                None => {
                    let first = file.extents.first().and_then(|extent| found.unit(extent.start as usize));
                    let start = first.and_then(|unit| unit.stretches.first()).map_or(0, |stretch| stretch.start);
                    let before = owners.partition_point(|(from, ..)| *from <= start).checked_sub(1);
                    before.and_then(|number| owners.get(number)).map_or(0, |(.., file)| *file)
                }
            };
            let before = labels.stretches.len();
            labels.add_file(&found.content, &file.extents, owner);
            for stretch in labels.stretches.iter_mut().skip(before) {
                stretch.start += behind;
                stretch.end += behind;
            }
            if file.path.is_some() {
                labels.add_blocks(found, file, owner);
            }
        }
        labels.stretches.sort_unstable_by_key(|stretch| stretch.start);
        labels.advice = match image.starts_with(squashfs::MAGIC_BYTES) {
            true if squashfs::read(image).is_none() => Some(Advice::OtherSquashfs),
            // Nobody asked for it, the old image is another, or nothing is packed.
            true if found.units.iter().all(|unit| unit.codec == Codec::Plain) => None,
            true => Some(Advice::OtherLibzstd),
            false => Some(Advice::StoreFilesPlain),
        };
        labels
    }

    /// Adds the packed blocks of a file: what is sent of these is what could not be packed again. A block that several
    /// files share is charged to the first.
    fn add_blocks(&mut self, found: &Found, file: &Unpacked, owner: usize) {
        let (packed, plain) = (self.matter(owner, Matter::Compressed), self.matter(owner, Matter::Other));
        let units = |extent: &Extent| {
            let (start, end) = (extent.start as usize, (extent.start + extent.length) as usize);
            let first = found.units.partition_point(|unit| unit.at < start);
            found.units.iter().skip(first).take_while(move |unit| unit.at < end)
        };
        for unit in file.extents.iter().flat_map(units) {
            let label = if unit.codec == Codec::Plain { plain } else { packed };
            let stretches =
                unit.stretches.iter().map(|stretch| (stretch.start, stretch.start + u64::from(stretch.length)));
            self.stretches.extend(stretches.map(|(start, end)| Stretch { start, end, label }));
        }
    }

    fn label(&mut self, path: String, length: u64, matter: Matter) {
        self.files.push((path, length));
        self.labels.push((self.files.len() - 1, matter));
    }

    fn matter(&mut self, file: usize, matter: Matter) -> usize {
        let last = self.labels.iter().rposition(|label| *label == (file, matter));
        last.unwrap_or_else(|| {
            self.labels.push((file, matter));
            self.labels.len() - 1
        })
    }

    /// Adds the stretches of a file in `extents` of `image`.
    fn add_file(&mut self, image: &[u8], extents: &[Extent], file: usize) {
        let bytes = elf::content(image, extents);
        let mut cuts: Vec<(u64, u64, Matter)> = elf::parts(&bytes).unwrap_or_default();
        let rest = if is_compressed(&bytes) {
            Matter::Compressed
        } else if cuts.is_empty() {
            Matter::Other
        } else {
            Matter::Data
        };
        cuts.sort_unstable();
        let mut whole = Vec::new();
        let mut at = 0;
        for (from, to, matter) in cuts {
            let from = from.max(at);
            if from < to {
                whole.extend([(at, from, rest), (from, to, matter)]);
                at = to;
            }
        }
        whole.push((at, bytes.len() as u64, rest));
        for (from, to, matter) in whole {
            let label = self.matter(file, matter);
            for extent in extents {
                let (first, end) = (from.max(extent.at), to.min(extent.at + extent.length));
                if first < end {
                    let (start, end) = (extent.start + (first - extent.at), extent.start + (end - extent.at));
                    self.stretches.push(Stretch { start, end, label });
                }
            }
        }
    }

    /// Shares out the stored bytes of a chunk at `offset`, `len` bytes long.
    pub(super) fn share(&self, encoded: &Encoded, offset: u64, len: usize, patcher: &mut Patcher) -> Shares {
        let mut weights = Shares::new();
        let mut stored = encoded.stored.as_slice();
        if encoded.way == Way::Packed {
            for part in &encoded.parts {
                let mut at = part.at;
                let mut left = part.part.content as usize;
                for (piece, _) in &part.pieces {
                    let len = left.min(crate::limits::MAX_CHUNK_BYTES as usize);
                    let (own, behind) = stored.split_at_checked(piece.stored_len(len)).unwrap_or_default();
                    let shares = self.share_simple(piece.way, own, at, len, patcher);
                    shares.into_iter().for_each(|(label, bytes)| *weights.entry(label).or_default() += bytes);
                    (stored, at, left) = (behind, at + len as u64, left - len);
                }
            }
            return weights;
        }
        self.share_simple(encoded.way, stored, offset, len, patcher)
    }

    fn share_simple(&self, way: Way, stored: &[u8], offset: u64, len: usize, patcher: &mut Patcher) -> Shares {
        let mut weights = Shares::new();
        let mut charge = |from: u64, to: u64, weight: f64| self.charge(&mut weights, from, to, weight);
        match way {
            Way::Zeroes | Way::Copied | Way::Packed => {}
            Way::Raw | Way::Zstd => charge(offset, offset + len as u64, FRESH),
            Way::Patched { .. } => {
                if patcher.take(stored, len as u64).is_ok() {
                    patcher.weigh(&mut |at, count, weight| charge(offset + at, offset + at + count, weight));
                }
            }
        }
        let sum: f64 = weights.values().sum();
        if sum == 0.0 && !stored.is_empty() {
            self.charge(&mut weights, offset, offset + len as u64, FRESH);
        }
        let sum: f64 = weights.values().sum::<f64>().max(1.0);
        weights.values_mut().for_each(|weight| *weight *= stored.len() as f64 / sum);
        weights
    }

    /// Charges a weight for each byte to whom it belongs.
    fn charge(&self, weights: &mut Shares, from: u64, to: u64, weight: f64) {
        let mut at = from;
        let mut place = self.stretches.partition_point(|stretch| stretch.end <= from);
        while at < to {
            let (end, label) = match self.stretches.get(place) {
                Some(stretch) if stretch.start <= at => {
                    place += 1;
                    (stretch.end.min(to), stretch.label)
                }
                Some(stretch) => (stretch.start.min(to), 0),
                None => (to, 0),
            };
            *weights.entry(label).or_default() += weight * (end.saturating_sub(at)) as f64;
            at = end.max(at + 1);
        }
    }

    /// What it comes to, with a table of so many bytes.
    pub(super) fn explain(&self, shares: &Shares, table: u64) -> Explanation {
        let mut made = Explanation::default();
        let mut files: BTreeMap<usize, FileCost> = BTreeMap::new();
        for (label, bytes) in shares {
            let Some((file, matter)) = self.labels.get(*label) else { continue };
            let bytes = bytes.round() as u64;
            let Some((path, length)) = self.files.get(*file).filter(|_| bytes > 0) else { continue };
            *made.matters.entry(*matter).or_default() += bytes;
            let cost = files.entry(*file).or_insert_with(|| FileCost {
                path: path.clone(),
                length: *length,
                bytes: 0,
                matters: BTreeMap::new(),
            });
            cost.bytes += bytes;
            *cost.matters.entry(*matter).or_default() += bytes;
        }
        made.matters.insert(Matter::Table, table);
        let of = |matter| made.matters.get(&matter).copied().unwrap_or_default();
        // Nothing is known of the files of a squashfs that cannot be read: all of it is the file system's.
        let is_sealed = self.advice == Some(Advice::OtherSquashfs);
        let compressed = of(if is_sealed { Matter::Filesystem } else { Matter::Compressed });
        made.advice = self.advice.filter(|_| compressed > made.matters.values().sum::<u64>() / 20);
        made.files = files.into_values().collect();
        made.files.sort_by(|one, other| other.bytes.cmp(&one.bytes).then_with(|| one.path.cmp(&other.path)));
        made
    }
}

impl Matter {
    /// Its name for people.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Matter::Code => "code",
            Matter::Data => "data",
            Matter::Relocations => "relocations",
            Matter::Symbols => "symbols",
            Matter::Frames => "frames",
            Matter::Types => "types",
            Matter::Compressed => "compressed",
            Matter::Other => "other files",
            Matter::Filesystem => "file system",
            Matter::Table => "table",
        }
    }
}

/// Whether a file begins as compressed ones do: gzip, xz, zstd, bzip2, LZ4.
fn is_compressed(bytes: &[u8]) -> bool {
    let magics: [&[u8]; 6] = [
        &[0x1f, 0x8b],
        &[0xfd, b'7', b'z', b'X', b'Z', 0],
        &[0x28, 0xb5, 0x2f, 0xfd],
        b"BZh",
        &[0x04, 0x22, 0x4d, 0x18],
        &[0x02, 0x21, 0x4c, 0x18],
    ];
    magics.iter().any(|magic| bytes.starts_with(magic))
}

impl Patcher {
    /// Tells weights of stretches of the output that the patch taken last makes: place, length, weight of each byte.
    fn weigh(&self, tell: &mut dyn FnMut(u64, u64, f64)) {
        let mut at = 0u64;
        let mut differences = self.differences();
        for operation in self.operations() {
            tell(at, 1, OPERATION);
            let (own, behind) = differences.split_at_checked(operation.copy as usize).unwrap_or_default();
            for (place, difference) in own.iter().enumerate() {
                if *difference != 0 {
                    tell(at + place as u64, 1, DIFFERENCE);
                }
            }
            differences = behind;
            at += operation.copy;
            if operation.new > 0 {
                tell(at, operation.new, FRESH);
            }
            at += operation.new;
        }
    }
}
