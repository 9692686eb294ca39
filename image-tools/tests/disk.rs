//! Disk images are what the tools of the field say they should be.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, reason = "a test may fail")]

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use bascule_image::disk::{
    DiskError, DiskSpec, Entries, Ext4, FALLBACK_EPOCH, LOADER_FILES, Loader, Sizes, SlotContent, create_disk,
};

const MIB: u64 = 1 << 20;

fn environment(line: &str) -> Vec<u8> {
    let mut block = format!("# GRUB Environment Block\n{line}\n").into_bytes();
    block.resize(1024, b'#');
    block
}

/// A small root tree with the loader's files.
fn tree(dir: &Path) -> PathBuf {
    let tree = dir.join("tree");
    let boot = tree.join(LOADER_FILES);
    fs::create_dir_all(&boot).unwrap();
    fs::write(boot.join("modules"), "# comment\npart_gpt fat ext2\nnormal loadenv\n").unwrap();
    fs::write(boot.join("early.cfg"), "set prefix=($root)/bascule\nnormal $prefix/grub.cfg\n").unwrap();
    fs::write(boot.join("grub.cfg"), "echo hello\n".repeat(300)).unwrap();
    fs::write(boot.join("grubenv"), environment("order=a b")).unwrap();
    fs::write(boot.join("fallback"), environment("fallback=a")).unwrap();
    fs::write(tree.join("a \"quoted\" name"), "text").unwrap();
    std::os::unix::fs::symlink("nowhere", tree.join("link")).unwrap();
    tree
}

fn spec(tree: &Path) -> DiskSpec {
    DiskSpec {
        root_a: SlotContent::Tree(tree.to_owned()),
        root_b: SlotContent::Empty,
        boot_files: tree.join(LOADER_FILES),
        loader: Loader::Grub,
        entries: Entries::Texts,
        grub_modules: None,
        sizes: Sizes { esp: 70 * MIB, slot: 16 * MIB, data: 16 * MIB },
        seed: "test".into(),
        epoch: FALLBACK_EPOCH,
    }
}

/// Copies a stretch of the disk into a file of its own.
fn cut_out(disk: &Path, offset: u64, size: u64, place: &Path) {
    let mut bytes = vec![0; usize::try_from(size).unwrap()];
    File::open(disk).unwrap().read_exact_at(&mut bytes, offset).unwrap();
    fs::write(place, bytes).unwrap();
}

fn says(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output().unwrap_or_else(|e| panic!("{program}: {e}"));
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{program} {arguments:?}: {said}{}", String::from_utf8_lossy(&output.stderr));
    said
}

#[test]
fn a_disk_has_five_partitions_that_the_usual_tools_find_no_fault_with() {
    let dir = tempfile::tempdir().unwrap();
    let disk = dir.path().join("disk.img");
    let parts = create_disk(&spec(&tree(dir.path())), &disk).unwrap();
    let names: Vec<_> = parts.iter().map(|part| (part.number, part.name.as_str())).collect();
    assert_eq!(names, [(1, "esp"), (2, "bootenv"), (3, "root-a"), (4, "root-b"), (5, "data")]);
    assert!(says("sgdisk", &["-v", disk.to_str().unwrap()]).contains("No problems found"));
    let table = gpt::GptConfig::new().writable(false).open(&disk).unwrap();
    for part in &parts {
        let entry = &table.partitions()[&part.number];
        assert_eq!((entry.name.as_str(), entry.first_lba * 512), (part.name.as_str(), part.offset));
        assert_eq!((entry.last_lba + 1 - entry.first_lba) * 512, part.size);
        assert_eq!(entry.part_guid.to_string(), part.partuuid);
    }
    let image = dir.path().join("part.img");
    for (index, program) in [(0, "fsck.vfat"), (2, "e2fsck"), (4, "e2fsck")] {
        cut_out(&disk, parts[index].offset, parts[index].size, &image);
        let how = if program == "e2fsck" { "-fn" } else { "-nv" };
        let said = says(program, &[how, image.to_str().unwrap()]);
        assert!(!said.contains("Expected") && !said.contains("uninitialized"), "{said}");
    }
    let about = fs::metadata(&disk).unwrap();
    assert!(about.blocks() * 512 < about.len() / 4, "the image is not sparse");
}

