//! `bascule-image bundle verify`.

use std::fs::File;
use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use bascule_image::delta::whole::BaseFile;
use bascule_image::limits::MAX_CHUNK_BYTES;
use bascule_image::manifest::{BlobsPlace, DeltaRef};
use bascule_image::{BundleError, BundleReader, ChunkMaker, DeltaTable, Digest, Payload, TrustStore};
use clap::Args;
use indicatif::ProgressBar;
use sha2::{Digest as _, Sha256};

use super::bundle::{describe, input};
use super::{show, value};

/// A bundle, and whom to trust.
#[derive(Debug, Args)]
pub(crate) struct Verify {
    /// The bundle, or - for standard input.
    bundle: PathBuf,
    /// The root.json that devices pin.
    #[arg(long)]
    root: PathBuf,
    /// An older image: the delta made against it is checked as well; may be repeated.
    #[arg(long = "base", value_name = "IMAGE")]
    bases: Vec<PathBuf>,
}

/// An older image, known by its digest.
struct Base {
    path: PathBuf,
    digest: Digest,
    used: bool,
}

impl Verify {
    pub(crate) fn run(self) -> anyhow::Result<()> {
        let scratch = tempfile::tempdir().context("making a temporary directory failed")?;
        let trust = TrustStore::new(&self.root, scratch.path().join("accepted.json"));
        let mut reader = BundleReader::open(input(&self.bundle)?, &trust, value::now()?)?;
        let mut bases = Vec::new();
        for path in &self.bases {
            bases.push(Base { path: path.clone(), digest: digest_of(path)?, used: false });
        }
        reader.read_tables(&|_, _| true)?;
        let payloads = reader.payloads().to_vec();
        let total = payloads.iter().map(|payload| work(payload, &bases)).sum();
        let bar = show::progress(total, "checking");
        let mut notes = Vec::new();
        for (index, payload) in payloads.iter().enumerate() {
            for (number, delta) in payload.deltas.iter().enumerate() {
                let Some(base) = bases.iter_mut().find(|base| base.digest == delta.base.sha256) else {
                    notes.push(format!(
                        "{}: the delta from {} was not checked: no --base is its image",
                        payload.role,
                        name(delta)
                    ));
                    continue;
                };
                base.used = true;
                check_delta(&mut reader, (index, number), payload, &base.path, &bar)?;
            }
            if payload.blobs.place == BlobsPlace::Absent {
                notes.push(format!("{}: there are no full data", payload.role));
            } else {
                check_full(&mut reader, index, payload, &bar)?;
            }
        }
        bar.finish_and_clear();
        let unused = bases.iter().find(|base| !base.used);
        let unused = unused.map(|base| format!("{:?}, SHA-256 {}", base.path, base.digest));
        ensure!(unused.is_none(), "no delta of the bundle is made against {}", unused.unwrap_or_default());
        show::line(format_args!("{} is whole and signed", self.bundle.display()));
        describe(reader.manifest(), &reader.manifest_digest(), &[]);
        show::line(format_args!("  expires      {}", reader.accepted().expires()));
        notes.iter().for_each(|note| show::line(format_args!("  note         {note}")));
        Ok(reader.finish()?)
    }
}

/// What a person calls the base of a delta.
pub(crate) fn name(delta: &DeltaRef) -> String {
    match &delta.base.version {
        Some(version) => version.clone(),
        None => delta.base.sha256.to_string().chars().take(16).collect(),
    }
}

/// How many bytes of output are made of a payload.
fn work(payload: &Payload, bases: &[Base]) -> u64 {
    let full = u64::from(payload.blobs.place != BlobsPlace::Absent);
    let known = |delta: &&DeltaRef| bases.iter().any(|base| base.digest == delta.base.sha256);
    let deltas = payload.deltas.iter().filter(known).count() as u64;
    payload.size.saturating_mul(full.saturating_add(deltas))
}

fn digest_of(path: &Path) -> anyhow::Result<Digest> {
    let about = || format!("reading {path:?} failed");
    let mut hash = Sha256::new();
    let mut file = File::open(path).with_context(about)?;
    let length = file.metadata().with_context(about)?.len();
    let bar = show::progress(length, "reading the base");
    let mut buffer = vec![0; MAX_CHUNK_BYTES as usize];
    loop {
        let count = std::io::Read::read(&mut file, &mut buffer).with_context(about)?;
        let Some(part) = buffer.get(..count).filter(|part| !part.is_empty()) else { break };
        hash.update(part);
        bar.inc(count as u64);
    }
    bar.finish_and_clear();
    Ok(Digest(hash.finalize().into()))
}

fn check_delta(
    reader: &mut BundleReader,
    (index, number): (usize, usize),
    payload: &Payload,
    base: &Path,
    bar: &ProgressBar,
) -> anyhow::Result<()> {
    reader.begin_delta(index, number)?;
    let about = || format!("the delta against {base:?} cannot be applied");
    let table = reader.delta_table(index, number);
    let size = payload.deltas.get(number).map_or(0, |delta| delta.base.size);
    let mut old = BaseFile::open(base, size, table.and_then(DeltaTable::units)).with_context(about)?;
    let (mut maker, mut whole) = (ChunkMaker::new(table.and_then(DeltaTable::prediction)), Sha256::new());
    let (mut stored, mut out) = (Vec::new(), vec![0; MAX_CHUNK_BYTES as usize]);
    while let Some(chunk) = reader.skip_delta_chunk() {
        reader.fetch_delta(&chunk, &mut stored)?;
        let made = maker.make(&chunk, &stored, &mut old, &mut out).map_err(|error| old.cause(error));
        whole.update(made.with_context(about)?);
        bar.inc(u64::from(chunk.output.len));
    }
    compare(whole, payload)
}

fn check_full(reader: &mut BundleReader, index: usize, payload: &Payload, bar: &ProgressBar) -> anyhow::Result<()> {
    reader.begin_payload(index)?;
    let (mut whole, mut out) = (Sha256::new(), vec![0; MAX_CHUNK_BYTES as usize]);
    while let Some(chunk) = reader.next_chunk(&mut out)? {
        whole.update(out.get(..chunk.len as usize).unwrap_or_default());
        bar.inc(u64::from(chunk.len));
    }
    compare(whole, payload)
}

fn compare(whole: Sha256, payload: &Payload) -> anyhow::Result<()> {
    if Digest(whole.finalize().into()) == payload.sha256 {
        return Ok(());
    }
    let fault = format!("the image of {:?} has another SHA-256 than its manifest says", payload.role);
    Err(BundleError::ManifestInvalid(fault).into())
}
