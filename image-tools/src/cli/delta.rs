//! `bascule-image delta` and `bascule-image apply`.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::Context;
use bascule_image::delta::explain::{Advice, Explanation};
use bascule_image::delta::image::{DeltaSpec, Tally, Transforms};
use bascule_image::delta::whole::{apply_opened, create_delta};
use bascule_image::limits::MAX_CHUNK_BYTES;
use bascule_image::write::DEFAULT_DELTA_LEVEL;
use bascule_image::{BundleRead, DeltaFile, ForwardOnly};
use clap::Args;
use serde_json::json;

use super::{show, value};

/// Two images, and where the delta goes.
#[derive(Debug, Args)]
pub(crate) struct Create {
    /// The image that will be there.
    old: PathBuf,
    /// The image to be made of it.
    new: PathBuf,
    /// The delta file to write.
    #[arg(short, long)]
    output: PathBuf,
    /// The zstd level.
    #[arg(long, default_value_t = DEFAULT_DELTA_LEVEL, value_parser = clap::value_parser!(i32).range(1..=22))]
    level: i32,
    /// Bytes of a chunk: a multiple of 4K up to 1M.
    #[arg(long, default_value_t = u64::from(MAX_CHUNK_BYTES), value_parser = value::size)]
    chunk_size: u64,
    #[command(flatten)]
    transforms: NoTransforms,
    /// Tell where the bytes of the delta went, by what they are and by file.
    #[arg(long)]
    explain: bool,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// An old image and a delta file, and where the new image goes.
#[derive(Debug, Args)]
pub(crate) struct Apply {
    /// The image that the delta was made against, or a device that begins with it.
    old: PathBuf,
    /// The delta file, or - for standard input.
    delta: PathBuf,
    /// The image to write.
    #[arg(short, long)]
    output: PathBuf,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

impl Create {
    pub(crate) fn run(self) -> anyhow::Result<()> {
        let started = Instant::now();
        let new = std::fs::metadata(&self.new).with_context(|| format!("reading {:?} failed", self.new))?.len();
        let plain = DeltaSpec::new(u32::try_from(self.chunk_size).unwrap_or(u32::MAX), self.level);
        let spec = DeltaSpec { transforms: self.transforms.left(), explain: self.explain, ..plain };
        let bar = show::progress(new, "comparing");
        let made = create_delta(&self.old, &self.new, spec, &self.output, &mut |bytes| bar.inc(bytes))?;
        bar.finish_and_clear();
        let seconds = started.elapsed().as_secs_f64();
        if self.json {
            let head = made.head;
            let mut told = json!({
                "delta": self.output, "bytes": made.bytes, "size": head.size, "sha256": head.sha256,
                "base": head.delta.base, "made_of": made.tally, "seconds": seconds,
            });
            if let (Some(explanation), Some(told)) = (made.explanation, told.as_object_mut()) {
                told.insert("explanation".into(), json!(explanation));
            }
            show::json(&told);
            return Ok(());
        }
        let share = show::share(made.bytes, made.head.size);
        show::line(format_args!("{}  {}, {share} of the image", self.output.display(), show::size(made.bytes)));
        show::line(format_args!("  old          {}", show::size(made.head.delta.base.size)));
        show::line(format_args!("               SHA-256 {}", made.head.delta.base.sha256));
        show::line(format_args!("  new          {}", show::size(made.head.size)));
        show::line(format_args!("               SHA-256 {}", made.head.sha256));
        show::line(format_args!("  made of      {}", made_of(&made.tally)));
        show::line(format_args!("  time         {seconds:.1} s"));
        made.explanation.iter().for_each(|explanation| explain(explanation, made.bytes));
        Ok(())
    }
}

/// So many files are named.
const NAMED_FILES: usize = 20;

/// Prints where the bytes went.
fn explain(explanation: &Explanation, whole: u64) {
    show::line(format_args!("\n  where the bytes went"));
    let mut matters: Vec<_> = explanation.matters.iter().filter(|(_, bytes)| **bytes > 0).collect();
    matters.sort_by_key(|(_, bytes)| std::cmp::Reverse(**bytes));
    for (matter, bytes) in &matters {
        let (bytes, share) = (show::size(**bytes), show::share(**bytes, whole));
        show::line(format_args!("  {bytes:>12} {share:>7}  {}", matter.as_str()));
    }
    show::line(format_args!("\n  the dearest files"));
    for file in explanation.files.iter().take(NAMED_FILES) {
        let mut parts: Vec<_> = file.matters.iter().collect();
        parts.sort_by_key(|(_, bytes)| std::cmp::Reverse(**bytes));
        let parts: Vec<_> =
            parts.iter().map(|(matter, bytes)| format!("{} {}", matter.as_str(), show::size(**bytes))).collect();
        let (bytes, share) = (show::size(file.bytes), show::share(file.bytes, whole));
        show::line(format_args!("  {bytes:>12} {share:>7}  {}: {}", file.path, parts.join(", ")));
    }
    if let Some(advice) = explanation.advice {
        show::line(format_args!("\n  {}", text(advice)));
    }
}

/// What to do about compressed data.
fn text(advice: Advice) -> &'static str {
    match advice {
        Advice::StoreFilesPlain => {
            "Much of it is compressed files, of which a small change leaves nothing equal. Put them into the image\n  \
             uncompressed (for kernel modules: MODULE_COMPRESS off), and compress the file system where room is scarce."
        }
        Advice::OtherLibzstd => {
            "Much of it is compressed: files that are, and blocks that libzstd 1.5.7, which devices have, does not pack\n  \
             again. Make the squashfs with a mksquashfs that has libzstd 1.5.6 or later, or take erofs without compression."
        }
        Advice::OtherSquashfs => {
            "Nothing is known of what this squashfs holds, for its blocks cannot be packed again. Make it with -comp zstd\n  \
             and blocks of at most 128 KiB, by a mksquashfs that has libzstd 1.5.6 or later, or take erofs without compression."
        }
    }
}

/// What a delta does without.
#[derive(Debug, Clone, Copy, Args)]
pub(crate) struct NoTransforms {
    /// Do not predict references in executables: for devices whose agent does not know how.
    #[arg(long)]
    no_prediction: bool,
    /// Do not make compressed data of what they hold: for devices whose agent does not know how.
    #[arg(long)]
    no_repacking: bool,
}

impl NoTransforms {
    pub(crate) fn left(self) -> Transforms {
        Transforms { predict: !self.no_prediction, repack: !self.no_repacking }
    }
}

/// What an image is made of, in one line.
pub(crate) fn made_of(tally: &Tally) -> String {
    let (zeroes, copied) = ((tally.zeroes, "zeroes"), (tally.copied, "copied"));
    let parts = [zeroes, copied, (tally.patched, "patched"), (tally.repacked, "packed again"), (tally.whole, "new")];
    let parts: Vec<_> = parts.iter().filter(|(bytes, _)| *bytes > 0).collect();
    let told: Vec<_> = parts.iter().map(|(bytes, what)| format!("{} {what}", show::size(*bytes))).collect();
    if told.is_empty() { "nothing".into() } else { told.join(", ") }
}

impl Apply {
    pub(crate) fn run(self) -> anyhow::Result<()> {
        let started = Instant::now();
        let input: Box<dyn BundleRead> = if self.delta == Path::new("-") {
            Box::new(ForwardOnly::new(std::io::stdin()))
        } else {
            Box::new(File::open(&self.delta).with_context(|| format!("opening {:?} failed", self.delta))?)
        };
        let delta = DeltaFile::open(input)?;
        let bar = show::progress(delta.head().size, "applying");
        let head = apply_opened(&self.old, delta, &self.output, &mut |bytes| bar.inc(bytes))?;
        bar.finish_and_clear();
        let seconds = started.elapsed().as_secs_f64();
        if self.json {
            show::json(&json!({ "image": self.output, "bytes": head.size, "sha256": head.sha256, "seconds": seconds }));
            return Ok(());
        }
        show::line(format_args!("{}  {}", self.output.display(), show::size(head.size)));
        show::line(format_args!("               SHA-256 {}", head.sha256));
        show::line(format_args!("  time         {seconds:.1} s"));
        Ok(())
    }
}
