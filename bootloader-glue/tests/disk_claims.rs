//! Which disk is written: the claims about wrong devices (J), on machines made of files whose tables are changed,
//! cloned and damaged. Those that need no table of their own stand in `disk.rs`.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test stops where it fails"
)]

mod disk_tables;

use std::fs;
use std::io::Write;
use std::os::unix::fs::symlink;
use std::path::Path;

use bascule_boot::disk::rehearsal::{DiskFile, machine, mount_root};
use bascule_boot::disk::{
    DiskError, Layout, SlotTable, Sysfs, TableCopies, locate, open_booted, open_target, partition_guid,
};
use bascule_core::{BootedGroup, Group};
use disk_tables::{Copies, Table};
use proptest::prelude::*;

const SLOT: u64 = 1 << 20;

fn by_label() -> SlotTable {
    of_root("partlabel:root-a", "partlabel:root-b")
}

fn by_number() -> SlotTable {
    of_root("partnum:3", "partnum:4")
}

fn of_root(a: &str, b: &str) -> SlotTable {
    SlotTable::of_root(a.parse().unwrap(), b.parse().unwrap())
}

fn code<T>(result: Result<T, DiskError>) -> &'static str {
    result.err().expect("it was not refused").code()
}

/// A second disk on a machine, with partitions and labels as the first one has.
fn stick(root: &Path) -> DiskFile {
    let stick = DiskFile { major: 8, ..DiskFile::of_device("sdb", SLOT) };
    stick.lay_out(root).unwrap();
    stick
}

fn table_of(disk: &DiskFile, root: &Path) -> Table {
    Table::read(&disk.image(root), disk.sector_size)
}

#[test]
fn claim_j1_both_slots_are_on_the_disk_of_the_mounted_root_whatever_other_disks_hold() {
    let dir = tempfile::tempdir().unwrap();
    let (sysfs, disk) = machine(dir.path(), "vda", SLOT).unwrap();
    let stick = stick(dir.path());
    for (booted_disk, booted, major) in [(&disk, Group::A, 259), (&stick, Group::A, 8), (&stick, Group::B, 8)] {
        booted_disk.mount_root(dir.path(), if booted == Group::A { 3 } else { 4 }).unwrap();
        let layout = locate(&sysfs, &by_number()).unwrap();
        assert_eq!((layout.booted.group(), layout.disk.name.as_str()), (booted, booted_disk.name.as_str()));
        assert!(layout.slots.iter().all(|slot| slot.dev.0 == major), "{:?}", layout.slots);
    }
    // A partition of the other disk is none of ours, by whatever it is named.
    let other = table_of(&disk, dir.path()).entries[&4].guid_text();
    assert_eq!(code(locate(&sysfs, &of_root("partnum:3", &format!("partuuid:{other}")))), "disk.no-such-partition");
}

#[test]
fn claim_j2_equal_labels_are_refused_and_both_disks_named_where_labels_select_the_slots() {
    let dir = tempfile::tempdir().unwrap();
    let (sysfs, _) = machine(dir.path(), "vda", SLOT).unwrap();
    let stick = stick(dir.path());
    let error = locate(&sysfs, &by_label()).unwrap_err();
    assert_eq!(error.code(), "disk.cloned");
    for word in ["vda", "sdb", "root-a"] {
        assert!(error.to_string().contains(word), "{error}");
    }
    let one_by_label = of_root("partnum:3", "partlabel:root-b");
    assert!(locate(&sysfs, &one_by_label).unwrap_err().to_string().contains("root-b"));
    locate(&sysfs, &by_number()).expect("labels select nothing here, and no GUID is the same");
    // Labels that everybody's disks have say nothing: only those of the slots count.
    let mut table = table_of(&stick, dir.path());
    for (number, label) in [(3, "system"), (4, "home")] {
        table.entries.get_mut(&number).unwrap().label = label.into();
    }
    table.write(&stick.image(dir.path()), Copies::Both);
    locate(&sysfs, &by_label()).expect("the labels that are left are not those of our slots");
}

