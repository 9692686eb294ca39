//! What a bundle with a delta has to cost, worked out here from the bundle and the disk, not asked of the device.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use anyhow::{Context, Result};
use bascule_image::delta::repack::Fault;
use bascule_image::manifest::DeltaRef;
use bascule_image::{
    BundleFile, BundleReader, DeltaChunk, Payload, Timestamp, Transform, TrustStore, Units, Way, read_ranges,
    source_matches,
};

use crate::{DemoSystem, HttpServer, Images};

/// A bundle with one payload and one delta.
pub(super) struct DeltaBundle {
    reader: BundleReader,
    payload: Payload,
    delta: DeltaRef,
}

/// Chunks, in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Bytes {
    /// As they lie in the image.
    pub(super) image: u64,
    /// As the full data store them.
    pub(super) stored: u64,
}

/// What a delta makes of the image that a slot holds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Fit {
    /// Chunks that are made of the slot.
    pub(super) copied: Bytes,
    /// Chunks whose source the slot does not hold.
    pub(super) missing: Bytes,
}

impl DeltaBundle {
    /// Opens a system's bundle as a device does that trusts our keys.
    pub(super) fn open(images: &Images, system: &DemoSystem) -> Result<DeltaBundle> {
        let scratch = tempfile::tempdir()?;
        let trust = TrustStore::new(images.directory.join("keys/root.json"), scratch.path().join("accepted.json"));
        let input = BundleFile::open(&system.bundle)?;
        let mut reader = BundleReader::open(Box::new(input), &trust, Timestamp::now())?;
        reader.read_tables(&|_, _| true)?;
        let payload = reader.payloads().first().context("the bundle holds nothing")?.clone();
        let delta = payload.deltas.first().context("the bundle holds no delta")?.clone();
        Ok(DeltaBundle { reader, payload, delta })
    }

    /// Length of the whole bundle.
    pub(super) fn length(&self) -> u64 {
        self.reader.total_len()
    }

    /// Length of everything before the first blob: what every opening of the bundle fetches.
    pub(super) fn head(&self) -> u64 {
        self.reader.head_len()
    }

    /// Stored bytes of the delta.
    pub(super) fn delta(&self) -> u64 {
        self.delta.blobs
    }

    /// Length of the image.
    pub(super) fn image(&self) -> u64 {
        self.payload.size
    }

    /// The version that the delta is against.
    pub(super) fn base(&self) -> String {
        self.delta.base.version.clone().unwrap_or_default()
    }

    /// Stored bytes of the chunk that has most of them.
    pub(super) fn largest(&self) -> Result<u64> {
        let full = self.reader.chunk_table(0).context("there is no chunk table")?;
        let delta = self.reader.delta_table(0, 0).context("there is no delta table")?;
        Ok(delta.chunks(full).map(|chunk| u64::from(chunk.stored_len)).max().unwrap_or_default())
    }

    /// Bytes of the image in chunks some source of which is predicted, and in those that are packed again.
    pub(super) fn transformed(&self) -> Result<(u64, u64)> {
        let full = self.reader.chunk_table(0).context("there is no chunk table")?;
        let delta = self.reader.delta_table(0, 0).context("there is no delta table")?;
        let (mut predicted, mut packed) = (0, 0);
        for chunk in delta.chunks(full) {
            let length = u64::from(chunk.output.len);
            let is_predicted = chunk.with_source().any(|one| one.transform == Transform::Predicted);
            predicted += if is_predicted { length } else { 0 };
            packed += if chunk.way == Way::Packed { length } else { 0 };
        }
        Ok((predicted, packed))
    }

    /// Reads of the slot at byte `start` of `disk` what every chunk of the delta is made of.
    pub(super) fn fit(&self, disk: &Path, start: u64) -> Result<Fit> {
        let disk = File::open(disk)?;
        let full = self.reader.chunk_table(0).context("there is no chunk table")?;
        let delta = self.reader.delta_table(0, 0).context("there is no delta table")?;
        let mut fit = Fit::default();
        for (chunk, whole) in delta.chunks(full).zip(full.chunks()) {
            if chunk.with_source().next().is_none() {
                continue;
            }
            let mut held = true;
            for one in chunk.with_source() {
                held &= source_matches(one, &source(&disk, start, one, delta.units().as_deref())?);
            }
            let sum = if held { &mut fit.copied } else { &mut fit.missing };
            sum.image += u64::from(whole.len);
            sum.stored += u64::from(whole.stored_len);
        }
        Ok(fit)
    }
}

/// The source of a chunk as the slot has it; where compressed data are not what they were, bytes that match nothing.
fn source(disk: &File, start: u64, chunk: &DeltaChunk, units: Option<&Units>) -> Result<Vec<u8>> {
    let mut source = vec![0; usize::try_from(chunk.source_len())?];
    let mut read_at = |at, place: &mut [u8]| disk.read_exact_at(place, start + at);
    match read_ranges(units, &chunk.source, &mut source, &mut read_at) {
        Ok(()) => Ok(source),
        Err(Fault::Read(error)) => Err(error.into()),
        Err(Fault::Packed(_)) => Ok(Vec::new()),
    }
}

/// Counts what the server sends from a moment on.
#[derive(Debug, Clone, Copy)]
pub(super) struct Wire {
    bytes: u64,
    requests: usize,
}

impl Wire {
    pub(super) fn begin(server: &HttpServer) -> Wire {
        Wire { bytes: server.body_bytes(), requests: server.requests().len() }
    }

    /// Bytes of bodies since then.
    pub(super) fn bytes(&self, server: &HttpServer) -> u64 {
        server.body_bytes().saturating_sub(self.bytes)
    }

    /// How often a bundle was opened since then: requests for bytes from the first one on.
    pub(super) fn openings(&self, server: &HttpServer) -> u64 {
        let requests = server.requests();
        let since = requests.get(self.requests..).unwrap_or_default().iter();
        let first = since.filter(|it| it.range.as_ref().is_none_or(|range| range.starts_with("bytes=0-")));
        first.count() as u64
    }
}

/// A number of bytes as people say it.
pub(super) fn mebibytes(bytes: u64) -> String {
    format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20))
}
