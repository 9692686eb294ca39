//! Copies images without writing their zeroes.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

const BLOCK: usize = 64 << 10;

/// Copies `source` to `offset` of `target`, which reads as zeroes there, and skips blocks of zeroes. Says whether it fitted
/// into `room` bytes; where it does not, nothing is written.
///
/// # Errors
/// When reading or writing fails.
pub(super) fn copy_into(source: &File, target: &File, offset: u64, room: u64) -> io::Result<bool> {
    if source.metadata()?.len() > room {
        return Ok(false);
    }
    let mut block = vec![0; BLOCK];
    let mut at = 0u64;
    loop {
        let count = source.read_at(&mut block, at)?;
        let part = block.get(..count).unwrap_or_default();
        if part.is_empty() {
            return Ok(true);
        }
        if part.iter().any(|&byte| byte != 0) {
            target.write_all_at(part, offset.saturating_add(at))?;
        }
        at = at.saturating_add(count as u64);
    }
}
