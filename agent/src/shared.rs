//! What the loop shares with the API: commands one way, snapshots the other.
//!
//! The loop owns everything. A caller sends a [`Command`] and gets one answer; everyone may watch the [`Snapshot`].

use std::io::Read;
use std::path::PathBuf;

use bascule_core::{Blocker, BootId, BootView, Deployment, ErrorReport, Group, Offer, Record, Then, Transfer, Warning};
use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, oneshot, watch};

/// What a caller may ask for.
pub enum Command {
    /// Prepare a bundle, and perhaps activate it then.
    Prepare {
        /// Where the bundle is.
        source: Source,
        /// What follows.
        then: Then,
    },
    /// Say what [`Command::Prepare`] would do; change nothing.
    Plan {
        /// Where the bundle is.
        source: Source,
    },
    /// Activate what is prepared.
    Activate,
    /// Mark the booted group good now.
    Commit,
    /// Go back.
    RollBack,
    /// Stop what is on its way.
    Cancel,
    /// Say what would be in the way of an update now; change nothing.
    Check,
    /// Let a bundle be tried again that was rolled back here.
    Allow {
        /// Its version, or the beginning of its manifest's SHA-256.
        bundle: String,
    },
}

/// Where a bundle comes from.
pub enum Source {
    /// `http://` or `https://`, fetched by range.
    Url(String),
    /// A file on this device.
    File(PathBuf),
    /// The caller's standard input; can be read once.
    Stream(Box<dyn Read + Send>),
}

impl Source {
    /// As it is shown and recorded: the URL, the path, or `-`.
    #[must_use]
    pub fn label(&self) -> String {
        match self {
            Source::Url(url) => url.clone(),
            Source::File(path) => path.display().to_string(),
            Source::Stream(_) => "-".to_owned(),
        }
    }
}

/// The answer to a command that was taken.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "answer", rename_all = "kebab-case")]
pub enum Answer {
    /// The deployment is on its way; watch the status.
    Accepted {
        /// What was accepted.
        deployment: Deployment,
    },
    /// Taken and done, or on its way without a new deployment.
    Done,
    /// What would happen.
    Plan(Plan),
    /// What is in the way; empty means nothing.
    Checked {
        /// Every blocker.
        blockers: Vec<Blocker>,
    },
}

/// Why a command was not taken.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refused {
    /// The error, whole.
    pub error: ErrorReport,
    /// Every blocker, when the offer was held against this device.
    #[serde(default)]
    pub blockers: Vec<Blocker>,
}

/// What installing an offer would do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    /// The offer.
    pub offer: Offer,
    /// The group it would go into.
    pub target: Group,
    /// Bytes that would be fetched, if the booted slots hold everywhere what they hold where it was looked.
    pub fetch_bytes: u64,
    /// What a delta would be applied to; `None`: full images would be taken.
    #[serde(default)]
    pub base: Option<String>,
    /// Bytes that would be written to the target slots.
    pub write_bytes: u64,
    /// Bytes of them that are zeroes.
    pub zero_bytes: u64,
    /// The steps, in order, one line each.
    pub steps: Vec<String>,
    /// What is in the way; empty means it would go on.
    pub blockers: Vec<Blocker>,
}

/// Who asks, from the socket's peer credentials.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Caller {
    /// User id.
    pub uid: u32,
    /// Process id.
    pub pid: i32,
}

/// A command with its caller and the place for its answer.
pub struct Submission {
    /// What is asked.
    pub command: Command,
    /// Who asks.
    pub caller: Caller,
    /// Where the answer goes.
    pub answer: oneshot::Sender<Result<Answer, Refused>>,
}

/// How far a preparation is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    /// Whole percent, 0 to 100.
    pub percent: u8,
    /// What is done now, such as `writing root`.
    pub step: String,
    /// Image bytes that are written and read back.
    pub done_bytes: u64,
    /// Image bytes in all.
    pub total_bytes: u64,
    /// Bytes fetched from the source.
    pub fetched_bytes: u64,
    /// Image bytes that the target held already.
    pub kept_bytes: u64,
    /// Image bytes made of what the booted slots hold.
    pub copied_bytes: u64,
    /// Image bytes taken whole because the booted slots do not hold what a delta expects.
    pub healed_bytes: u64,
    /// Bytes that the full data of the chunks made by a delta would have taken on top.
    pub saved_bytes: u64,
    /// What a delta is applied to: a version, or the SHA-256 of its image; `None`: full images are taken.
    pub base: Option<String>,
}

impl Progress {
    /// What the record keeps of it.
    #[must_use]
    pub fn transfer(&self) -> Transfer {
        Transfer {
            base: self.base.clone(),
            fetched: self.fetched_bytes,
            copied: self.copied_bytes,
            kept: self.kept_bytes,
            healed: self.healed_bytes,
            saved: self.saved_bytes,
        }
    }
}

/// One slot as it is shown.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SlotView {
    /// Its role, such as `root`.
    pub role: String,
    /// Its group.
    pub group: Group,
    /// Device node.
    pub device: String,
    /// Size in bytes.
    pub size: u64,
    /// Partition's unique GUID.
    pub partuuid: String,
}

/// What the booted root says it is (`release.toml`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Release {
    /// Product's name.
    pub product: String,
    /// Version for people.
    pub version: String,
    /// Version for machines.
    pub order: u64,
    /// Hardware it runs on.
    pub compatible: Vec<String>,
    /// Security epoch.
    #[serde(default)]
    pub security_epoch: u64,
}

/// One health check of the last round, as it is shown.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckView {
    /// Its name.
    pub name: String,
    /// `required` or `wanted`.
    pub requirement: String,
    /// Whether it passed.
    pub passed: bool,
    /// Milliseconds it took.
    pub millis: u64,
    /// The end of what it said.
    pub output: String,
}

/// Everything there is to show, replaced whole whenever something changes.
#[derive(Debug, Clone, PartialEq)]
pub struct Snapshot {
    /// The durable record.
    pub record: Record,
    /// The booted group.
    pub booted: Group,
    /// This boot.
    pub boot_id: BootId,
    /// What the booted root says it is.
    pub release: Release,
    /// What the loader's settings say; the error where they could not be read.
    pub view: Result<BootView, ErrorReport>,
    /// All slots.
    pub slots: Vec<SlotView>,
    /// How far the preparation is.
    pub progress: Option<Progress>,
    /// The last round of health checks.
    pub checks: Vec<CheckView>,
    /// When it will be rolled back at the latest, seconds since 1970; in probation, or armed for it.
    pub deadline: Option<i64>,
    /// Why the update on its way waits.
    pub blocked: Vec<Blocker>,
    /// What is damaged while something else serves.
    pub warnings: Vec<Warning>,
    /// An error of the daemon itself, such as an unreadable record.
    pub fault: Option<ErrorReport>,
}

/// The API's end: sends commands, watches snapshots.
#[derive(Clone)]
pub struct Handle {
    /// Where commands go.
    pub commands: mpsc::Sender<Submission>,
    /// The latest snapshot.
    pub snapshot: watch::Receiver<Snapshot>,
}
