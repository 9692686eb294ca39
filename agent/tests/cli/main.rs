//! The real `bascule` against the real API with a stand-in for the loop.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "this file is a test, its functions too"
)]

mod http;
mod stub;

use std::io::Write;
use std::process::{Command, Output, Stdio};

use bascule_agent::shared::CheckView;
use bascule_agent::story::Event;
use bascule_core::{
    Baseline, Blocker, BootStatus, Ending, ErrorReport, Phase, RollbackReason, Step, Transfer, Warning,
};
use stub::{Device, refusal};

/// Exit code, standard output and standard error of one command.
fn bascule(device: &Device, arguments: &[&str]) -> (i32, String, String) {
    ended(command(device, arguments).output().unwrap())
}

fn command(device: &Device, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_bascule"));
    command.arg("--root").arg(device.root()).args(arguments).stdin(Stdio::null());
    command
}

fn ended(output: Output) -> (i32, String, String) {
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap_or(-1), text(output.stdout), text(output.stderr))
}

#[test]
fn status_shows_state_and_groups_and_ends_with_0() {
    let device = Device::start();
    let (code, out, err) = bascule(&device, &["status"]);
    let expected = "   state  idle
          Version 1.0.0 runs from group a; no update is on its way
  groups  a  1.0.0  good        booted, primary
          b  -      unbootable
";
    assert_eq!((code, out.as_str(), err.as_str()), (0, expected, ""));
}

#[test]
fn status_as_json_is_what_the_api_says() {
    let device = Device::start();
    let (code, out, _) = bascule(&device, &["status", "--json"]);
    let status: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert_eq!((code, status["state"].as_str(), status["booted"].as_str()), (0, Some("idle"), Some("a")));
}

#[test]
fn prepare_is_followed_to_the_prepared_state_with_a_line_for_each_step() {
    let device = Device::start();
    let (code, out, err) = bascule(&device, &["prepare", "demo.bascule"]);
    assert_eq!((code, err.as_str()), (0, ""));
    assert!(out.contains("Preparing version 2.0.0 in group b: writing root, 50 %"), "{out}");
    assert!(out.contains("\n100 MiB verified in the target slots: 0 B fetched\n"), "{out}");
    assert!(out.ends_with("Version 2.0.0 is prepared in group b and waits for `bascule activate`\n"), "{out}");
    let here = std::env::current_dir().unwrap().join("demo.bascule");
    assert_eq!(device.events(), [format!("prepare {} stop", here.display())]);
}

#[test]
fn install_is_followed_until_the_device_reboots_which_is_no_error() {
    let device = Device::start();
    let (code, out, err) = bascule(&device, &["install", "http://updates.example/demo.bascule"]);
    assert_eq!((code, err.as_str()), (0, ""), "{out}");
    assert!(out.ends_with("rebooting into group b\n"), "{out}");
    assert_eq!(device.events(), ["prepare http://updates.example/demo.bascule activate"]);
}

#[test]
fn json_lines_follow_an_install_and_the_last_one_names_the_reboot() {
    let device = Device::start();
    let (code, out, _) = bascule(&device, &["--json", "install", "http://updates.example/demo.bascule"]);
    let lines: Vec<serde_json::Value> = out.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(code, 0);
    assert!(lines.iter().any(|line| line["state"] == "preparing" && line["progress"]["percent"] == 50), "{out}");
    assert_eq!(lines.last().unwrap()["rebooting"], "b");
}

#[test]
fn without_monitoring_the_command_ends_when_it_is_taken() {
    let device = Device::start();
    let (code, out, _) = bascule(&device, &["--no-monitor", "prepare", "/x.bascule"]);
    assert_eq!((code, out.as_str()), (0, "accepted: demo 2.0.0 into group b, deployment stub-1\n"));
}

