//! systemd-boot as a function of the boot partition: the same files in, the same choice and the same rename out.
//!
//! Written after `src/boot/boot.c` of systemd (the same from 252 on in what is used here): what is listed
//! (`config_load_type1_entries`, type 2 likewise), the order (`boot_entry_compare`), the choice
//! (`config_select_default_entry`, without EFI variables and without a person) and the count (`boot_entry_bump_counters`).
//! `tests/real_sdboot.rs` holds it against the loader itself. Not in it: entries that the loader makes by itself, and its
//! menu, which without `loader.conf` comes where nothing else is listed.

use std::cmp::{Ordering, Reverse};
use std::fs;
use std::path::{Path, PathBuf};

use bascule_core::Group;

use super::contents::{SortKeys, kernel_words, values};
use super::names::Kind;

/// Whether the firmware can rename files at this start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Renaming {
    /// The rename reaches the disk.
    Works,
    /// The rename fails: a read-only medium, a firmware that refuses. The loader says so and goes on.
    Fails,
}

/// An entry that the loader lists.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    /// The file's name, as it was before the start.
    pub file: String,
    /// The group that the entry's contents start: the kernel's word `bascule.group=`.
    pub group: Option<Group>,
}

/// One start of the loader.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Start {
    /// All entries in the loader's order.
    pub listed: Vec<Listed>,
    /// The entry that is started unattended; `None` where there is none: the loader goes back to the firmware.
    pub started: Option<Listed>,
}

/// Starts the loader once, unattended, on the boot partition at `root`.
///
/// # Errors
/// When the partition cannot be read.
pub fn start(root: &Path, renaming: Renaming) -> std::io::Result<Start> {
    let mut entries = Vec::new();
    for kind in Kind::ALL {
        entries.extend(list(root, kind)?);
    }
    entries.sort_by(compare);
    let configuration = fs::read_to_string(root.join("loader/loader.conf")).unwrap_or_default();
    let pattern = values(&configuration, "default").last().map(str::to_ascii_lowercase);
    let fits = |entry: &&Entry| pattern.as_ref().is_some_and(|p| matches(p.as_bytes(), entry.id.as_bytes()));
    let chosen = entries.iter().find(fits).or_else(|| entries.first());
    if let Some(next) = chosen.and_then(|entry| Some((entry, next_name(entry)?)))
        && renaming == Renaming::Works
    {
        let (entry, next) = next;
        let to = entry.dir.join(next);
        if !to.exists() {
            fs::rename(entry.dir.join(&entry.listed.file), to)?;
        }
    }
    Ok(Start {
        started: chosen.map(|entry| entry.listed.clone()),
        listed: entries.iter().map(|entry| entry.listed.clone()).collect(),
    })
}

/// The loader's order of two strings as versions: `strverscmp_improved`, older first.
#[must_use]
pub fn compare_versions(a: &str, b: &str) -> Ordering {
    let (mut a, mut b) = (a.as_bytes(), b.as_bytes());
    loop {
        (a, b) = (skip(a, |byte| !is_version(byte)), skip(b, |byte| !is_version(byte)));
        let order = separator(&mut a, &mut b, b'~');
        if order.is_ne() {
            return order;
        }
        if a.is_empty() || b.is_empty() {
            return b.is_empty().cmp(&a.is_empty());
        }
        for mark in *b"-^." {
            let order = separator(&mut a, &mut b, mark);
            if order.is_ne() {
                return order;
            }
        }
        let starts_with_digit = |text: &[u8]| text.first().is_some_and(u8::is_ascii_digit);
        let numeric = starts_with_digit(a) || starts_with_digit(b);
        let class = if numeric { u8::is_ascii_digit } else { u8::is_ascii_alphabetic };
        let (rest_a, rest_b) = (skip(a, |byte| class(&byte)), skip(b, |byte| class(&byte)));
        let (head_a, head_b) = (head(a, rest_a), head(b, rest_b));
        let order = if numeric { numbers(head_a, head_b) } else { words(head_a, head_b) };
        if order.is_ne() {
            return order;
        }
        (a, b) = (rest_a, rest_b);
    }
}

/// An entry, and what it is sorted by.
struct Entry {
    listed: Listed,
    dir: PathBuf,
    suffix: &'static str,
    id: String,
    keys: SortKeys,
    tries: Option<(u64, u64)>,
}

fn list(root: &Path, kind: Kind) -> std::io::Result<Vec<Entry>> {
    let dir = root.join(kind.directory());
    if !dir.is_dir() {
        return Ok(Vec::new());
    }
    let mut entries = Vec::new();
    for file in fs::read_dir(&dir)? {
        let Ok(file) = file?.file_name().into_string() else { continue };
        let (id, path) = (file.to_ascii_lowercase(), dir.join(&file));
        if id.starts_with('.') || id.starts_with("auto-") || !id.ends_with(kind.suffix()) || !path.is_file() {
            continue;
        }
        let Ok(keys) = SortKeys::read(root, kind, &path) else { continue };
        let words = kernel_words(kind, &path).unwrap_or_default();
        let word = words.split_whitespace().find_map(|word| word.strip_prefix("bascule.group="));
        let group = Group::ALL.into_iter().find(|group| word == Some(group.letter()));
        let tries = counters(&id, kind.suffix());
        let listed = Listed { file, group };
        entries.push(Entry { listed, dir: dir.clone(), suffix: kind.suffix(), id, keys, tries });
    }
    Ok(entries)
}

