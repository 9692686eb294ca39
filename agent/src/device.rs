//! This device as the agent sees it: paths, configuration, slots, loader, and the record's store.
//!
//! Both the daemon and the watchdogs stand on a [`Device`]. It looks ([`Device::observe`]) and it performs the acts
//! that need neither a network nor waiting ([`Device::perform`]); it decides nothing.

use std::path::PathBuf;
use std::time::Duration;

use bascule_boot::disk::{DiskError, Layout, Slot, SlotRole, SlotTable, Sysfs, locate};
use bascule_boot::{BootBackend, BootError};
use bascule_core::{
    Action, BootId, BootView, BootedGroup, Deployment, Disposition, ErrorReport, Health, Observed, Phase, Policy,
    Record, Settings, Stamp, State, Step, Tries,
};

use crate::clock;
use crate::config::{Config, SlotPair};
use crate::durable;
use crate::loaders::Loader;
use crate::names;
use crate::paths::Paths;
use crate::shared::{CheckView, Release, SlotView};
use crate::state::{StateError, Store};
use crate::story::{Event, Stories, step_in_words};

/// A `release.toml` longer than this is not one.
const RELEASE_LIMIT: u64 = 64 << 10;

/// What can go wrong before or while the device is looked at.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    /// The slots could not be found, or are not what the configuration says.
    #[error("cannot find this device's slots")]
    Disk(#[from] DiskError),
    /// The loader's settings.
    #[error("cannot use the boot settings")]
    Boot(#[from] BootError),
    /// The record.
    #[error("cannot use the record")]
    State(#[from] StateError),
    /// A file every device has cannot be read.
    #[error("cannot read {path}")]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// `release.toml` is not of its form.
    #[error("{path} does not say what this system is")]
    Release {
        /// Which file.
        path: PathBuf,
        /// Where it is wrong.
        #[source]
        source: toml::de::Error,
    },
}

impl DeviceError {
    /// Stable code of `docs/errors.md`.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            DeviceError::Disk(error) => error.code(),
            DeviceError::Boot(error) => error.code(),
            DeviceError::State(error) => error.code(),
            DeviceError::File { .. } => "device.file",
            DeviceError::Release { .. } => "device.release",
        }
    }

    /// The error, whole.
    #[must_use]
    pub fn report(&self, phase: Phase) -> ErrorReport {
        let (hint, disposition) = match self {
            DeviceError::Disk(error) => (error.hint(), error.disposition()),
            DeviceError::Boot(error) => (error.hint(), error.disposition()),
            DeviceError::State(error) => (error.hint(), error.disposition()),
            DeviceError::File { .. } => {
                ("the image or the mounts of this system are incomplete".into(), Disposition::Person)
            }
            DeviceError::Release { .. } => (
                "put product, version, order and compatible into it when the image is built".into(),
                Disposition::Person,
            ),
        };
        ErrorReport::new(self.code(), phase, self, hint, disposition)
    }
}

/// This device.
pub struct Device {
    /// Where things are.
    pub paths: Paths,
    /// What an integrator or operator has said.
    pub config: Config,
    /// What the booted root says it is.
    pub release: Release,
    /// Its slots, found on the disk of the booted root.
    pub layout: Layout,
    /// The loader.
    pub loader: Loader,
    /// The record, locked.
    pub store: Store,
    /// Where what happens to deployments is told.
    pub stories: Stories,
    /// This boot.
    pub boot_id: BootId,
    /// This run of the daemon.
    pub run: String,
}

impl Device {
    /// Finds everything. The record is loaded last, after its lock is taken.
    ///
    /// # Errors
    /// [`DeviceError`]; nothing was changed.
    pub fn open(paths: &Paths, config: Config) -> Result<Self, DeviceError> {
        let parts = Parts::find(paths, &config)?;
        let state = paths.resolve(&config.state.directory);
        let (store, stories) = (open_store(&state)?, Stories::new(&state));
        let run = format!("{}-{}", std::process::id(), clock::now().as_nanosecond());
        let Parts { release, layout, loader, boot_id } = parts;
        Ok(Device { paths: paths.clone(), config, release, layout, loader, store, stories, boot_id, run })
    }

    /// The booted group.
    #[must_use]
    pub fn booted(&self) -> BootedGroup {
        self.layout.booted
    }

    /// The durable record.
    #[must_use]
    pub fn record(&self) -> &Record {
        self.store.record()
    }

