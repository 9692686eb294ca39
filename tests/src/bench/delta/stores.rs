//! Tools that have no delta: they cut both images into pieces and fetch those that the old image does not have.
//!
//! What is fetched includes the index that says which pieces there are.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io::{BufReader, BufWriter, Read, Write};
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use sha2::{Digest as _, Sha256};

use super::Row;
use super::job::Job;

const BLOCK: u64 = 4096;
/// Bytes of the index for each block: its SHA-256.
const INDEX_ENTRY: u64 = 32;

/// Counts the 4 KiB blocks of the new image that the old one has nowhere, each of them compressed alone, and the index.
///
/// In RAUC's favour: it fetches them from a squashfs, whose compressed blocks are larger than what is wanted of them.
///
/// # Errors
/// When an image cannot be read or zstd fails.
pub(super) fn blocks(job: &Job) -> Result<Row> {
    let mut known = HashSet::new();
    each_block(&job.old, |block| {
        known.insert(Sha256::digest(block));
        Ok(())
    })?;
    let missing = job.file("missing");
    let mut output = BufWriter::new(File::create(&missing)?);
    let blocks = each_block(&job.new, |block| {
        // A block that is wanted twice is fetched once.
        if known.insert(Sha256::digest(block)) { Ok(output.write_all(block)?) } else { Ok(()) }
    })?;
    output.into_inner()?.sync_all()?;
    let bytes = compressed_blocks(&missing)?.saturating_add(blocks.saturating_mul(INDEX_ENTRY));
    Ok(Row { title: String::new(), bytes, create: None, apply: None, whole: true })
}

fn each_block(image: &Path, mut take: impl FnMut(&[u8]) -> Result<()>) -> Result<u64> {
    let mut input = BufReader::with_capacity(1 << 20, File::open(image)?);
    let (mut block, mut count) = (Vec::new(), 0);
    loop {
        block.clear();
        if (&mut input).take(BLOCK).read_to_end(&mut block)? == 0 {
            return Ok(count);
        }
        take(&block)?;
        count += 1;
    }
}

/// How long a file's blocks are when zstd -9 compresses each alone, which its own benchmark tells.
fn compressed_blocks(file: &Path) -> Result<u64> {
    let output = Command::new("zstd").args(["-q", "-b9", "-B4096", "-i0"]).arg(file).output()?;
    ensure!(output.status.success(), "zstd ended with {}", output.status);
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said);
    benchmarked(&said).with_context(|| format!("zstd said {said:?}"))
}

/// The number after the level in a line such as `-9   47857910 (2.837)  38.19 MB/s  719.1 MB/s  missing`.
fn benchmarked(said: &str) -> Option<u64> {
    let mut words = said.split_whitespace().skip_while(|word| *word != "-9");
    words.nth(1)?.parse().ok()
}

/// The chunks of the new image that a store of the old one does not have, and their index.
///
/// # Errors
/// When casync is missing or fails.
pub(super) fn casync(job: &Job) -> Result<Row> {
    let store = job.file("tmp.castr");
    job.run(&["casync make --what=blob-index --store=TMP.castr TMP.old.caibx OLD"])?;
    let before = length(&store)?;
    let create = job.run(&["casync make --what=blob-index --store=TMP.castr TMP.new.caibx NEW"])?;
    let chunks = length(&store)?.saturating_sub(before);
    let bytes = chunks.saturating_add(fs::metadata(job.file("tmp.new.caibx"))?.len());
    let apply = job.run(&["casync extract --store=TMP.castr --seed=OLD --seed-output=no TMP.new.caibx OUT"])?;
    Ok(Row { title: String::new(), bytes, create: Some(create), apply: Some(apply), whole: true })
}

/// What its own tool says would be downloaded.
///
/// # Errors
/// When zchunk is missing or fails.
pub(super) fn zchunk(job: &Job) -> Result<Row> {
    job.run(&["zck -o TMP.old.zck OLD"])?;
    let create = job.run(&["zck -o TMP.new.zck NEW"])?;
    let (old, new) = (job.file("tmp.old.zck"), job.file("tmp.new.zck"));
    let output = Command::new("zck_delta_size").arg(&old).arg(&new).output()?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let bytes = said.strip_prefix("Would download ").and_then(|rest| rest.split(' ').next()?.parse().ok());
    let bytes = bytes.with_context(|| format!("zck_delta_size said {said:?}"))?;
    Ok(Row { title: String::new(), bytes, create: Some(create), apply: None, whole: true })
}

/// Bytes of all files in a folder.
fn length(folder: &Path) -> Result<u64> {
    let mut sum = 0_u64;
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let about = entry.metadata()?;
        sum = sum.saturating_add(if about.is_dir() { length(&entry.path())? } else { about.len() });
    }
    Ok(sum)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_counts_once_and_only_when_the_old_image_does_not_have_it() {
        let folder = tempfile::tempdir().unwrap();
        let (old, new) = (folder.path().join("old"), folder.path().join("new"));
        let block = |byte: u8| vec![byte; 4096];
        fs::write(&old, [block(0), block(1)].concat()).unwrap();
        fs::write(&new, [block(1), block(2), block(2), block(0)].concat()).unwrap();
        let job = Job::new(old, new, folder.path()).unwrap();
        let row = blocks(&job).unwrap();
        assert_eq!(fs::read(job.file("missing")).unwrap(), block(2));
        assert!(row.bytes > 4 * 32 && row.bytes < 4 * 32 + 100, "{row:?}");
    }

    #[test]
    fn the_size_is_found_in_the_line_of_the_benchmark() {
        let said = "bench 1.5.4 : input 1221 bytes\n-9          497 (2.457)  59.63 MB/s  419.2 MB/s  name\n";
        assert_eq!(benchmarked(said), Some(497));
        assert_eq!(benchmarked("nothing"), None);
    }
}
