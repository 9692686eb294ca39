//! Runs commands in the guest over its second serial port.

use std::io::Write;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use anyhow::{Context, Result};

use super::serial::Serial;

/// How a command in the guest ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CommandOutput {
    /// What it printed to standard output and standard error.
    pub text: String,
    /// Its exit code.
    pub code: i32,
}

/// The guest's command server (see `command-server` among the demo's files).
#[derive(Debug)]
pub(super) struct Commands {
    port: UnixStream,
    pub(super) serial: Serial,
    next_token: u32,
    ready: bool,
}

impl Commands {
    pub(super) fn new(port: UnixStream, serial: Serial) -> Commands {
        Commands { port, serial, next_token: 1, ready: false }
    }

    /// Waits until the guest takes commands; returns at once when it did so before in this boot.
    pub(super) fn wait_ready(&mut self, patience: Duration) -> Result<()> {
        if !self.ready {
            self.serial.wait_for_any(&["@@ ready\n"], patience).context("the guest does not take commands")?;
            self.ready = true;
        }
        Ok(())
    }

    /// Runs one command line, of any number of lines, in the guest's shell.
    pub(super) fn run(&mut self, command: &str, patience: Duration) -> Result<CommandOutput> {
        let token = self.begin(command)?;
        let begun = format!("@< {token}\n");
        let ended = format!("\n@@ {token} ");
        self.serial.wait_for_any(&[&begun], patience).with_context(|| format!("`{command}` did not begin"))?;
        let (_, text) =
            self.serial.wait_for_any(&[&ended], patience).with_context(|| format!("`{command}` did not end"))?;
        let (_, code) = self.serial.wait_for_any(&["\n"], patience)?;
        let code = code.trim().parse().with_context(|| format!("`{command}` ended with {code:?}"))?;
        Ok(CommandOutput { text: text.strip_suffix(&ended).unwrap_or(&text).to_owned(), code })
    }

    /// Sends one command and does not wait for its end.
    pub(super) fn begin(&mut self, command: &str) -> Result<String> {
        let token = format!("t{}", self.next_token);
        self.next_token += 1;
        writeln!(self.port, "{token} {}", quoted(command)).context("the guest's command port is closed")?;
        Ok(token)
    }
}

/// Writes a command as one line that bash reads back as it was.
fn quoted(command: &str) -> String {
    let mut line = String::from("$'");
    for character in command.chars() {
        match character {
            '\\' => line.push_str("\\\\"),
            '\'' => line.push_str("\\'"),
            '\n' => line.push_str("\\n"),
            other => line.push(other),
        }
    }
    line.push('\'');
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bash_reads_a_quoted_command_back_as_it_was() {
        for command in ["echo 'it'\"s\" \\n", "printf '%s' \"$HOME\"\nfalse", "a=$'x\\ty'"] {
            let line = format!("printf %s {}", quoted(command));
            let output = std::process::Command::new("bash").args(["-c", &line]).output().unwrap();
            assert_eq!(String::from_utf8_lossy(&output.stdout), command);
        }
    }
}