#[test]
fn claim_j2_one_equal_guid_of_the_disk_or_of_a_partition_is_enough() {
    let dir = tempfile::tempdir().unwrap();
    let (sysfs, disk) = machine(dir.path(), "vda", SLOT).unwrap();
    let stick = stick(dir.path());
    let (ours, theirs) = (table_of(&disk, dir.path()), table_of(&stick, dir.path()));
    let refused = |table: &Table, what: &str| {
        table.write(&stick.image(dir.path()), Copies::Both);
        let error = locate(&sysfs, &by_number()).unwrap_err();
        assert_eq!(error.code(), "disk.cloned", "{what}");
        let text = error.to_string();
        assert!(text.contains("vda") && text.contains("sdb") && text.contains(what), "{text}");
    };
    refused(&Table { guid: ours.guid, ..theirs.clone() }, "disk GUID");
    for number in 1..=5 {
        let mut table = theirs.clone();
        table.entries.get_mut(&6_u32.saturating_sub(number)).unwrap().guid = ours.entries[&number].guid;
        refused(&table, "partition GUID");
    }
    // One copy of it is enough, whether the other one is another table or none: cloned onto a larger disk, say.
    for (other, copy) in
        [(Copies::Both, Copies::Primary), (Copies::Both, Copies::Backup), (Copies::None, Copies::Primary)]
    {
        theirs.write(&stick.image(dir.path()), other);
        ours.write(&stick.image(dir.path()), copy);
        assert_eq!(code(locate(&sysfs, &by_number())), "disk.cloned", "{other:?} {copy:?}");
    }
}

#[test]
fn claim_j3_swapped_labels_are_told_by_the_loaders_word() {
    let dir = tempfile::tempdir().unwrap();
    let (sysfs, disk) = machine(dir.path(), "vda", SLOT).unwrap();
    let started = |line: &str| fs::write(dir.path().join("proc/cmdline"), line).unwrap();
    started("root=/dev/vda3 quiet bascule.group=a bascule.trial=\n");
    assert_eq!(locate(&sysfs, &by_label()).unwrap().booted.group(), Group::A);
    let mut table = table_of(&disk, dir.path());
    for (number, label) in [(3, "root-b"), (4, "root-a")] {
        table.entries.get_mut(&number).unwrap().label = label.into();
    }
    table.write(&disk.image(dir.path()), Copies::Both);
    let error = locate(&sysfs, &by_label()).unwrap_err();
    assert_eq!(error.code(), "disk.other-group");
    assert_eq!(
        error.to_string(),
        "the boot loader started group a, but the mounted root vda3 is the root slot of group b"
    );
    started("bascule.group=b bascule.trial=2 bascule.group=a");
    assert_eq!(code(locate(&sysfs, &by_label())), "disk.other-group", "two words, one of them wrong");
    // Words of others, and a loader that says nothing.
    for line in ["bascule.group=b", "bascule.group= bascule.group=c", "my.bascule.group=a bascule.groups=a", ""] {
        started(line);
        let layout = locate(&sysfs, &by_label()).unwrap();
        assert_eq!(layout.booted.group(), Group::B, "{line}: the partition that runs decides");
        only_partition_4_is_given(&layout, &sysfs);
    }
}

/// Partition 3 runs. Whatever it is called, no caller is given it, whichever group they believe to run.
fn only_partition_4_is_given(layout: &Layout, sysfs: &Sysfs) {
    for slot in &layout.slots {
        for believed in Group::ALL {
            let opened = open_target(slot, BootedGroup::proven(believed).target(), sysfs);
            let may_be = slot.partition == 4 && slot.group == believed.opposite();
            assert_eq!(opened.is_ok(), may_be, "partition {} for {believed}: {opened:?}", slot.partition);
        }
    }
}

