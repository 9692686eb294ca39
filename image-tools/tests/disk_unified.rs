//! Disks that start by unified kernel images: what is on their boot partition is what the agent goes on from, and what would
//! not start is refused before there is a disk.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, reason = "a test may fail")]

use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use bascule_boot::sdboot::names::Kind;
use bascule_boot::sdboot::simulator::{self, Renaming};
use bascule_boot::sdboot::{ImagePlace, LOADER_CONF, kind_on};
use bascule_boot::{BootBackend, SdBootBackend};
use bascule_core::boot_set::{BOOT_IMAGES, KERNEL};
use bascule_core::{BootStatus, BootedGroup, Group, Settings};
use bascule_image::disk::{
    DiskError, DiskSpec, Entries, Ext4, FALLBACK_EPOCH, Loader, Part, Sizes, SlotContent, create_disk, parts,
};

const MIB: u64 = 1 << 20;
const SIZES: Sizes = Sizes { esp: 70 * MIB, slot: 16 * MIB, data: 16 * MIB };
const SEED: &str = "test";
const NAMED: &str = "ID=acme\nPRETTY_NAME=\"Acme 1\"\n";

/// A folder for trees, disks and the loader's program.
struct House(tempfile::TempDir);

impl House {
    fn new() -> House {
        let house = House(tempfile::tempdir().unwrap());
        fs::create_dir(house.at("loader")).unwrap();
        fs::write(house.at("loader/systemd-bootx64.efi"), "MZ loader").unwrap();
        house
    }

    fn at(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// A root tree that has these images, by their groups' letters.
    fn tree(&self, name: &str, images: &[(&str, &[u8])]) -> PathBuf {
        let tree = self.at(name);
        fs::create_dir_all(tree.join(BOOT_IMAGES)).unwrap();
        fs::create_dir_all(tree.join("boot")).unwrap();
        fs::write(tree.join(KERNEL), "kernel").unwrap();
        for (group, bytes) in images {
            fs::write(tree.join(BOOT_IMAGES).join(format!("{group}.efi")), bytes).unwrap();
        }
        tree
    }

    fn spec(&self, tree: &Path) -> DiskSpec {
        DiskSpec {
            root_a: SlotContent::Tree(tree.to_owned()),
            root_b: SlotContent::Empty,
            boot_files: self.at("loader"),
            loader: Loader::SystemdBoot,
            entries: Entries::Images,
            grub_modules: None,
            sizes: SIZES,
            seed: SEED.into(),
            epoch: FALLBACK_EPOCH,
        }
    }

    /// Makes the disk, and copies its boot partition into a folder.
    fn boot_partition(&self, spec: &DiskSpec) -> PathBuf {
        let disk = self.at("disk.img");
        let esp = create_disk(spec, &disk).unwrap().into_iter().find(|part| part.name == "esp").unwrap();
        let mut bytes = vec![0; usize::try_from(esp.size).unwrap()];
        File::open(&disk).unwrap().read_exact_at(&mut bytes, esp.offset).unwrap();
        fs::write(self.at("esp.img"), bytes).unwrap();
        let volume = File::options().read(true).write(true).open(self.at("esp.img")).unwrap();
        let volume = fatfs::FileSystem::new(volume, fatfs::FsOptions::new()).unwrap();
        let root = self.at("esp");
        fs::remove_dir_all(&root).ok();
        copy_out(&volume.root_dir(), &root);
        root
    }

    /// The code, the text with its cause, and the hint of a refusal; no disk is left.
    fn refused(&self, spec: &DiskSpec) -> (&'static str, String, String) {
        let disk = self.at("refused.img");
        let error = create_disk(spec, &disk).unwrap_err();
        assert!(!disk.exists());
        let cause = std::error::Error::source(&error).map_or_else(String::new, |cause| format!(": {cause}"));
        (error.code(), format!("{error}{cause}"), error.hint())
    }
}

fn copy_out<T: fatfs::ReadWriteSeek>(from: &fatfs::Dir<'_, T>, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in from.iter().map(Result::unwrap).filter(|entry| !entry.file_name().starts_with('.')) {
        let place = to.join(entry.file_name());
        if entry.is_dir() {
            copy_out(&entry.to_dir(), &place);
            continue;
        }
        let mut bytes = Vec::new();
        entry.to_file().read_to_end(&mut bytes).unwrap();
        fs::write(place, bytes).unwrap();
    }
}

/// Every file below a folder, by its path from there.
fn files(root: &Path) -> Vec<String> {
    let listed = Command::new("find").arg(root).args(["-type", "f", "-printf", "%P\n"]).output().unwrap();
    let mut files: Vec<String> = String::from_utf8(listed.stdout).unwrap().lines().map(str::to_owned).collect();
    files.sort();
    files
}

fn root_of(group: &str) -> String {
    let parts: Vec<Part> = parts(&SIZES, Loader::SystemdBoot, SEED).unwrap();
    parts.into_iter().find(|part| part.name == format!("root-{group}")).unwrap().partuuid
}

