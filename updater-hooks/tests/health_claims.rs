//! What the claims say of health checks: hanging ones, ones that cannot be run, those that failed before the update.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, reason = "a test")]

use std::fs;
use std::io::Write;
use std::net::TcpListener;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use bascule_hooks::health::{EVIDENCE_LIMIT, failures, judge};
use bascule_hooks::{
    CheckKind, CheckResult, Exit, HealthChecks, HealthSettings, Limits, Outcome, Probe, ProbeCheck, Requirement, Round,
};

use Requirement::{Required, Wanted};

/// Long enough for any script here on a busy machine.
const PATIENT: Duration = Duration::from_secs(20);

struct Device(tempfile::TempDir);

impl Device {
    fn new() -> Self {
        Device(tempfile::tempdir().unwrap())
    }

    fn file(&self, path: &str, mode: u32, content: impl AsRef<[u8]>) -> PathBuf {
        let path = self.0.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::File::create(&path).unwrap().write_all(content.as_ref()).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        path
    }

    fn script(&self, path: &str, body: &str) -> PathBuf {
        self.file(path, 0o755, format!("#!/bin/sh\n{body}\n"))
    }

    fn required(&self, name: &str, body: &str) -> PathBuf {
        self.script(&format!("usr/lib/bascule/health.d/required/{name}"), body)
    }

    fn settings(&self, deadline: Duration) -> HealthSettings {
        let limits = Limits { grace: Duration::from_millis(100), ..Limits::within(deadline) };
        HealthSettings::new(self.0.path(), limits)
    }

    fn run(&self, deadline: Duration) -> Vec<CheckResult> {
        run(self.settings(deadline))
    }
}

fn run(settings: HealthSettings) -> Vec<CheckResult> {
    HealthChecks::find(settings).unwrap().run_all(&AtomicBool::new(false))
}

fn seen(results: &[CheckResult]) -> Vec<(&str, Requirement, bool)> {
    results.iter().map(|result| (result.name.as_str(), result.requirement, result.passed)).collect()
}

/// A probe that does what it is told, and counts how often it was asked.
struct Told {
    name: &'static str,
    answer: Result<&'static str, &'static str>,
    takes: Duration,
    obeys: bool,
    asked: AtomicU32,
}

impl Told {
    fn new(name: &'static str, answer: Result<&'static str, &'static str>) -> Told {
        Told { name, answer, takes: Duration::ZERO, obeys: true, asked: AtomicU32::new(0) }
    }
}

impl Probe for Told {
    fn name(&self) -> &str {
        self.name
    }

    fn look(&self, _deadline: Duration, cancel: &AtomicBool) -> Result<String, String> {
        self.asked.fetch_add(1, Ordering::Relaxed);
        let until = Instant::now() + self.takes;
        while Instant::now() < until && !(self.obeys && cancel.load(Ordering::Relaxed)) {
            thread::sleep(Duration::from_millis(5));
        }
        self.answer.map(str::to_owned).map_err(str::to_owned)
    }
}

#[test]
fn claim_g5_a_check_that_never_returns_fails_at_its_own_deadline_and_delays_nobody_beyond_it() {
    let device = Device::new();
    let deadline = Duration::from_secs(2);
    // More of them than there are places but one, and all of them come first.
    for name in ["a-term", "b-deaf", "c-silent"] {
        device.required(name, "trap '' TERM; while :; do sleep 0.05; done");
    }
    let marks = device.0.path().join("marks");
    fs::create_dir(&marks).unwrap();
    for index in 0..12 {
        device.required(&format!("x-{index:02}"), &format!("touch {}/{index}; exit 0", marks.display()));
    }
    let started = Instant::now();
    let settings = device.settings(deadline);
    let results = thread::scope(|scope| {
        let running = scope.spawn(|| run(settings));
        while fs::read_dir(&marks).unwrap().count() < 12 {
            assert!(started.elapsed() < deadline, "the healthy checks waited for those that hang");
            thread::sleep(Duration::from_millis(10));
        }
        running.join().unwrap()
    });
    assert!(started.elapsed() < deadline * 2, "{:?}", started.elapsed());
    for (index, result) in results.iter().enumerate() {
        assert_eq!((result.passed, result.hung()), (index >= 3, index < 3), "{result:?}");
    }
    assert!(results[..3].iter().all(|result| result.outcome.duration >= deadline));
    assert_eq!(judge(&results, &[]), Round::Hang);
}

