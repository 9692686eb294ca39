//! What an entry's contents say: whether it is one at all, and its place in the loader's list.
//!
//! systemd-boot sorts by `sort-key`, `machine-id` and `version` before it looks at the names. The names decide only where
//! these are the same in the entries of both groups; so an activation holds one against the other.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::path::Path;

use bascule_core::Group;

use super::names::Kind;
use super::partition::GROUP_WORD;

/// More than any text of an entry, or section of an image that we read, can sensibly have.
const MOST_BYTES: u64 = 64 * 1024;
/// More sections than an image can sensibly have.
const MOST_SECTIONS: u64 = 96;

/// What is wrong with the contents of an entry, in words, if the loader could not list it whatever else is on the boot
/// partition: it is empty, or names no kernel. An error when that cannot be told.
pub(super) fn fault(kind: Kind, path: &Path) -> io::Result<Option<String>> {
    let about = fs::metadata(path)?;
    if !about.is_file() {
        return Ok(Some("is no file".into()));
    }
    if about.len() == 0 {
        return Ok(Some("is empty".into()));
    }
    // A file that cannot be read at all is no damaged one.
    let text = match (kind, read_text(path)) {
        (_, Err(error)) if error.kind() != io::ErrorKind::InvalidData => return Err(error),
        (Kind::Image, _) => {
            let read = open(path).and_then(|image| SortKeys::of_image(&image));
            return Ok(read.err().map(|_| "is no unified kernel image with a name".into()));
        }
        (Kind::Text, text) => text.ok(),
    };
    Ok(text.as_deref().and_then(program).is_none().then(|| "names no kernel".into()))
}

/// Whether a kept copy is whole, and not the other group's by the word that it would start a system with. One that cannot
/// be read is none: it is needed only where an entry was lost.
pub(super) fn is_whole_copy(kind: Kind, path: &Path, group: Group) -> bool {
    let words = kernel_words(kind, path).unwrap_or_default();
    let mut told = words.split_ascii_whitespace().filter_map(|word| word.strip_prefix(GROUP_WORD));
    matches!(fault(kind, path), Ok(None)) && told.all(|letter| letter == group.letter())
}

/// What the loader sorts by before the name.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct SortKeys {
    pub(super) sort_key: Option<String>,
    pub(super) machine_id: Option<String>,
    pub(super) version: Option<String>,
}

impl SortKeys {
    /// Reads an entry as the loader does; an error is why the loader would not list it, in words.
    pub(super) fn read(root: &Path, kind: Kind, path: &Path) -> Result<Self, String> {
        match kind {
            Kind::Text => Self::of_text(root, &text(path)?),
            Kind::Image => Self::of_image(&open(path)?),
        }
    }

    /// Those of a unified kernel image.
    pub(super) fn of_image(image: &File) -> Result<Self, String> {
        Self::of_os_release(&section(image, b".osrel\0\0")?)
    }

    fn of_text(root: &Path, text: &str) -> Result<Self, String> {
        let last = |key: &'static str| values(text, key).last().map(str::to_owned);
        let program = program(text).ok_or("it names no kernel")?;
        if !root.join(program.trim_start_matches('/')).is_file() {
            return Err(format!("there is no file {program}"));
        }
        Ok(SortKeys { sort_key: last("sort-key"), machine_id: last("machine-id"), version: last("version") })
    }

    /// As systemd's `bootspec_pick_name_version_sort_key` picks them.
    fn of_os_release(text: &str) -> Result<Self, String> {
        let value = |key: &str| {
            let found = text.lines().filter_map(|line| line.trim().split_once('=')).rfind(|(is, _)| *is == key);
            found.map(|(_, value)| value.trim_matches(['"', '\'']).to_owned())
        };
        let first = |keys: &[&str]| keys.iter().copied().find_map(value);
        first(&["PRETTY_NAME", "IMAGE_ID", "NAME", "ID"]).ok_or("its os-release has no name")?;
        Ok(SortKeys {
            sort_key: first(&["IMAGE_ID", "ID"]),
            machine_id: None,
            version: first(&["IMAGE_VERSION", "VERSION", "VERSION_ID", "BUILD_ID"]),
        })
    }
}

