use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::atomic::Ordering;

use super::*;
use crate::output::OUTPUT_LIMIT;

/// Longer than any test may take; a test that gets there has failed.
const LONG: Duration = Duration::from_secs(20);
const SOON: Limits =
    Limits { deadline: Duration::from_millis(500), grace: Duration::from_millis(400), containment: None };
const PATIENT: Limits = Limits { deadline: LONG, grace: Duration::from_millis(150), containment: None };

fn sh(script: &str) -> Command {
    Command::new("/bin/sh").arg("-c").arg(script)
}

fn run_script(script: &str, limits: &Limits) -> Outcome {
    let outcome = run(&sh(script), limits, &AtomicBool::new(false));
    assert!(outcome.duration < LONG / 2, "{script:?} held us up: {outcome:?}");
    outcome
}

/// Whether the process whose number stands in `file` is gone, or is about to be reaped by init.
fn is_gone(file: &Path) -> bool {
    let pid = fs::read_to_string(file).expect("the script wrote its process number");
    let gone = || match fs::read_to_string(format!("/proc/{}/stat", pid.trim())) {
        Ok(stat) => stat.contains(") Z "),
        Err(_) => true,
    };
    // The kernel delivers a SIGKILL when it next looks; that is not a matter of our code's time.
    (0..200).any(|_| {
        gone() || {
            thread::sleep(Duration::from_millis(5));
            false
        }
    })
}

#[test]
fn a_child_that_ends_by_itself_gives_its_code_and_both_outputs_in_order() {
    let outcome = run_script("echo one; echo two >&2; echo three; exit 7", &PATIENT);
    assert_eq!((outcome.exit, outcome.output_tail.as_str()), (Exit::Code(7), "one\ntwo\nthree\n"));
}

#[test]
fn a_child_that_dies_of_a_signal_names_the_signal() {
    assert_eq!(run_script("kill -SEGV $$", &PATIENT).exit, Exit::Signal(11));
}

#[test]
fn a_hanging_child_gets_the_chance_to_end_in_order() {
    let outcome = run_script("trap 'echo tidied; exit 0' TERM; echo begun; while :; do sleep 0.02; done", &SOON);
    assert_eq!(outcome.exit, Exit::TimedOut);
    // Between the two the shell may say that its `sleep`, which got the signal too, was terminated.
    assert!(outcome.output_tail.starts_with("begun\n") && outcome.output_tail.ends_with("tidied\n"), "{outcome:?}");
    assert!(outcome.duration >= SOON.deadline);
}

#[test]
fn a_child_that_ignores_term_is_killed_after_the_grace() {
    let dir = tempfile::tempdir().expect("a folder");
    let pid = dir.path().join("pid");
    let script = format!("trap '' TERM; echo $$ > {}; while :; do sleep 0.02; done", pid.display());
    let outcome = run_script(&script, &SOON);
    assert_eq!(outcome.exit, Exit::TimedOut);
    assert!(outcome.duration >= SOON.deadline + SOON.grace, "killed too early: {:?}", outcome.duration);
    assert!(is_gone(&pid));
}

#[test]
fn grandchildren_that_ignore_term_die_with_the_group() {
    let dir = tempfile::tempdir().expect("a folder");
    let pid = dir.path().join("pid");
    let script = format!("(trap '' TERM; sh -c 'echo $PPID' > {}; while :; do sleep 0.02; done) & wait", pid.display());
    assert_eq!(run_script(&script, &SOON).exit, Exit::TimedOut);
    assert!(is_gone(&pid));
}

#[test]
fn what_a_child_leaves_behind_in_its_group_is_killed_when_it_ends() {
    let dir = tempfile::tempdir().expect("a folder");
    let pid = dir.path().join("pid");
    let script = format!("sleep 60 & echo $! > {}; echo done", pid.display());
    let outcome = run_script(&script, &PATIENT);
    assert_eq!((outcome.exit, outcome.output_tail.as_str()), (Exit::Code(0), "done\n"));
    assert!(is_gone(&pid));
}

#[test]
fn a_daemon_that_left_the_group_and_keeps_the_pipe_does_not_hold_us_up() {
    let dir = tempfile::tempdir().expect("a folder");
    let pid = dir.path().join("pid");
    let script = format!("setsid sh -c 'echo $$ > {0}; exec sleep 60' & while [ ! -s {0} ]; do :; done", pid.display());
    let outcome = run_script(&script, &PATIENT);
    assert_eq!(outcome.exit, Exit::Code(0));
    assert!(outcome.duration < Duration::from_secs(5), "{:?}", outcome.duration);
    let daemon = fs::read_to_string(&pid).expect("its number").trim().parse().expect("a number");
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(daemon), nix::sys::signal::Signal::SIGKILL)
        .expect("it still ran");
}

