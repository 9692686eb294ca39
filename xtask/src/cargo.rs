//! Runs cargo over the workspace, always with the same profile, target and flags.
//!
//! One set of flags means that the C libraries (zstd, aws-lc) are compiled once for the programs, the tests and the
//! lints. The C library is linked in, so that the programs run inside any guest.

use std::env;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};

use anyhow::{Context, Result, ensure};

use crate::arch::Arch;

/// Where builds go, below the workspace's top folder.
const BUILDS: &str = "target";

/// The workspace's top folder.
pub(crate) fn workspace() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap_or(Path::new("."))
}

/// Plain cargo in the workspace's top folder.
pub(crate) fn plain() -> Command {
    let mut command = Command::new(program());
    command.current_dir(workspace());
    command
}

/// `cargo SUBCOMMAND` with the profile, target and flags that every build of the workspace uses.
///
/// # Errors
/// When the host's target cannot be found out.
pub(crate) fn build(subcommand: &str) -> Result<Command> {
    let triple = host_triple()?;
    let mut command = plain();
    command.args([subcommand, "--release", "--target", &triple]);
    // The images and the tests look for the programs there.
    command.env("CARGO_TARGET_DIR", workspace().join(BUILDS));
    // These would replace the flags below for some builds and not for others.
    command.env_remove("RUSTFLAGS").env_remove("CARGO_ENCODED_RUSTFLAGS").env_remove("CARGO_BUILD_TARGET");
    command.env(flags_variable(&triple), "-C target-feature=+crt-static");
    Ok(command)
}

/// Builds every program of the workspace.
///
/// # Errors
/// When one does not build.
pub(crate) fn build_programs() -> Result<()> {
    // All at once: cargo unites features over what it builds, and other features would mean another build of the C
    // libraries.
    let status = run(build("build")?.args(["--workspace", "--bins"]))?;
    ensure!(status.success(), "the programs do not build");
    Ok(())
}

/// Where [`build_programs`] puts them.
///
/// # Errors
/// When the host's target cannot be found out.
pub(crate) fn programs() -> Result<PathBuf> {
    Ok(workspace().join(BUILDS).join(host_triple()?).join("release"))
}

/// Builds what runs on a device with this processor, whose programs are not those of this machine.
///
/// # Errors
/// When they do not build.
pub(crate) fn build_device_programs(arch: Arch) -> Result<()> {
    let triple = device_triple(arch)?;
    let mut command = plain();
    command.args(["build", "--release", "--target", &triple, "--package", "bascule-agent", "--bins"]);
    command.env("CARGO_TARGET_DIR", workspace().join(BUILDS));
    command.env_remove("RUSTFLAGS").env_remove("CARGO_ENCODED_RUSTFLAGS").env_remove("CARGO_BUILD_TARGET");
    command.env(flags_variable(&triple), "-C target-feature=+crt-static");
    let name = in_a_variable(&triple);
    command.env(format!("CARGO_TARGET_{}_LINKER", name.to_uppercase()), format!("{}gcc", arch.tools()));
    command.env(format!("CC_{name}"), format!("{}gcc", arch.tools()));
    command.env(format!("AR_{name}"), format!("{}ar", arch.tools()));
    let status = run(&mut command)?;
    ensure!(status.success(), "the programs of a device do not build for {triple}");
    Ok(())
}

/// Where what runs on a device was built.
///
/// # Errors
/// When the host's target cannot be found out.
pub(crate) fn device_programs(arch: Arch) -> Result<PathBuf> {
    Ok(workspace().join(BUILDS).join(device_triple(arch)?).join("release"))
}

/// What rustc calls a device: like this machine it has the GNU C library, which is linked into our programs.
///
/// # Errors
/// When the host's target cannot be found out.
pub(crate) fn device_triple(arch: Arch) -> Result<String> {
    match arch {
        Arch::X86_64 => host_triple(),
        Arch::Aarch64 => Ok("aarch64-unknown-linux-gnu".to_owned()),
    }
}

/// Runs a command with our standard streams, and says how it ended.
///
/// # Errors
/// When it cannot be started.
pub(crate) fn run(command: &mut Command) -> Result<ExitStatus> {
    let program = PathBuf::from(command.get_program());
    command.status().with_context(|| format!("{} cannot be started", program.display()))
}

/// Runs a command and returns what it printed.
///
/// # Errors
/// When it cannot be started or fails; its error output went to ours.
pub(crate) fn output(command: &mut Command) -> Result<String> {
    let program = PathBuf::from(command.get_program());
    let output = command
        .stderr(std::process::Stdio::inherit())
        .output()
        .with_context(|| format!("{} cannot be started", program.display()))?;
    ensure!(output.status.success(), "{} ended with {}", program.display(), output.status);
    String::from_utf8(output.stdout).with_context(|| format!("{} did not print text", program.display()))
}

/// The cargo that runs us, or the one in the search path.
fn program() -> PathBuf {
    env::var_os("CARGO").map_or_else(|| PathBuf::from("cargo"), PathBuf::from)
}

fn host_triple() -> Result<String> {
    let compiler = env::var_os("RUSTC").map_or_else(|| PathBuf::from("rustc"), PathBuf::from);
    let printed = output(Command::new(compiler).arg("-vV").current_dir(workspace()))?;
    let triple = printed.lines().find_map(|line| line.strip_prefix("host: "));
    Ok(triple.context("rustc does not say what it runs on")?.to_owned())
}

fn flags_variable(triple: &str) -> String {
    format!("CARGO_TARGET_{}_RUSTFLAGS", in_a_variable(triple).to_uppercase())
}

fn in_a_variable(triple: &str) -> String {
    triple.replace(['-', '.'], "_")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_variable_with_the_flags_is_the_one_cargo_reads() {
        assert_eq!(flags_variable("x86_64-unknown-linux-gnu"), "CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_RUSTFLAGS");
    }
}
