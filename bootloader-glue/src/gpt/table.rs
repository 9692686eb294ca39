//! Both copies of a GUID partition table, bit exact: read to be written back with other attributes and checksums.
//!
//! ```text
//! sector  0    protective MBR, not touched
//!         1    header of the primary copy        its place, the other's place, where the entries are, their checksum,
//!         2..  entries of the primary copy       and a checksum of itself
//!         ...  partitions
//!         ..   entries of the backup copy
//!         last header of the backup copy
//! ```
//! Offsets are those of the UEFI specification 2.10, section 5.3. `disk::table` reads tables through the `gpt` crate to
//! find slots; that crate keeps neither the bytes of others nor the order of writes, so what is written is made here.

use std::io;

use crate::uboot::env::crc32;

use super::bits::Bits;

/// The one entry size in use.
const ENTRY: usize = 128;

/// More entries than any disk of ours has; the standard number is 128.
const MAX_ENTRIES: u32 = 1024;

/// Up to here every header has the same fields, in bytes.
const MIN_HEADER: usize = 92;

/// Where things lie in a header, in bytes.
mod header {
    pub(super) const CRC: usize = 16;
    pub(super) const OWN_PLACE: usize = 24;
    pub(super) const OTHER_PLACE: usize = 32;
    pub(super) const FIRST_USABLE: usize = 40;
    pub(super) const LAST_USABLE: usize = 48;
    pub(super) const ENTRIES_PLACE: usize = 72;
    pub(super) const COUNT: usize = 80;
    pub(super) const ENTRY_SIZE: usize = 84;
    pub(super) const ENTRIES_CRC: usize = 88;
}

/// Where the attributes lie in an entry.
const ATTRIBUTES: usize = 48;

/// One copy of the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TableCopy {
    /// At the start of the disk: the one that counts while it is whole.
    Primary,
    /// At its end.
    Backup,
}

impl TableCopy {
    fn other(self) -> Self {
        match self {
            TableCopy::Primary => TableCopy::Backup,
            TableCopy::Backup => TableCopy::Primary,
        }
    }
}

/// Bytes and where on the disk they belong: whole sectors.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Write {
    /// From the start of the disk.
    pub offset: u64,
    /// What is to be there.
    pub bytes: Vec<u8>,
}

/// Writes to one copy, durable together before the next step begins. A cut among them leaves that copy with a wrong
/// checksum, and the other one whole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// The copy.
    pub copy: TableCopy,
    /// Its entries before its header.
    pub writes: Vec<Write>,
}

/// How a copy was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Health {
    /// Both of its checksums fit.
    Valid,
    /// An act of ours, or a loader's count, was cut off: but for our bits and the checksums it is the other copy.
    Torn,
    /// Anything else.
    Lost,
}

/// One copy as it lies on the disk.
#[derive(Debug, Clone)]
struct Region {
    header_at: u64,
    entries_at: u64,
    header: Vec<u8>,
    entries: Vec<u8>,
    health: Health,
}

/// Both copies.
#[derive(Debug, Clone)]
pub(super) struct Table {
    sector: usize,
    last: u64,
    primary: Region,
    backup: Region,
}

/// Reads so many bytes from there; fewer at the end of the disk.
pub(super) type ReadAt<'a> = &'a dyn Fn(u64, usize) -> io::Result<Vec<u8>>;

/// Why there is no table to work with.
#[derive(Debug)]
pub(super) enum Refused {
    Io(io::Error),
    NoTable(&'static str),
    Differ,
}

impl From<io::Error> for Refused {
    fn from(error: io::Error) -> Self {
        Refused::Io(error)
    }
}

impl Table {
    /// Reads the table of a disk of so many bytes; `ours` are the numbers of the entries whose bits may differ.
    pub(super) fn read(read: ReadAt<'_>, length: u64, sector: u64, ours: [u32; 2]) -> Result<Self, Refused> {
        let last =
            length.checked_div(sector).filter(|sectors| *sectors > 8).ok_or(Refused::NoTable("it is too small"))? - 1;
        let sector = usize::try_from(sector).map_err(|_| Refused::NoTable("its sectors are too large"))?;
        if sector != 512 && sector != 4096 {
            return Err(Refused::NoTable("its sector size is neither 512 nor 4096"));
        }
        let primary = region(read, sector, last, TableCopy::Primary)?;
        let backup = region(read, sector, last, TableCopy::Backup)?;
        let mut table = Table { sector, last, primary, backup };
        match (table.primary.health, table.backup.health) {
            (Health::Valid, Health::Valid) if !table.copies_agree(ours) => return Err(Refused::Differ),
            (Health::Valid, Health::Valid) => {}
            (Health::Valid, _) => table.classify(read, TableCopy::Backup, ours)?,
            (_, Health::Valid) => table.classify(read, TableCopy::Primary, ours)?,
            _ => return Err(Refused::NoTable("neither copy is whole")),
        }
        Ok(table)
    }

