//! The Raspberry Pi backend: `autoboot.txt` on the first partition, and the firmware's one-shot flag `tryboot`.
//!
//! The firmware goes to the partition that [`autoboot.txt`](file) names under `[all]`, and to the one under `[tryboot]`
//! when the reboot was called with the argument `0 tryboot`. Each group has a boot partition of its own (the slots of the
//! role `boot`), with firmware files, kernel and a `cmdline.txt` whose `root=` is that group's. In this table `b` is the
//! target, `2` and `3` are the partitions:
//!
//! | state | `[all]` | `[tryboot]` | last line | plain start | start with the flag |
//! |---|---|---|---|---|---|
//! | `b` is unbootable, may be half written | 2 | 2 | `b=bad` | `a` | `a` |
//! | activated | 2 | 3 | `b=trial` | `a` | `b` |
//! | the reboot is on its way | 2 | 3 | `b=sent BOOT-ID` | `a` | `b` |
//! | on trial, or fallen back: exhausted | 2 | 3 | the same | `a` | `b`, but nobody sets it |
//! | committed | 3 | 3 | `a=good` | `b` | `b` |
//! | rolled back | 2 | 2 | `b=bad` | `a` | `a` |
//!
//! Each act is one write of the one sector that the file is. `activate` makes the trial possible; it begins when
//! [`reboot_argument`](BootBackend::reboot_argument), which is asked last of all, has written `sent` and the reboot carries
//! the argument. Without it, and after every cut, the firmware starts what stands under `[all]`, which is good.
//!
//! There is one start, whatever number `activate` is given: the policy must grant one.
//!
//! # What the last line is for
//!
//! The firmware keeps no trace of a trial. A target that is `trial` in a later boot was never started with the flag: that is
//! no verdict on it. One that was `sent` in an earlier boot had its start: exhausted. Said openly: between that write and the
//! reset lies the shutdown; when power fails in these seconds, a target counts as exhausted that was not tried, and its bundle
//! is denied (`bascule allow` takes that back). Writing nothing would be worse: a target that hangs would never be denied.
//!
//! # FAT, and what is not safe
//!
//! `autoboot.txt` is 512 bytes long, one sector of one cluster, overwritten where it lies: never truncated, renamed over,
//! lengthened or made. A file of any other shape is refused ([`TrybootError::Shape`]), not rewritten. There is no second copy:
//! if the medium loses that very sector, or makes garbage of it when power fails under the write, the firmware takes the first
//! partition that it can start, group `a`'s as a rule, be it half written or not. Only such garbage of the right length is
//! rebuilt, by the next [`mark_unbootable`](BootBackend::mark_unbootable) or [`mark_good`](BootBackend::mark_good). With
//! `PARTITION_WALK=1` in the EEPROM the firmware also looks for another partition when the good one cannot be read.
//!
//! # Sources
//!
//! Raspberry Pi's documentation of `autoboot.txt`, `tryboot` and the properties below `chosen/bootloader` in the device
//! tree. A kernel has to hand the argument to the firmware: Raspberry Pi's own does, the one of kernel.org does not.

mod error;
pub mod file;
pub mod simulator;
mod store;

use std::fs;
use std::io;
use std::path::PathBuf;

use bascule_core::{BootStatus, BootView, BootedGroup, Group, Settings, TargetGroup, Tries};

use crate::{BootBackend, BootError};

pub use error::TrybootError;
pub use file::FILE_LEN;
use file::{Choice, Fault, Other, is_boot_id, partition};

/// The file's name.
pub const FILE: &str = "autoboot.txt";

/// What the reboot is called with: the partition (0 leaves it to the file), and the flag.
pub const ARGUMENT: &str = "0 tryboot";

/// What the kernel says about this boot.
#[derive(Debug, Clone)]
pub struct ThisBoot {
    /// The file with the identifier of this boot.
    pub boot_id: PathBuf,
    /// The folder of the device tree with what the firmware did: `partition` and `tryboot`.
    pub bootloader: PathBuf,
}

