//! U-Boot's environment, bit exact.
//!
//! ```text
//! copy   CRC32 of the data, little endian (4) | flag (1) | data
//! data   NAME=VALUE NUL NAME=VALUE NUL ... NUL, then padding up to the end, which the CRC covers too
//! ```
//! That is the redundant form. A U-Boot without redundancy has no flag; one with it wants the flag in everything it imports
//! with a checksum, in `bascule-fallback` too.
//!
//! Entries are read as U-Boot's `himport_r` reads them, oddities included, and kept as they stand: what is not ours is
//! written back byte by byte. The choice between two copies is that of U-Boot's `env_check_redund`.

use crate::script::unescape;

/// The largest environment that is read: eight times the largest that any board we know has.
pub const MAX_SIZE: usize = 1 << 20;

/// The smallest environment that has room for anything: one sector.
pub const MIN_SIZE: usize = 512;

/// Checksum and flag in front of the data of a redundant copy.
const REDUNDANT_HEADER: usize = 5;

/// The checksum alone.
const CHECKSUM: usize = 4;

/// Why bytes are not an environment with our settings.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Damage {
    /// No copy has a checksum that fits: missing, torn, or never written.
    #[error("no copy has a valid checksum")]
    Checksum,
    /// A value without a name: U-Boot then takes its built-in environment.
    #[error("a variable has no name")]
    Name,
    /// One of our variables is missing or makes no sense.
    #[error("the variables bascule_order, bascule_a and bascule_b are not all there")]
    Variables,
    /// Our variables make sense and allow neither group.
    #[error("neither group may be started")]
    NoGroup,
}

/// The entries of an environment, in order and as they stand.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Variables {
    entries: Vec<Vec<u8>>,
}

/// What U-Boot makes of one entry.
enum Entry {
    /// A comment.
    Nothing,
    /// `NAME` or `NAME=`.
    Removes(Vec<u8>),
    /// `NAME=VALUE`, escapes resolved.
    Sets(Vec<u8>, Vec<u8>),
}

impl Variables {
    /// Reads the data behind a header.
    ///
    /// # Errors
    /// [`Damage::Name`] where U-Boot refuses the whole environment.
    pub fn parse(data: &[u8]) -> Result<Self, Damage> {
        let mut entries = Vec::new();
        // The first entry may be empty and not be the end: U-Boot looks for the end behind an entry only.
        for (place, entry) in data.split(|byte| *byte == 0).enumerate() {
            if entry.is_empty() && place > 0 {
                break;
            }
            entries.push(entry.to_vec());
        }
        if entries.iter().all(Vec::is_empty) {
            entries.clear();
        }
        let nameless = |entry: &Vec<u8>| matches!(read(entry), Entry::Sets(name, _) if name.is_empty());
        if entries.iter().any(nameless) { Err(Damage::Name) } else { Ok(Variables { entries }) }
    }

    /// Reads text of lines `NAME=VALUE`, as `make u-boot-initial-env` prints them: nothing when it says nothing, or when
    /// a line is not of that form.
    #[must_use]
    pub fn of_text(text: &[u8]) -> Option<Self> {
        let lines = text.split(|byte| *byte == b'\n').map(|line| line.strip_suffix(b"\r").unwrap_or(line));
        let entries: Vec<Vec<u8>> = lines.filter(|line| !line.is_empty()).map(<[u8]>::to_vec).collect();
        let named = |entry: &Vec<u8>| match read(entry) {
            Entry::Sets(name, _) => !name.is_empty(),
            Entry::Removes(_) => entry.ends_with(b"="),
            Entry::Nothing => true,
        };
        let whole = !entries.is_empty() && entries.iter().all(named) && !text.contains(&0);
        whole.then_some(Variables { entries })
    }