#[test]
fn claim_g5_a_probe_that_never_returns_fails_at_its_deadline_and_is_not_asked_again_meanwhile() {
    let device = Device::new();
    let probe = Arc::new(Told { takes: PATIENT, obeys: false, ..Told::new("http://stuck/", Ok("never")) });
    let mut settings = device.settings(Duration::from_millis(300));
    settings.probes.push(ProbeCheck::http(Required, probe.clone()));
    let mut checks = HealthChecks::find(settings).unwrap();
    let started = Instant::now();
    for _ in 0..2 {
        let results = checks.run_all(&AtomicBool::new(false));
        assert!(results[0].hung() && !results[0].passed, "{results:?}");
        assert_eq!(judge(&results, &[]), Round::Hang);
    }
    assert!(started.elapsed() < Duration::from_secs(5), "{:?}", started.elapsed());
    assert_eq!(probe.asked.load(Ordering::Relaxed), 1, "its threads pile up");
}

#[test]
fn a_probe_that_was_late_is_told_to_stop_and_asked_again_in_the_next_round() {
    let device = Device::new();
    let probe = Arc::new(Told { takes: PATIENT, ..Told::new("http://slow/", Ok("late")) });
    let mut settings = device.settings(Duration::from_millis(200));
    settings.probes.push(ProbeCheck::http(Required, probe.clone()));
    let mut checks = HealthChecks::find(settings).unwrap();
    let until = Instant::now() + PATIENT / 2;
    while probe.asked.load(Ordering::Relaxed) < 2 {
        assert!(checks.run_all(&AtomicBool::new(false))[0].hung());
        assert!(Instant::now() < until, "it was not asked again");
    }
}

#[test]
fn a_cancelled_round_does_not_wait_for_a_probe() {
    let device = Device::new();
    let mut settings = device.settings(PATIENT);
    let probe = Told { takes: PATIENT, obeys: false, ..Told::new("http://stuck/", Ok("never")) };
    settings.probes.push(ProbeCheck::http(Required, Arc::new(probe)));
    let started = Instant::now();
    let results = HealthChecks::find(settings).unwrap().run_all(&AtomicBool::new(true));
    assert_eq!((&results[0].outcome.exit, results[0].passed), (&Exit::Cancelled, false));
    assert!(started.elapsed() < PATIENT / 4);
}

/// How a check stood before the update.
#[derive(Debug, Clone, Copy)]
enum Before {
    Passed,
    Failed,
    Hung,
    Absent,
}

fn result(requirement: Requirement, round: Round) -> CheckResult {
    let exit = match round {
        Round::Pass => Exit::Code(0),
        Round::Fail => Exit::Code(1),
        Round::Hang => Exit::TimedOut,
    };
    let outcome = Outcome { exit, ..Outcome::not_started("") };
    CheckResult {
        name: "check".to_owned(),
        kind: CheckKind::Program,
        requirement,
        passed: round == Round::Pass,
        reason: outcome.reason(),
        outcome,
    }
}

#[test]
fn claim_g7_a_check_that_failed_before_the_update_decides_nothing_and_one_that_passed_does() {
    use Before::{Absent, Failed, Hung, Passed};
    use Round::{Fail, Hang, Pass};
    let table = [
        (Required, Passed, [Pass, Fail, Hang]),
        // Not there before: the new system brought it, and stands for it.
        (Required, Absent, [Pass, Fail, Hang]),
        (Required, Failed, [Pass, Pass, Pass]),
        (Required, Hung, [Pass, Pass, Pass]),
        (Wanted, Passed, [Pass, Pass, Pass]),
        (Wanted, Absent, [Pass, Pass, Pass]),
        (Wanted, Failed, [Pass, Pass, Pass]),
        (Wanted, Hung, [Pass, Pass, Pass]),
    ];
    for (requirement, before, wanted) in table {
        let baseline = match before {
            Passed => failures(&[result(requirement, Pass)]),
            Failed => failures(&[result(requirement, Fail)]),
            Hung => failures(&[result(requirement, Hang)]),
            Absent => failures(&[]),
        };
        for (now, wanted) in [Pass, Fail, Hang].into_iter().zip(wanted) {
            let came = judge(&[result(requirement, now)], &baseline);
            assert_eq!(came, wanted, "{requirement:?}, {before:?} before, {now:?} now");
        }
    }
}

