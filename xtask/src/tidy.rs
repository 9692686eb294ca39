//! The house rules that a program can check. Each finding names a file, a line and the reason.
//!
//! | module | rules |
//! |---|---|
//! | [`house`] | who may use whom, required crates, entries at the top, no unsafe code |
//! | [`code`] | length of files and functions, words in names, absolute paths |
//! | [`docs`] | ARCHITECTURE.md names every module, docs/errors.md every error code |
//! | [`sources`] | the files these look at |

mod code;
mod docs;
mod house;
mod sources;

use std::fmt;
use std::process::ExitCode;

use anyhow::{Result, bail, ensure};

use crate::cargo;

/// Something that is not as the house rules want it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Finding {
    file: String,
    line: usize,
    weight: Weight,
    reason: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Weight {
    Error,
    Warning,
}

impl Finding {
    fn error(file: impl Into<String>, line: usize, reason: impl Into<String>) -> Self {
        Finding { file: file.into(), line, weight: Weight::Error, reason: reason.into() }
    }

    fn warning(file: impl Into<String>, line: usize, reason: impl Into<String>) -> Self {
        Finding { weight: Weight::Warning, ..Finding::error(file, line, reason) }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let weight = if self.weight == Weight::Warning { "warning: " } else { "" };
        write!(f, "{}:{}: {weight}{}", self.file, self.line, self.reason)
    }
}

/// The command.
pub(crate) fn run(arguments: &[String]) -> Result<ExitCode> {
    ensure!(arguments.is_empty(), "`cargo xtask tidy` takes no arguments");
    all().map(|()| ExitCode::SUCCESS)
}

/// Checks every rule and prints what it finds.
///
/// # Errors
/// When a rule is broken, or the workspace cannot be read.
pub(crate) fn all() -> Result<()> {
    let sources = sources::read(cargo::workspace())?;
    let mut findings = house::check(&sources)?;
    findings.extend(sources.iter().flat_map(code::check));
    findings.extend(docs::check(cargo::workspace(), &sources)?);
    findings.sort();
    findings.iter().for_each(|finding| println!("{finding}"));
    match findings.iter().filter(|finding| finding.weight == Weight::Error).count() {
        0 => Ok(()),
        1 => bail!("a house rule is broken"),
        count => bail!("{count} times a house rule is broken"),
    }
}