#[test]
fn the_loaders_environment_blocks_are_whole_and_in_one_piece() {
    let dir = tempfile::tempdir().unwrap();
    let tree = tree(dir.path());
    let disk = dir.path().join("disk.img");
    let parts = create_disk(&spec(&tree), &disk).unwrap();
    let esp = dir.path().join("esp.img");
    cut_out(&disk, parts[0].offset, parts[0].size, &esp);
    let bytes = fs::read(&esp).unwrap();
    for name in ["grubenv", "fallback"] {
        let block = fs::read(tree.join(LOADER_FILES).join(name)).unwrap();
        let places = bytes.windows(1024).step_by(512).filter(|window| *window == block).count();
        assert_eq!(places, 1, "{name} is not in one piece");
    }
    let volume =
        fatfs::FileSystem::new(File::options().read(true).write(true).open(&esp).unwrap(), fatfs::FsOptions::new());
    let volume = volume.unwrap();
    let mut loader = volume.root_dir().open_file("EFI/BOOT/BOOTX64.EFI").unwrap();
    let mut head = [0; 2];
    std::io::Read::read_exact(&mut loader, &mut head).unwrap();
    assert_eq!(&head, b"MZ");
}

#[test]
fn the_same_tree_gives_the_same_disk_even_after_it_was_copied() {
    let dir = tempfile::tempdir().unwrap();
    let tree = tree(dir.path());
    create_disk(&spec(&tree), &dir.path().join("first")).unwrap();
    let copy = dir.path().join("copy");
    says("cp", &["-a", tree.to_str().unwrap(), copy.to_str().unwrap()]);
    create_disk(&spec(&copy), &dir.path().join("second")).unwrap();
    assert!(fs::read(dir.path().join("first")).unwrap() == fs::read(dir.path().join("second")).unwrap());
    let other = DiskSpec { seed: "other".into(), ..spec(&copy) };
    let parts = create_disk(&other, &dir.path().join("third")).unwrap();
    let first = create_disk(&spec(&copy), &dir.path().join("fourth")).unwrap();
    assert!(parts.iter().zip(&first).all(|(a, b)| a.partuuid != b.partuuid));
}

#[test]
fn a_ready_image_is_put_into_the_slot_byte_by_byte_and_one_too_large_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let tree = tree(dir.path());
    let root = dir.path().join("root.ext4");
    let image = Ext4 {
        tree: Some(tree.clone()),
        size: 16 * MIB,
        label: "root".into(),
        seed: "test".into(),
        epoch: FALLBACK_EPOCH,
    };
    image.create(&root).unwrap();
    let with = |image: &Path| DiskSpec { root_b: SlotContent::Image(image.to_owned()), ..spec(&tree) };
    let disk = dir.path().join("disk.img");
    let parts = create_disk(&with(&root), &disk).unwrap();
    let slot = dir.path().join("slot");
    cut_out(&disk, parts[3].offset, parts[3].size, &slot);
    assert!(fs::read(&slot).unwrap() == fs::read(&root).unwrap());
    File::options().write(true).open(&root).unwrap().set_len(16 * MIB + 1).unwrap();
    let refused = create_disk(&with(&root), &dir.path().join("large.img"));
    assert!(matches!(refused, Err(DiskError::TooSmall { .. })));
    assert!(!dir.path().join("large.img").exists());
}

#[test]
fn what_cannot_work_is_refused_with_its_reason() {
    let dir = tempfile::tempdir().unwrap();
    let tree = tree(dir.path());
    let disk = dir.path().join("disk.img");
    let sized = |sizes| create_disk(&DiskSpec { sizes, ..spec(&tree) }, &disk).unwrap_err();
    for sizes in [
        Sizes { esp: 60 * MIB, slot: 16 * MIB, data: 16 * MIB },
        Sizes { esp: 70 * MIB, slot: 16 * MIB + 512, data: 16 * MIB },
        Sizes { esp: 70 * MIB, slot: 16 * MIB, data: 0 },
        Sizes { esp: 70 * MIB, slot: u64::MAX, data: 16 * MIB },
    ] {
        assert_eq!(sized(sizes).code(), "disk.size");
    }
    fs::write(tree.join("large"), vec![7; 20 << 20]).unwrap();
    assert_eq!(create_disk(&spec(&tree), &disk).unwrap_err().code(), "disk.tool-failed");
    fs::remove_file(tree.join("large")).unwrap();
    fs::write(tree.join(LOADER_FILES).join("grubenv"), "order=a b").unwrap();
    assert_eq!(create_disk(&spec(&tree), &disk).unwrap_err().code(), "disk.boot-file");
    fs::remove_file(tree.join(LOADER_FILES).join("grubenv")).unwrap();
    assert_eq!(create_disk(&spec(&tree), &disk).unwrap_err().code(), "disk.file");
    assert!(!disk.exists());
}
