//! Runs the programs that make images, as root or as the root of a user name space.

use std::ffi::OsStr;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use anyhow::{Context, Result, bail};

/// Whether this process may own files as any user.
pub(super) fn is_root() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    status.lines().find_map(|line| line.strip_prefix("Uid:")).and_then(|ids| ids.split_whitespace().nth(1)) == Some("0")
}

/// A command that handles trees whose files belong to several users.
///
/// Without root it runs as the root of a user name space with the range of `/etc/subuid` mapped in.
pub(super) fn tree_command(program: impl AsRef<OsStr>) -> Command {
    if is_root() {
        return Command::new(program);
    }
    let mut command = Command::new("unshare");
    command.args(["--map-root-user", "--map-auto", "--"]).arg(program);
    command
}

/// Runs a shell script over trees; `arguments` are its `$1`, `$2` and so on.
pub(super) fn tree_script(script: &str, arguments: &[&Path]) -> Result<()> {
    let mut command = tree_command("sh");
    command.args(["-euc", script, "sh"]).args(arguments);
    run(&mut command)
}

/// Runs a command to its end and shows what it printed only if it failed.
pub(super) fn run(command: &mut Command) -> Result<()> {
    output(command).map(drop)
}

/// Runs a command to its end and returns what it printed.
pub(super) fn output(command: &mut Command) -> Result<String> {
    let shown = shown(command);
    let Output { status, stdout, stderr } =
        command.stdin(Stdio::null()).output().with_context(|| format!("cannot start {shown}"))?;
    if !status.success() {
        let printed = [stdout, stderr].concat();
        bail!("{shown} ended with {status}:\n{}", String::from_utf8_lossy(&printed).trim_end());
    }
    Ok(String::from_utf8_lossy(&stdout).into_owned())
}

fn shown(command: &Command) -> String {
    let program = Path::new(command.get_program()).display().to_string();
    let arguments: Vec<_> =
        command.get_args().map(|a| a.to_string_lossy().chars().take(80).collect::<String>()).collect();
    format!("{program} {}", arguments.join(" "))
}
