//! The control group (v2) of one child: made, entered, ended as a whole, removed.
//!
//! Starting a process inside a control group takes unsafe code or systemd, so the child goes there by itself: what is
//! started is a *trampoline*, a program that writes itself into the group and then becomes the child's program. Nothing
//! the child does later takes it or its children out again, short of root moving them on purpose.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::{Exit, MetLimit};
use crate::output::last_line;

/// The trampoline's first argument; the group's folder, the program and its arguments follow.
pub const SUBCOMMAND: &str = "contained";
/// How the trampoline ends when it cannot enter the group.
pub const CANNOT_ENTER: u8 = 126;
/// How the trampoline ends when it cannot become the program.
pub const CANNOT_START: u8 = 127;
/// What the trampoline prints before the reason, in both cases; it prints nothing else.
pub const CANNOT_START_PREFIX: &str = "bascule-contained: ";

/// How many names are tried for a new group; those in use were left by an agent that had our number before.
const NAMES_LIMIT: u32 = 1000;
/// How many groups a child may make inside its own before we stop counting.
const INNER_LIMIT: usize = 4096;
/// How long a killed group is waited for; only processes stuck in the kernel outlive it.
const GONE_LIMIT: Duration = Duration::from_secs(3);
/// Between two looks at a group that is ending.
const PAUSE: Duration = Duration::from_millis(2);
/// How often every process of a group is killed where the kernel cannot kill the group.
const KILL_ROUNDS: u32 = 100;

/// Numbers the groups of this process.
static NEXT: AtomicU64 = AtomicU64::new(0);

/// Where children get control groups of their own, and what each of them may take.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Containment {
    /// The folder of a control group (v2) that holds no process itself and is ours to make groups in.
    pub groups: PathBuf,
    /// The program that is started as `PROGRAM contained GROUP-FOLDER PROGRAM ARGS...`, enters the group and becomes
    /// the program: `basculed`.
    pub trampoline: PathBuf,
    /// The most tasks (processes and threads) a child may have at a time; none where there is no `pids` controller.
    pub tasks: Option<u64>,
    /// The most memory a child may have, in bytes, swap not included: it gets none. None where there is no `memory`
    /// controller.
    pub memory: Option<u64>,
}

/// The control group of one child.
#[derive(Debug)]
pub(super) struct Group {
    dir: PathBuf,
    trampoline: PathBuf,
}

impl Group {
    /// Makes one, empty and limited. Beside it stands which limit could not be set, if one could not.
    ///
    /// # Errors
    /// Why there is none, in words.
    pub(super) fn make(containment: &Containment) -> Result<(Group, Option<String>), String> {
        let dir = new_folder(&containment.groups)
            .map_err(|error| format!("no control group in {}: {error}", containment.groups.display()))?;
        let group = Group { dir, trampoline: containment.trampoline.clone() };
        if !group.dir.join("cgroup.procs").exists() {
            let why = format!("{} is not a control group", containment.groups.display());
            group.remove();
            return Err(why);
        }
        let fault = group.limit(containment).err().map(|(what, error)| format!("{what} could not be set: {error}"));
        Ok((group, fault))
    }

    fn limit(&self, containment: &Containment) -> Result<(), (&'static str, io::Error)> {
        let set = |file: &'static str, value: &str| self.write(file, value).map_err(|error| (file, error));
        if let Some(tasks) = containment.tasks {
            set("pids.max", &tasks.to_string())?;
        }
        if let Some(memory) = containment.memory {
            set("memory.max", &memory.to_string())?;
            set("memory.oom.group", "1")?;
            // The file is only there where the kernel knows swap.
            match self.write("memory.swap.max", "0") {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(("memory.swap.max", error)),
                _ => {}
            }
        }
        Ok(())
    }

    /// What has to be started so that `program` runs in this group; its arguments are still to be added.
    pub(super) fn enter_and_run(&self, program: &Path) -> std::process::Command {
        let mut command = std::process::Command::new(&self.trampoline);
        command.arg(SUBCOMMAND).arg(&self.dir).arg(program);
        command
    }

    /// Sends a signal to every process in it.
    pub(super) fn signal(&self, signal: Signal) {
        for process in self.processes() {
            // One that has just ended is no fault.
            let _ = kill(process, signal);
        }
    }

