//! A disk with a volatile cache, as file systems and devices may behave at their worst.
//!
//! A file's bytes are durable once the file was synced, a name once its directory was. Until then each write, cut,
//! new name, rename and removal may have reached the disk or not, each on its own and in part.

use std::collections::BTreeMap;
use std::sync::Arc;

use anyhow::{Context, Result};

use super::trace::Effect;

/// The files of a device: paths relative to its root.
pub(super) type Tree = BTreeMap<String, Arc<Vec<u8>>>;

/// How much of a change that was not synced is on the disk after the cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fate {
    Lost,
    Whole,
    /// Of a write, only this many bytes from its start.
    Prefix(usize),
    /// Of a write, all but this many bytes from its start.
    Suffix(usize),
    /// The file has the length that the write gave it, and zeroes for its bytes.
    Zeroes,
}

/// A change that was not synced yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Pending {
    /// The effect's place in the log.
    pub(super) id: usize,
    /// Whether it is part of a slot's payload.
    pub(super) payload: bool,
    /// Bytes of a write; 0 for everything else.
    pub(super) len: usize,
    /// Whether the file has no durable bytes yet, so that its length may be there before its bytes.
    pub(super) fresh: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Change {
    Length(usize),
    Write(usize, Vec<u8>),
    Zero(usize, usize),
}

#[derive(Debug, Clone, Default)]
struct File {
    durable: Arc<Vec<u8>>,
    pending: Vec<(usize, Change)>,
}

#[derive(Debug, Clone)]
enum Naming {
    Link(String, usize),
    Unlink(String),
    Rename(String, String, usize),
}

#[derive(Debug, Clone, Default)]
struct Directory {
    durable: BTreeMap<String, usize>,
    latest: BTreeMap<String, usize>,
    pending: Vec<(usize, Naming)>,
}

/// The disk.
#[derive(Debug, Clone, Default)]
pub(super) struct Disk {
    files: Vec<File>,
    directories: BTreeMap<String, Directory>,
}

impl Disk {
    /// A disk on which everything in `tree` is durable.
    pub(super) fn new(tree: &Tree) -> Result<Self> {
        let mut disk = Disk::default();
        for directory in super::DIRECTORIES {
            disk.directories.insert(directory.to_owned(), Directory::default());
        }
        for (path, bytes) in tree {
            let (directory, name) = split(path)?;
            let number = disk.files.len();
            disk.files.push(File { durable: bytes.clone(), pending: Vec::new() });
            let directory = disk.directories.entry(directory.to_owned()).or_default();
            directory.durable.insert(name.to_owned(), number);
            directory.latest.insert(name.to_owned(), number);
        }
        Ok(disk)
    }

    /// Performs the effect that stands at `id` in the log.
    pub(super) fn apply(&mut self, id: usize, effect: &Effect) -> Result<()> {
        match effect {
            Effect::Create(path) => {
                if self.number(path).is_err() {
                    let number = self.files.len();
                    self.files.push(File::default());
                    self.name(id, path, |name| Naming::Link(name, number))?;
                }
            }
            Effect::Truncate(path, length) => {
                let file = self.file(path)?;
                if file.content(|_| Fate::Whole).len() != *length {
                    file.pending.push((id, Change::Length(*length)));
                }
            }
            Effect::Write(path, offset, bytes) => {
                self.file(path)?.pending.push((id, Change::Write(*offset, bytes.clone())));
            }
            Effect::Zero(path, offset, length) => {
                self.file(path)?.pending.push((id, Change::Zero(*offset, *length)));
            }
            Effect::Unlink(path) => self.name(id, path, Naming::Unlink)?,
            Effect::Rename(from, to) => {
                let number = self.number(from)?;
                let (_, to) = split(to)?;
                self.name(id, from, |from| Naming::Rename(from, to.to_owned(), number))?;
            }
            Effect::Sync(path) => self.sync(path)?,
            Effect::Restart(_) => self.sync_all(),
            Effect::Loader(bytes) => {
                *self.file(super::GRUBENV)? = File { durable: Arc::new(bytes.clone()), pending: Vec::new() };
            }
            Effect::Recorded(_) | Effect::Asked(_) => {}
        }
        Ok(())
    }

    /// What a sync of `path` would make durable now.
    pub(super) fn unsynced(&self, path: &str) -> usize {
        match self.directories.get(path) {
            Some(directory) => directory.pending.len(),
            None => self.number(path).ok().and_then(|number| self.files.get(number)).map_or(0, |f| f.pending.len()),
        }
    }

    /// Everything that is not synced, in the order of the log.
    pub(super) fn pending(&self) -> Vec<Pending> {
        let mut pending = Vec::new();
        for (at, file) in self.files.iter().enumerate() {
            let payload =
                self.directories.get(super::SLOTS).is_some_and(|slots| slots.latest.values().any(|n| *n == at));
            pending.extend(file.pending.iter().map(|(id, change)| {
                let len = if let Change::Write(_, bytes) = change { bytes.len() } else { 0 };
                Pending { id: *id, payload, len, fresh: file.durable.is_empty() }
            }));
        }
        for directory in self.directories.values() {
            pending.extend(directory.pending.iter().map(|(id, _)| Pending {
                id: *id,
                payload: false,
                len: 0,
                fresh: false,
            }));
        }
        pending.sort_by_key(|pending| pending.id);
        pending
    }

    /// What is there after a cut in which each change that was not synced met the given fate.
    pub(super) fn after_cut(&self, fate: impl Fn(usize) -> Fate) -> Tree {
        let mut tree = Tree::new();
        for (path, directory) in &self.directories {
            let mut names = directory.durable.clone();
            for (id, naming) in &directory.pending {
                if fate(*id) != Fate::Lost {
                    naming.perform(&mut names);
                }
            }
            for (name, number) in names {
                let content = self.files.get(number).map(|file| file.content(&fate)).unwrap_or_default();
                tree.insert(format!("{path}/{name}"), content);
            }
        }
        tree
    }

