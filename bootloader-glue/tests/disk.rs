//! Finding the booted group and the slots on machines made of files.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test stops where it fails"
)]

use std::fs::{self, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::symlink;
use std::path::Path;

use bascule_boot::disk::rehearsal::{DiskFile, machine, mount_root};
use bascule_boot::disk::{DiskError, Layout, Selector, SlotRole, SlotTable, Sysfs, TableCopies, locate, open_target};
use bascule_core::{BootedGroup, Group};

const SLOT: u64 = 3 << 20;

fn slots() -> SlotTable {
    SlotTable::of_root("partlabel:root-a".parse().unwrap(), "partlabel:root-b".parse().unwrap())
}

fn code(result: Result<Layout, DiskError>) -> &'static str {
    match result {
        Ok(layout) => panic!("located {layout:?}"),
        Err(error) => error.code(),
    }
}

/// Changes one file of the machine, given its text before.
fn edit(path: &Path, change: impl Fn(&str) -> String) {
    let text = fs::read_to_string(path).unwrap();
    fs::write(path, change(&text)).unwrap();
}

#[test]
fn claim_j5_every_kind_of_disk_name_leads_from_the_mounted_root_to_both_slots() {
    for (name, third) in
        [("nvme0n1", "nvme0n1p3"), ("mmcblk0", "mmcblk0p3"), ("sda", "sda3"), ("vda", "vda3"), ("loop0", "loop0p3")]
    {
        let dir = tempfile::tempdir().unwrap();
        let (sysfs, disk) = machine(dir.path(), name, SLOT).unwrap();
        let layout = locate(&sysfs, &slots()).unwrap();
        assert_eq!(layout.booted, BootedGroup::proven(Group::A));
        assert_eq!((layout.disk.name.as_str(), layout.disk.copies), (name, TableCopies::Both));
        assert_eq!(layout.slots.len(), 2);
        let (a, b) = (layout.slot("root", Group::A).unwrap(), layout.slot("root", Group::B).unwrap());
        assert_eq!(a.device, dir.path().join("dev").join(third));
        assert_eq!((a.partition, b.partition, a.size, b.size), (3, 4, SLOT, SLOT));
        assert_eq!((a.dev, b.dev), ((259, 3), (259, 4)));
        assert_eq!(b.start, a.start + a.size);
        disk.mount_root(dir.path(), 4).unwrap();
        assert_eq!(locate(&sysfs, &slots()).unwrap().booted, BootedGroup::proven(Group::B));
    }
}

#[test]
fn claim_j5_partitions_with_two_digits_are_found_under_their_own_names() {
    for name in ["mmcblk0", "sda"] {
        let dir = tempfile::tempdir().unwrap();
        let mut disk = DiskFile::of_device(name, SLOT);
        disk.partitions = (1..=15).map(|number| (format!("p{number}"), 1 << 20)).collect();
        disk.lay_out(dir.path()).unwrap();
        disk.mount_root(dir.path(), 10).unwrap();
        let table = SlotTable::of_root("partnum:10".parse().unwrap(), "partlabel:p15".parse().unwrap());
        let layout = locate(&Sysfs { root: dir.path().to_owned() }, &table).unwrap();
        assert_eq!(layout.booted.group(), Group::A);
        let expected = if name == "sda" { "sda15" } else { "mmcblk0p15" };
        assert_eq!(layout.slot("root", Group::B).unwrap().device, dir.path().join("dev").join(expected));
    }
}

#[test]
fn claim_j6_a_disk_with_large_sectors_gives_the_same_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let disk = DiskFile { sector_size: 4096, ..DiskFile::of_device("nvme0n1", SLOT) };
    disk.lay_out(dir.path()).unwrap();
    disk.mount_root(dir.path(), 4).unwrap();
    let layout = locate(&Sysfs { root: dir.path().to_owned() }, &slots()).unwrap();
    assert_eq!((layout.booted.group(), layout.disk.sector_size), (Group::B, 4096));
    assert_eq!(layout.slot("root", Group::A).unwrap().size, SLOT);
}

