//! A load option, what a `Boot####` variable holds, bit exact (UEFI specification 2.10, section 3.1.3).
//!
//! | bytes | what |
//! |---|---|
//! | 4 | attributes; bit 0 says that the boot manager may start it by itself |
//! | 2 | length of the device paths |
//! | to the first NUL | description, 16 bits a character |
//! | as said above | device paths (sections 10.3.1, 10.3.5.1, 10.3.5.4); the first one says what is started |
//! | the rest | data for what is started: a kernel with an EFI stub takes it as its command line |
//!
//! All numbers are little-endian. The firmware passes over an option whose first device path has no end within its
//! length, and so do we.

use std::fmt;

use bascule_core::Group;

use super::error::EfiError;

/// The boot manager may start the option by itself.
const ACTIVE: u32 = 1;

/// The most bytes that any part of a built option can have; firmware of today takes less than 64 KiB for a variable.
const PART_LIMIT: usize = 60_000;

/// A node's type and subtype.
const HARD_DRIVE: [u8; 2] = [4, 1];
const FILE: [u8; 2] = [4, 4];
const END: [u8; 2] = [0x7f, 0xff];

/// A partition table with GUIDs, and a partition that is known by its own.
const BY_GUID: [u8; 2] = [2, 2];

/// One load option.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LoadOption {
    /// Bits of the specification.
    pub attributes: u32,
    /// The text that names it, what is not Unicode replaced.
    pub description: String,
    /// The device paths.
    pub paths: Vec<u8>,
    /// What follows them.
    pub data: Vec<u8>,
}

/// A partition of a GUID partition table, as a device path names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Partition {
    /// Its number, from 1.
    pub number: u32,
    /// Its first block.
    pub start: u64,
    /// How many blocks it has.
    pub blocks: u64,
    /// Its own GUID, the sixteen bytes as they lie in the partition table.
    pub guid: [u8; 16],
}

/// What an option starts: a file on a partition that is known by its GUID.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Program {
    /// The partition's GUID as text, lower case.
    pub partition: String,
    /// The file's path from the root of the partition, with backslashes.
    pub file: String,
}

/// The description of a group's boot entry: what the entry is known by, whatever its number.
#[must_use]
pub fn description(group: Group) -> &'static str {
    match group {
        Group::A => "Bascule a",
        Group::B => "Bascule b",
    }
}

impl fmt::Display for Program {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} on partition {}", self.file, self.partition)
    }
}

impl LoadOption {
    /// Reads the bytes of a variable; `None` for what the firmware would pass over.
    #[must_use]
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let (attributes, rest) = bytes.split_first_chunk()?;
        let (length, rest) = rest.split_first_chunk()?;
        let characters: Vec<u16> = units(rest).take_while(|unit| *unit != 0).collect();
        let rest = rest.get(characters.len().checked_add(1)?.checked_mul(2)?..)?;
        let (paths, data) = rest.split_at_checked(usize::from(u16::from_le_bytes(*length)))?;
        let option = LoadOption {
            attributes: u32::from_le_bytes(*attributes),
            description: String::from_utf16_lossy(&characters),
            paths: paths.to_vec(),
            data: data.to_vec(),
        };
        ends(paths).then_some(option)
    }

    /// The option that starts a group's kernel: a file with an EFI stub on this partition, such as
    /// `\bascule\linux-a.efi`, with this command line.
    ///
    /// # Errors
    /// [`EfiError::Text`] for a path or command line that 16 bits a character cannot hold.
    pub fn for_group(group: Group, partition: &Partition, file: &str, command_line: &str) -> Result<Self, EfiError> {
        let mut drive = Vec::new();
        drive.extend_from_slice(&partition.number.to_le_bytes());
        drive.extend_from_slice(&partition.start.to_le_bytes());
        drive.extend_from_slice(&partition.blocks.to_le_bytes());
        drive.extend_from_slice(&partition.guid);
        drive.extend_from_slice(&BY_GUID);
        let path = text("path", file)?;
        let nodes = [node(HARD_DRIVE, &drive), node(FILE, &path), node(END, &[])];
        Ok(LoadOption {
            attributes: ACTIVE,
            description: description(group).to_owned(),
            paths: nodes.concat(),
            data: text("command line", command_line)?,
        })
    }

    /// The bytes of a variable with this option.
    ///
    /// # Errors
    /// [`EfiError::Text`] for a description that 16 bits a character cannot hold, or device paths that are too long.
    pub fn to_bytes(&self) -> Result<Vec<u8>, EfiError> {
        let description = text("description", &self.description)?;
        let length = u16::try_from(self.paths.len())
            .map_err(|_| EfiError::Text { what: "device path", text: format!("{} bytes", self.paths.len()) })?;
        let attributes = self.attributes.to_le_bytes();
        Ok([&attributes[..], &length.to_le_bytes(), &description, &self.paths, &self.data].concat())
    }

    /// What its first device path starts; `None` where that is not a file on a partition of a GUID partition table.
    ///
    /// Before the partition there may be the way to its disk. The file may be told in several nodes, one for each folder.
    #[must_use]
    pub fn program(&self) -> Option<Program> {
        let mut partition = None;
        let mut file: Vec<String> = Vec::new();
        for (kind, data) in nodes(&self.paths) {
            match (kind, partition.is_some()) {
                // The end of the path, or of one of several.
                ([0x7f, _], _) => break,
                (HARD_DRIVE, false) => partition = Some(by_guid(data)?),
                (FILE, true) => {
                    let units: Vec<u16> = units(data).take_while(|unit| *unit != 0).collect();
                    file.push(String::from_utf16(&units).ok()?.trim_matches('\\').to_owned());
                }
                (_, false) => {}
                // Nothing but a file can be on a partition.
                (_, true) => return None,
            }
        }
        let partition = partition.filter(|_| !file.is_empty())?;
        Some(Program { partition, file: format!("\\{}", file.join("\\")) })
    }

    /// Whether the boot manager may start it by itself.
    #[must_use]
    pub fn is_active(&self) -> bool {
        self.attributes & ACTIVE != 0
    }
}

