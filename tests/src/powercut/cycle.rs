//! Records one whole cycle of the real agent, from the offer to rest, across its restarts.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use anyhow::{Result, bail, ensure};
use bascule_core::Group;

use super::disk::{Disk, Fate, Tree};
use super::trace::{self, Effect};
use super::{DIRECTORIES, FALLBACK, GRUBENV, SLOTS};
use crate::rehearsal::{Boot, Rehearsal, System, SystemSpec, Temper, Vendor};

/// More starts than any cycle takes.
const MOST_STARTS: usize = 8;

/// Where a cycle begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Begin {
    /// The factory's system runs from `a`; group `b` is empty.
    Factory,
    /// A second system was committed in `b`, and the power was cut before the loader's fallback was changed from `a`.
    SecondUpdate,
    /// As [`Begin::Factory`], and what is offered is an update of the factory's system, installed by delta.
    Delta,
}

/// One kind of cycle.
#[derive(Debug, Clone, Copy)]
pub struct Scenario {
    /// For messages.
    pub name: &'static str,
    /// Where it begins.
    pub begin: Begin,
    /// What the offered system is like.
    pub temper: Temper,
}

/// A recorded cycle.
#[derive(Debug)]
pub struct Recording {
    /// What was recorded.
    pub scenario: Scenario,
    /// Everything on the disk before.
    pub(super) start: Tree,
    /// What happened to it, in order.
    pub log: Vec<Effect>,
    /// Everything on the disk after.
    pub(super) end: Tree,
    /// The group that ran at the start.
    pub(super) booted: Group,
    /// What ran at the start.
    pub(super) running: System,
    /// What was offered.
    pub(super) offered: System,
    pub(super) systems: Vec<System>,
    pub(super) vendor: Vendor,
}

impl Recording {
    /// Runs the cycle and records it.
    ///
    /// # Errors
    /// When the agent fails, or the log does not explain the disk at the end.
    pub fn make(scenario: Scenario) -> Result<Self> {
        let vendor = Vendor::new()?;
        let factory = vendor.system(1, Temper::Good)?;
        let second = vendor.system(2, Temper::Good)?;
        let offered = match scenario.begin {
            Begin::Delta => {
                vendor.make(SystemSpec { temper: scenario.temper, ..SystemSpec::update_of(&factory, 3) })?
            }
            Begin::Factory | Begin::SecondUpdate => vendor.system(3, scenario.temper)?,
        };
        let systems = vec![factory.clone(), second.clone(), offered.clone()];
        // On a file system of the host, which mostly knows O_DIRECT and zeroing by command as a device does.
        let dir = tempfile::tempdir()?;
        let mut device = Rehearsal::new_in(&dir.path().join("device"), &vendor, &factory, &systems)?;
        let mut running = factory;
        if scenario.begin == Begin::SecondUpdate {
            device.boot()?;
            ensure!(device.install(&second.bundle)?.wants_reboot(), "the second system is not installed");
            device.settle(3)?;
            fs::write(device.fallback(), bascule_boot::grub::FACTORY_FALLBACK)?;
            running = second;
        }
        let Boot::Up { group: booted, .. } = device.boot()? else { bail!("the device does not come up") };
        let start = snapshot(device.root())?;
        let log = record(&mut device, &offered)?;
        let end = snapshot(device.root())?;
        let recording = Recording { scenario, start, log, end, booted, running, offered, systems, vendor };
        recording.check_itself()?;
        Ok(recording)
    }

    /// The log explains the disk: replayed whole on the start it gives the end, and nothing is left unsynced.
    fn check_itself(&self) -> Result<()> {
        let mut disk = Disk::new(&self.start)?;
        for (id, effect) in self.log.iter().enumerate() {
            disk.apply(id, effect)?;
        }
        let replayed = disk.after_cut(|_| Fate::Whole);
        let differing: Vec<&String> =
            self.end.keys().filter(|path| replayed.get(*path) != self.end.get(*path)).collect();
        ensure!(replayed == self.end, "the log does not explain the disk: {differing:?} differ");
        Ok(())
    }
}

