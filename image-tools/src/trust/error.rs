//! Why a bundle is not trusted.

use std::path::PathBuf;

use bascule_core::{Digest, Disposition};
use tough::schema::RoleType;

/// A bundle that this device does not trust, or a store of trust that cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TrustError {
    /// The device has no pinned key.
    #[error("this device has no pinned root.json at {0:?}, so it trusts no bundle")]
    NoRoot(PathBuf),
    /// The pinned `root.json` cannot be read or is not validly signed by its own keys.
    #[error("the pinned root.json at {path:?} cannot be used")]
    RootDamaged {
        /// Where it is.
        path: PathBuf,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A role's metadata is not signed by enough keys that the trusted root names.
    #[error("the bundle's {role} metadata is not signed by the keys that this device trusts")]
    WrongSignature {
        /// The role.
        role: RoleType,
        /// Why.
        #[source]
        source: Box<tough::error::Error>,
    },
    /// The bundle's chain of roots does not continue the trusted one.
    #[error("the bundle's chain of root keys does not continue the one that this device trusts")]
    RootChain {
        /// Why.
        #[source]
        source: Box<tough::error::Error>,
    },
    /// A role's metadata has expired.
    #[error("the bundle's {role} metadata expired at {expires}, it is {now}")]
    Expired {
        /// The role.
        role: RoleType,
        /// When it expired.
        expires: jiff::Timestamp,
        /// The time it was held against.
        now: jiff::Timestamp,
    },
    /// The device accepted newer metadata before.
    #[error("the bundle's metadata is older than what this device accepted before")]
    OlderMetadata {
        /// Why.
        #[source]
        source: Box<tough::error::Error>,
    },
    /// The parts of the bundle do not belong together.
    #[error("the bundle's signed parts do not belong together")]
    Mismatch {
        /// Why.
        #[source]
        source: Box<tough::error::Error>,
    },
    /// The signed metadata does not list this manifest.
    #[error("the bundle's signed metadata does not list this manifest ({0})")]
    NotListed(Digest),
    /// Metadata that is not of its form.
    #[error("the bundle's metadata is invalid")]
    MetadataInvalid {
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The store of accepted metadata is damaged.
    #[error("the store of accepted metadata at {path:?} is damaged")]
    StoreDamaged {
        /// Where it is.
        path: PathBuf,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The store of accepted metadata, or a scratch directory for the check, cannot be read or written.
    #[error("{what} {path:?} failed")]
    Storage {
        /// What was being done.
        what: &'static str,
        /// To which file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The check itself could not run.
    #[error("checking the bundle's signatures failed")]
    Internal {
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

impl TrustError {
    /// The stable code, as listed in docs/errors.md.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            TrustError::NoRoot(_) => "trust.no-root",
            TrustError::RootDamaged { .. } => "trust.root-damaged",
            TrustError::WrongSignature { .. } => "trust.wrong-signature",
            TrustError::RootChain { .. } => "trust.root-chain",
            TrustError::Expired { .. } => "trust.expired",
            TrustError::OlderMetadata { .. } => "trust.older-metadata",
            TrustError::Mismatch { .. } => "trust.mismatch",
            TrustError::NotListed(_) => "trust.not-listed",
            TrustError::MetadataInvalid { .. } => "trust.metadata-invalid",
            TrustError::StoreDamaged { .. } => "trust.store-damaged",
            TrustError::Storage { .. } => "trust.store-failed",
            TrustError::Internal { .. } => "trust.internal",
        }
    }

    /// What a person can do about it.
    #[must_use]
    pub fn hint(&self) -> String {
        match self {
            TrustError::NoRoot(path) => {
                format!("put the root.json made by `bascule-image keys init` at {}", path.display())
            }
            TrustError::RootDamaged { path, .. } => format!("restore {} from your keys' directory", path.display()),
            TrustError::WrongSignature { .. } | TrustError::RootChain { .. } => {
                "sign the bundle with the keys whose root.json this device pins; keys may also have been revoked since"
                    .into()
            }
            TrustError::Expired { .. } => {
                "check the device's clock; if it is right, make the bundle again so that it is signed anew".into()
            }
            TrustError::OlderMetadata { .. } => {
                "get the newest bundle; to go back to an older system, publish it in a newly made bundle".into()
            }
            TrustError::Mismatch { .. } | TrustError::NotListed(_) | TrustError::MetadataInvalid { .. } => {
                "the file was damaged or put together from several: copy or publish the whole bundle again".into()
            }
            TrustError::StoreDamaged { path, .. } => {
                format!("remove {}: trust starts again from the pinned root.json", path.display())
            }
            TrustError::Storage { .. } => "check free space and permissions of that place".into(),
            TrustError::Internal { .. } => "try again; if it stays, report it".into(),
        }
    }

    /// Whether to retry, to give this bundle up, or to wait for a person.
    #[must_use]
    pub fn disposition(&self) -> Disposition {
        match self {
            TrustError::Storage { .. } | TrustError::Internal { .. } => Disposition::Retry,
            TrustError::OlderMetadata { .. } => Disposition::GiveUp,
            _ => Disposition::Person,
        }
    }
}
