//! What is on the boot partition of a disk that starts through U-Boot: our script, and both copies of the environment.

use std::fs;
use std::path::Path;

use bascule_boot::BootBackend;
use bascule_boot::uboot::config::{Copies, EnvConfig, Place};
use bascule_boot::uboot::{FALLBACK, UbootBackend};
use bascule_core::{BootedGroup, Group};

use super::error::DiskError;
use super::{Arch, DiskSpec};

/// Bytes of one copy, as both `bootloader-glue/uboot/qemu-*.config` have it.
const ENVIRONMENT_BYTES: usize = 0x4000;
/// Where a copy has its flag, which its checksum does not cover.
const FLAG_AT: usize = 4;
const COPIES: [&str; 2] = ["uboot.env", "uboot-redund.env"];
const SCRIPT: &str = "boot.scr";
const INITIAL: &str = "u-boot-initial-env";
/// The variable with the board's own kernel arguments.
const ARGUMENTS: &str = "bascule_args=";

/// What is added to an initial environment that has no such arguments: those of QEMU's machines.
fn arguments(arch: Arch) -> &'static str {
    match arch {
        Arch::X86_64 => "console=ttyS0",
        Arch::Aarch64 => "console=ttyAMA0",
    }
}

/// The files, by their paths on the partition. The folder of boot files holds the packed script and what U-Boot's own
/// build calls its initial environment.
pub(super) fn files(spec: &DiskSpec, arch: Arch, scratch: &Path) -> Result<Vec<(String, Vec<u8>)>, DiskError> {
    let folder = scratch.join("uboot");
    let failed = DiskError::at("writing", &folder);
    fs::create_dir_all(&folder).map_err(&failed)?;
    let given = |name: &str| {
        let path = spec.boot_files.join(name);
        fs::read(&path).map_err(DiskError::at("reading the loader's file", &path))
    };
    let mut initial = given(INITIAL)?;
    if !initial.split(|byte| *byte == b'\n').any(|line| line.starts_with(ARGUMENTS.as_bytes())) {
        initial.extend_from_slice(format!("{ARGUMENTS}{}\n", arguments(arch)).as_bytes());
    }
    fs::write(folder.join(INITIAL), initial).map_err(&failed)?;
    fs::write(folder.join(SCRIPT), given(SCRIPT)?).map_err(&failed)?;
    // The backend makes lost settings anew: that is what a new device has.
    let places = COPIES.map(|name| Place { path: folder.join(name), offset: 0 });
    let config = EnvConfig { copies: Copies::Redundant(places), size: ENVIRONMENT_BYTES };
    let backend = UbootBackend::new(config, folder.clone()).map_err(|error| DiskError::Entry(error.to_string()))?;
    let target = BootedGroup::proven(Group::A).target();
    backend.mark_unbootable(target).map_err(|error| DiskError::Entry(error.to_string()))?;
    // It has written one copy. The other is the same and one write older, so that neither has to be created on the device.
    let [first, second] = COPIES.map(|name| folder.join(name));
    let mut older = fs::read(&first).map_err(DiskError::at("reading", &first))?;
    if let Some(flag) = older.get_mut(FLAG_AT) {
        *flag = flag.wrapping_sub(1);
    }
    fs::write(&second, older).map_err(&failed)?;
    let made = [COPIES[0], COPIES[1], FALLBACK, SCRIPT, INITIAL];
    made.into_iter()
        .map(|name| {
            let path = folder.join(name);
            Ok((name.to_owned(), fs::read(&path).map_err(DiskError::at("reading", &path))?))
        })
        .collect()
}
