//! Random numbers that are the same for the same seed, with a liking for the edges of what a format can say.

/// A row of random numbers (SplitMix64).
#[derive(Debug, Clone)]
pub(super) struct Random(u64);

/// Numbers at which something begins or ends: in this format, or in any.
const EDGES: [u64; 26] = [
    0,
    1,
    2,
    127,
    128,
    511,
    512,
    513,
    4095,
    4096,
    4097,
    256 << 10,
    (256 << 10) + 1,
    1 << 20,
    (1 << 20) + 1,
    2 << 20,
    (2 << 20) + 1,
    (1 << 31) - 1,
    (1 << 32) - 1,
    1 << 32,
    1 << 40,
    1 << 52,
    (1 << 63) - 1,
    1 << 63,
    u64::MAX - 1,
    u64::MAX,
];

impl Random {
    /// The row that belongs to `seed` and `number`.
    pub(super) fn new(seed: u64, number: u64) -> Self {
        let mut random = Random(seed ^ number.wrapping_mul(0xd134_2543_de82_ef95));
        random.next();
        random
    }

    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number below `limit`; 0 where there is none.
    pub(super) fn below(&mut self, limit: u64) -> u64 {
        self.next().checked_rem(limit).unwrap_or(0)
    }

    /// A place in something `len` long.
    pub(super) fn place(&mut self, len: usize) -> usize {
        self.below(len as u64) as usize
    }

    /// True once in `times`.
    pub(super) fn once_in(&mut self, times: u64) -> bool {
        self.below(times) == 0
    }

    /// A number below two to the power of a number below `bits`: small ones are as likely as great ones.
    pub(super) fn of_any_length(&mut self, bits: u64) -> u64 {
        let bits = self.below(bits);
        self.below(1 << bits)
    }

    pub(super) fn bytes(&mut self, len: usize) -> Vec<u8> {
        std::iter::repeat_with(|| self.next() as u8).take(len).collect()
    }

    /// Another number, near or far.
    pub(super) fn instead_of(&mut self, number: u64) -> u64 {
        match self.below(6) {
            0 => number.wrapping_add(1),
            1 => number.wrapping_sub(1),
            2 => number ^ 1 << self.below(64),
            3 => number.wrapping_add(self.of_any_length(24)),
            4 => number.wrapping_sub(self.of_any_length(24)),
            _ => EDGES.get(self.place(EDGES.len())).copied().unwrap_or(0),
        }
    }

    /// Changes some bytes: flips, cuts, repeats, puts in.
    pub(super) fn damage(&mut self, bytes: &mut Vec<u8>) {
        for _ in 0..=self.below(3) {
            let at = self.place(bytes.len().max(1)).min(bytes.len());
            let len = self.of_any_length(6) as usize;
            let end = bytes.len().min(at.saturating_add(len));
            match self.below(6) {
                0 => bytes.truncate(at),
                4 => {
                    let odd = ODD_NUMBERS.get(self.place(ODD_NUMBERS.len())).copied().unwrap_or_default();
                    // In the place of a number of one byte.
                    bytes.splice(at..bytes.len().min(at.saturating_add(1)), odd.iter().copied());
                }
                1 => {
                    let more = self.bytes(len);
                    bytes.splice(at..at, more);
                }
                2 => drop(bytes.drain(at..end)),
                3 => {
                    let again = bytes.get(at..end).unwrap_or_default().to_vec();
                    bytes.splice(at..at, again);
                }
                _ => {
                    let bit = 1 << self.below(8);
                    if let Some(byte) = bytes.get_mut(at) {
                        *byte ^= bit;
                    }
                }
            }
        }
    }
}

/// Numbers longer or greater than any may be, and one that is only written long.
const ODD_NUMBERS: [&[u8]; 5] = [
    &[0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x02],
    &[0x81, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x7e],
    &[0x81, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x00],
    &[0x81, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x81, 0x00],
    &[0x81, 0x80, 0x00],
];

/// Appends a number, seven bits in each byte, the lowest first.
pub(super) fn push_number(bytes: &mut Vec<u8>, mut number: u64) {
    while number > 0x7f {
        bytes.push((number & 0x7f) as u8 | 0x80);
        number >>= 7;
    }
    bytes.push(number as u8);
}

/// A signed number as an unsigned one: 0, -1, 1, -2, … are 0, 1, 2, 3, …
pub(super) fn fold(number: i64) -> u64 {
    if number < 0 { (number.unsigned_abs() - 1) << 1 | 1 } else { number.unsigned_abs() << 1 }
}
