//! Durations as they are written, `500ms`, `90s`, `15min`, `2h`, and sizes, `64K`, `16M`, `2G`: powers of 1024.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Serializer;

const UNITS: [(&str, u64); 4] = [("ms", 1), ("min", 60_000), ("s", 1000), ("h", 3_600_000)];

/// Reads a duration: a whole number and its unit.
pub(super) fn duration(text: &str) -> Option<Duration> {
    let (number, factor) = UNITS.iter().find_map(|(unit, factor)| Some((text.strip_suffix(unit)?, factor)))?;
    if number.is_empty() || !number.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    number.parse::<u64>().ok()?.checked_mul(*factor).map(Duration::from_millis)
}

/// Writes a duration in the largest unit that keeps it whole.
pub(super) fn text(duration: Duration) -> String {
    let millis = duration.as_millis();
    let [ms, min, s, h] = UNITS.map(|(unit, factor)| (unit, u128::from(factor)));
    let fits = |(_, factor): &(&str, u128)| millis != 0 && millis.is_multiple_of(*factor);
    let (unit, factor) = [h, min, s].into_iter().find(fits).unwrap_or(if millis == 0 { s } else { ms });
    format!("{}{unit}", millis / factor)
}

/// Reads a size in bytes: a whole number, with or without its unit.
pub(super) fn size(text: &str) -> Option<u64> {
    let (number, shift) =
        SIZES.iter().find_map(|(unit, shift)| Some((text.strip_suffix(unit)?, *shift))).unwrap_or((text, 0));
    if number.is_empty() || !number.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    number.parse::<u64>().ok()?.checked_mul(1 << shift)
}

const SIZES: [(&str, u32); 3] = [("K", 10), ("M", 20), ("G", 30)];

/// Writes a size in the largest unit that keeps it whole.
pub(super) fn size_text(bytes: u64) -> String {
    let fits = |(_, shift): &&(&str, u32)| bytes != 0 && bytes.is_multiple_of(1 << shift);
    match SIZES.iter().rev().find(fits) {
        Some((unit, shift)) => format!("{}{unit}", bytes >> shift),
        None => bytes.to_string(),
    }
}

pub(super) fn size_as_text<S: Serializer>(bytes: &u64, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&size_text(*bytes))
}

pub(super) fn limit_as_text<S: Serializer>(bytes: &Option<u64>, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&bytes.map_or_else(|| "none".to_owned(), size_text))
}

pub(super) fn as_text<S: Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&text(*duration))
}

pub(super) fn as_texts<S: Serializer>(
    durations: &BTreeMap<String, Duration>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    serializer.collect_map(durations.iter().map(|(name, duration)| (name, text(*duration))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_duration_reads_back_as_it_is_printed() {
        for written in ["0s", "1ms", "500ms", "90s", "15min", "2h"] {
            assert_eq!(duration(written).map(text).as_deref(), Some(written));
        }
        assert_eq!(duration("60s").map(text).as_deref(), Some("1min"));
    }

    #[test]
    fn a_size_reads_back_as_it_is_printed_and_never_overflows() {
        for written in ["0", "1", "1000", "64K", "16M", "2G"] {
            assert_eq!(size(written).map(size_text).as_deref(), Some(written));
        }
        assert_eq!(size("2048").map(size_text).as_deref(), Some("2K"));
        for wrong in ["", "K", "-1", "1k", "1 K", "1.5G", "16MB", "99999999999999999999", "18014398509481984K"] {
            assert_eq!(size(wrong), None, "{wrong} was taken");
        }
    }

    #[test]
    fn a_number_without_a_unit_a_sign_or_a_space_is_no_duration() {
        for wrong in
            ["", "s", "60", "-1s", "+1s", "1 s", "1.5h", "1m", "99999999999999999999h", "18446744073709551615h"]
        {
            assert_eq!(duration(wrong), None, "{wrong} was taken");
        }
    }
}
