//! The script we ship (`bootloader-glue/grub/grub.cfg`) as a function: the same bytes in, the same choice out.
//!
//! It says the marker lines that the script prints on the console, so that a start in a machine and a start in here can
//! be compared line by line. `tests/real_grub.rs` does that with GRUB itself.

use bascule_core::Group;

use super::env::{self, MAGIC, split_line};
use super::settings::fallback_group;

pub use crate::script::{Ending, Saving};

/// One start of the loader.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Start {
    /// How it ended.
    pub ending: Ending,
    /// The file `grubenv` afterwards.
    pub grubenv: Option<Vec<u8>>,
    /// The marker lines, in order.
    pub said: Vec<String>,
}

/// Starts the loader once, unattended.
///
/// `loads` tells for a group whether its partition holds a kernel that GRUB can load.
pub fn start(grubenv: Option<&[u8]>, fallback: Option<&[u8]>, loads: impl Fn(Group) -> bool, saving: Saving) -> Start {
    let mut loader = Loader {
        grubenv: grubenv.map(<[u8]>::to_vec),
        saving,
        loads: &loads,
        groups: Default::default(),
        order: Vec::new(),
        said: Vec::new(),
    };
    let started = loader.start(fallback);
    Start { ending: started.map_or(Ending::Recovery, Ending::Started), grubenv: loader.grubenv, said: loader.said }
}

/// The script's variables.
struct Loader<'a> {
    grubenv: Option<Vec<u8>>,
    saving: Saving,
    loads: &'a dyn Fn(Group) -> bool,
    groups: [Vec<u8>; 2],
    order: Vec<u8>,
    said: Vec<String>,
}

impl Loader<'_> {
    /// `bascule_start`
    fn start(&mut self, fallback: Option<&[u8]>) -> Option<Group> {
        if self.read_settings() {
            let first = if self.order == b"b a" { Group::B } else { Group::A };
            return self.attempt(first).or_else(|| self.attempt(first.opposite()));
        }
        if let Some(group) = fallback.and_then(fallback_group) {
            self.say(format!("settings damaged, fallback names group {group}"));
            return self.boot(group);
        }
        self.say("settings and fallback damaged, trying what loads".into());
        self.boot(Group::A).or_else(|| self.boot(Group::B))
    }

    /// `bascule_read_settings`
    fn read_settings(&mut self) -> bool {
        let variables = self.grubenv.as_deref().and_then(env::variables).unwrap_or_default();
        let last = |name: &str| {
            let found = variables.iter().rev().find(|(n, _)| n == name.as_bytes());
            found.map(|(_, value)| value.clone()).unwrap_or_default()
        };
        let (order, a, b) = (last("order"), last("group_a"), last("group_b"));
        let intact = (order == b"a b" || order == b"b a") && !a.is_empty() && !b.is_empty();
        (self.order, self.groups) = if intact { (order, [a, b]) } else { Default::default() };
        intact
    }

    /// `bascule_try`
    fn attempt(&mut self, group: Group) -> Option<Group> {
        let left = match self.status(group).as_slice() {
            b"good" => {
                self.say(format!("trying group {group}, good"));
                return self.boot(group);
            }
            [digit @ b'1'..=b'9'] => (digit - 1) as char,
            b"0" => {
                self.say(format!("skipping group {group}, exhausted"));
                return None;
            }
            _ => {
                self.say(format!("skipping group {group}, unbootable"));
                return None;
            }
        };
        if !self.count(group, left) {
            self.say(format!("skipping group {group}, its try cannot be counted"));
            return None;
        }
        self.say(format!("trying group {group}, {left} tries left"));
        self.boot(group)
    }

    /// Saves the new count and reads it back.
    fn count(&mut self, group: Group, left: char) -> bool {
        let name = super::settings::variable(group);
        let saved = match (self.saving, &mut self.grubenv) {
            (Saving::Works, Some(bytes)) => save_variable(bytes, name, &left.to_string()),
            _ => false,
        };
        saved && {
            self.read_settings();
            self.status(group) == left.to_string().as_bytes()
        }
    }

    /// `bascule_boot`
    fn boot(&mut self, group: Group) -> Option<Group> {
        if (self.loads)(group) {
            return Some(group);
        }
        self.say(format!("group {group} did not load"));
        None
    }

    fn status(&self, group: Group) -> Vec<u8> {
        let [a, b] = &self.groups;
        match group {
            Group::A => a.clone(),
            Group::B => b.clone(),
        }
    }

    fn say(&mut self, what: String) {
        self.said.push(format!("bascule: {what}"));
    }
}

/// GRUB 2.06's `save_env` of one variable that needs no escapes: `false` when GRUB would call the block broken or full.
///
/// GRUB edits the first line of that name, although it reads the last one.
fn save_variable(bytes: &mut Vec<u8>, name: &str, value: &str) -> bool {
    if env::variables(bytes).is_none() {
        return false;
    }
    let used = bytes.len() - bytes.iter().rev().take_while(|byte| **byte == b'#').count();
    let room = bytes.len() - used;
    if !bytes.get(..used).is_some_and(|head| head.ends_with(b"\n")) {
        return false;
    }
    let key = format!("{name}=").into_bytes();
    let mut at = MAGIC.len();
    while at + key.len() < used {
        let Some(rest) = bytes.get(at..) else { return false };
        let line = split_line(rest).map(|(line, _)| line.len());
        if rest.starts_with(&key) {
            let Some(length) = line else { return false };
            let old = length - key.len();
            if value.len() > old + room {
                return false;
            }
            let whole = bytes.len();
            bytes.splice(at + key.len()..at + length, value.bytes());
            bytes.resize(whole, b'#');
            return true;
        }
        match line {
            Some(length) => at += length + 1,
            None => break,
        }
    }
    let line = format!("{name}={value}\n").into_bytes();
    if line.len() > room {
        return false;
    }
    let whole = bytes.len();
    bytes.truncate(used);
    bytes.extend_from_slice(&line);
    bytes.resize(whole, b'#');
    true
}
