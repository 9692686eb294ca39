//! The configuration: `config.toml`, then its drop-ins in the order of their names; tables merge, values replace.
//!
//! [`Config::load`] reads everything it can and lists every fault it finds, each with file, line, column and a hint.
//! A key that nobody knows is a fault: a misspelt safety setting must not fall back to its default silently.
//! `docs/configuration.md` has every key.

mod nearest;
mod quantity;
mod read;
mod reader;
mod tree;

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use bascule_core::{Disposition, ErrorReport, Phase, Tries};
use serde::{Deserialize, Serialize};

use crate::paths::Paths;

/// How this device is updated. Paths are as they were written: give them to [`Paths::resolve`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Config {
    /// What this device is.
    pub device: DeviceConfig,
    /// The boot loader's settings.
    pub boot: BootConfig,
    /// The slots of each role; `root` is among them.
    pub slots: BTreeMap<String, SlotPair>,
    /// The durable record.
    pub state: StateConfig,
    /// Whom to believe.
    pub trust: TrustConfig,
    /// Writing the target slots.
    pub prepare: PrepareConfig,
    /// Switching and rebooting.
    pub activate: ActivateConfig,
    /// Copies that are kept before an activation.
    pub backup: BackupConfig,
    /// Probation.
    pub health: HealthConfig,
    /// Integrators' programs.
    pub hooks: HooksConfig,
    /// The local API.
    pub api: ApiConfig,
    /// The daemon's log.
    pub log: LogConfig,
}

/// `[device]`
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct DeviceConfig {
    /// Names of this hardware; `None` leaves it to what the booted root says.
    pub compatible: Option<Vec<String>>,
}

/// `[boot]`
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct BootConfig {
    /// Which loader starts this device; `None`: the one that is found.
    #[serde(serialize_with = "auto")]
    pub backend: Option<Backend>,
    /// The folder with the loader's settings; `None`: the usual one of the loader.
    pub directory: Option<PathBuf>,
    /// U-Boot's `fw_env.config`.
    pub environment: PathBuf,
    /// The program of the backend `custom`.
    pub program: Option<PathBuf>,
    /// Globs over boot files that belong to the device, see [`KeepList`](bascule_hooks::KeepList).
    pub keep_files: Vec<String>,
    /// Starts the loader grants a new system before it falls back.
    pub tries: Tries,
}

/// A boot loader that this agent knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Backend {
    /// GRUB, through its environment block.
    Grub,
    /// systemd-boot, through the names of its entries.
    SystemdBoot,
    /// U-Boot, through its redundant environment.
    Uboot,
    /// UEFI firmware that starts kernels itself, through its variables.
    Efi,
    /// Bits in the partition table.
    Gpt,
    /// The Raspberry Pi's firmware, through `autoboot.txt`.
    RpiTryboot,
    /// An integrator's program.
    Custom,
}

impl Backend {
    /// All of them.
    pub const ALL: [Backend; 7] = [
        Backend::Grub,
        Backend::SystemdBoot,
        Backend::Uboot,
        Backend::Efi,
        Backend::Gpt,
        Backend::RpiTryboot,
        Backend::Custom,
    ];

    /// Its name in the configuration.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Backend::Grub => "grub",
            Backend::SystemdBoot => "systemd-boot",
            Backend::Uboot => "uboot",
            Backend::Efi => "efi",
            Backend::Gpt => "gpt",
            Backend::RpiTryboot => "rpi-tryboot",
            Backend::Custom => "custom",
        }
    }

    /// The role of the partitions that the loader itself starts, where it cannot do without them.
    #[must_use]
    pub fn needs_role(self) -> Option<&'static str> {
        (self == Backend::RpiTryboot).then_some("boot")
    }
}

fn auto<S: serde::Serializer>(backend: &Option<Backend>, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(backend.map_or("auto", Backend::name))
}

/// `[slots.ROLE]`: selectors of the two slots of one role, such as `partlabel:root-a`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SlotPair {
    /// The slot in group `a`.
    pub a: String,
    /// The slot in group `b`.
    pub b: String,
}

/// `[state]`
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct StateConfig {
    /// The folder with the record; on a file system that both groups share.
    pub directory: PathBuf,
}

