//! The signing keys of one product on the developer's host, and the metadata that they sign.
//!
//! ```text
//! DIR/root.json             what a device pins: the newest root
//! DIR/1.root.json ...       every root there ever was
//! DIR/private/ROLE-N.pk8    Ed25519 keys (PKCS #8), mode 0600
//! DIR/last-version          the version number that was given out last
//! ```

use std::collections::HashMap;
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::num::NonZeroU64;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::Ed25519KeyPair;
use jiff::Timestamp;
use tough::editor::signed::SignedRole;
use tough::key_source::{KeySource, LocalKeySource};
use tough::schema::decoded::{Decoded, Hex};
use tough::schema::{
    Hashes, KeyHolder, Metafile, Role, RoleKeys, RoleType, Root, Signed, Snapshot, Target, Targets,
    Timestamp as TimestampRole,
};
use tough::sign::Sign;

use crate::blocking;
use crate::format::Metadata;
use crate::manifest::sha256;
use crate::trust::{SIGNED_AT, SPEC_VERSION};

const ROLES: [RoleType; 4] = [RoleType::Root, RoleType::Targets, RoleType::Snapshot, RoleType::Timestamp];

/// A directory of signing keys.
#[derive(Debug, Clone)]
pub struct KeyDir {
    path: PathBuf,
}

/// How a new set of keys is made.
#[derive(Debug, Clone, Copy)]
pub struct NewKeys {
    /// How many keys the root and targets roles have each.
    pub count: u64,
    /// How many of them must sign.
    pub threshold: u64,
    /// When the root expires.
    pub expires: Timestamp,
}

impl KeyDir {
    /// Names an existing directory of keys.
    pub fn open(path: impl Into<PathBuf>) -> Self {
        KeyDir { path: path.into() }
    }

