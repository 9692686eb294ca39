//! What each act has to do to the variables, worked out from what they hold.

use std::path::PathBuf;

use bascule_core::{BootStatus, Group};

use super::option::activated;
use super::settings::{Entry, Mark, Stored, entry_name, mark_path, next_path, order_path};
use super::store::{KEPT, Store};

/// One durable change, which the firmware makes as a whole or not at all.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// The variable holds these data afterwards.
    Put {
        /// The variable's file.
        path: PathBuf,
        /// Its attributes.
        attributes: u32,
        /// Its data.
        data: Vec<u8>,
    },
    /// There is no such variable afterwards.
    Delete {
        /// The variable's file.
        path: PathBuf,
    },
}

/// Why an act is not begun.
pub(super) enum Refusal {
    /// The group is not good.
    NotGood(Group),
    /// The group has no boot entry, or more than one.
    NoEntry(Group),
    /// The variables are damaged, as this says.
    Damaged(&'static str),
}

/// The steps of an act so far, without those that would change nothing.
pub(super) struct Plan<'a> {
    store: &'a Store,
    stored: &'a Stored,
    steps: Vec<Step>,
}

impl<'a> Plan<'a> {
    pub(super) fn new(store: &'a Store, stored: &'a Stored) -> Self {
        Plan { store, stored, steps: Vec::new() }
    }

    pub(super) fn mark_unbootable(mut self, target: Group) -> Result<Vec<Step>, Refusal> {
        let booted = target.opposite();
        self.booted_is_good(booted)?;
        let entry = self.entry(booted)?;
        // The mark first: without `BootNext` it would say that a trial that never began has failed.
        self.forget(target);
        self.disarm(target);
        self.make_active(booted);
        match &self.stored.order {
            Ok(order) => self.put_order(self.without(order, target).0),
            Err(damage) => self.put_order([&[entry.number][..], &damage.kept].concat()),
        }
        self.make_active(target);
        Ok(self.steps)
    }

    pub(super) fn activate(mut self, target: Group) -> Result<Vec<Step>, Refusal> {
        let booted = target.opposite();
        let (entry, _) = (self.entry(target)?, self.entry(booted)?);
        let order = self.stored.order.as_ref().map_err(|damage| Refusal::Damaged(damage.what))?;
        if self.stored.is_damaged() {
            return Err(Refusal::Damaged("a boot entry of ours is not active"));
        }
        self.booted_is_good(booted)?;
        let (order, good) = self.without(order, target);
        if !good.is_empty() || self.stored.mark == Some(Mark::GivenUp(target)) {
            // An old mark would say what became of another trial.
            self.forget(target);
        }
        // A good target would be started uncounted.
        self.put_order(order);
        if self.stored.next != Some(entry.number) {
            self.put(next_path(self.store), entry.number.to_le_bytes().to_vec());
        }
        self.put_mark(Mark::Armed(target));
        Ok(self.steps)
    }

    pub(super) fn mark_good(mut self, booted: Group) -> Result<Vec<Step>, Refusal> {
        let opposite = booted.opposite();
        let entry = self.entry(booted)?;
        self.make_active(booted);
        match &self.stored.order {
            Ok(order) => {
                let (rest, _) = self.without(order, booted);
                let (others, good) = self.without(&rest, opposite);
                // Where it is first of ours already, a person may have put others before it.
                if !self.leads(order, booted) {
                    self.put_order([&[entry.number][..], &good, &others].concat());
                }
                // What the firmware was told to try next would come before the booted group.
                self.disarm(opposite);
            }
            Err(damage) => {
                // The order last: a cut before it leaves damage, and the rest is not looked at any more.
                self.forget(opposite);
                self.disarm(opposite);
                self.put_order([&[entry.number][..], &damage.kept].concat());
            }
        }
        self.make_active(opposite);
        Ok(self.steps)
    }

    pub(super) fn roll_back(mut self, booted: Group) -> Result<Vec<Step>, Refusal> {
        let opposite = booted.opposite();
        let order = match &self.stored.order {
            Ok(order) if self.stored.status(opposite, booted) == BootStatus::Good => order,
            _ => return Err(Refusal::NotGood(opposite)),
        };
        // The mark first: from the other writes on it says why the booted group is not started any more.
        self.put_mark(Mark::GivenUp(booted));
        self.disarm(booted);
        let (rest, _) = self.without(order, booted);
        let (others, good) = self.without(&rest, opposite);
        self.put_order([good, others].concat());
        Ok(self.steps)
    }

    /// Whether the group is listed, and not after the opposite one.
    fn leads(&self, order: &[u16], group: Group) -> bool {
        let place = |of: Group| order.iter().position(|number| self.stored.names(Some(*number), of));
        place(group).is_some_and(|first| place(group.opposite()).is_none_or(|other| first < other))
    }

    /// With a damaged order nothing can be said: then it is good, for it runs.
    fn booted_is_good(&self, booted: Group) -> Result<(), Refusal> {
        match self.stored.order.is_ok() && self.stored.status(booted, booted) != BootStatus::Good {
            true => Err(Refusal::NotGood(booted)),
            false => Ok(()),
        }
    }

    /// The group's one boot entry.
    fn entry(&self, group: Group) -> Result<&'a Entry, Refusal> {
        match self.stored.entries(group) {
            [entry] => Ok(entry),
            _ => Err(Refusal::NoEntry(group)),
        }
    }

    /// The order with the group's entries taken out, and those that were.
    fn without(&self, order: &[u16], group: Group) -> (Vec<u16>, Vec<u16>) {
        order.iter().copied().partition(|number| !self.stored.names(Some(*number), group))
    }

    fn put(&mut self, path: PathBuf, data: Vec<u8>) {
        self.steps.push(Step::Put { path, attributes: KEPT, data });
    }

    fn put_order(&mut self, numbers: Vec<u16>) {
        if self.stored.order.as_ref().ok() != Some(&numbers) {
            self.put(order_path(self.store), numbers.into_iter().flat_map(u16::to_le_bytes).collect());
        }
    }

    fn put_mark(&mut self, mark: Mark) {
        if self.stored.mark != Some(mark) {
            self.put(mark_path(self.store), mark.to_data());
        }
    }

    /// The firmware forgets a trial of this group that has not begun.
    fn disarm(&mut self, group: Group) {
        if self.stored.names(self.stored.next, group) {
            self.steps.push(Step::Delete { path: next_path(self.store) });
        }
    }

    /// Nothing is known of the group any more but that it is unbootable.
    fn forget(&mut self, group: Group) {
        if let Some(Mark::Armed(marked) | Mark::GivenUp(marked)) = self.stored.mark
            && marked == group
        {
            self.steps.push(Step::Delete { path: mark_path(self.store) });
        }
    }

    /// Lets the boot manager start the group's entry, if somebody took that away.
    fn make_active(&mut self, group: Group) {
        if let [entry] = self.stored.entries(group)
            && !entry.is_active
        {
            let path = self.store.global(&entry_name(entry.number));
            let data = activated(&entry.value.data);
            self.steps.push(Step::Put { path, attributes: entry.value.attributes, data });
        }
    }
}
