//! Chooses how a payload is made: the first way of the policy that is possible, before anything of it is fetched.
//!
//! Which image the booted slot holds is not asked of a name or a record but of the slot: a few chunks' sources, spread
//! over the delta, are read and held against the digests of the signed table. A delta none of which fits is for
//! another base. One that fits in part is for a base that was written to: the rest is taken whole, chunk by chunk.

use std::sync::atomic::Ordering;

use bascule_boot::disk::{Slot, Sysfs};
use bascule_core::BootedGroup;
use bascule_image::manifest::{BlobsPlace, DeltaRef};
use bascule_image::{Base as _, BundleReader, DeltaTable, Payload};

use super::base::BaseSlot;
use super::slot::SlotPace;
use super::{Preparation, PrepareError};
use crate::config::Way;

/// How many chunks are looked at to find out whether a delta fits.
const PROBES: usize = 16;

/// What the policy allows, and what the booted slots may offer.
#[derive(Debug, Clone)]
pub struct Ways {
    /// Ways in order of preference.
    pub order: Vec<Way>,
    /// Most bytes that one attempt may fetch.
    pub max_fetch: Option<u64>,
    /// The booted group.
    pub booted: BootedGroup,
    /// Its slots.
    pub slots: Vec<Slot>,
    /// The system's view of disks.
    pub sysfs: Sysfs,
    /// The version that the booted root says it is.
    pub version: String,
    /// The pace of everything that is read from and written to slots.
    pub(crate) pace: Option<SlotPace>,
}

/// How one payload is made.
pub(crate) enum Choice {
    /// Delta number `delta` against the booted slot.
    Delta {
        /// Its place in the manifest.
        delta: usize,
        /// What it is applied to, for people.
        label: String,
        /// The booted slot.
        base: BaseSlot,
        /// Stored bytes of the delta.
        fetch: u64,
    },
    /// The full data.
    Full {
        /// Their stored bytes.
        fetch: u64,
    },
}

impl Choice {
    /// Stored bytes that it takes, if every probed chunk stands for all.
    pub(crate) fn fetch(&self) -> u64 {
        match self {
            Choice::Delta { fetch, .. } | Choice::Full { fetch } => *fetch,
        }
    }

    /// What a delta is applied to.
    pub(crate) fn base(&self) -> Option<String> {
        match self {
            Choice::Delta { label, .. } => Some(label.clone()),
            Choice::Full { .. } => None,
        }
    }
}

impl Ways {
    /// Whether a delta's table is worth reading: deltas are allowed, and it is not against a version that is known not
    /// to be the booted one.
    pub(crate) fn wanted(&self, delta: &DeltaRef) -> bool {
        self.order.contains(&Way::Delta) && delta.base.version.as_ref().is_none_or(|version| *version == self.version)
    }

    /// The first way that is possible.
    ///
    /// # Errors
    /// [`PrepareError::NoWay`] with what speaks against each.
    pub(crate) fn choose(&self, bundle: &BundleReader, index: usize) -> Result<Choice, PrepareError> {
        let payloads = bundle.payloads();
        let payload = payloads.get(index).ok_or(bascule_image::BundleError::Misuse("there is no such payload"))?;
        let mut reasons = Vec::new();
        for way in &self.order {
            let found = match way {
                Way::Delta => self.delta(bundle, index, payload),
                Way::Full => full(payload),
            };
            match found.and_then(|choice| self.within(choice)) {
                Ok(choice) => return Ok(choice),
                Err(reason) => {
                    let (role, way) = (payload.role.as_str(), way.as_str());
                    tracing::info!(role, way, reason, "a way that is not gone");
                    reasons.push(format!("{way}: {reason}"));
                }
            }
        }
        Err(PrepareError::NoWay { role: payload.role.clone(), reasons: reasons.join("; ") })
    }

    fn within(&self, choice: Choice) -> Result<Choice, String> {
        match self.max_fetch {
            Some(limit) if choice.fetch() > limit => {
                Err(format!("it takes {} bytes, and prepare.max_fetch allows {limit}", choice.fetch()))
            }
            _ => Ok(choice),
        }
    }