#[test]
fn a_bundle_on_standard_input_arrives_whole_whatever_its_size() {
    for flags in [&["prepare", "-"][..], &["--no-monitor", "prepare", "-"]] {
        let device = Device::start();
        let bundle: Vec<u8> = (0..5_000_000_u32).map(|n| (n % 251) as u8).collect();
        let mut child = command(&device, flags).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(&bundle).unwrap();
        let (code, out, _) = ended(child.wait_with_output().unwrap());
        device.wait_for("read");
        assert_eq!((code, device.events()[1].as_str()), (0, stub::read_event(&bundle).as_str()), "{out}");
    }
}

#[test]
fn a_refused_bundle_on_standard_input_shows_the_reason_and_not_a_broken_pipe() {
    let device = Device::start();
    device.refuse_next(refusal("bundle.signature", "the bundle is signed by a stranger", false));
    let mut child = command(&device, &["install", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let writer = std::thread::spawn(move || {
        let piece = vec![7; 65536];
        while stdin.write_all(&piece).is_ok() {}
    });
    let (code, _, err) = ended(child.wait_with_output().unwrap());
    writer.join().unwrap();
    assert_eq!(code, 1);
    assert!(err.starts_with("error: [bundle.signature] the bundle is signed by a stranger\n"), "{err}");
}

#[test]
fn a_failed_preparation_prints_error_cause_and_hint() {
    let device = Device::start();
    device.fail_next(ErrorReport {
        code: "source.truncated".into(),
        phase: Phase::Prepare,
        message: "the bundle ends too early".into(),
        cause: vec!["got 5 of 9 bytes".into()],
        hint: "copy it again".into(),
        retryable: false,
    });
    let (code, _, err) = bascule(&device, &["install", "/x.bascule"]);
    let expected =
        "error: [source.truncated] the bundle ends too early\n  caused by: got 5 of 9 bytes\n  hint: copy it again\n";
    assert_eq!((code, err.as_str()), (1, expected));
}

#[test]
fn exit_codes_tell_nothing_to_do_from_try_later_from_failed() {
    let device = Device::start();
    for (code, retryable, exit) in [("bundle.same", false, 3), ("request.busy", true, 75), ("bundle.older", false, 1)] {
        device.refuse_next(refusal(code, "because", retryable));
        assert_eq!(bascule(&device, &["install", "/x"]).0, exit, "{code}");
    }
    assert_eq!(bascule(&device, &["instal"]).0, 2);
}

#[test]
fn nothing_to_do_is_said_without_the_word_error() {
    let device = Device::start();
    device.refuse_next(refusal("bundle.same", "version 1.0.0 is what runs already", false));
    let (_, out, err) = bascule(&device, &["install", "/x"]);
    assert_eq!((out.as_str(), err.as_str()), ("nothing to do: version 1.0.0 is what runs already\n", ""));
}

#[test]
fn a_reboot_that_is_held_back_ends_with_4() {
    let device = Device::start();
    device.hold_reboot();
    let (code, out, _) = bascule(&device, &["install", "/x"]);
    assert_eq!(code, 4);
    assert!(out.ends_with("waiting: a hook defers the reboot\n"), "{out}");
}

#[test]
fn a_daemon_that_does_not_run_has_a_code_and_a_hint() {
    let root = tempfile::TempDir::new().unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_bascule")).arg("--root").arg(root.path()).arg("status").output();
    let (code, _, err) = ended(output.unwrap());
    assert_eq!(code, 1);
    assert!(err.starts_with("error: [api.not-running] the daemon does not answer on "), "{err}");
    assert!(err.contains("\n  hint: start it with `systemctl start basculed`"), "{err}");
}

#[test]
fn claim_j2_where_a_clone_keeps_the_daemon_from_running_every_command_names_both_disks() {
    let root = tempfile::TempDir::new().unwrap();
    let put = |path: &str, text: &str| {
        let path = root.path().join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    };
    put("usr/lib/bascule/release.toml", "product = \"demo\"\nversion = \"1.0.0\"\norder = 1\ncompatible = [\"x\"]\n");
    put("etc/bascule/config.toml", "[slots.root]\na = \"partlabel:root-a\"\nb = \"partlabel:root-b\"\n");
    let (_, disk) = bascule_boot::disk::rehearsal::machine(root.path(), "nvme0n1", 64 << 10).unwrap();
    let tell = |arguments: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_bascule"));
        ended(command.arg("--root").arg(root.path()).args(arguments).stdin(Stdio::null()).output().unwrap())
    };
    let alone = tell(&["status"]).2;
    assert!(!alone.contains("[disk."), "there is nothing to say about one disk: {alone}");
    let clone = bascule_boot::disk::rehearsal::DiskFile { name: "sda".into(), major: 8, ..disk };
    clone.lay_out(root.path()).unwrap();
    std::fs::copy(root.path().join("dev/nvme0n1"), clone.image(root.path())).unwrap();
    for arguments in [&["status"][..], &["check"], &["install", "/x"]] {
        let (code, out, err) = tell(arguments);
        let all = format!("{out}{err}");
        assert!(code == 1 && all.contains("the daemon does not answer on "), "{all}");
        let told = all.lines().find(|line| line.contains("[disk.cloned] ")).expect(&all);
        assert!(told.contains("nvme0n1") && told.contains("sda"), "{told}");
    }
}

#[test]
fn a_plan_lists_sizes_steps_and_every_blocker() {
    let device = Device::start();
    let (code, out, _) = bascule(&device, &["plan", "/x.bascule"]);
    let expected = "demo 2.0.0 (order 2) into group b
  fetch  100 MiB, by delta from 1.0.0
  write  512 MiB, 128 MiB of it zeroes

  1. mark group b unbootable
  2. write root

blocked: [bundle.older] it is older
  hint: use another
";
    assert_eq!((code, out.as_str()), (1, expected));
}

#[test]
fn history_and_explain_tell_how_it_ended_and_what_to_do() {
    let device = Device::start();
    let reason = RollbackReason::Unhealthy { detail: "10-ping exited with 1".into() };
    device.steps(&[
        Step::Preparing(stub::deployment("stub-7", "-")),
        Step::Prepared(Transfer {
            base: Some("1.0.0".into()),
            fetched: 1 << 20,
            copied: 64 << 20,
            ..Transfer::default()
        }),
        Step::Activating(Baseline::default()),
        Step::Activated,
        Step::RollingBack(reason),
        Step::RolledBack,
    ]);
    let (code, out, _) = bascule(&device, &["history"]);
    assert_eq!(code, 0);
    let moved = "1 MiB fetched, 64 MiB made of 1.0.0";
    let line = format!("1.0.0 -> 2.0.0  group b  rolled back  {moved}  it was unhealthy: 10-ping exited with 1\n");
    assert!(out.ends_with(&line), "{out}");
    let (code, out, _) = bascule(&device, &["explain", "stub-7"]);
    assert_eq!(code, 0);
    assert!(out.starts_with("stub-7: demo 1.0.0 -> 2.0.0 into group b\n"), "{out}");
    assert!(out.contains(&format!("\n{moved}\n")), "{out}");
    assert!(out.contains("deny-list") && out.contains("\nnext: publish a corrected bundle"), "{out}");
    let (code, _, err) = bascule(&device, &["explain", "nobody"]);
    assert_eq!(code, 1);
    assert!(err.contains("[cli.unknown-deployment]"), "{err}");
}

#[test]
fn commit_says_what_came_of_it_and_a_refused_one_why() {
    let device = Device::start();
    device.on_trial();
    let (code, out, _) = bascule(&device, &["commit"]);
    assert_eq!((code, out.as_str()), (0, "Version 1.0.0 runs from group a; no update is on its way\n"));
    device.refuse_next(refusal("request.already-good", "the booted group is good already", false));
    assert_eq!(bascule(&device, &["commit"]).0, 3);
    assert_eq!(device.events(), ["commit"]);
}

#[test]
fn slots_lists_every_partition() {
    let device = Device::start();
    let (code, out, _) = bascule(&device, &["slots"]);
    let expected = "group  role  version  loader      size     device          partition
a *    root  1.0.0    good        512 MiB  /dev/nvme0n1p3  uuid-3
b      root  -        unbootable  512 MiB  /dev/nvme0n1p4  uuid-4
* booted
";
    assert_eq!((code, out.as_str()), (0, expected));
}

#[test]
fn config_check_needs_no_daemon_and_points_at_the_fault() {
    let root = tempfile::TempDir::new().unwrap();
    std::fs::create_dir_all(root.path().join("etc/bascule")).unwrap();
    let file = root.path().join("etc/bascule/config.toml");
    let slots = "[slots.root]\na = \"x\"\nb = \"y\"\n";
    let check = |text: &str| {
        std::fs::write(&file, text).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_bascule"));
        ended(command.arg("--root").arg(root.path()).args(["config", "check"]).output().unwrap())
    };
    let (code, out, _) = check(slots);
    assert_eq!((code, out), (0, format!("{}: no fault found\n", file.display())));
    let (code, _, err) = check(&format!("{slots}[helth]\n"));
    let expected = format!(
        "error: [config.unknown-key] {}:4:2: unknown section or key \"helth\"\n  hint: did you mean \"health\"?\n",
        file.display()
    );
    assert_eq!((code, err), (1, expected));
}

#[test]
fn config_detect_says_what_a_loader_that_is_found_still_lacks() {
    let root = tempfile::TempDir::new().unwrap();
    let put = |path: &str, text: &str| {
        let path = root.path().join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    };
    let slots = "[slots.root]\na = \"x\"\nb = \"y\"\n";
    put("boot/efi/autoboot.txt", "[all]\ntryboot_a_b=1\n");
    let detect = |text: &str| {
        put("etc/bascule/config.toml", text);
        let mut command = Command::new(env!("CARGO_BIN_EXE_bascule"));
        ended(command.arg("--root").arg(root.path()).args(["config", "detect"]).output().unwrap())
    };
    let (code, out, _) = detect(slots);
    let used = "used: rpi-tryboot, the only one that is found\n";
    assert!(code == 1 && out.contains(&format!("{used}[slots.boot] is missing: name each group's")), "{code} {out}");
    let (code, out, _) = detect(&format!("{slots}[slots.boot]\na = \"v\"\nb = \"w\"\n"));
    assert!(code == 0 && out.ends_with(used), "{code} {out}");
}

#[test]
fn check_lists_what_is_well_and_what_is_in_the_way() {
    let device = Device::start();
    let (code, out, _) = bascule(&device, &["check"]);
    assert_eq!(code, 1, "no configuration is there");
    assert!(out.starts_with("FAIL  configuration"), "{out}");
    device.configure();
    let (code, out, _) = bascule(&device, &["check"]);
    let expected = format!(
        "ok  configuration  no fault found
ok  daemon         answers, version {}
ok  boot settings  intact
ok  state          an update may begin
ok  conditions     slots, loader, space, power, locks and hooks: nothing in the way
",
        env!("CARGO_PKG_VERSION")
    );
    assert_eq!((code, out), (0, expected));
    device.warn(Warning::new("disk.table-copy-damaged", "the backup", "repair it"));
    let (code, out, _) = bascule(&device, &["check"]);
    assert!(
        code == 0 && out.contains("warn  warning        [disk.table-copy-damaged] the backup\n      hint: repair it\n"),
        "{out}"
    );
    let (_, out, _) = bascule(&device, &["status"]);
    assert!(out.contains(" warning  [disk.table-copy-damaged] the backup\n          hint: repair it\n"), "{out}");
    device.block(Blocker::new("device.locked", "the lock brew is held: coffee", "wait"));
    let (code, out, _) = bascule(&device, &["check"]);
    assert_eq!(code, 75, "what goes away by itself is no failure");
    assert!(out.contains("conditions     [device.locked] the lock brew is held: coffee"), "{out}");
    device.block(Blocker::new("device.no-space", "no room", "make room"));
    let (code, out, _) = bascule(&device, &["check"]);
    assert_eq!(code, 1, "and all of them are listed: {out}");
    assert!(out.contains("[device.locked]") && out.contains("[device.no-space]"), "{out}");
}

#[test]
fn hooks_are_listed_without_a_daemon_and_what_cannot_run_is_said() {
    let device = Device::start();
    device.stop();
    let (code, out, _) = bascule(&device, &["hooks", "list"]);
    assert_eq!((code, out.as_str()), (0, "no hooks\n"));
    let folder = device.root().join("usr/lib/bascule/hooks.d/pre-activate");
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::write(folder.join("10-backup"), "#!/bin/sh\n").unwrap();
    let (code, out, _) = bascule(&device, &["hooks", "list"]);
    assert_eq!(code, 1, "one that cannot run would stop every update: {out}");
    assert!(out.contains("pre-activate") && out.contains("10-backup") && out.contains("cannot run"), "{out}");
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(folder.join("10-backup"), mode).unwrap();
    let (code, out, _) = bascule(&device, &["hooks", "run", "pre-activate", "--dry-run"]);
    assert_eq!(code, 0, "{out}");
    assert!(out.starts_with("would run ") && out.contains("BASCULE_CONTEXT"), "{out}");
    let (code, _, _) = bascule(&device, &["hooks", "run", "pre-activate"]);
    assert_eq!(code, 2, "only an update runs hooks");
}

#[test]
fn a_denied_bundle_is_allowed_by_its_name() {
    let device = Device::start();
    let (code, out, _) = bascule(&device, &["allow", "2.0.0"]);
    assert_eq!((code, out.as_str()), (0, "2.0.0 may be tried again\n"));
    assert_eq!(device.events(), ["allow 2.0.0"]);
}

#[test]
fn a_story_is_told_with_its_timeline_and_what_the_failing_check_printed() {
    let device = Device::start();
    let deployment = stub::deployment("stub-8", "-");
    let check = CheckView {
        name: "50-app".into(),
        requirement: "required".into(),
        passed: false,
        millis: 12,
        output: "app: starting\napp: its database is from the future\n".into(),
    };
    let event = |what: &str, checks: Vec<CheckView>| Event {
        at: 1_800_000_000,
        running: "2.0.0".into(),
        what: what.into(),
        detail: format!("about {what}"),
        checks,
        ..Event::default()
    };
    device.stories().tell(&deployment.id, &event("came-up", Vec::new()));
    for _ in 0..20 {
        device.stories().tell(&deployment.id, &event("check-round", vec![check.clone()]));
    }
    let reason = RollbackReason::Unhealthy { detail: "50-app: exit code 1".into() };
    device.steps(&[Step::Preparing(deployment), Step::RollingBack(reason), Step::RolledBack]);
    let (code, out, _) = bascule(&device, &["explain"]);
    assert_eq!(code, 0, "{out}");
    assert!(out.lines().count() <= 20, "{out}");
    assert!(out.contains("\n  08:00:00  2.0.0    came-up       about came-up\n"), "{out}");
    assert!(out.contains("\n  ... 11 more, in `bascule explain --json`\n"), "{out}");
    assert!(out.contains("check 50-app failed after 12 ms: app: its database is from the future\n"), "{out}");
    let (_, json, _) = bascule(&device, &["explain", "--json"]);
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json["events"].as_array().unwrap().len(), 21);
}

#[test]
fn rollback_is_followed_until_the_device_reboots_into_the_other_group() {
    let device = Device::start();
    device.set_view(BootStatus::Good, BootStatus::Good);
    let (code, out, _) = bascule(&device, &["rollback"]);
    assert_eq!(code, 0, "{out}");
    assert!(out.ends_with("rebooting into group b\n"), "{out}");
}

#[test]
fn a_cancelled_update_ends_its_follower() {
    let device = Device::start();
    device.end_next(Ending::Cancelled);
    let (code, out, _) = bascule(&device, &["install", "/x"]);
    assert_eq!(code, 1);
    assert!(out.ends_with("the update to version 2.0.0 was cancelled\n"), "{out}");
}