#[test]
fn claim_j3_nothing_that_a_mounted_volume_is_made_of_is_given() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path();
    let (sysfs, _) = machine(root, "vda", SLOT).unwrap();
    let layout = locate(&sysfs, &by_number()).unwrap();
    let slot = layout.slot("root", Group::B).unwrap();
    let open = || open_target(slot, layout.booted.target(), &sysfs);
    let mountinfo = root.join("proc/self/mountinfo");
    let before = fs::read_to_string(&mountinfo).unwrap();
    let mount = |line: &str| fs::write(&mountinfo, format!("{before}{line}\n")).unwrap();
    // A RAID on the slot, a volume on the RAID, a partition of that volume: 253:1 on 253:0 on 9:0 on 259:4.
    let volume = |name: &str, dev: &str, slave: Option<(&str, &str)>| {
        let folder = root.join("sys/devices/virtual").join(name);
        fs::create_dir_all(folder.join("slaves")).unwrap();
        fs::write(folder.join("dev"), format!("{dev}\n")).unwrap();
        if let Some((name, path)) = slave {
            symlink(root.join("sys/devices").join(path), folder.join("slaves").join(name)).unwrap();
        }
        symlink(folder, root.join("sys/dev/block").join(dev)).unwrap();
    };
    volume("md0", "9:0", Some(("vda4", "vda/vda4")));
    volume("dm-0", "253:0", Some(("md0", "virtual/md0")));
    volume("dm-0/dm-0p1", "253:1", None);
    drop(open().unwrap());
    for dev in ["9:0", "253:0", "253:1"] {
        mount(&format!("40 22 {dev} / /mnt rw - ext4 /dev/mapper/x rw"));
        let error = open().unwrap_err();
        assert_eq!((error.code(), error.to_string().contains("/mnt")), ("disk.held", true), "{dev}: {error}");
        mount(&format!("40 22 {dev} / / rw - ext4 /dev/mapper/x rw"));
        assert_eq!(code(open()), "disk.not-a-target", "{dev} as the root");
    }
    // A file system with a number of its own is known by the device it was mounted from.
    mount("40 22 0:44 /sub /mnt rw - btrfs /dev/vda4 rw");
    assert_eq!(code(open()), "disk.held");
    mount("40 22 0:44 /sub /mnt rw - btrfs /dev/vda5 rw");
    drop(open().unwrap());
    // What is stacked on it and not mounted, as the kernel names it; loop devices are no holders.
    symlink(root.join("sys/devices/virtual/md0"), root.join("sys/devices/vda/vda4/holders/md0")).unwrap();
    assert!(open().unwrap_err().to_string().contains("part of md0"));
    fs::remove_file(root.join("sys/devices/vda/vda4/holders/md0")).unwrap();
    fs::create_dir_all(root.join("sys/block/loop7/loop")).unwrap();
    fs::write(root.join("sys/block/loop7/loop/backing_file"), "/dev/vda4\n").unwrap();
    assert!(open().unwrap_err().to_string().contains("part of loop7"));
    fs::write(root.join("sys/block/loop7/loop/backing_file"), "/home/image\n").unwrap();
    drop(open().unwrap());
}

#[test]
fn claim_j3_a_node_that_became_another_device_is_refused_once_it_is_open() {
    let dir = tempfile::tempdir().unwrap();
    let (sysfs, _) = machine(dir.path(), "vda", SLOT).unwrap();
    let layout = locate(&sysfs, &by_label()).unwrap();
    for (group, error) in [(Group::A, "disk.not-booted"), (Group::B, "disk.not-a-target")] {
        let slot = layout.slot("root", group).unwrap();
        fs::remove_file(&slot.device).unwrap();
        symlink("/dev/null", &slot.device).unwrap();
        let opened = match group {
            Group::A => open_booted(slot, layout.booted, &sysfs),
            Group::B => open_target(slot, layout.booted.target(), &sysfs),
        };
        assert_eq!(code(opened), error);
    }
}

