//! Everything that continuous integration looks at before the tests.

use std::process::{Command, ExitCode, Stdio};

use anyhow::{Result, bail, ensure};

use crate::{cargo, ci, tidy};

/// The command. `--advisories` also fetches the list of known faults in crates from the network.
pub(crate) fn run(arguments: &[String]) -> Result<ExitCode> {
    let advisories = match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [] => Advisories::LeaveOut,
        ["--advisories"] => Advisories::Fetch,
        _ => bail!("`cargo xtask check` takes only --advisories"),
    };
    let mut times = ci::Times::default();
    let passed = all(advisories, &mut times);
    println!("{times}");
    Ok(if passed { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Whether the list of known faults is fetched.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Advisories {
    /// No network.
    LeaveOut,
    /// From the network.
    Fetch,
}

/// Runs every step, the later ones also when an earlier one failed, and says whether all passed.
pub(crate) fn all(advisories: Advisories, times: &mut ci::Times) -> bool {
    let steps: [(&str, &dyn Fn() -> Result<()>); 5] = [
        ("format", &format),
        ("lockfile", &lockfile),
        ("tidy", &tidy::all),
        ("lints", &lints),
        ("licences and bans", &|| deny(advisories)),
    ];
    steps.iter().map(|(name, step)| times.step(name, step)).filter(|result| result.is_err()).count() == 0
}

fn format() -> Result<()> {
    succeed(cargo::plain().args(["fmt", "--all", "--check"]), "`cargo fmt --all` puts this in order")
}

fn lockfile() -> Result<()> {
    let mut command = cargo::plain();
    command.args(["metadata", "--locked", "--format-version=1"]).stdout(Stdio::null());
    succeed(&mut command, "Cargo.lock does not fit the manifests: build once and commit it")
}

fn lints() -> Result<()> {
    let mut command = cargo::build("clippy")?;
    command.args(["--workspace", "--all-targets", "--", "-D", "warnings"]);
    succeed(&mut command, "clippy has found something")
}

fn deny(advisories: Advisories) -> Result<()> {
    install_deny()?;
    let mut command = cargo::plain();
    command.args(["deny", "--offline", "--config", ".deny.toml", "check", "bans", "licenses", "sources"]);
    succeed(&mut command, ".deny.toml says what is allowed")?;
    if advisories == Advisories::Fetch {
        let mut command = cargo::plain();
        command.args(["deny", "--config", ".deny.toml", "check", "advisories"]);
        succeed(&mut command, "a crate has a known fault")?;
    }
    Ok(())
}

/// Installs cargo-deny where it is missing, without optimising it: it runs for a second.
fn install_deny() -> Result<()> {
    let mut version = cargo::plain();
    version.args(["deny", "--version"]).stdout(Stdio::null()).stderr(Stdio::null());
    if version.status().is_ok_and(|status| status.success()) {
        return Ok(());
    }
    println!("check: installing cargo-deny, once");
    let mut command = cargo::plain();
    command.args(["install", "--quiet", "--locked", "--debug", "cargo-deny"]);
    succeed(&mut command, "cargo-deny could not be installed")
}

fn succeed(command: &mut Command, otherwise: &str) -> Result<()> {
    ensure!(cargo::run(command)?.success(), "{otherwise}");
    Ok(())
}