#[test]
fn slots_are_selected_by_label_guid_or_number_and_several_roles_are_kept_in_order() {
    let dir = tempfile::tempdir().unwrap();
    let (sysfs, _) = machine(dir.path(), "vda", SLOT).unwrap();
    let uuid = locate(&sysfs, &slots()).unwrap().slot("root", Group::A).unwrap().partuuid.clone();
    let table = SlotTable {
        roles: vec![
            SlotRole { role: "boot".into(), a: "partlabel:esp".parse().unwrap(), b: "partnum:2".parse().unwrap() },
            SlotRole {
                role: "root".into(),
                a: format!("partuuid:{}", uuid.to_uppercase()).parse().unwrap(),
                b: "partnum:4".parse().unwrap(),
            },
        ],
    };
    let layout = locate(&sysfs, &table).unwrap();
    let found: Vec<_> = layout.slots.iter().map(|slot| (slot.role.as_str(), slot.group, slot.partition)).collect();
    assert_eq!(found, [("boot", Group::A, 1), ("boot", Group::B, 2), ("root", Group::A, 3), ("root", Group::B, 4)]);
}

#[test]
fn a_selector_that_is_none_is_refused() {
    for text in ["", "root-a", "partlabel:", "partuuid:1234", "partnum:0", "partnum:x", "label:root", "partnum:-1"] {
        assert_eq!(text.parse::<Selector>().unwrap_err().code(), "disk.selector", "{text}");
    }
    for text in ["partlabel:root a", "partnum:3", "partuuid:0f5c8bd8-30d2-4d4b-a1f1-0d0ff2a0c1e4"] {
        assert_eq!(text.parse::<Selector>().unwrap().to_string(), text);
    }
}

#[test]
fn claim_j4_a_root_that_is_no_partition_is_refused_with_what_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let (sysfs, _) = machine(dir.path(), "vda", SLOT).unwrap();
    for (dev, kind) in [("0:31", "overlay"), ("0:40", "nfs4"), ("0:25", "tmpfs"), ("0:33", "btrfs")] {
        mount_root(dir.path(), dev, kind, kind).unwrap();
        let error = locate(&sysfs, &slots()).unwrap_err();
        assert_eq!(error.code(), "disk.root-not-a-partition");
        assert!(error.to_string().contains(kind), "{error}");
    }
    let volume = dir.path().join("sys/devices/virtual/dm-0");
    fs::create_dir_all(volume.join("dm")).unwrap();
    symlink("../../devices/virtual/dm-0", dir.path().join("sys/dev/block/253:0")).unwrap();
    mount_root(dir.path(), "253:0", "ext4", "/dev/mapper/root").unwrap();
    assert_eq!(code(locate(&sysfs, &slots())), "disk.root-not-a-partition");
    symlink("../../devices/vda", dir.path().join("sys/dev/block/259:0")).unwrap();
    mount_root(dir.path(), "259:0", "ext4", "/dev/vda").unwrap();
    assert_eq!(code(locate(&sysfs, &slots())), "disk.root-not-a-partition");
    mount_root(dir.path(), "259:3", "ext4", "/dev/vda3").unwrap();
    edit(&dir.path().join("proc/self/mountinfo"), |text| text.replace("259:3 / /", "259:3 /var/chroot /"));
    assert_eq!(code(locate(&sysfs, &slots())), "disk.root-not-a-partition");
}

#[test]
fn claim_j4_a_root_on_a_partition_that_is_no_slot_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (sysfs, disk) = machine(dir.path(), "vda", SLOT).unwrap();
    disk.mount_root(dir.path(), 5).unwrap();
    assert_eq!(code(locate(&sysfs, &slots())), "disk.root-is-no-slot");
}

#[test]
fn claim_j3_selectors_that_fit_none_or_two_or_the_same_partition_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let mut disk = DiskFile::of_device("vda", SLOT);
    disk.partitions.push(("root-b".into(), SLOT));
    disk.lay_out(dir.path()).unwrap();
    disk.mount_root(dir.path(), 3).unwrap();
    let sysfs = Sysfs { root: dir.path().to_owned() };
    let error = locate(&sysfs, &slots()).unwrap_err();
    assert_eq!(error.code(), "disk.ambiguous");
    assert!(error.to_string().contains('4') && error.to_string().contains('6'), "{error}");
    let of = |a: &str, b: &str| SlotTable::of_root(a.parse().unwrap(), b.parse().unwrap());
    assert_eq!(code(locate(&sysfs, &of("partnum:3", "partlabel:root-c"))), "disk.no-such-partition");
    assert_eq!(code(locate(&sysfs, &of("partnum:3", "partlabel:root-a"))), "disk.slot-shared");
    assert_eq!(code(locate(&sysfs, &SlotTable { roles: Vec::new() })), "disk.no-root-role");
    let twice = SlotTable { roles: [of("partnum:3", "partnum:4").roles, of("partnum:1", "partnum:2").roles].concat() };
    assert_eq!(code(locate(&sysfs, &twice)), "disk.role-twice");
}

