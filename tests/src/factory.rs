//! Factory disks: one of the demo's systems on a disk that starts through one of the boot loaders.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use bascule_core::Group;
use bascule_image::disk::{Arch, DiskSpec, Entries, Loader, Sizes, SlotContent, create_disk_for};

use crate::Images;
use crate::Machine;
use crate::machine::Boot;

const MIB: u64 = 1 << 20;
/// For the one start in the factory.
const PATIENCE: Duration = Duration::from_secs(20 * 60);
/// The second of the year 2023 that all time stamps get.
const EPOCH: u64 = 1_700_000_000;

/// How large the partitions are.
const SIZES: Sizes = Sizes { esp: 128 * MIB, slot: 512 * MIB, data: 64 * MIB };
/// The second partition, which lies between the boot partition and the slots.
const SECOND: u64 = MIB;

/// Where the boot partition begins on a factory disk, and its size; in bytes.
pub(crate) const BOOT_PARTITION: (u64, u64) = (MIB, SIZES.esp);
/// Where the first of the two slots begins, and the size of each; in bytes.
pub(crate) const SLOTS: (u64, u64) = (MIB + SIZES.esp + SECOND, SIZES.slot);
/// Where the data partition begins, in bytes.
pub(crate) const DATA_PARTITION: u64 = MIB + SIZES.esp + SECOND + 2 * SIZES.slot;

/// The loaders that the demo knows, as its command line names them.
pub const LOADERS: [(&str, Loader); 5] = [
    ("grub", Loader::Grub),
    ("grub-bios", Loader::GrubBios),
    ("systemd-boot", Loader::SystemdBoot),
    ("uboot", Loader::Uboot),
    ("efi", Loader::Efi),
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

/// The loader of the disk that is made with the images, and of a demo that is not told of one.
#[must_use]
pub fn usual_loader(images: &Images) -> Loader {
    match (images.arch, images.entries) {
        (Arch::X86_64, Entries::Texts) => Loader::Grub,
        (Arch::X86_64, Entries::Images) => Loader::SystemdBoot,
        (Arch::Aarch64, _) => Loader::Uboot,
    }
}

/// How a machine with such a disk starts.
#[must_use]
pub fn boot(loader: Loader) -> Boot {
    match loader {
        Loader::Grub | Loader::SystemdBoot | Loader::Efi => Boot::Firmware,
        Loader::Uboot => Boot::Uboot,
        Loader::GrubBios => Boot::Bios,
    }
}

/// How often a new system is started without a commit before the old one is.
#[must_use]
pub fn tries(loader: Loader) -> u32 {
    if loader == Loader::Efi { 1 } else { 3 }
}

/// What a factory does to a machine beside writing its disk: firmware that starts kernels itself is told about them, by the
/// real `efibootmgr` in the machine, which for that once starts its kernel another way.
///
/// # Errors
/// When the machine does not come up, or its firmware keeps no variables.
pub fn finish(machine: &mut Machine) -> Result<()> {
    if machine.loader() != Loader::Efi {
        return Ok(());
    }
    make_load_options(machine, Group::A)
}

/// Makes both load options, with `first` first in the firmware's order and the other one not in it; the machine starts with
/// that group's root for it.
///
/// # Errors
/// Like [`finish`].
pub(crate) fn make_load_options(machine: &mut Machine, first: Group) -> Result<()> {
    let root = "root=PARTUUID=$(blkid -s PARTUUID -o value /dev/disk/by-partlabel/root-$group)";
    let arguments = format!("{root} rootwait panic=-1 quiet console=ttyS0 bascule.group=$group");
    let create = format!(
        "efibootmgr -q -$how -b BA5$group -d /dev/nvme0n1 -p 1 -L \"Bascule $group\" -l \"\\\\bascule\\\\$group\\\\linux\" -u \"{arguments}\""
    );
    let partition = if first == Group::A { 3 } else { 4 };
    machine.start_kernel(&format!("root=/dev/nvme0n1p{partition} rootwait panic=-1 quiet console=ttyS0"))?;
    machine.wait_ready(PATIENCE)?;
    // -c puts it first into the order, -C does not put it there. EDK II takes the lowest number that is not in the order for
    // an entry of its own, whether there is an entry of that number or not: ours have high ones.
    let (second, first) = (first.opposite().letter(), first.letter());
    machine.succeed(&format!("group={second} how=C; {create} && group={first} how=c; {create} && efibootmgr"))?;
    machine.begin("systemctl poweroff")?;
    machine.wait_for_stop(PATIENCE).map(drop)
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
        entries: images.entries,
        grub_modules: None,
        sizes: SIZES,
        seed: "bascule demo".into(),
        epoch: EPOCH,
    };
    create_disk_for(images.arch, &spec, to).map(drop).context("cannot make the factory disk")
}
