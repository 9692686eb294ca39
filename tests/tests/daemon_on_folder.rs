//! The daemon itself, over its socket, and the deadline's watchdog, on a device made of files.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test's own mistakes may end it")]

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use bascule_core::State;
use bascule_tests::HttpServer;
use bascule_tests::rehearsal::{Rehearsal, Serving, System, Temper, Vendor};

/// A device with its daemon, and a bundle for it.
struct Daemon {
    _vendor: Vendor,
    next: System,
    device: Rehearsal,
    serving: Serving,
}

impl Daemon {
    fn start() -> Daemon {
        Daemon::start_with("")
    }

    fn start_with(configuration: &str) -> Daemon {
        let vendor = Vendor::new().unwrap();
        let (factory, next) = (vendor.system(1, Temper::Good).unwrap(), vendor.system(2, Temper::Good).unwrap());
        let mut device = Rehearsal::new(&vendor, &factory, &[factory.clone(), next.clone()]).unwrap();
        device.configure(configuration).unwrap();
        device.boot().unwrap();
        let serving = device.serve().unwrap();
        Daemon { _vendor: vendor, next, device, serving }
    }

    fn bascule(&self, arguments: &[&str]) -> Command {
        self.serving.bascule(arguments)
    }

    fn ask(&self, arguments: &[&str]) -> Output {
        self.serving.ask(arguments).unwrap()
    }

    fn is_alive(&mut self) -> bool {
        self.serving.is_alive()
    }
}

fn folder_of(bundle: &Path) -> (&Path, String) {
    (bundle.parent().unwrap(), bundle.file_name().unwrap().to_string_lossy().into_owned())
}

#[test]
fn a_plan_works_for_a_file_a_url_and_standard_input_and_changes_nothing() {
    let mut daemon = Daemon::start();
    let (folder, name) = folder_of(&daemon.next.bundle);
    let server = HttpServer::serve(folder).unwrap();
    let before = fs::read(daemon.device.grubenv()).unwrap();
    for source in [daemon.next.bundle.display().to_string(), server.url(&name)] {
        let output = daemon.ask(&["plan", &source]);
        assert!(output.status.success(), "{source}: {output:?}");
    }
    let stdin = fs::File::open(&daemon.next.bundle).unwrap();
    let output = daemon.bascule(&["plan", "-"]).stdin(stdin).output().unwrap();
    assert!(output.status.success(), "standard input: {output:?}");
    assert!(daemon.is_alive());
    assert_eq!(fs::read(daemon.device.grubenv()).unwrap(), before);
}

#[test]
fn a_server_that_trickles_a_head_is_given_up_and_the_next_one_is_served() {
    let daemon = Daemon::start_with("[prepare]\nhead_timeout = \"1s\"\n");
    let (folder, name) = folder_of(&daemon.next.bundle);
    let server = HttpServer::serve(folder).unwrap();
    server.limit_bandwidth(Some(600));
    let output = daemon.ask(&["plan", &server.url(&name)]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains("[source.slow]") && said.contains("hint:"), "{output:?}");
    assert_eq!(output.status.code(), Some(75), "another time it may be faster: {said}");
    server.limit_bandwidth(None);
    let output = daemon.ask(&["plan", &server.url(&name)]);
    assert!(output.status.success(), "{output:?}");
}

#[test]
fn a_request_gets_its_answer_also_when_the_boot_settings_cannot_be_read() {
    let daemon = Daemon::start();
    let script = daemon.device.grubenv().with_file_name("grub.cfg");
    fs::rename(&script, script.with_extension("away")).unwrap();
    let output = daemon.ask(&["install", &daemon.next.bundle.display().to_string()]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && said.contains("[boot.") && said.contains("hint:"), "{output:?}");
}

/// A required check that fails makes the baseline take several rounds. Whoever asked meanwhile is not forgotten.
#[test]
fn an_activation_that_waits_for_its_baseline_comes() {
    let health = "[health]\nsettle = \"0s\"\ninterval = \"500ms\"\npasses = 3\ntcp = [\"127.0.0.1:1\"]\n";
    let mut daemon = Daemon::start_with(health);
    let output = daemon.ask(&["prepare", &daemon.next.bundle.display().to_string()]);
    assert!(output.status.success(), "{output:?}");
    let output = daemon.ask(&["activate", "--no-monitor"]);
    assert!(output.status.success(), "{output:?}");
    daemon.serving.wait_for_end().unwrap();
    let record = daemon.device.record().unwrap();
    assert!(matches!(record.state, State::Activated { .. }), "{:?}", record.state);
}

/// Runs the deadline's watchdog long after every deadline, with a configuration that cannot be used.
fn watchdog_with_a_broken_configuration(command_line: &str) -> String {
    let vendor = Vendor::new().unwrap();
    let factory = vendor.system(1, Temper::Good).unwrap();
    let mut device = Rehearsal::new(&vendor, &factory, std::slice::from_ref(&factory)).unwrap();
    device.boot().unwrap();
    device.configure("[helth]\nsettle = \"1s\"\n").unwrap();
    fs::write(device.root().join("proc/uptime"), "100000.0 1.0\n").unwrap();
    fs::write(device.root().join("proc/cmdline"), command_line).unwrap();
    let output = device.command(&["rollback-health"]).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn a_trial_whose_configuration_cannot_be_used_still_has_a_deadline() {
    let said = watchdog_with_a_broken_configuration("quiet bascule.group=b bascule.trial=2\n");
    assert!(said.contains("rebooting"), "{said}");
}

#[test]
fn a_good_system_whose_configuration_cannot_be_used_is_not_rebooted() {
    let said = watchdog_with_a_broken_configuration("quiet bascule.group=b bascule.trial=\n");
    assert!(!said.contains("rebooting"), "{said}");
}