#[test]
fn claim_g7_a_wanted_check_that_failed_before_does_not_excuse_it_as_a_required_one_now() {
    let baseline = failures(&[result(Wanted, Round::Fail)]);
    assert_eq!(judge(&[result(Required, Round::Fail)], &baseline), Round::Fail);
}

#[test]
fn claim_g7_one_excused_check_excuses_no_other() {
    let other = |round| CheckResult { name: "other".to_owned(), ..result(Required, round) };
    let baseline = failures(&[result(Required, Round::Fail), other(Round::Pass)]);
    assert_eq!(baseline, ["check"]);
    assert_eq!(judge(&[result(Required, Round::Fail), other(Round::Fail)], &baseline), Round::Fail);
    assert_eq!(judge(&[result(Required, Round::Hang), other(Round::Pass)], &baseline), Round::Pass);
}

#[test]
fn claim_g8_a_check_that_is_missing_or_cannot_be_run_has_failed_and_says_why() {
    let device = Device::new();
    let folder = "usr/lib/bascule/health.d/required";
    device.file(&format!("{folder}/b-plain"), 0o644, "#!/bin/sh\nexit 0\n");
    let mut foreign = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0\x02\0\xf7\0".to_vec();
    foreign.resize(4096, 0);
    device.file(&format!("{folder}/c-foreign"), 0o755, foreign);
    device.file(&format!("{folder}/d-text"), 0o755, "exit 0\n");
    device.file(&format!("{folder}/e-empty"), 0o755, "");
    device.file(&format!("{folder}/f-interpreter"), 0o755, "#!/nowhere/interpreter\n");
    device.file(&format!("{folder}/g-garbage"), 0o755, [0xff, 0x00, 0x1b, b'[', b'2', b'J']);
    symlink("/nowhere/check", device.0.path().join(folder).join("a-missing")).unwrap();
    let results = device.run(PATIENT);
    let why = ["No such file", "not executable", "neither a script", "neither a script", "neither a script"];
    assert_eq!(results.len(), 7);
    for (result, why) in results.iter().zip(why.into_iter().chain(["No such file", "neither a script"])) {
        assert!(!result.passed && matches!(result.outcome.exit, Exit::NotStarted(_)), "{result:?}");
        assert!(result.reason.contains(why), "{result:?}");
        assert_eq!(judge(std::slice::from_ref(result), &[]), Round::Fail);
    }
}

#[test]
fn claim_g8_a_check_that_prints_garbage_is_judged_by_its_exit_code_and_harmless_to_show() {
    let device = Device::new();
    let print = "printf '\\033]0;owned\\007\\033[2J\\377\\376\\200 fine\\r\\n\\000'";
    device.required("a-fails", &format!("{print}; exit 1"));
    device.required("b-passes", &format!("{print}; exit 0"));
    device.required("c-floods", "head -c 3000000 /dev/urandom; exit 1");
    let results = device.run(PATIENT);
    assert_eq!(
        seen(&results),
        [("a-fails", Required, false), ("b-passes", Required, true), ("c-floods", Required, false)]
    );
    assert_eq!(results[0].evidence(), "␛]0;owned␇␛[2J\u{fffd}\u{fffd}\u{fffd} fine\n␀");
    for result in &results {
        let obeyed = |text: &str| text.chars().any(|c| c.is_control() && !matches!(c, '\n' | '\t'));
        assert!(!obeyed(result.evidence()) && !obeyed(&result.reason), "{result:?}");
    }
    assert_eq!(judge(&results, &[]), Round::Fail);
}