fn record(device: &mut Rehearsal, offered: &System) -> Result<Vec<Effect>> {
    let mut install = device.command(&["run-to-rest", "--install"]);
    install.arg(&offered.bundle);
    let (code, mut log) = traced(device, &install)?;
    go_on(device, code, &mut log)?;
    Ok(log)
}

/// Starts the device until the agent rests.
fn go_on(device: &mut Rehearsal, mut code: Option<i32>, log: &mut Vec<Effect>) -> Result<()> {
    for _ in 0..MOST_STARTS {
        match code {
            Some(0) => return Ok(()),
            Some(4) => {}
            _ => bail!("the agent ended with {code:?}"),
        }
        let before = fs::read(device.grubenv())?;
        let boot = device.boot()?;
        let (Boot::Up { group, .. } | Boot::Panicked { group, .. }) = boot;
        if !matches!(log.last(), Some(Effect::Restart(_) | Effect::Loader(_))) {
            log.push(Effect::Asked(group));
        }
        log.push(Effect::Restart(group));
        let after = fs::read(device.grubenv())?;
        if after != before {
            log.push(Effect::Loader(after));
        }
        if matches!(boot, Boot::Up { .. }) {
            code = run_once(device, log)?;
        }
    }
    bail!("the cycle does not come to rest")
}

/// The watchdog, then the agent, as at every start.
fn run_once(device: &Rehearsal, log: &mut Vec<Effect>) -> Result<Option<i32>> {
    let (watched, effects) = traced(device, &device.command(&["rollback-altboot"]))?;
    ensure!(watched == Some(0), "rollback-altboot ended with {watched:?}");
    log.extend(effects);
    let (code, effects) = traced(device, &device.command(&[device.program_of_boot()?]))?;
    log.extend(effects);
    device.code_of_boot(code)
}

/// The rest of a cycle after a cut: from the first start that reaches the agent, to rest.
#[derive(Debug)]
pub(super) struct Leg {
    pub(super) start: Tree,
    pub(super) booted: Group,
    pub(super) log: Vec<Effect>,
}

impl Leg {
    /// Starts the device, and records the agent until it rests.
    pub(super) fn make(device: &mut Rehearsal) -> Result<Self> {
        for _ in 0..MOST_STARTS {
            let Boot::Up { group: booted, .. } = device.boot()? else { continue };
            let (start, mut log) = (snapshot(device.root())?, Vec::new());
            let code = run_once(device, &mut log)?;
            go_on(device, code, &mut log)?;
            return Ok(Leg { start, booted, log });
        }
        bail!("the device does not come up")
    }
}

/// Runs the agent. That it ends well says that everything it recorded is durable, whether it was logged or not.
fn traced(device: &Rehearsal, command: &Command) -> Result<(Option<i32>, Vec<Effect>)> {
    let before = device.record()?.generation;
    let (code, mut effects) = trace::run(command, device.root())?;
    let after = device.record()?.generation;
    let said = effects.contains(&Effect::Recorded(after));
    if after > before && !said {
        effects.push(Effect::Recorded(after));
    }
    Ok((code, effects))
}

/// Every file of the device's disk.
pub(super) fn snapshot(root: &Path) -> Result<Tree> {
    let mut tree = Tree::new();
    for directory in DIRECTORIES {
        for entry in fs::read_dir(root.join(directory))? {
            let name = entry?.file_name().to_string_lossy().into_owned();
            let path = format!("{directory}/{name}");
            let constant = name == "grub.cfg" || (directory == SLOTS && !is_slot(&name));
            if !constant && path != super::TOLD {
                tree.insert(path.clone(), Arc::new(fs::read(root.join(path))?));
            }
        }
    }
    ensure!(tree.contains_key(GRUBENV) && tree.contains_key(FALLBACK), "the loader's files are missing");
    Ok(tree)
}

fn is_slot(name: &str) -> bool {
    name.ends_with("p3") || name.ends_with("p4")
}

/// The path of a group's slot in a [`Tree`].
pub(super) fn slot(group: Group) -> &'static str {
    match group {
        Group::A => "dev/nvme0n1p3",
        Group::B => "dev/nvme0n1p4",
    }
}
