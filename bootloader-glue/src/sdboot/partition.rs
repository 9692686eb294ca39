//! What a boot partition holds for systemd-boot: the files of a new device, and the text of one entry.
//!
//! ```text
//! title Bascule 1.4.0 (a)
//! sort-key bascule
//! linux /bascule/a/linux
//! options root=PARTUUID=… rootwait panic=-1 quiet bascule.group=a
//! ```
//! | key | why it is there |
//! |---|---|
//! | `title` | what the menu and `bootctl list` show; the only place for a version |
//! | `sort-key` | the same in both entries, for ever: where `loader.conf` is lost, ours come before entries that have none |
//! | `linux` | the group's kernel; a missing file takes the entry off the loader's list |
//! | `options` | the kernel's command line, with the group as its last word |
//!
//! There is no `version` and no `machine-id`: the loader sorts by them before it looks at the names, so two versions of a
//! system would change places whatever the names say, and an [activation](super::SdBootBackend) refuses them.
//!
//! The command line stands in the file, and the file is the same at every start of a trial. So it cannot carry
//! `bascule.trial=`, which GRUB's and U-Boot's scripts set to the tries that are left. What the booted system can look at
//! is the EFI variable `LoaderBootCountPath-4a67b082-0a4c-41cf-b6c7-440b29bb8c4f`: it is there only when the loader
//! counted this very start, and holds the entry's path after the rename (`\loader\entries\bascule-5-b+2-1.conf`, UTF-16,
//! after the four bytes of attributes that efivarfs puts before every value). It is gone at the next start.
//!
//! A file of efivarfs cannot be sought in: it is read from its beginning. And where efivarfs is not mounted (in Debian's
//! kernels it is a module) nothing is there at all; only beside the loader's `LoaderInfo` does its absence say anything.

use bascule_core::{Group, TargetGroup};

use super::names::{EntryName, Kind, Mark};
use super::{LOADER_CONF, SdBootBackend, beyond_repair, store};
use crate::BootError;

/// Of both entries; another one would make the entries of an old and a new agent differ.
const SORT_KEY: &str = "bascule";
/// The word that tells a system which group it was started from.
pub(super) const GROUP_WORD: &str = "bascule.group=";
/// The kernel's COMMAND_LINE_SIZE on x86 and arm64, less the NUL at its end.
const LONGEST_COMMAND_LINE: usize = 2047;
/// More than any title or path can sensibly have; with the longest command line the text stays below one page.
const LONGEST_VALUE: usize = 255;

/// What an entry of type 1 starts; the group is added when its text is made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kernel {
    title: String,
    linux: String,
    options: String,
}

/// Why an entry cannot say this.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KernelFault {
    /// A value is empty, longer than the loader or the kernel takes it, or begins or ends with a space.
    #[error("the {key} of a boot entry has to be of 1 to {longest} bytes without a space at either end")]
    Size {
        /// The key.
        key: &'static str,
        /// The most it may have.
        longest: usize,
    },
    /// A value holds what ends a line, or what the loader takes away: it unwraps what stands in double quotes.
    #[error("the {key} of a boot entry may not hold control characters{}", if *.key == "options" { "" } else { " or double quotes" })]
    Character {
        /// The key.
        key: &'static str,
    },
    /// The kernel's path is not one from the root of the boot partition.
    #[error("the kernel's path {linux} has to begin with / and to be written without \\ and without . or .. between")]
    Path {
        /// The path.
        linux: String,
    },
    /// The command line has a word that only we may set.
    #[error(
        "the kernel's command line may not hold {word}: the group's own word follows it, and no tries can be told there"
    )]
    OwnWord {
        /// The word.
        word: String,
    },
}

/// What the slots of group `b` hold on a new device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum SecondGroup {
    /// Nothing that may be started: its entry is not listed.
    #[default]
    Empty,
    /// A complete system: good, and tried after group `a`.
    Filled,
}

