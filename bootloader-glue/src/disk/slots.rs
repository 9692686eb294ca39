//! Which partitions the configuration calls slots.

use std::fmt;
use std::str::FromStr;

use bascule_core::Group;

use super::DiskError;
use super::table::Table;

/// How one partition of the root's disk is named.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Selector {
    /// `partlabel:root-a`: by its name in the partition table.
    PartLabel(String),
    /// `partuuid:0f5c…`: by its GUID in the partition table.
    PartUuid(String),
    /// `partnum:3`: by its number in the partition table.
    PartNumber(u32),
}

/// The two slots of one role.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SlotRole {
    /// What they are for, such as `root`.
    pub role: String,
    /// The slot of group `a`.
    pub a: Selector,
    /// The slot of group `b`.
    pub b: Selector,
}

/// All slots of a device, as configured. The role [`SlotTable::ROOT`] must be among them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SlotTable {
    /// The roles, in the order they are written in.
    pub roles: Vec<SlotRole>,
}

impl SlotTable {
    /// The role of the slot that is mounted as `/`.
    pub const ROOT: &'static str = "root";

    /// A device with root slots only.
    #[must_use]
    pub fn of_root(a: Selector, b: Selector) -> Self {
        SlotTable { roles: vec![SlotRole { role: Self::ROOT.to_owned(), a, b }] }
    }

    /// The labels that slots are selected by.
    pub(super) fn labels(&self) -> Vec<&str> {
        let selectors = self.roles.iter().flat_map(|role| [&role.a, &role.b]);
        let labels = selectors.filter_map(|selector| match selector {
            Selector::PartLabel(label) => Some(label.as_str()),
            Selector::PartUuid(_) | Selector::PartNumber(_) => None,
        });
        labels.collect()
    }

    /// Finds each slot's partition in a table: role, group and number.
    pub(super) fn choose(&self, table: &Table) -> Result<Vec<(String, Group, u32)>, DiskError> {
        if !self.roles.iter().any(|role| role.role == Self::ROOT) {
            return Err(DiskError::NoRootRole);
        }
        let mut chosen: Vec<(String, Group, u32)> = Vec::new();
        for SlotRole { role, a, b } in &self.roles {
            if chosen.iter().any(|(known, ..)| known == role) {
                return Err(DiskError::RoleTwice { role: role.clone() });
            }
            for (group, selector) in [(Group::A, a), (Group::B, b)] {
                let partition = selector.choose(table, role, group)?;
                if let Some((role_too, group_too, _)) = chosen.iter().find(|(_, _, number)| *number == partition) {
                    let (first, second) =
                        (format!("{role_too} of group {group_too}"), format!("{role} of group {group}"));
                    return Err(DiskError::SlotShared { partition, first, second });
                }
                chosen.push((role.clone(), group, partition));
            }
        }
        Ok(chosen)
    }
}

impl Selector {
    fn choose(&self, table: &Table, role: &str, group: Group) -> Result<u32, DiskError> {
        let mut fitting = table.entries.iter().filter(|entry| match self {
            Selector::PartLabel(label) => entry.label == *label,
            Selector::PartUuid(uuid) => entry.guid.eq_ignore_ascii_case(uuid),
            Selector::PartNumber(number) => entry.number == *number,
        });
        match (fitting.next(), fitting.next()) {
            (Some(one), None) => Ok(one.number),
            (Some(one), Some(two)) => {
                Err(DiskError::Ambiguous { selector: self.to_string(), first: one.number, second: two.number })
            }
            (None, _) => Err(DiskError::NoSuchPartition { selector: self.to_string(), role: role.to_owned(), group }),
        }
    }
}

impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Selector::PartLabel(label) => write!(f, "partlabel:{label}"),
            Selector::PartUuid(uuid) => write!(f, "partuuid:{uuid}"),
            Selector::PartNumber(number) => write!(f, "partnum:{number}"),
        }
    }
}

impl FromStr for Selector {
    type Err = DiskError;

    fn from_str(text: &str) -> Result<Self, DiskError> {
        let wrong = || DiskError::Selector { text: text.chars().take(80).collect() };
        match text.split_once(':') {
            Some((_, "")) => Err(wrong()),
            Some(("partlabel", label)) => Ok(Selector::PartLabel(label.to_owned())),
            Some(("partuuid", uuid)) if is_uuid(uuid) => Ok(Selector::PartUuid(uuid.to_ascii_lowercase())),
            Some(("partnum", number)) => match number.parse() {
                Ok(number) if number > 0 => Ok(Selector::PartNumber(number)),
                _ => Err(wrong()),
            },
            _ => Err(wrong()),
        }
    }
}

/// 8-4-4-4-12 hexadecimal digits.
fn is_uuid(text: &str) -> bool {
    let parts: Vec<&str> = text.split('-').collect();
    let lengths: Vec<usize> = parts.iter().map(|part| part.len()).collect();
    lengths == [8, 4, 4, 4, 12] && parts.iter().all(|part| part.bytes().all(|byte| byte.is_ascii_hexdigit()))
}