#[test]
fn claim_j2_a_cloned_disk_is_refused_and_both_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let (sysfs, disk) = machine(dir.path(), "vda", SLOT).unwrap();
    let stick = DiskFile { name: "sdb".into(), major: 8, ..disk.clone() };
    stick.lay_out(dir.path()).unwrap();
    let by_number = SlotTable::of_root("partnum:3".parse().unwrap(), "partnum:4".parse().unwrap());
    locate(&sysfs, &by_number).expect("a second disk with other GUIDs is no clone, and labels select nothing here");
    fs::copy(disk.image(dir.path()), stick.image(dir.path())).unwrap();
    let error = locate(&sysfs, &slots()).unwrap_err();
    assert_eq!(error.code(), "disk.cloned");
    assert!(error.to_string().contains("vda") && error.to_string().contains("sdb"), "{error}");
}

#[test]
fn claim_j2_a_second_disk_with_garbage_for_a_table_is_no_clone() {
    let dir = tempfile::tempdir().unwrap();
    let (sysfs, disk) = machine(dir.path(), "vda", SLOT).unwrap();
    let stick = DiskFile { name: "sdb".into(), major: 8, ..disk };
    stick.lay_out(dir.path()).unwrap();
    fs::write(stick.image(dir.path()), vec![0x5a; 1 << 20]).unwrap();
    locate(&sysfs, &slots()).unwrap();
    fs::write(stick.image(dir.path()), b"").unwrap();
    locate(&sysfs, &slots()).unwrap();
}

#[test]
fn claim_j7_a_table_that_the_kernel_does_not_use_is_refused() {
    for (file, by) in [("start", 8_i64), ("size", -8)] {
        let dir = tempfile::tempdir().unwrap();
        let (sysfs, _) = machine(dir.path(), "vda", SLOT).unwrap();
        let path = dir.path().join("sys/devices/vda/vda4").join(file);
        edit(&path, |text| (text.trim().parse::<i64>().unwrap() + by).to_string());
        assert_eq!(code(locate(&sysfs, &slots())), "disk.table-changed", "{file}");
    }
    let dir = tempfile::tempdir().unwrap();
    let (sysfs, _) = machine(dir.path(), "vda", SLOT).unwrap();
    fs::remove_dir_all(dir.path().join("sys/devices/vda/vda4")).unwrap();
    assert_eq!(code(locate(&sysfs, &slots())), "disk.table-changed");
}

/// Overwrites bytes of the disk's image; a negative place counts from the end.
fn damage(image: &Path, place: i64, bytes: &[u8]) {
    let mut file = OpenOptions::new().write(true).open(image).unwrap();
    let from = if place < 0 { SeekFrom::End(place) } else { SeekFrom::Start(place.unsigned_abs()) };
    file.seek(from).unwrap();
    file.write_all(bytes).unwrap();
}

#[test]
fn claim_j6_one_damaged_copy_of_the_table_is_told_and_the_whole_one_is_used() {
    let damages: [(i64, TableCopies); 4] = [
        (512, TableCopies::BackupOnly),
        (1024 + 64, TableCopies::BackupOnly),
        (-512, TableCopies::PrimaryOnly),
        (-512 * 32, TableCopies::PrimaryOnly),
    ];
    for (place, copies) in damages {
        let dir = tempfile::tempdir().unwrap();
        let (sysfs, disk) = machine(dir.path(), "vda", SLOT).unwrap();
        damage(&disk.image(dir.path()), place, b"damaged");
        let located = locate(&sysfs, &slots()).unwrap().disk;
        assert_eq!(located.copies, copies, "{place}");
        let told = located.damaged_copy().unwrap();
        let part = if copies == TableCopies::BackupOnly { "the primary copy of" } else { "the backup of" };
        assert!(told.code == "disk.table-copy-damaged" && told.reason.starts_with(part), "{told:?}");
    }
    let dir = tempfile::tempdir().unwrap();
    let (sysfs, disk) = machine(dir.path(), "vda", SLOT).unwrap();
    for place in [512, -512] {
        damage(&disk.image(dir.path()), place, b"damaged");
    }
    assert_eq!(code(locate(&sysfs, &slots())), "disk.no-table");
}

