//! GUID partition tables written byte by byte, good and bad ones (UEFI specification 2.10, section 5.3): a writer that
//! shares nothing with the crate which the tables are read with.

use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;
use std::path::Path;

use gpt::disk::LogicalBlockSize;

/// A table; where one of the options is set, its header says that in place of the truth.
#[derive(Debug, Clone)]
pub(crate) struct Table {
    pub(crate) sector: u64,
    pub(crate) guid: [u8; 16],
    pub(crate) entries: BTreeMap<u32, Entry>,
    /// How many entries the array has.
    pub(crate) count: u32,
    pub(crate) entry_size: u32,
    pub(crate) announced: Option<u32>,
    pub(crate) array_at: Option<u64>,
    pub(crate) array_checksum: Option<u32>,
    pub(crate) header_checksum: Option<u32>,
}

/// One entry, in sectors.
#[derive(Debug, Clone)]
pub(crate) struct Entry {
    pub(crate) label: String,
    pub(crate) guid: [u8; 16],
    pub(crate) first: u64,
    pub(crate) last: u64,
}

/// Which copies are written; the others stay as they are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Copies {
    Both,
    Primary,
    Backup,
    /// The primary header becomes garbage.
    Garbage,
    /// Both headers become zeroes.
    None,
}

impl Entry {
    /// The GUID as text: the first three parts are little-endian.
    pub(crate) fn guid_text(&self) -> String {
        let part = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        let turned = |bytes: &[u8]| part(&bytes.iter().rev().copied().collect::<Vec<_>>());
        let g = &self.guid;
        [turned(&g[..4]), turned(&g[4..6]), turned(&g[6..8]), part(&g[8..10]), part(&g[10..])].join("-")
    }
}

impl Table {
    /// The table of an image.
    pub(crate) fn read(image: &Path, sector: u64) -> Self {
        let config = gpt::GptConfig::new().logical_block_size(LogicalBlockSize::try_from(sector).unwrap());
        let disk = config.open(image).unwrap();
        let entry = |part: &gpt::partition::Partition| Entry {
            label: part.name.clone(),
            guid: part.part_guid.to_bytes_le(),
            first: part.first_lba,
            last: part.last_lba,
        };
        Table {
            sector,
            guid: disk.guid().to_bytes_le(),
            entries: disk.partitions().iter().map(|(number, part)| (*number, entry(part))).collect(),
            count: 128,
            entry_size: 128,
            announced: None,
            array_at: None,
            array_checksum: None,
            header_checksum: None,
        }
    }

    /// Writes these copies of it into an image.
    pub(crate) fn write(&self, image: &Path, copies: Copies) {
        let file = OpenOptions::new().write(true).open(image).unwrap();
        let last = file.metadata().unwrap().len() / self.sector - 1;
        let array = self.array();
        let length = (array.len() as u64).div_ceil(self.sector);
        let put = |at: u64, bytes: &[u8]| file.write_all_at(bytes, at * self.sector).unwrap();
        let usable = (2 + length, last - length - 1);
        if matches!(copies, Copies::Both | Copies::Primary) {
            put(2, &array);
            put(1, &self.header(1, last, usable, 2, &array));
        }
        if matches!(copies, Copies::Both | Copies::Backup) {
            put(last - length, &array);
            put(last, &self.header(last, 1, usable, last - length, &array));
        }
        match copies {
            Copies::Garbage => put(1, b"garbage"),
            Copies::None => [1, last].into_iter().for_each(|at| put(at, &[0; 92])),
            _ => {}
        }
    }

    fn array(&self) -> Vec<u8> {
        let mut array = vec![0; self.count as usize * 128];
        for (number, entry) in &self.entries {
            let place = &mut array[(*number as usize - 1) * 128..][..128];
            // Linux file system data, 0fc63daf-8483-4772-8e79-3d69d8477de4.
            place[..16].copy_from_slice(&[
                0xaf, 0x3d, 0xc6, 0x0f, 0x83, 0x84, 0x72, 0x47, 0x8e, 0x79, 0x3d, 0x69, 0xd8, 0x47, 0x7d, 0xe4,
            ]);
            place[16..32].copy_from_slice(&entry.guid);
            place[32..40].copy_from_slice(&entry.first.to_le_bytes());
            place[40..48].copy_from_slice(&entry.last.to_le_bytes());
            for (at, unit) in place[56..].chunks_mut(2).zip(entry.label.encode_utf16()) {
                at.copy_from_slice(&unit.to_le_bytes());
            }
        }
        array
    }

    fn header(&self, at: u64, other: u64, usable: (u64, u64), array_at: u64, array: &[u8]) -> Vec<u8> {
        let mut header = b"EFI PART\0\0\x01\0\x5c\0\0\0\0\0\0\0\0\0\0\0".to_vec();
        for number in [at, other, usable.0, usable.1] {
            header.extend_from_slice(&number.to_le_bytes());
        }
        header.extend_from_slice(&self.guid);
        header.extend_from_slice(&self.array_at.unwrap_or(array_at).to_le_bytes());
        for number in
            [self.announced.unwrap_or(self.count), self.entry_size, self.array_checksum.unwrap_or(crc32(array))]
        {
            header.extend_from_slice(&number.to_le_bytes());
        }
        let checksum = self.header_checksum.unwrap_or(crc32(&header));
        header[16..20].copy_from_slice(&checksum.to_le_bytes());
        header
    }
}

/// As in zip and Ethernet, bit by bit.
fn crc32(bytes: &[u8]) -> u32 {
    let byte =
        |sum: u32, byte: &u8| (0..8).fold(sum ^ u32::from(*byte), |sum, _| (sum >> 1) ^ (0xedb8_8320 * (sum & 1)));
    !bytes.iter().fold(!0, byte)
}
