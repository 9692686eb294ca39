//! U-Boot and the script we ship (`bootloader-glue/uboot/boot.cmd`) as a function: the same bytes in, the same choice out.
//!
//! U-Boot takes one of the copies and imports it, the script picks a group and may call `saveenv`, which writes the copy
//! that was not taken. It says the marker lines that the script prints on the console. It was written from U-Boot's
//! source (`env/common.c`, `lib/hashtable.c`); `tests/real_uboot.rs` holds U-Boot itself against it.
//! Of a copy in a file that ends early U-Boot takes the rest from its stack; here it is damaged.

use bascule_core::Group;

use super::SCRIPT;
use super::env::{self, Variables};
use super::settings::{Fallback, variable};

pub use crate::script::{Ending, Saving};

/// One start of the loader.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Start {
    /// How it ended.
    pub ending: Ending,
    /// Both copies afterwards.
    pub copies: [Option<Vec<u8>>; 2],
    /// The marker lines, in order.
    pub said: Vec<String>,
}

/// Starts the loader once, unattended. `size` is that of one copy.
///
/// `loads` tells for a group whether its partition holds a kernel that U-Boot can load.
pub fn start(
    copies: [Option<&[u8]>; 2],
    size: usize,
    fallback: Option<&[u8]>,
    loads: impl Fn(Group) -> bool,
    saving: Saving,
) -> Start {
    let mut loader = Loader::load(copies, size, saving, &loads);
    let started = loader.start(fallback.map(Fallback::read).unwrap_or_default());
    Start { ending: started.map_or(Ending::Recovery, Ending::Started), copies: loader.copies, said: loader.said }
}

struct Loader<'a> {
    copies: [Option<Vec<u8>>; 2],
    size: usize,
    saving: Saving,
    loads: &'a dyn Fn(Group) -> bool,
    /// The copy that was taken, and its flag.
    taken: Option<(usize, u8)>,
    /// The variables in memory; none of ours when U-Boot runs on its built-in environment.
    variables: Variables,
    said: Vec<String>,
}

/// The names that the script takes out of the environment before it uses them for itself.
fn own_names() -> impl Iterator<Item = &'static str> {
    SCRIPT.lines().filter_map(|line| line.strip_prefix("setenv ")).filter(|name| !name.contains(' '))
}

/// What the script makes of a group.
enum Verdict {
    Good,
    /// On trial, and how many tries are left after this one.
    Counted(char),
    Exhausted,
    Unbootable,
}

impl<'a> Loader<'a> {
    /// U-Boot's `env_check_redund` and `env_import`.
    fn load(copies: [Option<&[u8]>; 2], size: usize, saving: Saving, loads: &'a dyn Fn(Group) -> bool) -> Self {
        let valid = copies.map(|copy| copy.and_then(|bytes| bytes.get(..size)).and_then(env::redundant));
        let newer = env::newer(valid.map(|copy| copy.map(|(flag, _)| flag)));
        let taken = newer.and_then(|newer| Some((newer, valid.get(newer).copied().flatten()?)));
        let variables = taken.and_then(|(_, (_, data))| Variables::parse(data).ok()).unwrap_or_default();
        Loader {
            copies: copies.map(|copy| copy.map(<[u8]>::to_vec)),
            size,
            saving,
            loads,
            taken: taken.map(|(place, (flag, _))| (place, flag)),
            variables,
            said: Vec::new(),
        }
    }

    /// The script.
    fn start(&mut self, fallback: Fallback) -> Option<Group> {
        own_names().for_each(|name| self.variables.set(name, ""));
        let mut tried = false;
        if let Some(first) = self.first() {
            for group in [first, first.opposite()] {
                if !self.may_start(group, fallback.refused) {
                    continue;
                }
                tried = true;
                if self.boot(group) {
                    return Some(group);
                }
            }
        } else {
            self.say("settings damaged".into());
        }
        if tried {
            return None;
        }
        if let Some(group) = fallback.group {
            self.say(format!("fallback names group {group}"));
            return self.boot(group).then_some(group);
        }
        self.say("no fallback, trying what loads".into());
        let allowed = Group::ALL.into_iter().filter(|group| fallback.refused != Some(*group));
        let allowed: Vec<Group> = allowed.collect();
        allowed.into_iter().find(|group| self.boot(*group))
    }

    /// The group that stands first, when all three variables make sense.
    fn first(&self) -> Option<Group> {
        let set = Group::ALL.into_iter().all(|group| self.variables.get(variable(group)).is_some());
        match self.variables.get("bascule_order")?.as_slice() {
            b"a b" if set => Some(Group::A),
            b"b a" if set => Some(Group::B),
            _ => None,
        }
    }

    /// Whether the group may be loaded now; a try is counted and saved first.
    fn may_start(&mut self, group: Group, refused: Option<Group>) -> bool {
        if refused == Some(group) {
            self.say(format!("skipping group {group}, it is being written"));
            return false;
        }
        let (allowed, said) = match self.verdict(group) {
            Verdict::Good => (true, format!("trying group {group}, good")),
            Verdict::Exhausted => (false, format!("skipping group {group}, exhausted")),
            Verdict::Unbootable => (false, format!("skipping group {group}, unbootable")),
            Verdict::Counted(left) if self.count(group, left) => {
                (true, format!("trying group {group}, {left} tries left"))
            }
            Verdict::Counted(_) => (false, format!("skipping group {group}, its try cannot be counted")),
        };
        self.say(said);
        allowed
    }

    fn verdict(&self, group: Group) -> Verdict {
        match self.variables.get(variable(group)).unwrap_or_default().as_slice() {
            b"good" => Verdict::Good,
            b"0" => Verdict::Exhausted,
            [digit @ b'1'..=b'9'] => Verdict::Counted((digit - 1) as char),
            _ => Verdict::Unbootable,
        }
    }

    /// `setenv`, then `saveenv`: everything goes into the copy that was not taken, which is then the taken one.
    fn count(&mut self, group: Group, left: char) -> bool {
        self.variables.set(variable(group), &left.to_string());
        ["fileaddr", "filesize"].into_iter().for_each(|name| self.variables.set(name, ""));
        let Some((place, flag)) = self.taken else { return false };
        let flag = flag.wrapping_add(1);
        let bytes = self.variables.as_exported().to_redundant(flag, self.size);
        let Some(bytes) = bytes.filter(|_| self.saving == Saving::Works) else { return false };
        let other = 1 - place;
        if let Some(copy) = self.copies.get_mut(other) {
            *copy = Some(bytes);
        }
        self.taken = Some((other, flag));
        true
    }

    fn boot(&mut self, group: Group) -> bool {
        let loads = (self.loads)(group);
        if !loads {
            self.variables.set("bootargs", "");
            self.say(format!("group {group} did not load"));
        }
        loads
    }

    fn say(&mut self, what: String) {
        self.said.push(format!("bascule: {what}"));
    }
}
