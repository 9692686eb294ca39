//! The Raspberry Pi's firmware as a function of `autoboot.txt` and the flag: which partition it goes to.
//!
//! Written after Raspberry Pi's documentation of `autoboot.txt`, of conditional filters and of the file format (98
//! characters a line). The firmware's source is closed, and none has been held against it.

use bascule_core::Group;

use super::file::{FILE_LEN, partition};

pub use crate::script::Ending;

/// Characters of a line that the firmware reads.
const LINE: usize = 98;

/// What the firmware was told by the reboot: gone without power, and cleared before anything is started.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flag {
    /// A plain start.
    Clear,
    /// `reboot "0 tryboot"`.
    Tryboot,
}

/// Starts the firmware once.
///
/// `loads` tells for a group whether its partition can be started from. Without a partition to go to the firmware takes
/// the first one that can be started from, whatever is in it, or none: here that is [`Ending::Recovery`].
pub fn start(bytes: &[u8], flag: Flag, partitions: [u32; 2], loads: impl Fn(Group) -> bool) -> Ending {
    let chosen = chosen(bytes, flag);
    let group = Group::ALL.into_iter().find(|group| chosen == Some(partition(partitions, *group)));
    group.filter(|group| loads(*group)).map_or(Ending::Recovery, Ending::Started)
}

/// The partition that the file names; `None` when there is none, or 0, or when the flag is for another file.
#[must_use]
pub fn chosen(bytes: &[u8], flag: Flag) -> Option<u32> {
    let bytes = bytes.get(..FILE_LEN).unwrap_or(bytes);
    let text = String::from_utf8_lossy(bytes);
    let (mut passes, mut partition, mut whole_partitions) = (true, 0, false);
    for line in text.split(['\n', '\r', '\0']) {
        let line: String = line.chars().take(LINE).collect();
        match line.trim() {
            "[all]" => passes = true,
            "[tryboot]" => passes = flag == Flag::Tryboot,
            other if other.starts_with('[') => passes = false,
            other => match other.split_once('=').filter(|_| passes) {
                Some(("boot_partition", number)) => partition = number.parse().unwrap_or(0),
                Some(("tryboot_a_b", value)) => whole_partitions = value == "1",
                _ => {}
            },
        }
    }
    (partition != 0 && (whole_partitions || flag == Flag::Clear)).then_some(partition)
}