    /// Kills every process in it, those that are just being started too.
    pub(super) fn kill(&self) {
        if self.write("cgroup.kill", "1").is_err() {
            self.kill_one_by_one();
        }
    }

    /// For kernels before 5.14. What is frozen starts nothing new, and can be killed.
    pub(super) fn kill_one_by_one(&self) {
        let _ = self.write("cgroup.freeze", "1");
        for _ in 0..KILL_ROUNDS {
            if !self.is_populated() {
                return;
            }
            self.signal(Signal::SIGKILL);
            thread::sleep(PAUSE);
        }
    }

    /// Kills what is left, waits until it is gone, removes the group and says which limit was met in it.
    pub(super) fn end(self) -> Option<MetLimit> {
        let until = Instant::now() + GONE_LIMIT;
        self.kill();
        while self.is_populated() && Instant::now() < until {
            thread::sleep(PAUSE);
        }
        let met = self.met_limit();
        // A group that was just emptied can still be busy for a moment.
        while !self.remove() && Instant::now() < until {
            thread::sleep(PAUSE);
        }
        met
    }

    fn met_limit(&self) -> Option<MetLimit> {
        let counted = |file: &str, key: &str| {
            fs::read_to_string(self.dir.join(file))
                .is_ok_and(|text| value_of(&text, key).is_some_and(|value| value > 0))
        };
        if counted("memory.events", "oom_kill") {
            Some(MetLimit::Memory)
        } else if counted("pids.events", "max") {
            Some(MetLimit::Tasks)
        } else {
            None
        }
    }

    /// Whether a process lives in it or in a group inside it. One that cannot be asked is gone.
    fn is_populated(&self) -> bool {
        fs::read_to_string(self.dir.join("cgroup.events")).is_ok_and(|text| value_of(&text, "populated") == Some(1))
    }

    fn processes(&self) -> Vec<Pid> {
        let numbers = |dir: PathBuf| fs::read_to_string(dir.join("cgroup.procs")).unwrap_or_default();
        let ours = std::process::id();
        let texts: Vec<String> = self.folders().into_iter().map(numbers).collect();
        let found = texts.iter().flat_map(|text| text.lines()).filter_map(|line| line.parse::<i32>().ok());
        // 0 stands for a process that we cannot name, and would mean our own group to `kill`.
        found.filter(|number| *number > 1 && number.unsigned_abs() != ours).map(Pid::from_raw).collect()
    }

    /// Its folder and those of the groups inside it, outer ones first.
    fn folders(&self) -> Vec<PathBuf> {
        let mut found = vec![self.dir.clone()];
        let mut looked_at = 0;
        while let Some(dir) = found.get(looked_at).cloned() {
            looked_at += 1;
            let entries = fs::read_dir(dir).into_iter().flatten().flatten();
            let inner = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
            found.extend(inner.map(|entry| entry.path()));
            if found.len() > INNER_LIMIT {
                break;
            }
        }
        found
    }

    /// Whether it is gone.
    fn remove(&self) -> bool {
        self.folders().iter().rev().for_each(|dir| {
            let _ = fs::remove_dir(dir);
        });
        !self.dir.exists()
    }

    fn write(&self, file: &str, value: &str) -> io::Result<()> {
        OpenOptions::new().write(true).open(self.dir.join(file))?.write_all(value.as_bytes())
    }
}

/// What the trampoline meant, where it was the one that ended with this code.
pub(super) fn refusal(code: i32, output: &str) -> Option<Exit> {
    let reason = output.strip_prefix(CANNOT_START_PREFIX)?;
    let meant = [CANNOT_ENTER, CANNOT_START].map(i32::from).contains(&code);
    meant.then(|| Exit::NotStarted(last_line(reason).unwrap_or_else(|| "it gave no reason".to_owned())))
}

fn new_folder(parent: &Path) -> io::Result<PathBuf> {
    for _ in 1..NAMES_LIMIT {
        match name_and_make(parent) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            result => return result,
        }
    }
    name_and_make(parent)
}

fn name_and_make(parent: &Path) -> io::Result<PathBuf> {
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let dir = parent.join(format!("run-{}-{number}", std::process::id()));
    fs::create_dir(&dir).map(|()| dir)
}

/// The number behind a key of a flat file of the kernel.
fn value_of(text: &str, key: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' '))?.trim().parse().ok()
}
