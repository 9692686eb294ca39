//! What the variables of the two blocks mean.

use bascule_core::{BootStatus, Group};

use crate::script::status;

use super::env::{self, Block, Damage};

/// The variables of the file `grubenv`: `order`, `group_a`, `group_b`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct GroupSettings {
    /// The group that stands first in `order`.
    pub(super) first: Group,
    /// Status of `a` and `b`.
    pub(super) statuses: [BootStatus; 2],
}

impl GroupSettings {
    /// Reads the variables as the script we ship does, from bytes that GRUB can read.
    pub(super) fn read_as_grub(bytes: &[u8]) -> Option<Self> {
        let variables = env::variables(bytes)?;
        let last = |name: &str| variables.iter().rev().find(|(n, _)| n == name.as_bytes()).map(|(_, v)| v.as_slice());
        Self::of(last("order")?, last("group_a")?, last("group_b")?)
    }

    /// Reads the variables from a block of our form.
    pub(super) fn of_block(block: &Block) -> Result<Self, Damage> {
        let value = |name: &str| block.get(name).ok_or(Damage::Variables);
        Self::of(&value("order")?, &value("group_a")?, &value("group_b")?).ok_or(Damage::Variables)
    }

    fn of(order: &[u8], a: &[u8], b: &[u8]) -> Option<Self> {
        let first = match order {
            b"a b" => Group::A,
            b"b a" => Group::B,
            _ => return None,
        };
        if a.is_empty() || b.is_empty() {
            return None;
        }
        Some(GroupSettings { first, statuses: [status(a), status(b)] })
    }

    /// The group the loader would try first: the first one in `order` that it may start at all.
    pub(super) fn primary(&self) -> Group {
        let startable = |group: &Group| matches!(self.status(*group), BootStatus::Good | BootStatus::Trial { .. });
        [self.first, self.first.opposite()].into_iter().find(startable).unwrap_or(self.first)
    }

    pub(super) fn status(&self, group: Group) -> BootStatus {
        let [a, b] = self.statuses;
        match group {
            Group::A => a,
            Group::B => b,
        }
    }
}

/// The name of a group's variable.
pub(super) fn variable(group: Group) -> &'static str {
    match group {
        Group::A => "group_a",
        Group::B => "group_b",
    }
}

/// The group that the file `fallback` names, read as the script we ship does.
pub(super) fn fallback_group(bytes: &[u8]) -> Option<Group> {
    let variables = env::variables(bytes)?;
    let (_, value) = variables.iter().rev().find(|(name, _)| name == b"fallback")?;
    match value.as_slice() {
        b"a" => Some(Group::A),
        b"b" => Some(Group::B),
        _ => None,
    }
}
