//! The partitions of a disk image and the table that names them.

use std::collections::BTreeMap;
use std::fs::File;

use gpt::disk::LogicalBlockSize;
use gpt::mbr::ProtectiveMBR;
use gpt::partition::Partition;
use gpt::partition_types::{self, Type};
use serde::Serialize;
use uuid::Uuid;

use super::Loader;
use super::error::DiskError;
use crate::manifest::sha256;

pub(super) const ESP: &str = "esp";
pub(super) const BOOTENV: &str = "bootenv";
pub(super) const BIOS_BOOT: &str = "bios-boot";
pub(super) const ROOT_A: &str = "root-a";
pub(super) const ROOT_B: &str = "root-b";
pub(super) const DATA: &str = "data";

const MIB: u64 = 1 << 20;
const SECTOR: u64 = 512;
/// FAT32 needs at least 65525 clusters, which we make 1 KiB long.
const LEAST_ESP_MIB: u64 = 68;

/// How large the partitions are, in bytes; whole MiB.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sizes {
    /// The EFI system partition.
    pub esp: u64,
    /// Each root slot.
    pub slot: u64,
    /// The data partition.
    pub data: u64,
}

/// One partition of a disk image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Part {
    /// Number in the table, from 1.
    pub number: u32,
    /// Name in the table.
    pub name: String,
    /// Where it begins on the disk, in bytes.
    pub offset: u64,
    /// Its size in bytes.
    pub size: u64,
    /// Its unique identifier (PARTUUID).
    pub partuuid: String,
}

/// Lays the five partitions out one after another, from 1 MiB on: what a disk of these sizes and this seed has.
///
/// # Errors
/// [`DiskError::Size`].
pub fn parts(sizes: &Sizes, loader: Loader, seed: &str) -> Result<Vec<Part>, DiskError> {
    let second = if loader == Loader::GrubBios { BIOS_BOOT } else { BOOTENV };
    let wanted = [
        (ESP, sizes.esp, LEAST_ESP_MIB),
        (second, MIB, 1),
        (ROOT_A, sizes.slot, 16),
        (ROOT_B, sizes.slot, 16),
        (DATA, sizes.data, 16),
    ];
    let mut offset = MIB;
    let mut parts = Vec::new();
    for (number, (name, size, least)) in (1..).zip(wanted) {
        if size % MIB != 0 || size < least * MIB || size > crate::limits::MAX_PAYLOAD_BYTES {
            return Err(DiskError::Size { part: name.into(), size, least });
        }
        let partuuid = identifier(seed, name).to_string();
        parts.push(Part { number, name: name.into(), offset, size, partuuid });
        offset = offset.saturating_add(size);
    }
    Ok(parts)
}

/// The whole disk: the partitions and 1 MiB for the second copy of the table.
pub(super) fn disk_bytes(parts: &[Part]) -> u64 {
    parts.last().map_or(0, |last| last.offset.saturating_add(last.size)).saturating_add(MIB)
}

/// Writes the protective MBR and both copies of the table.
pub(super) fn write_table(disk: &File, parts: &[Part], seed: &str) -> Result<(), DiskError> {
    let boxed = |error: Box<dyn std::error::Error + Send + Sync>| DiskError::Table(error);
    let mut device = disk.try_clone().map_err(|e| boxed(e.into()))?;
    let sectors = u32::try_from(disk_bytes(parts) / SECTOR).unwrap_or(u32::MAX);
    ProtectiveMBR::with_lb_size(sectors.saturating_sub(1)).overwrite_lba0(&mut device).map_err(|e| boxed(e.into()))?;
    let table = gpt::GptConfig::new().writable(true).logical_block_size(LogicalBlockSize::Lb512);
    let mut table = table.create_from_device(device, Some(identifier(seed, "disk"))).map_err(|e| boxed(e.into()))?;
    let entries: BTreeMap<u32, Partition> = parts.iter().map(|part| (part.number, entry(part, seed))).collect();
    // The crate packs the entries when it writes them: only numbers without gaps stay what they are.
    debug_assert!(entries.keys().copied().eq(1..=parts.len() as u32));
    table.update_partitions(entries).map_err(|e| boxed(e.into()))?;
    table.write().map(drop).map_err(|e| boxed(e.into()))
}

fn entry(part: &Part, seed: &str) -> Partition {
    let first = part.offset / SECTOR;
    Partition {
        part_type_guid: part_type(&part.name),
        part_guid: identifier(seed, &part.name),
        first_lba: first,
        last_lba: first.saturating_add(part.size / SECTOR).saturating_sub(1),
        flags: 0,
        name: part.name.clone(),
    }
}

fn part_type(name: &str) -> Type {
    match name {
        ESP => partition_types::EFI,
        BIOS_BOOT => partition_types::BIOS,
        _ => partition_types::LINUX_FS,
    }
}

/// An identifier that the same seed and name always give.
pub(super) fn identifier(seed: &str, name: &str) -> Uuid {
    let digest = sha256(format!("bascule disk image\0{seed}\0{name}").as_bytes()).0;
    let head: [u8; 16] = std::array::from_fn(|place| digest.get(place).copied().unwrap_or_default());
    uuid::Builder::from_custom_bytes(head).into_uuid()
}
