//! Programs that do not do what they are asked for: they hang, print garbage or too much, fail, lie, or are not there.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test stops where it fails")]

use std::fs;
use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use bascule_boot::custom::OUTPUT_LIMIT;
use bascule_boot::{BootBackend, BootError, CustomBackend};
use bascule_core::{BootStatus, BootView, BootedGroup, Disposition, Group, Tries};

const LONG: Duration = Duration::from_secs(60);
const SHORT: Duration = Duration::from_millis(300);

const FACTORY: &str = r#"{"settings":"intact","primary":"a","a":{"status":"good"},"b":{"status":"unbootable"}}"#;
const ARMED: &str =
    r#"{"settings":"intact","primary":"b","a":{"status":"good"},"b":{"status":"trial","tries_left":3}}"#;
const COMMITTED: &str = r#"{"settings":"intact","primary":"b","a":{"status":"good"},"b":{"status":"good"}}"#;

/// Writes a program by a process of its own: a file that this one has open for writing cannot be run, and whatever another
/// thread starts meanwhile has it open for a moment too.
fn put_program(path: &Path, text: &str) {
    let mut install = Command::new("install");
    let mut install = install.args(["-m", "755", "/dev/stdin"]).arg(path).stdin(Stdio::piped()).spawn().unwrap();
    install.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    assert!(install.wait().unwrap().success());
}

/// A program with this text.
fn program(text: &str) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("program");
    put_program(&path, &format!("#!/bin/sh\ncd \"$(dirname \"$0\")\"\necho \"$1\" >>asked\n{text}\n"));
    dir
}

/// A program whose view is always this, and that says of every act that it is done.
fn always(view: &str) -> tempfile::TempDir {
    program(&format!("[ \"$1\" != view ] || echo '{view}'"))
}

fn backend(dir: &Path, timeout: Duration) -> CustomBackend {
    CustomBackend::new(dir.join("program"), timeout)
}

fn view(text: &str, timeout: Duration) -> Result<BootView, BootError> {
    let dir = program(text);
    backend(dir.path(), timeout).view(BootedGroup::proven(Group::A))
}

fn asked(dir: &Path) -> Vec<String> {
    fs::read_to_string(dir.join("asked")).unwrap_or_default().lines().map(str::to_owned).collect()
}

fn perform(dir: &Path, booted: Group, word: &str) -> Result<(), BootError> {
    let (backend, booted) = (backend(dir, LONG), BootedGroup::proven(booted));
    match word {
        "mark-unbootable" => backend.mark_unbootable(booted.target()),
        "activate" => backend.activate(booted.target(), Tries::DEFAULT),
        "mark-good" => backend.mark_good(booted),
        "roll-back" => backend.roll_back(booted),
        _ => panic!("no such act: {word}"),
    }
}

#[test]
fn a_program_that_hangs_is_killed_with_all_that_it_has_started() {
    let dir = program("sleep 600 & echo $! >child; exec sleep 600");
    let begun = Instant::now();
    let error = backend(dir.path(), SHORT).view(BootedGroup::proven(Group::A)).unwrap_err();
    assert_eq!((error.code(), error.disposition()), ("boot.custom-timed-out", Disposition::Retry));
    assert!(error.to_string().ends_with("view` did not end within 0.3 s"), "{error}");
    assert!(begun.elapsed() < Duration::from_secs(30), "{:?}", begun.elapsed());
    assert_gone(dir.path());
}

#[test]
fn what_a_program_leaves_running_is_killed_and_not_waited_for() {
    let dir = program(&format!("sleep 600 & echo $! >child; echo '{FACTORY}'"));
    let begun = Instant::now();
    backend(dir.path(), LONG).view(BootedGroup::proven(Group::A)).unwrap();
    assert!(begun.elapsed() < Duration::from_secs(30), "{:?}", begun.elapsed());
    assert_gone(dir.path());
}

/// The process whose number is in the file `child` has ended.
fn assert_gone(dir: &Path) {
    let child = fs::read_to_string(dir.join("child")).unwrap();
    let running = || {
        let state = fs::read_to_string(format!("/proc/{}/stat", child.trim())).unwrap_or_default();
        !state.is_empty() && !state.contains(") Z ")
    };
    let begun = Instant::now();
    while running() {
        assert!(begun.elapsed() < Duration::from_secs(30), "a child still runs");
        std::thread::yield_now();
    }
}

