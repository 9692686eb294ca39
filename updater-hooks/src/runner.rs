//! One child process, from its start to the end of everything it started.
//!
//! Every child of Bascule runs through [`run`]. It gets a process group of its own, no standard input, an environment
//! that holds only what it was given, and one pipe for both outputs. Where its caller has a control group to give
//! ([`Containment`]), it also gets one of its own in there, with limits for tasks and memory. At the deadline all of it
//! gets SIGTERM and, after a grace, SIGKILL. When the leader ends, whatever it left behind is killed and reading stops
//! shortly after: a child that made itself a daemon and kept the pipe open does not hold us up. A child that left the
//! process group (`setsid`) is ended too where there is a control group, and out of reach where there is none;
//! [`Outcome::uncontained`] says which.

mod contain;
mod watch;

#[cfg(test)]
mod tests;

use std::ffi::OsString;
use std::io;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Stdio};
use std::sync::atomic::AtomicBool;
use std::thread;
use std::time::{Duration, Instant};

use serde::{Serialize, Serializer};

use crate::paths;

use contain::Group;
pub use contain::{CANNOT_ENTER, CANNOT_START, CANNOT_START_PREFIX, Containment, SUBCOMMAND};

/// How long a process group may go on after SIGTERM before SIGKILL.
pub const GRACE: Duration = Duration::from_secs(5);

/// How often a program that is still open for writing (`ETXTBSY`) is tried again, 20 ms apart.
const BUSY_ATTEMPTS: u32 = 25;

/// What to run.
#[derive(Debug, Clone, Default)]
pub struct Command {
    /// A path, or a name found through the fixed search path of children.
    pub program: PathBuf,
    /// Its arguments, without the program's own name.
    pub args: Vec<OsString>,
    /// Its environment. Nothing of ours is inherited; `PATH` and `LANG` are set beside these.
    pub env: Vec<(OsString, OsString)>,
    /// Its working directory; `/` when not given.
    pub dir: Option<PathBuf>,
}

impl Command {
    /// A command without arguments.
    #[must_use]
    pub fn new(program: impl Into<PathBuf>) -> Self {
        Command { program: program.into(), ..Command::default() }
    }

    /// Adds one argument.
    #[must_use]
    pub fn arg(mut self, arg: impl Into<OsString>) -> Self {
        self.args.push(arg.into());
        self
    }

    /// Adds one variable to the environment.
    #[must_use]
    pub fn env(mut self, name: impl Into<OsString>, value: impl Into<OsString>) -> Self {
        self.env.push((name.into(), value.into()));
        self
    }
}

/// What a child may take.
#[derive(Debug, Clone)]
pub struct Limits {
    /// From the start to SIGTERM.
    pub deadline: Duration,
    /// From SIGTERM to SIGKILL.
    pub grace: Duration,
    /// Where its control group is made; without one it has only its process group.
    pub containment: Option<Containment>,
}

impl Limits {
    /// This deadline, the usual grace of [`GRACE`], and no control group.
    #[must_use]
    pub fn within(deadline: Duration) -> Self {
        Limits { deadline, grace: GRACE, containment: None }
    }

    /// The same in a control group of its own, where there is a place for one.
    #[must_use]
    pub fn contained(mut self, containment: Option<Containment>) -> Self {
        self.containment = containment;
        self
    }
}

/// How a child ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "exit", content = "value", rename_all = "kebab-case")]
pub enum Exit {
    /// By itself, with this exit code.
    Code(i32),
    /// By a signal that was not ours.
    Signal(i32),
    /// It was ended at its deadline.
    TimedOut,
    /// It was ended because the caller no longer wants it.
    Cancelled,
    /// It never ran; the text says why.
    NotStarted(String),
}

impl std::fmt::Display for Exit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Exit::Code(code) => write!(f, "exit code {code}"),
            Exit::Signal(signal) => write!(f, "ended by signal {signal}"),
            Exit::TimedOut => f.write_str("did not end within its deadline"),
            Exit::Cancelled => f.write_str("cancelled"),
            Exit::NotStarted(why) => write!(f, "not started: {why}"),
        }
    }
}