#[test]
fn ten_megabytes_of_output_leave_the_last_64_kib() {
    let outcome = run_script("head -c 10485760 /dev/zero | tr '\\0' x; echo; echo the end", &PATIENT);
    assert_eq!(outcome.exit, Exit::Code(0));
    assert_eq!(outcome.output_tail.len(), OUTPUT_LIMIT);
    assert!(outcome.output_tail.ends_with("xxx\nthe end\n"));
    assert_eq!(outcome.output_dropped, 10_485_760 + 9 - OUTPUT_LIMIT as u64);
}

#[test]
fn endless_output_does_not_outlive_the_deadline() {
    let outcome = run_script("exec cat /dev/zero", &SOON);
    assert_eq!(outcome.exit, Exit::TimedOut);
    assert!(outcome.output_tail.len() <= OUTPUT_LIMIT && outcome.output_dropped > 0);
}

#[test]
fn a_child_that_closes_its_outputs_is_still_waited_for() {
    assert_eq!(run_script("exec >&- 2>&-; sleep 0.1; exit 3", &PATIENT).exit, Exit::Code(3));
    assert_eq!(run_script("exec >&- 2>&-; sleep 60", &SOON).exit, Exit::TimedOut);
}

#[test]
fn standard_input_is_empty_and_nothing_of_our_environment_is_inherited() {
    let outcome = run(&sh("cat; env").env("GIVEN", "yes"), &PATIENT, &AtomicBool::new(false));
    let mut names: Vec<_> = outcome.output_tail.lines().filter_map(|line| line.split('=').next()).collect();
    names.sort_unstable();
    // PWD, OLDPWD, SHLVL and _ are the shell's own.
    names.retain(|name| !["PWD", "OLDPWD", "SHLVL", "_"].contains(name));
    assert_eq!(names, ["GIVEN", "LANG", "PATH"]);
}

#[test]
fn escape_sequences_and_garbage_do_not_come_through() {
    let outcome = run_script("printf '\\033[2Jhello\\000\\377\\r\\n'", &PATIENT);
    assert_eq!(outcome.output_tail, "␛[2Jhello␀\u{fffd}\n");
}

#[test]
fn a_cancelled_child_is_ended_long_before_its_deadline() {
    let cancel = AtomicBool::new(false);
    let outcome = thread::scope(|scope| {
        let running = scope.spawn(|| run(&sh("sleep 60"), &PATIENT, &cancel));
        cancel.store(true, Ordering::Relaxed);
        running.join().expect("the runner")
    });
    assert_eq!(outcome.exit, Exit::Cancelled);
    assert!(outcome.duration < LONG / 2);
}

#[test]
fn what_cannot_be_started_says_why() {
    let dir = tempfile::tempdir().expect("a folder");
    let lost = dir.path().join("lost");
    fs::write(&lost, "#!/nowhere/interpreter\n").expect("a file");
    fs::set_permissions(&lost, fs::Permissions::from_mode(0o755)).expect("its mode");
    for program in [lost, dir.path().join("missing"), dir.path().to_owned()] {
        let outcome = run(&Command::new(&program), &PATIENT, &AtomicBool::new(false));
        assert!(matches!(outcome.exit, Exit::NotStarted(ref why) if !why.is_empty()), "{program:?}: {outcome:?}");
    }
}

#[test]
fn an_outcome_as_json_has_plain_numbers() {
    let outcome = Outcome { duration: Duration::from_millis(1500), ..Outcome::not_started("no such file") };
    let json = serde_json::to_value(outcome).expect("json");
    assert_eq!(
        json,
        serde_json::json!({
            "exit": {"exit": "not-started", "value": "no such file"},
            "duration_ms": 1500, "output_tail": "", "output_dropped": 0
        })
    );
}

/// A place for control groups, removed at the end; `None` and a word about it where the kernel gives us none.
struct Place(std::path::PathBuf);