    /// How the primary copy was found.
    pub(super) fn primary_health(&self) -> Health {
        self.primary.health
    }

    /// The copy that is not whole, if one is.
    pub(super) fn damaged(&self) -> Option<TableCopy> {
        let is_damaged = |copy: &TableCopy| self.region(*copy).health != Health::Valid;
        [TableCopy::Primary, TableCopy::Backup].into_iter().find(is_damaged)
    }

    /// The entries that a loader goes by: those of the primary copy while it is whole.
    pub(super) fn entries(&self) -> Entries {
        let copy = if self.primary.health == Health::Valid { TableCopy::Primary } else { TableCopy::Backup };
        Entries { bytes: self.region(copy).entries.clone(), count: self.count() }
    }

    /// What has to be written so that both copies hold these entries one after the other, each in `wanted` on its way.
    ///
    /// At every moment one copy is whole: a primary copy that is not is made so from the backup before that is touched.
    pub(super) fn steps(&self, wanted: &[Entries]) -> Vec<Step> {
        let mut disk = self.clone();
        let mut steps = Vec::new();
        let now = disk.entries();
        if disk.primary.health != Health::Valid {
            steps.extend(disk.put(TableCopy::Primary, &now));
        }
        for entries in wanted.iter().chain(wanted.is_empty().then_some(&now)) {
            steps.extend(disk.put(TableCopy::Backup, entries));
            steps.extend(disk.put(TableCopy::Primary, entries));
        }
        steps
    }

    /// One copy with these entries, and what that takes; `None` when it is so already.
    fn put(&mut self, copy: TableCopy, entries: &Entries) -> Option<Step> {
        let sector = self.sector;
        let header = self.header_for(copy, entries);
        let region = self.region_mut(copy);
        let mut writes = Vec::new();
        writes.extend(difference(region.entries_at, &region.entries, &entries.bytes, sector));
        writes.extend(difference(region.header_at, &region.header, &header, sector));
        region.header = header;
        region.entries.clone_from(&entries.bytes);
        region.health = Health::Valid;
        (!writes.is_empty()).then_some(Step { copy, writes })
    }

    /// The copy's header for these entries: its own, or the other one's with the places exchanged.
    fn header_for(&self, copy: TableCopy, entries: &Entries) -> Vec<u8> {
        let (own, other) = (self.region(copy), self.region(copy.other()));
        let mut header = own.header.clone();
        if own.health == Health::Lost {
            header.clone_from(&other.header);
            let lba = |at: u64| (at / self.sector as u64).to_le_bytes();
            put(&mut header, header::OWN_PLACE, &lba(own.header_at));
            put(&mut header, header::OTHER_PLACE, &lba(other.header_at));
            put(&mut header, header::ENTRIES_PLACE, &lba(own.entries_at));
        }
        put(&mut header, header::ENTRIES_CRC, &crc32(entries.used()).to_le_bytes());
        let checksum = header_crc(&header).unwrap_or_default();
        put(&mut header, header::CRC, &checksum.to_le_bytes());
        header
    }

    /// Whether the headers describe the same table, and the entries are the same but for our bits.
    fn copies_agree(&self, ours: [u32; 2]) -> bool {
        let described = |header: &[u8]| -> Option<Vec<u8>> {
            let parts = [8..16, 20..24, 40..72, 80..88, MIN_HEADER..self.sector];
            parts.into_iter().map(|part| header.get(part)).collect::<Option<Vec<_>>>().map(|parts| parts.concat())
        };
        let same = described(&self.primary.header) == described(&self.backup.header);
        let masked = |region: &Region| {
            let mut entries = Entries { bytes: region.entries.clone(), count: self.count() };
            for number in ours {
                if let Some(attributes) = entries.attributes(number) {
                    entries.set_attributes(number, Bits::masked(attributes));
                }
            }
            entries.used().to_vec()
        };
        same && masked(&self.primary) == masked(&self.backup)
    }

