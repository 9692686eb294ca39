//! Why a delta file could not be made or applied.

use std::io;
use std::path::PathBuf;

use crate::error::BundleError;
use crate::limits::{DELTA_FILE_VERSION, MAX_CHUNK_BYTES, MIN_CHUNK_BYTES};

/// A delta file that could not be made or applied.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DeltaError {
    /// The first bytes are not a delta file's.
    #[error("the input is not a delta file: its first bytes are {0}")]
    NotADelta(String),
    /// Its format is newer than this code.
    #[error("the delta file has format {found}, this program reads up to {DELTA_FILE_VERSION}")]
    FormatTooNew {
        /// The file's format version.
        found: u16,
    },
    /// One of its chunks is made in a way that this code does not know.
    #[error("chunk {index} of the delta file is of kind {kind}, which this program does not know")]
    UnknownKind {
        /// The chunk's place in the table.
        index: u64,
        /// The number of the kind.
        kind: u8,
    },
    /// It breaks a rule of the format.
    #[error("the delta file is damaged: {0}")]
    Damaged(String),
    /// A part of it cannot be read or used.
    #[error("the delta file cannot be used")]
    Part(#[source] BundleError),
    /// The old image has fewer bytes than the one the delta was made against.
    #[error("{old:?} has {found} bytes, the image that the delta was made against has {wanted}")]
    OldTooShort {
        /// The old image.
        old: PathBuf,
        /// How long it is.
        found: u64,
        /// How long it should be.
        wanted: u64,
    },
    /// The old image holds other bytes than the one the delta was made against.
    #[error(
        "{old:?} is not the image that the delta was made against: of the {bytes} bytes that chunk {index} is made from, \
         the first at byte {at}, some differ"
    )]
    WrongBase {
        /// The old image.
        old: PathBuf,
        /// The chunk that could not be made.
        index: u64,
        /// Where its first source range begins.
        at: u64,
        /// The length of its source ranges together.
        bytes: u64,
    },
    /// The chunk size is out of bounds.
    #[error("a chunk size of {0} is not a multiple of {MIN_CHUNK_BYTES} up to {MAX_CHUNK_BYTES} bytes")]
    ChunkSize(u32),
    /// A file cannot be read or written.
    #[error("{what} {path:?} failed")]
    File {
        /// What was being done.
        what: &'static str,
        /// To which file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

impl From<BundleError> for DeltaError {
    fn from(error: BundleError) -> Self {
        match error {
            BundleError::TableInvalid { what, .. } => DeltaError::Damaged(what.into()),
            BundleError::UnknownChunkKind { index, kind, .. } => DeltaError::UnknownKind { index, kind },
            BundleError::ManifestInvalid(what) => DeltaError::Damaged(what),
            other => DeltaError::Part(other),
        }
    }
}

impl DeltaError {
    /// The stable code, as listed in docs/errors.md.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            DeltaError::NotADelta(_) => "delta.not-a-delta",
            DeltaError::FormatTooNew { .. } | DeltaError::UnknownKind { .. } => "delta.format-too-new",
            DeltaError::Damaged(_) | DeltaError::Part(_) => "delta.damaged",
            DeltaError::OldTooShort { .. } | DeltaError::WrongBase { .. } => "delta.wrong-base",
            DeltaError::ChunkSize(_) => "delta.chunk-size",
            DeltaError::File { .. } => "delta.file",
        }
    }

    /// What a person can do about it.
    #[must_use]
    pub fn hint(&self) -> String {
        match self {
            DeltaError::NotADelta(_) => "give a file made by `bascule-image delta`".into(),
            DeltaError::FormatTooNew { .. } | DeltaError::UnknownKind { .. } => {
                "use a newer bascule-image, or make the delta with this one".into()
            }
            DeltaError::Damaged(_) | DeltaError::Part(_) => "it was damaged on its way: copy or make it again".into(),
            DeltaError::OldTooShort { .. } | DeltaError::WrongBase { .. } => {
                "give the very image that was the OLD of `bascule-image delta`: one that was mounted writable since is \
                 another"
                    .into()
            }
            DeltaError::ChunkSize(_) => "leave --chunk-size away".into(),
            DeltaError::File { .. } => "check the path, its permissions and free space".into(),
        }
    }
}
