//! The power is cut around the switch: the disk is rebuilt from the log of every write and flush, as a drive may have it
//! after the cut, and the device starts with that.

use std::fs::{self, File};

use anyhow::{Context, Result, ensure};
use bascule_image::disk::Loader;

use super::{Scenario, UPDATED, but_efi, everywhere, only_efi, with_boot_files};
use crate::machine::Snapshot;
use crate::matrix::copying;
use crate::matrix::cuts::{Cut, Switch, before_the_record, first_write_of};
use crate::matrix::kept::{Kept, Recorded};
use crate::matrix::write_log::WriteLog;
use crate::scenes::guest::{PATIENCE, text_at};

pub(super) const FILES: Scenario = Scenario {
    name: "cut-files",
    about: "in the middle of copying the new system's boot files, anywhere; started with half of the kernel",
    is_on: with_boot_files,
    play: cut_files,
    end: |_| UPDATED.after(2),
};
pub(super) const BEFORE: Scenario = Scenario {
    name: "cut-before",
    about: "everything up to the last flush before the switch",
    is_on: everywhere,
    play: |kept| cut(kept, Cut::Before),
    end: |_| UPDATED.after(2),
};
pub(super) const TORN: Scenario = Scenario {
    name: "cut-torn",
    about: "the same, and the write that switches up to the first sector that it changes",
    is_on: |loader| !matches!(loader, Loader::Efi | Loader::SystemdBoot),
    play: |kept| cut(kept, Cut::Torn),
    end: |_| UPDATED,
};
pub(super) const DURING: Scenario = Scenario {
    name: "cut-during",
    about: "the same, and the write that switches, without what follows",
    is_on: but_efi,
    play: |kept| cut(kept, Cut::During),
    end: |_| UPDATED.after(1),
};
pub(super) const AFTER: Scenario = Scenario {
    name: "cut-after",
    about: "everything up to the flush that follows the switch",
    is_on: everywhere,
    play: |kept| cut(kept, Cut::After),
    end: |_| UPDATED.after(1),
};
pub(super) const EFI_TORN: Scenario = Scenario {
    name: "cut-torn",
    about: "the firmware was in the middle of writing BootNext",
    is_on: only_efi,
    play: |kept| cut_variables(kept, &CutVariables::InBootNext),
    end: |_| UPDATED.after(2),
};
pub(super) const EFI_BETWEEN: Scenario = Scenario {
    name: "cut-during",
    about: "BootNext is written, the mark is not",
    is_on: only_efi,
    play: |kept| cut_variables(kept, &CutVariables::BeforeTheMark),
    end: |_| UPDATED.after(1),
};

/// Where a log of firmware variables is cut.
enum CutVariables {
    BeforeBootNext,
    InBootNext,
    BeforeTheMark,
    Nowhere,
}

fn cut(kept: &mut Kept, cut: Cut) -> Result<String> {
    if kept.loader == Loader::Efi {
        let place = if cut == Cut::Before { CutVariables::BeforeBootNext } else { CutVariables::Nowhere };
        return cut_variables(kept, &place);
    }
    let recorded = kept.recorded()?;
    let log = WriteLog::open(&recorded.logs.disk)?;
    let searched = copied(kept, &recorded, "searched")?;
    let switch = Switch::find(&log, &searched.disk, kept.loader)?;
    kept.stage.say("log", switch.seen.clone(), "between the two flushes around the switch");
    let left = copied(kept, &recorded, "cut")?;
    switch.cut(&log, cut, &left.disk)?;
    kept.put(&left)?;
    let came_up_in = goes_on(kept)?;
    let whole = matches!(cut, Cut::During | Cut::After) || (cut == Cut::Torn && switch.one_sector_decides);
    let wanted = if whole { "b" } else { "a" };
    ensure!(came_up_in == wanted, "the device came up in group {came_up_in}, not {wanted}");
    Ok(match cut {
        Cut::Before => format!("group {came_up_in} first; {}", switch.seen),
        _ => format!("group {came_up_in} first"),
    })
}

