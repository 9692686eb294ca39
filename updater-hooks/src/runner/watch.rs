//! Watches one running child: reads its output, ends it and all it started at the deadline, reaps it.

use std::io::{self, PipeReader, Read};
use std::os::fd::AsFd;
use std::os::unix::process::ExitStatusExt;
use std::process::Child;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, killpg};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
use nix::unistd::Pid;

use super::contain::{Group, refusal};
use super::{Exit, Limits, Outcome};
use crate::output::Tail;

/// How long output is still read after the leader has ended.
const LINGER: Duration = Duration::from_millis(100);
/// How long a group is waited for after SIGKILL; only a child stuck in the kernel outlives it.
const REAP_LIMIT: Duration = Duration::from_secs(3);
/// Shortest and longest pause between two looks at a child.
const TICK: (Duration, Duration) = (Duration::from_millis(1), Duration::from_millis(25));
/// How much output is read between two looks at the clock, in bytes.
const READ_AT_ONCE: usize = 1024 * 1024;

/// Why we ended a child.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Ended {
    ByItself,
    AtDeadline,
    OnCancel,
}

/// Sees a started child to its end.
pub(super) fn to_the_end(
    child: Child,
    output: PipeReader,
    group: Option<Group>,
    started: Instant,
    limits: &Limits,
    cancel: &AtomicBool,
) -> Outcome {
    let mut watch = Watch::new(child, output, group);
    let deadline = started.checked_add(limits.deadline);
    let ended = match watch.until_exit(deadline, Some(cancel)) {
        Seen::Exit => Ended::ByItself,
        Seen::Deadline => Ended::AtDeadline,
        Seen::Cancel => Ended::OnCancel,
    };
    if ended != Ended::ByItself {
        watch.signal(Signal::SIGTERM);
        let _ = watch.until_exit(Instant::now().checked_add(limits.grace), None);
    }
    // It is sent whether or not the leader has ended, so that nothing it started stays behind.
    watch.kill();
    watch.until_exit(Instant::now().checked_add(REAP_LIMIT), None);
    watch.read_what_is_left();
    watch.finish(ended, started)
}

enum Seen {
    Exit,
    Deadline,
    Cancel,
}

struct Watch {
    child: Child,
    leader: Pid,
    group: Option<Group>,
    output: Option<PipeReader>,
    tail: Tail,
}

impl Watch {
    fn new(child: Child, output: PipeReader, group: Option<Group>) -> Self {
        // A process number always fits; 0 would name our own group, so the impossible case is made harmless.
        let leader = Pid::from_raw(i32::try_from(child.id()).unwrap_or(i32::MAX));
        // Were the pipe to stay blocking, a silent child could hold us past its deadline: rather lose its output.
        let output = make_nonblocking(&output).is_ok().then_some(output);
        Watch { child, leader, group, output, tail: Tail::default() }
    }

    /// Reads output until the leader has ended (it is left unreaped), the time has come, or the caller cancels.
    fn until_exit(&mut self, deadline: Option<Instant>, cancel: Option<&AtomicBool>) -> Seen {
        let mut tick = TICK.0;
        loop {
            if self.leader_has_ended() {
                return Seen::Exit;
            }
            if cancel.is_some_and(|cancel| cancel.load(Ordering::Relaxed)) {
                return Seen::Cancel;
            }
            let left = deadline.map_or(TICK.1, |deadline| deadline.saturating_duration_since(Instant::now()));
            if left.is_zero() {
                return Seen::Deadline;
            }
            self.read_for(tick.min(left));
            tick = tick.saturating_mul(2).min(TICK.1);
        }
    }

    fn leader_has_ended(&self) -> bool {
        let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
        !matches!(waitid(Id::Pid(self.leader), flags), Ok(WaitStatus::StillAlive) | Err(nix::errno::Errno::EINTR))
    }

    fn signal(&self, signal: Signal) {
        // The leader, while not yet reaped, keeps the group's number ours: this cannot hit a stranger. The only
        // possible failure is that the group is already gone.
        let _ = killpg(self.leader, signal);
        if let Some(group) = &self.group {
            group.signal(signal);
        }
    }

    /// The process group first: a leader that is still on its way into its control group does not escape by that.
    fn kill(&self) {
        let _ = killpg(self.leader, Signal::SIGKILL);
        if let Some(group) = &self.group {
            group.kill();
        }
    }

    /// Waits at most `pause` for output and takes what is there.
    fn read_for(&mut self, pause: Duration) {
        let Some(output) = &self.output else {
            thread::sleep(pause);
            return;
        };
        let millis = u16::try_from(pause.as_millis().max(1)).unwrap_or(u16::MAX);
        let mut polled = [PollFd::new(output.as_fd(), PollFlags::POLLIN)];
        match poll(&mut polled, PollTimeout::from(millis)) {
            Ok(0) | Err(nix::errno::Errno::EINTR) => {}
            Ok(_) => self.take_output(),
            Err(_) => self.output = None,
        }
    }

    fn take_output(&mut self) {
        let Some(output) = &mut self.output else { return };
        let mut piece = [0_u8; 16 * 1024];
        let mut taken = 0;
        while taken < READ_AT_ONCE {
            match output.read(&mut piece) {
                Ok(0) => {
                    self.output = None;
                    return;
                }
                Ok(count) => {
                    self.tail.push(piece.get(..count).unwrap_or_default());
                    taken += count;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(_) => {
                    self.output = None;
                    return;
                }
            }
        }
    }

    fn read_what_is_left(&mut self) {
        let end = Instant::now() + LINGER;
        while self.output.is_some() {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            self.read_for(left);
        }
    }

    fn finish(mut self, ended: Ended, started: Instant) -> Outcome {
        let status = match self.child.try_wait() {
            Ok(Some(status)) => Ok(status),
            Ok(None) => {
                // Stuck in the kernel: it is reaped whenever the kernel lets it go, and nobody waits for that here.
                let mut child = self.child;
                thread::spawn(move || child.wait());
                Err("its end could not be seen: it is stuck in the kernel".to_owned())
            }
            Err(error) => Err(format!("its end could not be seen: {error}")),
        };
        let through_trampoline = self.group.is_some();
        let met_limit = self.group.and_then(Group::end);
        let (output_dropped, output_tail) = (self.tail.dropped(), self.tail.into_text());
        let exit = match (ended, status) {
            (Ended::AtDeadline, _) => Exit::TimedOut,
            (Ended::OnCancel, _) => Exit::Cancelled,
            (Ended::ByItself, Ok(status)) => match (status.code(), status.signal()) {
                (Some(code), _) if through_trampoline => refusal(code, &output_tail).unwrap_or(Exit::Code(code)),
                (Some(code), _) => Exit::Code(code),
                (None, signal) => Exit::Signal(signal.unwrap_or_default()),
            },
            (Ended::ByItself, Err(why)) => Exit::NotStarted(why),
        };
        Outcome { exit, duration: started.elapsed(), output_tail, output_dropped, uncontained: None, met_limit }
    }
}

fn make_nonblocking(output: &PipeReader) -> nix::Result<()> {
    let flags = OFlag::from_bits_retain(fcntl(output, FcntlArg::F_GETFL)?);
    fcntl(output, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK)).map(drop)
}
