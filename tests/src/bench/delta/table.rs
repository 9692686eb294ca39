//! The tables of the deltas.

use std::fmt::Write as _;
use std::process::Command;

use super::super::process::Usage;
use super::super::report;
use super::{Row, Series};

/// Whose versions are told.
const PACKAGES: [&str; 9] =
    ["xdelta3", "zstd", "bsdiff", "casync", "rdiff", "zchunk", "erofs-utils", "squashfs-tools", "e2fsprogs"];

/// The whole report as Markdown.
pub(super) fn text(all: &[Series], load: &(String, String)) -> String {
    let mut text = String::new();
    // Writing to a string cannot fail.
    let _ = report::write_date_and_machine(&mut text, load);
    let _ = writeln!(text, "- bascule {}, {}", env!("CARGO_PKG_VERSION"), versions());
    for series in all {
        let _ = write_series(&mut text, series);
    }
    text
}

fn versions() -> String {
    let mut query = Command::new("dpkg-query");
    query.args(["--show", "--showformat=${Package} ${Version}, "]).args(PACKAGES);
    let printed = query.output().map(|output| output.stdout).unwrap_or_default();
    String::from_utf8_lossy(&printed).trim_end_matches(", ").to_owned()
}

fn write_series(text: &mut String, series: &Series) -> std::fmt::Result {
    let (pair, format) = (series.pair, series.format);
    writeln!(
        text,
        "\n### Pair {} ({}), {}: {:.1} MB to {:.1} MB\n",
        pair.name(),
        pair.about(),
        format.name(),
        mb(series.old_bytes),
        mb(series.new_bytes)
    )?;
    writeln!(text, "| tool | delta MB | times ours | create CPU s | wall s | MiB | apply CPU s | wall s | MiB |")?;
    writeln!(text, "|---|---|---|---|---|---|---|---|---|")?;
    let ours = series.rows.iter().find(|row| row.title == "Bascule").map(|row| row.bytes as f64);
    for row in &series.rows {
        let ratio = ours.filter(|_| row.whole).map_or_else(|| "-".to_owned(), |ours| times(row, ours));
        let (create, apply) = (cells(row.create.as_ref()), cells(row.apply.as_ref()));
        writeln!(text, "| {} | {} | {ratio} | {create} | {apply} |", row.title, size(row.bytes))?;
    }
    for reason in &series.skipped {
        writeln!(text, "\nNot measured: {reason}.")?;
    }
    Ok(())
}

fn times(row: &Row, ours: f64) -> String {
    format!("{:.2}", row.bytes as f64 / ours)
}

/// Processor, wall, memory.
fn cells(usage: Option<&Usage>) -> String {
    usage.map_or_else(
        || "- | - | -".to_owned(),
        |usage| {
            let peak = usage.peak_bytes as f64 / f64::from(1 << 20);
            format!("{:.1} | {:.1} | {peak:.0}", usage.cpu_seconds, usage.wall.as_secs_f64())
        },
    )
}

/// Megabytes with as many digits as say something.
fn size(bytes: u64) -> String {
    let mb = mb(bytes);
    if mb < 1.0 { format!("{mb:.3}") } else { format!("{mb:.2}") }
}

fn mb(bytes: u64) -> f64 {
    bytes as f64 / 1e6
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_deltas_keep_their_digits() {
        assert_eq!([size(17_000), size(54_230_000)], ["0.017", "54.23"]);
    }
}
