//! What the commands print.
#![allow(clippy::print_stdout, reason = "this is where the commands answer")]

use indicatif::{ProgressBar, ProgressStyle};

/// Prints a line.
pub(crate) fn line(text: impl std::fmt::Display) {
    println!("{text}");
}

/// Prints a value as JSON.
pub(crate) fn json(value: &serde_json::Value) {
    println!("{value:#}");
}

/// A size for people, in binary units.
pub(crate) fn size(bytes: u64) -> String {
    indicatif::BinaryBytes(bytes).to_string()
}

/// A part of a whole for people, as `12.3 %`.
pub(crate) fn share(part: u64, whole: u64) -> String {
    let whole = whole.max(1) as f64;
    format!("{:.1} %", part as f64 * 100.0 / whole)
}

/// A progress bar on standard error, invisible where that is no terminal.
pub(crate) fn progress(total: u64, what: &'static str) -> ProgressBar {
    let bar = ProgressBar::new(total);
    if let Ok(style) = ProgressStyle::with_template("{msg} [{bar:30}] {binary_bytes}/{binary_total_bytes} {eta}") {
        bar.set_style(style.progress_chars("=> "));
    }
    bar.set_message(what);
    bar
}
