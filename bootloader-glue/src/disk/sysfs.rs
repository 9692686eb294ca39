//! What the kernel says about mounts, disks and partitions.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use bascule_core::Group;

use super::DiskError;
use super::table::sysfs_bytes;

/// The kernel's view of the machine, below one root folder: `/` on a device, a folder of files in a rehearsal.
#[derive(Debug, Clone)]
pub struct Sysfs {
    /// The folder that holds `proc`, `sys` and `dev`.
    pub root: PathBuf,
}

/// A partition as the kernel uses it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Partition {
    /// The kernel's name, such as `nvme0n1p3`.
    pub(super) name: String,
    /// Its number in the partition table.
    pub(super) number: u32,
    /// Major and minor number.
    pub(super) dev: (u32, u32),
    /// Its device node.
    pub(super) device: PathBuf,
    /// Its first byte on the disk.
    pub(super) start: u64,
    /// Its length in bytes.
    pub(super) size: u64,
    /// Its folder in sysfs, with all links resolved.
    pub(super) folder: PathBuf,
}

/// A whole disk as the kernel knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct WholeDisk {
    /// The kernel's name.
    pub(super) name: String,
    /// Its device node.
    pub(super) device: PathBuf,
    /// Major and minor number.
    pub(super) dev: (u32, u32),
    /// Logical sector size in bytes.
    pub(super) sector_size: u64,
}

/// One line of mountinfo, as far as we need it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Mount {
    /// Major and minor number of the file system.
    pub(super) dev: (u32, u32),
    /// The folder of the file system that is mounted.
    pub(super) inner: String,
    /// Where it is mounted.
    pub(super) point: String,
    /// The file system's type.
    pub(super) kind: String,
    /// What it was mounted from: a name, which proves nothing.
    pub(super) source: String,
}

impl Sysfs {
    /// The machine we run on.
    #[must_use]
    pub fn system() -> Self {
        Sysfs { root: PathBuf::from("/") }
    }

    /// Whether this is the machine itself, not a rehearsal in a folder.
    #[must_use]
    pub fn is_system(&self) -> bool {
        self.root == Path::new("/")
    }

    /// The partition that is mounted as `/`.
    pub(super) fn mounted_root(&self) -> Result<Partition, DiskError> {
        let refuse = |what: String| Err(DiskError::RootNotAPartition { what });
        // The last line for a mount point is the one on top.
        let Some(mount) = self.mounts()?.into_iter().rfind(|mount| mount.point == "/") else {
            return refuse("not mounted".into());
        };
        let (major, minor) = mount.dev;
        if major == 0 {
            return refuse(format!("of type {}, which has no device of its own", mount.kind));
        }
        if mount.inner != "/" {
            return refuse(format!("the folder {} of a file system", mount.inner));
        }
        let folder = self.resolve(&format!("sys/dev/block/{major}:{minor}"))?;
        for (mark, what) in [("dm", "a device mapper volume"), ("md", "a software RAID")] {
            if folder.join(mark).is_dir() {
                return refuse(format!("{what} ({})", name_of(&folder)));
            }
        }
        if !folder.join("partition").exists() {
            return refuse(format!("the whole device {}", name_of(&folder)));
        }
        self.partition(folder)
    }

    /// The disk a partition is on.
    pub(super) fn disk_of(&self, partition: &Partition) -> Result<WholeDisk, DiskError> {
        let parent = partition.folder.parent().unwrap_or(&partition.folder);
        self.whole_disk(parent)
    }

    /// All partitions of a disk that the kernel uses, by number.
    pub(super) fn partitions(&self, disk: &str) -> Result<Vec<Partition>, DiskError> {
        let folder = self.resolve(&format!("sys/block/{disk}"))?;
        let mut partitions = Vec::new();
        for entry in list(&folder)? {
            if entry.join("partition").is_file() {
                partitions.push(self.partition(entry)?);
            }
        }
        partitions.sort_by_key(|partition| partition.number);
        Ok(partitions)
    }

    /// Name, device node and sector size of every disk with a medium but this one.
    pub(super) fn other_disks(&self, disk: &str) -> Result<Vec<(String, PathBuf, u64)>, DiskError> {
        let mut others = Vec::new();
        for entry in list(&self.path("sys/block"))? {
            let name = name_of(&entry);
            // Optical and floppy drives hold no root of ours, and opening one can take seconds.
            let drive = ["sr", "fd"].iter().any(|kind| {
                name.strip_prefix(kind).is_some_and(|rest| !rest.is_empty() && rest.bytes().all(|b| b.is_ascii_digit()))
            });
            if name == disk || drive {
                continue;
            }
            // A disk that is being removed at this moment has no complete entry any more.
            let Ok(folder) = self.resolve(&format!("sys/block/{name}")) else { continue };
            if number(&folder.join("size")).unwrap_or(0) == 0 {
                continue;
            }
            if let Ok(whole) = self.whole_disk(&folder) {
                others.push((whole.name, whole.device, whole.sector_size));
            }
        }
        Ok(others)
    }

