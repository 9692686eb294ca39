//! Every bound on what comes from outside, in one place.
//!
//! The daemon's memory promise is built on these numbers: what one bundle may make a reader hold at once is
//! [`MAX_METADATA_BYTES`] (while trust is checked), [`MAX_MANIFEST_BYTES`], [`MAX_TABLES_BYTES`] and a few chunks.

/// The newest format this code reads, and writes where a bundle needs it.
pub const FORMAT_VERSION: u16 = 2;
/// The format of bundles without deltas, which every agent reads.
pub const PLAIN_FORMAT_VERSION: u16 = 1;
/// Most bytes of one chunk's output, and the default chunk size.
pub const MAX_CHUNK_BYTES: u32 = 1 << 20;
/// Fewest bytes of a chunk a writer may be asked for; a shorter last chunk is allowed.
pub const MIN_CHUNK_BYTES: u32 = 4096;
/// Largest zstd window a frame may ask for, in bytes. Frames are decoded in one piece, so this bounds nothing but
/// what later decoders of the same bundles must be able to hold.
pub const MAX_ZSTD_WINDOW_BYTES: u64 = 8 << 20;
/// Most bytes of the whole metadata section.
pub const MAX_METADATA_BYTES: u64 = 1 << 20;
/// Most bytes of one `N.root.json`.
pub const MAX_ROOT_BYTES: u64 = 64 << 10;
/// Most root versions in one bundle.
pub const MAX_ROOTS: usize = 64;
/// Most bytes of `timestamp.json`.
pub const MAX_TIMESTAMP_BYTES: u64 = 16 << 10;
/// Most bytes of `snapshot.json`.
pub const MAX_SNAPSHOT_BYTES: u64 = 64 << 10;
/// Most bytes of `targets.json`.
pub const MAX_TARGETS_BYTES: u64 = 512 << 10;
/// Most bytes of the manifest.
pub const MAX_MANIFEST_BYTES: u64 = 64 << 10;
/// Deepest nesting of the manifest's JSON.
pub const MAX_JSON_DEPTH: usize = 16;
/// Most payloads in one bundle.
pub const MAX_PAYLOADS: usize = 16;
/// Most entries of a list in the manifest.
pub const MAX_LIST: usize = 64;
/// Most characters of a free text in the manifest.
pub const MAX_TEXT: usize = 128;
/// Most characters of a name.
pub const MAX_NAME: usize = 64;
/// Most bytes of all chunk tables together.
pub const MAX_TABLES_BYTES: u64 = 8 << 20;
/// Largest image of one payload: 1 TiB.
pub const MAX_PAYLOAD_BYTES: u64 = 1 << 40;
/// Most bytes of a `root.json` on disk, or of the store of accepted metadata.
pub const MAX_STORE_BYTES: u64 = 4 << 20;
/// The unit in bytes in which source ranges of a delta are counted.
pub const BASE_BLOCK_BYTES: u64 = 4096;
/// Most bytes that one chunk of a delta may read of the booted slot.
pub const MAX_SOURCE_BYTES: u64 = 2 << 20;
/// Most source ranges of one chunk: as many as blocks fit.
pub const MAX_RANGES: u64 = MAX_SOURCE_BYTES / BASE_BLOCK_BYTES;
/// Most bytes of a patch's control stream.
pub const MAX_CONTROL_BYTES: u32 = 256 << 10;
/// Most deltas of one payload: as many base images it can be installed over without the full data.
pub const MAX_DELTAS: usize = 32;
/// The newest format of delta files this code reads, and the one it writes.
pub const DELTA_FILE_VERSION: u16 = 1;
/// Most bytes of a delta file's head.
pub const MAX_DELTA_HEAD_BYTES: u64 = 4 << 10;
/// Most executables of a base image that a delta predicts.
pub const MAX_PREDICTED_FILES: usize = 1 << 13;
/// Most sections of them, and most stretches of the image that these lie in: 40 bytes of memory for each pair.
pub const MAX_AREAS: usize = 1 << 15;
/// Most pieces that moved by a distance of their own: 8 bytes of memory each.
pub const MAX_PIECES: usize = 1 << 17;
/// Most section symbols of object files that a delta predicts: 8 bytes of memory each.
pub const MAX_SECTION_SYMBOLS: usize = 1 << 15;
/// Most units of compressed data in a base image that a delta reads, and most stretches that these lie in: 40 bytes of
/// memory for each pair.
pub const MAX_UNITS: usize = 1 << 15;
/// Longest content of one unit: a block of the LZ4 frames in kernels. It is not in memory as a whole.
pub const MAX_UNIT_BYTES: u32 = 8 << 20;
/// Most bytes that are unpacked for the source of one chunk, or of one piece of it: to read any of a unit, it is unpacked
/// from its begin on. A source takes them one after the other, so this bounds time, not memory.
pub const MAX_UNPACKED_BYTES: u64 = 64 << 20;
/// Longest content of a unit that is packed by zstd, and longest packed: a block of squashfs as it is made where nothing
/// else is said. Packing one takes 3 MiB beside at the high levels; blocks of 1 MiB would take 20.
pub const MAX_BLOCK_BYTES: u32 = 128 << 10;
/// Longest content of one part of a packed chunk, which is in memory, and longest content once it is packed.
pub const MAX_PART_BYTES: u32 = 2 << 20;
/// Most parts of one chunk.
pub const MAX_PARTS: u64 = 256;
