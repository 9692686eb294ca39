//! The schema: every section and key with its default and bounds.

use std::collections::BTreeMap;
use std::time::Duration;

use bascule_boot::tryboot::TrybootError;
use bascule_core::Tries;
use bascule_hooks::KeepList;

use super::reader::{Reader, Section};
use super::tree::{Files, Table, Value};
use super::{
    ActivateConfig, ApiConfig, Backend, BackupConfig, BootConfig, Config, DEFAULT_CORES, DeviceConfig, Fault,
    HealthConfig, HooksConfig, LockPolicy, LogConfig, LogLevel, MAX_CORES, PrepareConfig, RETRY_WAIT_LIMIT, SlotPair,
    StateConfig, TrustConfig, Way, quantity,
};
use crate::paths::Paths;

/// Every section with its keys; those of `slots` are roles.
const SECTIONS: [(&str, &[&str]); 12] = [
    ("device", &["compatible"]),
    ("boot", &["backend", "directory", "environment", "program", "keep_files", "tries"]),
    ("slots", &[]),
    ("state", &["directory"]),
    ("trust", &["root"]),
    (
        "prepare",
        &[
            "stop_units",
            "max_attempts",
            "retry_wait",
            "stall_timeout",
            "head_timeout",
            "mirrors",
            "ways",
            "max_fetch",
            "cores",
            "checkpoint",
            "bandwidth",
            "slot_bandwidth",
            "deny_days",
        ],
    ),
    ("activate", &["reboot_delay", "lock_wait", "lock_policy", "min_battery"]),
    ("backup", &["paths", "secrets", "keep"]),
    (
        "health",
        &["settle", "interval", "deadline", "passes", "check_timeout", "timeouts", "units", "http", "tcp", "within"],
    ),
    ("hooks", &["timeout"]),
    ("api", &["group"]),
    ("log", &["level"]),
];

const ROLE_SHAPE: &str = "a role is lower-case letters, digits, `.`, `_` and `-`, at most 64";
const UNIT_SHAPE: &str = "write whole unit names, such as \"nginx.service\"";
const ADDRESS_SHAPE: &str = "write the address of a folder, such as \"https://host/bundles\"";
const GLOB_SHAPE: &str = "write a name in the set or a glob, such as \"overlays/site-*.dtbo\"";
const PORT_SHAPE: &str = "write host and port, such as \"127.0.0.1:8080\"";
const NAME_SHAPE: &str = "write a name without spaces, at most 64 characters";

/// What is left of `health.within` for the reboot into the old system.
const RETURN: Duration = secs(60);
const DAY: Duration = secs(24 * 3600);

const fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

