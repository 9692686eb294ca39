//! A boot partition in a folder, with the backend and the simulated loader on it.

#![allow(dead_code, reason = "each test uses its part")]

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;

use bascule_boot::SdBootBackend;
use bascule_boot::sdboot::LOADER_CONF;
use bascule_boot::sdboot::names::Kind;
use bascule_boot::sdboot::simulator::{self, Renaming};
use bascule_core::Group;

/// An entry that belongs to somebody else; it would be first without the pattern in `loader.conf`.
pub(crate) const FOREIGN: [&str; 3] = ["zz-vendor+2-1", "bascule-recovery", "arch"];

pub(crate) struct Esp {
    dir: tempfile::TempDir,
    pub(crate) kind: Kind,
}

impl Esp {
    /// A new device: `a` good, `b` unbootable; three entries of others.
    pub(crate) fn factory(kind: Kind) -> Self {
        let esp = Esp { dir: tempfile::tempdir().unwrap(), kind };
        for dir in ["loader/entries", "EFI/Linux", "bascule"] {
            fs::create_dir_all(esp.root().join(dir)).unwrap();
        }
        fs::write(esp.root().join("loader/loader.conf"), LOADER_CONF).unwrap();
        for group in Group::ALL {
            fs::write(esp.root().join(format!("bascule/linux-{group}")), "kernel").unwrap();
            fs::write(esp.root().join(format!("bascule/{group}{}", kind.suffix())), contents(kind, Some(group)))
                .unwrap();
        }
        for name in FOREIGN {
            fs::write(esp.entries().join(format!("{name}{}", kind.suffix())), contents(kind, None)).unwrap();
        }
        let suffix = kind.suffix();
        esp.set(&[&format!("bascule-1-a{suffix}"), "bascule-0-b.off"]);
        esp
    }

    pub(crate) fn root(&self) -> PathBuf {
        self.dir.path().to_owned()
    }

    pub(crate) fn entries(&self) -> PathBuf {
        self.root().join(self.kind.directory())
    }

    pub(crate) fn backend(&self) -> SdBootBackend {
        SdBootBackend::new(self.root(), self.kind)
    }

    /// Exactly these files beside the foreign ones, each with the contents of its group, or of `a` where the name has none.
    pub(crate) fn set(&self, names: &[&str]) {
        for name in self.ours() {
            fs::remove_file(self.entries().join(name)).unwrap();
        }
        for name in names {
            let group = Group::ALL.into_iter().find(|group| name.to_lowercase().contains(&format!("-{group}")));
            fs::write(self.entries().join(name), contents(self.kind, group.or(Some(Group::A)))).unwrap();
        }
    }

    pub(crate) fn names(&self) -> BTreeSet<String> {
        let names = fs::read_dir(self.entries()).unwrap();
        names.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    }

    /// The names that are not [`FOREIGN`].
    pub(crate) fn ours(&self) -> Vec<String> {
        let foreign = |name: &String| FOREIGN.iter().any(|other| name.starts_with(other));
        self.names().into_iter().filter(|name| !foreign(name)).collect()
    }

    /// The group that is started; `None` also for an entry of others.
    pub(crate) fn start(&self, renaming: Renaming) -> Option<Group> {
        simulator::start(self.dir.path(), renaming).unwrap().started.and_then(|entry| entry.group)
    }
}

/// What an entry holds.
pub(crate) fn contents(kind: Kind, group: Option<Group>) -> Vec<u8> {
    let words = match group {
        Some(group) => format!("root=PARTUUID=0-{group} bascule.group={group}"),
        None => "root=LABEL=other".to_owned(),
    };
    let linux = group.map_or("/bascule/linux-a".to_owned(), |group| format!("/bascule/linux-{group}"));
    match kind {
        Kind::Text => format!("title Bascule\nlinux {linux}\noptions {words}\n").into_bytes(),
        Kind::Image => image("ID=bascule\nPRETTY_NAME=\"Bascule\"\n", &words),
    }
}

/// The least that is a unified kernel image to systemd-boot and bootctl: a PE header and two sections.
pub(crate) fn image(os_release: &str, words: &str) -> Vec<u8> {
    let sections: [(&[u8; 8], &str); 3] =
        [(b".osrel\0\0", os_release), (b".cmdline", words), (b".linux\0\0", "kernel")];
    let mut bytes = vec![0_u8; 1024];
    bytes[..2].copy_from_slice(b"MZ");
    bytes[0x3c] = 0x80;
    bytes[0x80..0x84].copy_from_slice(b"PE\0\0");
    bytes[0x84..0x86].copy_from_slice(&0x8664_u16.to_le_bytes());
    bytes[0x86] = 3;
    bytes[0x94] = 0xf0;
    bytes[0x98..0x9a].copy_from_slice(&0x20b_u16.to_le_bytes());
    let put = |bytes: &mut Vec<u8>, at: usize, number: usize| {
        bytes[at..at + 4].copy_from_slice(&u32::try_from(number).unwrap().to_le_bytes());
    };
    for (index, (name, text)) in sections.iter().enumerate() {
        let (at, start) = (0x98 + 0xf0 + index * 40, bytes.len());
        bytes[at..at + 8].copy_from_slice(*name);
        put(&mut bytes, at + 8, text.len());
        put(&mut bytes, at + 12, start);
        put(&mut bytes, at + 16, text.len().next_multiple_of(512));
        put(&mut bytes, at + 20, start);
        bytes.extend_from_slice(text.as_bytes());
        bytes.resize(bytes.len().next_multiple_of(512), 0);
    }
    bytes
}
