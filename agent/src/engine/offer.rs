//! Looks at an offered bundle: opens it, checks its trust, holds it against this device, and says what it would do.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bascule_boot::disk::{Slot, Sysfs, open_target};
use bascule_core::offer::{SAME, blockers};
use bascule_core::{
    Baseline, Blocker, Deployment, DeploymentId, Device as Facts, ErrorReport, Image, Offer, Phase, Step, TargetGroup,
    Then,
};
use bascule_image::{BundleReader, ChunkKind, Payload, TrustStore};

use super::{Engine, publish};
use crate::clock;
use crate::conditions;
use crate::device::Device;
use crate::prepare::{Choice, PrepareError};
use crate::shared::{Answer, Plan, Refused, Source};
use crate::source::http::HttpError;
use crate::source::{Fetched, Opener, SourceError};

/// Opens bundles with this device's trust; may go to another thread.
pub(super) struct BundleOpener {
    trust: TrustStore,
    opener: Opener,
}

impl BundleOpener {
    pub(super) fn new(device: &Device, opener: Opener) -> Self {
        let store = device.paths.resolve(&device.config.state.directory).join("trusted-metadata.json");
        let scratch: PathBuf = device.paths.runtime();
        let pinned = device.paths.resolve(&device.config.trust.root);
        BundleOpener { trust: TrustStore::new(pinned, store).scratch(scratch), opener }
    }

    fn open(&self, source: Source, fetched: Fetched) -> Result<BundleReader, PrepareError> {
        let input = self.opener.open(source, fetched)?;
        Ok(BundleReader::open(input, &self.trust, clock::now_at_least_built())?)
    }

    pub(super) fn reopen(&self, label: &str, attempt: u32, fetched: Fetched) -> Result<BundleReader, PrepareError> {
        let input = self.opener.reopen(label, attempt, fetched)?;
        Ok(BundleReader::open(input, &self.trust, clock::now_at_least_built())?)
    }
}

/// Stops a reading that takes longer than it may: the loop does not turn meanwhile.
struct Alarm {
    timer: tokio::task::JoinHandle<()>,
    stop: Arc<AtomicBool>,
}

impl Alarm {
    fn set(runtime: &tokio::runtime::Handle, limit: Duration, stop: &Arc<AtomicBool>) -> Alarm {
        let ring = stop.clone();
        let timer = runtime.spawn(async move {
            tokio::time::sleep(limit).await;
            ring.store(true, Ordering::Relaxed);
        });
        Alarm { timer, stop: stop.clone() }
    }

    /// Takes it back; whether it was too late for that.
    fn rang(self) -> bool {
        self.timer.abort();
        self.stop.load(Ordering::Relaxed)
    }
}

impl Engine {
    /// Serves the pending request to prepare: either the deployment is recorded, or nothing has changed.
    pub(super) fn check_offer(&mut self) {
        let Some((source, then)) = self.pending.as_mut().and_then(|pending| pending.source.take()) else {
            return;
        };
        let label = source.label();
        tracing::info!(source = label, "checking the offer");
        let answer = self.accept(source, &label, then);
        self.answer(answer);
    }

    fn accept(&mut self, source: Source, label: &str, then: Then) -> Result<Answer, Refused> {
        self.fetched.store(0, Ordering::Relaxed);
        // The bundle that is opened here is the one that is prepared: who stops that must stop its download.
        let cancel = Arc::new(AtomicBool::new(false));
        let bundle = self.open_bundle(source, self.fetched.clone(), &cancel)?;
        let offer = bundle.offer().clone();
        let mut found = self.blockers(&offer);
        if found.is_empty() {
            found.extend(self.choices(&bundle).err());
        }
        if let Some(refused) = refused(&found) {
            return Err(refused);
        }
        let failed = |error: ErrorReport| Refused { error, blockers: Vec::new() };
        // Everything that can be checked was checked: from here on older metadata is refused.
        bundle.accepted().persist().map_err(|error| {
            failed(ErrorReport::new(error.code(), Phase::Check, &error, error.hint(), error.disposition()))
        })?;
        let image = |it: &Payload| Image { role: it.role.clone(), size: it.size, sha256: it.sha256 };
        let images = bundle.payloads().iter().map(image).collect();
        let deployment = Deployment { images, ..self.deployment(&offer, label, then) };
        self.record_durably(&Step::Preparing(deployment.clone())).map_err(failed)?;
        tracing::info!(
            deployment = deployment.id.to_string(),
            version = deployment.version,
            from = deployment.from_version,
            target = deployment.target.letter(),
            source = label,
            "accepted"
        );
        self.opened = Some((bundle, cancel));
        Ok(Answer::Accepted { deployment })
    }

    /// Says what preparing would do. Nothing changes.
    pub(super) fn plan(&mut self, source: Source) -> Result<Answer, Refused> {
        let bundle = self.open_bundle(source, Fetched::default(), &Arc::default())?;
        let offer = bundle.offer().clone();
        let (write_bytes, zero_bytes) = sizes(&bundle);
        let target = self.device.booted().target().group();
        let mut blockers = self.blockers(&offer);
        let choices = self.choices(&bundle).unwrap_or_else(|blocker| {
            blockers.push(blocker);
            Vec::new()
        });
        let bases: Vec<Option<String>> = choices.iter().map(Choice::base).collect();
        let steps = publish::plan_steps(&offer, &bases, target, &self.device);
        let blobs = choices.iter().fold(0u64, |sum, choice| sum.saturating_add(choice.fetch()));
        let fetch_bytes = bundle.head_len().saturating_add(blobs);
        let base = bases.into_iter().flatten().next();
        Ok(Answer::Plan(Plan { offer, target, fetch_bytes, base, write_bytes, zero_bytes, steps, blockers }))
    }

