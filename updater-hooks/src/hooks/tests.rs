use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use super::*;

struct Device(tempfile::TempDir);

impl Device {
    fn new() -> Self {
        let device = Device(tempfile::tempdir().expect("a folder"));
        fs::create_dir_all(device.path("run")).expect("a folder");
        device
    }

    fn path(&self, path: &str) -> PathBuf {
        self.0.path().join(path)
    }

    fn hook(&self, path: &str, mode: u32, body: &str) -> &Self {
        let path = self.path(path);
        fs::create_dir_all(path.parent().expect("a folder")).expect("a folder");
        fs::write(&path, format!("#!/bin/sh\n{body}\n")).expect("a file");
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).expect("its mode");
        self
    }

    fn run(&self, point: HookPoint) -> Result<PointOutcome, HooksError> {
        self.run_within(Duration::from_secs(20), point)
    }

    fn run_within(&self, deadline: Duration, point: HookPoint) -> Result<PointOutcome, HooksError> {
        let limits = Limits { deadline, grace: Duration::from_millis(100), containment: None };
        let settings = HookSettings { root: self.0.path().to_owned(), context_dir: self.path("run"), limits };
        run_point(point, &context(), &settings, &AtomicBool::new(false))
    }
}

fn context() -> HookContext {
    HookContext {
        deployment: Some(DeploymentId("20261121-abc".to_owned())),
        from_version: Some("1.0.0".to_owned()),
        to_version: Some("2.0.0".to_owned()),
        target_group: Group::B,
        booted_group: Group::A,
        reason: None,
    }
}

fn names(outcome: &PointOutcome) -> Vec<&str> {
    outcome.hooks.iter().map(|run| run.hook.as_str()).collect()
}

#[test]
fn hooks_run_in_order_and_each_is_told_what_is_going_on() {
    let device = Device::new();
    let body = "echo $BASCULE_HOOK_POINT $BASCULE_DEPLOYMENT; stat -c %a $BASCULE_CONTEXT; cat $BASCULE_CONTEXT";
    device.hook("usr/lib/bascule/hooks.d/pre-activate/10-tell", 0o755, body);
    device.hook("etc/bascule/hooks.d/pre-activate/05-first", 0o755, "echo spoiled > $BASCULE_CONTEXT");
    device.hook("etc/bascule/hooks.d/pre-reboot/10-elsewhere", 0o755, "exit 1");
    let outcome = device.run(HookPoint::PreActivate).expect("it runs");
    assert_eq!((&outcome.verdict, names(&outcome)), (&PointVerdict::Passed, vec!["05-first", "10-tell"]));
    let told: Vec<_> = outcome.hooks[1].outcome.output_tail.lines().collect();
    assert_eq!(told[..2], ["pre-activate 20261121-abc", "600"]);
    assert_eq!(
        serde_json::from_str::<serde_json::Value>(told[2]).expect("json"),
        serde_json::json!({
            "schema": 1, "point": "pre-activate", "deployment": "20261121-abc", "from_version": "1.0.0",
            "to_version": "2.0.0", "target_group": "b", "booted_group": "a", "reason": null
        })
    );
    assert_eq!(fs::read_dir(device.path("run")).expect("a folder").count(), 0, "a context file stayed behind");
}

#[test]
fn a_point_without_hooks_passes() {
    let outcome = Device::new().run(HookPoint::Check).expect("it runs");
    assert_eq!((outcome.verdict, outcome.hooks.len()), (PointVerdict::Passed, 0));
}

#[test]
fn the_first_failure_ends_the_point_and_is_the_reason() {
    let device = Device::new();
    device.hook("usr/lib/bascule/hooks.d/pre-prepare/10-ok", 0o755, "true");
    device.hook("usr/lib/bascule/hooks.d/pre-prepare/20-no", 0o755, "echo 'battery \u{1b}[1mlow' >&2; exit 4");
    device.hook("usr/lib/bascule/hooks.d/pre-prepare/30-never", 0o755, "true");
    let outcome = device.run(HookPoint::PrePrepare).expect("it runs");
    assert_eq!(names(&outcome), ["10-ok", "20-no"]);
    let error = outcome.into_result().expect_err("it failed");
    assert_eq!(error.to_string(), "hook 20-no at pre-prepare failed: exit code 4: battery ␛[1mlow");
    assert_eq!((error.code(), error.disposition()), ("hooks.failed", bascule_core::Disposition::GiveUp));
}

