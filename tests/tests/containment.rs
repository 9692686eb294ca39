//! Integrators' programs are contained: whatever they do, at their deadline nothing of them is left.
//!
//! The real `basculed` is the trampoline, and the control groups are the kernel's. Where no group can be made these
//! tests say that they were skipped; with `BASCULE_NEED_CGROUP=1` they fail then, so that a machine that is meant to
//! prove them cannot pass by proving nothing. The same holds for limits, which take the controllers `pids` and `memory`.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test's own mistakes may end it")]

use std::fs;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bascule_agent::contained;
use bascule_agent::paths::Paths;
use bascule_hooks::runner::{Command, Containment, Exit, Limits, MetLimit, Outcome, run};

/// Longer than any child here may take.
const LONG: Duration = Duration::from_secs(60);
/// How much the test's own memory may grow by what a child prints, in KiB.
const GROWTH_KIB: u64 = 64 * 1024;

static NEXT: AtomicU64 = AtomicU64::new(0);

/// A control group of one test, with nothing in it; removed when it is dropped.
struct Place(PathBuf);

impl Place {
    /// `None`, said aloud, where none can be made.
    fn new() -> Option<Place> {
        let made = unified().and_then(|mount| {
            let dir =
                mount.join(format!("bascule-test-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed)));
            fs::create_dir(&dir).ok().map(|()| Place(dir))
        });
        if made.is_none() {
            skip("no control group (v2) can be made here");
        }
        made
    }

    fn containment(&self) -> Containment {
        Containment { groups: self.0.clone(), trampoline: basculed(), tasks: None, memory: None }
    }

    fn limits(&self, deadline: Duration, grace: Duration) -> Limits {
        Limits { deadline, grace, containment: Some(self.containment()) }
    }

    /// Runs a shell script, and proves that afterwards its group is gone.
    fn run(&self, script: &str, deadline: Duration) -> Outcome {
        self.run_with(script, &self.limits(deadline, Duration::from_millis(300)))
    }

    fn run_with(&self, script: &str, limits: &Limits) -> Outcome {
        let outcome = run(&sh(script), limits, &AtomicBool::new(false));
        assert_eq!(outcome.uncontained, None);
        let left: Vec<_> = fs::read_dir(&self.0).unwrap().flatten().filter(|entry| entry.path().is_dir()).collect();
        assert!(left.is_empty(), "groups stayed behind: {left:?}");
        outcome
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = fs::remove_dir(self.0.join("daemon"));
        let _ = fs::remove_dir(&self.0);
    }
}

fn skip(why: &str) {
    assert!(std::env::var_os("BASCULE_NEED_CGROUP").is_none(), "{why}");
    eprintln!("SKIPPED: {why}");
}

/// Where the unified hierarchy is mounted.
fn unified() -> Option<PathBuf> {
    let mounts = fs::read_to_string("/proc/mounts").unwrap();
    let mut fields = mounts.lines().map(|line| line.split(' '));
    fields
        .find_map(|mut mount| Some((mount.nth(1)?, mount.next()?)).filter(|(_, kind)| *kind == "cgroup2"))
        .map(|(path, _)| path.into())
}

/// The daemon's program, which cargo puts two folders above a test's.
fn basculed() -> PathBuf {
    let program = std::env::current_exe().unwrap().ancestors().nth(2).unwrap().join("basculed");
    assert!(program.is_file(), "build it first: cargo build -p bascule-agent --bins, with the same profile");
    program
}

fn sh(script: &str) -> Command {
    Command::new("/bin/sh").arg("-c").arg(script)
}

/// Whether every process whose number stands in a line of `file` is gone, or only waits to be reaped by init.
fn all_gone(file: &Path) -> usize {
    let numbers = fs::read_to_string(file).expect("the script wrote process numbers");
    for number in numbers.lines() {
        if let Ok(stat) = fs::read_to_string(format!("/proc/{number}/stat")) {
            assert!(stat.contains(") Z "), "{number} still runs: {stat}");
        }
    }
    numbers.lines().count()
}

/// A process that is in no way easy to end: another session, ignores SIGTERM, adds its number to `file`.
fn stubborn(file: &Path) -> String {
    format!("setsid sh -c 'trap \"\" TERM HUP INT; echo $$ >> {}; while :; do sleep 0.05; done'", file.display())
}

#[test]
fn claim_g1_a_hook_that_hangs_and_ignores_sigterm_is_gone_at_its_deadline_with_a_grandchild_in_another_session() {
    let Some(place) = Place::new() else { return };
    let dir = tempfile::tempdir().unwrap();
    let pids = dir.path().join("pids");
    // Twice away from the group, and its parent gone: only the control group still knows whose child it is.
    let orphan = format!("({} >/dev/null 2>&1 &)", stubborn(&pids));
    let script =
        format!("trap '' TERM; echo $$ >> {}; {orphan}; echo begun; while :; do sleep 0.05; done", pids.display());
    let outcome = place.run(&script, Duration::from_secs(1));
    assert_eq!((outcome.exit, outcome.output_tail.as_str()), (Exit::TimedOut, "begun\n"));
    assert!(outcome.duration >= Duration::from_millis(1300), "the grace was not given: {:?}", outcome.duration);
    assert!(outcome.duration < Duration::from_secs(4), "{:?}", outcome.duration);
    assert_eq!(all_gone(&pids), 2);
}

#[test]
fn claim_g1_every_process_of_the_group_gets_sigterm_first_and_may_end_in_order() {
    let Some(place) = Place::new() else { return };
    let dir = tempfile::tempdir().unwrap();
    let (pids, told) = (dir.path().join("pids"), dir.path().join("told"));
    let polite = format!(
        "setsid sh -c 'trap \"echo tidied > {}; exit 0\" TERM; echo $$ >> {}; while :; do sleep 0.05; done'",
        told.display(),
        pids.display()
    );
    // Caught, not ignored: what a shell was started to ignore, it cannot trap.
    let script = format!("trap : TERM; {polite} & while :; do sleep 0.05; done");
    assert_eq!(place.run(&script, Duration::from_secs(1)).exit, Exit::TimedOut);
    assert_eq!(fs::read_to_string(told).expect("it was told"), "tidied\n");
    assert_eq!(all_gone(&pids), 1);
}

#[test]
fn claim_g1_a_cancelled_hook_is_gone_with_all_it_started() {
    let Some(place) = Place::new() else { return };
    let dir = tempfile::tempdir().unwrap();
    let pids = dir.path().join("pids");
    let script = format!("{} & wait", stubborn(&pids));
    let (cancel, limits) = (AtomicBool::new(false), place.limits(LONG, Duration::from_millis(100)));
    let outcome = std::thread::scope(|scope| {
        let running = scope.spawn(|| run(&sh(&script), &limits, &cancel));
        wait_until(|| fs::read_to_string(&pids).is_ok_and(|text| text.ends_with('\n')));
        cancel.store(true, Ordering::Relaxed);
        running.join().unwrap()
    });
    assert_eq!(outcome.exit, Exit::Cancelled);
    assert_eq!(all_gone(&pids), 1);
}

#[test]
fn claim_g2_a_daemonised_child_is_killed_when_the_hook_ends() {
    let Some(place) = Place::new() else { return };
    let dir = tempfile::tempdir().unwrap();
    let pids = dir.path().join("pids");
    let script = format!("({} &) ; while [ ! -s {} ]; do sleep 0.01; done; echo done", stubborn(&pids), pids.display());
    let outcome = place.run(&script, LONG);
    assert_eq!((outcome.exit, outcome.output_tail.as_str()), (Exit::Code(0), "done\n"));
    assert!(outcome.duration < Duration::from_secs(5), "the open pipe held us up: {:?}", outcome.duration);
    assert_eq!(all_gone(&pids), 1);
}

#[test]
fn claim_g2_a_fork_bomb_is_gone_at_the_deadline_with_all_its_splinters() {
    let Some(place) = Place::new() else { return };
    let dir = tempfile::tempdir().unwrap();
    let (pids, bomb) = (dir.path().join("pids"), dir.path().join("bomb"));
    // Bounded by itself: each generation doubles, seven of them. The limit of tasks is another test's subject.
    let script = format!(
        "ulimit -u 2000; trap '' TERM HUP; echo $$ >> {}\n[ $1 -gt 0 ] || exec sleep 60\n\
         setsid sh {bomb} $(($1 - 1)) & setsid sh {bomb} $(($1 - 1)) & wait\n",
        pids.display(),
        bomb = bomb.display()
    );
    fs::write(&bomb, script).unwrap();
    let outcome = place.run(&format!("exec sh {} 7", bomb.display()), Duration::from_secs(4));
    assert_eq!(outcome.exit, Exit::TimedOut, "{outcome:?}");
    assert_eq!(all_gone(&pids), 255);
}

#[test]
fn claim_g2_ten_gigabytes_of_output_leave_64_kib_and_no_trace_in_memory() {
    let Some(place) = Place::new() else { return };
    let before = peak_kib();
    let outcome = place.run("head -c 10000000000 /dev/zero; printf 'the end'", Duration::from_secs(300));
    assert_eq!(outcome.exit, Exit::Code(0), "{}", outcome.reason());
    assert!(outcome.output_tail.len() <= 64 * 1024 && outcome.output_tail.ends_with("the end"));
    assert_eq!(outcome.output_dropped, 10_000_000_000 + 7 - 64 * 1024);
    let grown = peak_kib() - before;
    assert!(grown < GROWTH_KIB, "{grown} KiB more were needed");
}

#[test]
fn claim_g2_a_child_that_closes_its_pipes_is_still_waited_for_and_ended() {
    let Some(place) = Place::new() else { return };
    assert_eq!(place.run("exec >&- 2>&- <&-; sleep 0.2; exit 3", LONG).exit, Exit::Code(3));
    let outcome =
        place.run("exec >&- 2>&- <&-; trap '' TERM; while :; do sleep 0.05; done", Duration::from_millis(500));
    assert_eq!(outcome.exit, Exit::TimedOut);
    // A reader that goes away early ends the writer as it would anywhere: SIGPIPE is not ignored.
    assert_eq!(place.run("yes | head -n 1; exit 4", LONG).exit, Exit::Code(4));
    let writer = place.run("(yes; echo $? >&2) | head -n 1", LONG);
    assert!(writer.output_tail.contains("y\n") && writer.output_tail.contains("141\n"), "{writer:?}");
}

#[test]
fn claim_g2_a_child_that_hides_in_groups_of_its_own_is_found() {
    let Some(place) = Place::new() else { return };
    let dir = tempfile::tempdir().unwrap();
    let pids = dir.path().join("pids");
    let hide = format!("g=$(sed -n s/^0:://p /proc/self/cgroup); mkdir -p {0}$g/x/y", unified().unwrap().display());
    let enter = format!("echo $$ > {}$g/x/y/cgroup.procs", unified().unwrap().display());
    let script = format!("{hide}; sh -c 'g='$g'; {enter}; exec {}' & sleep 60", stubborn(&pids).replace('\'', "'\\''"));
    assert_eq!(place.run(&script, Duration::from_secs(1)).exit, Exit::TimedOut);
    assert_eq!(all_gone(&pids), 1);
}

#[test]
fn claim_g2_tasks_and_memory_are_limited() {
    let Some(place) = Place::new() else { return };
    let root = unified().unwrap();
    let own = root.join("cgroup.subtree_control");
    for (file, word) in [(&own, "+pids +memory"), (&place.0.join("cgroup.subtree_control"), "+pids +memory")] {
        let _ = fs::write(file, word);
    }
    let handed = fs::read_to_string(place.0.join("cgroup.subtree_control")).unwrap();
    if !["pids", "memory"].iter().all(|controller| handed.split_whitespace().any(|word| word == *controller)) {
        return skip(&format!("no pids and memory controllers in {}: limits were not tested", root.display()));
    }
    let containment = Containment { tasks: Some(64), memory: Some(32 * 1024 * 1024), ..place.containment() };
    let limits =
        Limits { containment: Some(containment), ..place.limits(Duration::from_secs(5), Duration::from_millis(300)) };
    let bomb = place.run_with("trap '' TERM; b() { b | b & }; b; while :; do sleep 0.1; done", &limits);
    assert_eq!(bomb.met_limit, Some(MetLimit::Tasks), "{bomb:?}");
    let hog = place.run_with("x=$(head -c 1000000000 /dev/zero | tr '\\0' x); echo got it", &limits);
    assert_eq!((hog.exit.clone(), hog.met_limit), (Exit::Signal(9), Some(MetLimit::Memory)), "{hog:?}");
    assert!(hog.reason().contains("it met its limit of memory"), "{}", hog.reason());
}

#[test]
fn a_contained_child_is_what_it_would_be_elsewhere() {
    let Some(place) = Place::new() else { return };
    let limits = place.limits(LONG, Duration::from_millis(100));
    let odd = Command::new("/bin/sh").arg("-c").arg("printf '<%s>' \"$0\" \"$@\"; pwd; env; cat; exit 9");
    let odd = odd.arg("--").arg("--root").arg("-x").arg("").arg("--").arg("a b").env("GIVEN", "yes");
    let (inside, outside) =
        (run(&odd, &limits, &AtomicBool::new(false)), run(&odd, &Limits::within(LONG), &AtomicBool::new(false)));
    assert_eq!(inside.exit, Exit::Code(9));
    assert_eq!((inside.exit, inside.output_tail), (outside.exit, outside.output_tail));
    // Found through the search path of children, as a program without a group is.
    assert!(run(&Command::new("true"), &limits, &AtomicBool::new(false)).succeeded());
    let signals = place.run("kill -SEGV $$", LONG);
    assert_eq!(signals.exit, Exit::Signal(11));
}

#[test]
fn what_cannot_be_started_in_a_group_says_why() {
    let Some(place) = Place::new() else { return };
    let limits = place.limits(LONG, Duration::from_millis(100));
    let missing = run(&Command::new("/nowhere/program"), &limits, &AtomicBool::new(false));
    assert_eq!(missing.exit, Exit::NotStarted("No such file or directory (os error 2)".to_owned()));
    // The same codes are a program's own business where it really ran.
    assert_eq!(place.run("echo no such thing; exit 127", LONG).exit, Exit::Code(127));
}

#[test]
fn without_a_place_for_groups_a_child_runs_all_the_same_and_it_is_said() {
    let dir = tempfile::tempdir().unwrap();
    for groups in [dir.path().to_owned(), dir.path().join("missing")] {
        let containment = Containment { groups, trampoline: basculed(), tasks: Some(9), memory: None };
        let limits = Limits::within(LONG).contained(Some(containment));
        let outcome = run(&sh("echo ran"), &limits, &AtomicBool::new(false));
        assert_eq!((&outcome.exit, outcome.output_tail.as_str()), (&Exit::Code(0), "ran\n"));
        assert!(outcome.uncontained.is_some(), "{outcome:?}");
    }
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[test]
fn a_group_that_cannot_be_entered_is_no_group_to_run_in() {
    let mut trampoline = std::process::Command::new(basculed());
    let output = trampoline.args(["contained", "/nowhere/group", "/bin/echo", "ran"]).output().unwrap();
    assert_eq!((output.status.code(), output.stdout.as_slice()), (Some(126), b"".as_slice()));
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.starts_with("bascule-contained: /nowhere/group cannot be entered: "), "{said}");
}

/// Runs in a process of its own, because it moves the process it is called in.
#[test]
fn the_daemon_leaves_its_own_group_to_those_of_its_children() {
    if std::env::var_os("BASCULE_TEST_IN_GROUP").is_some() {
        return prepare_and_run();
    }
    let Some(place) = Place::new() else { return };
    let mut inner = std::process::Command::new(basculed());
    inner.arg("contained").arg(&place.0).arg(std::env::current_exe().unwrap());
    inner.args(["--exact", "the_daemon_leaves_its_own_group_to_those_of_its_children", "--nocapture"]);
    let output = inner.env("BASCULE_TEST_IN_GROUP", &place.0).stdin(Stdio::null()).process_group(0).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(said.contains("PREPARED"), "{said}");
}

fn prepare_and_run() {
    let own = PathBuf::from(std::env::var_os("BASCULE_TEST_IN_GROUP").unwrap());
    let groups = contained::prepare_own_cgroup(&Paths::under("/")).expect("groups");
    let containment = groups.containment(contained::TASKS, contained::MEMORY_BYTES);
    assert_eq!((&containment.groups, &containment.trampoline), (&own, &PathBuf::from("/proc/self/exe")));
    // The daemon is its own trampoline; this test is not the daemon.
    let containment = Containment { trampoline: basculed(), ..containment };
    assert_eq!(containment.tasks.is_none(), groups.missing().contains(&"pids"));
    assert_eq!(fs::read_to_string(own.join("cgroup.procs")).unwrap(), "", "the group itself must be empty");
    let ours = fs::read_to_string(own.join("daemon/cgroup.procs")).unwrap();
    assert_eq!(ours.trim(), std::process::id().to_string());
    let where_am_i = sh("sed -n s/^0:://p /proc/self/cgroup");
    let outcome = run(&where_am_i, &Limits::within(LONG).contained(Some(containment)), &AtomicBool::new(false));
    let group = format!("/{}/run-{}-", own.file_name().unwrap().display(), std::process::id());
    assert!(outcome.succeeded() && outcome.output_tail.starts_with(&group), "{outcome:?}");
    println!("PREPARED");
}

/// The most memory this process ever had, in KiB.
fn peak_kib() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.split_whitespace().next().unwrap().parse().unwrap()
}

fn wait_until(ready: impl Fn() -> bool) {
    let until = Instant::now() + LONG;
    while !ready() {
        assert!(Instant::now() < until, "it did not come");
        std::thread::sleep(Duration::from_millis(5));
    }
}
