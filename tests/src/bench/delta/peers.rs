//! Who is measured: each tool with the command lines of those who use it for updates.

use std::fs;

use anyhow::{Context, Result};

use super::job::Job;
use super::{Row, kernel, stores};

/// One tool with one set of options.
pub(super) struct Peer {
    /// What `--only` calls it.
    pub(super) name: &'static str,
    /// What the table calls it.
    pub(super) title: &'static str,
    /// Whether it is measured on compressed file systems too.
    pub(super) on_every_format: bool,
    how: How,
}

enum How {
    /// Programs that make `DELTA` of `OLD` and `NEW`, and programs that make `OUT` of `OLD` and `DELTA`.
    Programs { create: &'static [&'static str], apply: &'static [&'static str] },
    /// Counted, or measured in another way.
    Special(fn(&Job) -> Result<Row>),
}

impl Peer {
    const fn here(mut self) -> Peer {
        self.on_every_format = true;
        self
    }

    /// Measures it once.
    ///
    /// # Errors
    /// When a program is missing or fails.
    pub(super) fn measure(&self, job: &Job) -> Result<Row> {
        match self.how {
            How::Programs { create, apply } => {
                let create = Some(job.run(create)?);
                let bytes = fs::metadata(job.delta()).context("no delta was made")?.len();
                let apply = Some(job.run(apply)?);
                Ok(Row { title: self.title.to_owned(), bytes, create, apply, whole: true })
            }
            How::Special(measure) => {
                let mut row = measure(job)?;
                if row.title.is_empty() {
                    self.title.clone_into(&mut row.title);
                }
                Ok(row)
            }
        }
    }
}

const fn programs(
    name: &'static str,
    title: &'static str,
    create: &'static [&'static str],
    apply: &'static [&'static str],
) -> Peer {
    Peer { name, title, on_every_format: false, how: How::Programs { create, apply } }
}

const fn special(name: &'static str, title: &'static str, measure: fn(&Job) -> Result<Row>) -> Peer {
    Peer { name, title, on_every_format: false, how: How::Special(measure) }
}

/// Everybody, in the order of the table.
pub(super) const ALL: [Peer; 16] = [
    programs("full", "whole image, zstd -19", &["zstd -q -f -19 NEW -o DELTA"], &["zstd -q -f -d DELTA -o OUT"]),
    special("rauc", "4 KiB blocks by hash (RAUC adaptive), counted", stores::blocks).here(),
    special("casync", "casync, 64 KiB chunks (RAUC, Rugix)", stores::casync),
    special("zchunk", "zchunk (SWUpdate)", stores::zchunk),
    programs(
        "rdiff",
        "rdiff, 2 KiB blocks, then zstd -19 (SWUpdate, balena)",
        &[
            "rdiff -f -b 2048 signature OLD TMP.sig",
            "rdiff -f delta TMP.sig NEW TMP.rdiff",
            "zstd -q -f -19 TMP.rdiff -o DELTA",
        ],
        &["zstd -q -f -d DELTA -o TMP.rdiff", "rdiff -f patch OLD TMP.rdiff OUT"],
    ),
    programs("xdelta3", "xdelta3", &["xdelta3 -q -f -e -s OLD NEW DELTA"], &["xdelta3 -q -f -d -s OLD DELTA OUT"]),
    programs(
        "xdelta3-9",
        "xdelta3 -9 -S lzma -B 1G (Mender, Rugix)",
        &["xdelta3 -q -f -9 -S lzma -B 1073741824 -e -s OLD NEW DELTA"],
        &["xdelta3 -q -f -B 1073741824 -d -s OLD DELTA OUT"],
    )
    .here(),
    programs(
        "xdelta3-low",
        "xdelta3 -9 -S lzma -B 16M -W 4M",
        &["xdelta3 -q -f -9 -S lzma -B 16777216 -W 4194304 -e -s OLD NEW DELTA"],
        &["xdelta3 -q -f -B 16777216 -d -s OLD DELTA OUT"],
    ),
    programs(
        "zstd-3",
        "zstd -3 --patch-from --long=31",
        &["zstd -q -f -3 --long=31 --patch-from=OLD NEW -o DELTA"],
        &["zstd -q -f -d --long=31 --patch-from=OLD DELTA -o OUT"],
    ),
    programs(
        "zstd-19",
        "zstd -19 --patch-from --long=31",
        &["zstd -q -f -19 --long=31 --patch-from=OLD NEW -o DELTA"],
        &["zstd -q -f -d --long=31 --patch-from=OLD DELTA -o OUT"],
    )
    .here(),
    special("bsdiff", "bsdiff, of the kernel alone", kernel::bsdiff),
    programs(
        "hdiffz",
        "HDiffPatch -m-6 -SD -c-zstd-21-24",
        &["hdiffz -f -m-6 -SD -c-zstd-21-24 OLD NEW DELTA"],
        &["hpatchz -f OLD DELTA OUT"],
    )
    .here(),
    programs(
        "ours-plain",
        "Bascule, no prediction, nothing packed again",
        &["bascule-image delta --no-prediction --no-repacking OLD NEW -o DELTA"],
        &["bascule-image apply OLD DELTA -o OUT"],
    ),
    programs(
        "ours-predicted",
        "Bascule, nothing packed again",
        &["bascule-image delta --no-repacking OLD NEW -o DELTA"],
        &["bascule-image apply OLD DELTA -o OUT"],
    ),
    programs(
        "ours-repacked",
        "Bascule, no prediction",
        &["bascule-image delta --no-prediction OLD NEW -o DELTA"],
        &["bascule-image apply OLD DELTA -o OUT"],
    ),
    programs("ours", "Bascule", &["bascule-image delta OLD NEW -o DELTA"], &["bascule-image apply OLD DELTA -o OUT"])
        .here(),
];
