//! A ChromeOS-style loader as a function of the disk: the same bytes in, the same choice and the same bytes out.
//!
//! Written after two loaders that were read, not started: vboot's `cgptlib` and `load_kernel`, and the `gptprio` module of
//! CoreOS' GRUB. Both take the primary copy while it is whole and the backup otherwise, both repair the one that is not, and
//! both pick by priority among the entries of one type, of equals the lower number. They differ in what follows:
//!
//! | | [`Loader::Vboot`] | [`Loader::GptPrio`] |
//! |---|---|---|
//! | counts | after it has verified the kernel | before it loads anything |
//! | the last try | takes the priority away, too | leaves the priority |
//! | a kernel that does not load | loses tries and priority unless successful; the next one is tried | GRUB's configuration goes on; here: nothing is started |
//! | tries of a successful entry | stay | are counted down, too |

use std::fs::OpenOptions;
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::FileExt;
use std::path::Path;

use bascule_core::Group;

use super::SlotEntry;
use super::bits::Bits;
use super::table::{Entries, Refused, Table};

pub use crate::script::Ending;

/// Which of the two.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Loader {
    /// Firmware of ChromeOS' kind.
    Vboot,
    /// CoreOS' GRUB.
    GptPrio,
}

/// One start of the loader.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Start {
    /// How it ended.
    pub ending: Ending,
    /// The numbers of the entries that were picked, in order.
    pub picked: Vec<u32>,
}

/// Starts the loader once, unattended, on the image of a disk. It picks among the entries of the type of group `a`'s.
///
/// `loads` tells for a group whether its kernel can be loaded. What is in a third partition never loads.
///
/// # Errors
/// When the image cannot be read or written.
pub fn start(
    image: &Path,
    sector_size: u64,
    slots: &[SlotEntry; 2],
    loader: Loader,
    loads: impl Fn(Group) -> bool,
) -> io::Result<Start> {
    let mut file = OpenOptions::new().read(true).write(true).open(image)?;
    let length = file.seek(SeekFrom::End(0))?;
    let read = |offset: u64, length: usize| {
        let mut bytes = vec![0; length];
        file.read_exact_at(&mut bytes, offset).map(|()| bytes)
    };
    let mut start = Start { ending: Ending::Recovery, picked: Vec::new() };
    let [a, b] = slots;
    let table = match Table::read(&read, length, sector_size, [a.number, b.number]) {
        Ok(table) => table,
        Err(Refused::Io(error)) => return Err(error),
        Err(_) => return Ok(start),
    };
    let mut entries = table.entries();
    let kind = entries.kind(a.number);
    let mut candidates = candidates(&entries, kind);
    if loader == Loader::GptPrio {
        candidates.truncate(1);
    }
    for number in candidates {
        start.picked.push(number);
        let group = Group::ALL.into_iter().zip(slots).find(|(_, slot)| slot.number == number).map(|(group, _)| group);
        let started = group.filter(|group| loads(*group));
        let bits = after(entries.bits(number), loader, started.is_some());
        entries = entries.with_bits(number, bits);
        if let Some(group) = started {
            start.ending = Ending::Started(group);
            break;
        }
    }
    for write in table.steps(&[entries]).into_iter().flat_map(|step| step.writes) {
        file.write_all_at(&write.bytes, write.offset)?;
    }
    Ok(start)
}

/// The entries that may be started, in the order in which they are tried.
fn candidates(entries: &Entries, kind: Option<[u8; 16]>) -> Vec<u32> {
    let allowed = |number: &u32| kind.is_some() && entries.kind(*number) == kind && entries.bits(*number).may_start();
    let mut numbers: Vec<u32> = entries.numbers().filter(allowed).collect();
    // The sort keeps the order of equals.
    numbers.sort_by_key(|number| std::cmp::Reverse(entries.bits(*number).priority));
    numbers
}

/// The bits of an entry that was picked.
fn after(bits: Bits, loader: Loader, started: bool) -> Bits {
    let less = Bits { tries: bits.tries.saturating_sub(1), ..bits };
    match loader {
        Loader::GptPrio => less,
        Loader::Vboot if bits.successful => bits,
        Loader::Vboot if started && bits.tries > 1 => less,
        Loader::Vboot => Bits { priority: 0, tries: 0, successful: false },
    }
}
