use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use super::*;

struct Device(tempfile::TempDir);

impl Device {
    fn new() -> Self {
        Device(tempfile::tempdir().expect("a folder"))
    }

    fn script(&self, path: &str, mode: u32, body: &str) -> &Self {
        let path = self.0.path().join(path);
        fs::create_dir_all(path.parent().expect("a folder")).expect("a folder");
        fs::write(&path, format!("#!/bin/sh\n{body}\n")).expect("a file");
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).expect("its mode");
        self
    }

    fn required(&self, name: &str, body: &str) -> &Self {
        self.script(&format!("usr/lib/bascule/health.d/required/{name}"), 0o755, body)
    }

    fn wanted(&self, name: &str, body: &str) -> &Self {
        self.script(&format!("usr/lib/bascule/health.d/wanted/{name}"), 0o755, body)
    }

    /// What `systemctl show` would print for each unit, kept in a folder: the fake reads it at each call.
    fn unit(&self, name: &str, active: &str, restarts: u32) -> &Self {
        let dir = self.0.path().join("units");
        fs::create_dir_all(&dir).expect("a folder");
        let state = format!("LoadState=loaded\nActiveState={active}\nSubState=running\nNRestarts={restarts}\n");
        fs::write(dir.join(name), state).expect("a file");
        let absent = "printf 'LoadState=not-found\\nActiveState=inactive\\nSubState=dead\\nNRestarts=0\\n'";
        self.script("systemctl", 0o755, &format!("[ $1 = show ] || exit 2; cat {}/$4 2>&- || {absent}", dir.display()))
    }

    fn checks(&self, units: &[&str]) -> HealthChecks {
        self.checks_within(Duration::from_secs(20), units)
    }

    fn checks_within(&self, deadline: Duration, units: &[&str]) -> HealthChecks {
        let limits = Limits { deadline, grace: Duration::from_millis(100), containment: None };
        let mut settings = HealthSettings::new(self.0.path(), limits);
        settings.units = units.iter().map(|unit| (*unit).to_owned()).collect();
        settings.systemctl = self.0.path().join("systemctl");
        HealthChecks::find(settings).expect("the checks")
    }
}

fn run(checks: &mut HealthChecks) -> Vec<CheckResult> {
    checks.run_all(&AtomicBool::new(false))
}

fn passed(results: &[CheckResult]) -> Vec<(&str, bool)> {
    results.iter().map(|result| (result.name.as_str(), result.passed)).collect()
}

#[test]
fn a_required_check_decides_and_a_wanted_one_is_only_reported() {
    let device = Device::new();
    device.required("10-serves", "true").wanted("10-nice", "echo no printer; exit 1");
    let mut checks = device.checks(&[]);
    let results = run(&mut checks);
    assert_eq!(passed(&results), [("10-serves", true), ("10-nice", false)]);
    assert_eq!(results[1].reason, "exit code 1: no printer");
    assert_eq!(judge(&results, &[]), Round::Pass);
    device.required("10-serves", "exit 1");
    assert_eq!(judge(&run(&mut checks), &[]), Round::Fail);
}

#[test]
fn a_check_that_hangs_has_failed_and_the_others_still_run() {
    let device = Device::new();
    device.required("a-hangs", "exec sleep 60").required("b-fails", "exit 1").required("c-serves", "true");
    let results = run(&mut device.checks_within(Duration::from_secs(2), &[]));
    assert_eq!(passed(&results), [("a-hangs", false), ("b-fails", false), ("c-serves", true)]);
    assert!(results[0].hung());
    assert_eq!(judge(&results, &[]), Round::Hang);
}

#[test]
fn a_check_may_have_a_deadline_of_its_own_and_one_of_nobody_is_named() {
    let device = Device::new();
    device.required("10-quick", "exec sleep 60").required("20-slow", "sleep 1");
    let mut checks = device.checks_within(Duration::from_secs(20), &[]);
    checks.settings.deadlines =
        [("10-quick", 300), ("30-gone", 300)].map(|(name, ms)| (name.to_owned(), Duration::from_millis(ms))).into();
    assert_eq!(checks.deadlines_of_nobody(), ["30-gone"]);
    let started = std::time::Instant::now();
    let results = run(&mut checks);
    assert_eq!(passed(&results), [("10-quick", false), ("20-slow", true)]);
    assert!(results[0].hung() && started.elapsed() < Duration::from_secs(15), "its own deadline did not count");
}