#[test]
fn claim_j4_booted_from_a_stick_or_a_live_image_nothing_of_the_internal_disk_is_a_target() {
    let dir = tempfile::tempdir().unwrap();
    let (sysfs, disk) = machine(dir.path(), "vda", SLOT).unwrap();
    // A stick with one system of its own.
    let live = DiskFile {
        major: 8,
        partitions: vec![("boot".into(), SLOT), ("live".into(), SLOT)],
        ..DiskFile::of_device("sdb", SLOT)
    };
    live.lay_out(dir.path()).unwrap();
    live.mount_root(dir.path(), 2).unwrap();
    assert_eq!(code(locate(&sysfs, &by_label())), "disk.no-such-partition");
    assert_eq!(code(locate(&sysfs, &of_root("partnum:1", "partnum:3"))), "disk.no-such-partition");
    // A live image: a whole loop device, or an overlay on one.
    let loop0 = dir.path().join("sys/devices/virtual/loop0");
    fs::create_dir_all(&loop0).unwrap();
    symlink(&loop0, dir.path().join("sys/dev/block/7:0")).unwrap();
    for (dev, kind, what) in [("7:0", "squashfs", "loop0"), ("0:31", "overlay", "overlay"), ("0:40", "nfs", "nfs")] {
        mount_root(dir.path(), dev, kind, kind).unwrap();
        let error = locate(&sysfs, &by_label()).unwrap_err();
        assert_eq!(error.code(), "disk.root-not-a-partition");
        assert!(error.to_string().contains(what), "{error}");
    }
    // A stick that is a device's disk itself is a clone.
    fs::remove_file(dir.path().join("sys/block/sdb")).unwrap();
    let clone = DiskFile { name: "sdc".into(), major: 65, ..disk.clone() };
    clone.lay_out(dir.path()).unwrap();
    fs::copy(disk.image(dir.path()), clone.image(dir.path())).unwrap();
    clone.mount_root(dir.path(), 3).unwrap();
    assert_eq!(code(locate(&sysfs, &by_number())), "disk.cloned");
}

/// Decimal, as the kernel and `sgdisk` write it. To U-Boot `mmc 0:10` is the sixteenth partition: its script has numbers
/// that are the same in both.
#[test]
fn claim_j5_a_partition_number_is_decimal_and_another_form_is_refused() {
    let script = include_str!("../uboot/boot.cmd");
    let numbers = script.lines().filter_map(|line| line.trim().strip_prefix("bascule_part_")?.split_once('='));
    assert_eq!(numbers.collect::<Vec<_>>(), [("a", "3"), ("b", "4")]);
    for text in
        ["partnum:a", "partnum:0x10", "partnum:0a", "partnum:1f", "partnum: 10", "partnum:10 ", "partnum:4294967296"]
    {
        assert_eq!(code(text.parse::<bascule_boot::disk::Selector>()), "disk.selector", "{text}");
    }
    let dir = tempfile::tempdir().unwrap();
    let partitions = (1..=16).map(|number| (format!("p{number}"), SLOT)).collect();
    let disk = DiskFile { partitions, ..DiskFile::of_device("mmcblk0", SLOT) };
    disk.lay_out(dir.path()).unwrap();
    disk.mount_root(dir.path(), 16).unwrap();
    let layout = locate(&Sysfs { root: dir.path().to_owned() }, &of_root("partnum:10", "partnum:16")).unwrap();
    assert_eq!(layout.booted.group(), Group::B);
    assert!(layout.slot("root", Group::A).unwrap().device.ends_with("mmcblk0p10"));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn claim_j5_any_disk_name_with_any_two_partitions_gives_their_own_nodes(
        (kind, index) in (0_usize..7, 0_u32..40),
        count in 2_u32..32,
        picks in (any::<u32>(), any::<u32>(), any::<bool>()),
    ) {
        let letter = char::from(b'a' + u8::try_from(index % 26).unwrap());
        let (name, between) = match kind {
            0 => (format!("mmcblk{index}"), "p"),
            1 => (format!("nvme{}n{}", index / 8, index % 8 + 1), "p"),
            2 => (format!("loop{index}"), "p"),
            3 => (format!("nbd{index}"), "p"),
            4 => (format!("sd{letter}"), ""),
            5 => (format!("sda{letter}"), ""),
            _ => (format!("vd{letter}"), ""),
        };
        let a = picks.0 % count + 1;
        let b = (a + picks.1 % (count - 1)) % count + 1;
        let dir = tempfile::tempdir().unwrap();
        let partitions = (1..=count).map(|number| (format!("p{number}"), 64 << 10)).collect();
        let disk = DiskFile { partitions, ..DiskFile::of_device(&name, SLOT) };
        disk.lay_out(dir.path()).unwrap();
        // Beside it, a disk whose name begins with this one's.
        let longer = format!("{name}{}", if between.is_empty() { 'a' } else { '1' });
        let longer = DiskFile { major: 70, partitions: vec![("x".into(), SLOT)], ..DiskFile::of_device(&longer, SLOT) };
        longer.lay_out(dir.path()).unwrap();
        let (booted, number) = if picks.2 { (Group::A, a) } else { (Group::B, b) };
        disk.mount_root(dir.path(), number).unwrap();
        let sysfs = Sysfs { root: dir.path().to_owned() };
        let layout = locate(&sysfs, &of_root(&format!("partnum:{a}"), &format!("partlabel:p{b}"))).unwrap();
        prop_assert_eq!(layout.booted.group(), booted);
        for (group, number) in [(Group::A, a), (Group::B, b)] {
            let slot = layout.slot("root", group).unwrap();
            prop_assert_eq!(&slot.device, &dir.path().join("dev").join(format!("{name}{between}{number}")));
            prop_assert_eq!((slot.partition, slot.dev), (number, (259, number)));
            prop_assert_eq!(open_target(slot, layout.booted.target(), &sysfs).is_ok(), group != booted);
        }
    }

    #[test]
    fn claim_j6_a_damaged_table_gives_the_same_slots_or_none(
        damages in prop::collection::vec((any::<bool>(), 0_usize..34 * 512, prop::collection::vec(any::<u8>(), 1..64)), 1..6),
    ) {
        let dir = tempfile::tempdir().unwrap();
        let (sysfs, disk) = machine(dir.path(), "vda", SLOT).unwrap();
        let whole = locate(&sysfs, &by_label()).unwrap();
        let image = disk.image(dir.path());
        let mut bytes = fs::read(&image).unwrap();
        let end = bytes.len();
        for (at_the_end, place, new) in damages {
            let from = if at_the_end { end - 34 * 512 + place } else { place };
            for (byte, new) in bytes.iter_mut().skip(from).zip(new) {
                *byte = new;
            }
        }
        fs::write(&image, bytes).unwrap();
        match locate(&sysfs, &by_label()) {
            Ok(found) => prop_assert_eq!((found.booted, found.slots), (whole.booted, whole.slots)),
            Err(error) => prop_assert!(["disk.no-table", "disk.table-copies-differ"].contains(&error.code()), "{}", error),
        }
    }
}

