//! Runs the agent under strace and reads what it did to the device's files, in order.

use std::collections::HashMap;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

/// Everything that writes, syncs or renames, and what could do so past this rig. A call that is traced and not known
/// below is an error, not a gap.
const CALLS: &str = "trace=openat,open,creat,openat2,write,pwrite64,writev,pwritev,pwritev2,fsync,fdatasync,sync,\
    syncfs,sync_file_range,rename,renameat,renameat2,unlink,unlinkat,rmdir,link,linkat,symlink,symlinkat,truncate,\
    ftruncate,fallocate,mkdir,mkdirat,copy_file_range,sendfile,splice,io_uring_setup";
/// Longer than any single write of the agent.
const LONGEST_WRITE: &str = "4194304";

/// What one call did. Paths are relative to the device's root; those of memory file systems are left out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    /// The file was made, unless it was there.
    Create(String),
    /// The file was cut or extended.
    Truncate(String, usize),
    /// Bytes were written at an offset.
    Write(String, usize, Vec<u8>),
    /// A range was made to read as zeroes.
    Zero(String, usize, usize),
    /// The file got another name in its directory, in place of whatever had it before.
    Rename(String, String),
    /// The name is gone.
    Unlink(String),
    /// The file, or the directory, was synced.
    Sync(String),
    /// The agent said that this generation of the record is durable.
    Recorded(u64),
    /// The agent asked for a restart, and said by that, that this group is started next.
    Asked(bascule_core::Group),
    /// The loader wrote its settings, past every cache.
    Loader(Vec<u8>),
    /// An orderly restart: everything has reached the disk. The group that is started next.
    Restart(bascule_core::Group),
}

/// Runs `command` to its end under strace. Returns its exit code and what it did below `root`.
///
/// # Errors
/// When strace is missing, a line is not understood, or something outside of the device was written.
pub(super) fn run(command: &Command, root: &Path) -> Result<(Option<i32>, Vec<Effect>)> {
    let log = root.with_extension("strace");
    let mut strace = Command::new("strace");
    strace.args(["-f", "-y", "-xx", "-s", LONGEST_WRITE, "-e", CALLS, "-o"]).arg(&log).arg("--");
    strace.arg(command.get_program()).args(command.get_args());
    let output = strace.output().context("strace cannot be started: install it (`cargo xtask setup`)")?;
    let text = std::fs::read_to_string(&log)?;
    let mut reader = Reader { root: root.to_str().context("the root's path is text")?, ..Reader::default() };
    for line in whole_lines(&text)? {
        reader.line(&line).with_context(|| line.chars().take(200).collect::<String>())?;
    }
    Ok((output.status.code(), reader.effects))
}

/// Puts calls that other threads interrupted together again, in the order in which they ended.
fn whole_lines(text: &str) -> Result<Vec<String>> {
    let mut begun: HashMap<&str, &str> = HashMap::new();
    let mut lines = Vec::new();
    for line in text.lines() {
        let (pid, call) = line.split_once(' ').context("a line begins with the thread")?;
        let call = call.trim_start();
        if call.starts_with("+++") || call.starts_with("---") {
            continue;
        }
        if let Some(first) = call.strip_suffix("<unfinished ...>") {
            begun.insert(pid, first);
        } else if let Some(rest) = call.strip_prefix("<... ") {
            let (_, rest) = rest.split_once("resumed>").context("a resumed call")?;
            let first = begun.remove(pid).context("a call that was begun")?;
            lines.push(format!("{}{}", first.trim_end(), rest));
        } else {
            lines.push(call.to_owned());
        }
    }
    Ok(lines)
}

#[derive(Default)]
struct Reader<'r> {
    root: &'r str,
    effects: Vec<Effect>,
    /// Where the next `write` of an open file goes.
    positions: HashMap<String, usize>,
}

