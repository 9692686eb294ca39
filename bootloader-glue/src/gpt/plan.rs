//! What each act has to do to the bits of the two entries, worked out from what they say.

use bascule_core::{BootStatus, BootView, Group, Settings, Tries};

use super::bits::{Bits, MAX_PRIORITY};

/// Why an act is not begun.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Refusal {
    /// The group is not good.
    NotGood(Group),
    /// The loader starts neither group, or the copy of the table that it prefers is lost.
    Damaged,
}

/// Bits that one entry is to have: each change is a commit point of its own.
pub(super) type Change = (Group, Bits);

/// The bits of both entries, and the changes to them so far, without those that would change nothing.
#[derive(Debug, Clone)]
pub(super) struct Plan {
    bits: [Bits; 2],
    /// Of two equal priorities the loader takes the lower number.
    lower: Group,
    is_copy_lost: bool,
    changes: Vec<Change>,
}

impl Plan {
    pub(super) fn new(bits: [Bits; 2], lower: Group, is_copy_lost: bool) -> Self {
        Plan { bits, lower, is_copy_lost, changes: Vec::new() }
    }

    pub(super) fn view(&self, booted: Group) -> BootView {
        let settings = if self.is_damaged() { Settings::Damaged } else { Settings::Intact };
        let [a, b] = Group::ALL.map(|group| self.bits(group).status());
        BootView { settings, primary: self.primary().unwrap_or(booted), a, b }
    }

    pub(super) fn mark_unbootable(mut self, target: Group) -> Result<Vec<Change>, Refusal> {
        let booted = target.opposite();
        if !self.is_good(booted) {
            return if self.is_damaged() { Ok(self.rebuild(booted)) } else { Err(Refusal::NotGood(booted)) };
        }
        self.give_up(target);
        Ok(self.changes)
    }

    pub(super) fn activate(mut self, target: Group, tries: Tries) -> Result<Vec<Change>, Refusal> {
        let booted = target.opposite();
        if self.is_damaged() {
            return Err(Refusal::Damaged);
        }
        if !self.is_good(booted) {
            return Err(Refusal::NotGood(booted));
        }
        let trial = |priority| Bits { priority, tries: tries.get(), successful: false };
        let above = self.bits(booted).priority.saturating_add(1);
        let (bits, first) = (self.bits(target), self.primary() == Some(target));
        if first && bits == trial(bits.priority) {
            return Ok(self.changes);
        }
        if above <= MAX_PRIORITY {
            self.change(target, trial(above));
        } else {
            // No room above: the booted group steps down while the loader may start nothing else.
            self.give_up(target);
            self.change(booted, Bits::good(1));
            self.change(target, trial(2));
        }
        Ok(self.changes)
    }

    pub(super) fn mark_good(mut self, booted: Group) -> Vec<Change> {
        let opposite = booted.opposite();
        if self.is_damaged() && !self.is_good(booted) {
            return self.rebuild(booted);
        }
        let (own, other) = (self.bits(booted).priority.max(1), self.bits(opposite));
        if !other.may_start() || own > other.priority {
            self.change(booted, Bits::good(own));
        } else if other.priority < MAX_PRIORITY {
            self.change(booted, Bits::good(other.priority + 1));
        } else {
            // No room above: the opposite group steps down first, and may be started as before.
            self.change(opposite, Bits { priority: MAX_PRIORITY - 1, ..other });
            self.change(booted, Bits::good(MAX_PRIORITY));
        }
        self.changes
    }

    pub(super) fn roll_back(mut self, booted: Group) -> Result<Vec<Change>, Refusal> {
        if !self.is_good(booted.opposite()) {
            return Err(Refusal::NotGood(booted.opposite()));
        }
        self.give_up(booted);
        Ok(self.changes)
    }

    /// Good for the booted group first: in between the loader has something to start.
    fn rebuild(mut self, booted: Group) -> Vec<Change> {
        self.change(booted, Bits::good(1));
        self.give_up(booted.opposite());
        self.changes
    }

    fn give_up(&mut self, group: Group) {
        if self.bits(group).status() != BootStatus::Unbootable {
            self.change(group, Bits::UNBOOTABLE);
        }
    }

    fn change(&mut self, group: Group, bits: Bits) {
        let [a, b] = &mut self.bits;
        let place = if group == Group::A { a } else { b };
        if *place != bits {
            *place = bits;
            self.changes.push((group, bits));
        }
    }

    /// The group that the loader tries first.
    fn primary(&self) -> Option<Group> {
        let groups = [self.lower.opposite(), self.lower];
        let allowed = groups.into_iter().filter(|group| self.bits(*group).may_start());
        // Of equals the last one is taken.
        allowed.max_by_key(|group| self.bits(*group).priority)
    }

    pub(super) fn is_damaged(&self) -> bool {
        self.is_copy_lost || self.primary().is_none()
    }

    fn is_good(&self, group: Group) -> bool {
        self.bits(group).status() == BootStatus::Good
    }

    fn bits(&self, group: Group) -> Bits {
        let [a, b] = self.bits;
        if group == Group::A { a } else { b }
    }
}