#[test]
fn claim_j6_a_table_with_more_entries_than_the_usual_128_is_read_whole() {
    for sector_size in [512, 4096] {
        let dir = tempfile::tempdir().unwrap();
        let disk = DiskFile { sector_size, ..DiskFile::of_device("vda", SLOT) };
        disk.lay_out(dir.path()).unwrap();
        disk.mount_root(dir.path(), 3).unwrap();
        let mut table = table_of(&disk, dir.path());
        let moved = table.entries.remove(&4).unwrap();
        table.entries.insert(200, moved);
        table.count = 256;
        // It begins where the larger table ends now.
        table.entries.remove(&1);
        fs::remove_dir_all(dir.path().join("sys/devices/vda/vda1")).unwrap();
        table.write(&disk.image(dir.path()), Copies::Both);
        fs::write(dir.path().join("sys/devices/vda/vda4/partition"), "200\n").unwrap();
        let sysfs = Sysfs { root: dir.path().to_owned() };
        let layout = locate(&sysfs, &by_label()).unwrap();
        assert_eq!((layout.disk.copies, layout.disk.sector_size), (TableCopies::Both, sector_size));
        assert_eq!(layout.slot("root", Group::B).unwrap().partition, 200);
        open_target(layout.slot("root", Group::B).unwrap(), layout.booted.target(), &sysfs).unwrap();
    }
}

