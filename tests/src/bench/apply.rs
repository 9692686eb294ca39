//! How fast an install by delta is, next to an install of the whole image and to writing the new image with dd.
//!
//! ```text
//! pair a as ext4; the booted slot and the target slot are loop devices, both with the old image
//!   for each round: delta over HTTP, delta from a file, whole image from a file, dd (through the page cache), dd (past it)
//!                     (in turn, each round beginning with another)
//!     before each:  the target is filled with the old image, the page cache is dropped, the source is read once
//!     after each:   the target's SHA-256 is compared with the new image's
//!   at the end:     the booted slot still holds the old image
//! ```

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use bascule_core::Digest;

use super::process::Usage;
use super::signed::Signed;
use super::slot::{LoopSlot, sha256};
use super::{dd, delta, ours, report};

/// Where the table is written, below the folder of the images.
const REPORT: &str = "bench-apply.md";

/// What is measured against what, in the order of one round.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    DeltaHttp,
    DeltaFile,
    FullFile,
    DdCached,
    DdDirect,
}

impl Way {
    const ALL: [Way; 5] = [Way::DeltaHttp, Way::DeltaFile, Way::FullFile, Way::DdCached, Way::DdDirect];

    fn title(self) -> &'static str {
        match self {
            Way::DeltaHttp => "Bascule, delta over loopback HTTP",
            Way::DeltaFile => "Bascule, delta from a file",
            Way::FullFile => "Bascule, whole image from a file",
            Way::DdCached => "dd conv=fsync, read back, sha256sum",
            Way::DdDirect => "dd oflag=direct conv=fsync, read back, sha256sum",
        }
    }
}

/// The pair, the slots and the devices.
struct Bench {
    old: PathBuf,
    new: PathBuf,
    wanted: Digest,
    target: LoopSlot,
    booted: LoopSlot,
    by_delta: ours::Device,
    whole: ours::Device,
    delta_bundle: Signed,
    whole_bundle: Signed,
}

/// One install.
struct Run {
    way: Way,
    usage: Usage,
    /// What the server sent.
    fetched: Option<u64>,
}

/// Measures installs of pair a `rounds` times, prints the table and writes it beside the images.
///
/// # Errors
/// When there are no loop devices or pairs, something that was measured did not do its work, or the booted slot changed.
pub fn apply(rounds: usize) -> Result<()> {
    let before = super::load();
    let folder = delta::pairs()?;
    let scratch = tempfile::Builder::new().prefix("bench-").tempdir_in(&folder)?;
    let bench = Bench::new(&folder, scratch.path())?;
    let mut runs = Vec::new();
    for round in 1..=rounds {
        // Each round begins with another one, so that nobody always follows the same.
        let (first, rest) = Way::ALL.split_at(round % Way::ALL.len());
        for &way in rest.iter().chain(first) {
            let run = bench.measure(way)?;
            println!("bench: round {round}, {}: {}", way.title(), run.usage.line());
            runs.push(run);
        }
    }
    let held = sha256(bench.booted.device())? == sha256(&bench.old)?;
    ensure!(held, "the booted slot was written");
    let text = bench.text(&runs, &(before, super::load()))?;
    println!("\n{text}");
    let file = folder.with_file_name(REPORT);
    fs::write(&file, &text).with_context(|| format!("cannot write {}", file.display()))?;
    println!("bench: written to {}", file.display());
    Ok(())
}

impl Bench {
    fn new(pairs: &Path, scratch: &Path) -> Result<Bench> {
        let (old, new) = (pairs.join("a-old.ext4"), pairs.join("a-new.ext4"));
        let target = LoopSlot::new(&scratch.join("target.img"), &old)?;
        let booted = LoopSlot::new(&scratch.join("booted.img"), &old)?;
        println!("bench: making bundles");
        let delta_bundle = Signed::with_delta(&new, &old, &scratch.join("delta"))?;
        let whole_bundle = Signed::make(&new, &scratch.join("whole"))?;
        let by_delta = ours::Device::new(&scratch.join("delta/device"), &delta_bundle, &target)?.booted_from(&booted);
        let whole = ours::Device::new(&scratch.join("whole/device"), &whole_bundle, &target)?.booted_from(&booted);
        let wanted = sha256(&new)?;
        Ok(Bench { old, new, wanted, target, booted, by_delta, whole, delta_bundle, whole_bundle })
    }