    /// The mounts of one kind of file system: the folder of it that is mounted, and where.
    ///
    /// # Errors
    /// [`DiskError::Read`] and [`DiskError::Form`].
    pub fn mounted(&self, kind: &str) -> Result<Vec<(PathBuf, PathBuf)>, DiskError> {
        let of_kind = self.mounts()?.into_iter().filter(|mount| mount.kind == kind);
        Ok(of_kind.map(|mount| (mount.inner.into(), mount.point.into())).collect())
    }

    /// Every mount of this process.
    pub(super) fn mounts(&self) -> Result<Vec<Mount>, DiskError> {
        let path = self.path("proc/self/mountinfo");
        let text = read(&path)?;
        let wrong = |line: &str| DiskError::Form { path: path.clone(), text: line.chars().take(120).collect() };
        text.lines().map(|line| mount(line).ok_or_else(|| wrong(line))).collect()
    }

    /// The partition that holds the files at a path of the machine, such as `/boot/efi`; `None` where no partition does.
    pub(super) fn partition_of(&self, path: &Path) -> Result<Option<Partition>, DiskError> {
        let depth = |mount: &Mount| Path::new(&mount.point).components().count();
        // Of two mounts on one point the last one is on top: `max_by_key` takes the last of equals.
        let mounts = self.mounts()?;
        let over = mounts.iter().filter(|mount| path.starts_with(&mount.point)).max_by_key(|mount| depth(mount));
        let folder = over.and_then(|mount| self.resolve(&format!("sys/dev/block/{}", numbers(mount.dev))).ok());
        folder.filter(|folder| folder.join("partition").exists()).map(|folder| self.partition(folder)).transpose()
    }

    /// The partition with this device number, as sysfs has it now.
    pub(super) fn partition_numbered(&self, dev: (u32, u32)) -> Result<Partition, DiskError> {
        self.partition(self.resolve(&format!("sys/dev/block/{}", numbers(dev)))?)
    }

    /// The groups that the loader says it started: `bascule.group=` on the kernel's command line. Most loaders say one;
    /// a machine that has no such file has not been told anything.
    pub(super) fn started_groups(&self) -> Result<Vec<Group>, DiskError> {
        let path = self.path("proc/cmdline");
        let line = match fs::read_to_string(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            read => read.map_err(|source| DiskError::Read { path, source })?,
        };
        let words = line.split_ascii_whitespace().filter_map(|word| word.strip_prefix("bascule.group="));
        Ok(words.filter_map(|letter| letter.parse().ok()).collect())
    }

    /// Whether a mounted file system lies on this device, or on something that is stacked on it.
    pub(super) fn is_made_of(&self, mount: &Mount, dev: (u32, u32), node: &Path) -> bool {
        // File systems that span devices, such as btrfs, have numbers of their own: only the name tells.
        if mount.dev.0 == 0 { self.is_same(&mount.source, node) } else { self.below(mount.dev).contains(&dev) }
    }

    /// Names of what is stacked on a device: device mapper volumes and RAIDs, and loop devices, which are no holders.
    pub(super) fn holders(&self, dev: (u32, u32), node: &Path) -> Vec<String> {
        let mut holders = list(&self.path(&format!("sys/dev/block/{}/holders", numbers(dev)))).unwrap_or_default();
        holders.extend(list(&self.path("sys/block")).unwrap_or_default().into_iter().filter(|disk| {
            let backing = fs::read_to_string(disk.join("loop/backing_file")).unwrap_or_default();
            self.is_same(backing.trim_end_matches('\n'), node)
        }));
        let mut names: Vec<String> = holders.iter().map(|holder| name_of(holder)).collect();
        names.sort();
        names.dedup();
        names
    }

    /// A device and all that it is stacked on. What is stacked on a disk counts for its partitions as well.
    fn below(&self, dev: (u32, u32)) -> BTreeSet<(u32, u32)> {
        let (mut seen, mut next) = (BTreeSet::new(), vec![dev]);
        while let Some(dev) = next.pop() {
            if !seen.insert(dev) {
                continue;
            }
            let Ok(folder) = self.resolve(&format!("sys/dev/block/{}", numbers(dev))) else { continue };
            let slaves = [Some(folder.as_path()), folder.parent()].into_iter().flatten().map(|at| at.join("slaves"));
            let slaves = slaves.flat_map(|slaves| list(&slaves).unwrap_or_default());
            next.extend(slaves.filter_map(|slave| self::dev(&slave).ok()));
        }
        seen
    }

