//! Watches the demo's own service while the device is busy.

use std::io::Read;
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

/// How often a watch asks.
const PAUSE: Duration = Duration::from_millis(250);

/// How long one answer may take; the guest shares one emulated processor.
const PATIENCE: Duration = Duration::from_secs(20);

/// One answer of the service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pong {
    /// The version of the system that answered.
    pub version: String,
    /// How many answers that run of the service has given.
    pub count: u64,
}

impl Pong {
    /// Asks the service at `address` once.
    ///
    /// # Errors
    /// When nothing answers in time or the answer has another form.
    pub fn ask(address: SocketAddr) -> Result<Pong> {
        let mut stream = TcpStream::connect_timeout(&address, PATIENCE).context("nothing listens")?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).context("no answer")?;
        let mut words = answer.split_whitespace();
        let (Some("pong"), Some(version), Some(count)) = (words.next(), words.next(), words.next()) else {
            anyhow::bail!("the answer is {answer:?}");
        };
        Ok(Pong { version: version.to_owned(), count: count.parse()? })
    }
}

/// Asks the service again and again until it is told to stop.
#[derive(Debug)]
pub struct PingWatch {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<PingReport>>,
}

/// What a watch saw.
#[derive(Debug, Clone, Default)]
pub struct PingReport {
    /// Questions that were answered.
    pub answers: u64,
    /// Questions that were not.
    pub failures: u64,
    /// The longest time between two answers, or between the watch's ends and the answers next to them.
    pub longest_silence: Duration,
    /// Versions that answered, in the order of their first answers.
    pub versions: Vec<String>,
}

impl PingWatch {
    pub(crate) fn start(address: SocketAddr) -> PingWatch {
        let stop = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&stop);
        let thread = std::thread::spawn(move || watch(address, &told));
        PingWatch { stop, thread: Some(thread) }
    }

    /// Ends the watch and says what it saw.
    #[must_use]
    pub fn stop(mut self) -> PingReport {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.take().and_then(|thread| thread.join().ok()).unwrap_or_default()
    }
}

impl Drop for PingWatch {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

fn watch(address: SocketAddr, stop: &AtomicBool) -> PingReport {
    let mut report = PingReport::default();
    let mut last_answer = Instant::now();
    while !stop.load(Ordering::Relaxed) {
        match Pong::ask(address) {
            Ok(pong) => {
                report.answers += 1;
                report.longest_silence = report.longest_silence.max(last_answer.elapsed());
                last_answer = Instant::now();
                if report.versions.last() != Some(&pong.version) {
                    report.versions.push(pong.version);
                }
            }
            Err(_) => report.failures += 1,
        }
        std::thread::sleep(PAUSE);
    }
    report.longest_silence = report.longest_silence.max(last_answer.elapsed());
    report
}