#[test]
fn claim_j6_a_header_that_asks_for_too_much_or_for_another_form_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (sysfs, disk) = machine(dir.path(), "vda", SLOT).unwrap();
    let whole = table_of(&disk, dir.path());
    let image = disk.image(dir.path());
    for (what, table) in [
        ("2^32-1 entries", Table { announced: Some(u32::MAX), ..whole.clone() }),
        ("1025 entries", Table { announced: Some(1025), ..whole.clone() }),
        ("entries of 256 bytes", Table { entry_size: 256, ..whole.clone() }),
        ("entries of no bytes", Table { entry_size: 0, ..whole.clone() }),
        ("an array beyond the disk", Table { array_at: Some(u64::MAX / 512), ..whole.clone() }),
        ("an array beyond all numbers", Table { array_at: Some(u64::MAX), ..whole.clone() }),
        ("entries with another checksum", Table { array_checksum: Some(1), ..whole.clone() }),
        ("a header with another checksum", Table { header_checksum: Some(1), ..whole.clone() }),
    ] {
        table.write(&image, Copies::Both);
        assert_eq!(code(locate(&sysfs, &by_label())), "disk.no-table", "{what}");
        whole.write(&image, Copies::Backup);
        let layout = locate(&sysfs, &by_label()).unwrap();
        assert_eq!(layout.disk.copies, TableCopies::BackupOnly, "{what}");
    }
}

#[test]
fn claim_j6_an_entry_outside_the_disk_or_over_another_one_is_refused_in_both_copies() {
    let dir = tempfile::tempdir().unwrap();
    let (sysfs, disk) = machine(dir.path(), "vda", SLOT).unwrap();
    let whole = table_of(&disk, dir.path());
    let with = |change: &dyn Fn(&mut disk_tables::Entry)| {
        let mut table = whole.clone();
        change(table.entries.get_mut(&5).unwrap());
        table.write(&disk.image(dir.path()), Copies::Both);
        code(locate(&sysfs, &by_label()))
    };
    let four = whole.entries[&4].clone();
    assert_eq!(with(&|entry| entry.first = four.last), "disk.overlap");
    assert_eq!(with(&|entry| (entry.first, entry.last) = (four.first, four.last)), "disk.overlap");
    assert_eq!(with(&|entry| entry.last = entry.first - 1), "disk.no-table");
    assert_eq!(with(&|entry| entry.last = u64::MAX), "disk.no-table");
    assert_eq!(with(&|entry| entry.first = 1), "disk.no-table");
    // Free space where the kernel has a partition, and one more than the kernel has.
    assert_eq!(with(&|entry| entry.last -= 8), "disk.table-changed");
    let mut table = whole.clone();
    table.entries.remove(&5);
    table.write(&disk.image(dir.path()), Copies::Both);
    assert_eq!(code(locate(&sysfs, &by_label())), "disk.table-changed");
}

#[test]
fn claim_j6_no_byte_of_the_table_is_ever_written() {
    let dir = tempfile::tempdir().unwrap();
    let (sysfs, disk) = machine(dir.path(), "vda", SLOT).unwrap();
    let image = disk.image(dir.path());
    table_of(&disk, dir.path()).write(&image, Copies::Garbage);
    let before = fs::read(&image).unwrap();
    let layout = locate(&sysfs, &by_label()).unwrap();
    assert_eq!(layout.disk.copies, TableCopies::BackupOnly);
    let mut file = open_target(layout.slot("root", Group::B).unwrap(), layout.booted.target(), &sysfs).unwrap();
    file.write_all(b"new system").unwrap();
    assert_eq!(fs::read(&image).unwrap(), before);
}

#[test]
fn claim_j7_a_table_that_was_changed_on_the_disk_between_plan_and_write_is_seen_when_the_slot_is_opened() {
    let dir = tempfile::tempdir().unwrap();
    let (sysfs, disk) = machine(dir.path(), "vda", SLOT).unwrap();
    let layout = locate(&sysfs, &by_label()).unwrap();
    let slot = layout.slot("root", Group::B).unwrap();
    let whole = table_of(&disk, dir.path());
    let image = disk.image(dir.path());
    let opened = |change: &dyn Fn(&mut Table)| {
        let mut table = whole.clone();
        change(&mut table);
        // The kernel goes on with the old one, as it does while the disk is in use.
        table.write(&image, Copies::Both);
        open_target(slot, layout.booted.target(), &sysfs)
    };
    let four = |table: &mut Table| table.entries.remove(&4).unwrap();
    drop(opened(&|_| {}).unwrap());
    drop(opened(&|table| table.entries.get_mut(&5).unwrap().label = "mine".into()).unwrap());
    assert_eq!(code(opened(&|table| drop(four(table)))), "disk.table-changed", "deleted");
    assert_eq!(code(opened(&|table| table.entries.get_mut(&4).unwrap().last -= 1)), "disk.table-changed", "smaller");
    assert_eq!(code(opened(&|table| table.entries.get_mut(&4).unwrap().first += 1)), "disk.table-changed", "moved");
    assert_eq!(
        code(opened(&|table| table.entries.get_mut(&4).unwrap().guid[0] ^= 1)),
        "disk.table-changed",
        "made anew"
    );
    let renumbered = |table: &mut Table| {
        let entry = four(table);
        table.entries.insert(9, entry);
    };
    assert_eq!(code(opened(&renumbered)), "disk.table-changed", "renumbered");
    whole.write(&image, Copies::None);
    assert_eq!(code(open_target(slot, layout.booted.target(), &sysfs)), "disk.no-table", "wiped");
    // The kernel's own table: resized with the disk's, and renumbered.
    whole.write(&image, Copies::Both);
    fs::write(dir.path().join("sys/devices/vda/vda4/partition"), "9\n").unwrap();
    assert_eq!(code(open_target(slot, layout.booted.target(), &sysfs)), "disk.table-changed");
}