    /// The loader's settings.
    ///
    /// # Errors
    /// [`BootError`] when they cannot be read at all.
    pub fn view(&self) -> Result<BootView, BootError> {
        self.loader.view(self.booted())
    }

    /// Starts that a new system is granted: as configured, or the one that the loader can grant.
    #[must_use]
    pub fn tries(&self) -> Tries {
        if self.loader.tries_once() { Tries::ONE } else { self.config.boot.tries }
    }

    /// What a decision depends on besides the facts.
    #[must_use]
    pub fn policy(&self) -> Policy {
        Policy { tries: self.tries(), max_attempts: self.config.prepare.max_attempts }
    }

    /// The facts, without what only a running daemon knows: health, preparation, request.
    ///
    /// # Errors
    /// [`DeviceError`] when a fact cannot be had.
    pub fn observe(&self) -> Result<Observed, DeviceError> {
        Ok(Observed {
            booted: self.booted().group(),
            boot_id: self.boot_id.clone(),
            run: self.run.clone(),
            view: self.view()?,
            health: Health::Unknown,
            deadline_passed: self.uptime()? >= self.config.health.deadline,
            preparation: None,
            request: None,
        })
    }

    /// Performs one act on the record or the loader. `Ok(false)`: the action is not one of these.
    ///
    /// # Errors
    /// [`DeviceError`]; the act did not happen, or its result is seen at the next look.
    pub fn perform(&mut self, action: &Action) -> Result<bool, DeviceError> {
        let booted = self.booted();
        match action {
            Action::Record(step) => {
                self.finish_commit(step)?;
                self.record_step(step)?;
            }
            Action::MarkUnbootable => self.repairing(|loader| loader.mark_unbootable(booted.target()))?,
            Action::Activate => self.loader.activate(booted.target(), self.tries())?,
            Action::MarkGood => self.repairing(|loader| loader.mark_good(booted))?,
            Action::RollBack => self.loader.roll_back(booted)?,
            _ => return Ok(false),
        }
        Ok(true)
    }

    /// An act that makes damaged settings anew: the story says so, for afterwards nobody can see it any more.
    fn repairing(&self, act: impl FnOnce(&Loader) -> Result<(), BootError>) -> Result<(), BootError> {
        let are = |settings| self.view().is_ok_and(|view| view.settings == settings);
        let were_damaged = are(Settings::Damaged);
        act(&self.loader)?;
        if were_damaged && are(Settings::Intact) {
            let words =
                format!("the boot settings were damaged and are made anew: group {} runs", self.booted().group());
            tracing::warn!(booted = self.booted().group().letter(), "damaged boot settings were made anew");
            let record = self.record();
            let last = || record.history.last().map(|entry| &entry.deployment);
            if let Some(deployment) = record.state.deployment().or_else(last) {
                self.tell_of(deployment, "repaired", words, Vec::new());
            }
        }
        Ok(())
    }

    /// A cut in the middle of marking good leaves the commit's one write done and the loader's fallback on the old
    /// group. Marking good again finishes it, and writes nothing where there is nothing left to do.
    fn finish_commit(&self, step: &Step) -> Result<(), BootError> {
        let target = self.record().state.deployment().map(|deployment| deployment.target);
        if *step == Step::Committed && target == Some(self.booted().group()) {
            self.loader.mark_good(self.booted())?;
        }
        Ok(())
    }

    fn record_step(&mut self, step: &Step) -> Result<(), DeviceError> {
        let stamp = Stamp {
            now: clock::now().as_second(),
            boot_id: self.boot_id.clone(),
            run: self.run.clone(),
            booted: self.booted().group(),
        };
        let before = self.record().state.deployment().cloned();
        self.store.step(step, &stamp)?;
        let (record, name) = (self.record(), names::step_name(step));
        let state = names::state_name(&record.state);
        tracing::info!(step = name, state, generation = record.generation, "recorded");
        if let Some(deployment) = record.state.deployment().or(before.as_ref()) {
            let came_up = *step == Step::Activated && deployment.target == self.booted().group();
            let words = if came_up { "it came up: probation begins".to_owned() } else { step_in_words(step) };
            self.tell_of(deployment, if came_up { "came-up" } else { name }, words, Vec::new());
        }
        if record.state == State::Idle {
            self.report_end();
        }
        Ok(())
    }

    /// Adds a line to the story of the deployment on its way; says nothing where there is none.
    pub fn tell(&self, what: &str, detail: String, checks: Vec<CheckView>) {
        if let Some(deployment) = self.record().state.deployment() {
            self.tell_of(deployment, what, detail, checks);
        }
    }

