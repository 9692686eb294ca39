//! The socket: made under a new name with its mode and owner, then moved into place, so that it is never open to more.

use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener as StdListener, UnixStream as StdStream};
use std::path::Path;

use nix::unistd::{Gid, Group, chown};
use tokio::net::UnixListener;

use super::ApiError;
use crate::paths::Paths;

/// Makes the API's socket: `0660 root:GROUP` where that group exists, `0600` elsewhere. Call it inside the runtime.
///
/// # Errors
/// Another daemon answers on it, or the runtime directory cannot be used.
pub fn bind(paths: &Paths, group: &str) -> Result<UnixListener, ApiError> {
    let path = paths.socket();
    if StdStream::connect(&path).is_ok() {
        return Err(ApiError::AlreadyServed { path });
    }
    make(paths, &path, group).map_err(|source| ApiError::Socket { path, source })
}

fn make(paths: &Paths, path: &Path, group: &str) -> io::Result<UnixListener> {
    fs::create_dir_all(paths.runtime())?;
    let fresh = path.with_extension("new");
    match fs::remove_file(&fresh) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = StdListener::bind(&fresh)?;
    fs::set_permissions(&fresh, Permissions::from_mode(0o600))?;
    if let Some(gid) = readers(paths, group) {
        chown(&fresh, None, Some(gid))?;
        fs::set_permissions(&fresh, Permissions::from_mode(0o660))?;
    }
    fs::rename(&fresh, path)?;
    listener.set_nonblocking(true)?;
    UnixListener::from_std(listener)
}

/// The group of readers. A rehearsal has none: its users are not the device's.
fn readers(paths: &Paths, group: &str) -> Option<Gid> {
    if !paths.is_real() {
        return None;
    }
    Group::from_name(group).ok().flatten().map(|group| group.gid)
}