    /// A copy beside a whole one: torn where both agree, lost otherwise and then looked for at the usual place.
    fn classify(&mut self, read: ReadAt<'_>, copy: TableCopy, ours: [u32; 2]) -> Result<(), Refused> {
        let other = self.region(copy.other()).clone();
        if self.region(copy).health == Health::Torn && self.copies_agree(ours) {
            return Ok(());
        }
        let sectors = (other.entries.len() / self.sector) as u64;
        let place = match copy {
            TableCopy::Primary => 2,
            TableCopy::Backup => self.last - sectors.min(self.last),
        };
        let (first, end) = (number(&other.header, header::FIRST_USABLE), number(&other.header, header::LAST_USABLE));
        let fits = match copy {
            TableCopy::Primary => first.is_some_and(|first| place + sectors <= first),
            TableCopy::Backup => end.is_some_and(|end| place > end),
        };
        if !fits {
            return Err(Refused::NoTable("one copy is lost, and there is no room for its entries"));
        }
        let entries_at = place * self.sector as u64;
        let entries = read_whole(read, entries_at, other.entries.len())?;
        let region = self.region_mut(copy);
        *region = Region { entries_at, entries, health: Health::Lost, ..region.clone() };
        Ok(())
    }

    fn count(&self) -> u32 {
        let region = if self.primary.health == Health::Valid { &self.primary } else { &self.backup };
        small(&region.header, header::COUNT).unwrap_or_default()
    }

    fn region(&self, copy: TableCopy) -> &Region {
        match copy {
            TableCopy::Primary => &self.primary,
            TableCopy::Backup => &self.backup,
        }
    }

    fn region_mut(&mut self, copy: TableCopy) -> &mut Region {
        match copy {
            TableCopy::Primary => &mut self.primary,
            TableCopy::Backup => &mut self.backup,
        }
    }
}

/// The entries of a table, in whole sectors.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Entries {
    bytes: Vec<u8>,
    count: u32,
}

impl Entries {
    /// The numbers of all entries, from 1.
    pub(super) fn numbers(&self) -> std::ops::RangeInclusive<u32> {
        1..=self.count
    }

    /// The type of an entry, as its bytes; `None` when it is not used.
    pub(super) fn kind(&self, number: u32) -> Option<[u8; 16]> {
        self.field(number, 0).filter(|kind| *kind != [0; 16])
    }

    /// The GUID of an entry, as its bytes.
    pub(super) fn guid(&self, number: u32) -> Option<[u8; 16]> {
        self.field(number, 16)
    }

    pub(super) fn attributes(&self, number: u32) -> Option<u64> {
        self.field(number, ATTRIBUTES).map(u64::from_le_bytes)
    }

    pub(super) fn bits(&self, number: u32) -> Bits {
        Bits::of(self.attributes(number).unwrap_or_default())
    }

    /// The same entries with other bits in one of them.
    pub(super) fn with_bits(&self, number: u32, bits: Bits) -> Self {
        let mut entries = self.clone();
        if let Some(attributes) = self.attributes(number) {
            entries.set_attributes(number, bits.in_attributes(attributes));
        }
        entries
    }

    fn set_attributes(&mut self, number: u32, attributes: u64) {
        if let Some(at) = self.place(number) {
            put(&mut self.bytes, at + ATTRIBUTES, &attributes.to_le_bytes());
        }
    }

    fn field<const LENGTH: usize>(&self, number: u32, at: usize) -> Option<[u8; LENGTH]> {
        let at = self.place(number)? + at;
        self.bytes.get(at..at + LENGTH)?.try_into().ok()
    }

    fn place(&self, number: u32) -> Option<usize> {
        let index = number.checked_sub(1).filter(|_| number <= self.count)?;
        usize::try_from(index).ok().map(|index| index * ENTRY)
    }

    /// What the checksum is of: the entries without the rest of the last sector.
    fn used(&self) -> &[u8] {
        let length = usize::try_from(self.count).unwrap_or_default() * ENTRY;
        self.bytes.get(..length).unwrap_or_default()
    }
}

