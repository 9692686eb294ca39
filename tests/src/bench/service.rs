//! What an application on the device notices of an update: how long its service takes to answer while nothing is done,
//! while a bundle is prepared as fast as it goes, and while slots are read and written at a limited pace. The preparing
//! process stands back as on a device: nice 19, the lowest place of the best-effort class.
//!
//! The service is a process of its own kind of load: each request reads a random 4 KiB block of a file past the page
//! cache and takes the SHA-256 of 64 KiB. It is asked over loopback, again and again, by one client.

use std::fmt::Write as _;
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::fcntl::OFlag;
use sha2::{Digest as _, Sha256};

use super::ours::Device;
use super::signed::Signed;
use super::slot::LoopSlot;
use crate::Images;

const REPORT: &str = "bench-service.md";
/// How much the 99th percentile may rise.
const TARGET: f64 = 1.20;
/// How long each way is watched in one round.
const SPAN: Duration = Duration::from_secs(12);
/// Between two requests.
const PAUSE: Duration = Duration::from_millis(4);
const BLOCK: u64 = 4096;
const FILE_BLOCKS: u64 = 32 << 10;
const HASHED: usize = 64 << 10;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    Quiet,
    /// Mebibytes per second of the slots, and half of that of the line.
    Limited(u32),
    Unlimited,
}

impl Way {
    const ALL: [Way; 5] = [Way::Quiet, Way::Limited(4), Way::Limited(16), Way::Limited(64), Way::Unlimited];

    fn title(self) -> String {
        match self {
            Way::Quiet => "nothing is installed".into(),
            Way::Limited(rate) => format!("preparing, slots at {rate} MiB/s"),
            Way::Unlimited => "preparing, no limit".into(),
        }
    }

    fn configuration(self) -> String {
        match self {
            Way::Limited(rate) => format!("[prepare]\nslot_bandwidth = \"{rate}M\"\n"),
            Way::Quiet | Way::Unlimited => String::new(),
        }
    }
}

/// Measures `rounds` times, prints the table and writes it beside the images.
///
/// # Errors
/// When there are no loop devices or images, or an install fails.
pub fn service(rounds: usize) -> Result<()> {
    let before = super::load();
    let images = Images::load()?;
    let system = images.system("v2")?;
    let scratch = tempfile::Builder::new().prefix("bench-").tempdir_in(&images.directory)?;
    let slot = LoopSlot::new(&scratch.path().join("slot.img"), &images.system("v1")?.image)?;
    let bundle = Signed::make(&system.image, scratch.path())?;
    let device = |way: Way| -> Result<Device> {
        let device = Device::new(&scratch.path().join("device"), &bundle, &slot)?;
        Ok(device.configured(&way.configuration()).standing_back())
    };
    let service = Service::start(&scratch.path().join("service.data"))?;
    let mut seen: Vec<(Way, Vec<Duration>)> = Way::ALL.map(|way| (way, Vec::new())).into();
    for round in 1..=rounds {
        for (way, latencies) in &mut seen {
            let client = Client::start(service.port);
            let until = Instant::now() + SPAN;
            while Instant::now() < until {
                match *way {
                    Way::Quiet => std::thread::sleep(SPAN),
                    way => device(way)?.install_for(SPAN)?,
                }
            }
            let new = client.stop()?;
            println!("bench: round {round}, {}: {}", way.title(), line(&new));
            latencies.extend(new);
        }
    }
    let text = table(&mut seen, &(before, super::load()))?;
    println!("\n{text}");
    let file = images.directory.join(REPORT);
    fs::write(&file, &text).with_context(|| format!("cannot write {}", file.display()))?;
    println!("bench: written to {}", file.display());
    Ok(())
}

fn table(seen: &mut [(Way, Vec<Duration>)], load: &(String, String)) -> Result<String> {
    let mut text = String::new();
    super::report::write_date_and_machine(&mut text, load)?;
    writeln!(text, "\n| while | answers | median ms | 99th percentile ms | against quiet | longest ms |")?;
    writeln!(text, "|---|---|---|---|---|---|")?;
    let mut quiet = None;
    for (way, latencies) in seen {
        latencies.sort_unstable();
        let [median, high, longest] = [0.5, 0.99, 1.0].map(|part| millis(at(latencies, part)));
        let ratio = high / *quiet.get_or_insert(high);
        let title = way.title();
        let count = latencies.len();
        writeln!(text, "| {title} | {count} | {median:.2} | {high:.2} | {ratio:.2} x | {longest:.1} |")?;
    }
    writeln!(text, "\nWanted: the 99th percentile with slots at 4 MiB/s at most {TARGET:.2} x.")?;
    Ok(text)
}

fn line(latencies: &[Duration]) -> String {
    let mut sorted = latencies.to_vec();
    sorted.sort_unstable();
    let [median, high] = [0.5, 0.99].map(|part| millis(at(&sorted, part)));
    format!("{} answers, median {median:.2} ms, 99th percentile {high:.2} ms", sorted.len())
}

#[allow(clippy::cast_precision_loss, clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "an index")]
fn at(sorted: &[Duration], part: f64) -> Duration {
    let last = sorted.len().saturating_sub(1);
    sorted.get((last as f64 * part) as usize).copied().unwrap_or_default()
}

fn millis(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1000.0
}

/// The application's service.
struct Service {
    port: u16,
}

impl Service {
    /// Serves until this process ends.
    fn start(path: &Path) -> Result<Service> {
        let mut data = File::create(path)?;
        let mut noise = [7u8; 32];
        for _ in 0..FILE_BLOCKS {
            noise = Sha256::digest(noise).into();
            data.write_all(&noise.repeat(128))?;
        }
        data.sync_all()?;
        let file = OpenOptions::new().read(true).custom_flags(OFlag::O_DIRECT.bits()).open(path)?;
        let listener = TcpListener::bind(("127.0.0.1", 0))?;
        let port = listener.local_addr()?.port();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                serve(stream, &file);
            }
        });
        Ok(Service { port })
    }
}

/// One byte in, one byte out, and some work between.
fn serve(mut stream: TcpStream, file: &File) {
    let work = vec![7u8; HASHED];
    let mut room = vec![0u8; 3 * 4096];
    let aligned = room.as_ptr().align_offset(4096);
    let Some(block) = room.get_mut(aligned..aligned + 4096) else { return };
    let mut byte = [0u8; 1];
    let mut place = 1u64;
    while stream.read_exact(&mut byte).is_ok() {
        place = place.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let read = file.read_exact_at(block, (place >> 33) % FILE_BLOCKS * BLOCK);
        let digest = Sha256::digest(&work);
        let answer = if read.is_ok() { digest.first().copied().unwrap_or_default() } else { 0 };
        if stream.write_all(&[answer]).is_err() {
            return;
        }
    }
}

struct Client {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Result<Vec<Duration>>>,
}

impl Client {
    fn start(port: u16) -> Client {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let thread = std::thread::spawn(move || {
            let mut stream = TcpStream::connect(("127.0.0.1", port))?;
            stream.set_nodelay(true)?;
            let mut latencies = Vec::new();
            let mut byte = [0u8; 1];
            while !stopped.load(Ordering::Relaxed) {
                let asked = Instant::now();
                stream.write_all(&[1])?;
                stream.read_exact(&mut byte)?;
                ensure!(byte != [0], "the service could not read its file");
                latencies.push(asked.elapsed());
                std::thread::sleep(PAUSE);
            }
            Ok(latencies)
        });
        Client { stop, thread }
    }

    fn stop(self) -> Result<Vec<Duration>> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().map_err(|_| anyhow::anyhow!("the client died"))?
    }
}