#[test]
fn claim_j6_two_valid_copies_that_differ_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (sysfs, disk) = machine(dir.path(), "vda", SLOT).unwrap();
    let other = DiskFile { name: "sdb".into(), major: 8, ..disk.clone() };
    other.lay_out(dir.path()).unwrap();
    let mut theirs = fs::File::open(other.image(dir.path())).unwrap();
    theirs.seek(SeekFrom::End(-512 * 33)).unwrap();
    let mut backup = Vec::new();
    theirs.read_to_end(&mut backup).unwrap();
    fs::remove_file(dir.path().join("sys/block/sdb")).unwrap();
    damage(&disk.image(dir.path()), -512 * 33, &backup);
    assert_eq!(code(locate(&sysfs, &slots())), "disk.table-copies-differ");
}

#[test]
fn claim_j3_the_target_is_opened_and_the_booted_slot_never() {
    let dir = tempfile::tempdir().unwrap();
    let (sysfs, disk) = machine(dir.path(), "vda", SLOT).unwrap();
    let layout = locate(&sysfs, &slots()).unwrap();
    let target = layout.booted.target();
    let (a, b) = (layout.slot("root", Group::A).unwrap(), layout.slot("root", Group::B).unwrap());
    let mut file = open_target(b, target, &sysfs).unwrap();
    file.write_all(b"new system").unwrap();
    assert_eq!(fs::metadata(&b.device).unwrap().len(), SLOT, "opening or writing changed the slot's size");
    assert_eq!(open_target(a, target, &sysfs).unwrap_err().code(), "disk.not-a-target");
    // The caller believes that b runs, but a does: neither slot is given away.
    let wrong = BootedGroup::proven(Group::B).target();
    for slot in [a, b] {
        assert_eq!(open_target(slot, wrong, &sysfs).unwrap_err().code(), "disk.not-a-target");
    }
    disk.mount_root(dir.path(), 4).unwrap();
    assert_eq!(open_target(b, target, &sysfs).unwrap_err().code(), "disk.not-a-target");
}

#[test]
fn claim_j3_claim_j7_a_mounted_or_moved_target_is_refused_and_the_mount_point_named() {
    let dir = tempfile::tempdir().unwrap();
    let (sysfs, _) = machine(dir.path(), "vda", SLOT).unwrap();
    let layout = locate(&sysfs, &slots()).unwrap();
    let b = layout.slot("root", Group::B).unwrap();
    let mountinfo = dir.path().join("proc/self/mountinfo");
    let before = fs::read_to_string(&mountinfo).unwrap();
    edit(&mountinfo, |text| format!("{text}40 22 259:4 / /mnt/my\\040disk rw - ext4 /dev/vda4 rw\n"));
    let error = open_target(b, layout.booted.target(), &sysfs).unwrap_err();
    assert_eq!(error.code(), "disk.held");
    assert!(error.to_string().contains("/mnt/my disk"), "{error}");
    fs::write(&mountinfo, before).unwrap();
    edit(&dir.path().join("sys/devices/vda/vda4/size"), |_| "16".into());
    assert_eq!(open_target(b, layout.booted.target(), &sysfs).unwrap_err().code(), "disk.table-changed");
}

#[test]
fn claim_j6_overlapping_entries_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (sysfs, disk) = machine(dir.path(), "vda", SLOT).unwrap();
    let mut table = gpt::GptConfig::new().writable(true).open(disk.image(dir.path())).unwrap();
    let mut partitions = table.partitions().clone();
    partitions.get_mut(&4).unwrap().first_lba -= 1;
    // The crate refuses to write such a table through its own check, so the entry is written by itself.
    let (start, size) = {
        let header = table.primary_header().unwrap();
        (header.part_start, header.part_size)
    };
    partitions[&4].write_to_device(table.device_mut(), 3, start, gpt::disk::DEFAULT_SECTOR_SIZE, size).unwrap();
    let mut header = table.primary_header().unwrap().clone();
    header.write_primary(table.device_mut(), gpt::disk::DEFAULT_SECTOR_SIZE).unwrap();
    damage(&disk.image(dir.path()), -512, b"damaged");
    // The backup is damaged as well: only the overlapping copy is left.
    edit(&dir.path().join("sys/devices/vda/vda4/start"), |text| (text.trim().parse::<u64>().unwrap() - 1).to_string());
    edit(&dir.path().join("sys/devices/vda/vda4/size"), |text| (text.trim().parse::<u64>().unwrap() + 1).to_string());
    assert_eq!(code(locate(&sysfs, &slots())), "disk.overlap");
}