impl Reader<'_> {
    fn line(&mut self, line: &str) -> Result<()> {
        let (name, rest) = line.split_once('(').context("a call")?;
        let (arguments, result) = rest.rsplit_once(" = ").context("a result")?;
        if result.starts_with('-') || result.starts_with('?') {
            return Ok(());
        }
        let arguments = arguments.trim_end().strip_suffix(')').context("the end of the arguments")?;
        let arguments: Vec<&str> = arguments.split(", ").collect();
        let argument = |at: usize| arguments.get(at).copied().context("an argument");
        let number = |at: usize| -> Result<usize> { Ok(argument(at)?.parse()?) };
        match name {
            "openat" | "openat2" | "open" => self.open(&arguments, result),
            "write" => self.write(argument(0)?, bytes(argument(1)?)?, None),
            "pwrite64" => self.write(argument(0)?, bytes(argument(1)?)?, Some(number(3)?)),
            "fsync" | "fdatasync" => self.push_for(descriptor(argument(0)?)?, Effect::Sync),
            "ftruncate" => {
                let length = number(1)?;
                self.push_for(descriptor(argument(0)?)?, |path| Effect::Truncate(path, length))
            }
            "fallocate" => {
                ensure!(argument(1)?.contains("FALLOC_FL_ZERO_RANGE"), "an unknown way to allocate");
                let (offset, length) = (number(2)?, number(3)?);
                self.push_for(descriptor(argument(0)?)?, |path| Effect::Zero(path, offset, length))
            }
            "unlink" => self.push_for(bytes_as_text(argument(0)?)?, Effect::Unlink),
            "unlinkat" => self.push_for(below(argument(0)?, argument(1)?)?, Effect::Unlink),
            "rename" => self.rename(&bytes_as_text(argument(0)?)?, &bytes_as_text(argument(1)?)?),
            "renameat" | "renameat2" => {
                self.rename(&below(argument(0)?, argument(1)?)?, &below(argument(2)?, argument(3)?)?)
            }
            "mkdir" | "rmdir" => self.directory(&bytes_as_text(argument(0)?)?),
            "mkdirat" => self.directory(&below(argument(0)?, argument(1)?)?),
            _ => bail!("the rig does not know what {name} does"),
        }
    }

    fn open(&mut self, arguments: &[&str], result: &str) -> Result<()> {
        let writes = arguments.iter().any(|word| word.contains("O_WRONLY") || word.contains("O_RDWR"));
        let (creates, cuts) = (has(arguments, "O_CREAT"), has(arguments, "O_TRUNC"));
        if !writes && !creates {
            return Ok(());
        }
        let path = descriptor(result)?;
        let Place::Disk(path) = self.place(&path)? else { return Ok(()) };
        ensure!(!has(arguments, "O_APPEND"), "the rig does not know appending");
        self.positions.insert(path.clone(), 0);
        if creates {
            self.effects.push(Effect::Create(path.clone()));
        }
        if cuts {
            self.effects.push(Effect::Truncate(path, 0));
        }
        Ok(())
    }

    fn write(&mut self, file: &str, data: Vec<u8>, offset: Option<usize>) -> Result<()> {
        if file.starts_with("2<") {
            if let Some(generation) = recorded(&String::from_utf8_lossy(&data)) {
                self.effects.push(Effect::Recorded(generation));
            }
            return Ok(());
        }
        let Place::Disk(path) = self.place(&descriptor(file)?)? else { return Ok(()) };
        let offset = match offset {
            Some(offset) => offset,
            None => {
                let position = self.positions.entry(path.clone()).or_default();
                let offset = *position;
                *position += data.len();
                offset
            }
        };
        self.effects.push(Effect::Write(path, offset, data));
        Ok(())
    }

    fn directory(&self, path: &str) -> Result<()> {
        ensure!(self.place(path)? == Place::Memory, "a directory was made or removed");
        Ok(())
    }

    fn rename(&mut self, from: &str, to: &str) -> Result<()> {
        let (from, to) = (self.place(from)?, self.place(to)?);
        match (from, to) {
            (Place::Disk(from), Place::Disk(to)) => {
                self.effects.push(Effect::Rename(from, to));
                Ok(())
            }
            (Place::Memory, Place::Memory) => Ok(()),
            _ => bail!("a file was moved between file systems"),
        }
    }

    fn push_for(&mut self, path: String, effect: impl FnOnce(String) -> Effect) -> Result<()> {
        if let Place::Disk(path) = self.place(&path)? {
            self.effects.push(effect(path));
        }
        Ok(())
    }

    /// Which kind of file system a path lies on.
    fn place(&self, path: &str) -> Result<Place> {
        let Some(below) = path.strip_prefix(self.root) else {
            let harmless = ["pipe:[", "socket:[", "anon_inode:", "/dev/null", "/dev/pts/", "/proc/self/"];
            ensure!(harmless.iter().any(|start| path.starts_with(start)), "{path} is outside of the device");
            return Ok(Place::Memory);
        };
        let below = below.trim_start_matches('/');
        let on_disk = ["dev/", "boot/", "data/"].iter().any(|start| below.starts_with(start));
        let in_memory = ["run/", "proc/"].iter().any(|start| below.starts_with(start));
        ensure!(on_disk || in_memory, "{below} is none of the files the agent may write");
        // What is told about deployments is for people: nothing that decides reads it, so no cut in it matters.
        let told = below.starts_with(super::TOLD);
        Ok(if on_disk && !told { Place::Disk(below.to_owned()) } else { Place::Memory })
    }
}

#[derive(PartialEq, Eq)]
enum Place {
    Disk(String),
    Memory,
}

fn has(arguments: &[&str], flag: &str) -> bool {
    arguments.iter().any(|word| word.split(['|', '=']).any(|part| part == flag))
}

/// The generation in the agent's line about a durable record.
fn recorded(line: &str) -> Option<u64> {
    let (_, after) = line.split_once("recorded step=")?;
    let (_, generation) = after.split_once("generation=")?;
    generation.split_whitespace().next()?.parse().ok()
}

/// The path of `7<\x2f...>`.
fn descriptor(word: &str) -> Result<String> {
    let (_, path) = word.split_once('<').context("a descriptor with its path")?;
    let (path, _) = path.rsplit_once('>').context("a descriptor with its path")?;
    Ok(String::from_utf8(unescape(path)?)?)
}

/// A path and the directory it begins at.
fn below(directory: &str, path: &str) -> Result<String> {
    let path = bytes_as_text(path)?;
    Ok(if path.starts_with('/') { path } else { format!("{}/{path}", descriptor(directory)?) })
}

fn bytes_as_text(word: &str) -> Result<String> {
    Ok(String::from_utf8(bytes(word)?)?)
}

fn bytes(word: &str) -> Result<Vec<u8>> {
    let inner = word.strip_prefix('"').and_then(|word| word.strip_suffix('"')).context("a whole string")?;
    unescape(inner)
}

fn unescape(text: &str) -> Result<Vec<u8>> {
    if !text.starts_with("\\x") {
        return Ok(text.as_bytes().to_vec());
    }
    let digits = text.split("\\x").skip(1);
    digits.map(|pair| u8::from_str_radix(pair, 16).with_context(|| format!("{pair:?} is no byte"))).collect()
}