/// Reads one copy; `Torn` says for now that its header is whole and its entries are not.
fn region(read: ReadAt<'_>, sector: usize, last: u64, copy: TableCopy) -> Result<Region, Refused> {
    let place = if copy == TableCopy::Primary { 1 } else { last };
    let header_at = place * sector as u64;
    let header = read_whole(read, header_at, sector)?;
    let lost = Region { header_at, entries_at: 0, header: header.clone(), entries: Vec::new(), health: Health::Lost };
    let Some((count, entries_place)) = layout(&header, sector, last, copy) else { return Ok(lost) };
    if copy == TableCopy::Primary && number(&header, header::OTHER_PLACE) != Some(last) {
        return Err(Refused::NoTable("its backup copy is not at the end: `sgdisk -e` moves it there"));
    }
    let entries_at = entries_place * sector as u64;
    let length = count * ENTRY;
    let entries = read_whole(read, entries_at, length.next_multiple_of(sector))?;
    let fits = small(&header, header::ENTRIES_CRC) == entries.get(..length).map(crc32);
    let health = if fits { Health::Valid } else { Health::Torn };
    Ok(Region { header_at, entries_at, header, entries, health })
}

/// The number of entries and where they are, when the header is whole and nothing of it lies among the partitions.
fn layout(bytes: &[u8], sector: usize, last: u64, copy: TableCopy) -> Option<(usize, u64)> {
    let whole = bytes.starts_with(b"EFI PART\x00\x00\x01\x00") && small(bytes, header::CRC) == header_crc(bytes);
    let own_place = if copy == TableCopy::Primary { 1 } else { last };
    if !whole || number(bytes, header::OWN_PLACE)? != own_place {
        return None;
    }
    let count = small(bytes, header::COUNT).filter(|count| (1..=MAX_ENTRIES).contains(count))?;
    let count = usize::try_from(count).ok()?;
    if small(bytes, header::ENTRY_SIZE) != Some(ENTRY as u32) {
        return None;
    }
    let place = number(bytes, header::ENTRIES_PLACE)?;
    let end = place.checked_add((count * ENTRY).div_ceil(sector) as u64)?;
    let (first, usable_end) = (number(bytes, header::FIRST_USABLE)?, number(bytes, header::LAST_USABLE)?);
    let fits = match copy {
        TableCopy::Primary => place >= 2 && end <= first,
        TableCopy::Backup => place > usable_end && end <= last,
    };
    (fits && first <= usable_end && usable_end < last).then_some((count, place))
}

/// The checksum of a header, with zeroes where it stands itself.
fn header_crc(bytes: &[u8]) -> Option<u32> {
    let length = usize::try_from(small(bytes, 12)?).ok().filter(|length| *length >= MIN_HEADER)?;
    let mut plain = bytes.get(..length)?.to_vec();
    put(&mut plain, header::CRC, &[0; 4]);
    Some(crc32(&plain))
}

/// One write from the first sector that differs to the last.
fn difference(offset: u64, old: &[u8], new: &[u8], sector: usize) -> Option<Write> {
    let (old_sectors, new_sectors) = (old.chunks(sector), new.chunks(sector));
    let differs = |(index, (old, new)): (usize, (&[u8], &[u8]))| (old != new).then_some(index);
    let mut changed = old_sectors.zip(new_sectors).enumerate().filter_map(differs);
    let first = changed.next()?;
    let end = changed.next_back().unwrap_or(first) + 1;
    let bytes = new.get(first * sector..end * sector)?.to_vec();
    Some(Write { offset: offset + (first * sector) as u64, bytes })
}

fn read_whole(read: ReadAt<'_>, offset: u64, length: usize) -> Result<Vec<u8>, Refused> {
    let bytes = read(offset, length)?;
    if bytes.len() == length { Ok(bytes) } else { Err(Refused::Io(io::ErrorKind::UnexpectedEof.into())) }
}

fn number(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(bytes.get(at..at + 8)?.try_into().ok()?))
}

fn small(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

fn put(bytes: &mut [u8], at: usize, value: &[u8]) {
    if let Some(place) = bytes.get_mut(at..at + value.len()) {
        place.copy_from_slice(value);
    }
}
