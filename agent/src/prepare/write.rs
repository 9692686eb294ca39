//! Writes one payload into its slot and proves that it is there.
//!
//! First what a delta makes of the booted slot, chunk by chunk; then, of the full data, the chunks that it could not
//! make, or all where no delta is used; then a sync, and the whole image is read back.

use std::sync::atomic::Ordering;
use std::sync::mpsc::sync_channel;
use std::thread;

use bascule_boot::disk::{Slot, open_target};
use bascule_core::Digest;
use bascule_image::limits::MAX_CHUNK_BYTES;
use bascule_image::{BundleReader, Chunk, ChunkTable, DeltaTable, Payload};
use sha2::{Digest as _, Sha256};

use super::base::BaseSlot;
use super::buffer::{ALIGN, Buffer};
use super::pipeline::{Feeder, Line, Order};
use super::slot::SlotFile;
use super::ways::{Choice, check_fetched};
use super::{Preparation, PrepareError, Tally};

/// One payload on its way into its slot.
struct Write<'w> {
    job: &'w Preparation,
    index: usize,
    payload: &'w Payload,
    slot: &'w Slot,
    file: SlotFile,
}

/// Writes payload `index` into `slot`, syncs it, reads the whole image back and compares.
pub(super) fn payload(
    job: &Preparation,
    bundle: &mut BundleReader,
    index: usize,
    slot: &Slot,
    tally: &mut Tally<'_>,
) -> Result<(), PrepareError> {
    let payloads = bundle.payloads().to_vec();
    let Some(payload) = payloads.get(index) else { return Ok(()) };
    let file = open_target(slot, job.target, &job.ways.sysfs)
        .map_err(|source| PrepareError::Open { role: slot.role.clone(), source })?;
    let file = SlotFile::new(file, slot.size).map_err(slot_error("open", slot, 0))?.paced(job.ways.pace.clone());
    let write = Write { job, index, payload, slot, file };
    match job.ways.choose(bundle, index)? {
        Choice::Full { .. } => write.full(bundle, tally, None)?,
        Choice::Delta { delta, label, base, .. } => {
            tally.base(&label);
            let missing = write.delta(bundle, tally, delta, &base)?;
            if !missing.is_empty() {
                write.heal(bundle, tally, &missing)?;
            }
        }
    }
    write.file.sync().map_err(slot_error("sync", slot, 0))?;
    let found = read_back(job, payload, slot, &write.file, tally)?;
    if found == payload.sha256 {
        return Ok(());
    }
    Err(PrepareError::ReadBack { role: slot.role.clone(), device: slot.device.display().to_string() })
}

pub(super) fn slot_error(doing: &'static str, slot: &Slot, offset: u64) -> impl FnOnce(std::io::Error) -> PrepareError {
    let device = slot.device.display().to_string();
    move |source| PrepareError::Slot { doing, device, offset, source }
}

