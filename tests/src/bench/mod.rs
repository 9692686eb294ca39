//! How fast and how small an install is, next to what people would use instead, in one run on one loop device.
//!
//! ```text
//! for the demo's v2, and for an image as long without a single range of zeroes:
//!   for each round: ours from a file, ours over HTTP, dd (through the page cache), dd (past it), rauc
//!                     (in turn, each round beginning with another)
//!     before each:  the slot is filled with the old system, the page cache is dropped, the source is read once
//!     after each:   the slot's SHA-256 is compared with the image's
//! ```
//! `docs/performance.md` says what is measured and how, and keeps the last figures.

mod apply;
mod dd;
mod delta;
mod ours;
mod process;
mod rauc;
mod report;
mod service;
mod signed;
mod slot;

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use bascule_core::Digest;

pub use apply::apply;
pub use delta::{Options, delta};
pub use service::service;

use crate::Images;
use process::Usage;
use signed::Signed;
use slot::LoopSlot;

/// Where the table is written, below the folder of the images.
const REPORT: &str = "bench-install.md";
/// The image whose peak of memory is held against that of the large one.
const SMALL_BYTES: u64 = 64 << 20;

/// What is measured against what, in the order of one round.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    OursFile,
    OursHttp,
    DdCached,
    DdDirect,
    Rauc,
}

impl Way {
    const ALL: [Way; 5] = [Way::OursFile, Way::OursHttp, Way::DdCached, Way::DdDirect, Way::Rauc];

    fn title(self) -> &'static str {
        match self {
            Way::OursFile => "Bascule, from a file",
            Way::OursHttp => "Bascule, over loopback HTTP",
            Way::DdCached => "dd conv=fsync, read back, sha256sum",
            Way::DdDirect => "dd oflag=direct conv=fsync, read back, sha256sum",
            Way::Rauc => "rauc install (does not read back)",
        }
    }
}

/// One image and everything that can be done with it.
struct Subject {
    title: &'static str,
    image: PathBuf,
    wanted: Digest,
    bundle: Signed,
    device: ours::Device,
    rauc: Result<rauc::Rauc>,
}

/// What was measured with one image.
#[derive(Debug)]
struct Series {
    title: &'static str,
    image_bytes: u64,
    bundle_bytes: u64,
    runs: Vec<(Way, Usage)>,
}

/// Resident memory of the daemon, in bytes.
#[derive(Debug, Clone, Copy)]
struct Memory {
    /// The peak of an install of a small image.
    peak_small: u64,
    /// Serving, nothing was ever asked.
    idle: u64,
    /// Serving, after it prepared the whole image.
    idle_after: u64,
}

/// Everything that was measured.
#[derive(Debug)]
struct Figures {
    series: Vec<Series>,
    rauc: Result<String, String>,
    zeroes: ours::Zeroes,
    memory: Memory,
    load: (String, String),
    drops_cache: bool,
    direct_io: bool,
}

/// Measures installs `rounds` times, prints the table and writes it beside the images.
///
/// # Errors
/// When there are no loop devices or images, or something that was measured did not do its work.
pub fn install(rounds: usize) -> Result<()> {
    let before = load();
    let images = Images::load()?;
    let scratch = tempfile::Builder::new().prefix("bench-").tempdir_in(&images.directory)?;
    let slot = LoopSlot::new(&scratch.path().join("slot.img"), &images.system("v1")?.image)?;
    println!("bench: making bundles, for us and for rauc");
    let real = Subject::real(&images, scratch.path(), &slot)?;
    let full = Subject::full(&real.image, scratch.path(), &slot)?;
    if let Err(error) = &real.rauc {
        println!("bench: rauc cannot be measured here: {error:#}");
    }
    let mut drops_cache = true;
    let mut series = Vec::new();
    for subject in [&real, &full] {
        println!("bench: {}", subject.title);
        series.push(subject.measure(rounds, &slot, &mut drops_cache)?);
    }
    let load = (before, load());
    slot.restore()?;
    let zeroes = real.device.zeroes()?;
    let figures = Figures {
        series,
        rauc: real.rauc.as_ref().map(|rauc| rauc.version().to_owned()).map_err(|error| format!("{error:#}")),
        zeroes,
        memory: memory(&real, &scratch.path().join("small"), &slot)?,
        load,
        drops_cache,
        direct_io: slot.direct_io(),
    };
    let text = report::text(&figures);
    println!("\n{text}");
    let file = images.directory.join(REPORT);
    fs::write(&file, &text).with_context(|| format!("cannot write {}", file.display()))?;
    println!("bench: written to {}", file.display());
    Ok(())
}