#[test]
fn checks_run_beside_each_other() {
    let device = Device::new();
    for name in ["a", "b", "c", "d"] {
        device.required(name, "exec sleep 60");
    }
    let started = std::time::Instant::now();
    assert_eq!(run(&mut device.checks_within(Duration::from_secs(2), &[])).len(), 4);
    assert!(started.elapsed() < Duration::from_secs(6), "four deadlines were waited for in turn");
}

#[test]
fn a_check_that_cannot_be_run_has_failed() {
    let device = Device::new();
    device.script("etc/bascule/health.d/required/10-forgot", 0o644, "true");
    device.script("etc/bascule/health.d/required/20-foreign", 0o755, "");
    fs::write(device.0.path().join("etc/bascule/health.d/required/20-foreign"), b"\x7fELF\x02\x01\x01")
        .expect("a file");
    let results = run(&mut device.checks(&[]));
    assert_eq!(passed(&results), [("10-forgot", false), ("20-foreign", false)]);
    assert_eq!(judge(&results, &[]), Round::Fail);
}

#[test]
fn a_check_that_failed_before_the_update_does_not_count() {
    let device = Device::new();
    device.required("10-broken", "exit 1").required("20-serves", "true").wanted("30-nice", "exit 1");
    let mut checks = device.checks(&[]);
    let before = failures(&run(&mut checks));
    assert_eq!(before, ["10-broken"]);
    assert_eq!(judge(&run(&mut checks), &before), Round::Pass);
    device.required("20-serves", "exit 1");
    assert_eq!(judge(&run(&mut checks), &before), Round::Fail);
}

#[test]
fn a_name_in_both_folders_is_the_required_check() {
    let device = Device::new();
    device.required("10-net", "true").wanted("10-net", "exit 1");
    let results = run(&mut device.checks(&[]));
    assert_eq!(passed(&results), [("10-net", true)]);
    assert_eq!(results[0].requirement, Requirement::Required);
}

#[test]
fn a_unit_passes_only_while_it_is_active() {
    let device = Device::new();
    device.unit("ping.service", "active", 0).unit("slow.service", "activating", 0);
    let mut checks = device.checks(&["ping.service", "slow.service", "gone.service", "--evil.service", "noise"]);
    let results = run(&mut checks);
    assert_eq!(
        passed(&results),
        [
            ("ping.service", true),
            ("slow.service", false),
            ("gone.service", false),
            ("--evil.service", false),
            ("noise", false)
        ]
    );
    assert_eq!(results[2].reason, "it is inactive (dead), its unit file not-found");
    assert_eq!(results[3].outcome.exit, Exit::NotStarted("--evil.service is not the name of a unit".to_owned()));
}

#[test]
fn a_unit_that_was_restarted_between_two_rounds_has_failed_although_it_is_active() {
    let device = Device::new();
    device.unit("ping.service", "active", 2);
    let mut checks = device.checks(&["ping.service"]);
    assert_eq!(passed(&run(&mut checks)), [("ping.service", true)]);
    device.unit("ping.service", "active", 3);
    let results = run(&mut checks);
    assert_eq!(results[0].reason, "it was restarted 1 times since the round before");
    assert_eq!(judge(&results, &[]), Round::Fail);
    assert_eq!(passed(&run(&mut checks)), [("ping.service", true)], "its restarts were counted twice");
}

#[test]
fn without_systemctl_a_unit_has_failed() {
    let device = Device::new();
    let results = run(&mut device.checks(&["ping.service"]));
    assert_eq!(judge(&results, &[]), Round::Fail);
}

#[test]
fn a_system_without_required_checks_says_so() {
    let device = Device::new();
    device.wanted("10-nice", "true");
    assert!(device.checks(&[]).decides_nothing());
    assert!(!device.checks(&["ping.service"]).decides_nothing());
}