    fn tell_of(&self, deployment: &Deployment, what: &str, detail: String, checks: Vec<CheckView>) {
        let uptime = self.uptime().unwrap_or_default().as_secs();
        let running = self.release.version.clone();
        let (at, boot, what) = (clock::now().as_second(), self.boot_id.0.clone(), what.to_owned());
        let event = Event { at, uptime, boot, running, what, detail, checks };
        self.stories.tell(&deployment.id, &event);
    }

    /// A deployment has ended: the report of a failure is left behind, or taken away by a success.
    fn report_end(&self) {
        let history = &self.record().history;
        self.stories.keep(&history.iter().map(|entry| &entry.deployment.id).collect::<Vec<_>>());
        if let Some(last) = history.last() {
            self.stories.report(last);
        }
    }

    /// Time since this boot.
    ///
    /// # Errors
    /// [`DeviceError::File`].
    pub fn uptime(&self) -> Result<Duration, DeviceError> {
        uptime(&self.paths)
    }

    /// The slots of the group that may be written.
    pub fn target_slots(&self) -> impl Iterator<Item = &Slot> {
        let target = self.booted().target().group();
        self.layout.slots.iter().filter(move |slot| slot.group == target)
    }

    /// All slots, as they are shown.
    #[must_use]
    pub fn slot_views(&self) -> Vec<SlotView> {
        let view = |slot: &Slot| SlotView {
            role: slot.role.clone(),
            group: slot.group,
            device: slot.device.display().to_string(),
            size: slot.size,
            partuuid: slot.partuuid.clone(),
        };
        self.layout.slots.iter().map(view).collect()
    }
}

/// What can be found without the record: enough for those who only look.
pub struct Parts {
    /// What the booted root says it is.
    pub release: Release,
    /// Its slots.
    pub layout: Layout,
    /// The loader.
    pub loader: Loader,
    /// This boot.
    pub boot_id: BootId,
}

impl Parts {
    /// Finds slots, loader and release.
    ///
    /// # Errors
    /// [`DeviceError`].
    pub fn find(paths: &Paths, config: &Config) -> Result<Self, DeviceError> {
        let release = read_release(paths)?;
        let layout = locate(&sysfs(paths), &slot_table(config)?)?;
        let loader = Loader::new(paths, &config.boot, &layout);
        let boot_id = BootId(read_text(paths.boot_id())?.trim().to_owned());
        Ok(Parts { release, layout, loader, boot_id })
    }
}

fn slot_table(config: &Config) -> Result<SlotTable, DiskError> {
    let role = |(role, pair): (&String, &SlotPair)| {
        Ok(SlotRole { role: role.clone(), a: pair.a.parse()?, b: pair.b.parse()? })
    };
    Ok(SlotTable { roles: config.slots.iter().map(role).collect::<Result<_, DiskError>>()? })
}

/// The system's view of disks, below the agent's root.
#[must_use]
pub fn sysfs(paths: &Paths) -> Sysfs {
    Sysfs { root: paths.root().to_owned() }
}

/// Time since this boot.
///
/// # Errors
/// [`DeviceError::File`].
pub fn uptime(paths: &Paths) -> Result<Duration, DeviceError> {
    let path = paths.uptime();
    let text = read_text(path.clone())?;
    let seconds = text.split_ascii_whitespace().next().and_then(|word| word.parse::<f64>().ok());
    let duration = seconds.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
    duration.ok_or_else(|| DeviceError::File { path, source: std::io::ErrorKind::InvalidData.into() })
}

fn read_text(path: PathBuf) -> Result<String, DeviceError> {
    let read = durable::read_bounded(&path, RELEASE_LIMIT)
        .and_then(|bytes| String::from_utf8(bytes).map_err(|_| std::io::ErrorKind::InvalidData.into()));
    read.map_err(|source| DeviceError::File { path, source })
}

fn read_release(paths: &Paths) -> Result<Release, DeviceError> {
    let path = paths.release();
    let text = read_text(path.clone())?;
    toml::from_str(&text).map_err(|source| DeviceError::Release { path, source })
}

/// A watchdog that ran just before, or a daemon that was just killed, may hold the lock for a moment longer.
fn open_store(directory: &std::path::Path) -> Result<Store, StateError> {
    const PATIENCE: u32 = 50;
    for _ in 0..PATIENCE {
        match Store::open(directory) {
            Err(StateError::Locked { .. }) => std::thread::sleep(Duration::from_millis(100)),
            outcome => return outcome,
        }
    }
    Store::open(directory)
}
