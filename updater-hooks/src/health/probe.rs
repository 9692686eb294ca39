//! Checks that ask somebody a question inside our own process: does a port accept, does a server answer?
//!
//! A [`Probe`] runs on a thread of its own that is not waited for beyond its deadline, so that one that never comes back
//! has failed and holds nobody up. While a look has not come back, the probe is not asked again: its threads cannot
//! pile up.

use std::net::{TcpStream, ToSocketAddrs};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use super::{CheckKind, Requirement};
use crate::output::{last_line, neutralise};
use crate::runner::{Exit, Outcome};

/// Between two looks at whether the caller still wants to know.
const TICK: Duration = Duration::from_millis(20);

/// A question that this crate has no means to ask.
pub trait Probe: Send + Sync {
    /// What it asks, and its identity from round to round: a URL.
    fn name(&self) -> &str;

    /// Asks once, blocking, and says in one line what the answer was.
    ///
    /// It should end within the deadline, and soon after `cancel` was set; it is set at the deadline too. One that does
    /// not is left alone and has failed.
    ///
    /// # Errors
    /// Why the answer is none, or not the one that was wanted, in one line.
    fn look(&self, deadline: Duration, cancel: &AtomicBool) -> Result<String, String>;
}

/// A probe among the checks of a system.
#[derive(Clone)]
pub struct ProbeCheck {
    kind: CheckKind,
    requirement: Requirement,
    probe: Arc<dyn Probe>,
    /// Whether a look has not come back yet.
    away: Arc<AtomicBool>,
}

impl ProbeCheck {
    /// A URL that has to answer as the probe wants: with a status of 2xx or 3xx.
    #[must_use]
    pub fn http(requirement: Requirement, probe: Arc<dyn Probe>) -> Self {
        Self::new(CheckKind::Http, requirement, probe)
    }

    /// The server that bundles come from, with whatever status it answers. Never required: a device must not go back
    /// because somebody else's server is down.
    #[must_use]
    pub fn source(probe: Arc<dyn Probe>) -> Self {
        Self::new(CheckKind::Source, Requirement::Wanted, probe)
    }

    /// `HOST:PORT` that accepts a connection. Its check is called `tcp:HOST:PORT`.
    #[must_use]
    pub fn tcp(requirement: Requirement, address: &str) -> Self {
        let port = Port { name: format!("tcp:{address}"), address: address.to_owned() };
        Self::new(CheckKind::Tcp, requirement, Arc::new(port))
    }

    fn new(kind: CheckKind, requirement: Requirement, probe: Arc<dyn Probe>) -> Self {
        ProbeCheck { kind, requirement, probe, away: Arc::default() }
    }

    /// Whether it decides.
    #[must_use]
    pub fn requirement(&self) -> Requirement {
        self.requirement
    }

    /// What it looks at.
    #[must_use]
    pub fn kind(&self) -> CheckKind {
        self.kind
    }

    /// The name of its check, harmless to print.
    #[must_use]
    pub fn name(&self) -> String {
        neutralise(self.probe.name())
    }

    /// Asks once. The outcome is written as a program's would be: exit code 0 or 1, and the answer as its output.
    pub(super) fn look(&self, deadline: Duration, cancel: &AtomicBool) -> Outcome {
        let started = Instant::now();
        if self.away.swap(true, Ordering::AcqRel) {
            return outcome(Exit::TimedOut, started, "a look of an earlier round has still not come back");
        }
        let stop = Arc::new(AtomicBool::new(false));
        let answered = self.ask(deadline, stop.clone());
        let (exit, said) = wait_for(&answered, started + deadline, cancel);
        stop.store(true, Ordering::Relaxed);
        outcome(exit, started, &said)
    }

    fn ask(&self, deadline: Duration, stop: Arc<AtomicBool>) -> Receiver<Result<String, String>> {
        let (sender, answered) = mpsc::channel();
        let (probe, away) = (self.probe.clone(), Away(self.away.clone()));
        let look = move || {
            let answer = probe.look(deadline, &stop);
            drop(away);
            // Nobody waits any more when the deadline has passed.
            let _ = sender.send(answer);
        };
        // Where no thread can be had, the sender is gone with the closure: the look has failed.
        let _ = thread::Builder::new().spawn(look);
        answered
    }
}

impl std::fmt::Debug for ProbeCheck {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ProbeCheck")
            .field("kind", &self.kind)
            .field("requirement", &self.requirement)
            .field("name", &self.probe.name())
            .finish_non_exhaustive()
    }
}

/// Says that the look is back, however its thread ends.
struct Away(Arc<AtomicBool>);

impl Drop for Away {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Release);
    }
}

fn wait_for(answered: &Receiver<Result<String, String>>, until: Instant, cancel: &AtomicBool) -> (Exit, String) {
    loop {
        let left = until.saturating_duration_since(Instant::now());
        let exit = match answered.recv_timeout(TICK.min(left)) {
            Ok(Ok(answer)) => return (Exit::Code(0), answer),
            Ok(Err(why)) => return (Exit::Code(1), why),
            Err(RecvTimeoutError::Disconnected) => Exit::NotStarted("it has no thread, or its thread died".into()),
            Err(RecvTimeoutError::Timeout) if cancel.load(Ordering::Relaxed) => Exit::Cancelled,
            Err(RecvTimeoutError::Timeout) if left.is_zero() => Exit::TimedOut,
            Err(RecvTimeoutError::Timeout) => continue,
        };
        return (exit, String::new());
    }
}

fn outcome(exit: Exit, started: Instant, said: &str) -> Outcome {
    let mut tail = crate::output::Tail::default();
    tail.push(said.as_bytes());
    let (output_dropped, output_tail) = (tail.dropped(), tail.into_text());
    Outcome { exit, duration: started.elapsed(), output_tail, output_dropped, ..Outcome::not_started("") }
}

/// What it answered; where it did not, why not.
pub(super) fn reason(outcome: &Outcome) -> String {
    match (&outcome.exit, last_line(&outcome.output_tail)) {
        (Exit::Code(_), Some(answer)) => answer,
        _ => outcome.reason(),
    }
}

/// A port that has to accept a connection.
struct Port {
    name: String,
    address: String,
}

impl Probe for Port {
    fn name(&self) -> &str {
        &self.name
    }

    fn look(&self, deadline: Duration, cancel: &AtomicBool) -> Result<String, String> {
        let until = Instant::now() + deadline;
        let mut last = format!("{} has no address", self.address);
        for address in self.address.to_socket_addrs().map_err(|error| error.to_string())? {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() || cancel.load(Ordering::Relaxed) {
                break;
            }
            match TcpStream::connect_timeout(&address, left) {
                Ok(_) => return Ok(format!("{address} accepts")),
                Err(error) => last = format!("{address}: {error}"),
            }
        }
        Err(last)
    }
}
