//! The field's words as types: slot groups, who is booted and who may be written, digests and identifiers.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// One of the two slot groups: the slots that boot together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Group {
    /// Group `a`.
    A,
    /// Group `b`.
    B,
}

impl Group {
    /// Both groups, in order.
    pub const ALL: [Group; 2] = [Group::A, Group::B];

    /// The group that is not this one.
    #[must_use]
    pub fn opposite(self) -> Group {
        match self {
            Group::A => Group::B,
            Group::B => Group::A,
        }
    }

    /// The letter used in loader settings, file names and output: `a` or `b`.
    #[must_use]
    pub fn letter(self) -> &'static str {
        match self {
            Group::A => "a",
            Group::B => "b",
        }
    }
}

impl fmt::Display for Group {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.letter())
    }
}

impl FromStr for Group {
    type Err = WordError;

    fn from_str(text: &str) -> Result<Self, WordError> {
        match text {
            "a" => Ok(Group::A),
            "b" => Ok(Group::B),
            _ => Err(WordError::Group(text.chars().take(16).collect())),
        }
    }
}

/// The group whose root slot is mounted as `/` now.
///
/// Only the code that looks at the mounted root may make one (`bascule-boot`); everything else receives it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct BootedGroup(Group);

impl BootedGroup {
    /// States that `group` was found to be the mounted root. Call this only where that was just proven.
    #[must_use]
    pub fn proven(group: Group) -> Self {
        BootedGroup(group)
    }

    /// The group itself.
    #[must_use]
    pub fn group(self) -> Group {
        self.0
    }

    /// The one group that may be written while this one runs.
    #[must_use]
    pub fn target(self) -> TargetGroup {
        TargetGroup(self.0.opposite())
    }
}

/// The group that may be written: never the booted one, because it can only be made from a [`BootedGroup`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct TargetGroup(Group);

impl TargetGroup {
    /// The group itself.
    #[must_use]
    pub fn group(self) -> Group {
        self.0
    }
}

/// The kernel's identifier of one boot (`/proc/sys/kernel/random/boot_id`).
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct BootId(pub String);

impl fmt::Display for BootId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Identifies one deployment on one device: when it began and the head of its manifest's digest.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct DeploymentId(pub String);

impl fmt::Display for DeploymentId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// How many starts of the target the loader grants before it falls back: 1 to 9.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "u8", into = "u8")]
pub struct Tries(u8);

impl Tries {
    /// The default of design and documentation: three starts without a commit.
    pub const DEFAULT: Tries = Tries(3);
    /// What a loader grants that cannot count.
    pub const ONE: Tries = Tries(1);
    /// The most a loader's settings can hold in one digit.
    pub const MAX: u8 = 9;

    /// Makes a count of tries.
    ///
    /// # Errors
    /// [`WordError::Tries`] unless `count` is 1 to 9.
    pub fn new(count: u8) -> Result<Self, WordError> {
        if (1..=Self::MAX).contains(&count) { Ok(Tries(count)) } else { Err(WordError::Tries(count)) }
    }

    /// The count, 1 to 9.
    #[must_use]
    pub fn get(self) -> u8 {
        self.0
    }
}

impl TryFrom<u8> for Tries {
    type Error = WordError;
    fn try_from(count: u8) -> Result<Self, WordError> {
        Tries::new(count)
    }
}

impl From<Tries> for u8 {
    fn from(tries: Tries) -> u8 {
        tries.0
    }
}

/// A SHA-256 digest, written as 64 lower-case hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Digest(pub [u8; 32]);

impl Digest {
    /// The first twelve digits, enough for a person to tell two bundles apart.
    #[must_use]
    pub fn short(&self) -> String {
        self.to_string().chars().take(12).collect()
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Digest({self})")
    }
}

impl FromStr for Digest {
    type Err = WordError;

    fn from_str(text: &str) -> Result<Self, WordError> {
        let error = || WordError::Digest(text.chars().take(16).collect());
        if text.len() != 64 || !text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) {
            return Err(error());
        }
        let mut bytes = [0u8; 32];
        for (place, pair) in bytes.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
            let pair = std::str::from_utf8(pair).map_err(|_| error())?;
            *place = u8::from_str_radix(pair, 16).map_err(|_| error())?;
        }
        Ok(Digest(bytes))
    }
}

impl TryFrom<String> for Digest {
    type Error = WordError;
    fn try_from(text: String) -> Result<Self, WordError> {
        text.parse()
    }
}

impl From<Digest> for String {
    fn from(digest: Digest) -> String {
        digest.to_string()
    }
}

/// A word from outside that is not of its form.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WordError {
    /// Neither `a` nor `b`.
    #[error("{0:?} is not a slot group: it is `a` or `b`")]
    Group(String),
    /// Not 64 lower-case hexadecimal digits; holds the first sixteen characters.
    #[error("{0:?} is not a SHA-256 digest of 64 lower-case hexadecimal digits")]
    Digest(String),
    /// A count of tries the loaders cannot hold.
    #[error("{0} tries cannot be kept: it is 1 to 9")]
    Tries(u8),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_target_is_never_the_booted_group() {
        for group in Group::ALL {
            assert_ne!(BootedGroup::proven(group).target().group(), group);
        }
    }

    #[test]
    fn a_digest_reads_back_what_it_prints_and_refuses_other_forms() {
        let digest = Digest([0xa5; 32]);
        assert_eq!(digest.to_string().parse(), Ok(digest));
        let printed = digest.to_string();
        for wrong in ["", "a5", &printed.to_uppercase(), &format!("{printed}0"), &printed.replacen('a', "g", 1)] {
            assert!(wrong.parse::<Digest>().is_err(), "{wrong} was taken");
        }
    }

    #[test]
    fn tries_outside_one_to_nine_are_refused() {
        assert!(Tries::new(0).is_err());
        assert!(Tries::new(10).is_err());
        assert_eq!(Tries::new(9).map(Tries::get), Ok(9));
    }
}
