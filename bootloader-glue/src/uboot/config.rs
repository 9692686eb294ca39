//! `fw_env.config`: where the copies of the environment lie.
//!
//! One line per copy, as the tools of U-Boot read it: device or file, offset (negative: from the end), size of the
//! environment, and for flash the size and the number of sectors. Numbers are decimal, `0x` hexadecimal or, with a
//! leading `0`, octal. Two lines are the redundant form.

use std::path::PathBuf;

use bascule_core::Disposition;

use super::env::{MAX_SIZE, MIN_SIZE};

/// The most bytes a `fw_env.config` can sensibly have.
const MAX_CONFIG: usize = 64 * 1024;

/// What the device writes at once, at most: two copies must not lie in the same piece.
const BLOCK: i64 = 4096;

/// Where one copy lies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// The file or block device.
    pub path: PathBuf,
    /// The first byte; when negative, counted from the end.
    pub offset: i64,
}

/// The places of the copies, and how long each of them is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EnvConfig {
    /// One place, or two.
    pub copies: Copies,
    /// Bytes of one copy, its header included.
    pub size: usize,
}

/// The two forms of an environment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Copies {
    /// One copy: a power cut during a write loses it, so it is only read.
    Single(Place),
    /// Two copies, written in turn.
    Redundant([Place; 2]),
}

/// Why a `fw_env.config` cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// Not text, or far too long.
    #[error("fw_env.config is not a short text")]
    NotText,
    /// A line that is not of the form.
    #[error("line {line} of fw_env.config is not of the form DEVICE OFFSET SIZE [SECTOR-SIZE [SECTORS]]")]
    Line {
        /// The line's number, from 1.
        line: usize,
    },
    /// An environment shorter or longer than what can be one.
    #[error("line {line} of fw_env.config says {size} bytes: an environment has {MIN_SIZE} to {MAX_SIZE}")]
    Size {
        /// The line's number, from 1.
        line: usize,
        /// The size it says.
        size: i64,
    },
    /// No line, or more than two.
    #[error("fw_env.config names {0} copies of the environment: one or two are known to U-Boot")]
    Copies(usize),
    /// Two copies that are not equally long.
    #[error("the two copies in fw_env.config have different sizes")]
    DifferentSizes,
    /// Two copies that one write could damage at once.
    #[error("the two copies in fw_env.config overlap or share a block of {BLOCK} bytes")]
    Overlap,
    /// One copy, where writing needs two.
    #[error("fw_env.config names one copy of the environment: a power cut during a write would lose it")]
    NotRedundant,
}

impl ConfigError {
    /// Stable code of `docs/errors.md`.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            ConfigError::NotRedundant => "boot.env-not-redundant",
            _ => "boot.env-config",
        }
    }

    /// What a person can do about it.
    #[must_use]
    pub fn hint(&self) -> String {
        match self {
            ConfigError::NotRedundant => {
                "build U-Boot with CONFIG_SYS_REDUNDAND_ENVIRONMENT and name both copies in fw_env.config".into()
            }
            _ => "write fw_env.config as `fw_printenv` reads it, with both copies in blocks of their own".into(),
        }
    }

    /// What is to be done about it.
    #[must_use]
    pub fn disposition(&self) -> Disposition {
        Disposition::Person
    }
}

impl EnvConfig {
    /// Reads the text of a `fw_env.config`.
    ///
    /// # Errors
    /// [`ConfigError`], the first one met.
    pub fn parse(text: &[u8]) -> Result<Self, ConfigError> {
        let text = std::str::from_utf8(text).map_err(|_| ConfigError::NotText)?;
        if text.len() > MAX_CONFIG || text.contains('\0') {
            return Err(ConfigError::NotText);
        }
        let mut lines = Vec::new();
        for (number, line) in text.lines().enumerate().map(|(at, line)| (at + 1, line.trim())) {
            if !line.is_empty() && !line.starts_with('#') {
                lines.push(parse_line(number, line)?);
            }
        }
        match <[_; 2]>::try_from(lines) {
            Ok([(first, size), (second, same)]) if size == same => Self::redundant([first, second], size),
            Ok(_) => Err(ConfigError::DifferentSizes),
            Err(lines) => match <[_; 1]>::try_from(lines) {
                Ok([(place, size)]) => Ok(EnvConfig { copies: Copies::Single(place), size }),
                Err(lines) => Err(ConfigError::Copies(lines.len())),
            },
        }
    }

    fn redundant(places: [Place; 2], size: usize) -> Result<Self, ConfigError> {
        let [first, second] = &places;
        // A negative offset and another one can only be compared on the device; `store` refuses what does not fit there.
        let same_end = (first.offset < 0) == (second.offset < 0);
        if first.path == second.path && same_end {
            let (low, high) = (first.offset.min(second.offset), first.offset.max(second.offset));
            let end = low.saturating_add(i64::try_from(size).unwrap_or(i64::MAX));
            if end.saturating_sub(1).div_euclid(BLOCK) >= high.div_euclid(BLOCK) {
                return Err(ConfigError::Overlap);
            }
        }
        Ok(EnvConfig { copies: Copies::Redundant(places), size })
    }
}

fn parse_line(line: usize, text: &str) -> Result<(Place, usize), ConfigError> {
    let wrong = ConfigError::Line { line };
    let mut words = text.split_ascii_whitespace();
    let (Some(path), Some(offset), Some(size)) = (words.next(), words.next(), words.next()) else { return Err(wrong) };
    let (Some(offset), Some(size)) = (number(offset), number(size)) else { return Err(wrong) };
    let sectors: Vec<_> = words.map(number).collect();
    if sectors.len() > 2 || sectors.iter().any(|number| number.is_none_or(|number| number < 0)) {
        return Err(wrong);
    }
    let fits = usize::try_from(size).ok().filter(|size| (MIN_SIZE..=MAX_SIZE).contains(size));
    let size = fits.ok_or(ConfigError::Size { line, size })?;
    Ok((Place { path: path.into(), offset }, size))
}

/// A number as C's `strtol` reads it with base 0, and nothing behind it.
fn number(text: &str) -> Option<i64> {
    let (sign, digits) = text.strip_prefix('-').map_or((1, text), |digits| (-1, digits));
    let (radix, digits) = match digits.strip_prefix("0x").or_else(|| digits.strip_prefix("0X")) {
        Some(digits) => (16, digits),
        None if digits.len() > 1 && digits.starts_with('0') => (8, digits),
        None => (10, digits),
    };
    if !digits.starts_with(|first: char| first.is_digit(radix)) {
        return None;
    }
    i64::from_str_radix(digits, radix).ok()?.checked_mul(sign)
}