/// The words that the kernel is started with.
pub(super) fn kernel_words(kind: Kind, path: &Path) -> Result<String, String> {
    match kind {
        Kind::Text => Ok(values(&text(path)?, "options").collect::<Vec<_>>().join(" ")),
        Kind::Image => words_of_image(&open(path)?),
    }
}

/// The words that a unified kernel image starts its kernel with.
pub(super) fn words_of_image(image: &File) -> Result<String, String> {
    section(image, b".cmdline")
}

/// A unified kernel image that has a kernel, and everything that its table of sections names.
pub(super) fn check_whole(image: &File) -> Result<(), String> {
    let length = image.metadata().map_err(|error| error.to_string())?.len();
    let sections = sections(image)?;
    if sections.iter().any(|section| section.at.saturating_add(section.stored) > length) {
        return Err("it ends before its last section does".into());
    }
    let has_kernel = sections.iter().any(|section| &section.name == b".linux\0\0" && section.stored > 0);
    if has_kernel { Ok(()) } else { Err("it has no kernel".into()) }
}

/// The values of a key in an entry or in `loader.conf`, as the loader reads lines (`line_get_key_value`).
pub(super) fn values<'a>(text: &'a str, key: &'static str) -> impl Iterator<Item = &'a str> {
    let lines = text.lines().filter_map(|line| line.trim().split_once([' ', '\t']));
    lines.filter(move |(is, _)| *is == key).map(|(_, value)| {
        let value = value.trim();
        value.strip_prefix('"').and_then(|value| value.strip_suffix('"')).unwrap_or(value)
    })
}

/// What an entry starts, by the one key of three that it has.
fn program(text: &str) -> Option<&str> {
    let last = |key: &'static str| values(text, key).last().filter(|value| !value.is_empty());
    ["linux", "efi", "uki"].into_iter().find_map(last)
}

fn text(path: &Path) -> Result<String, String> {
    read_text(path).map_err(|error| error.to_string())
}

fn read_text(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    File::open(path)?.take(MOST_BYTES).read_to_string(&mut text)?;
    Ok(text)
}

fn open(path: &Path) -> Result<File, String> {
    File::open(path).map_err(|error| error.to_string())
}

/// The bytes of one section of a PE file, as text.
fn section(image: &File, name: &[u8; 8]) -> Result<String, String> {
    let sections = sections(image)?;
    let found = sections.iter().find(|section| &section.name == name).ok_or("it is no unified kernel image")?;
    let length = found.used.min(found.stored).min(MOST_BYTES);
    let bytes = bytes_at(image, found.at, usize::try_from(length).unwrap_or_default())?;
    Ok(String::from_utf8_lossy(&bytes).trim_end_matches('\0').to_owned())
}

/// One section of a PE file: its name, where its bytes begin, how many are stored and how many of them are used.
struct Section {
    name: [u8; 8],
    at: u64,
    stored: u64,
    used: u64,
}

/// The table of sections.
fn sections(image: &File) -> Result<Vec<Section>, String> {
    let number = |at: u64, length: usize| {
        bytes_at(image, at, length).map(|bytes| bytes.iter().rev().fold(0, |sum, byte| sum << 8 | u64::from(*byte)))
    };
    let header = number(0x3c, 4)?;
    if bytes_at(image, 0, 2)? != b"MZ" || bytes_at(image, header, 4)? != b"PE\0\0" {
        return Err("it is no EFI program".into());
    }
    let table = header + 24 + number(header + 20, 2)?;
    let section = |index: u64| {
        let entry = table + index * 40;
        let name = bytes_at(image, entry, 8)?.try_into().unwrap_or_default();
        Ok(Section { name, at: number(entry + 20, 4)?, stored: number(entry + 16, 4)?, used: number(entry + 8, 4)? })
    };
    (0..number(header + 6, 2)?.min(MOST_SECTIONS)).map(section).collect()
}

fn bytes_at(image: &File, at: u64, length: usize) -> Result<Vec<u8>, String> {
    let mut bytes = vec![0; length];
    image.read_exact_at(&mut bytes, at).map(|()| bytes).map_err(|_| "it is no EFI program".to_owned())
}