impl Kernel {
    /// A kernel at the path `linux` from the root of the boot partition, started with the words `options`, to which
    /// [`entry`](Self::entry) adds the group. `title` is for people.
    ///
    /// # Errors
    /// When the loader would read something else than was written, or the kernel would cut its command line.
    pub fn new(title: &str, linux: &str, options: &str) -> Result<Self, KernelFault> {
        let longest_options =
            LONGEST_COMMAND_LINE.saturating_sub(" ".len() + GROUP_WORD.len() + Group::A.letter().len());
        for (key, value, longest) in
            [("title", title, LONGEST_VALUE), ("linux", linux, LONGEST_VALUE), ("options", options, longest_options)]
        {
            if value.is_empty() || value.len() > longest || value.trim() != value {
                return Err(KernelFault::Size { key, longest });
            }
            if value.contains(char::is_control) || (key != "options" && value.contains('"')) {
                return Err(KernelFault::Character { key });
            }
        }
        let is_odd = |part: &str| part.is_empty() || part == "." || part == "..";
        if linux.contains('\\') || linux.strip_prefix('/').is_none_or(|path| path.split('/').any(is_odd)) {
            return Err(KernelFault::Path { linux: linux.to_owned() });
        }
        let is_ours = |word: &&str| word.starts_with(GROUP_WORD) || word.starts_with("bascule.trial=");
        if let Some(word) = options.split_whitespace().find(is_ours) {
            return Err(KernelFault::OwnWord { word: word.to_owned() });
        }
        Ok(Kernel { title: title.to_owned(), linux: linux.to_owned(), options: options.to_owned() })
    }

    /// The text of a group's entry.
    #[must_use]
    pub fn entry(&self, group: Group) -> String {
        let Kernel { title, linux, options } = self;
        // The group last: `options` then never ends with the quote that would make the loader unwrap it.
        format!(
            "title {title} ({group})\nsort-key {SORT_KEY}\nlinux {linux}\noptions {options} {GROUP_WORD}{}\n",
            group.letter()
        )
    }
}

/// The files of a new device's boot partition beside the loader itself and the kernels: path from its root, and bytes.
///
/// Group `a` is committed. The copies in `bascule/` are what a lost entry is made anew from.
#[must_use]
pub fn factory_files(a: &Kernel, b: &Kernel, second: SecondGroup) -> Vec<(String, Vec<u8>)> {
    let mut files = vec![loader_conf()];
    for (name, kernel) in factory_names(second).into_iter().zip([a, b]) {
        let text = kernel.entry(name.group).into_bytes();
        files.push((format!("{}/{}", Kind::Text.directory(), name.file_name(Kind::Text)), text.clone()));
        files.push((super::copy(name.group, Kind::Text), text));
    }
    files
}

/// Like [`factory_files`], for a device whose entries are unified kernel images: those of the groups, `None` for `b` where it
/// has nothing that may be started. [`check_new_images`](super::check_new_images) has looked at them.
///
/// Group `b` then has an empty file, which its first image is put into. There are no copies: each group's root has its image.
#[must_use]
pub fn factory_images(a: Vec<u8>, b: Option<Vec<u8>>) -> Vec<(String, Vec<u8>)> {
    let second = if b.is_some() { SecondGroup::Filled } else { SecondGroup::Empty };
    let images = [a, b.unwrap_or_default()];
    let entries = factory_names(second).into_iter().zip(images);
    let entries =
        entries.map(|(name, image)| (format!("{}/{}", Kind::Image.directory(), name.file_name(Kind::Image)), image));
    std::iter::once(loader_conf()).chain(entries).collect()
}

/// Group `a` is committed, and tried first.
fn factory_names(second: SecondGroup) -> [EntryName; 2] {
    let mark = match second {
        SecondGroup::Empty => Mark::Off,
        SecondGroup::Filled => Mark::Good,
    };
    [EntryName { generation: 1, group: Group::A, mark: Mark::Good }, EntryName { generation: 0, group: Group::B, mark }]
}

fn loader_conf() -> (String, Vec<u8>) {
    ("loader/loader.conf".to_owned(), LOADER_CONF.as_bytes().to_vec())
}

impl SdBootBackend {
    /// Makes the target group's entry start this kernel, while the loader does not list it. The kernel's own file is the
    /// caller's: it has to be whole before the activation.
    ///
    /// The entry is overwritten in place and read back from the device, then its copy. A cut in here leaves a torn text in
    /// a file that the loader does not list, and no record that says the target is prepared.
    ///
    /// # Errors
    /// When the loader lists an entry of the target, or its text does not reach the device.
    pub fn write_entry(&self, target: TargetGroup, kernel: &Kernel) -> Result<(), BootError> {
        let group = target.group();
        // Stopping at one of these is safe: nothing was written.
        if self.kind == Kind::Image {
            let images = "entries of this kind are whole images, which bring their words with them".into();
            return Err(beyond_repair(&self.directory(), images));
        }
        let file = self.unlisted(group)?;
        let text = kernel.entry(group).into_bytes();
        store::overwrite(&file, &text)?;
        let copy = self.root.join(super::copy(group, Kind::Text));
        if copy.is_file() { store::overwrite(&copy, &text) } else { Ok(()) }
    }
}
