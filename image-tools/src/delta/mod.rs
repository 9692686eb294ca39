//! Deltas: an image made of another one that the device already runs, chunk by chunk.
//!
//! ```text
//! encoder (host)                                        applier (device)
//! OLD -> BaseIndex: blocks, seeds                       delta table -> ranges of the booted slot -> SHA-256 ?
//! NEW -> chunk -> align -> operations -> pack               | equal: copy, or patch          | not: the full chunk
//!             \-> record: ranges, SHA-256 of them           v
//!                                                       output -> SHA-256 of the signed chunk table ? -> target slot
//! ```
//! Each chunk stands for itself, so chunks are made in parallel, in bounded memory, and again after a power cut.
//!
//! | module | subject |
//! |---|---|
//! | [`table`] | delta tables: one record per chunk |
//! | [`patch`] | a chunk as differences to its source: the decoder |
//! | [`apply`] | one chunk's output, made and proven |
//! | [`predict`] | addresses in a source, moved to where they probably are |
//! | [`repack`] | compressed data, made of what they hold |
//! | [`encode`] | one chunk of a new image as a record and stored bytes: the encoder |
//! | [`proof`] | what was encoded is made as a device makes it (host) |
//! | [`image`] | a whole image against a base, on all cores |
//! | [`index`] | the base in memory |
//! | [`file`](mod@file) | a delta on its own, not signed |
//! | [`whole`] | makes and applies delta files |
//! | [`explain`] | where the bytes of a delta went (host) |
//! | [`error`] | why one could not be made or applied |

mod align;
pub mod apply;
pub mod encode;
pub mod error;
pub mod explain;
pub mod file;
pub mod image;
pub mod index;
pub mod patch;
pub mod predict;
mod proof;
pub mod repack;
pub mod table;
mod varint;
pub mod whole;

pub use apply::{Base, ChunkMaker, source_matches};
pub use error::DeltaError;
pub use file::DeltaFile;
pub use patch::Patcher;
pub use predict::Prediction;
pub use repack::{Units, read_ranges};
pub use table::{BaseRange, DeltaChunk, DeltaTable, Transform, Way};