#[test]
fn exit_code_75_asks_to_try_again_later_with_the_last_line_as_reason() {
    let device = Device::new();
    device.hook("usr/lib/bascule/hooks.d/check/10-busy", 0o755, "echo looking; echo in use; exit 75");
    device.hook("usr/lib/bascule/hooks.d/check/20-never", 0o755, "true");
    let outcome = device.run(HookPoint::Check).expect("it runs");
    let deferred = PointVerdict::Deferred { hook: "10-busy".to_owned(), reason: "in use".to_owned() };
    assert_eq!((&outcome.verdict, outcome.hooks.len()), (&deferred, 1));
    let error = outcome.into_result().expect_err("it was deferred");
    assert_eq!((error.code(), error.disposition()), ("hooks.deferred", bascule_core::Disposition::Retry));
}

#[test]
fn a_hook_that_hangs_fails_at_its_deadline() {
    let device = Device::new();
    device.hook("usr/lib/bascule/hooks.d/probation/10-hang", 0o755, "exec sleep 60");
    let outcome = device.run_within(Duration::from_millis(300), HookPoint::Probation).expect("it runs");
    let error = outcome.into_result().expect_err("it hung");
    assert_eq!(error.code(), "hooks.timed-out");
}

#[test]
fn a_hook_that_cannot_be_run_fails_the_point_and_is_named() {
    let device = Device::new();
    device.hook("usr/lib/bascule/hooks.d/post-commit/10-forgot", 0o644, "true");
    let error = device.run(HookPoint::PostCommit).expect("it runs").into_result().expect_err("it cannot run");
    assert_eq!(error.code(), "hooks.not-runnable");
    assert!(error.to_string().ends_with("cannot be run: it is not executable"), "{error}");
}

#[test]
fn without_a_place_for_the_context_no_hook_runs() {
    let device = Device::new();
    device.hook("usr/lib/bascule/hooks.d/check/10-run", 0o755, &format!("touch {}", device.path("ran").display()));
    fs::remove_dir(device.path("run")).expect("an empty folder");
    assert_eq!(device.run(HookPoint::Check).map_err(|error| error.code()), Err("hooks.context"));
    assert!(!device.path("ran").exists());
}

#[test]
fn the_points_have_the_names_of_their_folders_in_json_too() {
    for point in HookPoint::ALL {
        assert_eq!(serde_json::to_value(point).expect("json"), point.name());
    }
}

#[test]
fn a_hook_is_told_where_the_target_is_mounted_and_only_then() {
    let device = Device::new();
    device.hook("usr/lib/bascule/hooks.d/post-prepare/10-tell", 0o755, "echo \"<${BASCULE_TARGET_ROOT-unset}>\"");
    let settings = HookSettings {
        root: device.0.path().to_owned(),
        context_dir: device.path("run"),
        limits: Limits::within(Duration::from_secs(20)),
    };
    for (target, told) in [(Some(Path::new("/run/slot b")), "</run/slot b>\n"), (None, "<unset>\n")] {
        let outcome = run_point_on(HookPoint::PostPrepare, &context(), &settings, target, &AtomicBool::new(false));
        assert_eq!(outcome.expect("it runs").hooks[0].outcome.output_tail, told);
    }
}

