//! What a machine needs of the host: a socket for commands, a free port, a copy of the disk.

use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};

/// How long QEMU may take to open its ports.
const START_PATIENCE: Duration = Duration::from_secs(120);

/// A folder for the socket whose path fits the 108 bytes a socket's address can hold.
pub(super) struct SocketPlace {
    file: PathBuf,
    _short: Option<tempfile::TempDir>,
}

impl SocketPlace {
    pub(super) fn path(&self) -> &Path {
        &self.file
    }
}

/// A place for the socket of the guest's second serial port.
pub(super) fn command_socket(scratch: &Path) -> Result<SocketPlace> {
    let file = scratch.join("commands.socket");
    if file.as_os_str().len() < 100 {
        std::fs::remove_file(&file).ok();
        return Ok(SocketPlace { file, _short: None });
    }
    let short = tempfile::tempdir()?;
    Ok(SocketPlace { file: short.path().join("commands.socket"), _short: Some(short) })
}

/// Waits until QEMU connects, unless it ends first.
pub(super) fn accept(listener: &UnixListener, qemu: &mut Child) -> Result<UnixStream> {
    listener.set_nonblocking(true)?;
    let deadline = Instant::now() + START_PATIENCE;
    loop {
        match listener.accept() {
            Ok((port, _)) => {
                port.set_nonblocking(false)?;
                return Ok(port);
            }
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error.into()),
        }
        if let Some(status) = qemu.try_wait()? {
            bail!("QEMU ended with {status} at once");
        }
        ensure!(Instant::now() < deadline, "QEMU does not open its ports");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Copies a disk image and leaves its holes holes.
pub(crate) fn copy_sparse(from: &Path, to: &Path) -> Result<()> {
    let mut command = Command::new("cp");
    let status = command.args(["--sparse=always", "--reflink=auto", "--"]).arg(from).arg(to).status()?;
    ensure!(status.success(), "cannot copy {}", from.display());
    Ok(())
}

/// A port of the loopback interface that nobody listens on now.
pub(super) fn free_port() -> Result<u16> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port())
}

/// The end of a console's text, for errors.
pub(super) fn last_lines(text: &str, count: usize) -> String {
    let lines: Vec<&str> = text.lines().collect();
    lines.get(lines.len().saturating_sub(count)..).unwrap_or_default().join("\n")
}