/// The image that a group of this disk can be started by.
fn own(group: &str) -> Vec<u8> {
    image(NAMED, &format!("root=PARTUUID={} rootwait bascule.group={group}", root_of(group)))
}

/// The least that is a unified kernel image: a PE header and three sections, whose bytes are not at their addresses.
fn image(os_release: &str, words: &str) -> Vec<u8> {
    let sections = [(".osrel", os_release), (".cmdline", words), (".linux", "kernel")];
    let mut bytes = vec![0; 0x400];
    let put = |bytes: &mut Vec<u8>, at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
    put(&mut bytes, 0, b"MZ");
    put(&mut bytes, 0x3c, &[0x40]);
    put(&mut bytes, 0x40, b"PE\0\0\x64\x86\x03");
    for (number, (name, text)) in sections.iter().enumerate() {
        let (at, start) = (0x40 + 24 + number * 40, bytes.len());
        let [length, start] = [text.len(), start].map(|number| u32::try_from(number).unwrap().to_le_bytes());
        put(&mut bytes, at, name.as_bytes());
        for (field, value) in [(8, length), (16, length), (20, start)] {
            put(&mut bytes, at + field, &value);
        }
        bytes.extend_from_slice(text.as_bytes());
    }
    bytes
}

#[test]
fn the_boot_partition_has_the_loader_and_the_image_of_group_a_and_no_text_entry_or_kernel() {
    let house = House::new();
    let tree = house.tree("tree", &[("a", &own("a")), ("b", &own("b"))]);
    let ready = house.at("root.ext4");
    let ext4 = Ext4 {
        tree: Some(tree.clone()),
        size: 16 * MIB,
        label: "root".into(),
        seed: SEED.into(),
        epoch: FALLBACK_EPOCH,
    };
    ext4.create(&ready).unwrap();
    let of_tree = house.spec(&tree);
    let of_image = DiskSpec { root_a: SlotContent::Image(ready), ..of_tree.clone() };
    for spec in [of_tree, of_image] {
        let root = house.boot_partition(&spec);
        let expected =
            ["EFI/BOOT/BOOTX64.EFI", "EFI/Linux/bascule-0-b.off", "EFI/Linux/bascule-1-a.efi", "loader/loader.conf"];
        assert_eq!(files(&root), expected);
        assert_eq!(fs::read(root.join("EFI/BOOT/BOOTX64.EFI")).unwrap(), b"MZ loader");
        assert_eq!(fs::read_to_string(root.join("loader/loader.conf")).unwrap(), LOADER_CONF);
        assert_eq!(fs::read(root.join("EFI/Linux/bascule-1-a.efi")).unwrap(), own("a"));
        assert!(fs::read(root.join("EFI/Linux/bascule-0-b.off")).unwrap().is_empty());
    }
}

#[test]
fn the_loader_starts_group_a_and_the_agent_finds_settings_that_it_can_update() {
    let house = House::new();
    let root = house.boot_partition(&house.spec(&house.tree("tree", &[("a", &own("a"))])));
    assert_eq!(kind_on(&root).map_err(|error| error.code()), Ok(Some(Kind::Image)));
    let started = simulator::start(&root, Renaming::Works).unwrap().started.and_then(|entry| entry.group);
    assert_eq!(started, Some(Group::A));
    let backend = SdBootBackend::new(root.clone(), Kind::Image);
    let booted = BootedGroup::proven(Group::A);
    let view = backend.view(booted).unwrap();
    assert_eq!(
        (view.settings, view.primary, view.a, view.b),
        (Settings::Intact, Group::A, BootStatus::Good, BootStatus::Unbootable)
    );
    let place = backend.image_place(booted.target()).unwrap();
    assert_eq!(place, ImagePlace { file: root.join("EFI/Linux/bascule-0-b.off"), copy: None });
}

#[test]
fn a_second_root_brings_its_own_image_which_is_tried_after_the_first_one_s() {
    let house = House::new();
    let second = house.tree("second", &[("b", &own("b"))]);
    let spec = house.spec(&house.tree("tree", &[("a", &own("a"))]));
    let root = house.boot_partition(&DiskSpec { root_b: SlotContent::Tree(second), ..spec });
    assert_eq!(fs::read(root.join("EFI/Linux/bascule-0-b.efi")).unwrap(), own("b"));
    let listed = simulator::start(&root, Renaming::Works).unwrap().listed;
    assert_eq!(listed.iter().map(|entry| entry.group).collect::<Vec<_>>(), [Some(Group::A), Some(Group::B)]);
}

