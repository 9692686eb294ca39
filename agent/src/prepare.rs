//! Prepares a deployment: source -> verified chunk -> target slot -> fsync -> read back with O_DIRECT -> compare.
//!
//! ```text
//! for each payload:  ways      which way: a delta against the booted slot, or the full data
//!                    write     delta -> what is missing from the full data -> fsync -> read back
//!                    pipeline  fetch -> make on a few threads, SHA-256 over the buffer -> write in order
//! ```
//! No byte reaches a slot before its chunk's digest from the signed table was checked over the very buffer that is
//! written. A few buffers of one chunk go round, so memory does not depend on the image. There is no copy of the
//! payload anywhere else. A later attempt keeps what the target already holds, chunk by chunk, by hash alone.

mod base;
mod buffer;
mod pipeline;
mod slot;
mod verify;
mod ways;
mod write;

pub use verify::still_holds;
pub(crate) use ways::Choice;
pub use ways::Ways;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use bascule_boot::disk::{DiskError, Slot};
use bascule_core::{Deployment, Disposition, ErrorReport, Phase, PreparationFailure, TargetGroup, Transfer};
use bascule_hooks::{HookContext, HookPoint, HookSettings, HooksError, run_point};
use bascule_image::{BundleError, BundleReader, Chunk};
use tokio::sync::watch;

use crate::shared::Progress;
use crate::source::{Fetched, SourceError};

/// How often progress is told.
const TELL_EVERY: Duration = Duration::from_millis(200);

/// What ended a preparation without success.
#[derive(Debug, thiserror::Error)]
pub enum PrepareError {
    /// The bundle or its source while it was read.
    #[error(transparent)]
    Bundle(#[from] BundleError),
    /// The source could not be opened.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// The source now holds another bundle than the one that was accepted.
    #[error("the source holds another bundle than the one that was accepted")]
    OtherBundle {
        /// There are other addresses that may hold the right one.
        mirrored: bool,
    },
    /// A target slot could not be opened.
    #[error("cannot open the {role} slot of the target group")]
    Open {
        /// Its role.
        role: String,
        /// Why.
        #[source]
        source: DiskError,
    },
    /// A target slot could not be written or read.
    #[error("cannot {doing} {device} at byte {offset}")]
    Slot {
        /// `write`, `sync`, `read back`.
        doing: &'static str,
        /// Its device.
        device: String,
        /// Where.
        offset: u64,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// The medium holds other bytes than were written.
    #[error("{device} does not hold what was written: the image of {role} reads back with another SHA-256")]
    ReadBack {
        /// The slot's role.
        role: String,
        /// Its device.
        device: String,
    },
    /// A chunk does not lie on the boundaries a device can be written at.
    #[error("the chunk at byte {offset} of {role} is not aligned to 4096 bytes")]
    Unaligned {
        /// The slot's role.
        role: String,
        /// Where.
        offset: u64,
    },
    /// None of the ways that the policy allows is possible.
    #[error("there is no way to make {role} that the policy allows: {reasons}")]
    NoWay {
        /// The slot's role.
        role: String,
        /// What speaks against each way.
        reasons: String,
    },
    /// More would be fetched than the policy allows.
    #[error("{needed} bytes would be fetched, and prepare.max_fetch allows {limit}")]
    FetchLimit {
        /// How many.
        needed: u64,
        /// How many are allowed.
        limit: u64,
    },
    /// Chunks that the booted slot could not make could not be taken whole either.
    #[error(
        "{chunks} of {of} chunks of {role} are not as the delta expects in the booted slot, and not to be had whole"
    )]
    Heal {
        /// The slot's role.
        role: String,
        /// How many chunks.
        chunks: usize,
        /// Of how many.
        of: u64,
        /// Why not.
        #[source]
        source: BundleError,
    },
    /// A hook failed.
    #[error("a hook stopped the preparation")]
    Hook(#[from] HooksError),
    /// A person cancelled it.
    #[error("the preparation was cancelled")]
    Cancelled,
}

impl PrepareError {
    /// Stable code of `docs/errors.md`.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            PrepareError::Bundle(error) => error.code(),
            PrepareError::Source(error) => error.code(),
            PrepareError::OtherBundle { .. } => "prepare.other-bundle",
            PrepareError::Open { source, .. } => source.code(),
            PrepareError::Slot { .. } => "prepare.slot-io",
            PrepareError::ReadBack { .. } => "prepare.read-back",
            PrepareError::Unaligned { .. } => "prepare.unaligned",
            PrepareError::NoWay { .. } => "prepare.no-way",
            PrepareError::FetchLimit { .. } => "prepare.fetch-limit",
            PrepareError::Heal { .. } => "prepare.not-healed",
            PrepareError::Hook(error) => error.code(),
            PrepareError::Cancelled => "prepare.cancelled",
        }
    }

    fn hint(&self) -> String {
        match self {
            PrepareError::Bundle(error) => error.hint(),
            PrepareError::Source(error) => error.hint(),
            PrepareError::OtherBundle { .. } => {
                "publish each bundle under a name of its own and never replace it".into()
            }
            PrepareError::Open { source, .. } => source.hint(),
            PrepareError::Slot { .. } | PrepareError::ReadBack { .. } => {
                "the storage may be worn out or loose: look at `dmesg`; the running system is not touched".into()
            }
            PrepareError::Unaligned { .. } => "make the bundle with a chunk size that is a multiple of 4096".into(),
            PrepareError::NoWay { .. } => {
                "publish a delta against what this device runs, or allow more in [prepare]: ways, max_fetch".into()
            }
            PrepareError::FetchLimit { .. } => {
                "raise prepare.max_fetch, or publish a delta against what this device runs".into()
            }
            PrepareError::Heal { source, .. } => source.hint(),
            PrepareError::Hook(error) => error.hint(),
            PrepareError::Cancelled => "nothing needs to be done".into(),
        }
    }

    fn disposition(&self) -> Disposition {
        match self {
            PrepareError::Bundle(error) => error.disposition(),
            PrepareError::Source(error) => error.disposition(),
            PrepareError::Open { source, .. } => source.disposition(),
            PrepareError::Slot { .. }
            | PrepareError::ReadBack { .. }
            | PrepareError::OtherBundle { mirrored: true } => Disposition::Retry,
            PrepareError::OtherBundle { mirrored: false }
            | PrepareError::Unaligned { .. }
            | PrepareError::NoWay { .. }
            | PrepareError::FetchLimit { .. } => Disposition::GiveUp,
            PrepareError::Heal { source, .. } => source.disposition(),
            PrepareError::Hook(error) => error.disposition(),
            PrepareError::Cancelled => Disposition::GiveUp,
        }
    }

    pub(crate) fn no_slot(role: &str) -> Self {
        PrepareError::NoWay { role: role.to_owned(), reasons: "the configuration names no slot of that role".into() }
    }

    /// What the state machine is told.
    #[must_use]
    pub fn failure(&self) -> PreparationFailure {
        let disposition = self.disposition();
        let error = ErrorReport::new(self.code(), Phase::Prepare, self, self.hint(), disposition);
        PreparationFailure { error, disposition }
    }
}

