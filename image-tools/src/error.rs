//! What can be wrong with a bundle, each with a stable code, a hint and what is to be done.

use bascule_core::Disposition;

use crate::trust::TrustError;

/// A bundle that cannot be read or must not be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BundleError {
    /// The first bytes are not a bundle's.
    #[error("the input is not a bundle: its first bytes are {0}")]
    NotABundle(String),
    /// The input ended before the bundle did.
    #[error("the input ends at byte {at}, {missing} bytes too early")]
    Truncated {
        /// How many bytes the input had.
        at: u64,
        /// How many more the part being read needs.
        missing: u64,
    },
    /// Bytes follow the last blob.
    #[error("the input should end at byte {at}, and more follows")]
    TrailingBytes {
        /// Where the bundle ends by its own manifest.
        at: u64,
    },
    /// The format is newer than this reader.
    #[error("the bundle has format {found}, this program reads up to {known}")]
    FormatTooNew {
        /// The bundle's format version.
        found: u16,
        /// The newest this code knows.
        known: u16,
    },
    /// A length in the bundle is above its bound.
    #[error("{what} of {length} bytes is above the limit of {limit}")]
    TooLarge {
        /// Which part.
        what: &'static str,
        /// Its stated length.
        length: u64,
        /// The bound.
        limit: u64,
    },
    /// The fixed header or the framing of the metadata breaks a rule of the format.
    #[error("the bundle's framing is invalid: {0}")]
    Framing(&'static str),
    /// The manifest breaks a rule.
    #[error("the bundle's manifest is invalid: {0}")]
    ManifestInvalid(String),
    /// The manifest lists a key as critical that this code does not know.
    #[error("the bundle's manifest needs {0:?}, which this program does not know")]
    UnknownCritical(String),
    /// A chunk table is not the one the manifest names, or breaks a rule.
    #[error("the chunk table of payload {role:?} is invalid: {what}")]
    TableInvalid {
        /// The payload's role.
        role: String,
        /// Which rule it breaks.
        what: &'static str,
    },
    /// A chunk is made in a way that this code does not know.
    #[error("chunk {index} of payload {role:?} is of kind {kind}, which this program does not know")]
    UnknownChunkKind {
        /// The payload's role.
        role: String,
        /// The chunk's place in the table.
        index: u64,
        /// The number of the kind.
        kind: u8,
    },
    /// A chunk's bytes are not the signed ones.
    #[error("the chunk at byte {offset} of the image is damaged: {what}")]
    ChunkMismatch {
        /// Where its output begins in the image.
        offset: u64,
        /// What was found.
        what: &'static str,
    },
    /// Reading failed below us.
    #[error("reading the bundle failed at byte {at}")]
    Read {
        /// Where in the bundle.
        at: u64,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The bundle holds no full data for a payload, and they are wanted.
    #[error("the bundle holds no full data for payload {role:?}, only deltas")]
    NoFullData {
        /// The payload's role.
        role: String,
    },
    /// The file with a payload's full data cannot be opened.
    #[error("cannot open {name:?}, the full data beside the bundle")]
    FullData {
        /// The file's name.
        name: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A caller's mistake: wrong order of calls or too small a buffer.
    #[error("the bundle reader was used wrongly: {0}")]
    Misuse(&'static str),
    /// The bundle is not trusted.
    #[error(transparent)]
    Trust(#[from] TrustError),
}

impl BundleError {
    /// The stable code, as listed in docs/errors.md.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            BundleError::NotABundle(_) => "bundle.not-a-bundle",
            BundleError::Truncated { .. } => "bundle.truncated",
            BundleError::TrailingBytes { .. } => "bundle.trailing-bytes",
            BundleError::FormatTooNew { .. } => "bundle.format-too-new",
            BundleError::TooLarge { .. } => "bundle.too-large",
            BundleError::Framing(_) => "bundle.framing",
            BundleError::ManifestInvalid(_) => "bundle.manifest-invalid",
            BundleError::UnknownCritical(_) => "bundle.unknown-critical",
            BundleError::TableInvalid { .. } => "bundle.table-invalid",
            BundleError::UnknownChunkKind { .. } => "bundle.unknown-chunk-kind",
            BundleError::ChunkMismatch { .. } => "bundle.chunk-mismatch",
            BundleError::Read { .. } => "bundle.read-failed",
            BundleError::NoFullData { .. } => "bundle.no-full-data",
            BundleError::FullData { .. } => "bundle.full-data-missing",
            BundleError::Misuse(_) => "bundle.reader-misused",
            BundleError::Trust(error) => error.code(),
        }
    }

    /// What a person can do about it.
    #[must_use]
    pub fn hint(&self) -> String {
        match self {
            BundleError::NotABundle(_) => {
                "give a file made by `bascule-image bundle create`; an address may have answered with a web page".into()
            }
            BundleError::Truncated { .. } | BundleError::TrailingBytes { .. } => {
                "copy or publish the whole bundle again, and compare its size with the original's".into()
            }
            BundleError::FormatTooNew { .. }
            | BundleError::UnknownCritical(_)
            | BundleError::UnknownChunkKind { .. } => {
                "update to a version with a newer agent first, or make the bundle with an older bascule-image".into()
            }
            BundleError::TooLarge { .. } => "no bundle made by `bascule-image` is like this: get it again".into(),
            BundleError::Framing(_) | BundleError::TableInvalid { .. } | BundleError::ChunkMismatch { .. } => {
                "the file was damaged on its way: copy or publish it again".into()
            }
            BundleError::ManifestInvalid(_) => "make the bundle again with `bascule-image bundle create`".into(),
            BundleError::Read { .. } => "check the disk, the link or the server that the bundle is read from".into(),
            BundleError::NoFullData { .. } => {
                "install a bundle with full data, or one whose deltas start from the running system".into()
            }
            BundleError::FullData { .. } => {
                "publish the .blobs file in the folder of the bundle; a bundle with --full beside cannot be piped"
                    .into()
            }
            BundleError::Misuse(_) => "this is a fault in Bascule: please report it".into(),
            BundleError::Trust(error) => error.hint(),
        }
    }

    /// Whether to retry, to give this bundle up, or to wait for a person.
    #[must_use]
    pub fn disposition(&self) -> Disposition {
        match self {
            BundleError::Read { .. }
            | BundleError::FullData { .. }
            | BundleError::Truncated { .. }
            | BundleError::ChunkMismatch { .. }
            | BundleError::TableInvalid { .. }
            | BundleError::Framing(_) => Disposition::Retry,
            BundleError::FormatTooNew { .. }
            | BundleError::ManifestInvalid(_)
            | BundleError::UnknownCritical(_)
            | BundleError::NoFullData { .. }
            | BundleError::UnknownChunkKind { .. } => Disposition::GiveUp,
            BundleError::NotABundle(_)
            | BundleError::TrailingBytes { .. }
            | BundleError::TooLarge { .. }
            | BundleError::Misuse(_) => Disposition::Person,
            BundleError::Trust(error) => error.disposition(),
        }
    }
}
