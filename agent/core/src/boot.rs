//! What a boot loader's settings say about the two groups, whichever loader it is.

use serde::{Deserialize, Serialize};

use crate::words::Group;

/// What the loader may do with one group.
///
/// A trial with tries left is not a verdict: a power cut in probation costs a try and proves nothing about the image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "status", rename_all = "kebab-case")]
pub enum BootStatus {
    /// The loader will not start it.
    Unbootable,
    /// Armed for a counted trial: the loader starts it this many times more without a commit.
    Trial {
        /// Starts the loader still grants, 1 to 9.
        tries_left: u8,
    },
    /// Its trial used every try; the loader has fallen back.
    Exhausted,
    /// Committed: the loader starts it without counting.
    Good,
}

/// Whether the settings could be read, or the loader is running on its built-in defaults.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Settings {
    /// Read, whole and of the loader's form.
    Intact,
    /// Missing, torn or of another form: the loader uses the group its fallback names. They must be repaired.
    Damaged,
}

/// The boot settings as the loader would read them now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct BootView {
    /// Whether the settings were readable.
    pub settings: Settings,
    /// The group the loader tries first.
    pub primary: Group,
    /// Status of group `a`.
    pub a: BootStatus,
    /// Status of group `b`.
    pub b: BootStatus,
}

impl BootView {
    /// The status of one group.
    #[must_use]
    pub fn status(&self, group: Group) -> BootStatus {
        match group {
            Group::A => self.a,
            Group::B => self.b,
        }
    }
}
