//! The check itself: `tough` on a temporary copy of the store, then expiry by our own clock.

use std::path::Path;

use bascule_core::Digest;
use jiff::Timestamp;
use tough::error::Error as ToughError;
use tough::schema::{Role, RoleType, Root, Signed, Timestamp as TimestampRole};
use tough::{ExpirationEnforcement, IntoVec, Limits, Repository, RepositoryLoader, TargetName};
use url::Url;

use super::error::TrustError;
use super::store::{Accepted, Known, Stored, TrustStore};
use super::transport::InMemory;
use crate::blocking;
use crate::format::Metadata;
use crate::limits::{MAX_ROOT_BYTES, MAX_ROOTS, MAX_SNAPSHOT_BYTES, MAX_TARGETS_BYTES, MAX_TIMESTAMP_BYTES};
use crate::manifest::sha256;

/// The key of the timestamp metadata that holds when it was signed (RFC 3339).
pub const SIGNED_AT: &str = "x-bascule-signed-at";

const LIMITS: Limits = Limits {
    max_root_size: MAX_ROOT_BYTES,
    max_targets_size: MAX_TARGETS_BYTES,
    max_timestamp_size: MAX_TIMESTAMP_BYTES,
    max_snapshot_size: MAX_SNAPSHOT_BYTES,
    max_root_updates: MAX_ROOTS as u64 + 1,
};

impl TrustStore {
    /// Checks `metadata` and that it lists `manifest`, at the time `now` (the later of the device's clock
    /// and its build time; the last accepted signed time counts where it is later still). Nothing is remembered.
    ///
    /// # Errors
    /// Every way not to be trusted, each of its own code.
    pub fn verify(&self, metadata: &Metadata, manifest: &[u8], now: Timestamp) -> Result<Accepted, TrustError> {
        let known = self.load()?;
        let scratch =
            tempfile::Builder::new().prefix("bascule-trust-").tempdir_in(self.scratch_dir()).map_err(|source| {
                TrustError::Storage {
                    what: "making a scratch directory in",
                    path: self.scratch_dir().to_owned(),
                    source,
                }
            })?;
        fill(scratch.path(), known.stored.as_ref())?;
        let (repository, name) = self.load_repository(&known, metadata, manifest, scratch.path())?;
        // By the bundle's root: new timestamp keys undo a time that was signed by a clock far in the future.
        let floor = vouched_time(&repository.root().signed, known.stored.as_ref());
        check_expiry(&repository, floor.map_or(now, |floor| floor.max(now)))?;
        self.accept(&repository, name, manifest)
    }

    /// Runs `tough` on a thread of its own, so that a caller inside an async runtime does no harm.
    fn load_repository(
        &self,
        known: &Known,
        metadata: &Metadata,
        manifest: &[u8],
        datastore: &Path,
    ) -> Result<(Repository, String), TrustError> {
        let transport = InMemory::new(metadata, manifest);
        let checked = blocking::run(|| async {
            let repository = RepositoryLoader::new(&known.root, url("metadata")?, url("targets")?)
                .transport(transport)
                .limits(LIMITS)
                .datastore(datastore)
                .expiration_enforcement(ExpirationEnforcement::Unsafe)
                .load()
                .await
                .map_err(|error| self.told_apart(error))?;
            let digest = sha256(manifest);
            let target = listed(&repository, &digest).ok_or(TrustError::NotListed(digest))?;
            let stream = repository.read_target(&target).await.map_err(|error| self.told_apart(error))?;
            let stream = stream.ok_or(TrustError::NotListed(digest))?;
            stream.into_vec().await.map_err(|error| TrustError::MetadataInvalid { source: error.into() })?;
            Ok((repository, target.raw().to_owned()))
        });
        checked.map_err(internal)?
    }

    fn told_apart(&self, error: ToughError) -> TrustError {
        let source = Box::new(error);
        match *source {
            ToughError::ParseTrustedMetadata { .. } | ToughError::VerifyTrustedMetadata { .. } => {
                TrustError::RootDamaged { path: self.pinned_path().to_owned(), source }
            }
            ToughError::VerifyMetadata { role: RoleType::Root, .. }
            | ToughError::OlderMetadata { role: RoleType::Root, .. }
            | ToughError::MaxUpdatesExceeded { .. } => TrustError::RootChain { source },
            ToughError::VerifyMetadata { role, .. } => TrustError::WrongSignature { role, source },
            ToughError::OlderMetadata { .. }
            | ToughError::OlderSnapshotInTimestamp { .. }
            | ToughError::SnapshotRoleMissing { .. }
            | ToughError::SnapshotRoleRollback { .. } => TrustError::OlderMetadata { source },
            ToughError::VersionMismatch { .. } | ToughError::HashMismatch { .. } | ToughError::Transport { .. } => {
                TrustError::Mismatch { source }
            }
            ToughError::DatastoreInit { .. }
            | ToughError::DatastoreCreate { .. }
            | ToughError::DatastoreOpen { .. }
            | ToughError::DatastoreRemove { .. } => TrustError::Internal { source },
            _ => TrustError::MetadataInvalid { source },
        }
    }

