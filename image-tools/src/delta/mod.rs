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

mod align;
pub mod apply;
pub mod encode;
pub mod image;
pub mod index;
pub mod patch;
pub mod table;
mod varint;

pub use apply::{ChunkMaker, source_matches};
pub use patch::Patcher;
pub use table::{BaseRange, DeltaChunk, DeltaTable, Way};
