//! The daemon of a rehearsal, serving its socket, and the command line beside it.

use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};

use super::Rehearsal;

/// How long a daemon may take to answer on a loaded host.
const PATIENCE: Duration = Duration::from_secs(20);

/// A daemon; killed when it is dropped.
#[derive(Debug)]
pub struct Serving {
    child: Child,
    bascule: PathBuf,
    root: PathBuf,
}

impl Rehearsal {
    /// Starts the daemon and waits until it answers.
    ///
    /// # Errors
    /// When it ends or does not answer.
    pub fn serve(&self) -> Result<Serving> {
        let mut daemon = self.command(&[]);
        let bascule = PathBuf::from(daemon.get_program()).with_file_name("bascule");
        let child = daemon.stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
        let mut serving = Serving { child, bascule, root: self.root().to_owned() };
        let until = Instant::now() + PATIENCE;
        while !serving.ask(&["status"])?.status.success() {
            ensure!(serving.is_alive(), "the daemon ended");
            ensure!(Instant::now() < until, "the daemon does not answer");
            std::thread::yield_now();
        }
        Ok(serving)
    }
}

impl Serving {
    /// The command line.
    #[must_use]
    pub fn bascule(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.bascule);
        command.arg("--root").arg(&self.root).args(arguments);
        command
    }

    /// Runs one command to its end.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn ask(&self, arguments: &[&str]) -> Result<Output> {
        Ok(self.bascule(arguments).output()?)
    }

    /// Waits until the status, as JSON, holds `text`.
    ///
    /// # Errors
    /// When it never does.
    pub fn wait_for(&self, text: &str) -> Result<()> {
        let until = Instant::now() + PATIENCE;
        loop {
            let status = String::from_utf8_lossy(&self.ask(&["status", "--json"])?.stdout).into_owned();
            if status.contains(text) {
                return Ok(());
            }
            if Instant::now() > until {
                bail!("no {text} in: {status}");
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Waits for the daemon's own end, as before a reboot.
    ///
    /// # Errors
    /// When it goes on.
    pub fn wait_for_end(&mut self) -> Result<()> {
        let until = Instant::now() + PATIENCE;
        while self.is_alive() {
            ensure!(Instant::now() < until, "the daemon goes on");
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    /// Whether it runs.
    pub fn is_alive(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
