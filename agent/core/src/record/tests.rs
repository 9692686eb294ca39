use super::*;

fn stamp() -> Stamp {
    Stamp { now: 7, boot_id: BootId("boot".into()), run: "run".into(), booted: Group::A }
}

fn through(steps: &[Step]) -> Record {
    steps.iter().fold(Record::default(), |record, step| record.advance(step, &stamp()))
}

#[test]
fn a_commit_raises_the_epoch_floor_and_a_preparation_does_not() {
    let prepared = through(&[Step::Preparing(test_deployment()), Step::Prepared(Transfer::default())]);
    assert_eq!(prepared.epoch_floor, 0);
    let committed = prepared.advance(&Step::Committed, &stamp());
    assert_eq!((committed.epoch_floor, committed.state), (3, State::Idle));
}

#[test]
fn a_verdict_against_the_bundle_denies_it_and_a_lost_setting_does_not() {
    let begin = [
        Step::Preparing(test_deployment()),
        Step::Prepared(Transfer::default()),
        Step::Activating(Baseline { failed: vec!["uplink".into()] }),
        Step::Activated,
    ];
    for (reason, denied) in [(RollbackReason::DidNotBoot, true), (RollbackReason::SettingsLost, false)] {
        let steps = [&begin[..], &[Step::RollingBack(reason), Step::RolledBack]].concat();
        assert_eq!(through(&steps).denied(&test_deployment().manifest).is_some(), denied);
    }
}

#[test]
fn a_bundle_that_a_person_allows_is_taken_again_and_denied_again_when_it_fails_again() {
    let manifest = test_deployment().manifest;
    let fails = [Step::Preparing(test_deployment()), Step::RollingBack(RollbackReason::Deadline), Step::RolledBack];
    let denied = through(&fails);
    assert_eq!(denied.denied(&manifest).map(|denied| denied.attempts), Some(1));
    let allowed = denied.advance(&Step::Allowed(manifest), &stamp());
    assert_eq!((allowed.denied(&manifest), allowed.deny.len()), (None, 1));
    let again = fails.iter().fold(allowed, |record, step| record.advance(step, &stamp()));
    assert_eq!(again.denied(&manifest).map(|denied| denied.attempts), Some(2));
    assert_eq!(again.deny.len(), 1);
}

#[test]
fn a_state_from_the_future_is_newer_and_unknown_fields_are_ignored() {
    let text = r#"{"schema":1,"generation":4,"state":{"name":"teleporting","to":"c"},"colour":"blue"}"#;
    let record: Record = serde_json::from_str(text).unwrap();
    assert_eq!((record.state, record.generation), (State::Newer, 4));
}

#[test]
fn every_state_reads_back_what_it_wrote() {
    let steps = [
        Step::Preparing(test_deployment()),
        Step::Prepared(Transfer::default()),
        Step::Activating(Baseline { failed: vec!["uplink".into()] }),
        Step::Activated,
        Step::RollingBack(RollbackReason::Unhealthy { detail: "x".into() }),
        Step::RolledBack,
    ];
    for n in 0..=steps.len() {
        let record = through(&steps[..n]);
        let text = serde_json::to_string(&record).unwrap();
        assert_eq!(serde_json::from_str::<Record>(&text).unwrap(), record);
    }
}

#[test]
fn history_and_deny_list_stay_bounded() {
    let mut record = Record::default();
    for n in 0..200u8 {
        let mut deployment = test_deployment();
        deployment.manifest = Digest([n; 32]);
        for step in [Step::Preparing(deployment), Step::RollingBack(RollbackReason::Deadline), Step::RolledBack] {
            record = record.advance(&step, &stamp());
        }
    }
    assert_eq!((record.history.len(), record.deny.len()), (HISTORY_LIMIT, DENY_LIMIT));
}