    /// How each payload would be made, or what is in the way. A few chunks of the booted slots are read for it.
    fn choices(&self, bundle: &BundleReader) -> Result<Vec<Choice>, Blocker> {
        let ways = super::preparation::ways(&self.device);
        let choices = (0..bundle.payloads().len()).map(|index| ways.choose(bundle, index));
        choices.collect::<Result<_, PrepareError>>().map_err(|error| {
            let report = error.failure().error;
            Blocker::new(&report.code, report.message, report.hint)
        })
    }

    fn open_bundle(&self, source: Source, fetched: Fetched, cancel: &Arc<AtomicBool>) -> Result<BundleReader, Refused> {
        let most_fetched = self.device.config.prepare.max_fetch;
        let opener = Opener { most_fetched, ..self.opener.with_cancel(cancel.clone()) };
        let label = source.label();
        let limit = self.device.config.prepare.head_timeout;
        let alarm = Alarm::set(&self.opener.runtime, limit, cancel);
        let opened = BundleOpener::new(&self.device, opener).open(source, fetched);
        let ways = super::preparation::ways(&self.device);
        let read = opened.and_then(|mut bundle| {
            bundle.read_tables(&|_, delta| ways.wanted(delta))?;
            Ok(bundle)
        });
        let slow = || PrepareError::Source(SourceError::Http(HttpError::Slow { url: label, seconds: limit.as_secs() }));
        let read = if alarm.rang() { Err(slow()) } else { read };
        read.map_err(|error| {
            let mut error = error.failure().error;
            error.phase = Phase::Check;
            Refused { error, blockers: Vec::new() }
        })
    }

    /// Every reason why this device does not take the offer now.
    fn blockers(&self, offer: &Offer) -> Vec<Blocker> {
        let mut found = blockers(offer, &self.facts(), self.device.record());
        found.extend(self.ground_blockers());
        found
    }

    fn facts(&self) -> Facts {
        let release = &self.device.release;
        let compatible = self.device.config.device.compatible.as_ref().unwrap_or(&release.compatible);
        let day = |days: u32| i64::from(days).saturating_mul(24 * 3600);
        let denials_since =
            self.device.config.prepare.deny_days.map(|days| clock::now().as_second().saturating_sub(day(days)));
        Facts {
            product: release.product.clone(),
            version: release.version.clone(),
            order: release.order,
            compatible: compatible.clone(),
            agent: env!("CARGO_PKG_VERSION").to_owned(),
            free_space: conditions::free_space(&self.state_directory()).unwrap_or(0),
            denials_since,
            target_slots: self.device.target_slots().map(|slot| (slot.role.clone(), slot.size)).collect(),
        }
    }

    fn deployment(&self, offer: &Offer, label: &str, then: Then) -> Deployment {
        let now = clock::now();
        let id = format!("{}-{}", now.strftime("%Y%m%dT%H%M%SZ"), offer.manifest.to_string().get(..8).unwrap_or(""));
        Deployment {
            id: DeploymentId(id),
            manifest: offer.manifest,
            product: offer.product.clone(),
            version: offer.version.clone(),
            order: offer.order,
            security_epoch: offer.security_epoch,
            target: self.device.booted().target().group(),
            from_version: self.device.release.version.clone(),
            source: label.to_owned(),
            then,
            requested_by: self.pending.as_ref().map_or_else(String::new, |pending| pending.requested_by.clone()),
            began: now.as_second(),
            images: Vec::new(),
            transfer: None,
            baseline: Baseline::default(),
        }
    }
}

/// Opening the slot is the check itself: whoever mounts or holds it is named, and nothing is written.
pub(super) fn slot_blocker(slot: &Slot, target: TargetGroup, sysfs: &Sysfs) -> Option<Blocker> {
    let error = open_target(slot, target, sysfs).err()?;
    Some(Blocker::new(error.code(), error.to_string(), error.hint()))
}

fn refused(found: &[Blocker]) -> Option<Refused> {
    // That a bundle is installed already outweighs whatever else would speak against it.
    let first = found.iter().find(|blocker| blocker.code == SAME).or(found.first())?;
    let retryable = found.iter().all(Blocker::may_pass);
    let error = ErrorReport {
        code: first.code.clone(),
        phase: Phase::Check,
        message: first.reason.clone(),
        cause: Vec::new(),
        hint: first.hint.clone(),
        retryable,
    };
    Some(Refused { error, blockers: found.to_vec() })
}

/// Bytes to write in all, and how many of them are zeroes.
fn sizes(bundle: &BundleReader) -> (u64, u64) {
    let tables = (0..bundle.payloads().len()).filter_map(|index| bundle.chunk_table(index));
    tables.flat_map(|table| table.chunks()).fold((0, 0), |(all, zeroes), chunk| {
        let len = u64::from(chunk.len);
        (all + len, zeroes + if chunk.kind == ChunkKind::Zeroes { len } else { 0 })
    })
}