    fn delta(&self, bundle: &BundleReader, index: usize, payload: &Payload) -> Result<Choice, String> {
        if payload.deltas.is_empty() {
            return Err("the bundle has none".into());
        }
        let slot = self.slots.iter().find(|slot| slot.role == payload.role);
        let slot = slot.ok_or_else(|| format!("the booted group has no slot {:?}", payload.role))?;
        let base = BaseSlot::open(slot, self.booted, &self.sysfs, self.pace.clone())?;
        let mut best: Option<(usize, Probe)> = None;
        for (number, delta) in payload.deltas.iter().enumerate() {
            let Some(table) = bundle.delta_table(index, number).filter(|_| base.can_hold(delta.base.size)) else {
                continue;
            };
            let found = probe(&base, bundle, index, table);
            if found.held > best.as_ref().map_or(0, |(_, most)| most.held) {
                best = Some((number, found));
            }
        }
        let fits = best.and_then(|(number, found)| Some((number, found, payload.deltas.get(number)?)));
        let Some((delta, found, about)) = fits else {
            return Err(format!(
                "none of the {} in the bundle is against what the booted slot holds",
                payload.deltas.len()
            ));
        };
        let label = about.base.version.clone().unwrap_or_else(|| about.base.sha256.to_string());
        let fetch = about.blobs.saturating_add(found.to_heal(payload.blobs.length));
        if fetch > payload.blobs.length && self.order.contains(&Way::Full) && full(payload).is_ok() {
            return Err(format!("to heal it would take {fetch} bytes, more than the whole image"));
        }
        let (role, held, probed) = (payload.role.as_str(), found.held, found.probed);
        tracing::info!(role, base = label, held, probed, "a delta fits the booted slot");
        Ok(Choice::Delta { delta, label, base, fetch })
    }
}

fn full(payload: &Payload) -> Result<Choice, String> {
    match payload.blobs.place {
        BlobsPlace::Absent => Err("the bundle holds no full data".into()),
        BlobsPlace::Inside | BlobsPlace::Beside => Ok(Choice::Full { fetch: payload.blobs.length }),
    }
}

/// What a look at a few chunks showed.
struct Probe {
    /// How many find their source in the booted slot.
    held: usize,
    /// Of how many.
    probed: usize,
}

impl Probe {
    /// Bytes of `full` that would be taken whole, if the probed chunks stand for all.
    fn to_heal(&self, full: u64) -> u64 {
        let missing = self.probed.saturating_sub(self.held) as u128;
        let part = (u128::from(full) * missing).checked_div(self.probed as u128).unwrap_or_default();
        u64::try_from(part).unwrap_or(u64::MAX)
    }
}

/// Looks for the sources of a few chunks in the booted slot. A delta that asks nothing of it always fits.
fn probe(base: &BaseSlot, bundle: &BundleReader, index: usize, table: &DeltaTable) -> Probe {
    let Some(full) = bundle.chunk_table(index) else { return Probe { held: 0, probed: 0 } };
    let with_source = || table.chunks(full).filter(|chunk| chunk.with_source().next().is_some());
    let count = with_source().count();
    if count == 0 {
        return Probe { held: PROBES, probed: PROBES };
    }
    let mut sources = base.sources(table.units());
    let step = count.div_ceil(PROBES);
    let found = with_source().step_by(step).map(|chunk| chunk.with_source().all(|one| sources.source(one).is_some()));
    found.fold(Probe { held: 0, probed: 0 }, |sum, held| Probe {
        held: sum.held + usize::from(held),
        probed: sum.probed + 1,
    })
}

/// Stops an attempt that fetches more than the policy allows.
pub(super) fn check_fetched(job: &Preparation) -> Result<(), PrepareError> {
    let fetched = job.fetched.load(Ordering::Relaxed).saturating_sub(job.fetched_before);
    match job.ways.max_fetch {
        Some(limit) if fetched > limit => Err(PrepareError::FetchLimit { needed: fetched, limit }),
        _ => Ok(()),
    }
}