fn memory(real: &Subject, folder: &Path, slot: &LoopSlot) -> Result<Memory> {
    let (idle, idle_after) = real.device.idle()?;
    fs::create_dir_all(folder)?;
    let image = folder.join("small.img");
    signed::head_of(&real.image, SMALL_BYTES, &image)?;
    let small = ours::Device::new(&folder.join("device"), &Signed::make(&image, folder)?, slot)?;
    let peak_small = small.install_over_http()?.peak_bytes.max(small.install()?.peak_bytes);
    Ok(Memory { peak_small, idle, idle_after })
}

impl Subject {
    /// The demo's second system, in the bundle of the demo.
    fn real(images: &Images, scratch: &Path, slot: &LoopSlot) -> Result<Subject> {
        let system = images.system("v2")?;
        let bundle = Signed { file: system.bundle.clone(), root: images.directory.join("keys/root.json") };
        Subject::new("a real root file system", &system.image, bundle, &scratch.join("real"), slot)
    }

    /// An image of the same contents without zeroes.
    fn full(real: &Path, scratch: &Path, slot: &LoopSlot) -> Result<Subject> {
        let image = scratch.join("full.img");
        signed::without_zeroes(real, &image)?;
        let bundle = Signed::make(&image, &scratch.join("bundle"))?;
        Subject::new("as large an image without zeroes", &image, bundle, &scratch.join("full"), slot)
    }

    fn new(title: &'static str, image: &Path, bundle: Signed, folder: &Path, slot: &LoopSlot) -> Result<Subject> {
        fs::create_dir_all(folder)?;
        Ok(Subject {
            title,
            wanted: slot::sha256(image)?,
            device: ours::Device::new(&folder.join("device"), &bundle, slot)?,
            rauc: rauc::Rauc::new(&folder.join("rauc"), image, slot.device()),
            image: image.to_owned(),
            bundle,
        })
    }

    fn measure(&self, rounds: usize, slot: &LoopSlot, drops_cache: &mut bool) -> Result<Series> {
        let mut runs = Vec::new();
        for round in 1..=rounds {
            // Each round begins with another one, so that nobody always follows the same.
            let (first, rest) = Way::ALL.split_at(round % Way::ALL.len());
            for &way in rest.iter().chain(first) {
                let Some(source) = self.source(way) else { continue };
                slot.restore()?;
                *drops_cache &= drop_page_cache();
                read_once(source)?;
                read_once(&built("basculed")?)?;
                let usage = self.install(way, slot)?;
                ensure!(slot::sha256(slot.device())? == self.wanted, "{} wrote something else", way.title());
                println!("bench: round {round}, {}: {}", way.title(), usage.line());
                runs.push((way, usage));
            }
        }
        let (image_bytes, bundle_bytes) = (fs::metadata(&self.image)?.len(), fs::metadata(&self.bundle.file)?.len());
        Ok(Series { title: self.title, image_bytes, bundle_bytes, runs })
    }

    /// What is read, unless this way cannot be gone here.
    fn source(&self, way: Way) -> Option<&Path> {
        match way {
            Way::OursFile | Way::OursHttp => Some(&self.bundle.file),
            Way::DdCached | Way::DdDirect => Some(&self.image),
            Way::Rauc => self.rauc.as_ref().ok().map(rauc::Rauc::bundle),
        }
    }

    fn install(&self, way: Way, slot: &LoopSlot) -> Result<Usage> {
        match way {
            Way::OursFile => self.device.install(),
            Way::OursHttp => self.device.install_over_http(),
            Way::DdCached => dd::line(&self.image, slot.device(), dd::Cache::Through, &self.wanted),
            Way::DdDirect => dd::line(&self.image, slot.device(), dd::Cache::Past, &self.wanted),
            Way::Rauc => self.rauc.as_ref().map_err(|error| anyhow::anyhow!("{error:#}"))?.install(),
        }
    }
}

/// Load averages of one, five and fifteen minutes, as the kernel prints them.
fn load() -> String {
    let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split_whitespace().take(3).collect::<Vec<_>>().join(" ")
}

/// Whether the page cache could be dropped.
fn drop_page_cache() -> bool {
    fs::write("/proc/sys/vm/drop_caches", "3\n").is_ok()
}

/// Brings a file into the page cache, so that nobody is measured by how fast this machine's disk is read.
fn read_once(path: &Path) -> Result<()> {
    let mut file = fs::File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
    std::io::copy(&mut file, &mut std::io::sink())?;
    Ok(())
}

/// A program that `cargo xtask` built beside this one.
fn built(program: &str) -> Result<PathBuf> {
    let path = std::env::current_exe()?.with_file_name(program);
    ensure!(path.is_file(), "{} is missing: start this through `cargo xtask bench install`", path.display());
    Ok(path)
}
