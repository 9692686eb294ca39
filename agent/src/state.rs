//! The record's store: two copies on the data partition, written in turn; the higher valid generation wins.
//!
//! A copy is one line of JSON and one line `sha256:` with its digest. Each write goes to the copy that does not hold
//! the current record, so that whatever happens to it, the current one stays. A copy that cannot be read is reported;
//! when neither can, nothing is assumed: an unreadable record is not an empty one.

use std::fs::{self, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use bascule_core::record::SCHEMA;
use bascule_core::{Digest, Disposition, Record, Stamp, State, Step};
use nix::fcntl::{Flock, FlockArg};
use sha2::{Digest as _, Sha256};

use crate::durable::{self, DurableError};

/// A record longer than this is not ours: fifty history entries take about 60 KiB.
const RECORD_LIMIT: u64 = 1 << 20;
const COPIES: [&str; 2] = ["record.0.json", "record.1.json"];
const LOCK: &str = "lock";

/// What can go wrong with the record.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// The state directory cannot be used.
    #[error("cannot use the state directory {directory}")]
    Directory {
        /// Which.
        directory: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Someone else works on this device's state.
    #[error("the state in {directory} is locked by another process")]
    Locked {
        /// Which.
        directory: PathBuf,
    },
    /// No copy is valid, and at least one is there.
    #[error("no copy of the record in {directory} can be read: {details}")]
    Unreadable {
        /// Where.
        directory: PathBuf,
        /// What is wrong with each copy.
        details: String,
    },
    /// The record could not be made durable.
    #[error("cannot write the record")]
    Write(#[source] DurableError),
    /// A newer agent's state is in the record.
    #[error("a newer agent has left a state that this one does not know")]
    Newer,
    /// The record could not be written as text.
    #[error("cannot write the record as JSON")]
    Encode(#[source] serde_json::Error),
}

impl StateError {
    /// Stable code of `docs/errors.md`.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            StateError::Directory { .. } => "state.directory",
            StateError::Locked { .. } => "state.locked",
            StateError::Unreadable { .. } => "state.unreadable",
            StateError::Write(_) => "state.write",
            StateError::Encode(_) => "state.encode",
            StateError::Newer => "request.newer-state",
        }
    }

    /// What a person can do about it.
    #[must_use]
    pub fn hint(&self) -> String {
        match self {
            StateError::Directory { .. } => "mount the data partition and check [state] directory".into(),
            StateError::Locked { .. } => "only one basculed may run; see `systemctl status basculed`".into(),
            StateError::Unreadable { directory, .. } => format!(
                "nothing is touched until a person has looked; to begin with an empty record, move {}/record.*.json away",
                directory.display()
            ),
            StateError::Write(_) => "check the space on the data partition and its health (`dmesg`)".into(),
            StateError::Newer => "update this system's agent, or finish the update with the newer one".into(),
            StateError::Encode(_) => "this is a fault of the agent: report it".into(),
        }
    }

    /// Whether it may go away by itself.
    #[must_use]
    pub fn disposition(&self) -> Disposition {
        match self {
            StateError::Locked { .. } | StateError::Write(_) => Disposition::Retry,
            _ => Disposition::Person,
        }
    }
}

/// The store, locked for as long as it lives.
#[derive(Debug)]
pub struct Store {
    directory: PathBuf,
    record: Record,
    _lock: Flock<fs::File>,
}

impl Store {
    /// Takes the lock, then loads the record.
    ///
    /// # Errors
    /// [`StateError`]; nothing was changed but the lock file and a missing directory.
    pub fn open(directory: &Path) -> Result<Self, StateError> {
        let lock = lock(directory)?;
        let record = load(directory)?;
        Ok(Store { directory: directory.to_owned(), record, _lock: lock })
    }

    /// The current record.
    #[must_use]
    pub fn record(&self) -> &Record {
        &self.record
    }

    /// Makes `step` durable: it is in the record, and survives a power cut, when this returns.
    ///
    /// # Errors
    /// [`StateError::Write`]: the record in memory and the current copy on disk are as before.
    pub fn step(&mut self, step: &Step, stamp: &Stamp) -> Result<(), StateError> {
        if self.record.state == State::Newer {
            return Err(StateError::Newer);
        }
        let mut next = self.record.advance(step, stamp);
        // What is written must be readable again: the oldest history goes first.
        while encode(&next)?.len() as u64 > RECORD_LIMIT && !next.history.is_empty() {
            next.history.remove(0);
        }
        let copy = usize::from(next.generation % 2 == 1);
        let name = COPIES.get(copy).copied().unwrap_or(LOCK);
        durable::replace(&self.directory.join(name), &encode(&next)?).map_err(StateError::Write)?;
        self.record = next;
        Ok(())
    }
}

/// Loads the record without the lock, for those who only look.
///
/// # Errors
/// [`StateError::Unreadable`] when copies are there and none is valid.
pub fn load(directory: &Path) -> Result<Record, StateError> {
    let mut valid: Vec<Record> = Vec::new();
    let mut faults = Vec::new();
    for name in COPIES {
        match durable::read_bounded(&directory.join(name), RECORD_LIMIT) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => faults.push(format!("{name}: {error}")),
            Ok(bytes) => match decode(&bytes) {
                Ok(record) => valid.push(record),
                Err(fault) => faults.push(format!("{name}: {fault}")),
            },
        }
    }
    match valid.into_iter().max_by_key(|record| record.generation) {
        Some(record) => {
            if !faults.is_empty() {
                tracing::warn!(
                    faults = faults.join("; "),
                    "a copy of the record cannot be read; the other one is used"
                );
            }
            Ok(record)
        }
        None if faults.is_empty() => Ok(Record::default()),
        None => Err(StateError::Unreadable { directory: directory.to_owned(), details: faults.join("; ") }),
    }
}