    /// Makes keys and version 1 of the root in a new or empty directory.
    ///
    /// # Errors
    /// When there are keys already, the numbers make no sense, or a file cannot be written.
    pub fn init(path: impl Into<PathBuf>, new: NewKeys) -> Result<Self, KeysError> {
        let keys = KeyDir { path: path.into() };
        if new.threshold == 0 || new.threshold > new.count {
            return Err(KeysError::Threshold { threshold: new.threshold, count: new.count });
        }
        if keys.path.join("root.json").exists() {
            return Err(KeysError::Exists(keys.path));
        }
        let private = keys.private();
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&private).map_err(at(&private))?;
        let mut root = Root {
            spec_version: SPEC_VERSION.into(),
            consistent_snapshot: true,
            version: NonZeroU64::MIN,
            expires: new.expires,
            keys: HashMap::new(),
            roles: HashMap::new(),
            _extra: HashMap::new(),
        };
        for role in ROLES {
            let many = matches!(role, RoleType::Root | RoleType::Targets);
            let (count, threshold) = if many { (new.count, new.threshold) } else { (1, 1) };
            keys.give_keys(&mut root, role, count, threshold)?;
        }
        let signed = keys.sign(root.clone(), &root)?;
        keys.publish_root(&signed)?;
        Ok(keys)
    }

    /// Makes new keys for `role`, and the next root that names them instead of the old ones.
    ///
    /// # Errors
    /// When the keys cannot be read, made or written.
    pub fn rotate(&self, role: RoleType, expires: Timestamp) -> Result<(), KeysError> {
        let old = self.root()?;
        let mut root = old.signed.clone();
        root.version = root.version.checked_add(1).ok_or(KeysError::Version)?;
        root.expires = expires;
        let (count, threshold) =
            root.roles.get(&role).map_or((1, 1), |keys| (keys.keyids.len() as u64, keys.threshold.get()));
        self.give_keys(&mut root, role, count, threshold)?;
        let used: Vec<_> = root.roles.values().flat_map(|keys| keys.keyids.clone()).collect();
        root.keys.retain(|id, _| used.contains(id));
        let by_old = self.sign(root.clone(), &old.signed)?;
        let mut signed = self.sign(root.clone(), &root)?;
        let new_ids: Vec<_> = signed.signed().signatures.iter().map(|s| s.keyid.clone()).collect();
        let mut olds = by_old.signed().signatures.clone();
        olds.retain(|signature| !new_ids.contains(&signature.keyid));
        signed = signed.add_old_signatures(olds).map_err(KeysError::tough("signing the root"))?;
        self.publish_root(&signed)
    }

    /// The newest root.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn root(&self) -> Result<Signed<Root>, KeysError> {
        let path = self.path.join("root.json");
        let bytes = fs::read(&path).map_err(|source| KeysError::NoKeys { path: self.path.clone(), source })?;
        serde_json::from_slice(&bytes).map_err(|source| KeysError::RootInvalid { path, source })
    }

    /// Signs metadata that lists `manifest` under `name`, at `now`, valid until `expires`.
    ///
    /// # Errors
    /// When keys are missing, or the directory cannot be written.
    pub fn sign_manifest(
        &self,
        name: &str,
        manifest: &[u8],
        now: Timestamp,
        expires: Timestamp,
    ) -> Result<Metadata, KeysError> {
        let root = self.root()?;
        let version = self.next_version(now)?;
        let mut targets = Targets::new(SPEC_VERSION.into(), version, expires);
        targets.delegations = None;
        let name = tough::TargetName::new(name).map_err(KeysError::tough("naming the manifest"))?;
        targets.add_target(
            name,
            Target {
                length: manifest.len() as u64,
                hashes: hashes(&sha256(manifest).0),
                custom: HashMap::new(),
                _extra: HashMap::new(),
            },
        );
        let targets = self.sign(targets, &root.signed)?;
        let mut snapshot = Snapshot::new(SPEC_VERSION.into(), version, expires);
        snapshot.meta.insert("targets.json".into(), metafile(&targets, version));
        let snapshot = self.sign(snapshot, &root.signed)?;
        let mut timestamp = TimestampRole::new(SPEC_VERSION.into(), version, expires);
        timestamp.meta.insert("snapshot.json".into(), metafile(&snapshot, version));
        timestamp._extra.insert(SIGNED_AT.into(), now.to_string().into());
        let timestamp = self.sign(timestamp, &root.signed)?;
        Ok(Metadata {
            roots: self.later_roots(root.signed.version.get())?,
            timestamp: timestamp.buffer().clone(),
            snapshot: snapshot.buffer().clone(),
            targets: targets.buffer().clone(),
        })
    }

    /// Roots 2 to `newest`: version 1 is in no bundle, because no device could begin before it.
    fn later_roots(&self, newest: u64) -> Result<Vec<(u64, Vec<u8>)>, KeysError> {
        let read = |version: u64| {
            let path = self.path.join(format!("{version}.root.json"));
            fs::read(&path).map(|bytes| (version, bytes)).map_err(at(&path))
        };
        (2..=newest).map(read).collect()
    }

    fn private(&self) -> PathBuf {
        self.path.join("private")
    }

    /// Makes `count` keys for `role` and lets `root` name them.
    fn give_keys(&self, root: &mut Root, role: RoleType, count: u64, threshold: u64) -> Result<(), KeysError> {
        let mut keyids = Vec::new();
        for number in 1..=count {
            let pkcs8 = Ed25519KeyPair::generate_pkcs8(&SystemRandom::new()).map_err(|_| KeysError::Generate)?;
            let pair = Ed25519KeyPair::from_pkcs8(pkcs8.as_ref()).map_err(|_| KeysError::Generate)?;
            let path = self.private().join(format!("{role}-{}-{number}.pk8", root.version));
            let mut file =
                OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path).map_err(at(&path))?;
            file.write_all(pkcs8.as_ref()).and_then(|()| file.sync_all()).map_err(at(&path))?;
            let key = pair.tuf_key();
            let id = key.key_id().map_err(|source| KeysError::KeyId(Box::new(source)))?;
            root.keys.insert(id.clone(), key);
            keyids.push(id);
        }
        let threshold = NonZeroU64::new(threshold).unwrap_or(NonZeroU64::MIN);
        root.roles.insert(role, RoleKeys { keyids, threshold, _extra: HashMap::new() });
        Ok(())
    }

    /// Signs `role` with every key we hold that `root` names for it.
    fn sign<T: Role + Send>(&self, role: T, root: &Root) -> Result<SignedRole<T>, KeysError> {
        let sources = self.sources()?;
        let holder = KeyHolder::Root(root.clone());
        let signed = blocking::run(|| async move {
            SignedRole::new(role, &holder, &sources, &SystemRandom::new()).await.map_err(Box::new)
        });
        signed.map_err(at(&self.path))?.map_err(|source| KeysError::Sign { what: "signing metadata", source })
    }

    fn sources(&self) -> Result<Vec<Box<dyn KeySource>>, KeysError> {
        let private = self.private();
        let mut paths = Vec::new();
        for entry in fs::read_dir(&private).map_err(at(&private))? {
            let path = entry.map_err(at(&private))?.path();
            if path.extension().is_some_and(|end| end == "pk8") {
                paths.push(path);
            }
        }
        paths.sort();
        Ok(paths.into_iter().map(|path| Box::new(LocalKeySource { path }) as Box<dyn KeySource>).collect())
    }

    /// The versioned file is written first: a root that devices may pin is then always in later bundles' chain.
    fn publish_root(&self, signed: &SignedRole<Root>) -> Result<(), KeysError> {
        let root = &signed.signed().signed;
        root.verify_role(signed.signed()).map_err(|source| KeysError::RootUnsigned(Box::new(source)))?;
        for name in [format!("{}.root.json", root.version), "root.json".into()] {
            write_whole(&self.path, &name, signed.buffer())?;
        }
        Ok(())
    }

    /// A number greater than any before: the time in seconds, or one more than the last where two are made in one second.
    fn next_version(&self, now: Timestamp) -> Result<NonZeroU64, KeysError> {
        let path = self.path.join("last-version");
        let failed = at(&path);
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&path)
            .map_err(&failed)?;
        file.lock().map_err(&failed)?;
        let mut text = String::new();
        (&file).take(64).read_to_string(&mut text).map_err(&failed)?;
        let last = if text.is_empty() { 0 } else { text.trim().parse().map_err(|_| KeysError::Version)? };
        let next = now.as_second().unsigned_abs().max(u64::checked_add(last, 1).ok_or(KeysError::Version)?);
        // Numbers only grow, so the text only grows longer and a write in place needs no truncation.
        file.seek(SeekFrom::Start(0)).map_err(&failed)?;
        file.write_all(format!("{next}\n").as_bytes()).and_then(|()| file.sync_all()).map_err(&failed)?;
        NonZeroU64::new(next).ok_or(KeysError::Version)
    }
}

