//! The threads that make chunks and write them, and what goes round between them.
//!
//! ```text
//! feeding thread            making threads, one in turn             writing thread
//! fetch stored bytes --carton--> read the booted slot, SHA-256 --carton--> write in order, O_DIRECT
//!    ^                           make, SHA-256 over the buffer             sync at checkpoints
//!    +------------------------- empty carton ---------------------------------+
//! ```
//! Chunk number `n` goes to maker `n` modulo their count, and the writer asks the makers in the same turn: so the order
//! is kept without a queue. There are so many cartons and no more: one for each maker and one for each end.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;

use bascule_boot::disk::Slot;
use bascule_image::delta::apply::ChunkMaker;
use bascule_image::limits::MAX_CHUNK_BYTES;
use bascule_image::{BundleError, Chunk, ChunkKind, Decoder, DeltaChunk, Prediction, Units, Way};

use super::base::{BaseSlot, Sources};
use super::buffer::Buffer;
use super::slot::SlotFile;
use super::write::slot_error;
use super::{PrepareError, Tally};

/// One chunk's memory on its way round: at most twice [`MAX_CHUNK_BYTES`].
pub(super) struct Carton {
    /// What was fetched.
    pub(super) stored: Vec<u8>,
    /// What comes out.
    pub(super) out: Buffer,
}

/// What is to be done for one chunk.
pub(super) enum Order {
    /// Make it of its stored bytes; `healed`: because a delta could not.
    Full { chunk: Chunk, healed: bool },
    /// Make it of the booted slot and its stored bytes.
    Delta(DeltaChunk),
    /// The target holds it already.
    Kept(Chunk),
}

/// What came of one chunk.
enum Outcome {
    /// The carton's first bytes are it.
    Bytes(Count),
    /// It is zeroes.
    Zeroes(Count),
    /// The target holds it already.
    Kept(Chunk),
    /// The booted slot does not hold what it is made of.
    Missing(Chunk),
}

/// A chunk and where it came from.
#[derive(Clone, Copy)]
pub(super) struct Count {
    /// The chunk.
    pub(super) chunk: Chunk,
    /// Stored bytes that were fetched for it.
    pub(super) fetched: u32,
    /// Whether a delta made it of the booted slot.
    pub(super) copied: bool,
    /// Whether it was taken whole because a delta could not make it.
    pub(super) healed: bool,
}

type Task = (Order, Carton);
type Made = Result<(Outcome, Carton), PrepareError>;

/// The feeding end.
pub(super) struct Feeder {
    empty: Receiver<Carton>,
    makers: Vec<SyncSender<Task>>,
    turn: usize,
}

impl Feeder {
    /// An empty carton; `None`: the writing thread has ended, and says why.
    pub(super) fn carton(&self) -> Option<Carton> {
        self.empty.recv().ok()
    }

    /// Hands a chunk on; false: a thread has ended, and says why.
    pub(super) fn hand_on(&mut self, order: Order, carton: Carton) -> bool {
        let maker = self.makers.get(self.turn % self.makers.len().max(1));
        self.turn = self.turn.wrapping_add(1);
        maker.is_some_and(|maker| maker.send((order, carton)).is_ok())
    }
}

/// What the threads work on.
pub(super) struct Line<'l> {
    /// The slot that is written.
    pub(super) slot: &'l Slot,
    /// The same, open.
    pub(super) file: &'l SlotFile,
    /// The booted slot, where there is a delta.
    pub(super) base: Option<&'l BaseSlot>,
    /// What the delta predicts of it.
    pub(super) prediction: Option<Arc<Prediction>>,
    /// Where compressed data lie in it.
    pub(super) units: Option<Arc<Units>>,
    /// Threads that make chunks.
    pub(super) makers: usize,
    /// After so many fetched bytes the slot is synced.
    pub(super) checkpoint: u64,
}