impl Place {
    fn new(name: &str) -> Option<Place> {
        let mounts = fs::read_to_string("/proc/mounts").expect("the mounts");
        let mount = mounts.lines().find_map(|line| line.split(' ').nth(1).filter(|_| line.contains(" cgroup2 ")));
        let dir = mount.map(|mount| Path::new(mount).join(format!("bascule-hooks-test-{name}-{}", std::process::id())));
        let made = dir.filter(|dir| fs::create_dir(dir).is_ok()).map(Place);
        if made.is_none() {
            eprintln!("SKIPPED: no control group (v2) can be made here");
        }
        made
    }

    fn containment(&self, dir: &Path) -> Containment {
        let trampoline = dir.join("trampoline");
        if !trampoline.exists() {
            fs::write(&trampoline, "#!/bin/sh\nshift\necho 0 > $1/cgroup.procs\nshift\nexec \"$@\"\n").expect("a file");
            fs::set_permissions(&trampoline, fs::Permissions::from_mode(0o755)).expect("its mode");
        }
        Containment { groups: self.0.clone(), trampoline, tasks: None, memory: None }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        // After a test that failed, something may still be in there.
        let _ = fs::write(self.0.join("cgroup.kill"), "1");
        for entry in fs::read_dir(&self.0).into_iter().flatten().flatten() {
            let _ = fs::remove_dir(entry.path());
        }
        let _ = fs::remove_dir(&self.0);
    }
}

#[test]
fn a_daemon_that_left_the_process_group_is_killed_with_its_control_group() {
    let Some(place) = Place::new("daemon") else { return };
    let dir = tempfile::tempdir().expect("a folder");
    let pid = dir.path().join("pid");
    let script = format!("setsid sh -c 'echo $$ > {0}; exec sleep 60' & while [ ! -s {0} ]; do :; done", pid.display());
    let limits = PATIENT.contained(Some(place.containment(dir.path())));
    let outcome = run(&sh(&script), &limits, &AtomicBool::new(false));
    assert_eq!((&outcome.exit, &outcome.uncontained), (&Exit::Code(0), &None));
    assert!(is_gone(&pid));
    assert!(fs::read_dir(&place.0).expect("a folder").flatten().all(|entry| !entry.path().is_dir()));
}

#[test]
fn a_child_in_another_session_gets_the_chance_to_end_in_order_too() {
    let Some(place) = Place::new("term") else { return };
    let dir = tempfile::tempdir().expect("a folder");
    let told = dir.path().join("told");
    let polite = format!("trap \"echo tidied > {}; exit 0\" TERM; while :; do sleep 0.02; done", told.display());
    // Caught, not ignored: what a shell was started to ignore, it cannot trap.
    let script = format!("trap : TERM; setsid sh -c '{polite}' & while :; do sleep 0.02; done");
    let limits = SOON.contained(Some(place.containment(dir.path())));
    assert_eq!(run(&sh(&script), &limits, &AtomicBool::new(false)).exit, Exit::TimedOut);
    assert_eq!(fs::read_to_string(told).expect("it was told"), "tidied\n");
}

#[test]
fn a_kernel_that_cannot_kill_a_group_has_its_processes_killed_one_by_one() {
    let Some(place) = Place::new("one-by-one") else { return };
    let dir = tempfile::tempdir().expect("a folder");
    let (group, fault) = Group::make(&place.containment(dir.path())).expect("a group");
    assert_eq!(fault, None);
    let pid = dir.path().join("pid");
    let script =
        format!("setsid sh -c 'trap \"\" TERM; echo $$ > {}; while :; do sleep 0.02; done' & wait", pid.display());
    let mut child = group.enter_and_run("/bin/sh".as_ref()).arg("-c").arg(script).spawn().expect("it starts");
    while !fs::read_to_string(&pid).is_ok_and(|text| text.ends_with('\n')) {
        thread::sleep(Duration::from_millis(5));
    }
    group.kill_one_by_one();
    assert!(is_gone(&pid));
    child.wait().expect("it was ours");
    assert_eq!(group.end(), None);
}

#[test]
fn an_outcome_says_which_limit_was_met_and_what_could_not_be_had() {
    let mut outcome = Outcome { exit: Exit::Signal(9), ..Outcome::not_started("") };
    outcome.met_limit = Some(MetLimit::Memory);
    outcome.uncontained = Some("no control group".to_owned());
    assert_eq!(outcome.reason(), "ended by signal 9 (it met its limit of memory)");
    let json = serde_json::to_value(outcome).expect("json");
    assert_eq!((&json["met_limit"], &json["uncontained"]), (&"memory".into(), &"no control group".into()));
}