fn hashes(sha256: &[u8]) -> Hashes {
    Hashes { sha256: Decoded::<Hex>::from(sha256.to_vec()), _extra: HashMap::new() }
}

fn metafile<T: Role>(signed: &SignedRole<T>, version: NonZeroU64) -> Metafile {
    Metafile { length: Some(*signed.length()), hashes: Some(hashes(signed.sha256())), version, _extra: HashMap::new() }
}

fn write_whole(directory: &Path, name: &str, bytes: &[u8]) -> Result<(), KeysError> {
    let path = directory.join(name);
    let temporary = directory.join(format!(".{name}.new"));
    let write = || {
        let mut file = File::create(&temporary)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&temporary, &path)?;
        File::open(directory)?.sync_all()
    };
    write().map_err(at(&path))
}

fn at(path: &Path) -> impl Fn(std::io::Error) -> KeysError + use<> {
    let path = path.to_owned();
    move |source| KeysError::File { path: path.clone(), source }
}

/// Keys that cannot be made or used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KeysError {
    /// There is a set of keys already.
    #[error("{0:?} has keys already")]
    Exists(PathBuf),
    /// There are no keys.
    #[error("{path:?} is not a directory of keys made by `bascule-image keys init`")]
    NoKeys {
        /// The directory.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The threshold is 0 or above the number of keys.
    #[error("a threshold of {threshold} cannot be met by {count} keys")]
    Threshold {
        /// How many must sign.
        threshold: u64,
        /// How many there are.
        count: u64,
    },
    /// A file cannot be read or written.
    #[error("using {path:?} failed")]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The root is not of its form.
    #[error("{path:?} is not a root of trust")]
    RootInvalid {
        /// Which file.
        path: PathBuf,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
    /// The new root lacks signatures of its own keys.
    #[error("the new root is not signed by enough of its keys")]
    RootUnsigned(#[source] Box<tough::schema::Error>),
    /// The system gave no key.
    #[error("making a key failed")]
    Generate,
    /// A key has no identifier.
    #[error("naming a key failed")]
    KeyId(#[source] Box<tough::schema::Error>),
    /// Signing failed, mostly because a private key is missing.
    #[error("{what} failed")]
    Sign {
        /// What was signed.
        what: &'static str,
        /// Why.
        #[source]
        source: Box<tough::error::Error>,
    },
    /// The file `last-version` is damaged or at its end.
    #[error("the file `last-version` in the directory of keys holds no usable number")]
    Version,
}

impl KeysError {
    fn tough(what: &'static str) -> impl FnOnce(tough::error::Error) -> KeysError {
        move |source| KeysError::Sign { what, source: Box::new(source) }
    }
}
