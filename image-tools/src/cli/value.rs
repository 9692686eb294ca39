//! Values on the command line: sizes, spans of time, roles with files.

use std::path::PathBuf;

use bascule_image::Timestamp;
use jiff::tz::TimeZone;
use jiff::{Span, civil};

/// Reads a size in bytes such as `4096`, `64K`, `512M` or `2G` (powers of 1024).
pub(crate) fn size(text: &str) -> Result<u64, String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let shift = match text.get(digits.len()..).unwrap_or_default() {
        "" | "B" => 0,
        "K" | "KiB" => 10,
        "M" | "MiB" => 20,
        "G" | "GiB" => 30,
        other => return Err(format!("{other:?} is no unit of size: K, M or G")),
    };
    let number: u64 = digits.parse().map_err(|_| format!("{text:?} is not a size such as 512M"))?;
    number.checked_mul(1 << shift).ok_or_else(|| format!("{text:?} is too large"))
}

/// Reads `ROLE=FILE`.
pub(crate) fn payload(text: &str) -> Result<(String, PathBuf), String> {
    match text.split_once('=') {
        Some((role, file)) if !role.is_empty() && !file.is_empty() => Ok((role.into(), file.into())),
        _ => Err(format!("{text:?} is not ROLE=FILE, such as root=root.ext4")),
    }
}

/// When something expires: a span from now such as `2y` or `90d`, or a date such as `2030-01-31`.
#[derive(Debug, Clone)]
pub(crate) enum Expiry {
    After(Span),
    At(Timestamp),
}

/// Reads an [`Expiry`].
pub(crate) fn expiry(text: &str) -> Result<Expiry, String> {
    if let Ok(at) = text.parse::<Timestamp>() {
        return Ok(Expiry::At(at));
    }
    if let Ok(date) = text.parse::<civil::Date>() {
        let midnight = date.to_zoned(TimeZone::UTC).map_err(|error| error.to_string())?;
        return Ok(Expiry::At(midnight.timestamp()));
    }
    let span = text
        .parse::<Span>()
        .map_err(|_| format!("{text:?} is neither a span such as 2y nor a date such as 2030-01-31"))?;
    if span.is_positive() { Ok(Expiry::After(span)) } else { Err("it would expire at once".into()) }
}

impl Expiry {
    /// The time it means, counted from `now`.
    pub(crate) fn from(&self, now: Timestamp) -> anyhow::Result<Timestamp> {
        let at = match self {
            Expiry::At(at) => *at,
            Expiry::After(span) => now.to_zoned(TimeZone::UTC).checked_add(*span)?.timestamp(),
        };
        // TUF metadata holds whole seconds.
        Ok(Timestamp::from_second(at.as_second())?)
    }
}

/// Now, in whole seconds.
pub(crate) fn now() -> anyhow::Result<Timestamp> {
    Ok(Timestamp::from_second(Timestamp::now().as_second())?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_powers_of_1024_and_never_overflow() {
        assert_eq!(size("512M"), Ok(512 << 20));
        assert_eq!(size("1"), Ok(1));
        assert_eq!(size("2GiB"), Ok(2 << 30));
        for wrong in ["", "M", "-1", "1.5G", "1T", "99999999999999G"] {
            assert!(size(wrong).is_err(), "{wrong} was taken");
        }
    }

    #[test]
    fn an_expiry_is_a_span_or_a_date() {
        let now: Timestamp = "2026-11-21T00:00:00Z".parse().unwrap();
        let read = |text: &str| expiry(text).unwrap().from(now).unwrap().to_string();
        assert_eq!(read("2y"), "2028-11-21T00:00:00Z");
        assert_eq!(read("90d"), "2027-02-19T00:00:00Z");
        assert_eq!(read("2030-01-31"), "2030-01-31T00:00:00Z");
        assert!(expiry("-1d").is_err());
        assert!(expiry("soon").is_err());
    }
}