const fn secs(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

/// Makes the configuration of the merged tree, or lists every fault.
pub(super) fn config(table: &Table, files: &Files, faults: Vec<Fault>) -> Result<Config, Vec<Fault>> {
    let mut reader = Reader::new(files, faults);
    let top = reader.top(table, &SECTIONS);
    let mut section = |name: &str| -> Section<'_> { reader.section(&top, &SECTIONS, name) };
    let [device_section, boot_section] = [section("device"), section("boot")];
    let [state_section, trust_section, prepare_section] = [section("state"), section("trust"), section("prepare")];
    let [activate_section, health_section, hooks_section] = [section("activate"), section("health"), section("hooks")];
    let [api_section, log_section, backup_section] = [section("api"), section("log"), section("backup")];
    let slots_section = reader.table(&top, "slots");
    boot_slots(&mut reader, &boot_section, &slots_section);
    let config = Config {
        device: device(&mut reader, &device_section),
        boot: boot(&mut reader, &boot_section),
        slots: slots(&mut reader, &slots_section),
        state: StateConfig {
            directory: reader.path(&state_section, "directory").unwrap_or(Paths::STATE_DIRECTORY.into()),
        },
        trust: TrustConfig { root: reader.path(&trust_section, "root").unwrap_or(Paths::TRUST_ROOT.into()) },
        prepare: prepare(&mut reader, &prepare_section),
        activate: activate(&mut reader, &activate_section),
        backup: backup(&mut reader, &backup_section),
        health: health(&mut reader, &health_section),
        hooks: hooks(&mut reader, &hooks_section),
        api: api(&mut reader, &api_section),
        log: LogConfig { level: log_level(&mut reader, &log_section) },
    };
    if reader.faults.is_empty() { Ok(config) } else { Err(reader.faults) }
}

fn device(reader: &mut Reader<'_>, section: &Section<'_>) -> DeviceConfig {
    let is_name = |text: &str| !text.is_empty() && text.len() <= 64 && !text.contains(char::is_whitespace);
    let compatible = reader.list(section, "compatible", is_name, NAME_SHAPE);
    if let (Some([]), Some(entry)) = (compatible.as_deref(), section.entry("compatible")) {
        let hint = "name the hardware, or leave the key out to take it from the booted system";
        reader.fault("config.bad-value", entry.at, "device.compatible is empty: no bundle would fit", hint);
    }
    DeviceConfig { compatible }
}

fn boot(reader: &mut Reader<'_>, section: &Section<'_>) -> BootConfig {
    let tries = reader.integer(section, "tries", 1, u32::from(Tries::MAX));
    let named = Backend::ALL.map(|backend| (backend.name(), Some(backend)));
    let backend = reader.word(section, "backend", &[&[("auto", None)][..], &named].concat()).flatten();
    let program = reader.path(section, "program");
    if let (Some(Backend::Custom), None, Some(entry)) = (backend, &program, section.entry("backend")) {
        let hint = "name the program that knows the loader: `program = \"/usr/lib/board/boot-choice\"`";
        reader.fault("config.missing-key", entry.at, "boot.backend is custom, and boot.program is not set", hint);
    }
    BootConfig {
        backend,
        directory: reader.path(section, "directory"),
        environment: reader.path(section, "environment").unwrap_or(Paths::BOOT_ENVIRONMENT.into()),
        program,
        keep_files: reader.list(section, "keep_files", is_glob, GLOB_SHAPE).unwrap_or_default(),
        tries: tries.and_then(|n| Tries::new(u8::try_from(n).ok()?).ok()).unwrap_or(Tries::DEFAULT),
    }
}

/// A loader that starts partitions of its own is of no use without them.
fn boot_slots(reader: &mut Reader<'_>, boot: &Section<'_>, slots: &Section<'_>) {
    let named = boot.entry("backend").and_then(|entry| match &entry.value {
        Value::Text(name) => Some((entry.at, Backend::ALL.into_iter().find(|backend| backend.name() == name)?)),
        _ => None,
    });
    let Some((place, backend)) = named else { return };
    if let Some(role) = backend.needs_role().filter(|role| slots.entry(role).is_none()) {
        let message = format!("boot.backend is {}, and [slots.{role}] is missing", backend.name());
        reader.fault("config.missing-key", place, message, TrybootError::NoSlots.hint());
    }
}

fn is_glob(text: &str) -> bool {
    !text.is_empty() && !text.starts_with('/') && KeepList::new([text]).is_ok()
}

fn slots(reader: &mut Reader<'_>, section: &Section<'_>) -> BTreeMap<String, SlotPair> {
    let mut pairs = BTreeMap::new();
    let mut seen: BTreeMap<String, String> = BTreeMap::new();
    if section.entry("root").is_none() {
        reader.missing(
            "[slots.root]",
            "name both root partitions: `a = \"partlabel:root-a\"`, `b = \"partlabel:root-b\"`",
        );
    }
    for (role, entry) in section.entries() {
        if !is_role(role) {
            reader.fault("config.bad-value", entry.key, format!("{role:?} is no slot role"), ROLE_SHAPE);
        }
        let slot = reader.table(section, role);
        reader.refuse_unknown(&slot, &["a", "b"], &[]);
        let mut selector = |group: &str| {
            if slot.entry(group).is_none() {
                reader.missing(&format!("slots.{role}.{group}"), "each role has one slot in each group");
            }
            let (text, place) = reader.text(&slot, group)?;
            if let Some(other) = seen.insert(text.to_owned(), format!("slots.{role}.{group}")) {
                let message = format!("slots.{role}.{group} is the same slot as {other}");
                reader.fault("config.conflict", place, message, "each slot may be used once");
            }
            Some(text.to_owned())
        };
        if let (Some(a), Some(b)) = (selector("a"), selector("b")) {
            pairs.insert(role.clone(), SlotPair { a, b });
        }
    }
    pairs
}

fn is_role(role: &str) -> bool {
    let first = role.bytes().next().is_some_and(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit());
    let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"._-".contains(&byte);
    first && role.len() <= 64 && role.bytes().all(allowed)
}

fn prepare(reader: &mut Reader<'_>, section: &Section<'_>) -> PrepareConfig {
    PrepareConfig {
        stop_units: reader.list(section, "stop_units", is_unit, UNIT_SHAPE).unwrap_or_default(),
        max_attempts: reader.integer(section, "max_attempts", 1, 1000).unwrap_or(10),
        retry_wait: reader.duration(section, "retry_wait", ms(100), RETRY_WAIT_LIMIT).unwrap_or(secs(10)),
        stall_timeout: reader.duration(section, "stall_timeout", secs(1), secs(3600)).unwrap_or(secs(60)),
        head_timeout: reader.duration(section, "head_timeout", secs(1), DAY).unwrap_or(secs(600)),
        mirrors: reader.list(section, "mirrors", is_folder_address, ADDRESS_SHAPE).unwrap_or_default(),
        ways: ways(reader, section),
        max_fetch: reader.size(section, "max_fetch", 0, 1 << 40),
        cores: reader.integer(section, "cores", 1, MAX_CORES).unwrap_or(DEFAULT_CORES),
        bandwidth: reader.size(section, "bandwidth", 1 << 10, 1 << 40),
        slot_bandwidth: reader.size(section, "slot_bandwidth", 1 << 20, 1 << 40),
        deny_days: reader.integer(section, "deny_days", 1, 3650),
        checkpoint: reader.size(section, "checkpoint", 64 << 10, 1 << 30).unwrap_or(16 << 20),
    }
}

fn is_address(address: &str) -> bool {
    let rest = address.strip_prefix("https://").or_else(|| address.strip_prefix("http://"));
    rest.is_some_and(|rest| !rest.is_empty() && !rest.starts_with('/')) && !address.contains(char::is_whitespace)
}

fn is_folder_address(address: &str) -> bool {
    is_address(address) && !address.contains(['?', '#'])
}

fn is_host_and_port(text: &str) -> bool {
    let Some((host, port)) = text.rsplit_once(':') else { return false };
    !host.is_empty() && !host.contains(char::is_whitespace) && port.parse::<u16>().is_ok_and(|port| port > 0)
}

fn ways(reader: &mut Reader<'_>, section: &Section<'_>) -> Vec<Way> {
    let shape = "write \"delta\", \"full\" or both, the preferred one first";
    let Some(words) = reader.list(section, "ways", |word| Way::parse(word).is_some(), shape) else {
        return Way::ALL.to_vec();
    };
    let ways: Vec<Way> = words.iter().filter_map(|word| Way::parse(word)).collect();
    if let Some(entry) = section.entry("ways")
        && (words.is_empty() || ways.iter().enumerate().any(|(n, way)| ways.iter().take(n).any(|early| early == way)))
    {
        let message = "prepare.ways is empty, or names a way twice";
        reader.fault("config.bad-value", entry.at, message, shape);
    }
    ways
}

fn is_unit(name: &str) -> bool {
    const KINDS: [&str; 8] = [".service", ".socket", ".target", ".timer", ".mount", ".path", ".device", ".scope"];
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b":_.\\-@".contains(&byte);
    let kind = KINDS.iter().find_map(|kind| name.strip_suffix(kind));
    kind.is_some_and(|stem| !stem.is_empty() && !stem.starts_with('-')) && name.bytes().all(allowed) && name.len() < 256
}

fn activate(reader: &mut Reader<'_>, section: &Section<'_>) -> ActivateConfig {
    let policies = [("give-up", LockPolicy::GiveUp), ("go", LockPolicy::Go)];
    ActivateConfig {
        reboot_delay: reader.duration(section, "reboot_delay", secs(0), secs(600)).unwrap_or(secs(2)),
        lock_wait: reader.duration(section, "lock_wait", secs(0), DAY * 30).unwrap_or(DAY),
        lock_policy: reader.word(section, "lock_policy", &policies).unwrap_or(LockPolicy::GiveUp),
        min_battery: reader.integer(section, "min_battery", 0, 100).unwrap_or(20),
    }
}

fn backup(reader: &mut Reader<'_>, section: &Section<'_>) -> BackupConfig {
    let is_path = |text: &str| text.starts_with('/') && !text.split('/').any(|part| part == "..");
    let shape = "write absolute paths without `..`";
    BackupConfig {
        paths: reader.list(section, "paths", is_path, shape).unwrap_or_default(),
        secrets: reader.list(section, "secrets", is_path, shape).unwrap_or_default(),
        keep: reader.integer(section, "keep", 1, 100).unwrap_or(3),
    }
}

/// `[health.timeouts]`: any check's name, and how long that one may take.
fn timeouts(reader: &mut Reader<'_>, health: &Section<'_>) -> BTreeMap<String, Duration> {
    let section = reader.table(health, "timeouts");
    let mut read = |name: &String| Some((name.clone(), reader.duration(&section, name, ms(100), secs(3600))?));
    section.entries().filter_map(|(name, _)| read(name)).collect()
}

fn health(reader: &mut Reader<'_>, section: &Section<'_>) -> HealthConfig {
    let hour = secs(3600);
    let within = reader.duration(section, "within", secs(120), DAY);
    let last = within.map_or(secs(15 * 60), |within| within.saturating_sub(RETURN));
    if let (Some(_), Some(entry)) = (within, section.entry("deadline")) {
        let message = "health.deadline and health.within say the same thing in two ways";
        reader.fault("config.conflict", entry.at, message, "leave one of them out: deadline is within less 60s");
    }
    let health = HealthConfig {
        settle: reader.duration(section, "settle", secs(0), hour).unwrap_or(secs(60)),
        interval: reader.duration(section, "interval", ms(100), hour).unwrap_or(secs(60)),
        deadline: reader.duration(section, "deadline", secs(1), DAY).unwrap_or(last),
        passes: reader.integer(section, "passes", 1, 100).unwrap_or(3),
        check_timeout: reader.duration(section, "check_timeout", ms(100), hour).unwrap_or(secs(60)),
        timeouts: timeouts(reader, section),
        units: reader.list(section, "units", is_unit, UNIT_SHAPE).unwrap_or_default(),
        http: reader.list(section, "http", is_address, ADDRESS_SHAPE).unwrap_or_default(),
        tcp: reader.list(section, "tcp", is_host_and_port, PORT_SHAPE).unwrap_or_default(),
    };
    let least = health.settle + health.interval * health.passes;
    // A place is there: with the defaults alone the room is enough.
    let entry = ["deadline", "within", "passes", "interval", "settle"].iter().find_map(|key| section.entry(key));
    if let Some(entry) = entry.filter(|_| health.deadline <= least) {
        let message = format!(
            "health.deadline {} leaves no room for settle {} and {} passes {} apart: every update would be rolled back",
            quantity::text(health.deadline),
            quantity::text(health.settle),
            health.passes,
            quantity::text(health.interval),
        );
        let hint = format!("raise deadline above {}, or ask for fewer passes", quantity::text(least));
        reader.fault("config.conflict", entry.at, message, hint);
    }
    health
}

fn hooks(reader: &mut Reader<'_>, section: &Section<'_>) -> HooksConfig {
    HooksConfig { timeout: reader.duration(section, "timeout", secs(1), secs(24 * 3600)).unwrap_or(secs(300)) }
}

fn api(reader: &mut Reader<'_>, section: &Section<'_>) -> ApiConfig {
    let group = reader.text(section, "group");
    if let Some((name, place)) = group.filter(|(name, _)| !is_group_name(name)) {
        reader.fault("config.bad-value", place, format!("api.group cannot be {name:?}"), "write a group's name");
    }
    ApiConfig { group: group.map_or("bascule", |(name, _)| name).to_owned() }
}

fn is_group_name(name: &str) -> bool {
    name.len() <= 32 && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_-".contains(&byte))
}

fn log_level(reader: &mut Reader<'_>, section: &Section<'_>) -> LogLevel {
    let words = [
        ("error", LogLevel::Error),
        ("warn", LogLevel::Warn),
        ("info", LogLevel::Info),
        ("debug", LogLevel::Debug),
        ("trace", LogLevel::Trace),
    ];
    reader.word(section, "level", &words).unwrap_or_default()
}