fn lock(directory: &Path) -> Result<Flock<fs::File>, StateError> {
    let failed = |source| StateError::Directory { directory: directory.to_owned(), source };
    if !directory.exists() {
        fs::create_dir_all(directory).map_err(failed)?;
        // The directory's own entry must survive a power cut as well.
        let parent = directory.parent().unwrap_or(directory);
        fs::File::open(parent).and_then(|parent| parent.sync_all()).map_err(failed)?;
    }
    let file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(directory.join(LOCK))
        .map_err(failed)?;
    Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, errno)| match errno {
        nix::errno::Errno::EWOULDBLOCK => StateError::Locked { directory: directory.to_owned() },
        other => failed(other.into()),
    })
}

fn encode(record: &Record) -> Result<Vec<u8>, StateError> {
    let mut text = serde_json::to_vec(record).map_err(StateError::Encode)?;
    text.push(b'\n');
    let digest = Digest(Sha256::digest(&text).into());
    text.extend_from_slice(format!("sha256:{digest}\n").as_bytes());
    Ok(text)
}

fn decode(bytes: &[u8]) -> Result<Record, String> {
    let end = bytes.iter().position(|byte| *byte == b'\n').ok_or("it is not one line of JSON and one of digest")?;
    let (text, tail) = bytes.split_at(end.saturating_add(1));
    let digest = Digest(Sha256::digest(text).into());
    if tail != format!("sha256:{digest}\n").as_bytes() {
        return Err("its digest does not fit".into());
    }
    let mut record: Record = serde_json::from_slice(text).map_err(|error| error.to_string())?;
    if record.schema > SCHEMA {
        record.state = State::Newer;
    }
    Ok(record)
}

#[cfg(test)]
mod tests {
    use super::*;
    use bascule_core::{Baseline, BootId, Deployment, DeploymentId, Group, Then, Transfer};

    fn stamp() -> Stamp {
        Stamp { now: 0, boot_id: BootId("b".into()), run: "r".into(), booted: Group::A }
    }

    fn deployment() -> Deployment {
        Deployment {
            id: DeploymentId("1".into()),
            manifest: Digest([1; 32]),
            product: "p".into(),
            version: "2".into(),
            order: 2,
            security_epoch: 0,
            target: Group::B,
            from_version: "1".into(),
            source: "-".into(),
            then: Then::Stop,
            requested_by: "t".into(),
            began: 0,
            images: Vec::new(),
            transfer: None,
            baseline: Baseline::default(),
        }
    }

    fn two_generations(directory: &Path) -> (Record, Record) {
        let mut store = Store::open(directory).unwrap();
        store.step(&Step::Preparing(deployment()), &stamp()).unwrap();
        let first = store.record().clone();
        store.step(&Step::Prepared(Transfer::default()), &stamp()).unwrap();
        (first, store.record().clone())
    }

    #[test]
    fn the_higher_generation_wins_and_every_damage_to_it_leaves_the_one_before() {
        let dir = tempfile::tempdir().unwrap();
        let (first, second) = two_generations(dir.path());
        assert_eq!(load(dir.path()).unwrap(), second);
        let path = dir.path().join(COPIES[0]);
        let whole = fs::read(&path).unwrap();
        for end in 0..whole.len() {
            fs::write(&path, &whole[..end]).unwrap();
            assert_eq!(load(dir.path()).unwrap(), first, "cut at {end}");
        }
        for byte in 0..whole.len() {
            for bit in 0..8 {
                let mut flipped = whole.clone();
                flipped[byte] ^= 1 << bit;
                fs::write(&path, &flipped).unwrap();
                assert_eq!(load(dir.path()).unwrap(), first, "bit {bit} of byte {byte} flipped");
            }
        }
    }

    #[test]
    fn two_damaged_copies_are_an_error_and_no_copies_are_an_empty_record() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(load(dir.path()).unwrap(), Record::default());
        two_generations(dir.path());
        for name in COPIES {
            fs::write(dir.path().join(name), "").unwrap();
        }
        assert_eq!(load(dir.path()).unwrap_err().code(), "state.unreadable");
    }

    #[test]
    fn the_second_to_come_finds_it_locked_and_a_dropped_lock_is_free() {
        let dir = tempfile::tempdir().unwrap();
        let first = Store::open(dir.path()).unwrap();
        assert_eq!(Store::open(dir.path()).unwrap_err().code(), "state.locked");
        drop(first);
        assert!(Store::open(dir.path()).is_ok());
    }

    #[test]
    fn a_record_from_a_newer_agent_loads_as_newer() {
        let dir = tempfile::tempdir().unwrap();
        for text in [
            "{\"schema\":1,\"generation\":9,\"state\":{\"name\":\"levitating\"},\"wings\":2}\n",
            "{\"schema\":2,\"generation\":9,\"state\":{\"name\":\"idle\"}}\n",
        ] {
            let digest = Digest(Sha256::digest(text).into());
            let copy = format!("{text}sha256:{digest}\n");
            fs::write(dir.path().join(COPIES[1]), &copy).unwrap();
            let mut store = Store::open(dir.path()).unwrap();
            assert_eq!(store.record().state, State::Newer);
            // Nothing of it is touched, whoever asks.
            assert!(store.step(&Step::RollingBackInstalled, &stamp()).is_err());
            assert_eq!(fs::read_to_string(dir.path().join(COPIES[1])).unwrap(), copy);
            assert!(!dir.path().join(COPIES[0]).exists());
        }
    }
}
