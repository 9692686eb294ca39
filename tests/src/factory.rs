//! Factory disks: one of the demo's systems on a disk that starts through one of the boot loaders.

use std::path::Path;

use anyhow::{Context, Result, bail};
use bascule_image::disk::{DiskSpec, Loader, Sizes, SlotContent, create_disk};

use crate::Images;
use crate::machine::Boot;

const MIB: u64 = 1 << 20;
/// The second of the year 2023 that all time stamps get.
const EPOCH: u64 = 1_700_000_000;

/// The loaders that the demo knows, as its command line names them.
pub const LOADERS: [(&str, Loader); 4] = [
    ("grub", Loader::Grub),
    ("grub-bios", Loader::GrubBios),
    ("systemd-boot", Loader::SystemdBoot),
    ("uboot", Loader::Uboot),
];

/// The loader of this name.
///
/// # Errors
/// When there is none.
pub fn loader(name: &str) -> Result<Loader> {
    match LOADERS.iter().find(|(known, _)| *known == name) {
        Some((_, loader)) => Ok(*loader),
        None => bail!("no loader {name:?}: it is one of {}", LOADERS.map(|(known, _)| known).join(", ")),
    }
}

/// The loader's name.
#[must_use]
pub fn name(loader: Loader) -> &'static str {
    LOADERS.iter().find(|(_, known)| *known == loader).map_or("", |(name, _)| name)
}

/// How a machine with such a disk starts.
#[must_use]
pub fn boot(loader: Loader) -> Boot {
    match loader {
        Loader::Grub | Loader::SystemdBoot => Boot::Firmware,
        Loader::Uboot => Boot::Uboot,
        Loader::GrubBios => Boot::Bios,
    }
}

/// Makes the disk `to`, with `system` in group a and nothing in group b.
///
/// # Errors
/// When there is no such system, or the disk cannot be made.
pub fn create(images: &Images, loader: Loader, system: &str, to: &Path) -> Result<()> {
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("no workspace above the tests")?;
    let spec = DiskSpec {
        root_a: SlotContent::Image(images.system(system)?.image.clone()),
        root_b: SlotContent::Empty,
        boot_files: match loader {
            Loader::Uboot => images.directory.join("uboot"),
            _ => workspace.join("bootloader-glue/grub"),
        },
        loader,
        grub_modules: None,
        sizes: Sizes { esp: 128 * MIB, slot: 512 * MIB, data: 64 * MIB },
        seed: "bascule demo".into(),
        epoch: EPOCH,
    };
    create_disk(&spec, to).map(drop).context("cannot make the factory disk")
}