impl Line<'_> {
    /// Runs `feed` on this thread until it has handed on everything, and the others until all of it is written. Returns
    /// the places of the chunks that the booted slot could not make, in order.
    ///
    /// # Errors
    /// The first thread's that failed.
    pub(super) fn run(
        &self,
        tally: &mut Tally<'_>,
        feed: impl FnOnce(&mut Feeder) -> Result<(), PrepareError>,
    ) -> Result<Vec<u64>, PrepareError> {
        let makers = self.makers.max(1);
        let cartons = makers + 2;
        let (returned, empty) = sync_channel::<Carton>(cartons);
        for _ in 0..cartons {
            // The channel holds as many as there are, so this never waits.
            let _ = returned.send(Carton { stored: Vec::new(), out: Buffer::new(MAX_CHUNK_BYTES as usize) });
        }
        thread::scope(|scope| {
            let (mut tasks, mut made) = (Vec::new(), Vec::new());
            for _ in 0..makers {
                let (task, to_make) = sync_channel::<Task>(1);
                let (done, to_write) = sync_channel::<Made>(1);
                tasks.push(task);
                made.push(to_write);
                scope.spawn(move || self.make(&to_make, &done));
            }
            let writer = scope.spawn(move || self.write(made, returned, tally));
            let mut feeder = Feeder { empty, makers: tasks, turn: 0 };
            let fed = feed(&mut feeder);
            drop(feeder);
            let written = writer.join().unwrap_or_else(|_| {
                let source = std::io::Error::other("the writing thread stopped");
                Err(slot_error("write", self.slot, 0)(source))
            });
            // When another thread fails, feeding stops because nobody takes chunks any more: its error is the cause.
            let missing = written?;
            fed.map(|()| missing)
        })
    }

    /// Makes what it is handed, and ends when nothing more comes or nobody takes it.
    fn make(&self, tasks: &Receiver<Task>, done: &SyncSender<Made>) {
        let mut maker = Maker::new(self.base, self.prediction.clone(), self.units.clone());
        while let Ok((order, mut carton)) = tasks.recv() {
            let made = maker.outcome(order, &mut carton).map(|outcome| (outcome, carton));
            if done.send(made.map_err(PrepareError::from)).is_err() {
                return;
            }
        }
    }

    /// Ends with an error by dropping its ends, which ends the other threads too.
    fn write(
        &self,
        made: Vec<Receiver<Made>>,
        returned: SyncSender<Carton>,
        tally: &mut Tally<'_>,
    ) -> Result<Vec<u64>, PrepareError> {
        let mut missing = Vec::new();
        let mut zeroes = None;
        let mut unsynced = 0u64;
        for turn in (0..made.len()).cycle() {
            let Some(Ok(piece)) = made.get(turn).map(Receiver::recv) else { break };
            let (outcome, mut carton) = piece?;
            let role = &self.slot.role;
            match outcome {
                Outcome::Bytes(count) => {
                    self.write_bytes(&count.chunk, &mut carton.out)?;
                    unsynced = unsynced.saturating_add(u64::from(count.fetched));
                    tally.wrote(role, &count);
                }
                Outcome::Zeroes(count) => {
                    self.write_zeroes(&count.chunk, &mut zeroes)?;
                    tally.wrote(role, &count);
                }
                Outcome::Kept(chunk) => tally.kept(role, &chunk),
                Outcome::Missing(chunk) => missing.push(chunk.index),
            }
            let _ = returned.send(carton);
            if unsynced >= self.checkpoint {
                self.file.sync().map_err(slot_error("sync", self.slot, 0))?;
                unsynced = 0;
            }
        }
        Ok(missing)
    }

    fn write_bytes(&self, chunk: &Chunk, out: &mut Buffer) -> Result<(), PrepareError> {
        let len = chunk.len as usize;
        let padded = self.file.padded(chunk.offset, len);
        if let Some(padding) = out.head_mut(padded).get_mut(len..) {
            padding.fill(0);
        }
        self.file.write(out.head(padded), chunk.offset).map_err(slot_error("write", self.slot, chunk.offset))
    }

    fn write_zeroes(&self, chunk: &Chunk, zeroes: &mut Option<Buffer>) -> Result<(), PrepareError> {
        let padded = self.file.padded(chunk.offset, chunk.len as usize);
        let failed = |doing| slot_error(doing, self.slot, chunk.offset);
        if !self.file.zero(chunk.offset, padded as u64).map_err(failed("zero"))? {
            let zeroes = zeroes.get_or_insert_with(|| Buffer::new(MAX_CHUNK_BYTES as usize));
            self.file.write(zeroes.head(padded), chunk.offset).map_err(failed("write"))?;
        }
        Ok(())
    }
}

/// What one making thread keeps: about 4 MiB with a base, 4 MiB more where data are packed again, next to nothing
/// without.
struct Maker<'b> {
    base: Option<(&'b BaseSlot, Sources<'b>)>,
    decoder: Decoder,
    deltas: ChunkMaker,
}

impl<'b> Maker<'b> {
    fn new(base: Option<&'b BaseSlot>, prediction: Option<Arc<Prediction>>, units: Option<Arc<Units>>) -> Self {
        let base = base.map(|base| (base, base.sources(units)));
        Maker { base, decoder: Decoder::new(), deltas: ChunkMaker::new(prediction) }
    }

    fn outcome(&mut self, order: Order, carton: &mut Carton) -> Result<Outcome, BundleError> {
        match order {
            Order::Kept(chunk) => Ok(Outcome::Kept(chunk)),
            Order::Full { chunk, healed } => {
                let count = Count { chunk, fetched: chunk.stored_len, copied: false, healed };
                if chunk.kind == ChunkKind::Zeroes {
                    self.decoder.check_zeroes(&chunk)?;
                    return Ok(Outcome::Zeroes(count));
                }
                self.decoder.decode(&chunk, &carton.stored, carton.out.head_mut(chunk.len as usize))?;
                Ok(Outcome::Bytes(count))
            }
            Order::Delta(chunk) => Ok(self.delta(&chunk, carton)),
        }
    }

    /// A chunk that fails for whatever reason is taken whole: the full data have the last word.
    fn delta(&mut self, chunk: &DeltaChunk, carton: &mut Carton) -> Outcome {
        let output = chunk.output;
        let copied = chunk.with_source().next().is_some();
        let count = Count { chunk: output, fetched: chunk.stored_len, copied, healed: false };
        if chunk.way == Way::Zeroes {
            let zeroes = Chunk { kind: ChunkKind::Zeroes, stored_len: 0, ..output };
            let checked = self.decoder.check_zeroes(&zeroes);
            return checked.map_or(Outcome::Missing(output), |()| Outcome::Zeroes(count));
        }
        let Some((base, sources)) = &mut self.base else { return Outcome::Missing(output) };
        if chunk.way == Way::Copied && sources.are_stored(chunk) {
            // What is copied is read to where it is written from; its source's digest is that of the output.
            let held = base.copy(chunk, &mut carton.out);
            return held.map_or(Outcome::Missing(output), |_| Outcome::Bytes(count));
        }
        match self.deltas.make(chunk, &carton.stored, sources, carton.out.head_mut(output.len as usize)) {
            Ok(_) => Outcome::Bytes(count),
            Err(error) => {
                tracing::warn!(code = error.code(), error = error.to_string(), "a chunk of the delta is damaged");
                Outcome::Missing(output)
            }
        }
    }
}

#[cfg(test)]
mod tests;