#[test]
fn a_root_without_an_image_for_its_group_is_refused_and_the_hint_says_where_it_goes() {
    let house = House::new();
    let none = house.tree("none", &[]);
    let empty = house.tree("empty", &[("a", b"")]);
    let of_b = house.tree("of-b", &[("b", &own("b"))]);
    let link = house.tree("link", &[]);
    std::os::unix::fs::symlink(house.at("loader/systemd-bootx64.efi"), link.join(BOOT_IMAGES).join("a.efi")).unwrap();
    let good = house.tree("good", &[("a", &own("a"))]);
    let of_good = house.spec(&good);
    let cases = [
        ("a", &none, house.spec(&none)),
        ("a", &empty, house.spec(&empty)),
        ("a", &of_b, house.spec(&of_b)),
        ("a", &link, house.spec(&link)),
        ("b", &good, DiskSpec { root_b: SlotContent::Tree(good.clone()), ..of_good }),
    ];
    for (group, tree, spec) in cases {
        let (code, text, hint) = house.refused(&spec);
        assert_eq!(code, "disk.no-unified-image", "{text}");
        assert!(text.starts_with(&format!("{tree:?} has no unified kernel image for group {group}: ")), "{text}");
        assert!(hint.contains(&format!("/{BOOT_IMAGES}/{group}.efi")), "{hint}");
    }
}

#[test]
fn an_image_that_the_disk_would_not_start_by_is_refused() {
    let house = House::new();
    let refused = |a: &[u8], b: Option<&[u8]>| {
        let spec = house.spec(&house.tree("a", &[("a", a)]));
        let root_b = b.map_or(SlotContent::Empty, |b| SlotContent::Tree(house.tree("b", &[("b", b)])));
        let (code, text, hint) = house.refused(&DiskSpec { root_b, ..spec });
        assert_eq!(code, "disk.unified-image", "{text}");
        assert!(hint.contains("bascule-image disk layout"), "{hint}");
        text
    };
    let other = format!("root=PARTUUID={} bascule.group=a", root_of("b"));
    let whole = own("a");
    let newer = image("ID=acme\nNAME=x\nVERSION_ID=2\n", "bascule.group=b");
    let cases = [
        (refused(b"MZ", None), "group a cannot be taken: it is no EFI program"),
        (refused(&image(NAMED, "quiet"), None), "does not have bascule.group=a, once"),
        (refused(&image(NAMED, &other), None), "and the root of group a is"),
        (refused(&whole[..whole.len() - 1], None), "it ends before its last section does"),
        (refused(&whole, Some(&whole)), "group b cannot be taken: its command line does not have bascule.group=b"),
        (refused(&whole, Some(&newer)), "group b cannot be taken: its os-release says another ID or VERSION"),
    ];
    for (text, expected) in cases {
        assert!(text.contains(expected), "{expected}: {text}");
    }
}

#[test]
fn other_loaders_are_refused_with_unified_kernel_images() {
    let house = House::new();
    let spec = house.spec(&house.tree("tree", &[("a", &own("a"))]));
    for loader in [Loader::Grub, Loader::GrubBios, Loader::Uboot, Loader::Efi] {
        let (code, _, hint) = house.refused(&DiskSpec { loader, ..spec.clone() });
        assert_eq!((code, hint.contains("--loader systemd-boot")), ("disk.other-loader", true), "{loader:?}");
    }
    let texts = DiskSpec { entries: Entries::Texts, ..spec };
    let root = house.boot_partition(&texts);
    assert!(!root.join("EFI/Linux").exists());
    assert_eq!(fs::read(root.join("bascule/a/linux")).unwrap(), b"kernel");
}

fn tool(dir: &Path, line: &str) -> (bool, String) {
    let tool =
        Command::new(env!("CARGO_BIN_EXE_bascule-image")).args(line.split_whitespace()).current_dir(dir).output();
    let output = tool.unwrap();
    (output.status.success(), String::from_utf8([output.stdout, output.stderr].concat()).unwrap())
}

#[test]
fn the_tool_says_what_roots_a_disk_will_have_and_makes_one_that_starts_by_images() {
    let house = House::new();
    let at = |line: &str| tool(house.0.path(), line);
    let (_, layout) = at("disk layout --seed test --json");
    let layout: serde_json::Value = serde_json::from_str(&layout).unwrap();
    assert_eq!(layout["partitions"][2]["name"], "root-a");
    assert_eq!(layout["partitions"][2]["partuuid"], root_of("a"));
    assert!(at("disk layout --seed test").1.contains(&format!("PARTUUID={}", root_of("b"))));
    house.tree("tree", &[("a", &own("a"))]);
    let create = "disk create --tree tree --boot-files loader --unified --seed test --slot-size 16M --data-size 16M \
                  --esp-size 70M -o made.img";
    let (made, said) = at(&format!("{create} --loader systemd-boot"));
    assert!(made, "{said}");
    let (made, said) = at(create);
    assert!(
        !made && said.contains("[disk.other-loader]") && said.contains("hint: add --loader systemd-boot"),
        "{said}"
    );
    let (made, said) = at(&format!("{create} --loader systemd-boot --seed other").replace("--seed test ", ""));
    assert!(!made && said.contains("[disk.unified-image]") && said.contains("caused by: "), "{said}");
    assert!(matches!(parts(&Sizes { esp: 0, ..SIZES }, Loader::Grub, SEED), Err(DiskError::Size { .. })));
}