/// `[trust]`
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct TrustConfig {
    /// The pinned trust root.
    pub root: PathBuf,
}

/// `[prepare]`
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PrepareConfig {
    /// systemd units that are stopped while a bundle is written.
    pub stop_units: Vec<String>,
    /// How often a preparation is attempted before it is given up.
    pub max_attempts: u32,
    /// Wait before the second attempt; it doubles with each one up to [`RETRY_WAIT_LIMIT`].
    #[serde(serialize_with = "quantity::as_text")]
    pub retry_wait: Duration,
    /// How long the source may send nothing.
    #[serde(serialize_with = "quantity::as_text")]
    pub stall_timeout: Duration,
    /// How long the head of a bundle may take to arrive.
    #[serde(serialize_with = "quantity::as_text")]
    pub head_timeout: Duration,
    /// Addresses of folders that hold the same bundles as the one that is asked first, in the order they are asked.
    pub mirrors: Vec<String>,
    /// How an image may be made, the preferred way first.
    pub ways: Vec<Way>,
    /// Most bytes that one attempt may fetch; `None`: as many as it takes.
    #[serde(serialize_with = "quantity::limit_as_text")]
    pub max_fetch: Option<u64>,
    /// Threads that make chunks, each with about 6 MiB of memory.
    pub cores: u32,
    /// After so many fetched bytes the slot is synced, so that a power cut costs no more than these.
    #[serde(serialize_with = "quantity::size_as_text")]
    pub checkpoint: u64,
    /// Most bytes per second that are fetched over a network; `None`: as fast as it goes.
    #[serde(serialize_with = "quantity::limit_as_text")]
    pub bandwidth: Option<u64>,
    /// Most bytes per second that are written to and read from slots; `None`: as fast as it goes.
    #[serde(serialize_with = "quantity::limit_as_text")]
    pub slot_bandwidth: Option<u64>,
    /// After so many days a bundle that was rolled back may be tried again by itself; `None`: never.
    pub deny_days: Option<u32>,
}

/// How an image can be made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Way {
    /// From the booted slot and a delta; chunks that do not fit are taken whole.
    Delta,
    /// Whole.
    Full,
}

impl Way {
    /// Both, the cheaper one first.
    pub const ALL: [Way; 2] = [Way::Delta, Way::Full];

    fn parse(word: &str) -> Option<Way> {
        Way::ALL.into_iter().find(|way| way.as_str() == word)
    }

    /// The word, as it is written.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Way::Delta => "delta",
            Way::Full => "full",
        }
    }
}

/// Most threads that may make chunks; their memory is part of the promise.
const MAX_CORES: u32 = 4;
/// What 64 MiB devices afford as well.
const DEFAULT_CORES: u32 = 2;

/// The longest wait between two attempts at a preparation.
pub const RETRY_WAIT_LIMIT: Duration = Duration::from_secs(10 * 60);

/// `[activate]`
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ActivateConfig {
    /// From the armed loader to the reboot, so that callers hear of it.
    #[serde(serialize_with = "quantity::as_text")]
    pub reboot_delay: Duration,
    /// How long locks of applications and inhibitors of logind hold an activation up.
    #[serde(serialize_with = "quantity::as_text")]
    pub lock_wait: Duration,
    /// What happens then.
    pub lock_policy: LockPolicy,
    /// The least charge in percent of a device that runs from its battery.
    pub min_battery: u32,
}

/// What becomes of an activation that a lock has held up for too long.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LockPolicy {
    /// It is given up.
    GiveUp,
    /// It goes on in spite of the lock.
    Go,
}

/// `[backup]`
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct BackupConfig {
    /// Files and folders of which a copy is kept before an activation.
    pub paths: Vec<String>,
    /// More of them, that hold secrets; they go into a file of their own that only root can read.
    pub secrets: Vec<String>,
    /// How many copies are kept.
    pub keep: u32,
}

