//! What our variables in the environment mean.

use bascule_core::{BootStatus, Group};

use crate::script::status;

use super::env::{self, Damage, Variables};

/// Length of the file `bascule-fallback`: one sector.
pub const FALLBACK_LEN: usize = 512;

/// The variables `bascule_order`, `bascule_a`, `bascule_b`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct GroupSettings {
    /// The group that stands first in `bascule_order`.
    pub(super) first: Group,
    /// Status of `a` and `b`.
    pub(super) statuses: [BootStatus; 2],
}

impl GroupSettings {
    /// Reads the variables as the script we ship does; `refused` is never started, whatever they say.
    pub(super) fn of(variables: &Variables, refused: Option<Group>) -> Result<Self, Damage> {
        let value = |name: &str| variables.get(name).ok_or(Damage::Variables);
        let first = match value("bascule_order")?.as_slice() {
            b"a b" => Group::A,
            b"b a" => Group::B,
            _ => return Err(Damage::Variables),
        };
        let allowed = |group: Group, status| if refused == Some(group) { BootStatus::Unbootable } else { status };
        let (a, b) = (status(&value("bascule_a")?), status(&value("bascule_b")?));
        let statuses = [allowed(Group::A, a), allowed(Group::B, b)];
        let settings = GroupSettings { first, statuses };
        if Group::ALL.into_iter().any(|group| settings.may_start(group)) { Ok(settings) } else { Err(Damage::NoGroup) }
    }

    /// Settings in which only `group` may be started.
    pub(super) fn only(group: Group) -> Self {
        let status = |of: Group| if of == group { BootStatus::Good } else { BootStatus::Unbootable };
        GroupSettings { first: group, statuses: [status(Group::A), status(Group::B)] }
    }

    /// The group the loader would try first: the first one in the order that it may start at all.
    pub(super) fn primary(&self) -> Group {
        if self.may_start(self.first) { self.first } else { self.first.opposite() }
    }

    pub(super) fn status(&self, group: Group) -> BootStatus {
        let [a, b] = self.statuses;
        match group {
            Group::A => a,
            Group::B => b,
        }
    }

    pub(super) fn may_start(&self, group: Group) -> bool {
        matches!(self.status(group), BootStatus::Good | BootStatus::Trial { .. })
    }
}

/// The name of a group's variable.
pub(super) fn variable(group: Group) -> &'static str {
    match group {
        Group::A => "bascule_a",
        Group::B => "bascule_b",
    }
}

/// What the file `bascule-fallback` says.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Fallback {
    /// A group that is complete, for the time the settings cannot be obeyed.
    pub(super) group: Option<Group>,
    /// A group that is being written and not started, whatever a copy of the settings says.
    pub(super) refused: Option<Group>,
}

impl Fallback {
    /// Reads the file as the script we ship does.
    pub(super) fn read(bytes: &[u8]) -> Self {
        let data = Some(bytes).filter(|bytes| bytes.len() == FALLBACK_LEN).and_then(env::redundant);
        let Some(variables) = data.and_then(|(_, data)| Variables::parse(data).ok()) else {
            return Fallback::default();
        };
        let group = |name: &str| match variables.get(name)?.as_slice() {
            b"a" => Some(Group::A),
            b"b" => Some(Group::B),
            _ => None,
        };
        let (named, refused) = (group("bascule_fallback"), group("bascule_refused"));
        // A group that is refused is no way out.
        Fallback { group: named.filter(|group| refused != Some(*group)), refused }
    }

    /// The bytes of the file.
    pub(super) fn to_bytes(self) -> Option<Vec<u8>> {
        let mut variables = Variables::default();
        let named = [("bascule_fallback", self.group), ("bascule_refused", self.refused)];
        for (name, group) in named.into_iter().filter_map(|(name, group)| Some((name, group?))) {
            variables.set(name, group.letter());
        }
        // `env import -c` of a U-Boot with a redundant environment wants the flag too, and takes any.
        variables.to_redundant(0, FALLBACK_LEN)
    }
}