/// The loader's choice is in the firmware's variables: their log is cut, and the disk's is cut where the record does not
/// say yet that the loader is armed.
fn cut_variables(kept: &mut Kept, place: &CutVariables) -> Result<String> {
    let recorded = kept.recorded()?;
    let (disk, variables) = (WriteLog::open(&recorded.logs.disk)?, WriteLog::open(&recorded.logs.variables)?);
    let searched = copied(kept, &recorded, "searched")?;
    let (count, wanted) = match place {
        CutVariables::BeforeBootNext => (first_write_of(&variables, &searched.variables, "BootNext")?, "a"),
        CutVariables::InBootNext => (first_write_of(&variables, &searched.variables, "BootNext")? + 1, "a"),
        CutVariables::BeforeTheMark => (first_write_of(&variables, &searched.variables, "BasculeTrial")?, "b"),
        CutVariables::Nowhere => (variables.entries.len(), "b"),
    };
    let left = copied(kept, &recorded, "cut")?;
    let chip = File::options().read(true).write(true).open(&left.variables)?;
    variables.replay(0..count, &chip)?;
    let drive = File::options().read(true).write(true).open(&left.disk)?;
    disk.replay(0..before_the_record(&disk)?, &drive)?;
    kept.put(&left)?;
    let came_up_in = goes_on(kept)?;
    ensure!(came_up_in == wanted, "the device came up in group {came_up_in}, not {wanted}");
    Ok(format!("group {came_up_in} first"))
}

/// Every boot partition that a cut before the switch leaves has the running group's files whole; then the device starts from
/// one on which half of the new kernel is there, in the middle of a write.
fn cut_files(kept: &mut Kept) -> Result<String> {
    let recorded = kept.recorded()?;
    let log = WriteLog::open(&recorded.logs.disk)?;
    let searched = copied(kept, &recorded, "searched")?;
    let end = match kept.loader {
        Loader::Efi => before_the_record(&log)?,
        loader => Switch::find(&log, &searched.disk, loader)?.begins(),
    };
    let scratch = tempfile::tempdir_in(searched.disk.parent().context("a disk without a folder")?)?;
    let looked = copying::look(&log, &recorded.before.disk, end, kept.loader, scratch.path())?;
    let seen = format!("{} boot partitions around {} flushes, each with group a whole", looked.count, looked.flushes);
    kept.stage.say("log", seen.clone(), "and no length without clusters");
    let left = copied(kept, &recorded, "cut")?;
    looked.middle.make(&log, &left.disk)?;
    if kept.loader == Loader::Efi {
        // Nothing was told to the firmware that early but that group b is not to be started.
        let variables = WriteLog::open(&recorded.logs.variables)?;
        let first = first_write_of(&variables, &searched.variables, "BootNext")?;
        variables.replay(0..first, &File::options().read(true).write(true).open(&left.variables)?)?;
    }
    kept.put(&left)?;
    let came_up_in = goes_on(kept)?;
    ensure!(came_up_in == "a", "the device came up in group {came_up_in}");
    kept.stage.machine.succeed("cmp /boot/vmlinuz /boot/efi/bascule/b/linux")?;
    Ok(format!("group a first; {seen}"))
}

/// A copy of the device before the logged boot.
fn copied(kept: &Kept, recorded: &Recorded, name: &str) -> Result<Snapshot> {
    let place = kept.place(name);
    fs::remove_file(&place.disk).ok();
    crate::machine::copy_sparse(&recorded.before.disk, &place.disk)?;
    fs::copy(&recorded.before.variables, &place.variables)?;
    Ok(place)
}

/// Starts the device that was cut off and follows it until v2 is committed; the group that came up first.
fn goes_on(kept: &mut Kept) -> Result<String> {
    kept.stage.machine.start()?;
    kept.stage.machine.wait_ready(PATIENCE)?;
    let status = kept.stage.status()?;
    let group = text_at(&status, "/booted");
    kept.stage.say("device", format!("came up in group {group}"), &text_at(&status, "/details"));
    if group == "a" {
        kept.stage.wait_for_state(&["activated"])?;
        kept.stage.follow_into_target(&status)?;
    }
    kept.is_committed()?;
    Ok(group)
}
