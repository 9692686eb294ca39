//! Builds what fuzzes with checks for overflow in what it fuzzes, and starts it: the fuzzer of deltas, or the property tests
//! that are the fuzz targets of the loaders' parsers, with as many cases as are wanted.

use std::process::{Command, ExitCode};

use anyhow::{Result, ensure};

use crate::cargo;

/// The test programs with the fuzz targets of the loaders' parsers: `grubenv`, U-Boot's environment and `fw_env.config`,
/// names and contents of systemd-boot's entries, UEFI load options, the partition table, `autoboot.txt`.
const LOADERS: [&str; 7] = [
    "grub_editenv",
    "uboot_fw_env",
    "sdboot_names",
    "sdboot_contents",
    "efi_option",
    "gpt_tools",
    "tryboot_conformance",
];
/// Cases of each target, unless another number is wanted.
const CASES: &str = "2000";

/// Only the fuzzed crate is built another time; the C libraries and everything below it stay as they are.
fn with_checks(command: &mut Command, krate: &str) {
    for check in ["overflow-checks", "debug-assertions"] {
        command.args(["--config", &format!("profile.release.package.{krate}.{check}=true")]);
    }
}

/// Fuzzes what deltas are made of, or the loaders' parsers.
pub(crate) fn run(arguments: &[String]) -> Result<ExitCode> {
    match arguments.split_first() {
        Some((what, rest)) if what == "loaders" => loaders(rest),
        _ => delta(arguments),
    }
}

fn loaders(arguments: &[String]) -> Result<ExitCode> {
    ensure!(arguments.len() <= 1, "`cargo xtask fuzz loaders` takes only a number of cases");
    let cases = arguments.first().map_or(CASES, String::as_str);
    ensure!(cases.parse::<u32>().is_ok(), "{cases} is no number of cases");
    let mut test = cargo::build("test")?;
    test.args(["--package", "bascule-boot"]);
    with_checks(&mut test, "bascule-boot");
    for name in LOADERS {
        test.args(["--test", name]);
    }
    let status = cargo::run(test.env("PROPTEST_CASES", cases))?;
    Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn delta(arguments: &[String]) -> Result<ExitCode> {
    let mut build = cargo::build("build")?;
    build.args(["--workspace", "--bin", "fuzz"]);
    with_checks(&mut build, "bascule-image");
    ensure!(cargo::run(&mut build)?.success(), "the fuzzer does not build");
    let mut fuzzer = Command::new(cargo::programs()?.join("fuzz"));
    let status = cargo::run(fuzzer.args(arguments).current_dir(cargo::workspace()))?;
    Ok(status.code().and_then(|code| u8::try_from(code).ok()).map_or(ExitCode::FAILURE, ExitCode::from))
}