/// One preparation: everything it needs, and nothing of the daemon.
pub struct Preparation {
    /// What is prepared.
    pub deployment: Deployment,
    /// Which attempt; from the second on, what the target already holds is kept.
    pub attempt: u32,
    /// The group that may be written.
    pub target: TargetGroup,
    /// Its slots.
    pub slots: Vec<Slot>,
    /// How the images may be made.
    pub ways: Ways,
    /// There are mirrors of the source.
    pub mirrored: bool,
    /// What had been fetched before this attempt.
    pub fetched_before: u64,
    /// Threads that make chunks.
    pub cores: usize,
    /// After so many fetched bytes a slot is synced.
    pub checkpoint: u64,
    /// How hooks are run.
    pub hooks: HookSettings,
    /// What hooks are told.
    pub context: HookContext,
    /// Set to stop it.
    pub cancel: Arc<AtomicBool>,
    /// Counts what came from the source.
    pub fetched: Fetched,
    /// Where progress is told.
    pub progress: watch::Sender<Progress>,
}

impl Preparation {
    /// Runs to the end: when this is `Ok`, every target slot was written, synced, read back and compared. Says where the
    /// bytes came from.
    ///
    /// # Errors
    /// [`PrepareError`]; the target must be taken for rubbish, the loader will not start it.
    pub fn run(&self, bundle: BundleReader) -> Result<Transfer, PrepareError> {
        run_point(HookPoint::PrePrepare, &self.context, &self.hooks, &self.cancel)?.into_result()?;
        let transfer = self.write_all(bundle).map_err(|error| self.what_ended_it(error))?;
        run_point(HookPoint::PostPrepare, &self.context, &self.hooks, &self.cancel)?.into_result()?;
        Ok(transfer)
    }