/// What one child did.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Outcome {
    /// How it ended.
    pub exit: Exit,
    /// From its start until its group was gone; in JSON `duration_ms`.
    #[serde(rename = "duration_ms", serialize_with = "as_millis")]
    pub duration: Duration,
    /// The end of its standard output and error together, at most [`crate::output::OUTPUT_LIMIT`] bytes, control
    /// characters neutralised.
    pub output_tail: String,
    /// How many bytes of output before that were let go.
    pub output_dropped: u64,
    /// What of the containment it was to have could not be had: the group, or a limit. Absent from JSON otherwise.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uncontained: Option<String>,
    /// Which limit of its control group it met. Absent from JSON otherwise.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub met_limit: Option<MetLimit>,
}

/// A limit of a child's control group that it met.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum MetLimit {
    /// It wanted more tasks than it may have: the start of one more was refused.
    Tasks,
    /// It wanted more memory than it may have: all of it was killed.
    Memory,
}

impl std::fmt::Display for MetLimit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            MetLimit::Tasks => "it met its limit of tasks",
            MetLimit::Memory => "it met its limit of memory",
        })
    }
}

impl Outcome {
    /// The outcome of a program that could not be started.
    #[must_use]
    pub fn not_started(reason: impl Into<String>) -> Self {
        Outcome {
            exit: Exit::NotStarted(reason.into()),
            duration: Duration::ZERO,
            output_tail: String::new(),
            output_dropped: 0,
            uncontained: None,
            met_limit: None,
        }
    }

    /// Whether it ended by itself with exit code 0.
    #[must_use]
    pub fn succeeded(&self) -> bool {
        self.exit == Exit::Code(0)
    }

    /// One line for a person: how it ended, the limit it met, and the last thing it said.
    #[must_use]
    pub fn reason(&self) -> String {
        let limit = self.met_limit.map(|limit| format!(" ({limit})")).unwrap_or_default();
        match crate::output::last_line(&self.output_tail) {
            Some(line) => format!("{}{limit}: {line}", self.exit),
            None => format!("{}{limit}", self.exit),
        }
    }
}

/// Runs one child to the end of everything it started and says what it did.
///
/// Blocks the calling thread, at most `deadline` + `grace` and a few seconds more. Setting `cancel` ends the child the
/// way its deadline would, within a few hundredths of a second. It never fails: what keeps a child from starting is an
/// outcome too.
#[must_use]
pub fn run(command: &Command, limits: &Limits, cancel: &AtomicBool) -> Outcome {
    let started = Instant::now();
    let (group, uncontained) = match limits.containment.as_ref().map(Group::make) {
        None => (None, None),
        Some(Ok((group, fault))) => (Some(group), fault),
        Some(Err(why)) => (None, Some(why)),
    };
    let outcome = match start(command, group.as_ref()) {
        Ok((child, output)) => watch::to_the_end(child, output, group, started, limits, cancel),
        Err(error) => {
            let _ = group.and_then(Group::end);
            Outcome { duration: started.elapsed(), ..Outcome::not_started(error.to_string()) }
        }
    };
    Outcome { uncontained, ..outcome }
}

fn start(command: &Command, group: Option<&Group>) -> io::Result<(Child, io::PipeReader)> {
    let (reader, writer) = io::pipe()?;
    let mut builder = match group {
        Some(group) => group.enter_and_run(&command.program),
        None => std::process::Command::new(&command.program),
    };
    builder
        .args(&command.args)
        .env_clear()
        .env("PATH", paths::CHILD_PATH)
        .env("LANG", "C.UTF-8")
        .envs(command.env.iter().map(|(name, value)| (name, value)))
        .current_dir(command.dir.as_deref().unwrap_or(paths::CHILD_DIRECTORY.as_ref()))
        .process_group(0)
        .stdin(Stdio::null())
        .stdout(writer.try_clone()?)
        .stderr(writer);
    // The builder holds our ends of the pipe: it must be gone before the reader can see the end of the output.
    let child = spawn(&mut builder)?;
    drop(builder);
    Ok((child, reader))
}

/// A program that was just written can still be open for writing in a child that is about to exec: that passes.
fn spawn(builder: &mut std::process::Command) -> io::Result<Child> {
    for _ in 1..BUSY_ATTEMPTS {
        match builder.spawn() {
            Err(error) if error.kind() == io::ErrorKind::ExecutableFileBusy => thread::sleep(Duration::from_millis(20)),
            result => return result,
        }
    }
    builder.spawn()
}

fn as_millis<S: Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_u64(u64::try_from(duration.as_millis()).unwrap_or(u64::MAX))
}
