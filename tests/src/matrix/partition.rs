//! The boot partition of a disk image, read and changed while the machine is off.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;

use anyhow::{Context, Result, bail};
use bascule_boot::sdboot::names::Kind;
use bascule_boot::uboot::config::{Copies, EnvConfig, Place};
use bascule_boot::{BootBackend, GrubBackend, SdBootBackend, UbootBackend};
use bascule_core::{BootView, BootedGroup, Group};
use bascule_image::disk::Loader;
use fatfs::{Dir, FileSystem, FsOptions};

use crate::factory::BOOT_PARTITION;

/// Bytes of one copy of U-Boot's environment, as the demo's `fw_env.config` says.
const ENVIRONMENT_BYTES: usize = 0x4000;
/// Files that are longer are kernels and programs; nobody reads settings in them.
const SMALL: u64 = 64 << 10;

/// A part of a disk image as a file of its own.
pub(super) struct Part {
    file: File,
    start: u64,
    length: u64,
    at: u64,
}

/// The file system of the boot partition.
pub(super) type Volume = FileSystem<Part>;

/// Opens the boot partition's file system.
pub(super) fn open(disk: &Path) -> Result<Volume> {
    open_part(disk, BOOT_PARTITION)
}

/// Opens it where it is a file of its own.
pub(super) fn open_alone(partition: &Path) -> Result<Volume> {
    open_part(partition, (0, BOOT_PARTITION.1))
}

fn open_part(file: &Path, (start, length): (u64, u64)) -> Result<Volume> {
    let file = File::options().read(true).write(true).open(file)?;
    let part = Part { file, start, length, at: 0 };
    FileSystem::new(part, FsOptions::new()).context("the boot partition is no FAT any more")
}

/// A file's bytes.
pub(super) fn read(volume: &Volume, path: &str) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let file = volume.root_dir().open_file(path);
    file.with_context(|| format!("there is no {path}"))?.read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Puts other bytes into a file that is there; its length stays.
pub(super) fn overwrite(volume: &Volume, path: &str, bytes: &[u8]) -> Result<()> {
    let mut file = volume.root_dir().open_file(path).with_context(|| format!("there is no {path}"))?;
    file.write_all(bytes)?;
    Ok(file.flush()?)
}

/// The names in a folder.
pub(super) fn names(volume: &Volume, folder: &str) -> Result<Vec<String>> {
    let folder = volume.root_dir().open_dir(folder)?;
    let names = folder.iter().map(|entry| Ok(entry?.file_name())).collect::<Result<Vec<String>>>()?;
    Ok(names.into_iter().filter(|name| !name.starts_with('.')).collect())
}

/// Every file and its bytes, by its path from the root, which begins with a slash.
pub(super) fn files(volume: &Volume) -> Result<BTreeMap<String, Vec<u8>>> {
    let (mut files, mut folders) = (BTreeMap::new(), vec![(String::new(), volume.root_dir())]);
    while let Some((path, folder)) = folders.pop() {
        for entry in folder.iter() {
            let entry = entry?;
            let name = entry.file_name();
            if name.starts_with('.') {
                continue;
            }
            let path = format!("{path}/{name}");
            if entry.is_dir() {
                folders.push((path, entry.to_dir()));
            } else {
                let mut bytes = Vec::new();
                entry.to_file().read_to_end(&mut bytes)?;
                files.insert(path, bytes);
            }
        }
    }
    Ok(files)
}

/// How long a file is by what its folder says, in bytes; `None` where there is none, or no folder.
pub(super) fn length(volume: &Volume, folder: &str, name: &str) -> Option<u64> {
    let folder = volume.root_dir().open_dir(folder).ok()?;
    let found = folder.iter().flatten().find(|entry| entry.file_name() == name)?;
    Some(found.len())
}

/// What the loader's settings on this disk say, as the loader's own backend reads them.
pub(super) fn view(disk: &Path, loader: Loader) -> Result<BootView> {
    view_of(&open(disk)?, loader)
}

/// The same of a boot partition.
pub(super) fn view_of(volume: &Volume, loader: Loader) -> Result<BootView> {
    let copy = tempfile::tempdir()?;
    copy_small(&volume.root_dir(), copy.path())?;
    let root = copy.path().to_owned();
    let backend: Box<dyn BootBackend> = match loader {
        Loader::Grub | Loader::GrubBios => Box::new(GrubBackend::new(root.join("bascule"))),
        Loader::SystemdBoot => Box::new(SdBootBackend::new(root, Kind::Text)),
        Loader::Uboot => {
            let places = ["uboot.env", "uboot-redund.env"].map(|name| Place { path: root.join(name), offset: 0 });
            let config = EnvConfig { copies: Copies::Redundant(places), size: ENVIRONMENT_BYTES };
            Box::new(UbootBackend::new(config, root)?)
        }
        Loader::Efi => bail!("the settings of this loader are not on the disk"),
    };
    Ok(backend.view(BootedGroup::proven(Group::A))?)
}

fn copy_small(from: &Dir<'_, Part>, to: &Path) -> Result<()> {
    for entry in from.iter() {
        let entry = entry?;
        let name = entry.file_name();
        if name.starts_with('.') {
            continue;
        }
        let place = to.join(&name);
        if entry.is_dir() {
            fs::create_dir_all(&place)?;
            copy_small(&entry.to_dir(), &place)?;
        } else {
            let mut bytes = Vec::new();
            if entry.len() <= SMALL {
                entry.to_file().read_to_end(&mut bytes)?;
            }
            fs::write(&place, bytes)?;
        }
    }
    Ok(())
}

impl Part {
    fn room(&self, wanted: usize) -> usize {
        let left = self.length.saturating_sub(self.at);
        usize::try_from(left).unwrap_or(usize::MAX).min(wanted)
    }
}

impl Read for Part {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let room = self.room(buffer.len());
        let read = self.file.read_at(buffer.get_mut(..room).unwrap_or_default(), self.start + self.at)?;
        self.at += read as u64;
        Ok(read)
    }
}

impl Write for Part {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let room = self.room(bytes.len());
        let written = self.file.write_at(bytes.get(..room).unwrap_or_default(), self.start + self.at)?;
        self.at += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Seek for Part {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let at = match to {
            SeekFrom::Start(at) => Some(at),
            SeekFrom::Current(by) => self.at.checked_add_signed(by),
            SeekFrom::End(by) => self.length.checked_add_signed(by),
        };
        self.at = at.ok_or(io::ErrorKind::InvalidInput)?;
        Ok(self.at)
    }
}