/// `[health]`
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct HealthConfig {
    /// From the start of the system to the first round of checks.
    #[serde(serialize_with = "quantity::as_text")]
    pub settle: Duration,
    /// From one round to the next.
    #[serde(serialize_with = "quantity::as_text")]
    pub interval: Duration,
    /// When a system that did not pass is rolled back.
    #[serde(serialize_with = "quantity::as_text")]
    pub deadline: Duration,
    /// Rounds in a row that must pass.
    pub passes: u32,
    /// How long one check may take.
    #[serde(serialize_with = "quantity::as_text")]
    pub check_timeout: Duration,
    /// Checks that have another one, by their name in `status`.
    #[serde(serialize_with = "quantity::as_texts")]
    pub timeouts: BTreeMap<String, Duration>,
    /// systemd units that must be active.
    pub units: Vec<String>,
    /// Addresses that must answer with success.
    pub http: Vec<String>,
    /// `HOST:PORT`s that must accept a connection.
    pub tcp: Vec<String>,
}

/// `[hooks]`
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct HooksConfig {
    /// How long one hook may take.
    #[serde(serialize_with = "quantity::as_text")]
    pub timeout: Duration,
}

/// `[api]`
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ApiConfig {
    /// The group whose members may read; root alone where it does not exist.
    pub group: String,
}

/// `[log]`
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct LogConfig {
    /// The least severe events that are logged.
    pub level: LogLevel,
}

/// How much is logged.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogLevel {
    /// What failed.
    Error,
    /// And what is odd.
    Warn,
    /// And what happened.
    #[default]
    Info,
    /// And how.
    Debug,
    /// And everything else.
    Trace,
}

impl Config {
    /// Reads and checks the whole configuration.
    ///
    /// # Errors
    /// Every fault found, not only the first.
    pub fn load(paths: &Paths) -> Result<Config, ConfigError> {
        let (table, files, faults) = tree::load(paths);
        if files.none_was_read() {
            return Err(ConfigError { faults });
        }
        read::config(&table, &files, faults).map_err(|mut faults| {
            faults.sort_by_key(|fault| {
                let place = fault.position.map_or((usize::MAX, 0), |at| (at.line, at.column));
                (fault.file != files.main, fault.file.clone(), place)
            });
            ConfigError { faults }
        })
    }
}

/// One thing that is wrong with the configuration.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fault {
    /// Stable code of `docs/errors.md`, `config.*`.
    pub code: String,
    /// The file.
    pub file: PathBuf,
    /// Line and column, both counted from 1; `None` where something is missing.
    pub position: Option<Position>,
    /// What is wrong, in one line.
    pub message: String,
    /// What a person can do about it.
    pub hint: String,
}

/// A place in a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Position {
    /// Counted from 1.
    pub line: usize,
    /// Counted from 1, in characters.
    pub column: usize,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.file.display())?;
        if let Some(Position { line, column }) = self.position {
            write!(f, ":{line}:{column}")?;
        }
        write!(f, ": {}", self.message)
    }
}

/// The configuration cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("the configuration cannot be used: {} in it", counted(.faults.len()))]
pub struct ConfigError {
    /// Everything that is wrong, in the order of files and lines.
    pub faults: Vec<Fault>,
}

fn counted(faults: usize) -> String {
    if faults == 1 { "1 fault".into() } else { format!("{faults} faults") }
}

impl ConfigError {
    /// Stable code of `docs/errors.md`: that of the first fault.
    #[must_use]
    pub fn code(&self) -> &str {
        self.faults.first().map_or("config.unreadable", |fault| &fault.code)
    }

    /// What a person can do about it.
    #[must_use]
    pub fn hint(&self) -> String {
        match self.faults.as_slice() {
            [only] => only.hint.clone(),
            _ => "`bascule config check` explains every fault".into(),
        }
    }

    /// A person has to correct the file.
    #[must_use]
    pub fn disposition(&self) -> Disposition {
        Disposition::Person
    }

    /// The error as people and fleets see it; its causes are the faults.
    #[must_use]
    pub fn report(&self) -> ErrorReport {
        let mut report = ErrorReport::new(self.code(), Phase::Daemon, self, self.hint(), self.disposition());
        report.cause = self.faults.iter().map(Fault::to_string).collect();
        report
    }
}

/// A duration as the configuration writes it.
#[must_use]
pub fn duration_text(duration: Duration) -> String {
    quantity::text(duration)
}
