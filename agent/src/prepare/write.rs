//! Writes one payload into its slot and proves that it is there.

use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;

use bascule_boot::disk::{Slot, open_target};
use bascule_core::Digest;
use bascule_image::limits::MAX_CHUNK_BYTES;
use bascule_image::{BundleReader, Chunk, ChunkKind, Decoder, Payload};
use sha2::{Digest as _, Sha256};

use super::buffer::{ALIGN, Buffer};
use super::slot::SlotFile;
use super::{Preparation, PrepareError, Tally};

/// Buffers that go round between the two threads. With one more for stored bytes that is all the payload ever takes.
const BUFFERS: usize = 4;

/// What the writer thread is handed.
enum Piece {
    /// `len` verified bytes for `offset`.
    Bytes { buffer: Buffer, offset: u64, len: usize },
    /// A verified run of zeroes.
    Zeroes { offset: u64, len: u64 },
}

/// Writes `payload`, syncs the slot, reads the whole image back and compares.
pub(super) fn payload(
    job: &Preparation,
    bundle: &mut BundleReader,
    payload: &Payload,
    slot: &Slot,
    tally: &mut Tally<'_>,
) -> Result<(), PrepareError> {
    let file = open_target(slot, job.target, &job.sysfs)
        .map_err(|source| PrepareError::Open { role: slot.role.clone(), source })?;
    let failed = slot_error("open", slot, 0);
    let file = SlotFile::new(file, slot.size).map_err(failed)?;
    write_chunks(job, bundle, slot, &file, tally)?;
    file.sync().map_err(slot_error("sync", slot, 0))?;
    let found = read_back(job, payload, slot, &file, tally)?;
    if found == payload.sha256 {
        return Ok(());
    }
    Err(PrepareError::ReadBack { role: slot.role.clone(), device: slot.device.display().to_string() })
}

fn slot_error(doing: &'static str, slot: &Slot, offset: u64) -> impl FnOnce(std::io::Error) -> PrepareError {
    let device = slot.device.display().to_string();
    move |source| PrepareError::Slot { doing, device, offset, source }
}

fn write_chunks(
    job: &Preparation,
    bundle: &mut BundleReader,
    slot: &Slot,
    file: &SlotFile,
    tally: &mut Tally<'_>,
) -> Result<(), PrepareError> {
    let (pieces, to_write) = sync_channel::<Piece>(BUFFERS);
    let (written, empty) = sync_channel::<Buffer>(BUFFERS);
    for _ in 0..BUFFERS {
        // The channel holds as many as there are, so this never waits.
        let _ = written.send(Buffer::new(MAX_CHUNK_BYTES as usize));
    }
    thread::scope(|scope| {
        let writer = scope.spawn(move || write_pieces(slot, file, to_write, written));
        let fed = feed(job, bundle, slot, file, tally, &pieces, &empty);
        drop(pieces);
        let written = writer.join().unwrap_or_else(|_| {
            let source = std::io::Error::other("the writing thread stopped");
            Err(slot_error("write", slot, 0)(source))
        });
        // When the writer fails, feeding stops because nobody takes pieces any more: its error is the cause.
        written.and(fed)
    })
}

fn feed(
    job: &Preparation,
    bundle: &mut BundleReader,
    slot: &Slot,
    file: &SlotFile,
    tally: &mut Tally<'_>,
    pieces: &SyncSender<Piece>,
    empty: &Receiver<Buffer>,
) -> Result<(), PrepareError> {
    let mut decoder = Decoder::new();
    let mut stored = Vec::new();
    while let Some(chunk) = bundle.peek_chunk() {
        job.check_cancelled()?;
        check_aligned(bundle, slot, &chunk)?;
        let Ok(mut buffer) = empty.recv() else { return Ok(()) };
        let len = chunk.len as usize;
        if job.attempt > 1 && holds(file, &mut buffer, &chunk) {
            bundle.skip_chunk();
            tally.wrote(&slot.role, u64::from(chunk.len), true);
            if pieces.send(Piece::Bytes { buffer, offset: chunk.offset, len: 0 }).is_err() {
                return Ok(());
            }
            continue;
        }
        bundle.fetch_next(&mut stored)?;
        if chunk.kind == ChunkKind::Zeroes {
            decoder.check_zeroes(&chunk)?;
            let zeroes = Piece::Zeroes { offset: chunk.offset, len: u64::from(chunk.len) };
            if pieces.send(zeroes).is_err() {
                return Ok(());
            }
        } else {
            decoder.decode(&chunk, &stored, buffer.head_mut(len))?;
        }
        // A buffer that was not needed goes round as an empty piece, so that none is lost.
        let len = if chunk.kind == ChunkKind::Zeroes { 0 } else { len };
        if pieces.send(Piece::Bytes { buffer, offset: chunk.offset, len }).is_err() {
            return Ok(());
        }
        tally.wrote(&slot.role, u64::from(chunk.len), false);
    }
    Ok(())
}

/// Whether the target already holds this chunk, by its hash alone.
fn holds(file: &SlotFile, buffer: &mut Buffer, chunk: &Chunk) -> bool {
    let len = chunk.len as usize;
    let padded = file.padded(chunk.offset, len);
    if file.read(buffer.head_mut(padded), chunk.offset).is_err() {
        return false;
    }
    Digest(Sha256::digest(buffer.head(len)).into()) == chunk.digest
}

fn check_aligned(bundle: &BundleReader, slot: &Slot, chunk: &Chunk) -> Result<(), PrepareError> {
    let size = bundle.payloads().iter().find(|payload| payload.role == slot.role).map_or(0, |payload| payload.size);
    let last = chunk.offset.saturating_add(u64::from(chunk.len)) == size;
    let aligned = |value: u64| value.is_multiple_of(ALIGN as u64);
    if aligned(chunk.offset) && (last || aligned(u64::from(chunk.len))) {
        return Ok(());
    }
    Err(PrepareError::Unaligned { role: slot.role.clone(), offset: chunk.offset })
}

/// Ends with an error by dropping both its ends, which ends the feeding thread too.
fn write_pieces(
    slot: &Slot,
    file: &SlotFile,
    to_write: Receiver<Piece>,
    written: SyncSender<Buffer>,
) -> Result<(), PrepareError> {
    let mut zeroes: Option<Buffer> = None;
    while let Ok(piece) = to_write.recv() {
        match piece {
            Piece::Bytes { mut buffer, offset, len } => {
                let padded = file.padded(offset, len);
                if let Some(padding) = buffer.head_mut(padded).get_mut(len..) {
                    padding.fill(0);
                }
                if len > 0 {
                    file.write(buffer.head(padded), offset).map_err(slot_error("write", slot, offset))?;
                }
                let _ = written.send(buffer);
            }
            Piece::Zeroes { offset, len } => {
                let padded = file.padded(offset, len as usize);
                let by_command = file.zero(offset, padded as u64).map_err(slot_error("zero", slot, offset))?;
                if !by_command {
                    let zeroes = zeroes.get_or_insert_with(|| Buffer::new(MAX_CHUNK_BYTES as usize));
                    file.write(zeroes.head(padded), offset).map_err(slot_error("write", slot, offset))?;
                }
            }
        }
    }
    Ok(())
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
