//! GRUB where the firmware is a BIOS: its first sector before the partition table, the rest in a partition of its own.
//!
//! ```text
//! sector 0             boot.img: loads the first sector of GRUB's core (its number is at byte 92)
//! partition bios-boot  core.img: its own first sector loads the rest (a list of blocks ends at byte 512)
//! partition esp        bascule/{grub.cfg, grubenv, fallback}, as with UEFI
//! ```
//! The two places are those of GRUB's own `boot.S` and `diskboot.S`; `grub-install` would fill them in the same way, with
//! a mounted disk.

use std::ffi::OsString;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use super::error::DiskError;
use super::layout::Part;
use super::{DiskSpec, esp, tool};

const SECTOR: usize = 512;
/// What comes after this in the first sector belongs to the partition table.
const CODE_BYTES: usize = 440;
/// Where `boot.img` keeps the number of the sector that it loads, 8 bytes.
const CORE_SECTOR_AT: usize = 92;
/// Where the first sector of `core.img` keeps the number of the next one, 8 bytes; how many there are follows it.
const NEXT_SECTOR_AT: usize = 500;
/// Where Debian's package grub-pc-bin has its modules.
const MODULES: &str = "/usr/lib/grub/i386-pc";

/// Makes `core.img` for the partition, which is `part`, in `place`.
pub(super) fn create_core(spec: &DiskSpec, part: &Part, place: &Path) -> Result<(), DiskError> {
    let modules = esp::modules(spec)?;
    let mut arguments: Vec<OsString> = ["-O", "i386-pc", "-p", "(,gpt1)/bascule", "-o"].map(OsString::from).into();
    arguments.extend([place.into(), "-c".into(), spec.boot_files.join("early.cfg").into()]);
    arguments.extend(["-d".into(), directory(spec).into()]);
    arguments.extend(["biosdisk".into()]);
    arguments.extend(modules.into_iter().map(OsString::from));
    tool::run("grub-mkimage", arguments, &[("SOURCE_DATE_EPOCH", spec.epoch.to_string())])?;
    let mut core = fs::read(place).map_err(DiskError::at("reading", place))?;
    put_number(&mut core, NEXT_SECTOR_AT, (part.offset / SECTOR as u64).saturating_add(1), place)?;
    fs::write(place, core).map_err(DiskError::at("writing", place))
}

/// Puts `boot.img` before the table of the disk, pointing to the core in `part`.
pub(super) fn write_first_sector(spec: &DiskSpec, disk: &File, part: &Part) -> Result<(), DiskError> {
    let path = directory(spec).join("boot.img");
    let mut code = fs::read(&path).map_err(DiskError::at("reading GRUB's", &path))?;
    put_number(&mut code, CORE_SECTOR_AT, part.offset / SECTOR as u64, &path)?;
    code.truncate(CODE_BYTES);
    disk.write_all_at(&code, 0).map_err(DiskError::at("writing the first sector from", &path))
}

fn directory(spec: &DiskSpec) -> PathBuf {
    spec.grub_modules.clone().unwrap_or_else(|| MODULES.into())
}

fn put_number(image: &mut [u8], at: usize, number: u64, path: &Path) -> Result<(), DiskError> {
    let fault = "is shorter than a sector: it is no part of GRUB";
    let short = || DiskError::BootFile { path: path.to_owned(), fault };
    image.get(..SECTOR).ok_or_else(short)?;
    let place = image.get_mut(at..at.saturating_add(8)).ok_or_else(short)?;
    place.copy_from_slice(&number.to_le_bytes());
    Ok(())
}