    fn sync(&mut self, path: &str) -> Result<()> {
        if let Some(directory) = self.directories.get_mut(path) {
            directory.durable.clone_from(&directory.latest);
            directory.pending.clear();
            return Ok(());
        }
        self.file(path)?.sync();
        Ok(())
    }

    fn sync_all(&mut self) {
        self.files.iter_mut().for_each(File::sync);
        for directory in self.directories.values_mut() {
            directory.durable.clone_from(&directory.latest);
            directory.pending.clear();
        }
    }

    fn number(&self, path: &str) -> Result<usize> {
        let (directory, name) = split(path)?;
        let found = self.directories.get(directory).and_then(|directory| directory.latest.get(name));
        found.copied().with_context(|| format!("{path} is not there"))
    }

    fn file(&mut self, path: &str) -> Result<&mut File> {
        let number = self.number(path)?;
        self.files.get_mut(number).with_context(|| format!("{path} has no contents"))
    }

    fn name(&mut self, id: usize, path: &str, naming: impl FnOnce(String) -> Naming) -> Result<()> {
        let (directory, name) = split(path)?;
        let directory = self.directories.get_mut(directory).with_context(|| format!("no directory for {path}"))?;
        let naming = naming(name.to_owned());
        naming.perform(&mut directory.latest);
        directory.pending.push((id, naming));
        Ok(())
    }
}

impl File {
    fn sync(&mut self) {
        self.durable = self.content(|_| Fate::Whole);
        self.pending.clear();
    }

    fn content(&self, fate: impl Fn(usize) -> Fate) -> Arc<Vec<u8>> {
        if self.pending.is_empty() {
            return self.durable.clone();
        }
        let mut bytes = self.durable.to_vec();
        for (id, change) in &self.pending {
            change.perform(&mut bytes, fate(*id));
        }
        Arc::new(bytes)
    }
}

impl Change {
    fn perform(&self, file: &mut Vec<u8>, fate: Fate) {
        if fate == Fate::Lost {
            return;
        }
        match self {
            Change::Length(length) => file.resize(*length, 0),
            Change::Zero(offset, length) => {
                if let Some(range) = file.get_mut(*offset..offset + length) {
                    range.fill(0);
                }
            }
            Change::Write(offset, bytes) => {
                let (from, to) = match fate {
                    Fate::Prefix(length) => (0, length.min(bytes.len())),
                    Fate::Suffix(lost) => (lost.min(bytes.len()), bytes.len()),
                    _ => (0, bytes.len()),
                };
                if file.len() < offset + to {
                    file.resize(offset + to, 0);
                }
                let reached = bytes.get(from..to).unwrap_or_default();
                for (there, byte) in file.iter_mut().skip(offset + from).zip(reached) {
                    *there = if fate == Fate::Zeroes { 0 } else { *byte };
                }
            }
        }
    }
}

impl Naming {
    fn perform(&self, names: &mut BTreeMap<String, usize>) {
        match self {
            Naming::Link(name, number) => drop(names.insert(name.clone(), *number)),
            Naming::Unlink(name) => drop(names.remove(name)),
            Naming::Rename(from, to, number) => {
                names.remove(from);
                names.insert(to.clone(), *number);
            }
        }
    }
}

fn split(path: &str) -> Result<(&str, &str)> {
    path.rsplit_once('/').with_context(|| format!("{path} is in no directory"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn disk() -> Disk {
        let tree = [("d/old".to_owned(), Arc::new(b"old".to_vec()))];
        Disk::new(&tree.into_iter().collect()).unwrap()
    }

    fn replace(disk: &mut Disk, synced: bool) {
        let path = || "d/new".to_owned();
        disk.apply(0, &Effect::Create(path())).unwrap();
        disk.apply(1, &Effect::Write(path(), 0, b"fresh".to_vec())).unwrap();
        if synced {
            disk.apply(2, &Effect::Sync(path())).unwrap();
        }
        disk.apply(3, &Effect::Rename(path(), "d/old".into())).unwrap();
    }

    #[test]
    fn a_rename_without_a_sync_of_the_file_can_leave_an_empty_file_under_the_old_name() {
        let mut disk = disk();
        replace(&mut disk, false);
        let worst = disk.after_cut(|id| if id == 3 { Fate::Whole } else { Fate::Lost });
        assert_eq!(worst["d/old"].as_slice(), b"");
    }

    #[test]
    fn a_rename_is_durable_only_once_the_directory_was_synced() {
        let mut disk = disk();
        replace(&mut disk, true);
        assert_eq!(disk.after_cut(|_| Fate::Lost)["d/old"].as_slice(), b"old");
        assert_eq!(disk.after_cut(|_| Fate::Whole)["d/old"].as_slice(), b"fresh");
        disk.apply(4, &Effect::Sync("d".into())).unwrap();
        assert_eq!(disk.after_cut(|_| Fate::Lost)["d/old"].as_slice(), b"fresh");
        assert!(disk.pending().is_empty());
    }

    #[test]
    fn a_torn_write_leaves_the_sectors_that_were_written() {
        let mut disk = disk();
        disk.apply(0, &Effect::Write("d/old".into(), 0, b"NEW".to_vec())).unwrap();
        assert_eq!(disk.after_cut(|_| Fate::Prefix(1))["d/old"].as_slice(), b"Nld");
        assert_eq!(disk.after_cut(|_| Fate::Suffix(1))["d/old"].as_slice(), b"oEW");
    }
}
