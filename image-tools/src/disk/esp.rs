//! Makes the boot partition: the loader and its settings. GRUB's are its configuration and its two environment blocks.

use std::ffi::OsString;
use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::path::Path;

use fatfs::{Dir, FatType, FileSystem, FormatVolumeOptions, FsOptions};

use super::error::DiskError;
use super::layout::{Part, identifier};
use super::{Arch, DiskSpec, Loader, boot_sets, dots, sdboot, tool, uboot};

/// A cluster holds a whole environment block, which is therefore never in two pieces: GRUB and the agent write it in place.
const CLUSTER_BYTES: u32 = 1024;
/// Size of a GRUB environment block.
const ENVIRONMENT_BYTES: usize = 1024;
const ENVIRONMENT_HEAD: &[u8] = b"# GRUB Environment Block\n";

/// Makes the FAT32 image `place` of the partition's size.
pub(super) fn create(
    spec: &DiskSpec,
    arch: Arch,
    parts: &[Part],
    part: &Part,
    scratch: &Path,
    place: &Path,
) -> Result<(), DiskError> {
    let files = match spec.loader {
        Loader::Grub | Loader::GrubBios => grub_files(spec, scratch)?,
        Loader::SystemdBoot => sdboot::files(spec, parts, scratch)?,
        Loader::Uboot => uboot::files(spec, arch, scratch)?,
        Loader::Efi => boot_sets::files(spec, scratch)?,
    };
    write_fat(part, &files, place, volume_id(&spec.seed)).map_err(DiskError::at("writing", place))
}

fn grub_files(spec: &DiskSpec, scratch: &Path) -> Result<Vec<(String, Vec<u8>)>, DiskError> {
    let mut files = vec![("bascule/grub.cfg".to_owned(), boot_file(spec, "grub.cfg")?)];
    for (name, path) in [("grubenv", "bascule/grubenv"), ("fallback", "bascule/fallback")] {
        let bytes = boot_file(spec, name)?;
        if bytes.len() != ENVIRONMENT_BYTES || !bytes.starts_with(ENVIRONMENT_HEAD) {
            let fault = "is not a GRUB environment block of 1024 bytes";
            return Err(DiskError::BootFile { path: path.into(), fault });
        }
        files.push((path.to_owned(), bytes));
    }
    if spec.loader == Loader::Grub {
        let loader = scratch.join("BOOTX64.EFI");
        make_loader(spec, &loader)?;
        let program = fs::read(&loader).map_err(DiskError::at("reading", &loader))?;
        files.push(("EFI/BOOT/BOOTX64.EFI".to_owned(), program));
    }
    Ok(files)
}

fn boot_file(spec: &DiskSpec, name: &str) -> Result<Vec<u8>, DiskError> {
    let path = spec.boot_files.join(name);
    fs::read(&path).map_err(DiskError::at("reading the loader's file", &path))
}

/// The names of GRUB's modules that its core is to have.
pub(super) fn modules(spec: &DiskSpec) -> Result<Vec<String>, DiskError> {
    let modules = boot_file(spec, "modules")?;
    let modules = String::from_utf8_lossy(&modules);
    let lines = modules.lines().filter(|line| !line.trim_start().starts_with('#'));
    Ok(lines.flat_map(str::split_whitespace).map(str::to_owned).collect())
}

fn make_loader(spec: &DiskSpec, loader: &Path) -> Result<(), DiskError> {
    let modules = modules(spec)?;
    let early = spec.boot_files.join("early.cfg");
    let mut arguments: Vec<OsString> = ["-O", "x86_64-efi", "-p", "/bascule", "-o"].map(OsString::from).into();
    arguments.extend([loader.into(), "-c".into(), early.into()]);
    if let Some(directory) = &spec.grub_modules {
        arguments.extend(["-d".into(), directory.into()]);
    }
    arguments.extend(modules.into_iter().map(OsString::from));
    tool::run("grub-mkimage", arguments, &[("SOURCE_DATE_EPOCH", spec.epoch.to_string())])
}

fn volume_id(seed: &str) -> u32 {
    let [a, b, c, d, ..] = *identifier(seed, "file system esp").as_bytes();
    u32::from_le_bytes([a, b, c, d])
}

fn write_fat(part: &Part, files: &[(String, Vec<u8>)], place: &Path, volume_id: u32) -> io::Result<()> {
    let mut image = OpenOptions::new().read(true).write(true).create_new(true).open(place)?;
    image.set_len(part.size)?;
    let options = FormatVolumeOptions::new()
        .fat_type(FatType::Fat32)
        .bytes_per_cluster(CLUSTER_BYTES)
        .volume_id(volume_id)
        .volume_label(*b"ESP        ");
    fatfs::format_volume(&mut image, options)?;
    let volume = FileSystem::new(image, FsOptions::new())?;
    if volume.cluster_size() < CLUSTER_BYTES {
        return Err(io::Error::other("the clusters came out smaller than an environment block"));
    }
    for (path, bytes) in files {
        write_file(volume.root_dir(), path, bytes)?;
    }
    // Counting them makes the volume note how many clusters are free.
    volume.stats()?;
    volume.unmount()?;
    dots::repair(&OpenOptions::new().read(true).write(true).open(place)?)
}

fn write_file<T: fatfs::ReadWriteSeek>(root: Dir<'_, T>, path: &str, bytes: &[u8]) -> io::Result<()> {
    let mut directory = root;
    let (parents, name) = path.rsplit_once('/').unwrap_or(("", path));
    for parent in parents.split('/').filter(|parent| !parent.is_empty()) {
        directory = directory.create_dir(parent)?;
    }
    let mut file = directory.create_file(name)?;
    file.truncate()?;
    file.write_all(bytes)?;
    file.flush()
}
