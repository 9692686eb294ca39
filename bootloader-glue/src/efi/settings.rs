//! What the firmware's variables and our mark say about the groups.

use std::collections::BTreeSet;
use std::path::PathBuf;

use bascule_core::{BootStatus, BootView, Group, Settings};

use crate::BootError;

use super::option::{LoadOption, description, units};
use super::store::{KEPT, Store, Value};

/// The variable with our mark, and the vendor that stands for us: a random GUID.
const MARK: (&str, &str) = ("BasculeTrial", "6f1d3b52-9c0e-4d57-8a44-2be1c37f90a6");

/// What became of the last trial that was not committed: no variable of the firmware keeps that.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mark {
    /// `BootNext` was told to try it.
    Armed(Group),
    /// It was rolled back.
    GivenUp(Group),
}

impl Mark {
    fn read(data: &[u8]) -> Option<Self> {
        let (word, letter) = std::str::from_utf8(data).ok()?.split_once(' ')?;
        let group = letter.parse().ok()?;
        match word {
            "armed" => Some(Mark::Armed(group)),
            "given-up" => Some(Mark::GivenUp(group)),
            _ => None,
        }
    }

    pub(super) fn to_data(self) -> Vec<u8> {
        match self {
            Mark::Armed(group) => format!("armed {group}"),
            Mark::GivenUp(group) => format!("given-up {group}"),
        }
        .into_bytes()
    }
}

/// A boot entry of ours.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) number: u16,
    pub(super) is_active: bool,
    /// The whole variable.
    pub(super) value: Value,
}

/// All that is looked at, read once.
#[derive(Debug)]
pub(super) struct Stored {
    /// The numbers in `BootOrder`; `Err` says what is wrong with them, and which can be kept.
    pub(super) order: Result<Vec<u16>, OrderDamage>,
    pub(super) next: Option<u16>,
    pub(super) current: Option<u16>,
    pub(super) mark: Option<Mark>,
    entries: [Vec<Entry>; 2],
}

/// A `BootOrder` that cannot be obeyed.
#[derive(Debug)]
pub(super) struct OrderDamage {
    pub(super) what: &'static str,
    /// Numbers in it that are entries of others.
    pub(super) kept: Vec<u16>,
}

/// The file of `BootOrder`, `BootNext`, and our mark.
pub(super) fn order_path(store: &Store) -> PathBuf {
    store.global("BootOrder")
}

pub(super) fn next_path(store: &Store) -> PathBuf {
    store.global("BootNext")
}

pub(super) fn mark_path(store: &Store) -> PathBuf {
    store.vendor(MARK.0, MARK.1)
}

/// The name of a boot entry's variable.
pub(super) fn entry_name(number: u16) -> String {
    format!("Boot{number:04X}")
}

/// The number in the name of a boot entry's variable, with the firmware's upper case digits.
pub(super) fn entry_number(name: &str) -> Option<u16> {
    let number = u16::from_str_radix(name.strip_prefix("Boot")?, 16).ok()?;
    (entry_name(number) == name).then_some(number)
}

/// The one number that a variable such as `BootNext` holds.
pub(super) fn single(value: Option<Value>) -> Option<u16> {
    value.and_then(|value| value.data.try_into().ok()).map(u16::from_le_bytes)
}

impl Stored {
    pub(super) fn read(store: &Store) -> Result<Self, BootError> {
        let mut entries = [Vec::new(), Vec::new()];
        let mut numbers = BTreeSet::new();
        let names = store.names()?;
        if names.is_empty() {
            // Stopping here is safe: nothing was written.
            return Err(super::EfiError::NotMounted { dir: store.dir().to_owned() }.into());
        }
        for number in names.iter().filter_map(|name| entry_number(name)) {
            let Some(value) = store.read(&store.global(&entry_name(number)))? else { continue };
            numbers.insert(number);
            let Some(option) = LoadOption::parse(&value.data) else { continue };
            for (group, ours) in Group::ALL.into_iter().zip(&mut entries) {
                if option.description == description(group) {
                    ours.push(Entry { number, is_active: option.is_active(), value: value.clone() });
                }
            }
        }
        let ours: Vec<u16> = entries.iter().flatten().map(|entry| entry.number).collect();
        let order = order(store.read(&order_path(store))?, &ours).map_err(|(what, mut kept)| {
            let mut seen = BTreeSet::new();
            kept.retain(|number| numbers.contains(number) && !ours.contains(number) && seen.insert(*number));
            OrderDamage { what, kept }
        });
        Ok(Stored {
            order,
            next: single(store.read(&next_path(store))?),
            current: single(store.read(&store.global("BootCurrent"))?),
            mark: store.read(&mark_path(store))?.and_then(|value| Mark::read(&value.data)),
            entries,
        })
    }

