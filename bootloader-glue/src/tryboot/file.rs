//! `autoboot.txt`, byte by byte.
//!
//! ```text
//! [all]
//! tryboot_a_b=1
//! boot_partition=2       the good group's partition
//! [tryboot]
//! boot_partition=3       the armed target's; otherwise the same as above
//! # bascule b=trial      good | bad | trial | sent BOOT-ID: what the other group is
//! (empty lines up to 512 bytes)
//! ```
//! The firmware reads 512 bytes of it, knows these three filters, and skips comments. The last line is ours: the firmware
//! keeps no trace of a trial.

use bascule_core::Group;

/// Length of the file: one sector, and all that the firmware reads.
pub const FILE_LEN: usize = 512;

/// What the group that does not stand under `[all]` is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Other {
    /// Committed: a person may go back to it.
    Good,
    /// Not to be started.
    Bad,
    /// Armed: the next reboot of ours starts it.
    Trial,
    /// The reboot that starts it was begun in the boot with this identifier.
    Sent(String),
}

/// The choice.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Choice {
    /// The group that is started without the flag: it is good.
    pub(super) first: Group,
    pub(super) other: Other,
}

/// Why bytes are no choice of ours.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Fault {
    /// Nobody wrote that on purpose.
    Damaged,
    /// Somebody did, and not we.
    Foreign(&'static str),
}

impl Choice {
    /// Reads the file; `partitions` are those of groups `a` and `b`.
    pub(super) fn parse(bytes: &[u8], partitions: [u32; 2]) -> Result<Self, Fault> {
        let text = std::str::from_utf8(bytes).ok().filter(|text| !text.contains('\0')).ok_or(Fault::Damaged)?;
        if !text.contains(['=', '[']) {
            return Err(Fault::Damaged);
        }
        let lines: Vec<&str> = text.lines().collect();
        let ["[all]", "tryboot_a_b=1", all, "[tryboot]", _, mark, ..] = lines.as_slice() else {
            return Err(Fault::Foreign("its lines are not ours"));
        };
        let number: Option<u32> = all.strip_prefix("boot_partition=").and_then(|number| number.parse().ok());
        let group = Group::ALL.into_iter().find(|group| number == Some(partition(partitions, *group)));
        let first = group.ok_or(Fault::Foreign("the partition under [all] is no boot slot"))?;
        let word = mark.strip_prefix("# bascule ").and_then(|mark| mark.strip_prefix(first.opposite().letter()));
        let other = match word.and_then(|word| word.strip_prefix('=')) {
            Some("good") => Other::Good,
            Some("bad") => Other::Bad,
            Some("trial") => Other::Trial,
            Some(word) => match word.strip_prefix("sent ").filter(|boot_id| is_boot_id(boot_id)) {
                Some(boot_id) => Other::Sent(boot_id.to_owned()),
                None => return Err(Fault::Foreign("its last line is not ours")),
            },
            None => return Err(Fault::Foreign("its last line is not ours")),
        };
        let choice = Choice { first, other };
        // Whatever else there is, or contradicts, would be lost by a write.
        if choice.to_bytes(partitions) == bytes { Ok(choice) } else { Err(Fault::Foreign("its lines are not ours")) }
    }

    /// The bytes of the file.
    pub(super) fn to_bytes(&self, partitions: [u32; 2]) -> Vec<u8> {
        let (first, second) = (self.first, self.first.opposite());
        let tried = if matches!(self.other, Other::Trial | Other::Sent(_)) { second } else { first };
        let word = match &self.other {
            Other::Good => "good".to_owned(),
            Other::Bad => "bad".to_owned(),
            Other::Trial => "trial".to_owned(),
            Other::Sent(boot_id) => format!("sent {boot_id}"),
        };
        let (all, tryboot) = (partition(partitions, first), partition(partitions, tried));
        let text = format!(
            "[all]\ntryboot_a_b=1\nboot_partition={all}\n[tryboot]\nboot_partition={tryboot}\n# bascule {}={word}\n",
            second.letter()
        );
        let mut bytes = text.into_bytes();
        bytes.resize(FILE_LEN, b'\n');
        bytes
    }
}

/// The partition of a group.
pub(super) fn partition(partitions: [u32; 2], group: Group) -> u32 {
    let [a, b] = partitions;
    if group == Group::A { a } else { b }
}

/// The kernel's form of it: 36 lower case hexadecimal digits and hyphens.
pub(super) fn is_boot_id(text: &str) -> bool {
    text.len() == 36 && text.bytes().all(|byte| byte == b'-' || matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}