#[test]
fn a_program_that_closes_its_pipes_and_hangs_is_killed_all_the_same() {
    let error = view("exec >&- 2>&- <&-; exec sleep 600", SHORT).unwrap_err();
    assert_eq!(error.code(), "boot.custom-timed-out");
}

#[test]
fn an_answer_that_is_not_the_object_asked_for_is_an_error() {
    let trial = |tries: &str| format!("echo '{}'", ARMED.replace("\"tries_left\":3", tries));
    let texts = [
        ":".to_owned(),
        "echo hello".to_owned(),
        "head -c 1000 /dev/zero".to_owned(),
        "printf '\\377\\376'".to_owned(),
        format!("echo '{FACTORY}{FACTORY}'"),
        format!("echo '[{FACTORY}]'"),
        format!("echo '{}'", FACTORY.replace("\"primary\":\"a\",", "")),
        format!("echo '{}'", FACTORY.replace("\"primary\":\"a\"", "\"primary\":\"c\"")),
        format!("echo '{}'", FACTORY.replace("intact", "fine")),
        trial("\"tries_left\":0"),
        trial("\"tries_left\":10"),
        trial("\"tries_left\":-1"),
        trial("\"tries_left\":1e3"),
        trial("\"left\":3"),
        "i=0; while [ $i -lt 5000 ]; do printf '['; i=$((i+1)); done".to_owned(),
    ];
    for text in texts {
        let error = view(&text, LONG).unwrap_err();
        assert_eq!((error.code(), error.disposition()), ("boot.custom-answer", Disposition::Person), "{text}");
    }
    assert!(view(&trial("\"tries_left\":9"), LONG).is_ok());
}

#[test]
fn an_answer_that_is_too_long_is_an_error_and_its_end_is_not_waited_for() {
    for text in ["head -c 1000000 /dev/zero", "exec cat /dev/zero"] {
        let error = view(text, LONG).unwrap_err();
        assert_eq!(error.code(), "boot.custom-answer", "{text}");
        assert!(error.to_string().ends_with("it has more than 65536 bytes"), "{error}");
    }
    let padded = |length: usize| format!("printf '%{length}s' '{FACTORY}'");
    assert!(view(&padded(OUTPUT_LIMIT), LONG).is_ok(), "just long enough");
    assert_eq!(view(&padded(OUTPUT_LIMIT + 1), LONG).unwrap_err().code(), "boot.custom-answer");
}

#[test]
fn a_program_that_fails_is_quoted_with_its_last_line_made_harmless() {
    let error = view("echo first >&2; printf 'no \\033[31mroom\\007\\n\\n' >&2; exit 3", LONG).unwrap_err();
    assert_eq!((error.code(), error.disposition()), ("boot.custom-failed", Disposition::Retry));
    assert!(error.to_string().ends_with("view` failed with exit status: 3, saying \"no [31mroom\""), "{error}");
    // An answer does not count when the program fails.
    let error = view(&format!("echo '{FACTORY}'; exit 1"), LONG).unwrap_err();
    assert_eq!(error.code(), "boot.custom-failed");
    let error = view("kill -TERM $$", LONG).unwrap_err();
    assert!(error.to_string().contains("signal: 15"), "{error}");
    let error =
        view("head -c 3000000 /dev/zero | tr '\\0' x >&2; echo >&2; echo the end >&2; exit 3", LONG).unwrap_err();
    assert!(error.to_string().ends_with("\"the end\""), "{error}");
}

#[test]
fn a_program_need_not_read_what_it_is_told() {
    assert!(view(&format!("exec <&-; echo '{FACTORY}'"), LONG).is_ok());
}

#[test]
fn a_program_is_told_who_is_booted_what_is_to_be_done_and_how_often_it_may_be_tried() {
    let dir = program(&format!("cat >>told; echo >>told; [ \"$1\" != view ] || echo '{FACTORY}'"));
    drop(perform(dir.path(), Group::A, "activate"));
    let told = fs::read_to_string(dir.path().join("told")).unwrap();
    let view = r#"{"booted":"a","version":1}"#;
    let act = r#"{"booted":"a","target":"b","tries":3,"version":1}"#;
    assert_eq!(told.lines().collect::<Vec<_>>(), [view, act, view]);
}

