//! File names of boot entries: what they say, and how they are written.
//!
//! ```text
//! bascule-<generation>-<group>.conf              starts uncounted
//! bascule-<generation>-<group>+<left>-<done>.conf  on trial; left 0: exhausted
//! bascule-<generation>-<group>.off               no entry at all to the loader
//! ```
//! `.efi` stands for `.conf` where the entries are unified kernel images. The counters are read as systemd-boot reads them
//! (`boot_entry_parse_tries`): after the last `+`, each at most 2147483647, `-<done>` optional; a counter of another form is
//! none, and the loader then starts the entry uncounted.

use bascule_core::{BootStatus, Group, Tries};

/// The highest generation; it is odd where it is found, so that no next one is ever needed. An update uses up one.
pub const HIGHEST_GENERATION: u32 = 99_999_999;

/// What all our names begin with, before a digit. Other names belong to others.
const PREFIX: &str = "bascule-";
/// How the name ends of a file that the loader does not list.
const OFF: &str = ".off";
/// The longest name any file system has.
const LONGEST_NAME: usize = 255;
/// systemd-boot's INT_MAX.
const HIGHEST_COUNTER: u64 = 0x7fff_ffff;

/// The two types of entries of the Boot Loader Specification.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Type 1: small texts in `loader/entries`.
    Text,
    /// Type 2: unified kernel images in `EFI/Linux`.
    Image,
}

impl Kind {
    /// Both.
    pub const ALL: [Kind; 2] = [Kind::Text, Kind::Image];

    /// How the name of an entry ends that the loader lists.
    #[must_use]
    pub fn suffix(self) -> &'static str {
        match self {
            Kind::Text => ".conf",
            Kind::Image => ".efi",
        }
    }

    /// The directory of the entries on the boot partition.
    #[must_use]
    pub fn directory(self) -> &'static str {
        match self {
            Kind::Text => "loader/entries",
            Kind::Image => "EFI/Linux",
        }
    }
}

/// What the end of a name says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mark {
    /// The loader does not list it.
    Off,
    /// Started uncounted.
    Good,
    /// Counted.
    Counted {
        /// Starts that are left.
        left: u32,
        /// Starts that were made.
        done: u32,
    },
}

/// A name of ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EntryName {
    /// The higher one is tried first.
    pub generation: u32,
    /// Whose entry it is.
    pub group: Group,
    /// What the loader may do with it.
    pub mark: Mark,
}

/// Whose a file is, by its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Owner {
    /// Somebody else's: never touched.
    Foreign,
    /// Ours, and of our form.
    Ours(EntryName),
    /// The loader lists it as ours, but we would never have written it; with what the loader makes of it.
    Odd(Option<EntryName>),
}

impl EntryName {
    /// The file's name.
    #[must_use]
    pub fn file_name(&self, kind: Kind) -> String {
        let (generation, group, suffix) = (self.generation, self.group.letter(), kind.suffix());
        match self.mark {
            Mark::Off => format!("{PREFIX}{generation}-{group}{OFF}"),
            Mark::Good => format!("{PREFIX}{generation}-{group}{suffix}"),
            Mark::Counted { left, done } => format!("{PREFIX}{generation}-{group}+{left}-{done}{suffix}"),
        }
    }

    /// Whether the loader lists it.
    #[must_use]
    pub fn is_listed(&self) -> bool {
        self.mark != Mark::Off
    }

    /// Whether it used all its tries.
    #[must_use]
    pub fn is_exhausted(&self) -> bool {
        matches!(self.mark, Mark::Counted { left: 0, .. })
    }

    /// What the loader may do with the group; more tries than there can be are shown as the most there can be.
    #[must_use]
    pub fn status(&self) -> BootStatus {
        match self.mark {
            Mark::Off => BootStatus::Unbootable,
            Mark::Good => BootStatus::Good,
            Mark::Counted { left: 0, .. } => BootStatus::Exhausted,
            Mark::Counted { left, .. } => {
                BootStatus::Trial { tries_left: u8::try_from(left).unwrap_or(Tries::MAX).min(Tries::MAX) }
            }
        }
    }
}

/// Reads a name. FAT does not tell upper from lower case, nor does the loader.
#[must_use]
pub fn owner(file_name: &str, kind: Kind) -> Owner {
    let name = file_name.to_ascii_lowercase();
    let claimed = name.strip_prefix(PREFIX).filter(|rest| rest.starts_with(|first: char| first.is_ascii_digit()));
    let Some(rest) = claimed.filter(|_| name.len() <= LONGEST_NAME) else { return Owner::Foreign };
    if let Some(stem) = rest.strip_suffix(OFF) {
        // A name that the loader does not list and that says nothing to us can stay as it is.
        return generation_and_group(stem).map_or(Owner::Foreign, |(generation, group)| {
            Owner::Ours(EntryName { generation, group, mark: Mark::Off })
        });
    }
    let Some(stem) = rest.strip_suffix(kind.suffix()) else { return Owner::Foreign };
    let (stem, mark) = match stem.rsplit_once('+') {
        None => (stem, Some(Mark::Good)),
        Some((stem, counters)) => (stem, counted(counters)),
    };
    let Some((generation, group)) = generation_and_group(stem) else { return Owner::Odd(None) };
    let entry = |mark| EntryName { generation, group, mark };
    match mark {
        None => Owner::Odd(Some(entry(Mark::Good))),
        Some(mark @ Mark::Counted { left, .. }) if left > u32::from(Tries::MAX) => Owner::Odd(Some(entry(mark))),
        Some(mark) if generation >= HIGHEST_GENERATION => Owner::Odd(Some(entry(mark))),
        Some(mark) => Owner::Ours(entry(mark)),
    }
}

/// `5-a`
fn generation_and_group(stem: &str) -> Option<(u32, Group)> {
    let (generation, group) = stem.split_once('-')?;
    let group = Group::ALL.into_iter().find(|of| group == of.letter())?;
    let (generation, rest) = number(generation)?;
    let generation = u32::try_from(generation).ok().filter(|generation| *generation <= HIGHEST_GENERATION)?;
    rest.is_empty().then_some((generation, group))
}

/// `3-0`, or `3` alone.
fn counted(counters: &str) -> Option<Mark> {
    let (left, rest) = number(counters)?;
    let (done, rest) = match rest.strip_prefix('-') {
        Some(done) => number(done)?,
        None => (0, rest),
    };
    let bounded = |counter: u64| u32::try_from(counter).ok().filter(|_| counter <= HIGHEST_COUNTER);
    rest.is_empty().then_some(Mark::Counted { left: bounded(left)?, done: bounded(done)? })
}

/// A number and what follows it; `None` where there is no digit, or too many.
fn number(text: &str) -> Option<(u64, &str)> {
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (digits, rest) = text.split_at_checked(end)?;
    Some((digits.parse().ok()?, rest))
}
