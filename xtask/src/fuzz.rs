//! Builds the fuzzer with checks for overflow in what it fuzzes, and starts it.

use std::process::{Command, ExitCode};

use anyhow::{Result, ensure};

use crate::cargo;

/// Only the fuzzed crate is built another time; the C libraries and everything below it stay as they are.
const CHECKS: [&str; 2] = [
    "profile.release.package.bascule-image.overflow-checks=true",
    "profile.release.package.bascule-image.debug-assertions=true",
];

/// Fuzzes what deltas are made of.
pub(crate) fn run(arguments: &[String]) -> Result<ExitCode> {
    let mut build = cargo::build("build")?;
    build.args(["--workspace", "--bin", "fuzz"]);
    for check in CHECKS {
        build.args(["--config", check]);
    }
    ensure!(cargo::run(&mut build)?.success(), "the fuzzer does not build");
    let mut fuzzer = Command::new(cargo::programs()?.join("fuzz"));
    let status = cargo::run(fuzzer.args(arguments).current_dir(cargo::workspace()))?;
    Ok(status.code().and_then(|code| u8::try_from(code).ok()).map_or(ExitCode::FAILURE, ExitCode::from))
}