    /// The group's boot entries: one, unless it was lost or doubled.
    pub(super) fn entries(&self, group: Group) -> &[Entry] {
        let [a, b] = &self.entries;
        match group {
            Group::A => a,
            Group::B => b,
        }
    }

    /// Whether the number is one of the group's entries.
    pub(super) fn names(&self, number: Option<u16>, group: Group) -> bool {
        self.entries(group).iter().any(|entry| Some(entry.number) == number)
    }

    /// What keeps the variables from being obeyed, if anything.
    pub(super) fn is_damaged(&self) -> bool {
        let odd = |entries: &Vec<Entry>| !matches!(entries.as_slice(), [Entry { is_active: true, .. }]);
        self.order.is_err() || self.entries.iter().any(odd)
    }

    pub(super) fn view(&self, booted: Group) -> BootView {
        let settings = if self.is_damaged() { Settings::Damaged } else { Settings::Intact };
        let [a, b] = Group::ALL.map(|group| self.status(group, booted));
        BootView { settings, primary: self.primary().unwrap_or(booted), a, b }
    }

    /// The group that the firmware tries first.
    fn primary(&self) -> Option<Group> {
        let order = self.order.iter().flatten().copied();
        let mut numbers = self.next.into_iter().chain(order);
        let group_of = |number| Group::ALL.into_iter().find(|group| self.names(Some(number), *group));
        // An entry of others in `BootNext` comes once before whatever is ours.
        numbers.find_map(group_of)
    }

    pub(super) fn status(&self, group: Group, booted: Group) -> BootStatus {
        if self.is_good(group) {
            BootStatus::Good
        } else if self.names(self.next, group) {
            BootStatus::Trial { tries_left: 1 }
        } else if self.mark == Some(Mark::GivenUp(group)) {
            BootStatus::Unbootable
        } else if self.mark == Some(Mark::Armed(group)) {
            BootStatus::Exhausted
        } else if group != booted {
            BootStatus::Unbootable
        } else if self.order.is_err() {
            // It runs, nobody ever told the firmware to try it only, and the order that would call it good is lost.
            BootStatus::Good
        } else if self.names(self.current, group) {
            // A power cut came between the two writes of its activation.
            BootStatus::Exhausted
        } else {
            BootStatus::Unbootable
        }
    }

    /// Whether the firmware starts it whenever its turn comes.
    pub(super) fn is_good(&self, group: Group) -> bool {
        let listed =
            |entry: &Entry| entry.is_active && self.order.iter().flatten().any(|number| *number == entry.number);
        self.entries(group).iter().any(listed)
    }
}

/// The numbers in `BootOrder`, or what is wrong with it and the numbers that can still be seen.
fn order(value: Option<Value>, ours: &[u16]) -> Result<Vec<u16>, (&'static str, Vec<u16>)> {
    let Some(value) = value else { return Err(("BootOrder is not there", Vec::new())) };
    let numbers: Vec<u16> = units(&value.data).collect();
    if value.attributes != KEPT {
        return Err(("BootOrder has attributes that the specification does not give it", numbers));
    }
    if value.data.len() % 2 != 0 {
        return Err(("BootOrder does not end with a whole number", numbers));
    }
    if !numbers.iter().any(|number| ours.contains(number)) {
        return Err(("BootOrder has neither of our entries", numbers));
    }
    Ok(numbers)
}