#[test]
fn a_program_that_is_not_there_or_cannot_be_run_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let error = backend(dir.path(), LONG).view(BootedGroup::proven(Group::A)).unwrap_err();
    assert_eq!((error.code(), error.disposition()), ("boot.custom-run", Disposition::Person));
    assert!(error.to_string().starts_with("cannot run `") && error.to_string().ends_with("/program view`"), "{error}");
    fs::write(dir.path().join("program"), "#!/bin/sh\n").unwrap();
    assert_eq!(perform(dir.path(), Group::A, "mark-good").unwrap_err().code(), "boot.custom-run");
}

#[test]
fn a_program_that_says_done_while_its_view_says_otherwise_is_not_believed() {
    let lies = [
        (ARMED, Group::A, "mark-unbootable"),
        (FACTORY, Group::A, "activate"),
        (COMMITTED, Group::A, "activate"),
        (ARMED, Group::B, "mark-good"),
        (COMMITTED, Group::A, "mark-good"),
        (COMMITTED, Group::B, "roll-back"),
    ];
    for (shown, booted, word) in lies {
        let dir = always(shown);
        let error = perform(dir.path(), booted, word).unwrap_err();
        assert_eq!((error.code(), error.disposition()), ("boot.custom-not-kept", Disposition::Person), "{word}");
        assert!(error.to_string().ends_with(shown), "{error}");
        assert_eq!(asked(dir.path()), ["view", word, "view"]);
        // The same words with settings that are damaged promise nothing either.
        let dir = always(&shown.replace("intact", "damaged"));
        assert!(perform(dir.path(), booted, word).is_err());
    }
    for (shown, booted, word) in [(FACTORY, Group::A, "mark-unbootable"), (COMMITTED, Group::B, "mark-good")] {
        assert!(perform(always(shown).path(), booted, word).is_ok(), "{word}");
        assert!(perform(always(&shown.replace("intact", "damaged")).path(), booted, word).is_err(), "{word}");
    }
}

#[test]
fn fewer_tries_than_asked_for_are_not_what_was_asked_for() {
    let dir = always(&ARMED.replace('3', "1"));
    assert_eq!(perform(dir.path(), Group::A, "activate").unwrap_err().code(), "boot.custom-not-kept");
    assert!(perform(always(ARMED).path(), Group::A, "activate").is_ok());
}

#[test]
fn a_commit_may_not_change_what_the_opposite_group_is() {
    // First it is good, and after the commit it is not.
    let without = COMMITTED.replace("\"a\":{\"status\":\"good\"}", "\"a\":{\"status\":\"unbootable\"}");
    let text =
        format!("case $1 in view) if [ -e done ]; then echo '{without}'; else echo '{ARMED}'; fi;; *) : >done;; esac");
    let dir = program(&text);
    assert_eq!(perform(dir.path(), Group::B, "mark-good").unwrap_err().code(), "boot.custom-not-kept");
}

#[test]
fn what_may_not_be_done_is_not_even_asked_for() {
    let damaged = FACTORY.replace("intact", "damaged");
    let refusals = [
        (ARMED, Group::B, "mark-unbootable", "boot.no-good-group"),
        (ARMED, Group::B, "activate", "boot.no-good-group"),
        (FACTORY, Group::A, "roll-back", "boot.no-good-group"),
        (damaged.as_str(), Group::A, "activate", "boot.damaged"),
    ];
    for (shown, booted, word, code) in refusals {
        let dir = always(shown);
        assert_eq!(perform(dir.path(), booted, word).unwrap_err().code(), code, "{word}");
        assert_eq!(asked(dir.path()), ["view"], "{word}");
    }
}

#[test]
fn an_act_that_fails_is_an_error_though_its_view_shows_it_done() {
    let dir = program(&format!("[ \"$1\" = view ] || {{ echo broken >&2; exit 1; }}; echo '{FACTORY}'"));
    let error = perform(dir.path(), Group::A, "mark-unbootable").unwrap_err();
    assert_eq!(error.code(), "boot.custom-failed");
    let seen = backend(dir.path(), LONG).view(BootedGroup::proven(Group::A)).unwrap();
    assert_eq!(seen.b, BootStatus::Unbootable);
}
