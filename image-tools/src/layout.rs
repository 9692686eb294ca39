//! Where the parts of a bundle begin, and its tables.

use crate::delta::DeltaTable;
use crate::error::BundleError;
use crate::input::Input;
use crate::limits::MAX_TABLES_BYTES;
use crate::manifest::{BlobsPlace, DeltaRef, Manifest, Payload, TableRef, sha256};
use crate::table::ChunkTable;

/// Where the parts of the file begin.
#[derive(Debug)]
pub(crate) struct Layout {
    pub(crate) tables: u64,
    pub(crate) end: u64,
    payloads: Vec<Parts>,
}

/// Where the blobs of one payload begin.
#[derive(Debug)]
struct Parts {
    deltas: Vec<u64>,
    full: u64,
}

impl Layout {
    /// `tables` is where the manifest ends. Then come all tables, of each payload the chunk table and those of its
    /// deltas; then all blobs, of each payload those of its deltas and the full ones.
    pub(crate) fn new(manifest: &Manifest, tables: u64) -> Result<Layout, BundleError> {
        let mut end = tables;
        let mut pass = |length: u64| {
            let start = end;
            end = end.checked_add(length).ok_or_else(|| BundleError::ManifestInvalid("the lengths overflow".into()))?;
            Ok::<u64, BundleError>(start)
        };
        for payload in &manifest.payloads {
            pass(payload.chunk_table.length)?;
            for delta in &payload.deltas {
                pass(delta.table.length)?;
            }
        }
        let mut payloads = Vec::new();
        for payload in &manifest.payloads {
            let deltas = payload.deltas.iter().map(|delta| pass(delta.blobs)).collect::<Result<_, _>>()?;
            let inside = payload.blobs.place == BlobsPlace::Inside;
            payloads.push(Parts { deltas, full: pass(if inside { payload.blobs.length } else { 0 })? });
        }
        Ok(Layout { tables, end, payloads })
    }

    /// Where the first blob begins.
    pub(crate) fn first_blob(&self) -> u64 {
        self.payloads.first().map_or(self.end, |parts| parts.deltas.first().copied().unwrap_or(parts.full))
    }

    /// Where the full data of a payload begin.
    pub(crate) fn blobs(&self, payload: usize) -> u64 {
        self.payloads.get(payload).map_or(0, |parts| parts.full)
    }

    /// Where the blobs of a delta begin.
    pub(crate) fn delta(&self, payload: usize, delta: usize) -> u64 {
        self.payloads.get(payload).and_then(|parts| parts.deltas.get(delta)).copied().unwrap_or(0)
    }
}

/// The tables of one payload.
pub(crate) struct Tables {
    pub(crate) full: ChunkTable,
    /// One for each delta; `None` for those that are not wanted.
    pub(crate) deltas: Vec<Option<DeltaTable>>,
}

impl Tables {
    /// Reads the tables of all payloads from where `input` is wanted.
    pub(crate) fn read(
        manifest: &Manifest,
        input: &mut Input,
        wanted: &dyn Fn(&Payload, &DeltaRef) -> bool,
    ) -> Result<Vec<Tables>, BundleError> {
        let chunk_tables = manifest.payloads.iter().map(|payload| payload.chunk_table.memory());
        let mut memory = chunk_tables.fold(0, u64::saturating_add);
        let all = manifest.payloads.iter().all(|payload| payload.deltas.iter().all(|delta| wanted(payload, delta)));
        if all {
            // One stretch; with gaps in it each table is asked for alone.
            let deltas = |payload: &Payload| payload.deltas.iter().map(|delta| delta.table.length).sum::<u64>();
            let lengths = manifest.payloads.iter().map(|payload| payload.chunk_table.length + deltas(payload));
            input.expect(lengths.fold(input.wanted, u64::saturating_add));
        }
        let mut tables = Vec::new();
        for payload in &manifest.payloads {
            let role = &payload.role;
            let bytes = table(input, &payload.chunk_table, role)?;
            let full = ChunkTable::parse(bytes, role, payload.size, payload.blobs.length)?;
            let mut deltas = Vec::new();
            for delta in &payload.deltas {
                let more = memory.saturating_add(delta.table.memory());
                if more > MAX_TABLES_BYTES || !wanted(payload, delta) {
                    input.wanted = input.wanted.saturating_add(delta.table.length);
                    deltas.push(None);
                    continue;
                }
                memory = more;
                let bytes = table(input, &delta.table, role)?;
                deltas.push(Some(DeltaTable::parse(bytes, role, delta.base.size, delta.blobs, &full)?));
            }
            tables.push(Tables { full, deltas });
        }
        Ok(tables)
    }
}

/// Reads one table, checks its digest, and unpacks it.
fn table(input: &mut Input, about: &TableRef, role: &str) -> Result<Vec<u8>, BundleError> {
    let bytes = input.section(about.length)?;
    unpack(bytes, about).map_err(|what| BundleError::TableInvalid { role: role.to_owned(), what })
}

/// Holds a stored table against what is signed about it, and unpacks it.
pub(crate) fn unpack(bytes: Vec<u8>, about: &TableRef) -> Result<Vec<u8>, &'static str> {
    if sha256(&bytes) != about.sha256 {
        return Err("its SHA-256 is not the signed one");
    }
    let Some(unpacked) = about.unpacked else { return Ok(bytes) };
    crate::decode::check_frame(&bytes, unpacked)?;
    let mut table = vec![0; usize::try_from(unpacked).map_err(|_| "it is too long")?];
    match zstd::bulk::decompress_to_buffer(&bytes, &mut table) {
        Ok(made) if made == table.len() => Ok(table),
        _ => Err("it does not decompress"),
    }
}

/// A table as it is stored in a bundle with deltas, and what is signed about it.
pub(crate) fn pack(table: &[u8]) -> std::io::Result<(Vec<u8>, TableRef)> {
    let packed = zstd::bulk::compress(table, PACK_LEVEL)?;
    let about = TableRef { length: packed.len() as u64, sha256: sha256(&packed), unpacked: Some(table.len() as u64) };
    Ok((packed, about))
}

/// Tables are small and read by every device, so they are packed as well as zstd can.
const PACK_LEVEL: i32 = 19;