    fn measure(&self, way: Way) -> Result<Run> {
        self.target.restore()?;
        super::drop_page_cache();
        super::read_once(self.source(way))?;
        super::read_once(&super::built("basculed")?)?;
        let (usage, fetched) = self.install(way)?;
        ensure!(sha256(self.target.device())? == self.wanted, "{} wrote something else", way.title());
        Ok(Run { way, usage, fetched })
    }

    fn source(&self, way: Way) -> &Path {
        match way {
            Way::DeltaHttp | Way::DeltaFile => &self.delta_bundle.file,
            Way::FullFile => &self.whole_bundle.file,
            Way::DdCached | Way::DdDirect => &self.new,
        }
    }

    fn install(&self, way: Way) -> Result<(Usage, Option<u64>)> {
        let dd = |cache| dd::line(&self.new, self.target.device(), cache, &self.wanted);
        match way {
            Way::DeltaHttp => {
                let (usage, fetched) = self.by_delta.over_http()?;
                let whole = fs::metadata(&self.whole_bundle.file)?.len();
                ensure!(fetched < whole / 2, "the daemon fetched {fetched} bytes: it did not use the delta");
                Ok((usage, Some(fetched)))
            }
            Way::DeltaFile => Ok((self.by_delta.install()?, None)),
            Way::FullFile => Ok((self.whole.install()?, None)),
            Way::DdCached => Ok((dd(dd::Cache::Through)?, None)),
            Way::DdDirect => Ok((dd(dd::Cache::Past)?, None)),
        }
    }

    fn text(&self, runs: &[Run], load: &(String, String)) -> Result<String> {
        let mut text = String::new();
        report::write_date_and_machine(&mut text, load)?;
        let length = |path: &Path| -> Result<f64> { Ok(fs::metadata(path)?.len() as f64 / 1e6) };
        let (image, whole) = (length(&self.new)?, length(&self.whole_bundle.file)?);
        let both = length(&self.delta_bundle.file)?;
        writeln!(
            text,
            "- image {image:.1} MB, bundle of it {whole:.2} MB, with the delta from the old one {both:.2} MB"
        )?;
        let direct = if self.target.direct_io() && self.booted.direct_io() { "on" } else { "OFF" };
        writeln!(text, "- loop devices with direct I/O {direct}\n")?;
        writeln!(
            text,
            "| install | wall s (median) | each | against dd | CPU s | peak MiB | written MB | fetched MB |"
        )?;
        writeln!(text, "|---|---|---|---|---|---|---|---|")?;
        let best_dd = [Way::DdCached, Way::DdDirect].into_iter().filter_map(|way| wall(runs, way)).reduce(f64::min);
        for way in Way::ALL {
            let Some(median) = wall(runs, way) else { continue };
            write_row(&mut text, way, &of(runs, way), median, best_dd.map(|dd| median / dd))?;
        }
        Ok(text)
    }
}

fn write_row(text: &mut String, way: Way, runs: &[&Run], median: f64, ratio: Option<f64>) -> std::fmt::Result {
    let each: Vec<_> = runs.iter().map(|run| format!("{:.2}", run.usage.wall.as_secs_f64())).collect();
    let ratio = ratio.map_or_else(|| "-".to_owned(), |ratio| format!("{ratio:.2}"));
    let fetched = runs.iter().filter_map(|run| run.fetched).max();
    let fetched = fetched.map_or_else(|| "-".to_owned(), |bytes| format!("{:.2}", bytes as f64 / 1e6));
    writeln!(
        text,
        "| {} | {median:.2} | {} | {ratio} | {:.2} | {:.1} | {:.0} | {fetched} |",
        way.title(),
        each.join(" "),
        report::median(runs.iter().map(|run| run.usage.cpu_seconds)).unwrap_or(0.0),
        runs.iter().map(|run| run.usage.peak_bytes).max().unwrap_or(0) as f64 / f64::from(1 << 20),
        runs.iter().map(|run| run.usage.written_bytes).max().unwrap_or(0) as f64 / 1e6,
    )
}

fn of(runs: &[Run], way: Way) -> Vec<&Run> {
    runs.iter().filter(|run| run.way == way).collect()
}

fn wall(runs: &[Run], way: Way) -> Option<f64> {
    report::median(of(runs, way).iter().map(|run| run.usage.wall.as_secs_f64()))
}
