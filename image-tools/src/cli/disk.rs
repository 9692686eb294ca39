//! `bascule-image disk` and `bascule-image image`.

use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use bascule_image::disk::{
    Arch, DiskSpec, Entries, Ext4, FALLBACK_EPOCH, LOADER_FILES, Loader, Part, SYSTEMD_BOOT_FILES, Sizes, SlotContent,
    create_disk_for, parts,
};
use clap::{Args, Subcommand, ValueEnum};
use serde_json::json;

use super::{show, value};

/// The commands about disks.
#[derive(Debug, Subcommand)]
pub(crate) enum Disk {
    /// Make an A/B disk image that boots through the loader you name.
    Create(Create),
    /// Say which partitions a disk would have, with their PARTUUIDs, and make nothing: a unified kernel image names its root.
    Layout(Layout),
}

/// The commands about root images.
#[derive(Debug, Subcommand)]
pub(crate) enum Image {
    /// Make an ext4 image of a tree: the same tree gives the same bytes.
    Create(Root),
}

/// What a disk image is made of.
#[derive(Debug, Args)]
#[group(id = "a", required = true, multiple = true, args = ["tree", "root_image"])]
pub(crate) struct Create {
    /// The root tree of slot a, and where the loader's files are found. Owners are taken as they are: run it as root, or
    /// under fakeroot, on a tree that was made so.
    #[arg(long)]
    tree: Option<PathBuf>,
    /// A ready image for slot a, such as a bundle's payload; the tree then only gives the loader's files.
    #[arg(long)]
    root_image: Option<PathBuf>,
    /// A root tree for slot b [default: an empty slot].
    #[arg(long, conflicts_with = "root_image_b")]
    tree_b: Option<PathBuf>,
    /// A ready image for slot b.
    #[arg(long)]
    root_image_b: Option<PathBuf>,
    /// The loader's files [default: usr/lib/bascule/boot/grub of the tree]. U-Boot's are boot.scr and u-boot-initial-env;
    /// systemd-boot's is its program, if not the host's.
    #[arg(long)]
    boot_files: Option<PathBuf>,
    /// The machine's processor. On aarch64 only U-Boot is known to start.
    #[arg(long, value_enum, default_value_t)]
    arch: ArchName,
    /// Where GRUB's modules are [default: where the packages put them].
    #[arg(long)]
    grub_modules: Option<PathBuf>,
    #[command(flatten)]
    shape: Shape,
    /// Start each group by a unified kernel image, which its root has as /usr/lib/bascule/boot/uki/a.efi and b.efi, in place of
    /// a text entry and /boot/vmlinuz; with --loader systemd-boot. The EFI system partition has to hold two of them.
    #[arg(long)]
    unified: bool,
    /// The disk image to write.
    #[arg(short, long)]
    output: PathBuf,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// Which partitions a disk has.
#[derive(Debug, Args)]
struct Shape {
    /// What starts a group.
    #[arg(long, value_enum, default_value_t)]
    loader: LoaderName,
    /// Size of each root slot.
    #[arg(long, default_value = "512M", value_parser = value::size)]
    slot_size: u64,
    /// Size of the data partition.
    #[arg(long, default_value = "256M", value_parser = value::size)]
    data_size: u64,
    /// Size of the EFI system partition.
    #[arg(long, default_value = "128M", value_parser = value::size)]
    esp_size: u64,
    /// What identifiers are derived from: give each disk of one machine its own.
    #[arg(long, default_value = "bascule")]
    seed: String,
}

/// What is to be said of a disk.
#[derive(Debug, Args)]
pub(crate) struct Layout {
    #[command(flatten)]
    shape: Shape,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// The loaders, as people write them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
enum LoaderName {
    /// GRUB, started by UEFI firmware.
    #[default]
    Grub,
    /// GRUB, started by a BIOS.
    GrubBios,
    /// systemd-boot, started by UEFI firmware.
    SystemdBoot,
    /// U-Boot, which is the machine's firmware.
    Uboot,
    /// UEFI firmware itself: its variables are made on the machine, see docs/loaders.md.
    Efi,
}

impl From<LoaderName> for Loader {
    fn from(name: LoaderName) -> Loader {
        match name {
            LoaderName::Grub => Loader::Grub,
            LoaderName::GrubBios => Loader::GrubBios,
            LoaderName::SystemdBoot => Loader::SystemdBoot,
            LoaderName::Uboot => Loader::Uboot,
            LoaderName::Efi => Loader::Efi,
        }
    }
}

/// The processors, as people write them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
enum ArchName {
    /// 64-bit x86.
    #[default]
    #[value(name = "x86_64")]
    X86_64,
    /// 64-bit ARM.
    Aarch64,
}

impl From<ArchName> for Arch {
    fn from(name: ArchName) -> Arch {
        match name {
            ArchName::X86_64 => Arch::X86_64,
            ArchName::Aarch64 => Arch::Aarch64,
        }
    }
}

/// What a root image is made of.
#[derive(Debug, Args)]
pub(crate) struct Root {
    /// The root tree. Owners are taken as they are: run it as root, or under fakeroot, on a tree that was made so.
    #[arg(long)]
    tree: PathBuf,
    /// Size of the image.
    #[arg(long, value_parser = value::size)]
    size: u64,
    /// Label of the file system.
    #[arg(long, default_value = "root")]
    label: String,
    /// What identifiers are derived from.
    #[arg(long, default_value = "bascule")]
    seed: String,
    /// The image to write.
    #[arg(short, long)]
    output: PathBuf,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

impl Disk {
    pub(crate) fn run(self) -> anyhow::Result<()> {
        match self {
            Disk::Create(create) => create.run(),
            Disk::Layout(layout) => layout.run(),
        }
    }
}

impl Image {
    pub(crate) fn run(self) -> anyhow::Result<()> {
        let Image::Create(root) = self;
        root.run()
    }
}

impl Create {
    fn run(self) -> anyhow::Result<()> {
        let slot = |image: Option<PathBuf>, tree: Option<PathBuf>| match (image, tree) {
            (Some(image), _) => SlotContent::Image(image),
            (None, Some(tree)) => SlotContent::Tree(tree),
            (None, None) => SlotContent::Empty,
        };
        let boot_files = self.boot_files.or_else(|| self.tree.as_ref().map(|tree| tree.join(LOADER_FILES)));
        // That loader's program is the only file, and the host has it.
        let hosts = (self.shape.loader == LoaderName::SystemdBoot).then(|| PathBuf::from(SYSTEMD_BOOT_FILES));
        let boot_files = boot_files.or(hosts);
        let spec = DiskSpec {
            root_a: slot(self.root_image, self.tree),
            root_b: slot(self.root_image_b, self.tree_b),
            boot_files: boot_files.context("without --tree, --boot-files must say where the loader's files are")?,
            loader: self.shape.loader.into(),
            entries: if self.unified { Entries::Images } else { Entries::Texts },
            grub_modules: self.grub_modules,
            sizes: self.shape.sizes(),
            seed: self.shape.seed,
            epoch: epoch()?,
        };
        ensure!(
            self.arch == ArchName::X86_64 || spec.loader == Loader::Uboot,
            "with --arch aarch64 the loader has to be uboot: no other is known to start there"
        );
        let parts = create_disk_for(self.arch.into(), &spec, &self.output)?;
        let (length, stored) = lengths(&self.output)?;
        if self.json {
            show::json(&json!({ "disk": self.output, "bytes": length, "stored": stored, "partitions": parts }));
        } else {
            show::line(format_args!(
                "{}  {}, {} stored",
                self.output.display(),
                show::size(length),
                show::size(stored)
            ));
            show_parts(&parts);
        }
        Ok(())
    }
}

impl Layout {
    fn run(self) -> anyhow::Result<()> {
        let parts = parts(&self.shape.sizes(), self.shape.loader.into(), &self.shape.seed)?;
        if self.json {
            show::json(&json!({ "partitions": parts }));
        } else {
            show_parts(&parts);
        }
        Ok(())
    }
}

impl Shape {
    fn sizes(&self) -> Sizes {
        Sizes { esp: self.esp_size, slot: self.slot_size, data: self.data_size }
    }
}

fn show_parts(parts: &[Part]) {
    for Part { number, name, offset, size, partuuid } in parts {
        let (at, size) = (show::size(*offset), show::size(*size));
        show::line(format_args!("  {number}  {name:8} {size:>11} at {at:>11}  PARTUUID={partuuid}"));
    }
}

impl Root {
    fn run(self) -> anyhow::Result<()> {
        let image =
            Ext4 { tree: Some(self.tree), size: self.size, label: self.label, seed: self.seed, epoch: epoch()? };
        image.create(&self.output)?;
        let (length, stored) = lengths(&self.output)?;
        if self.json {
            show::json(&json!({ "image": self.output, "bytes": length, "stored": stored }));
        } else {
            show::line(format_args!(
                "{}  {}, {} stored",
                self.output.display(),
                show::size(length),
                show::size(stored)
            ));
        }
        Ok(())
    }
}

/// The time of all new time stamps: `SOURCE_DATE_EPOCH`, as reproducible-builds.org describes it.
fn epoch() -> anyhow::Result<u64> {
    match std::env::var("SOURCE_DATE_EPOCH") {
        Ok(text) => text.parse().with_context(|| format!("SOURCE_DATE_EPOCH={text:?} is not a number of seconds")),
        Err(_) => Ok(FALLBACK_EPOCH),
    }
}

/// A file's length, and how much of it takes room on the disk.
fn lengths(path: &Path) -> anyhow::Result<(u64, u64)> {
    use std::os::unix::fs::MetadataExt;
    let about = std::fs::metadata(path).with_context(|| format!("reading {path:?} failed"))?;
    Ok((about.len(), about.blocks() * 512))
}
