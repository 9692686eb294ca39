//! One run of a program: bounded in time and in what it prints, and nothing of it is left afterwards.

use std::fs::File;
use std::io::{self, Read, Write as _};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, killpg};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
use nix::unistd::Pid;

/// The most bytes that a program may print as its answer.
pub const OUTPUT_LIMIT: usize = 64 * 1024;

/// How much of the end of its standard error is kept, in bytes.
const SAID_LIMIT: usize = 4 * 1024;

/// The most characters of its last line that go into an error.
const LINE_LIMIT: usize = 200;

/// How often it is looked whether the program has ended while it prints nothing, in milliseconds.
const LOOK_MS: u16 = 10;

/// How a run ended.
#[derive(Debug)]
pub(super) enum Outcome {
    /// By itself.
    Ended { status: ExitStatus, output: Vec<u8>, said: String },
    /// It was killed at the deadline.
    TimedOut,
    /// It was killed because it printed more than [`OUTPUT_LIMIT`].
    TooLong,
}

/// Runs the program with one word and this input.
pub(super) fn run(program: &Path, verb: &str, input: &[u8], deadline: Duration) -> io::Result<Outcome> {
    let until = Instant::now().checked_add(deadline).ok_or(io::ErrorKind::InvalidInput)?;
    let mut child = Command::new(program)
        .arg(verb)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .spawn()?;
    let watched = watch(&mut child, input, until);
    // Also after a good end: what it has started must not go on changing settings. The group's number cannot be anybody
    // else's yet, because the child is not waited for before the next line.
    let _ = killpg(pid(&child)?, Signal::SIGKILL);
    let status = child.wait()?;
    let (ending, output, said) = watched?;
    Ok(match ending {
        Ending::ByItself => Outcome::Ended { status, output, said: last_line(&said) },
        Ending::Deadline => Outcome::TimedOut,
        Ending::TooLong => Outcome::TooLong,
    })
}

enum Ending {
    ByItself,
    Deadline,
    TooLong,
}

/// Reads until the program has ended, the time is over or the answer too long. A child of it that keeps the pipes open
/// is not waited for.
fn watch(child: &mut Child, input: &[u8], until: Instant) -> io::Result<(Ending, Vec<u8>, Vec<u8>)> {
    if let Some(mut stdin) = child.stdin.take() {
        // A program need not read what it is told. The input is far smaller than a pipe: this does not wait.
        drop(stdin.write_all(input));
    }
    let mut output = Pipe::new(child.stdout.take().map(OwnedFd::from))?;
    let mut said = Pipe::new(child.stderr.take().map(OwnedFd::from))?;
    loop {
        // Before the reading: what was printed before the end is then there to be read.
        let ended = has_ended(child)?;
        output.drain(OUTPUT_LIMIT + 1)?;
        said.drain_end()?;
        let ending = if output.bytes.len() > OUTPUT_LIMIT {
            Ending::TooLong
        } else if ended {
            Ending::ByItself
        } else if Instant::now() >= until {
            Ending::Deadline
        } else {
            wait_for_more(&output, &said)?;
            continue;
        };
        return Ok((ending, output.bytes, said.bytes));
    }
}

fn wait_for_more(output: &Pipe, said: &Pipe) -> io::Result<()> {
    let open = [output, said].into_iter().filter_map(|pipe| pipe.file.as_ref());
    let mut pipes: Vec<PollFd<'_>> = open.map(|file| PollFd::new(file.as_fd(), PollFlags::POLLIN)).collect();
    match poll(&mut pipes, PollTimeout::from(LOOK_MS)) {
        Ok(_) | Err(Errno::EINTR) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Whether the program has ended; it stays there to be waited for.
fn has_ended(child: &Child) -> io::Result<bool> {
    let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
    match waitid(Id::Pid(pid(child)?), flags) {
        Ok(status) => Ok(status != WaitStatus::StillAlive),
        Err(Errno::EINTR) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

fn pid(child: &Child) -> io::Result<Pid> {
    i32::try_from(child.id()).map(Pid::from_raw).map_err(io::Error::other)
}

/// One end of a pipe that is read without waiting.
struct Pipe {
    file: Option<File>,
    bytes: Vec<u8>,
}

impl Pipe {
    fn new(end: Option<OwnedFd>) -> io::Result<Self> {
        let file = end.map(File::from);
        if let Some(file) = &file {
            fcntl(file, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
        }
        Ok(Pipe { file, bytes: Vec::new() })
    }

    /// Reads what is there, up to this many bytes in all.
    fn drain(&mut self, limit: usize) -> io::Result<()> {
        let mut block = [0; 4096];
        while self.bytes.len() < limit {
            let Some(read) = self.read(&mut block)? else { break };
            self.bytes.extend_from_slice(read);
        }
        Ok(())
    }

    /// Reads what is there and keeps the end of it. Not more than a few blocks at once: somebody may write for ever.
    fn drain_end(&mut self) -> io::Result<()> {
        let mut block = [0; SAID_LIMIT];
        for _ in 0..64 {
            let Some(read) = self.read(&mut block)? else { break };
            self.bytes.extend_from_slice(read);
            let over = self.bytes.len().saturating_sub(SAID_LIMIT);
            self.bytes.drain(..over);
        }
        Ok(())
    }

    /// What is there now; `None` when that is nothing.
    fn read<'a>(&mut self, block: &'a mut [u8]) -> io::Result<Option<&'a [u8]>> {
        let Some(file) = &mut self.file else { return Ok(None) };
        match file.read(block) {
            Ok(0) => {
                self.file = None;
                Ok(None)
            }
            Ok(length) => Ok(block.get(..length)),
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => Ok(None),
            Err(error) => Err(error),
        }
    }
}

/// The last line with something in it, without what could do harm on a terminal or in a log.
fn last_line(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    let line = text.lines().map(str::trim).rfind(|line| !line.is_empty()).unwrap_or_default();
    line.chars().filter(|letter| !letter.is_control()).take(LINE_LIMIT).collect()
}

#[cfg(test)]
mod tests {
    use super::last_line;

    #[test]
    fn the_last_line_is_short_and_harmless() {
        assert_eq!(last_line(b"first\n\x1b[31mred\x07\r\n\n"), "[31mred");
        assert_eq!(last_line(b""), "");
        assert_eq!(last_line(b"\xff\xfe"), "\u{fffd}\u{fffd}");
        assert_eq!(last_line("\u{9b}é".repeat(500).as_bytes()), "é".repeat(200));
    }
}