    /// A read that was cut short because it was cancelled, or because the policy allows no more, says that.
    fn what_ended_it(&self, error: PrepareError) -> PrepareError {
        let limit = ways::check_fetched(self);
        match error {
            PrepareError::Bundle(_) | PrepareError::Heal { .. } if self.cancel.load(Ordering::Relaxed) => {
                PrepareError::Cancelled
            }
            PrepareError::Bundle(_) | PrepareError::Heal { .. } => limit.err().unwrap_or(error),
            error => error,
        }
    }

    fn write_all(&self, mut bundle: BundleReader) -> Result<Transfer, PrepareError> {
        if bundle.manifest_digest() != self.deployment.manifest {
            return Err(PrepareError::OtherBundle { mirrored: self.mirrored });
        }
        bundle.read_tables(&|_, delta| self.ways.wanted(delta))?;
        let payloads = bundle.payloads().to_vec();
        let total = payloads.iter().fold(0u64, |sum, payload| sum.saturating_add(payload.size));
        let mut tally = Tally::new(self, total);
        for (index, payload) in payloads.iter().enumerate() {
            // The offer was held against the slots before it was accepted; the configuration may be another one since.
            let slot = self.slots.iter().find(|slot| slot.role == payload.role);
            let slot = slot.ok_or_else(|| PrepareError::no_slot(&payload.role))?;
            write::payload(self, &mut bundle, index, slot, &mut tally)?;
        }
        bundle.finish()?;
        Ok(tally.transfer())
    }

    fn check_cancelled(&self) -> Result<(), PrepareError> {
        if self.cancel.load(Ordering::Relaxed) { Err(PrepareError::Cancelled) } else { Ok(()) }
    }
}

/// Counts bytes towards progress: writing and reading back are one half each.
struct Tally<'p> {
    preparation: &'p Preparation,
    now: Progress,
    written: u64,
    told: Instant,
}

impl<'p> Tally<'p> {
    fn new(preparation: &'p Preparation, total: u64) -> Self {
        let now = Progress { total_bytes: total, ..Progress::default() };
        Tally { preparation, now, written: 0, told: Instant::now() }
    }

    /// From now on a delta is applied to this.
    fn base(&mut self, label: &str) {
        self.now.base.get_or_insert_with(|| label.to_owned());
    }

    fn wrote(&mut self, role: &str, count: &pipeline::Count) {
        let bytes = u64::from(count.chunk.len);
        let add = |sum: &mut u64, bytes: u64| *sum = sum.saturating_add(bytes);
        if count.copied {
            add(&mut self.now.copied_bytes, bytes);
            add(&mut self.now.saved_bytes, u64::from(count.chunk.stored_len.saturating_sub(count.fetched)));
        }
        if count.healed {
            add(&mut self.now.healed_bytes, bytes);
        }
        self.written = self.written.saturating_add(bytes);
        self.tell(|| format!("writing {role}"));
    }

    fn kept(&mut self, role: &str, chunk: &Chunk) {
        let bytes = u64::from(chunk.len);
        self.now.kept_bytes = self.now.kept_bytes.saturating_add(bytes);
        self.written = self.written.saturating_add(bytes);
        self.tell(|| format!("writing {role}"));
    }

    /// Where the bytes came from.
    fn transfer(&mut self) -> Transfer {
        self.now.fetched_bytes = self.preparation.fetched.load(Ordering::Relaxed);
        self.now.transfer()
    }

    fn read_back(&mut self, role: &str, bytes: u64) {
        self.now.done_bytes = self.now.done_bytes.saturating_add(bytes);
        self.tell(|| format!("reading back {role}"));
    }

    fn tell(&mut self, step: impl FnOnce() -> String) {
        let last = self.now.done_bytes >= self.now.total_bytes;
        if !last && self.told.elapsed() < TELL_EVERY {
            return;
        }
        self.told = Instant::now();
        let halves = u128::from(self.written) + u128::from(self.now.done_bytes);
        let percent = (halves * 50).checked_div(u128::from(self.now.total_bytes)).unwrap_or(100);
        self.now.percent = u8::try_from(percent).unwrap_or(100).min(100);
        self.now.step = step();
        self.now.fetched_bytes = self.preparation.fetched.load(Ordering::Relaxed);
        self.preparation.progress.send_replace(self.now.clone());
    }
}
