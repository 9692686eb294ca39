//! What U-Boot and the simulator are held against each other with.

use bascule_boot::uboot::env::crc32;
use bascule_boot::uboot::{FALLBACK, FALLBACK_LEN};

use super::{COPIES, ENV_SIZE};

#[derive(Debug, Clone)]
pub(crate) struct Case {
    pub(crate) copies: [Option<Vec<u8>>; 2],
    pub(crate) fallback: Option<Vec<u8>>,
    pub(crate) loads: [bool; 2],
}

impl Case {
    /// Its files, where they lie on the data partition, and what they are called.
    pub(crate) fn files(&self) -> [(u64, &'static str, Option<&[u8]>); 3] {
        let [first, second] = self.copies.each_ref().map(Option::as_deref);
        let size = ENV_SIZE as u64;
        [(0, COPIES[0], first), (size, COPIES[1], second), (2 * size, FALLBACK, self.fallback.as_deref())]
    }
}

/// A copy with these entries, as they stand, separated by `|`.
fn copy(flag: u8, entries: &str) -> Vec<u8> {
    let mut data = entries.replace('|', "\0").into_bytes();
    data.resize(ENV_SIZE - 5, 0);
    [&crc32(&data).to_le_bytes()[..], &[flag], &data].concat()
}

fn settings(order: &str, a: &str, b: &str) -> String {
    format!("bascule_a={a}|bascule_b={b}|bascule_order={order}")
}

fn fallback(entries: &str) -> Option<Vec<u8>> {
    let mut data = entries.replace('|', "\0").into_bytes();
    data.resize(FALLBACK_LEN - 5, 0);
    Some([&crc32(&data).to_le_bytes()[..], &[0], &data].concat())
}

fn named(group: &str) -> Option<Vec<u8>> {
    fallback(&format!("bascule_fallback={group}"))
}

/// Values that are no counter, and digits that do not stand elsewhere.
const VALUES: [&str; 38] = [
    // Those of claim_g15 in tests/claims.rs, and the digits that do not stand elsewhere.
    "",
    "2 ",
    " 2",
    "010",
    "-1",
    "2147483648",
    "4294967297",
    "10",
    "03",
    "00",
    "+1",
    "1.0",
    "1e0",
    "0x1",
    "３",
    "Good",
    "good ",
    " good",
    "goodgood",
    "a",
    "9",
    "8",
    "7",
    "6",
    "5",
    "4",
    // Words of U-Boot's shell.
    "$bascule_a",
    "${bascule_a}",
    "good; reset",
    "*",
    "3 -o a = a",
    "!",
    "(",
    "good\ngood",
    "#3",
    "&&",
    "-n",
    "good good",
];

/// Orders that are none.
const ORDERS: [&str; 8] = ["b  a", "b", "", "a", "a b ", "b\ta", "b a a b", "$bascule_b"];

/// Entries that no agent writes so; `|` separates them.
const ENTRIES: [&str; 22] = [
    "bascule_a=good|bascule_order=b a",
    "bascule_a=good|bascule_b|bascule_order=b a",
    "bascule_a=good|bascule_b=2|bascule_b=3|bascule_order=b a",
    "bascule_a=good|bascule_b=3|bascule_b=0|bascule_order=b a",
    "bascule_a=good|bascule_b=3|bascule_b=|bascule_order=b a",
    "bascule_a=good|bascule_b=|bascule_b=3|bascule_order=b a",
    "bascule_b=3|bascule_order=b a",
    "bascule_a=good|bascule_b=3",
    "  bascule_a=good|\tbascule_b=3|bascule_order=b a",
    "# bascule_a=bad|bascule_a=good|#|bascule_b=3|bascule_order=b a",
    "|bascule_a=good|bascule_b=3|bascule_order=b a",
    "bascule_a=good|bascule_b=3||bascule_order=b a",
    "=nameless|bascule_a=good|bascule_b=3|bascule_order=b a",
    "=|bascule_a=good|bascule_b=3|bascule_order=b a",
    "vendor=a=b=c|bascule_a=good|bascule_b=3|bascule_order=b a",
    "vendor=back\\\\slash \\q|bascule_a=good|bascule_b=3|bascule_order=b a",
    "vendor=\\|bascule_a=good|bascule_b=3|bascule_order=b a",
    "bascule_a =good|bascule_b=3|bascule_order=b a",
    // Names that the script uses for itself.
    "bascule_a=good|bascule_b=3|bascule_first=a|bascule_go=yes|bascule_left=9|bascule_never=b|bascule_order=b a\
         |bascule_part=5|bascule_part_a=5|bascule_part_b=5|bascule_safe=b|bascule_second=b|bascule_step=7|bascule_tried=yes",
    "bascule_a=bad|bascule_b=bad|bascule_fallback=b|bascule_order=b a|bascule_refused=a",
    "bascule_a=good|bascule_b=3|bascule_order=b a|bootargs=of the vendor|fileaddr=1|filesize=2",
    "",
];

/// Every case.
pub(crate) fn all() -> Vec<Case> {
    [usual(), odd(), torn(), fallen(), full()].concat()
}

/// Every kind of value in both orders, and kernels that load and that do not.
fn usual() -> Vec<Case> {
    let mut cases = Vec::new();
    let values = [
        ("good", "bad"),
        ("good", "3"),
        ("1", "good"),
        ("0", "good"),
        ("good", "good"),
        ("bad", "bad"),
        ("2", "3"),
        ("0", "bad"),
    ];
    for order in ["a b", "b a"] {
        for (a, b) in values {
            for loads in [[true, true], [true, false], [false, true], [false, false]] {
                let newer = copy(7, &format!("{}|vendor=x y", settings(order, a, b)));
                let older = copy(6, &settings("a b", "good", "bad"));
                cases.push(Case { copies: [Some(older), Some(newer)], fallback: named("a"), loads });
            }
        }
    }
    cases
}

/// Values that are no counter, and entries that are no line of the agent's.
fn odd() -> Vec<Case> {
    let settings_of = |value| settings("b a", "good", value);
    let entries = ENTRIES.into_iter().map(str::to_owned).chain(VALUES.map(settings_of));
    let orders = ORDERS.map(|order| settings(order, "good", "3"));
    let case = |text: String| {
        let (newer, older) = (copy(2, &text), copy(1, &settings("a b", "bad", "bad")));
        Case { copies: [Some(newer), Some(older)], fallback: named("a"), loads: [true, true] }
    };
    entries.chain(orders).map(case).collect()
}

/// One copy that cannot be used, or both; which one is the newer.
fn torn() -> Vec<Case> {
    let (first, second) = (settings("a b", "good", "bad"), settings("b a", "good", "3"));
    let mut cases = Vec::new();
    for flags in [[1, 2], [2, 1], [254, 255], [255, 0], [0, 255], [5, 5], [0, 254], [1, 255], [0, 0], [128, 127]] {
        let copies = [Some(copy(flags[0], &first)), Some(copy(flags[1], &second))];
        cases.push(Case { copies, fallback: named("a"), loads: [true, true] });
    }
    let (older, newer) = (copy(1, &first), copy(2, &second));
    let flipped = |mut bytes: Vec<u8>, at: usize| {
        bytes[at] ^= 1;
        bytes
    };
    // Both halves of a write that was cut; a bit of the checksum, of the data, of the padding; of the flag, which is not covered.
    let mut unusable = vec![
        Some([&newer[..512], &older[512..]].concat()).map(|bytes| flipped(bytes, 40)),
        Some([&copy(2, &format!("{second}|{}", "v=x|".repeat(200)))[..512], &older[512..]].concat()),
        Some(vec![0; ENV_SIZE]),
        Some(vec![0xff; ENV_SIZE]),
        Some(newer[..512].to_vec()),
        Some(newer[..ENV_SIZE - 1].to_vec()),
        Some([&newer[..], b"more"].concat()),
        Some(vec![1]),
        None,
    ];
    unusable.extend([0, 3, 4, 5, 20, ENV_SIZE - 1].map(|at| Some(flipped(newer.clone(), at))));
    for bytes in unusable {
        cases.push(Case { copies: [Some(older.clone()), bytes.clone()], fallback: named("a"), loads: [true, true] });
        cases.push(Case { copies: [bytes, Some(newer.clone())], fallback: named("a"), loads: [true, true] });
    }
    cases
}

/// Settings that cannot be obeyed, or that name a group which is refused, with every kind of fallback.
fn fallen() -> Vec<Case> {
    let mut cases = Vec::new();
    let single = |entries: &str| {
        let mut data = entries.replace('|', "\0").into_bytes();
        data.resize(FALLBACK_LEN - 4, 0);
        Some([&crc32(&data).to_le_bytes()[..], &data].concat())
    };
    let whole = named("b").unwrap();
    let fallbacks = [
        None,
        named("a"),
        named("b"),
        named("c"),
        fallback(""),
        fallback("bascule_fallback=b|bascule_refused=a"),
        fallback("bascule_fallback=a|bascule_refused=b"),
        fallback("bascule_fallback=b|bascule_refused=b"),
        fallback("bascule_refused=a"),
        fallback("bascule_refused=b"),
        fallback("bascule_refused=x"),
        fallback("bascule_fallback=b|bascule_a=good|bascule_b=good|bascule_order=a b"),
        single("bascule_fallback=b"),
        Some(whole[..511].to_vec()),
        Some([&whole[..], b"\0"].concat()),
        Some([&whole[..9], b"x", &whole[10..]].concat()),
        Some(vec![0; FALLBACK_LEN]),
    ];
    let (torn, none_allowed) = (Some(vec![0; ENV_SIZE]), copy(3, &settings("a b", "0", "bad")));
    let trial = copy(3, &settings("b a", "good", "3"));
    for fallback in fallbacks {
        for loads in [[true, true], [false, true]] {
            for copies in [[torn.clone(), torn.clone()], [None, None], [Some(none_allowed.clone()), None]] {
                cases.push(Case { copies, fallback: fallback.clone(), loads });
            }
        }
        cases.push(Case { copies: [Some(trial.clone()), torn.clone()], fallback, loads: [true, true] });
    }
    cases
}

/// Environments without room: a count is as long as the one before, but nothing else may be added.
fn full() -> Vec<Case> {
    let mut cases = Vec::new();
    for spare in [0, 1, 20, 60, 200] {
        for (order, loads) in [("b a", [true, true]), ("a b", [false, true])] {
            let text = settings(order, "good", "3");
            let room = ENV_SIZE - 5 - text.len() - "|vendor=".len() - 2 - spare;
            let text = format!("{text}|vendor={}", "x".repeat(room));
            cases.push(Case { copies: [Some(copy(1, &text)), None], fallback: named("a"), loads });
        }
    }
    cases
}
