//! A group's boot entry must start the kernel that is written for the group, from the partition that it is written to.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test stops where it fails"
)]

mod efi_rig;

use bascule_boot::efi::option::{LoadOption, Program};
use bascule_core::{BootedGroup, Group};
use efi_rig::{B, DRIVE, Firmware, entry, option};

/// The partition of the rig's options.
const GUID: &str = "12345678-9abc-def0-0102-030405060708";

fn program(partition: &str, file: &str) -> Program {
    Program { partition: partition.into(), file: file.into() }
}

fn check(firmware: &Firmware, wanted: &Program) -> Result<(), String> {
    let before = firmware.files();
    let checked = firmware.backend().check_program(BootedGroup::proven(Group::A).target(), wanted);
    assert_eq!(firmware.files(), before, "a look changed something");
    checked.map_err(|error| format!("[{}] {error}", error.code()))
}

#[test]
fn an_entry_that_starts_the_file_is_taken_whatever_its_case() {
    let firmware = Firmware::factory();
    for file in ["\\bascule\\linux-b.efi", "\\BASCULE\\LINUX-B.EFI"] {
        assert_eq!(check(&firmware, &program(GUID, file)), Ok(()));
    }
    assert_eq!(check(&firmware, &program(&GUID.to_uppercase(), "\\bascule\\linux-b.efi")), Ok(()));
}

#[test]
fn an_entry_that_starts_another_file_or_another_disk_s_is_refused_and_both_are_named() {
    let firmware = Firmware::factory();
    let other_disk = "12345678-9abc-def0-0102-030405060709";
    for (wanted, found) in [
        (program(GUID, "\\bascule\\linux-b"), "\\bascule\\linux-b.efi"),
        (program(other_disk, "\\bascule\\linux-b.efi"), GUID),
    ] {
        let error = check(&firmware, &wanted).unwrap_err();
        assert!(error.starts_with("[boot.efi-other-program]") && error.contains("Boot00AF"), "{error}");
        assert!(error.contains(found) && error.contains(&wanted.to_string()), "{error}");
    }
    // The opposite group's kernel: a copied command line, the wrong letter.
    let of_a = LoadOption { description: "Bascule b".into(), ..option(Group::A) };
    firmware.put(&entry(B), 7, &of_a.to_bytes().unwrap());
    let error = check(&firmware, &program(GUID, "\\bascule\\linux-b.efi")).unwrap_err();
    assert!(error.contains("linux-a.efi") && error.contains("linux-b.efi"), "{error}");
    // No path of a file at all, such as a program in the firmware.
    let none = LoadOption { paths: vec![0x7f, 0xff, 4, 0], ..option(Group::B) };
    firmware.put(&entry(B), 7, &none.to_bytes().unwrap());
    let error = check(&firmware, &program(GUID, "\\bascule\\linux-b.efi")).unwrap_err();
    assert!(error.contains("starts no file on a partition with a GUID"), "{error}");
}

#[test]
fn a_lost_or_doubled_entry_is_refused() {
    let firmware = Firmware::factory();
    firmware.put(&entry(DRIVE), 7, &option(Group::B).to_bytes().unwrap());
    let wanted = program(GUID, "\\bascule\\linux-b.efi");
    assert!(check(&firmware, &wanted).unwrap_err().starts_with("[boot.efi-entry]"));
    firmware.remove(&entry(DRIVE));
    firmware.remove(&entry(B));
    assert!(check(&firmware, &wanted).unwrap_err().starts_with("[boot.efi-entry]"));
}
