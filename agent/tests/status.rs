//! Holds what `status --json` prints in each state, as files in `tests/status/`. `BLESS=1` writes them anew.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "this file is a test, its functions too"
)]

use std::path::PathBuf;

use bascule_agent::shared::{CheckView, Progress, Release, SlotView, Snapshot};
use bascule_agent::status::Status;
use bascule_core::{
    Attempt, Baseline, Blocker, BootId, BootStatus, BootView, Deployment, DeploymentId, Digest, Ending, ErrorReport,
    Group, Phase, Record, RollbackReason, Settings, Stamp, State, Step, Then, Transfer, Warning,
};

const NOW: i64 = 1_795_228_200;

fn deployment() -> Deployment {
    Deployment {
        id: DeploymentId("20261121-023000-020202".into()),
        manifest: Digest([2; 32]),
        product: "demo".into(),
        version: "2.0.0".into(),
        order: 2,
        security_epoch: 0,
        target: Group::B,
        from_version: "1.0.0".into(),
        source: "http://updates.example/demo-2.0.0.bascule".into(),
        then: Then::Activate,
        requested_by: "root".into(),
        began: NOW - 100,
        images: Vec::new(),
        transfer: None,
        baseline: Baseline::default(),
    }
}

fn slot(group: Group, number: u32) -> SlotView {
    SlotView {
        role: "root".into(),
        group,
        device: format!("/dev/nvme0n1p{number}"),
        size: 512 << 20,
        partuuid: format!("00000000-0000-0000-0000-00000000000{number}"),
    }
}

fn release(version: &str, order: u64) -> Release {
    Release {
        product: "demo".into(),
        version: version.into(),
        order,
        compatible: vec!["qemu-x86_64".into()],
        security_epoch: 0,
    }
}

fn view(a: BootStatus, b: BootStatus, primary: Group) -> BootView {
    BootView { settings: Settings::Intact, primary, a, b }
}

/// A device as it leaves the factory.
fn factory() -> Snapshot {
    Snapshot {
        record: Record::default(),
        booted: Group::A,
        boot_id: BootId("boot-1".into()),
        release: release("1.0.0", 1),
        view: Ok(view(BootStatus::Good, BootStatus::Unbootable, Group::A)),
        slots: vec![slot(Group::A, 3), slot(Group::B, 4)],
        progress: None,
        checks: Vec::new(),
        deadline: None,
        blocked: Vec::new(),
        warnings: Vec::new(),
        fault: None,
    }
}

fn with_state(state: State) -> Snapshot {
    let mut snapshot = factory();
    snapshot.record.state = state;
    snapshot
}

/// The record after `steps`, taken as the daemon takes them.
fn after(steps: &[Step], booted: Group) -> Record {
    let stamp = Stamp { now: NOW - 10, boot_id: BootId("boot-1".into()), run: "run-1".into(), booted };
    steps.iter().fold(Record::default(), |record, step| record.advance(step, &stamp))
}

fn transfer() -> Transfer {
    let base = Some("1.0.0".into());
    Transfer { base, fetched: 12_000_000, copied: 300_000_000, kept: 0, healed: 1_048_576, saved: 90_000_000 }
}

fn to_activated() -> Vec<Step> {
    vec![
        Step::Preparing(deployment()),
        Step::Prepared(transfer()),
        Step::Activating(Baseline::default()),
        Step::Activated,
    ]
}

fn on_b(steps: &[Step], b: BootStatus) -> Snapshot {
    Snapshot {
        record: after(steps, Group::B),
        booted: Group::B,
        release: release("2.0.0", 2),
        view: Ok(view(BootStatus::Good, b, Group::B)),
        ..factory()
    }
}

fn checks() -> Vec<CheckView> {
    let check = |name: &str, requirement: &str, passed, output: &str| CheckView {
        name: name.into(),
        requirement: requirement.into(),
        passed,
        millis: 12,
        output: output.into(),
    };
    vec![check("10-ping", "required", true, "pong"), check("20-web", "wanted", false, "connection refused")]
}

fn error(code: &str, phase: Phase, message: &str) -> ErrorReport {
    ErrorReport {
        code: code.into(),
        phase,
        message: message.into(),
        cause: vec!["Input/output error (os error 5)".into()],
        hint: "do something about it".into(),
        retryable: false,
    }
}

#[track_caller]
fn holds(name: &str, snapshot: &Snapshot) {
    let status = Status::of(snapshot, NOW);
    let printed = serde_json::to_string_pretty(&status).unwrap() + "\n";
    let read: Status = serde_json::from_str(&printed).unwrap();
    assert_eq!(read, status, "the status does not read back");
    let file = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/status").join(format!("{name}.json"));
    if std::env::var_os("BLESS").is_some() {
        std::fs::write(&file, &printed).unwrap();
    }
    let expected = std::fs::read_to_string(&file).unwrap_or_default();
    assert!(printed == expected, "{} differs (BLESS=1 writes it anew):\n{printed}", file.display());
}

#[test]
fn a_device_from_the_factory_is_idle() {
    holds("idle-factory", &factory());
}

#[test]
fn after_a_commit_it_is_idle_and_the_old_version_is_in_the_opposite_group() {
    let steps = [to_activated(), vec![Step::Committed]].concat();
    holds("idle-committed", &on_b(&steps, BootStatus::Good));
}

