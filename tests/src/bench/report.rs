//! The table.

use std::fmt::Write as _;
use std::fs;
use std::process::Command;

use super::process::Usage;
use super::{Figures, Series, Way};

/// Largest resident memory that an install may need.
const PEAK_TARGET: u64 = 32 << 20;
/// Largest resident memory of a daemon that serves and has nothing to do.
const IDLE_TARGET: u64 = 12 << 20;
/// How much longer than RAUC an install may take.
const RAUC_TARGET: f64 = 1.25;

/// The whole report as Markdown.
pub(super) fn text(figures: &Figures) -> String {
    let mut text = String::new();
    // Writing to a string cannot fail.
    let _ = write_machine(&mut text, figures);
    for series in &figures.series {
        let _ = write_table(&mut text, series);
    }
    let _ = write_targets(&mut text, figures);
    text
}

fn write_machine(text: &mut String, figures: &Figures) -> std::fmt::Result {
    write_date_and_machine(text, &figures.load)?;
    let rauc = figures.rauc.as_deref().map_or_else(|error| format!("rauc not measured: {error}"), str::to_owned);
    writeln!(text, "- bascule {}, {rauc}, {}", env!("CARGO_PKG_VERSION"), first_line("dd", &["--version"]))?;
    let direct = if figures.direct_io { "on" } else { "OFF" };
    let dropped = if figures.drops_cache { "dropped before each" } else { "NOT dropped" };
    writeln!(text, "- loop device with direct I/O {direct}; page cache {dropped}, sources then read once")
}

/// When and where something was measured; `load` is from before and after it.
pub(super) fn write_date_and_machine(text: &mut String, load: &(String, String)) -> std::fmt::Result {
    let cpu = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model =
        cpu.lines().find_map(|line| line.strip_prefix("model name")).unwrap_or("").trim_matches(['\t', ':', ' ']);
    let cores = cpu.lines().filter(|line| line.starts_with("processor")).count();
    writeln!(text, "- date: {}", first_line("date", &["-u", "+%Y-%m-%d %H:%M UTC"]))?;
    writeln!(text, "- machine: {cores} cores, {model}, Linux {}", first_line("uname", &["-r"]))?;
    writeln!(text, "- load averages at the start: {}; at the end, our own work included: {}", load.0, load.1)
}

fn first_line(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output().map(|output| output.stdout).unwrap_or_default();
    String::from_utf8_lossy(&output).lines().next().unwrap_or("").to_owned()
}

fn write_table(text: &mut String, series: &Series) -> std::fmt::Result {
    let (image, bundle) = (mib(series.image_bytes), mib(series.bundle_bytes));
    let rounds = of(series, Way::OursFile).len();
    writeln!(text, "\n### {}: {image:.0} MiB, bundle {bundle:.1} MiB, {rounds} rounds\n", capital(series.title))?;
    writeln!(text, "| install | wall s (median) | each | against dd | against RAUC | CPU s | peak MiB | written MB |")?;
    writeln!(text, "|---|---|---|---|---|---|---|---|")?;
    let dd = dd_wall(series);
    let rauc = wall(series, Way::Rauc);
    for way in Way::ALL {
        let all = of(series, way);
        let Some(wall) = wall(series, way) else { continue };
        let each: Vec<_> = all.iter().map(|usage| format!("{:.2}", usage.wall.as_secs_f64())).collect();
        writeln!(
            text,
            "| {} | {wall:.2} | {} | {} | {} | {:.2} | {:.1} | {:.0} |",
            way.title(),
            each.join(" "),
            ratio(wall, dd),
            ratio(wall, rauc),
            median(all.iter().map(|usage| usage.cpu_seconds)).unwrap_or(0.0),
            mib(all.iter().map(|usage| usage.peak_bytes).max().unwrap_or(0)),
            all.iter().map(|usage| usage.written_bytes).max().unwrap_or(0) as f64 / 1e6,
        )?;
    }
    writeln!(text, "\nWhere our time goes, in seconds from the start (medians):\n")?;
    writeln!(text, "| install | first write | last write | first read back | last read back | end |")?;
    writeln!(text, "|---|---|---|---|---|---|")?;
    for way in [Way::OursFile, Way::OursHttp] {
        let all = of(series, way);
        let stage = |of: fn(&Usage) -> f64| median(all.iter().map(of)).unwrap_or(0.0);
        let first = stage(|usage| usage.stages.first_write.as_secs_f64());
        let last = stage(|usage| usage.stages.last_write.as_secs_f64());
        let back = stage(|usage| usage.stages.first_read.as_secs_f64());
        let read = stage(|usage| usage.stages.last_read.as_secs_f64());
        let end = stage(|usage| usage.wall.as_secs_f64());
        writeln!(text, "| {} | {first:.2} | {last:.2} | {back:.2} | {read:.2} | {end:.2} |", way.title())?;
    }
    Ok(())
}