#[test]
fn claim_j8_a_medium_that_is_plugged_in_while_an_update_runs_is_never_written() {
    let dir = tempfile::tempdir().unwrap();
    let (sysfs, disk) = machine(dir.path(), "vda", SLOT).unwrap();
    let layout = locate(&sysfs, &by_label()).unwrap();
    let slot = layout.slot("root", Group::B).unwrap();
    // A clone: labels, partition GUIDs and disk GUID are the same.
    let stick = stick(dir.path());
    fs::copy(disk.image(dir.path()), stick.image(dir.path())).unwrap();
    let nodes = || {
        [0, 1, 2, 3, 4, 5].map(|number| {
            let name = if number == 0 { "sdb".into() } else { stick.partition_name(number) };
            fs::read(dir.path().join("dev").join(name)).unwrap()
        })
    };
    let before = nodes();
    for piece in ["first", "after it was plugged in"] {
        let mut file = open_target(slot, layout.booted.target(), &sysfs).unwrap();
        file.write_all(piece.as_bytes()).unwrap();
        assert!(fs::read(dir.path().join("dev/vda4")).unwrap().starts_with(piece.as_bytes()));
    }
    assert_eq!(nodes(), before, "the stick was written");
    let error = locate(&sysfs, &by_label()).unwrap_err();
    assert!(error.code() == "disk.cloned" && error.to_string().contains("sdb"), "the next start refuses: {error}");
    // The disk goes, and the stick gets its device number: the same number, the same place, another disk.
    let number = dir.path().join("sys/dev/block/259:4");
    fs::remove_file(&number).unwrap();
    symlink("../../devices/sdb/sdb4", &number).unwrap();
    let error = open_target(slot, layout.booted.target(), &sysfs).unwrap_err();
    assert_eq!(error.code(), "disk.not-a-target");
    assert!(error.to_string().contains("not on the disk of the mounted root"), "{error}");
    assert_eq!(nodes(), before);
}

#[test]
fn the_partition_below_a_path_is_told_by_its_guid() {
    let dir = tempfile::tempdir().unwrap();
    let (sysfs, disk) = machine(dir.path(), "vda", SLOT).unwrap();
    let table = table_of(&disk, dir.path());
    let guid = |path: &str| partition_guid(&sysfs, Path::new(path)).unwrap();
    let of = |number: u32| Some(table.entries[&number].guid_text());
    assert_eq!(guid("/boot/efi"), of(3), "it is a folder of the root");
    let mountinfo = dir.path().join("proc/self/mountinfo");
    let mounts = fs::read_to_string(&mountinfo).unwrap();
    let lines = ["40 22 0:50 / /boot/efi rw - autofs x rw", "41 40 259:1 / /boot/efi rw - vfat /dev/vda1 rw"];
    fs::write(&mountinfo, format!("{mounts}{}\n", lines.join("\n"))).unwrap();
    assert_eq!((guid("/boot/efi"), guid("/boot/efi/EFI"), guid("/boot/efi2")), (of(1), of(1), of(3)));
    assert_eq!(guid("/proc/1"), None);
}