#[test]
fn preparing_shows_attempt_and_progress() {
    let attempt = Attempt { number: 2, run: "run-1".into() };
    let mut snapshot = with_state(State::Preparing { deployment: deployment(), attempt });
    snapshot.progress = Some(Progress {
        percent: 42,
        step: "writing root".into(),
        done_bytes: 225_443_840,
        total_bytes: 536_870_912,
        fetched_bytes: 80_000_000,
        kept_bytes: 1_048_576,
        copied_bytes: 120_000_000,
        healed_bytes: 2_097_152,
        saved_bytes: 40_000_000,
        base: Some("1.0.0".into()),
    });
    holds("preparing", &snapshot);
}

#[test]
fn a_preparation_that_waits_says_why() {
    let attempt = Attempt { number: 3, run: "run-1".into() };
    let mut snapshot = with_state(State::Preparing { deployment: deployment(), attempt });
    snapshot.blocked = vec![Blocker::new("source.stalled", "the server sends nothing", "look at the network")];
    holds("preparing-blocked", &snapshot);
}

#[test]
fn prepared_waits_for_activate() {
    let deployment = Deployment { then: Then::Stop, ..deployment() };
    holds("prepared", &with_state(State::Prepared { deployment }));
}

#[test]
fn activating_is_the_intent_to_arm_the_loader() {
    holds("activating", &with_state(State::Activating { deployment: deployment() }));
}

#[test]
fn activated_is_armed_before_the_reboot() {
    let mut snapshot = with_state(State::Activated { deployment: deployment(), armed_in: BootId("boot-1".into()) });
    snapshot.view = Ok(view(BootStatus::Good, BootStatus::Trial { tries_left: 3 }, Group::B));
    holds("activated", &snapshot);
}

#[test]
fn probation_is_activated_seen_from_the_target_and_names_the_deadline() {
    let mut snapshot = on_b(&to_activated(), BootStatus::Trial { tries_left: 2 });
    snapshot.deadline = Some(NOW + 720);
    snapshot.checks = checks();
    holds("probation", &snapshot);
}

#[test]
fn a_trial_without_a_record_is_probation_too() {
    let mut snapshot = on_b(&[], BootStatus::Trial { tries_left: 2 });
    snapshot.deadline = Some(NOW + 60);
    holds("probation-unrecorded", &snapshot);
}

#[test]
fn rolling_back_says_why() {
    let reason = RollbackReason::Unhealthy { detail: "10-ping exited with 1".into() };
    let steps = [to_activated(), vec![Step::RollingBack(reason)]].concat();
    holds("rolling-back", &on_b(&steps, BootStatus::Trial { tries_left: 2 }));
}

#[test]
fn after_a_health_rollback_it_is_idle_and_the_bundle_is_denied() {
    let reason = RollbackReason::Unhealthy { detail: "10-ping exited with 1".into() };
    let steps = [to_activated(), vec![Step::RollingBack(reason), Step::RolledBack]].concat();
    holds("idle-rolled-back-by-health", &Snapshot { record: after(&steps, Group::A), ..factory() });
}

#[test]
fn after_a_fallback_of_the_loader_it_is_idle_and_says_so() {
    let steps = [to_activated(), vec![Step::RollingBack(RollbackReason::DidNotBoot), Step::RolledBack]].concat();
    holds("idle-fallback-of-the-loader", &Snapshot { record: after(&steps, Group::A), ..factory() });
}

#[test]
fn after_a_failed_preparation_the_error_stays_and_the_targets_version_is_unknown() {
    let error = error("source.truncated", Phase::Prepare, "the bundle ends too early");
    let steps = [Step::Preparing(deployment()), Step::Abandoned(Ending::Failed { error })];
    holds("idle-failed", &Snapshot { record: after(&steps, Group::A), ..factory() });
}

#[test]
fn a_newer_agents_state_is_not_touched() {
    holds("newer", &with_state(State::Newer));
}

#[test]
fn a_damaged_copy_is_a_warning_and_nothing_else() {
    let mut snapshot = factory();
    let reason = "the backup of the partition table of /dev/nvme0n1 is damaged: the primary copy serves";
    snapshot.warnings = vec![Warning::new("boot.gpt-copy-damaged", reason, "`bascule check` makes it whole")];
    holds("damaged-copy", &snapshot);
}

#[test]
fn damaged_settings_are_named() {
    let mut snapshot = factory();
    let damaged = view(BootStatus::Good, BootStatus::Unbootable, Group::A);
    snapshot.view = Ok(BootView { settings: Settings::Damaged, ..damaged });
    holds("damaged-settings", &snapshot);
}

#[test]
fn settings_that_cannot_be_read_leave_the_groups_unknown() {
    let mut snapshot = factory();
    snapshot.view = Err(error("boot.unreadable", Phase::Daemon, "the boot settings cannot be read"));
    holds("unreadable-settings", &snapshot);
}

#[test]
fn an_unreadable_record_is_a_state_of_its_own() {
    let mut snapshot = factory();
    snapshot.fault = Some(error("state.unreadable", Phase::Daemon, "neither copy of the record can be read"));
    holds("unreadable-record", &snapshot);
}

#[test]
fn every_field_is_present_in_every_state() {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/status");
    let mut files = 0;
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let json: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
        let fields = [
            "state",
            "details",
            "progress",
            "booted",
            "primary",
            "groups",
            "deployment",
            "blocked",
            "warnings",
            "error",
            "deadline",
            "release",
            "agent",
            "checks",
            "deny",
            "boot_settings",
        ];
        for field in fields {
            assert!(json.get(field).is_some(), "{field} is missing in {}", path.display());
        }
        files += 1;
    }
    assert!(files >= 14, "only {files} states are held");
}