#[test]
fn evidence_is_the_end_of_the_output_cut_between_characters() {
    let device = Device::new();
    // Three bytes each: 4096 is not a multiple of three.
    device.required("a-talks", "yes '€€€€€€€€€' | head -n 1000; printf 'the end'; exit 1");
    let results = device.run(PATIENT);
    let evidence = results[0].evidence();
    assert!(evidence.len() <= EVIDENCE_LIMIT && evidence.len() > EVIDENCE_LIMIT - 3, "{}", evidence.len());
    assert!(evidence.ends_with("€\nthe end"));
    assert_eq!(results[0].reason, "exit code 1: the end");
}

#[test]
fn a_port_has_to_accept() {
    let device = Device::new();
    let (open, shut) = (TcpListener::bind("127.0.0.1:0").unwrap(), TcpListener::bind("127.0.0.1:0").unwrap());
    let address = |listener: &TcpListener| listener.local_addr().unwrap().to_string();
    let mut settings = device.settings(PATIENT);
    settings.tcp = vec![address(&open), address(&shut), "no port".to_owned()];
    drop(shut);
    let results = run(settings);
    assert_eq!(results.iter().map(|result| result.passed).collect::<Vec<_>>(), [true, false, false]);
    assert_eq!(results[0].name, format!("tcp:{}", address(&open)));
    assert_eq!(results[0].reason, format!("{} accepts", address(&open)));
    assert!(results[1].reason.contains("refused"), "{results:?}");
    assert!(results.iter().all(|result| (result.kind, result.requirement) == (CheckKind::Tcp, Required)));
}

#[test]
fn probes_count_as_required_or_wanted_and_a_source_never_decides() {
    let device = Device::new();
    device.required("10-own", "true");
    let mut settings = device.settings(PATIENT);
    settings.probes = vec![
        ProbeCheck::source(Arc::new(Told::new("https://updates/", Err("connection refused")))),
        ProbeCheck::http(Wanted, Arc::new(Told::new("http://nice/", Err("status 503")))),
        ProbeCheck::http(Required, Arc::new(Told::new("http://own/\u{1b}[2J", Ok("status 204")))),
    ];
    let results = run(settings);
    assert_eq!(
        seen(&results),
        [
            ("10-own", Required, true),
            ("http://own/␛[2J", Required, true),
            ("https://updates/", Wanted, false),
            ("http://nice/", Wanted, false),
        ]
    );
    let reasons: Vec<_> = results[1..].iter().map(|result| result.reason.as_str()).collect();
    assert_eq!(reasons, ["status 204", "connection refused", "status 503"]);
    let kinds = [CheckKind::Program, CheckKind::Http, CheckKind::Source, CheckKind::Http];
    assert_eq!(results.iter().map(|result| result.kind).collect::<Vec<_>>(), kinds);
    assert_eq!(judge(&results, &[]), Round::Pass);
}

#[test]
fn greenboots_checks_run_beside_ours_and_ours_win() {
    let device = Device::new();
    device.required("01_net.sh", "true");
    device.script("usr/lib/greenboot/check/required.d/01_net.sh", "exit 1");
    device.script("usr/lib/greenboot/check/required.d/02_disk.sh", "exit 1");
    device.script("usr/lib/greenboot/check/required.d/03_clock.sh", "exit 1");
    device.script("etc/greenboot/check/required.d/03_clock.sh", "exit 0");
    device.script("etc/greenboot/check/wanted.d/02_disk.sh", "exit 1");
    device.file("etc/greenboot/check/required.d/04_open.sh", 0o777, "#!/bin/sh\nexit 0\n");
    device.file("etc/greenboot/check/required.d/README", 0o644, "about these checks\n");
    device.file("etc/greenboot/greenboot.conf", 0o644, "GREENBOOT_MAX_BOOT_ATTEMPTS=3\n");
    let results = device.run(PATIENT);
    assert_eq!(
        seen(&results),
        [
            ("01_net.sh", Required, true),
            ("greenboot/required.d/02_disk.sh", Required, false),
            ("greenboot/required.d/03_clock.sh", Required, true),
            ("greenboot/required.d/04_open.sh", Required, false),
            ("greenboot/wanted.d/02_disk.sh", Wanted, false),
        ]
    );
    assert!(results[3].reason.contains("others than its owner may write"), "{results:?}");
}