    fn accept(&self, repository: &Repository, name: String, manifest: &[u8]) -> Result<Accepted, TrustError> {
        let value = |result: serde_json::Result<serde_json::Value>| result.map_err(internal);
        let expiries = expiries(repository).map(|(_, expires)| expires);
        Ok(Accepted {
            manifest: sha256(manifest),
            name,
            signed_at: signed_at(&repository.timestamp().signed),
            expires: expiries.into_iter().min().unwrap_or(Timestamp::MIN),
            stored: Stored {
                schema: 1,
                root: value(serde_json::to_value(repository.root()))?,
                timestamp: value(serde_json::to_value(repository.timestamp()))?,
                snapshot: value(serde_json::to_value(repository.snapshot()))?,
                targets: value(serde_json::to_value(repository.targets()))?,
            },
            store: self.store_path().to_owned(),
        })
    }
}

/// The name under which the top-level targets list a file of this digest. Delegations are not followed.
fn listed(repository: &Repository, digest: &Digest) -> Option<TargetName> {
    let mut targets = repository.targets().signed.targets.iter();
    targets.find(|(_, target)| *target.hashes.sha256 == digest.0[..]).map(|(name, _)| name.clone())
}

/// The signed time of the stored timestamp, if the trusted root still vouches for it.
pub(crate) fn floor(known: &Known) -> Option<Timestamp> {
    let root: Signed<Root> = serde_json::from_slice(&known.root).ok()?;
    vouched_time(&root.signed, known.stored.as_ref())
}

fn vouched_time(root: &Root, stored: Option<&Stored>) -> Option<Timestamp> {
    let stored: Signed<TimestampRole> = serde_json::from_value(stored?.timestamp.clone()).ok()?;
    root.verify_role(&stored).ok()?;
    signed_at(&stored.signed)
}

fn signed_at(timestamp: &TimestampRole) -> Option<Timestamp> {
    let signed: Timestamp = timestamp._extra.get(SIGNED_AT)?.as_str()?.parse().ok()?;
    // A time after its own expiry cannot be meant.
    Some(signed).filter(|signed| *signed <= timestamp.expires)
}

fn expiries(repository: &Repository) -> [(RoleType, Timestamp); 4] {
    [
        (RoleType::Root, repository.root().signed.expires()),
        (RoleType::Timestamp, repository.timestamp().signed.expires()),
        (RoleType::Snapshot, repository.snapshot().signed.expires()),
        (RoleType::Targets, repository.targets().signed.expires()),
    ]
}

/// TUF 5.3.10, 5.4.4, 5.5.6, 5.6.6: no role may have expired when the update starts.
fn check_expiry(repository: &Repository, now: Timestamp) -> Result<(), TrustError> {
    match expiries(repository).into_iter().find(|(_, expires)| *expires < now) {
        Some((role, expires)) => Err(TrustError::Expired { role, expires, now }),
        None => Ok(()),
    }
}

/// Gives `tough` what was accepted before, but not its note of the time (see the module's page).
fn fill(datastore: &Path, stored: Option<&Stored>) -> Result<(), TrustError> {
    let Some(stored) = stored else { return Ok(()) };
    let files =
        [("timestamp.json", &stored.timestamp), ("snapshot.json", &stored.snapshot), ("targets.json", &stored.targets)];
    for (name, value) in files {
        let path = datastore.join(name);
        std::fs::write(&path, value.to_string()).map_err(|source| TrustError::Storage {
            what: "copying accepted metadata to",
            path,
            source,
        })?;
    }
    Ok(())
}

fn url(part: &str) -> Result<Url, TrustError> {
    Url::parse(&format!("bundle:///{part}/")).map_err(internal)
}

fn internal(source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> TrustError {
    TrustError::Internal { source: source.into() }
}