/// Keeps the choice of group in `autoboot.txt`.
#[derive(Debug, Clone)]
pub struct TrybootBackend {
    path: PathBuf,
    partitions: [u32; 2],
    this_boot: ThisBoot,
}

impl TrybootBackend {
    /// A backend for the boot partition that is mounted at `dir`, and the numbers of the boot partitions of groups `a`
    /// and `b`.
    #[must_use]
    pub fn new(dir: &std::path::Path, partitions: [u32; 2], this_boot: ThisBoot) -> Self {
        TrybootBackend { path: dir.join(FILE), partitions, this_boot }
    }

    /// What a new device's file holds: group `a` good, group `b` unbootable.
    #[must_use]
    pub fn factory(partitions: [u32; 2]) -> Vec<u8> {
        Choice { first: Group::A, other: Other::Bad }.to_bytes(partitions)
    }

    /// `None` when the sector holds nothing that anybody wrote.
    fn stored(&self, booted: Group) -> Result<Option<Choice>, BootError> {
        self.check_started(booted)?;
        match fs::symlink_metadata(&self.path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let dir = self.path.parent().unwrap_or(&self.path).to_owned();
                return Err(BootError::NotTheLoaders { dir, missing: FILE });
            }
            _ => {}
        }
        match Choice::parse(&store::read(&self.path)?, self.partitions) {
            Ok(choice) => Ok(Some(choice)),
            Err(Fault::Damaged) => Ok(None),
            Err(Fault::Foreign(what)) => {
                Err(TrybootError::Shape { path: self.path.clone(), what: what.to_owned() }.into())
            }
        }
    }

    fn put(&self, first: Group, other: Other) -> Result<(), BootError> {
        store::put(&self.path, &Choice { first, other }.to_bytes(self.partitions))
    }

    /// Refuses a kernel of one group on the root of the other one.
    fn check_started(&self, booted: Group) -> Result<(), BootError> {
        let expected = partition(self.partitions, booted);
        match self.property("partition")? {
            Some(seen) if seen != 0 && seen != expected => {
                Err(TrybootError::OtherPartition { partition: seen, group: booted, expected }.into())
            }
            _ => Ok(()),
        }
    }

    /// A number of the firmware's; `None` from firmware that says no such thing.
    fn property(&self, name: &str) -> Result<Option<u32>, BootError> {
        let path = self.this_boot.bootloader.join(name);
        match fs::read(&path) {
            Ok(bytes) => Ok(bytes.try_into().ok().map(u32::from_be_bytes)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(BootError::Read { path, source }),
        }
    }

    fn boot_id(&self) -> Result<String, BootError> {
        let path = self.this_boot.boot_id.clone();
        let text = fs::read_to_string(&path);
        match text.map(|text| text.trim().to_owned()) {
            Ok(text) if is_boot_id(&text) => Ok(text),
            Ok(_) => Err(BootError::Read { path, source: io::ErrorKind::InvalidData.into() }),
            Err(source) => Err(BootError::Read { path, source }),
        }
    }

    fn status(&self, choice: &Choice, group: Group, booted: Group) -> Result<BootStatus, BootError> {
        Ok(match &choice.other {
            _ if group == choice.first => BootStatus::Good,
            Other::Good => BootStatus::Good,
            Other::Bad => BootStatus::Unbootable,
            // It runs: its one start is what this is.
            _ if group == booted => BootStatus::Exhausted,
            Other::Trial => BootStatus::Trial { tries_left: 1 },
            Other::Sent(boot_id) if *boot_id == self.boot_id()? => BootStatus::Trial { tries_left: 1 },
            Other::Sent(_) => BootStatus::Exhausted,
        })
    }

    /// With nothing to go by, a group that was started without the flag is good.
    fn is_good(&self, choice: Option<&Choice>, booted: Group) -> Result<bool, BootError> {
        match choice {
            Some(choice) => Ok(self.status(choice, booted, booted)? == BootStatus::Good),
            None => Ok(self.property("tryboot")? != Some(1)),
        }
    }
}

