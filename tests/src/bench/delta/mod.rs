//! How small deltas are and what they cost, ours and everybody else's, in one run on the same pairs of images.
//!
//! ```text
//! for each pair and format:
//!   for each tool:  both images are read once, so that no tool pays for this machine's disk
//!                   create the delta: its length, time, processor, memory
//!                   apply it to the old image: time, processor, memory; the output's SHA-256 is the new image's
//! ```
//! Tools that fetch chunks have no delta: what they would fetch is counted. `docs/performance.md` keeps the last figures.

mod job;
mod kernel;
mod options;
mod peers;
mod stores;
mod table;

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

pub use options::Options;

use super::process::Usage;
use super::slot::sha256;
use job::Job;
use options::{Format, Pair};
use peers::Peer;

/// Where the table is written, below the folder of the images.
const REPORT: &str = "bench-delta.md";

/// What one tool did with one pair.
#[derive(Debug)]
struct Row {
    title: String,
    /// Length of the delta, or what would be fetched.
    bytes: u64,
    create: Option<Usage>,
    /// None when the tool needs a server of its own to apply, or there is nothing to apply.
    apply: Option<Usage>,
    /// Whether this is about the same thing as the others: the whole image.
    whole: bool,
}

/// What was measured with one pair in one format.
#[derive(Debug)]
struct Series {
    pair: Pair,
    format: Format,
    old_bytes: u64,
    new_bytes: u64,
    rows: Vec<Row>,
    /// Who was not measured, and why.
    skipped: Vec<String>,
}

/// Measures, prints the tables and writes them beside the images.
///
/// # Errors
/// When there are no pairs, or a tool made something else than the new image.
pub fn delta(options: &Options) -> Result<()> {
    let before = super::load();
    let folder = pairs()?;
    let scratch = tempfile::Builder::new().prefix("bench-").tempdir_in(&folder)?;
    let file = folder.with_file_name(REPORT);
    let mut all = Vec::new();
    let mut text = String::new();
    for (pair, format) in options.series() {
        all.push(measure(options, pair, format, &folder, scratch.path())?);
        // All of it takes most of an hour: what was measured is there if the rest is not waited for.
        text = table::text(&all, &(before.clone(), super::load()));
        fs::write(&file, &text).with_context(|| format!("cannot write {}", file.display()))?;
    }
    println!("\n{text}");
    println!("bench: written to {}", file.display());
    Ok(())
}

/// The folder of the pairs that `cargo xtask bench` made.
pub(super) fn pairs() -> Result<PathBuf> {
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("no workspace above the tests")?;
    let folder = workspace.join("target/bascule/pairs");
    ensure!(folder.is_dir(), "{} is missing: start this through `cargo xtask bench`", folder.display());
    Ok(folder)
}

fn measure(options: &Options, pair: Pair, format: Format, folder: &Path, scratch: &Path) -> Result<Series> {
    let image = |age: &str| folder.join(format!("{}-{age}.{}", pair.name(), format.name()));
    let job = Job::new(image("old"), image("new"), scratch)?;
    let (old_bytes, new_bytes) = (fs::metadata(&job.old)?.len(), fs::metadata(&job.new)?.len());
    let mut series = Series { pair, format, old_bytes, new_bytes, rows: Vec::new(), skipped: Vec::new() };
    for peer in peers::ALL.iter().filter(|peer| options.wants(peer, format)) {
        println!("bench: pair {}, {}: {}", pair.name(), format.name(), peer.title);
        super::read_once(&job.old)?;
        super::read_once(&job.new)?;
        match peer.measure(&job) {
            Ok(row) => {
                println!("bench:   {:.3} MB", row.bytes as f64 / 1e6);
                row.create.iter().for_each(|usage| println!("bench:   create {}", usage.line()));
                row.apply.iter().for_each(|usage| println!("bench:   apply  {}", usage.line()));
                check(peer, &row, &job)?;
                series.rows.push(row);
            }
            Err(error) => {
                println!("bench:   not measured: {error:#}");
                series.skipped.push(format!("{}: {error:#}", peer.title));
            }
        }
        job.clear()?;
    }
    Ok(series)
}

/// Compares what was made of the old image and the delta with the new image.
fn check(peer: &Peer, row: &Row, job: &Job) -> Result<()> {
    if row.apply.is_some() && row.whole {
        ensure!(sha256(&job.out())? == job.wanted, "{} made something else than the new image", peer.title);
    }
    Ok(())
}