/// The bytes of an option with the bit set that lets the boot manager start it; every other bit as it was.
pub(super) fn activated(bytes: &[u8]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    if let Some(attributes) = bytes.first_chunk_mut() {
        *attributes = (u32::from_le_bytes(*attributes) | ACTIVE).to_le_bytes();
    }
    bytes
}

/// Whole 16-bit numbers, in order.
pub(super) fn units(bytes: &[u8]) -> impl Iterator<Item = u16> {
    bytes.as_chunks::<2>().0.iter().map(|unit| u16::from_le_bytes(*unit))
}

/// Whether a device path comes to its end.
fn ends(paths: &[u8]) -> bool {
    nodes(paths).any(|(kind, _)| kind == END)
}

/// The nodes of device paths, type and data, up to the first one that is not whole.
fn nodes(mut paths: &[u8]) -> impl Iterator<Item = ([u8; 2], &[u8])> {
    std::iter::from_fn(move || {
        let ([kind @ .., low, high], _) = paths.split_first_chunk::<4>()?;
        let (node, rest) = paths.split_at_checked(usize::from(u16::from_le_bytes([*low, *high])))?;
        paths = rest;
        Some((*kind, node.get(4..)?))
    })
}

/// The GUID in the data of a hard drive's node, as text: its first three parts are little-endian.
fn by_guid(drive: &[u8]) -> Option<String> {
    let guid: &[u8; 16] = drive.get(20..36)?.try_into().ok()?;
    let [a, b, c, d, e, f, g, h, rest @ ..] = *guid;
    let part = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let (head, tail) = rest.split_at_checked(2)?;
    let text = [part(&[d, c, b, a]), part(&[f, e]), part(&[h, g]), part(head), part(tail)].join("-");
    (drive.get(36..) == Some(&BY_GUID)).then_some(text)
}

fn node(kind: [u8; 2], data: &[u8]) -> Vec<u8> {
    // No overflow: every part is bounded by PART_LIMIT.
    let length = u16::try_from(data.len().saturating_add(4)).unwrap_or(u16::MAX);
    [&kind[..], &length.to_le_bytes(), data].concat()
}

/// A text as the specification writes it: 16 bits a character, a NUL at its end.
fn text(what: &'static str, text: &str) -> Result<Vec<u8>, EfiError> {
    let fits = text.chars().all(|letter| letter != '\0' && u32::from(letter) <= 0xffff);
    let bytes: Vec<u8> = text.encode_utf16().chain([0]).flat_map(u16::to_le_bytes).collect();
    if fits && bytes.len() <= PART_LIMIT {
        Ok(bytes)
    } else {
        Err(EfiError::Text { what, text: text.chars().take(80).collect() })
    }
}
