//! The bundle format, its trust, and disk images; the tool `bascule-image`.
//!
//! | module | subject |
//! |---|---|
//! | [`format`](mod@format) | the fixed header and the framing of the signed metadata |
//! | [`manifest`] | what the signed manifest says |
//! | [`table`] | chunk tables |
//! | [`decode`] | one chunk's output, proven |
//! | [`delta`] | chunks made of what the device already has |
//! | [`input`] | where its bytes come from |
//! | [`read`] | a bundle read forwards in bounded memory |
//! | [`trust`] | The Update Framework, pinned root, store of accepted metadata |
//! | [`keys`] | signing keys on the developer's host |
//! | [`release`] | `release.toml`: what a root says it is |
//! | [`write`](mod@write) | makes bundles |
//! | [`disk`] | makes A/B disk images and ext4 images |
//! | [`limits`] | every bound on what comes from outside |
//! | [`error`] | what can be wrong with a bundle, with codes and hints |

mod blocking;
pub mod decode;
pub mod delta;
pub mod disk;
pub mod error;
pub mod format;
pub mod input;
pub mod keys;
mod layout;
pub mod limits;
pub mod manifest;
mod output;
pub mod read;
pub mod release;
mod strict_json;
pub mod table;
pub mod trust;
pub mod write;

pub use bascule_core::Digest;
pub use decode::Decoder;
pub use delta::{
    Base, ChunkMaker, DeltaChunk, DeltaError, DeltaFile, DeltaTable, Patcher, Prediction, Transform, Units, Way,
    read_ranges, source_matches,
};
pub use error::BundleError;
pub use input::{BundleFile, BundleRead, ForwardOnly};
pub use jiff::Timestamp;
pub use manifest::{Manifest, Payload};
pub use read::{BundleReader, Opening};
pub use table::{Chunk, ChunkKind, ChunkTable};
pub use trust::{Accepted, TrustError, TrustStore};
