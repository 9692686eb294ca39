//! What a careful person types: dd, sync, read back past the page cache, sha256sum.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use bascule_core::Digest;

use super::process::{self, Usage};

/// How dd writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Cache {
    Through,
    Past,
}

/// Writes `image` to `device`, reads as much back and compares.
///
/// # Errors
/// When a program fails, or the digest is not `wanted`.
pub(super) fn line(image: &Path, device: &Path, cache: Cache, wanted: &Digest) -> Result<Usage> {
    let started = Instant::now();
    let mut write = Command::new("dd");
    write.arg(format!("if={}", image.display())).arg(format!("of={}", device.display()));
    write.args(["bs=1M", "conv=fsync", "status=none"]);
    if cache == Cache::Past {
        write.arg("oflag=direct");
    }
    let mut usage = process::run(&mut write, device, &[0])?;
    let mut read = Command::new("dd");
    read.arg(format!("if={}", device.display())).args(["bs=1M", "iflag=direct", "status=none"]);
    read.arg(format!("count={}", std::fs::metadata(image)?.len() >> 20));
    let reading = Instant::now();
    let mut reader = read.stdout(Stdio::piped()).spawn().context("cannot start dd")?;
    let bytes = reader.stdout.take().context("dd has no output")?;
    let mut hasher = Command::new("sha256sum").stdin(bytes).stdout(Stdio::piped()).spawn()?;
    let mut output = hasher.stdout.take().context("sha256sum has no output")?;
    usage.add(&process::finish(reader, "dd", reading)?);
    usage.add(&process::finish(hasher, "sha256sum", reading)?);
    usage.wall = started.elapsed();
    let mut said = String::new();
    std::io::Read::read_to_string(&mut output, &mut said)?;
    ensure!(said.split_whitespace().next() == Some(&wanted.to_string()), "sha256sum said {said:?}");
    Ok(usage)
}