/// `boot_entry_parse_tries`
fn counters(id: &str, suffix: &str) -> Option<(u64, u64)> {
    let (_, counters) = id.strip_suffix(suffix)?.rsplit_once('+')?;
    let number = |text: &str| {
        let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        text.parse::<u64>().ok().filter(|number| digits && *number <= 0x7fff_ffff)
    };
    match counters.split_once('-') {
        Some((left, done)) => Some((number(left)?, number(done)?)),
        None => Some((number(counters)?, 0)),
    }
}

fn next_name(entry: &Entry) -> Option<String> {
    let (left, done) = entry.tries?;
    let (stem, _) = entry.listed.file.rsplit_once('+')?;
    Some(format!("{stem}+{}-{}{}", left.saturating_sub(1), (done + 1).min(0x7fff_ffff), entry.suffix))
}

/// `boot_entry_compare`
fn compare(a: &Entry, b: &Entry) -> Ordering {
    let exhausted = |entry: &Entry| matches!(entry.tries, Some((0, _)));
    let versions = |a: &Option<String>, b: &Option<String>| {
        compare_versions(a.as_deref().unwrap_or_default(), b.as_deref().unwrap_or_default())
    };
    let keys = || match (&a.keys.sort_key, &b.keys.sort_key) {
        (Some(first), Some(second)) => first
            .cmp(second)
            .then_with(|| a.keys.machine_id.cmp(&b.keys.machine_id))
            .then_with(|| versions(&b.keys.version, &a.keys.version)),
        (first, second) => second.is_some().cmp(&first.is_some()),
    };
    let tries = || match (a.tries, b.tries) {
        (Some((left_a, done_a)), Some((left_b, done_b))) => {
            Reverse(left_a).cmp(&Reverse(left_b)).then(done_a.cmp(&done_b))
        }
        _ => Ordering::Equal,
    };
    exhausted(a).cmp(&exhausted(b)).then_with(keys).then_with(|| compare_versions(&b.id, &a.id)).then_with(tries)
}

/// `efi_fnmatch`, as far as patterns of `default` go: `*`, `?` and sets with ranges.
fn matches(pattern: &[u8], text: &[u8]) -> bool {
    match (pattern, text) {
        ([], []) => true,
        ([b'*', rest @ ..], _) => (0..=text.len()).any(|at| text.get(at..).is_some_and(|text| matches(rest, text))),
        ([b'[', rest @ ..], [byte, text @ ..]) => {
            let Some(end) = rest.iter().skip(1).position(|byte| *byte == b']').map(|at| at + 1) else { return false };
            let (set, after) = rest.split_at(end);
            set_has(set, *byte) && after.get(1..).is_some_and(|after| matches(after, text))
        }
        ([b'?', pattern @ ..], [_, text @ ..]) => matches(pattern, text),
        ([first, pattern @ ..], [byte, text @ ..]) => first == byte && matches(pattern, text),
        _ => false,
    }
}

fn set_has(set: &[u8], byte: u8) -> bool {
    match set {
        [low, b'-', high, rest @ ..] => (*low..=*high).contains(&byte) || set_has(rest, byte),
        [first, rest @ ..] => *first == byte || set_has(rest, byte),
        [] => false,
    }
}

fn is_version(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"~-^.".contains(&byte)
}

fn skip(text: &[u8], what: impl Fn(u8) -> bool) -> &[u8] {
    let end = text.iter().position(|byte| !what(*byte)).unwrap_or(text.len());
    text.get(end..).unwrap_or_default()
}

fn head<'a>(text: &'a [u8], rest: &[u8]) -> &'a [u8] {
    text.get(..text.len().saturating_sub(rest.len())).unwrap_or_default()
}

/// What begins with the separator is older; both lose it.
fn separator(a: &mut &[u8], b: &mut &[u8], mark: u8) -> Ordering {
    match (a.strip_prefix(&[mark]), b.strip_prefix(&[mark])) {
        (Some(rest_a), Some(rest_b)) => {
            (*a, *b) = (rest_a, rest_b);
            Ordering::Equal
        }
        (first, second) => second.is_some().cmp(&first.is_some()),
    }
}

fn numbers(a: &[u8], b: &[u8]) -> Ordering {
    let (short_a, short_b) = (skip(a, |byte| byte == b'0'), skip(b, |byte| byte == b'0'));
    let empty = b.is_empty().cmp(&a.is_empty());
    empty.then(short_a.len().cmp(&short_b.len())).then(short_a.cmp(short_b))
}

fn words(a: &[u8], b: &[u8]) -> Ordering {
    let common = a.len().min(b.len());
    a.get(..common).cmp(&b.get(..common)).then(a.len().cmp(&b.len()))
}
