//! Runs every test of the workspace and closes with one line of sums.

use std::fmt;
use std::io::{BufRead, BufReader};
use std::process::{ExitCode, Stdio};

use anyhow::{Context, Result};

use crate::{cargo, scenes};

/// Tests summed over every test program.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Sums {
    passed: u64,
    failed: u64,
    skipped: u64,
}

impl Sums {
    /// Whether nothing failed.
    pub(crate) fn all_passed(self) -> bool {
        self.failed == 0
    }

    fn add(&mut self, other: Sums) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.skipped += other.skipped;
    }
}

impl fmt::Display for Sums {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} passed, {} failed, {} skipped", self.passed, self.failed, self.skipped)
    }
}

/// The command: everything, or with `--quick` what needs no images; what follows goes to `cargo test`.
pub(crate) fn run(arguments: &[String]) -> Result<ExitCode> {
    let (quick, rest) = match arguments.split_first() {
        Some((first, rest)) if first == "--quick" => (true, rest),
        _ => (false, arguments),
    };
    if !quick {
        scenes::prepare()?;
    }
    let sums = tests(quick, rest)?;
    println!("{sums}");
    Ok(if sums.all_passed() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Runs the tests while showing what they print, and sums them up.
///
/// # Errors
/// When the tests cannot be started. Tests that do not build count as one failure.
pub(crate) fn tests(quick: bool, arguments: &[String]) -> Result<Sums> {
    let mut command = cargo::build("test")?;
    command.arg("--no-fail-fast");
    let named = arguments.iter().any(|argument| argument == "-p" || argument.starts_with("--package"));
    if !named {
        command.arg("--workspace");
    }
    if !named && quick {
        command.args(["--exclude", "bascule-tests"]);
    }
    if std::env::var_os("RUST_TEST_THREADS").is_none() {
        // Guests wait for deadlines a good part of their time: one more than there are processors.
        let processors = std::thread::available_parallelism().map_or(2, std::num::NonZero::get);
        command.env("RUST_TEST_THREADS", (processors + 1).to_string());
    }
    let mut child = command.args(arguments).stdout(Stdio::piped()).spawn().context("cargo test cannot be started")?;
    let printed = child.stdout.take().context("cargo test has no output")?;
    let mut sums = Sums::default();
    for line in BufReader::new(printed).split(b'\n') {
        let line = String::from_utf8_lossy(&line?).into_owned();
        println!("{line}");
        if let Some(more) = result_of(&line) {
            sums.add(more);
        }
    }
    let status = child.wait()?;
    if !status.success() && sums.all_passed() {
        println!("\ncargo test ended with {status} although no test failed: a test program broke off or did not build");
        sums.failed += 1;
    }
    Ok(sums)
}

/// Reads the line a test program closes with: `test result: ok. 12 passed; 0 failed; 1 ignored; ...`.
fn result_of(line: &str) -> Option<Sums> {
    let (_, counts) = line.strip_prefix("test result: ")?.split_once(". ")?;
    let mut sums = Sums::default();
    for part in counts.split("; ") {
        let Some((number, what)) = part.split_once(' ') else { continue };
        match what {
            "passed" => sums.passed = number.parse().ok()?,
            "failed" => sums.failed = number.parse().ok()?,
            "ignored" => sums.skipped = number.parse().ok()?,
            _ => {}
        }
    }
    Some(sums)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_counts_are_read_from_the_closing_line_of_a_test_program() {
        let line = "test result: FAILED. 12 passed; 2 failed; 1 ignored; 0 measured; 4 filtered out; finished in 0.10s";
        assert_eq!(result_of(line), Some(Sums { passed: 12, failed: 2, skipped: 1 }));
        assert_eq!(result_of("test result_of::works ... ok"), None);
        assert_eq!(result_of(" test result: ok. 1 passed; 0 failed; 0 ignored"), None);
    }

    #[test]
    fn the_closing_line_sums_up_every_test_program() {
        let mut sums = Sums::default();
        sums.add(Sums { passed: 3, failed: 0, skipped: 1 });
        sums.add(Sums { passed: 4, failed: 1, skipped: 0 });
        assert_eq!(sums.to_string(), "7 passed, 1 failed, 1 skipped");
        assert!(!sums.all_passed());
    }
}