#[test]
fn all_points_are_listed_with_what_would_run_and_what_cannot() {
    let (device, slot) = (Device::new(), Device::new());
    device.hook("usr/lib/bascule/hooks.d/check/20-own", 0o755, "true");
    device.hook("etc/bascule/hooks.d/check/10-forgot", 0o644, "true");
    slot.hook("usr/lib/bascule/hooks.d/check/10-new", 0o755, "true");
    fs::write(slot.path("usr/lib/bascule/hooks.d/probation"), "").expect("a file");
    let (root, slot_root) = (device.0.path().canonicalize().expect("it"), slot.0.path().canonicalize().expect("it"));
    let listed = list(&[&root, &slot_root]);
    assert_eq!(listed.iter().map(|point| point.point).collect::<Vec<_>>(), HookPoint::ALL);
    let shown: Vec<_> = listed[0]
        .hooks
        .iter()
        .map(|hook| (hook.hook.as_str(), &hook.root, hook.runs.is_some(), hook.fault.as_deref()))
        .collect();
    assert_eq!(
        shown,
        [
            ("10-forgot", &root, false, Some("it is not executable")),
            ("20-own", &root, true, None),
            ("10-new", &slot_root, true, None),
        ]
    );
    assert_eq!(listed[0].hooks[0].path, Path::new("etc/bascule/hooks.d/check/10-forgot"));
    assert_eq!(listed[0].hooks[1].runs, Some(root.join("usr/lib/bascule/hooks.d/check/20-own")));
    let faults: Vec<_> = listed.iter().filter(|point| !point.faults.is_empty()).collect();
    assert_eq!((faults.len(), faults[0].point), (1, HookPoint::Probation));
}

/// Holds a value against the part of a JSON schema that ours uses; says the first thing that does not fit.
fn misfit(schema: &serde_json::Value, value: &serde_json::Value) -> Option<String> {
    let names = |value: &serde_json::Value| match value {
        serde_json::Value::Array(names) => names.clone(),
        one => vec![one.clone()],
    };
    let kind = match value {
        serde_json::Value::Null => "null",
        serde_json::Value::String(_) => "string",
        serde_json::Value::Number(number) if number.is_u64() => "integer",
        serde_json::Value::Object(_) => "object",
        _ => "something else",
    };
    if !names(&schema["type"]).contains(&kind.into()) {
        return Some(format!("{value} is {kind}, not {}", schema["type"]));
    }
    if schema.get("const").is_some_and(|only| only != value)
        || schema.get("enum").is_some_and(|all| !names(all).contains(value))
    {
        return Some(format!("{value} is not one of {schema}"));
    }
    let object = value.as_object()?;
    let required = schema["required"].as_array().into_iter().flatten().filter_map(|key| key.as_str());
    let missing = required.filter(|key| !object.contains_key(*key)).map(|key| format!("{key} is missing"));
    let unknown = object
        .keys()
        .filter(|key| schema["properties"].get(key).is_none())
        .map(|key| format!("{key} is not described"));
    let inner = object.iter().filter_map(|(key, value)| misfit(schema["properties"].get(key)?, value));
    missing.chain(unknown).chain(inner).next()
}

#[test]
fn a_context_file_is_what_its_schema_says() {
    let schema: serde_json::Value = serde_json::from_str(CONTEXT_JSON_SCHEMA).expect("the schema is JSON");
    let dir = tempfile::tempdir().expect("a folder");
    let bare = HookContext {
        deployment: None,
        from_version: None,
        to_version: None,
        reason: Some("it is".into()),
        ..context()
    };
    for point in HookPoint::ALL {
        for context in [context(), bare.clone()] {
            let file = write_context(point, &context, dir.path()).expect("it is written");
            let written = serde_json::from_slice(&fs::read(file.path()).expect("a file")).expect("JSON");
            assert_eq!(misfit(&schema, &written), None, "{point}: {written}");
            for key in written.as_object().expect("an object").keys() {
                let mut without = written.clone();
                without.as_object_mut().expect("an object").remove(key);
                assert_eq!(misfit(&schema, &without), Some(format!("{key} is missing")));
                let mut wrong = written.clone();
                wrong[key] = serde_json::json!(1.5);
                assert!(misfit(&schema, &wrong).is_some(), "{key} may be anything");
            }
        }
    }
    let points: Vec<_> = HookPoint::ALL.into_iter().map(HookPoint::name).collect();
    assert_eq!(schema["properties"]["point"]["enum"], serde_json::json!(points));
}