    /// Whether a name that the kernel tells is this node.
    fn is_same(&self, name: &str, node: &Path) -> bool {
        let named = name.strip_prefix('/').map(|name| fs::canonicalize(self.path(name)));
        named.and_then(Result::ok).is_some_and(|named| fs::canonicalize(node).is_ok_and(|node| node == named))
    }

    /// A path of the machine, below our root folder.
    pub(super) fn path(&self, below: &str) -> PathBuf {
        self.root.join(below)
    }

    fn partition(&self, folder: PathBuf) -> Result<Partition, DiskError> {
        let small = |file: &str| {
            let value = number(&folder.join(file))?;
            u32::try_from(value).map_err(|_| form(&folder.join(file), &value.to_string()))
        };
        let bytes = |file: &str| {
            let value = number(&folder.join(file))?;
            sysfs_bytes(value).ok_or_else(|| form(&folder.join(file), &value.to_string()))
        };
        Ok(Partition {
            name: name_of(&folder),
            number: small("partition")?,
            dev: dev(&folder)?,
            device: self.node(&folder),
            start: bytes("start")?,
            size: bytes("size")?,
            folder,
        })
    }

    fn whole_disk(&self, folder: &Path) -> Result<WholeDisk, DiskError> {
        Ok(WholeDisk {
            name: name_of(folder),
            device: self.node(folder),
            dev: dev(folder)?,
            sector_size: number(&folder.join("queue/logical_block_size"))?,
        })
    }

    /// The device node: the kernel names it in `uevent`; in a folder's name `/` is written as `!`.
    fn node(&self, folder: &Path) -> PathBuf {
        let uevent = fs::read_to_string(folder.join("uevent")).unwrap_or_default();
        let named = uevent.lines().find_map(|line| line.strip_prefix("DEVNAME=")).map(str::to_owned);
        self.path("dev").join(named.unwrap_or_else(|| name_of(folder).replace('!', "/")))
    }

    fn resolve(&self, below: &str) -> Result<PathBuf, DiskError> {
        let path = self.path(below);
        fs::canonicalize(&path).map_err(|source| DiskError::Read { path, source })
    }
}

/// Reads `36 35 98:0 /inner /point rw,noatime master:1 - ext4 /dev/root rw`.
fn mount(line: &str) -> Option<Mount> {
    let (before, after) = line.split_once(" - ")?;
    let mut fields = before.split(' ').skip(2);
    let dev = fields.next().and_then(pair)?;
    let (inner, point) = (fields.next().map(unescape)?, fields.next().map(unescape)?);
    let mut after = after.split(' ');
    let (kind, source) = (after.next()?.to_owned(), after.next().map(unescape).unwrap_or_default());
    Some(Mount { dev, inner, point, kind, source })
}

/// Blank, tab, line end and backslash stand as `\` and three octal digits.
fn unescape(field: &str) -> String {
    let escapes = [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")];
    escapes.iter().fold(field.to_owned(), |text, (escape, plain)| text.replace(escape, plain))
}

fn numbers((major, minor): (u32, u32)) -> String {
    format!("{major}:{minor}")
}

fn pair(text: &str) -> Option<(u32, u32)> {
    let (major, minor) = text.trim().split_once(':')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

fn dev(folder: &Path) -> Result<(u32, u32), DiskError> {
    let path = folder.join("dev");
    let text = read(&path)?;
    pair(&text).ok_or_else(|| form(&path, &text))
}

fn number(path: &Path) -> Result<u64, DiskError> {
    let text = read(path)?;
    text.trim().parse().map_err(|_| form(path, &text))
}

fn form(path: &Path, text: &str) -> DiskError {
    DiskError::Form { path: path.to_owned(), text: text.chars().take(120).collect() }
}

fn read(path: &Path) -> Result<String, DiskError> {
    fs::read_to_string(path).map_err(|source| DiskError::Read { path: path.to_owned(), source })
}

fn list(folder: &Path) -> Result<Vec<PathBuf>, DiskError> {
    let failed = |source| DiskError::Read { path: folder.to_owned(), source };
    let mut entries = Vec::new();
    for entry in fs::read_dir(folder).map_err(failed)? {
        entries.push(entry.map_err(failed)?.path());
    }
    entries.sort();
    Ok(entries)
}

fn name_of(folder: &Path) -> String {
    folder.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}
