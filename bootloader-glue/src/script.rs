//! What the scripts that we ship for GRUB and for U-Boot have in common: the values of their variables, how a start of them
//! ends, and the folder they lie in.

use std::path::Path;

use bascule_core::{BootStatus, Group};

use crate::BootError;

/// Whether the loader can write its settings at this start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Saving {
    /// The write reaches the disk.
    Works,
    /// The write fails: a read-only medium, a firmware that refuses, an environment that is full.
    Fails,
}

/// How one start ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// A group's kernel was started.
    Started(Group),
    /// Nothing could be started: GRUB waits at the recovery menu, U-Boot's script returns to U-Boot.
    Recovery,
}

/// What the value of a group's variable means: everything that is neither `good` nor one digit is unbootable.
pub(crate) fn status(value: &[u8]) -> BootStatus {
    match value {
        b"good" => BootStatus::Good,
        b"0" => BootStatus::Exhausted,
        [digit @ b'1'..=b'9'] => BootStatus::Trial { tries_left: digit - b'0' },
        _ => BootStatus::Unbootable,
    }
}

/// The value of the variable with the order, with `first` first.
pub(crate) fn order(first: Group) -> &'static str {
    match first {
        Group::A => "a b",
        Group::B => "b a",
    }
}

/// A value as it is stored: `\` protects the next byte; at the end it stands for itself.
pub(crate) fn unescape(value: &[u8]) -> Vec<u8> {
    let mut bytes = value.iter();
    let mut plain = Vec::with_capacity(value.len());
    while let Some(byte) = bytes.next() {
        plain.push(if *byte == b'\\' { *bytes.next().unwrap_or(byte) } else { *byte });
    }
    plain
}

/// Refuses a folder without our script: nothing may be created below a mount point that is not mounted.
pub(crate) fn must_lie_in(dir: &Path, script: &'static str) -> Result<(), BootError> {
    if dir.join(script).is_file() {
        Ok(())
    } else {
        Err(BootError::NotTheLoaders { dir: dir.to_owned(), missing: script })
    }
}