fn write_targets(text: &mut String, figures: &Figures) -> std::fmt::Result {
    writeln!(text, "\n### What was wanted\n\n| wanted | measured | holds |\n|---|---|---|")?;
    for series in &figures.series {
        for way in [Way::OursFile, Way::OursHttp] {
            let (Some(ours), title) = (wall(series, way), format!("{}, {}", series.title, way.title())) else {
                continue;
            };
            if let Some(dd) = dd_wall(series) {
                row(text, &format!("{title}: not slower than the better dd line"), &times(ours / dd), ours <= dd)?;
            }
            if let Some(rauc) = wall(series, Way::Rauc) {
                let wanted = format!("{title}: at most {RAUC_TARGET} x RAUC");
                row(text, &wanted, &times(ours / rauc), ours <= RAUC_TARGET * rauc)?;
            }
        }
    }
    write_memory(text, figures)?;
    let (zeroes, real) = (figures.zeroes, figures.series.first());
    let (image, bundle) = real.map_or((0, 0), |series| (series.image_bytes, series.bundle_bytes));
    let payload = image.saturating_sub(zeroes.bytes);
    let fetched = format!("{:.2} MB fetched, the bundle has {:.2} MB", mb(zeroes.fetched), mb(bundle));
    row(text, "nothing is fetched for zeroes, or twice", &fetched, zeroes.fetched <= bundle)?;
    let written = format!("{:.1} MB written, the image has {:.1} MB in other chunks", mb(zeroes.written), mb(payload));
    // The record, the loader's settings and the like are a few blocks more.
    row(text, "chunks of zeroes are not written", &written, zeroes.written <= payload.saturating_add(1 << 20))
}

fn write_memory(text: &mut String, figures: &Figures) -> std::fmt::Result {
    let memory = figures.memory;
    let mut rss = |wanted: &str, bytes: u64, limit: u64| {
        let wanted = format!("{wanted}: at most {:.0} MiB", mib(limit));
        row(text, &wanted, &format!("{:.1} MiB", mib(bytes)), bytes <= limit)
    };
    for series in &figures.series {
        let ours = series.runs.iter().filter(|(way, _)| matches!(way, Way::OursFile | Way::OursHttp));
        let peak = ours.map(|(_, usage)| usage.peak_bytes).max().unwrap_or(0);
        rss(&format!("peak memory, {} of {:.0} MiB", series.title, mib(series.image_bytes)), peak, PEAK_TARGET)?;
    }
    rss(&format!("peak memory, an image of {:.0} MiB", mib(super::SMALL_BYTES)), memory.peak_small, PEAK_TARGET)?;
    rss("memory of the idle daemon", memory.idle, IDLE_TARGET)?;
    rss("memory of the idle daemon after a preparation", memory.idle_after, IDLE_TARGET)
}

fn capital(text: &str) -> String {
    let mut letters = text.chars();
    letters.next().map_or_else(String::new, |first| first.to_uppercase().chain(letters).collect())
}

fn row(text: &mut String, wanted: &str, measured: &str, holds: bool) -> std::fmt::Result {
    writeln!(text, "| {wanted} | {measured} | {} |", if holds { "yes" } else { "NO" })
}

fn times(ratio: f64) -> String {
    format!("{ratio:.2} x")
}

fn of(series: &Series, way: Way) -> Vec<Usage> {
    series.runs.iter().filter(|(found, _)| *found == way).map(|(_, usage)| *usage).collect()
}

fn wall(series: &Series, way: Way) -> Option<f64> {
    median(of(series, way).iter().map(|usage| usage.wall.as_secs_f64()))
}

/// The better of the two lines.
fn dd_wall(series: &Series) -> Option<f64> {
    [Way::DdCached, Way::DdDirect].into_iter().filter_map(|way| wall(series, way)).reduce(f64::min)
}

fn ratio(wall: f64, other: Option<f64>) -> String {
    other.map_or_else(|| "-".to_owned(), |other| format!("{:.2}", wall / other))
}

/// The value in the middle; none of nothing.
pub(super) fn median(values: impl Iterator<Item = f64>) -> Option<f64> {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    let upper = *values.get(values.len() / 2)?;
    let lower = *values.get(values.len().saturating_sub(1) / 2)?;
    Some(f64::midpoint(lower, upper))
}

fn mib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

fn mb(bytes: u64) -> f64 {
    bytes as f64 / 1e6
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_of_an_even_number_lies_between_the_two_in_the_middle() {
        assert_eq!(median([3.0, 1.0, 2.0].into_iter()), Some(2.0));
        assert_eq!(median([4.0, 1.0, 2.0, 3.0].into_iter()), Some(2.5));
        assert_eq!(median(std::iter::empty()), None);
    }
}
