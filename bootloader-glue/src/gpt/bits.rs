//! The bits of a partition's attributes by which a ChromeOS-style loader picks.
//!
//! ```text
//! bits 48-51  priority     15 is tried first, 1 last, 0 never
//! bits 52-55  tries        starts that are left of a trial
//! bit  56     successful   started uncounted
//! ```
//! From "Disk format" of the ChromiumOS developer library; two loaders were read (`cgptlib` of vboot, `gptprio` of CoreOS'
//! GRUB). Neither looks at any other bit, and none but these nine is changed here.

use bascule_core::{BootStatus, Tries};

/// The highest priority.
pub const MAX_PRIORITY: u8 = 15;

/// The first of the bits.
const SHIFT: u32 = 48;

/// All nine of them.
const MASK: u64 = 0x1ff << SHIFT;

/// What the bits of one entry say.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Bits {
    /// 0 to 15.
    pub priority: u8,
    /// 0 to 15.
    pub tries: u8,
    /// Whether it was committed.
    pub successful: bool,
}

impl Bits {
    /// A group that is given up. The tries keep it apart from a trial that used them up: a loader of vboot's kind takes
    /// the priority away together with the last try.
    pub const UNBOOTABLE: Bits = Bits { priority: 0, tries: 15, successful: false };

    /// The bits in an entry's attributes.
    #[must_use]
    pub fn of(attributes: u64) -> Self {
        let [low, high, ..] = (attributes >> SHIFT).to_le_bytes();
        Bits { priority: low & 0x0f, tries: low >> 4, successful: high & 1 == 1 }
    }

    /// The attributes with these bits; all others are as they were.
    #[must_use]
    pub fn in_attributes(self, attributes: u64) -> u64 {
        let low = (self.priority & 0x0f) | (self.tries << 4);
        let ours = u64::from(low) | (u64::from(self.successful) << 8);
        (attributes & !MASK) | (ours << SHIFT)
    }

    /// The attributes without these bits, for comparing all the others.
    pub(super) fn masked(attributes: u64) -> u64 {
        attributes & !MASK
    }

    /// Committed, started before everything of a lower priority.
    pub(super) fn good(priority: u8) -> Self {
        Bits { priority, tries: 0, successful: true }
    }

    /// Whether a loader may start it.
    #[must_use]
    pub fn may_start(self) -> bool {
        self.priority > 0 && (self.successful || self.tries > 0)
    }

    /// What that means for the group.
    #[must_use]
    pub fn status(self) -> BootStatus {
        match self {
            Bits { tries: 0, successful: false, .. } => BootStatus::Exhausted,
            Bits { priority: 0, .. } => BootStatus::Unbootable,
            Bits { successful: true, .. } => BootStatus::Good,
            Bits { tries, .. } => BootStatus::Trial { tries_left: tries.min(Tries::MAX) },
        }
    }
}