    /// Whether there is no entry at all.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The value of a variable as U-Boot sees it: the last entry of that name counts.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<Vec<u8>> {
        let mut found = None;
        for entry in &self.entries {
            match read(entry) {
                Entry::Sets(of, value) if of == name.as_bytes() => found = Some(value),
                Entry::Removes(of) if of == name.as_bytes() => found = None,
                _ => {}
            }
        }
        found
    }

    /// Sets a variable where it first stands, or after the last entry. The value must need no escapes.
    pub fn set(&mut self, name: &str, value: &str) {
        let entry = format!("{name}={value}").into_bytes();
        let is_ours = |entry: &Vec<u8>| match read(entry) {
            Entry::Sets(of, _) | Entry::Removes(of) => of == name.as_bytes(),
            Entry::Nothing => false,
        };
        let place = self.entries.iter().position(is_ours).unwrap_or(self.entries.len());
        self.entries.retain(|entry| !is_ours(entry));
        self.entries.insert(place, entry);
    }

    /// The redundant form, or nothing when the entries do not fit into `size` bytes.
    #[must_use]
    pub fn to_redundant(&self, flag: u8, size: usize) -> Option<Vec<u8>> {
        let data = self.to_data(size.checked_sub(REDUNDANT_HEADER)?)?;
        let mut bytes = crc32(&data).to_le_bytes().to_vec();
        bytes.push(flag);
        bytes.extend_from_slice(&data);
        Some(bytes)
    }

    /// As U-Boot would save them: by name, each one once, without comments.
    #[must_use]
    pub(super) fn as_exported(&self) -> Self {
        let mut table = std::collections::BTreeMap::new();
        for entry in &self.entries {
            match read(entry) {
                Entry::Nothing => {}
                Entry::Removes(name) => drop(table.remove(&name)),
                Entry::Sets(name, value) => drop(table.insert(name, value)),
            }
        }
        let escaped = |value: Vec<u8>| {
            value.into_iter().flat_map(|byte| {
                let escape = (byte == b'\\').then_some(b'\\');
                escape.into_iter().chain([byte])
            })
        };
        let entry = |(name, value): (Vec<u8>, Vec<u8>)| name.into_iter().chain([b'=']).chain(escaped(value)).collect();
        Variables { entries: table.into_iter().map(entry).collect() }
    }

    fn to_data(&self, room: usize) -> Option<Vec<u8>> {
        let mut data = Vec::new();
        for entry in &self.entries {
            data.extend_from_slice(entry);
            data.push(0);
        }
        data.push(0);
        if data.len() > room {
            return None;
        }
        data.resize(room, 0);
        Some(data)
    }
}

/// The flag and the data of one redundant copy, when its checksum fits.
#[must_use]
pub fn redundant(bytes: &[u8]) -> Option<(u8, &[u8])> {
    let (checksum, rest) = bytes.split_first_chunk::<CHECKSUM>()?;
    let (flag, data) = rest.split_first()?;
    (u32::from_le_bytes(*checksum) == crc32(data)).then_some((*flag, data))
}

/// Which of two copies U-Boot takes, by their flags; a copy without a valid checksum has none.
///
/// The flag counts 254, 255, 0, 1: only this one step over the end is known to U-Boot as an increase.
#[must_use]
pub fn newer(flags: [Option<u8>; 2]) -> Option<usize> {
    match flags {
        [None, None] => None,
        [Some(_), None] => Some(0),
        [None, Some(_)] => Some(1),
        [Some(255), Some(0)] => Some(1),
        [Some(0), Some(255)] => Some(0),
        [Some(first), Some(second)] => Some(usize::from(second > first)),
    }
}

/// The checksum of zlib, Ethernet and U-Boot: reflected, polynomial `0xEDB88320`, all ones at both ends.
#[must_use]
pub fn crc32(bytes: &[u8]) -> u32 {
    let step = |crc: u32, byte: &u8| {
        let place = (crc ^ u32::from(*byte)) & 0xff;
        (crc >> 8) ^ TABLE.get(place as usize).copied().unwrap_or_default()
    };
    !bytes.iter().fold(u32::MAX, step)
}

static TABLE: [u32; 256] = table();

#[expect(clippy::indexing_slicing, reason = "an index beyond the table would not compile")]
const fn table() -> [u32; 256] {
    let mut table = [0; 256];
    let mut place = 0;
    while place < table.len() {
        let (mut value, mut bit) = (place as u32, 0);
        while bit < 8 {
            value = if value & 1 == 1 { (value >> 1) ^ 0xedb8_8320 } else { value >> 1 };
            bit += 1;
        }
        table[place] = value;
        place += 1;
    }
    table
}

/// One entry as U-Boot reads it.
fn read(entry: &[u8]) -> Entry {
    let blanks = entry.iter().take_while(|byte| matches!(byte, b' ' | b'\t')).count();
    let entry = entry.get(blanks..).unwrap_or_default();
    if entry.starts_with(b"#") {
        return Entry::Nothing;
    }
    let mut parts = entry.splitn(2, |byte| *byte == b'=');
    let name = parts.next().unwrap_or_default().to_vec();
    match parts.next() {
        None | Some([]) => Entry::Removes(name),
        Some(value) => Entry::Sets(name, unescape(value)),
    }
}
