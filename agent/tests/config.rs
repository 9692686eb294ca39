//! The configuration: what is taken, what is refused, and where the fault is said to be.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "this file is a test, its functions too"
)]

use std::fs;
use std::time::Duration;

use bascule_agent::config::{Config, ConfigError};
use bascule_agent::paths::Paths;
use tempfile::TempDir;

const SLOTS: &str = "[slots.root]\na = \"partlabel:root-a\"\nb = \"partlabel:root-b\"\n";

/// A device's folder with these files under `etc/bascule`.
fn device(files: &[(&str, &str)]) -> TempDir {
    let root = TempDir::new().unwrap();
    for (name, text) in files {
        let path = root.path().join("etc/bascule").join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
    root
}

fn load(files: &[(&str, &str)]) -> Result<Config, ConfigError> {
    let root = device(files);
    Config::load(&Paths::under(root.path()))
}

/// Faults as `file:line:column code message | hint`, with the slots already there.
fn faults(text: &str) -> Vec<String> {
    lines(load(&[("config.toml", &format!("{text}\n{SLOTS}"))]).expect_err("it was taken"))
}

fn lines(error: ConfigError) -> Vec<String> {
    let line = |fault: &bascule_agent::config::Fault| {
        let name = fault.file.file_name().unwrap().to_string_lossy().into_owned();
        let place = fault.position.map_or(String::new(), |at| format!(":{}:{}", at.line, at.column));
        format!("{name}{place} {} {} | {}", fault.code, fault.message, fault.hint)
    };
    error.faults.iter().map(line).collect()
}

#[test]
fn slots_alone_are_enough_and_everything_else_has_its_default() {
    let config = load(&[("config.toml", SLOTS)]).unwrap();
    assert_eq!((config.boot.backend, config.boot.directory), (None, None), "the loader is looked for");
    assert_eq!(config.boot.tries.get(), 3);
    assert_eq!(config.state.directory.to_str(), Some("/data/bascule"));
    assert_eq!(config.trust.root.to_str(), Some("/etc/bascule/root.json"));
    assert_eq!(config.slots["root"].b, "partlabel:root-b");
    let health = &config.health;
    assert_eq!((health.settle, health.interval), (Duration::from_secs(60), Duration::from_secs(60)));
    assert_eq!((health.deadline, health.passes), (Duration::from_secs(900), 3));
    assert_eq!(config.device.compatible, None);
    assert_eq!(config.api.group, "bascule");
}

#[test]
fn the_configuration_that_is_shipped_has_no_fault() {
    let shipped = concat!(env!("CARGO_MANIFEST_DIR"), "/packaging/config.toml");
    load(&[("config.toml", &fs::read_to_string(shipped).unwrap())]).unwrap();
}

#[test]
fn the_example_of_the_documentation_has_no_fault_and_names_every_default() {
    let page = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/configuration.md")).unwrap();
    let example = page.split("```toml\n").nth(1).and_then(|rest| rest.split("```").next()).unwrap();
    let documented = load(&[("config.toml", example)]).unwrap();
    let mut default = load(&[("config.toml", SLOTS)]).unwrap();
    default.device.compatible = documented.device.compatible.clone();
    assert_eq!(documented, default);
}

#[test]
fn drop_ins_are_merged_by_name_tables_merge_and_values_replace() {
    let config = load(&[
        ("config.toml", &format!("{SLOTS}[health]\npasses = 2\nunits = [\"a.service\"]\nsettle = \"1s\"\n")),
        ("config.d/20-late.toml", "[health]\nunits = [\"c.service\"]\n"),
        (
            "config.d/10-early.toml",
            "[health]\nunits = [\"b.service\"]\npasses = 5\n[slots.app]\na = \"x\"\nb = \"y\"\n",
        ),
        ("config.d/.hidden.toml", "nonsense"),
        ("config.d/notes.txt", "nonsense"),
    ])
    .unwrap();
    assert_eq!((config.health.passes, config.health.settle), (5, Duration::from_secs(1)));
    assert_eq!(config.health.units, ["c.service"]);
    assert_eq!(config.slots.keys().collect::<Vec<_>>(), ["app", "root"]);
}

#[test]
fn an_unknown_key_is_refused_where_it_stands_with_the_word_that_was_meant() {
    assert_eq!(
        faults("[health]\npases = 2"),
        ["config.toml:2:1 config.unknown-key unknown key \"pases\" in [health] | did you mean \"passes\"?"]
    );
    assert_eq!(
        faults("[heatlh]\npasses = 2"),
        ["config.toml:1:2 config.unknown-key unknown section or key \"heatlh\" | did you mean \"health\"?"]
    );
    assert_eq!(
        faults("[boot]\ndeadline = \"15min\""),
        ["config.toml:2:1 config.unknown-key unknown key \"deadline\" in [boot] | \"deadline\" is a key of [health]"]
    );
}

#[test]
fn every_fault_is_listed_at_once_also_those_of_a_drop_in() {
    let error = load(&[
        ("config.toml", "[boot]\nbackend = \"grubb\"\ntries = 12\ndirectory = \"boot\"\n[health]\nsettle = 60\n"),
        ("config.d/10.toml", "[health]\n  deadline = \"15m\"\n[log]\nlevel = true\n"),
    ])
    .unwrap_err();
    assert_eq!(
        lines(error),
        [
            "config.toml:2:11 config.bad-value boot.backend cannot be \"grubb\" | did you mean \"grub\"?",
            "config.toml:3:9 config.bad-value boot.tries cannot be 12 | it is 1 to 9",
            "config.toml:4:13 config.bad-value boot.directory is no absolute path: \"boot\" | write the whole path from /, without `..`",
            "config.toml:6:10 config.wrong-type health.settle is an integer, it must be a string | write it with its unit: `settle = \"60s\"`",
            "config.toml config.missing-key [slots.root] is missing | name both root partitions: `a = \"partlabel:root-a\"`, `b = \"partlabel:root-b\"`",
            "10.toml:2:14 config.bad-value health.deadline is no duration: \"15m\" | write a whole number and ms, s, min or h, such as \"90s\" or \"15min\"",
            "10.toml:4:9 config.wrong-type log.level is a boolean, it must be a string | write `level = \"...\"`",
        ]
    );
}

#[test]
fn a_deadline_without_room_for_the_passes_is_refused() {
    let found = faults("[health]\nsettle = \"1min\"\ninterval = \"1min\"\npasses = 3\ndeadline = \"4min\"");
    assert_eq!(found.len(), 1, "{found:?}");
    assert!(found[0].starts_with("config.toml:5:12 config.conflict health.deadline 4min leaves no room"), "{found:?}");
    load(&[("config.toml", &format!("{SLOTS}[health]\ndeadline = \"241s\"\n"))]).unwrap();
}

#[test]
fn one_slot_cannot_be_used_twice_and_each_group_needs_one() {
    let error = load(&[("config.toml", "[slots.root]\na = \"x\"\nb = \"x\"\n[slots.app]\na = \"y\"\nc = \"z\"\n")]);
    assert_eq!(
        lines(error.unwrap_err()),
        [
            "config.toml:3:5 config.conflict slots.root.b is the same slot as slots.root.a | each slot may be used once",
            "config.toml:6:1 config.unknown-key unknown key \"c\" in [slots.app] | the keys of [slots.app] are a, b",
            "config.toml config.missing-key slots.app.b is missing | each role has one slot in each group",
        ]
    );
}

#[test]
fn a_loader_that_starts_partitions_of_its_own_needs_them_named() {
    let found = faults("[boot]\nbackend = \"rpi-tryboot\"");
    let hint = "name each group's boot partition: `[slots.boot]`, `a = \"partnum:2\"`, `b = \"partnum:3\"`";
    let missing = "config.missing-key boot.backend is rpi-tryboot, and [slots.boot] is missing";
    assert_eq!(found, [format!("config.toml:2:11 {missing} | {hint}")]);
    let slots = "[slots.boot]\na = \"partnum:2\"\nb = \"partnum:3\"\n";
    load(&[("config.toml", &format!("[boot]\nbackend = \"rpi-tryboot\"\n{slots}{SLOTS}"))]).unwrap();
    for other in ["auto", "grub", "systemd-boot", "uboot", "efi", "gpt"] {
        load(&[("config.toml", &format!("[boot]\nbackend = \"{other}\"\n{SLOTS}"))]).unwrap();
    }
}

#[test]
fn text_that_is_no_toml_is_refused_where_it_breaks() {
    let found = faults("[boot\ntries = 3");
    assert!(found[0].starts_with("config.toml:1:6 config.syntax"), "{found:?}");
    let found = faults("[boot]\ntries = 3\ntries = 4");
    assert!(found[0].starts_with("config.toml:3:1 config.syntax"), "{found:?}");
}

#[test]
fn a_missing_binary_or_huge_file_is_named_without_a_line() {
    let missing = lines(load(&[]).unwrap_err());
    assert_eq!(missing.len(), 1, "{missing:?}");
    assert!(missing[0].starts_with("config.toml config.unreadable the file cannot be read"), "{missing:?}");
    let root = device(&[("config.toml", SLOTS)]);
    fs::write(root.path().join("etc/bascule/config.toml"), [0xff, 0xfe]).unwrap();
    let binary = Config::load(&Paths::under(root.path())).unwrap_err();
    assert_eq!(binary.code(), "config.syntax");
    let huge = lines(load(&[("config.toml", &"#".repeat(300_000))]).unwrap_err());
    assert!(huge[0].starts_with("config.toml config.too-large"), "{huge:?}");
}

#[test]
fn units_are_whole_names() {
    for wrong in ["nginx", "a b.service", ".service", "../x.service", "-x.service"] {
        let found = faults(&format!("[health]\nunits = [\"{wrong}\"]"));
        assert!(found[0].starts_with("config.toml:2:10 config.bad-value"), "{wrong}: {found:?}");
    }
    let text = format!("{SLOTS}[health]\nunits = [\"getty@tty1.service\", \"my\\\\x2dapp.service\"]\n");
    load(&[("config.toml", &text)]).unwrap();
}

#[test]
fn the_report_carries_every_fault_as_a_cause() {
    let error = load(&[("config.toml", "[boot]\ntries = 0\n[log]\nlevel = \"loud\"\n")]).unwrap_err();
    let report = error.report();
    assert_eq!((report.code.as_str(), report.cause.len()), ("config.bad-value", 3));
    assert!(report.message.contains("3 faults"), "{}", report.message);
}