impl Write<'_> {
    /// The threads, without a base.
    fn line(&self) -> Line<'_> {
        let (makers, checkpoint) = (self.job.cores, self.job.checkpoint);
        Line { slot: self.slot, file: &self.file, base: None, prediction: None, units: None, makers, checkpoint }
    }

    /// Makes what the booted slot can make, and returns the places of the chunks that it cannot.
    fn delta(
        &self,
        bundle: &mut BundleReader,
        tally: &mut Tally<'_>,
        delta: usize,
        base: &BaseSlot,
    ) -> Result<Vec<u64>, PrepareError> {
        bundle.begin_delta(self.index, delta)?;
        let table = bundle.delta_table(self.index, delta);
        let (prediction, units) = (table.and_then(DeltaTable::prediction), table.and_then(DeltaTable::units));
        let line = Line { base: Some(base), prediction, units, ..self.line() };
        line.run(tally, |feeder| {
            while let Some(chunk) = bundle.skip_delta_chunk() {
                self.check(&chunk.output)?;
                let Some(mut carton) = feeder.carton() else { return Ok(()) };
                let order = if self.holds(&mut carton.out, &chunk.output) {
                    Order::Kept(chunk.output)
                } else {
                    bundle.fetch_delta(&chunk, &mut carton.stored)?;
                    Order::Delta(chunk)
                };
                if !feeder.hand_on(order, carton) {
                    return Ok(());
                }
            }
            Ok(())
        })
    }

    /// Takes the chunks at `missing` whole.
    fn heal(&self, bundle: &mut BundleReader, tally: &mut Tally<'_>, missing: &[u64]) -> Result<(), PrepareError> {
        let table = bundle.chunk_table(self.index);
        let wanted = table.into_iter().flat_map(|table| table.chunks());
        let wanted = wanted.filter(|chunk| missing.binary_search(&chunk.index).is_ok());
        let needed = wanted.fold(0u64, |sum, chunk| sum.saturating_add(u64::from(chunk.stored_len)));
        let (role, chunks) = (self.slot.role.as_str(), missing.len());
        tracing::warn!(role, chunks, bytes = needed, "the booted slot does not hold what the delta expects: healing");
        let fetched = self.job.fetched.load(Ordering::Relaxed).saturating_sub(self.job.fetched_before);
        let all = fetched.saturating_add(needed);
        if let Some(limit) = self.job.ways.max_fetch.filter(|limit| all > *limit) {
            return Err(PrepareError::FetchLimit { needed: all, limit });
        }
        self.full(bundle, tally, Some(missing)).map_err(|error| match error {
            PrepareError::Bundle(source) => {
                PrepareError::Heal { role: role.to_owned(), chunks, of: table_len(bundle, self.index), source }
            }
            other => other,
        })
    }

    /// Makes chunks of the full data: all, or those at `only`.
    fn full(&self, bundle: &mut BundleReader, tally: &mut Tally<'_>, only: Option<&[u64]>) -> Result<(), PrepareError> {
        bundle.begin_payload(self.index)?;
        self.line().run(tally, |feeder| self.feed_full(bundle, feeder, only)).map(drop)
    }

    fn feed_full(
        &self,
        bundle: &mut BundleReader,
        feeder: &mut Feeder,
        only: Option<&[u64]>,
    ) -> Result<(), PrepareError> {
        let mut runs = only.map(|only| runs(bundle.chunk_table(self.index), only)).unwrap_or_default().into_iter();
        let mut run = runs.next();
        while let Some(chunk) = bundle.peek_chunk() {
            if only.is_some_and(|only| only.binary_search(&chunk.index).is_err()) {
                bundle.skip_chunk();
                continue;
            }
            if let Some((_, end)) = run.take_if(|(first, _)| *first == chunk.index) {
                bundle.expect_full(end);
                run = runs.next();
            }
            self.check(&chunk)?;
            let Some(mut carton) = feeder.carton() else { return Ok(()) };
            // The first pass has looked at those that it could not make already.
            let order = if only.is_none() && self.holds(&mut carton.out, &chunk) {
                bundle.skip_chunk();
                Order::Kept(chunk)
            } else {
                bundle.fetch_next(&mut carton.stored)?;
                Order::Full { chunk, healed: only.is_some() }
            };
            if !feeder.hand_on(order, carton) {
                return Ok(());
            }
        }
        Ok(())
    }

    /// What must hold before each chunk.
    fn check(&self, chunk: &Chunk) -> Result<(), PrepareError> {
        self.job.check_cancelled()?;
        check_fetched(self.job)?;
        let last = chunk.offset.saturating_add(u64::from(chunk.len)) == self.payload.size;
        let aligned = |value: u64| value.is_multiple_of(ALIGN as u64);
        if aligned(chunk.offset) && (last || aligned(u64::from(chunk.len))) {
            return Ok(());
        }
        Err(PrepareError::Unaligned { role: self.slot.role.clone(), offset: chunk.offset })
    }

    /// Whether the target already holds this chunk, by its hash alone; asked from the second attempt on.
    fn holds(&self, buffer: &mut Buffer, chunk: &Chunk) -> bool {
        let len = chunk.len as usize;
        let padded = self.file.padded(chunk.offset, len);
        self.job.attempt > 1
            && self.file.read(buffer.head_mut(padded), chunk.offset).is_ok()
            && Digest(Sha256::digest(buffer.head(len)).into()) == chunk.digest
    }
}

/// Stretches of neighbouring chunks among those at `only`: the first one's place, and where the stored bytes of the
/// last one end.
fn runs(table: Option<&ChunkTable>, only: &[u64]) -> Vec<(u64, u64)> {
    let mut runs: Vec<(u64, u64)> = Vec::new();
    let mut next = None;
    let chunks = table.into_iter().flat_map(ChunkTable::chunks);
    for chunk in chunks.filter(|chunk| only.binary_search(&chunk.index).is_ok()) {
        let end = chunk.stored_offset.saturating_add(u64::from(chunk.stored_len));
        match runs.last_mut().filter(|_| next == Some(chunk.index)) {
            Some(run) => run.1 = end,
            None => runs.push((chunk.index, end)),
        }
        next = chunk.index.checked_add(1);
    }
    runs
}

fn table_len(bundle: &BundleReader, index: usize) -> u64 {
    bundle.chunk_table(index).map_or(0, ChunkTable::count)
}

/// SHA-256 of the whole image as the medium holds it, read on one thread and hashed on this one.
fn read_back(
    job: &Preparation,
    payload: &Payload,
    slot: &Slot,
    file: &SlotFile,
    tally: &mut Tally<'_>,
) -> Result<Digest, PrepareError> {
    let (filled, full) = sync_channel::<Result<(Buffer, usize), PrepareError>>(1);
    let (hashed, empty) = sync_channel::<Buffer>(2);
    for _ in 0..2 {
        let _ = hashed.send(Buffer::new(MAX_CHUNK_BYTES as usize));
    }
    thread::scope(|scope| {
        scope.spawn(move || {
            let mut offset = 0;
            while offset < payload.size {
                let Ok(mut buffer) = empty.recv() else { return };
                let len = (payload.size - offset).min(u64::from(MAX_CHUNK_BYTES)) as usize;
                let padded = file.padded(offset, len);
                let read = file.read(buffer.head_mut(padded), offset).map_err(slot_error("read back", slot, offset));
                let failed = read.is_err();
                if filled.send(read.map(|()| (buffer, len))).is_err() || failed {
                    return;
                }
                offset += len as u64;
            }
        });
        // Owned here, so that leaving early drops them and the reading thread ends as well.
        let (full, hashed) = (full, hashed);
        let mut hash = Sha256::new();
        while let Ok(piece) = full.recv() {
            job.check_cancelled()?;
            let (buffer, len) = piece?;
            hash.update(buffer.head(len));
            let _ = hashed.send(buffer);
            tally.read_back(&slot.role, len as u64);
        }
        Ok(Digest(hash.finalize().into()))
    })
}
