//! Machines made of files: a folder with `proc`, `sys` and `dev` in which [`locate`](super::locate) and
//! [`open_target`](super::open_target) work as on a device.
//!
//! For tests of this crate and of those above it. Each disk is an image with a real partition table; each partition's
//! node is a file of its own, so that a test can write a slot and look at it.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use gpt::disk::LogicalBlockSize;
use gpt::mbr::ProtectiveMBR;
use gpt::{GptConfig, partition_types};

use super::Sysfs;

/// One disk of a machine made of files.
#[derive(Debug, Clone)]
pub struct DiskFile {
    /// The kernel's name, such as `nvme0n1`.
    pub name: String,
    /// Its major number; partitions have the minor numbers 1 and up.
    pub major: u32,
    /// Logical sector size: 512 or 4096.
    pub sector_size: u64,
    /// Name and size in bytes of each partition, in order.
    pub partitions: Vec<(String, u64)>,
}

impl DiskFile {
    /// A disk with the partitions of a device of ours, `slot_size` bytes for each root slot.
    #[must_use]
    pub fn of_device(name: &str, slot_size: u64) -> Self {
        const MIB: u64 = 1 << 20;
        let partitions =
            [("esp", 2 * MIB), ("bootenv", MIB), ("root-a", slot_size), ("root-b", slot_size), ("data", MIB)];
        DiskFile {
            name: name.to_owned(),
            major: 259,
            sector_size: 512,
            partitions: partitions.into_iter().map(|(label, size)| (label.to_owned(), size)).collect(),
        }
    }

    /// The image of the whole disk below a machine's root folder.
    #[must_use]
    pub fn image(&self, root: &Path) -> PathBuf {
        root.join("dev").join(&self.name)
    }

    /// The kernel's name of a partition: a `p` stands between where the disk's name ends with a digit.
    #[must_use]
    pub fn partition_name(&self, number: u32) -> String {
        let between = if self.name.ends_with(|last: char| last.is_ascii_digit()) { "p" } else { "" };
        format!("{}{between}{number}", self.name)
    }

    /// Writes the disk's image, its nodes and its entries in sysfs below `root`.
    ///
    /// # Errors
    /// When a file cannot be written, or the partition table not be made.
    pub fn lay_out(&self, root: &Path) -> io::Result<()> {
        let folder = root.join("sys/devices").join(&self.name);
        for path in [root.join("dev"), root.join("sys/block"), root.join("sys/dev/block"), folder.join("queue")] {
            fs::create_dir_all(path)?;
        }
        let length = self.partitions.iter().map(|(_, size)| size).sum::<u64>() + (4 << 20);
        File::create(self.image(root))?.set_len(length)?;
        fs::write(folder.join("dev"), format!("{}:0\n", self.major))?;
        fs::write(folder.join("size"), format!("{}\n", length / 512))?;
        fs::write(folder.join("queue/logical_block_size"), format!("{}\n", self.sector_size))?;
        symlink(format!("../devices/{}", self.name), root.join("sys/block").join(&self.name))?;
        self.lay_out_table(root, &folder)
    }

    fn lay_out_table(&self, root: &Path, folder: &Path) -> io::Result<()> {
        let sector = LogicalBlockSize::try_from(self.sector_size).map_err(io::Error::other)?;
        let mut image = OpenOptions::new().read(true).write(true).open(self.image(root))?;
        let sectors = image.metadata()?.len() / self.sector_size;
        let mbr = ProtectiveMBR::with_lb_size(u32::try_from(sectors.saturating_sub(1)).unwrap_or(u32::MAX));
        mbr.overwrite_lba0(&mut image).map_err(io::Error::other)?;
        let config = GptConfig::new().writable(true).logical_block_size(sector);
        let mut disk = config.create_from_device(image, None).map_err(io::Error::other)?;
        for (label, size) in &self.partitions {
            disk.add_partition(label, *size, partition_types::LINUX_FS, 0, None).map_err(io::Error::other)?;
        }
        let partitions = disk.partitions().clone();
        disk.write().map_err(io::Error::other)?;
        for (number, partition) in partitions {
            let name = self.partition_name(number);
            let place = folder.join(&name);
            fs::create_dir_all(place.join("holders"))?;
            let in_sysfs = |sectors: u64| sectors * (self.sector_size / 512);
            let (start, size) = (in_sysfs(partition.first_lba), in_sysfs(partition.last_lba - partition.first_lba + 1));
            fs::write(place.join("partition"), format!("{number}\n"))?;
            fs::write(place.join("dev"), format!("{}:{number}\n", self.major))?;
            fs::write(place.join("start"), format!("{start}\n"))?;
            fs::write(place.join("size"), format!("{size}\n"))?;
            let link = root.join(format!("sys/dev/block/{}:{number}", self.major));
            symlink(format!("../../devices/{}/{name}", self.name), link)?;
            File::create(root.join("dev").join(&name))?.set_len(size * 512)?;
        }
        Ok(())
    }

    /// Mounts partition `number` as `/`, and nothing else.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn mount_root(&self, root: &Path, number: u32) -> io::Result<()> {
        mount_root(root, &format!("{}:{number}", self.major), "ext4", "/dev/root")
    }
}

/// Writes a mountinfo whose `/` is the given device number, type and source.
///
/// # Errors
/// When the file cannot be written.
pub fn mount_root(root: &Path, dev: &str, kind: &str, source: &str) -> io::Result<()> {
    fs::create_dir_all(root.join("proc/self"))?;
    let lines = [
        "1 1 0:2 / / rw - rootfs rootfs rw".to_owned(),
        format!("22 1 {dev} / / rw,relatime shared:1 - {kind} {source} rw"),
        "23 22 0:21 / /proc rw,nosuid shared:5 - proc proc rw".to_owned(),
    ];
    fs::write(root.join("proc/self/mountinfo"), lines.join("\n") + "\n")
}

/// A whole machine: one disk as of a device, named `name`, started from group `a`.
///
/// # Errors
/// When a file cannot be written.
pub fn machine(root: &Path, name: &str, slot_size: u64) -> io::Result<(Sysfs, DiskFile)> {
    let disk = DiskFile::of_device(name, slot_size);
    disk.lay_out(root)?;
    disk.mount_root(root, 3)?;
    Ok((Sysfs { root: root.to_owned() }, disk))
}