impl BootBackend for TrybootBackend {
    fn name(&self) -> &'static str {
        "rpi-tryboot"
    }

    fn view(&self, booted: BootedGroup) -> Result<BootView, BootError> {
        let booted = booted.group();
        let Some(choice) = self.stored(booted)? else {
            let own = if self.is_good(None, booted)? { BootStatus::Good } else { BootStatus::Exhausted };
            let [a, b] = Group::ALL.map(|group| if group == booted { own } else { BootStatus::Unbootable });
            return Ok(BootView { settings: Settings::Damaged, primary: booted, a, b });
        };
        let [a, b] = [self.status(&choice, Group::A, booted)?, self.status(&choice, Group::B, booted)?];
        let other = choice.first.opposite();
        let of_other = if other == Group::A { a } else { b };
        let primary = if matches!(of_other, BootStatus::Trial { .. }) { other } else { choice.first };
        Ok(BootView { settings: Settings::Intact, primary, a, b })
    }

    fn mark_unbootable(&self, target: TargetGroup) -> Result<(), BootError> {
        let booted = target.group().opposite();
        if !self.is_good(self.stored(booted)?.as_ref(), booted)? {
            // Stopping here is safe: nothing was written.
            return Err(BootError::NoGoodGroup { act: "give the target group up", group: booted });
        }
        self.put(booted, Other::Bad)
    }

    fn activate(&self, target: TargetGroup, _tries: Tries) -> Result<(), BootError> {
        let booted = target.group().opposite();
        let Some(choice) = self.stored(booted)? else {
            let damage = "it holds nothing that anybody wrote".to_owned();
            return Err(BootError::Damaged { path: self.path.clone(), damage });
        };
        if !self.is_good(Some(&choice), booted)? {
            // Stopping here is safe: nothing was written.
            return Err(BootError::NoGoodGroup { act: "activate the target group", group: booted });
        }
        let is_on_its_way = matches!(self.status(&choice, target.group(), booted)?, BootStatus::Trial { .. });
        self.put(booted, if is_on_its_way { choice.other } else { Other::Trial })
    }

    fn mark_good(&self, booted: BootedGroup) -> Result<(), BootError> {
        let booted = booted.group();
        let other = match self.stored(booted)? {
            // It was first, so it is good.
            Some(choice) if choice.first != booted => Other::Good,
            // An armed one would come before the booted group.
            Some(Choice { other: Other::Trial, .. }) | None => Other::Bad,
            Some(choice) => match self.status(&choice, booted.opposite(), booted)? {
                BootStatus::Trial { .. } => Other::Bad,
                _ => choice.other,
            },
        };
        self.put(booted, other)
    }

    fn roll_back(&self, booted: BootedGroup) -> Result<(), BootError> {
        let (booted, opposite) = (booted.group(), booted.group().opposite());
        let way_back = match self.stored(booted)? {
            Some(choice) => self.status(&choice, opposite, booted)? == BootStatus::Good,
            None => false,
        };
        if !way_back {
            // Stopping here is safe: nothing was written.
            return Err(BootError::NoGoodGroup { act: "go back to the opposite group", group: opposite });
        }
        self.put(opposite, Other::Bad)
    }

    fn reboot_argument(&self, booted: BootedGroup) -> Result<Option<&'static str>, BootError> {
        let booted = booted.group();
        let Some(choice) = self.stored(booted)?.filter(|choice| choice.first == booted) else { return Ok(None) };
        let boot_id = self.boot_id()?;
        match choice.other {
            Other::Trial => {}
            Other::Sent(sent) if sent == boot_id => {}
            _ => return Ok(None),
        }
        // The count first: a trial that could not be counted is not begun.
        self.put(booted, Other::Sent(boot_id))?;
        Ok(Some(ARGUMENT))
    }
}
