//! Numbers of one to ten bytes, seven bits each, the lowest first (LEB128), and signed ones folded onto them.

use crate::format::Fields;

/// Appends `value`.
pub(crate) fn push(bytes: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        bytes.push(value as u8 | 0x80);
        value >>= 7;
    }
    bytes.push(value as u8);
}

/// Appends a signed number: 0, -1, 1, -2, … become 0, 1, 2, 3, …
pub(crate) fn push_signed(bytes: &mut Vec<u8>, value: i64) {
    push(bytes, ((value << 1) ^ (value >> 63)) as u64);
}

/// Takes a number; `None` where it is cut off or does not fit in 64 bits.
pub(crate) fn take(fields: &mut Fields<'_>) -> Option<u64> {
    let mut value = 0u64;
    for shift in (0..64).step_by(7) {
        let [byte] = fields.array::<1>().ok()?;
        let bits = u64::from(byte & 0x7f);
        if shift == 63 && bits > 1 {
            return None;
        }
        value |= bits << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

/// Takes a signed number.
pub(crate) fn take_signed(fields: &mut Fields<'_>) -> Option<i64> {
    let folded = take(fields)?;
    Some((folded >> 1) as i64 ^ -((folded & 1) as i64))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_at_every_edge_come_back() {
        let edges = [0, 1, 127, 128, 1 << 31, (1 << 32) - 1, 1 << 32, (1 << 63) - 1, 1 << 63, u64::MAX - 1, u64::MAX];
        for value in edges {
            let mut bytes = Vec::new();
            push(&mut bytes, value);
            push_signed(&mut bytes, value as i64);
            let mut fields = Fields(&bytes);
            assert_eq!(take(&mut fields), Some(value));
            assert_eq!(take_signed(&mut fields), Some(value as i64));
            assert!(fields.0.is_empty());
        }
    }

    #[test]
    fn a_number_that_is_cut_off_or_too_great_is_none() {
        let eleven = [0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x81, 0];
        assert_eq!(take(&mut Fields(&eleven)), None);
        for wrong in
            [&[][..], &[0x80], &[0xff; 9], &[0xff; 10], &[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2]]
        {
            assert_eq!(take(&mut Fields(wrong)), None, "{wrong:?}");
        }
    }
}
