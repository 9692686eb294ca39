//! Runs a tool of the host and keeps what it said for the error.

use std::ffi::OsString;
use std::process::{Command, Stdio};

use super::error::DiskError;

/// Runs `program` to its end.
///
/// # Errors
/// When it cannot be started or does not end with 0.
pub(super) fn run(program: &str, arguments: Vec<OsString>, settings: &[(&str, String)]) -> Result<(), DiskError> {
    let output = Command::new(program)
        .args(arguments)
        .envs(settings.iter().map(|(name, value)| (name, value)))
        .stdin(Stdio::null())
        .output()
        .map_err(|source| DiskError::ToolMissing { program: program.into(), source })?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let lines: Vec<&str> = said.lines().filter(|line| !line.trim().is_empty()).collect();
    let last = lines.iter().rev().take(3).rev().copied().collect::<Vec<_>>().join("; ");
    Err(DiskError::ToolFailed { program: program.into(), said: last })
}
