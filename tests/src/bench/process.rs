//! Runs a program to its end and says what it took: time, processor, memory, and when it wrote and read the slot.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

/// How often a running program is looked at. Wall times are exact to this.
const LOOK_EVERY: Duration = Duration::from_millis(2);
/// Length of a clock tick in `/proc/PID/stat`: the kernel's ABI on every Linux we know.
const TICKS_PER_SECOND: f64 = 100.0;
/// Fewer sectors than this are the block layer looking at a device, not somebody copying an image.
const SOME_SECTORS: u64 = 2048;

/// What one way to install took.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Usage {
    /// From the start of the first program to the end of the last.
    pub(super) wall: Duration,
    /// User and system time of all its programs, in seconds.
    pub(super) cpu_seconds: f64,
    /// The largest resident set of any one of them.
    pub(super) peak_bytes: u64,
    /// Bytes that they caused to be written to devices past the page cache, or into it.
    pub(super) written_bytes: u64,
    /// How far it was when.
    pub(super) stages: Stages,
}

/// When the slot was written and read back, from the start of the program.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Stages {
    pub(super) first_write: Duration,
    pub(super) last_write: Duration,
    pub(super) first_read: Duration,
    pub(super) last_read: Duration,
}

impl Usage {
    pub(super) fn line(&self) -> String {
        format!(
            "{:.2} s wall, {:.2} s processor, {:.1} MiB peak, {:.1} MB written",
            self.wall.as_secs_f64(),
            self.cpu_seconds,
            self.peak_bytes as f64 / f64::from(1 << 20),
            self.written_bytes as f64 / 1e6
        )
    }

    /// One program after, or beside, this one.
    pub(super) fn add(&mut self, more: &Usage) {
        self.cpu_seconds += more.cpu_seconds;
        self.peak_bytes = self.peak_bytes.max(more.peak_bytes);
        self.written_bytes = self.written_bytes.saturating_add(more.written_bytes);
    }
}

/// The counters of a block device.
#[derive(Debug)]
struct Watch {
    stat: PathBuf,
    start: (u64, u64),
    last: (u64, u64),
}

impl Watch {
    fn new(device: &Path) -> Watch {
        let name = device.file_name().unwrap_or_default();
        let stat = Path::new("/sys/block").join(name).join("stat");
        let start = sectors(&stat);
        Watch { stat, start, last: start }
    }

    fn look(&mut self, now: Duration, stages: &mut Stages) {
        let (read, written) = sectors(&self.stat);
        if written > self.last.1 {
            if stages.last_write.is_zero() {
                stages.first_write = now;
            }
            stages.last_write = now;
        }
        if read > self.last.0 && read.saturating_sub(self.start.0) > SOME_SECTORS {
            if stages.last_read.is_zero() {
                stages.first_read = now;
            }
            stages.last_read = now;
        }
        self.last = (read, written);
    }
}

/// Sectors read and written so far: fields 3 and 7 of the kernel's `Documentation/block/stat.rst`.
fn sectors(stat: &Path) -> (u64, u64) {
    let text = fs::read_to_string(stat).unwrap_or_default();
    let mut fields = text.split_whitespace().map(|field| field.parse().unwrap_or(0));
    (fields.nth(2).unwrap_or(0), fields.nth(3).unwrap_or(0))
}

/// Runs a command that writes `device`; it must end with one of `good`.
///
/// # Errors
/// When it cannot be started or ends otherwise.
pub(super) fn run(command: &mut Command, device: &Path, good: &[i32]) -> Result<Usage> {
    let name = command.get_program().to_string_lossy().into_owned();
    let mut watch = Watch::new(device);
    let started = Instant::now();
    let child = command.spawn().with_context(|| format!("cannot start {name}"))?;
    let mut stages = Stages::default();
    let usage = follow(child, &name, started, good, |now| watch.look(now, &mut stages))?;
    Ok(Usage { stages, ..usage })
}

/// Follows a program that was started at `started` to its end.
///
/// # Errors
/// When it does not end well.
pub(super) fn finish(child: Child, name: &str, started: Instant) -> Result<Usage> {
    follow(child, name, started, &[0], |_| ())
}

fn follow(
    mut child: Child,
    name: &str,
    started: Instant,
    good: &[i32],
    mut look: impl FnMut(Duration),
) -> Result<Usage> {
    let pid = child.id();
    let mut usage = Usage::default();
    loop {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        if let Some(peak) = kib_of(&status, "VmHWM:") {
            usage.peak_bytes = usage.peak_bytes.max(peak);
        }
        let now = started.elapsed();
        look(now);
        // A zombie keeps its counters until it is waited for.
        if status.is_empty() || status.lines().any(|line| line.starts_with("State:\tZ")) {
            usage.wall = now;
            break;
        }
        thread::sleep(LOOK_EVERY);
    }
    usage.cpu_seconds = cpu_seconds(pid);
    usage.written_bytes = written_bytes(pid);
    let ended = child.wait()?;
    ensure!(ended.code().is_some_and(|code| good.contains(&code)), "{name} ended with {ended}");
    Ok(usage)
}

/// User and system time of a process and of its children that it waited for.
pub(super) fn cpu_seconds(pid: u32) -> f64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // The name in parentheses may hold anything; utime to cstime are the fields 14 to 17.
    let after = stat.rsplit_once(')').map_or("", |(_, after)| after);
    let ticks: u64 = after.split_whitespace().skip(11).take(4).filter_map(|field| field.parse::<u64>().ok()).sum();
    ticks as f64 / TICKS_PER_SECOND
}

/// A line of `/proc/PID/status` that is in kB, in bytes.
pub(super) fn status_bytes(pid: u32, name: &str) -> u64 {
    kib_of(&fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default(), name).unwrap_or(0)
}

fn kib_of(status: &str, name: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix(name))?;
    Some(line.split_whitespace().next()?.parse::<u64>().ok()? << 10)
}

/// Bytes that a process caused to be written to devices.
pub(super) fn written_bytes(pid: u32) -> u64 {
    let text = fs::read_to_string(format!("/proc/{pid}/io")).unwrap_or_default();
    let value = text.lines().find_map(|line| line.strip_prefix("write_bytes:"));
    value.and_then(|value| value.trim().parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(text: &str, good: &[i32]) -> Result<Usage> {
        run(Command::new("sh").args(["-c", text]), Path::new("/dev/none"), good)
    }

    #[test]
    fn what_a_program_took_is_counted_to_its_end() {
        let usage = shell("i=0; while [ $i -lt 200000 ]; do i=$((i+1)); done", &[0]).unwrap();
        assert!(usage.cpu_seconds > 0.0 && usage.wall.as_secs_f64() + 0.05 > usage.cpu_seconds, "{usage:?}");
        assert!(usage.peak_bytes > 100 << 10, "{usage:?}");
    }

    #[test]
    fn a_program_that_fails_is_an_error() {
        assert!(shell("exit 3", &[0]).is_err());
        assert!(shell("exit 3", &[0, 3]).is_ok());
    }
}
