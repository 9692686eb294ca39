//! Makes an A/B disk image from a root tree, without privileges, loop devices or mounts.
//!
//! ```text
//! GPT  1 esp      FAT32: the loader, and what it goes by
//!      2 bootenv  1 MiB, reserved; with GRUB for a BIOS it is bios-boot, and holds GRUB's core
//!      3 root-a   ext4 of the tree
//!      4 root-b   zeroes, or ext4 of a second tree
//!      5 data     empty ext4
//! ```

mod bios;
mod boot_sets;
mod dots;
mod error;
mod esp;
mod ext4;
mod layout;
mod sdboot;
mod sparse;
mod tool;
mod uboot;

use std::fs::{self, File, OpenOptions};
use std::path::{Path, PathBuf};

pub use error::DiskError;
pub use ext4::{Ext4, FALLBACK_EPOCH};
pub use layout::{Part, Sizes, parts};

/// Where a root keeps the loader's files, below its tree.
pub const LOADER_FILES: &str = "usr/lib/bascule/boot/grub";
/// Where Debian's package systemd-boot-efi has the program of systemd-boot, on the host.
pub const SYSTEMD_BOOT_FILES: &str = "/usr/lib/systemd/boot/efi";

/// Which boot loader the disk starts with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Loader {
    /// GRUB, started by UEFI firmware.
    #[default]
    Grub,
    /// GRUB, started by a BIOS.
    GrubBios,
    /// systemd-boot, started by UEFI firmware.
    SystemdBoot,
    /// U-Boot, which is the machine's firmware.
    Uboot,
    /// UEFI firmware itself: it starts kernels by its own variables, which are not on the disk.
    Efi,
}

/// What systemd-boot's entries are: the two types of the Boot Loader Specification. Other loaders have only the first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Entries {
    /// A text for each group, and its kernel in a file of its own.
    #[default]
    Texts,
    /// A unified kernel image for each group, which the root of the group has.
    Images,
}

/// The processor of the machine that the disk is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Arch {
    /// 64-bit x86, with any loader.
    #[default]
    X86_64,
    /// 64-bit ARM, with U-Boot.
    Aarch64,
}

/// What goes into a root slot.
#[derive(Debug, Clone)]
pub enum SlotContent {
    /// A tree of files, made into ext4.
    Tree(PathBuf),
    /// A ready image, such as a bundle's payload.
    Image(PathBuf),
    /// Zeroes.
    Empty,
}

/// What a disk image is made of.
#[derive(Debug, Clone)]
pub struct DiskSpec {
    /// Slot `root-a`.
    pub root_a: SlotContent,
    /// Slot `root-b`.
    pub root_b: SlotContent,
    /// The directory with the loader's files. GRUB: `modules`, `early.cfg`, `grub.cfg`, `grubenv`, `fallback`; U-Boot:
    /// `boot.scr` and `u-boot-initial-env`; systemd-boot: its program, if not the host's.
    pub boot_files: PathBuf,
    /// What starts a group.
    pub loader: Loader,
    /// What it starts a group by.
    pub entries: Entries,
    /// Where GRUB's modules are, if not where `grub-mkimage` looks by itself.
    pub grub_modules: Option<PathBuf>,
    /// How large the partitions are.
    pub sizes: Sizes,
    /// What all identifiers are derived from: the same text gives the same identifiers.
    pub seed: String,
    /// Seconds since 1970 that all new time stamps get.
    pub epoch: u64,
}

/// Makes the disk image `output`, whole or not at all, sparse, and tells what is where. It is for 64-bit x86.
///
/// # Errors
/// When a tool is missing or fails, something does not fit, or a file cannot be read or written.
pub fn create_disk(spec: &DiskSpec, output: &Path) -> Result<Vec<Part>, DiskError> {
    create_disk_for(Arch::X86_64, spec, output)
}

/// Like [`create_disk`], for this processor.
///
/// # Errors
/// As [`create_disk`], and when the loader is not one that is known to start there.
pub fn create_disk_for(arch: Arch, spec: &DiskSpec, output: &Path) -> Result<Vec<Part>, DiskError> {
    if arch == Arch::Aarch64 && spec.loader != Loader::Uboot {
        return Err(DiskError::Entry("a disk for aarch64 starts only through U-Boot so far".into()));
    }
    if spec.entries == Entries::Images && spec.loader != Loader::SystemdBoot {
        return Err(DiskError::OtherLoader);
    }
    let parts = layout::parts(&spec.sizes, spec.loader, &spec.seed)?;
    let directory = output.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let scratch = tempfile::Builder::new()
        .prefix(".disk-")
        .tempdir_in(directory)
        .map_err(DiskError::at("making a temporary directory in", directory))?;
    let unfinished = scratch.path().join("disk");
    let failed = DiskError::at("writing", &unfinished);
    let disk = OpenOptions::new().read(true).write(true).create_new(true).open(&unfinished).map_err(&failed)?;
    disk.set_len(layout::disk_bytes(&parts)).map_err(&failed)?;
    layout::write_table(&disk, &parts, &spec.seed)?;
    if let Some(part) = parts.iter().find(|part| part.name == layout::BIOS_BOOT) {
        bios::write_first_sector(spec, &disk, part)?;
    }
    for part in &parts {
        if let Some(image) = part_image(spec, arch, &parts, part, scratch.path())? {
            let source = File::open(&image).map_err(DiskError::at("reading", &image))?;
            sparse::copy_into(&source, &disk, part.offset, part.size)
                .map_err(DiskError::at("copying into the disk", &image))?
                .then_some(())
                .ok_or(DiskError::TooSmall { part: part.name.clone(), size: part.size, image })?;
        }
    }
    disk.sync_all().map_err(&failed)?;
    fs::rename(&unfinished, output).map_err(DiskError::at("writing", output))?;
    Ok(parts)
}

fn part_image(
    spec: &DiskSpec,
    arch: Arch,
    parts: &[Part],
    part: &Part,
    scratch: &Path,
) -> Result<Option<PathBuf>, DiskError> {
    let place = scratch.join(&part.name);
    let ext4 = |tree: Option<&Path>| {
        let label = part.name.clone();
        let made =
            Ext4 { tree: tree.map(Path::to_owned), size: part.size, label, seed: spec.seed.clone(), epoch: spec.epoch };
        made.create(&place).map(|()| Some(place.clone()))
    };
    let slot = |content: &SlotContent| match content {
        SlotContent::Tree(tree) => ext4(Some(tree)),
        SlotContent::Image(image) => Ok(Some(image.clone())),
        SlotContent::Empty => Ok(None),
    };
    match part.name.as_str() {
        layout::ESP => esp::create(spec, arch, parts, part, scratch, &place).map(|()| Some(place.clone())),
        layout::ROOT_A => slot(&spec.root_a),
        layout::ROOT_B => slot(&spec.root_b),
        layout::BIOS_BOOT => bios::create_core(spec, part, &place).map(|()| Some(place.clone())),
        layout::DATA => ext4(None),
        _ => Ok(None),
    }
}
