//! Unified kernel images: where the next one goes, which ones are refused, and that nothing starts from one that is being written.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test stops where it fails"
)]

mod sdboot_rig;

use std::fs::{self, File};

use bascule_boot::BootBackend;
use bascule_boot::sdboot::names::Kind;
use bascule_boot::sdboot::simulator::Renaming;
use bascule_boot::sdboot::{ImagePlace, kind_on};
use bascule_core::{BootStatus, BootedGroup, Group, Settings, TargetGroup, Tries};
use sdboot_rig::{Esp, contents, image};

const NAMED: &str = "ID=bascule\nPRETTY_NAME=\"Bascule 2.0\"\n";
const ROOT: &str = "6c1b0a4f-33a3-4a39-ae8c-0d1b3b1e7c02";

fn a() -> BootedGroup {
    BootedGroup::proven(Group::A)
}

fn b() -> TargetGroup {
    a().target()
}

/// The code of a refusal, and its last words.
fn refused(esp: &Esp, bytes: &[u8]) -> Option<String> {
    let path = esp.root().join("new-image");
    fs::write(&path, bytes).unwrap();
    let checked = esp.backend().check_image(b(), &File::open(&path).unwrap(), ROOT);
    checked.err().map(|error| {
        assert_eq!((error.code(), error.hint().is_empty()), ("boot.image", false), "{error}");
        error.to_string()
    })
}

#[test]
fn which_kind_of_entries_a_partition_has_is_seen_by_those_that_the_loader_lists() {
    let found = |esp: &Esp| kind_on(&esp.root()).map_err(|error| error.code());
    for kind in Kind::ALL {
        let other = if kind == Kind::Text { Kind::Image } else { Kind::Text };
        let esp = Esp::factory(kind);
        assert_eq!(found(&esp), Ok(Some(kind)));
        // What others have there, and what is not listed, decides nothing.
        for name in ["arch", "bascule-recovery", "bascule-0-b.off"] {
            fs::write(esp.root().join(other.directory()).join(name), "").unwrap();
        }
        assert_eq!(found(&esp), Ok(Some(kind)));
        for name in [format!("bascule-7-a{}", other.suffix()), format!("bascule-7-c+1{}", other.suffix())] {
            let path = esp.root().join(other.directory()).join(name);
            fs::write(&path, "").unwrap();
            assert_eq!(found(&esp), Err("boot.mixed-entries"), "{}", path.display());
            fs::remove_file(path).unwrap();
        }
        esp.set(&["bascule-1-a.off"]);
        fs::remove_dir_all(esp.root().join(other.directory())).unwrap();
        assert_eq!(found(&esp), Ok(Some(kind)), "nothing is listed");
        fs::remove_dir_all(esp.entries()).unwrap();
        assert_eq!(found(&esp), Ok(Some(kind)), "the copies are left");
        fs::remove_dir_all(esp.root().join("bascule")).unwrap();
        assert_eq!(found(&esp), Ok(None));
        fs::remove_file(esp.root().join("loader/loader.conf")).unwrap();
        assert_eq!(found(&esp), Err("boot.not-the-loaders"));
    }
}

#[test]
fn an_image_goes_into_the_file_that_the_loader_does_not_list_and_nowhere_while_it_lists_one() {
    let esp = Esp::factory(Kind::Image);
    let (root, backend) = (esp.root(), esp.backend());
    let place = |name: &str, copy: Option<&str>| {
        let (file, copy) = (esp.entries().join(name), copy.map(|copy| root.join(copy)));
        Ok(ImagePlace { file, copy })
    };
    let found = || backend.image_place(b()).map_err(|error| error.code());
    assert_eq!(found(), place("bascule-0-b.off", Some("bascule/b.efi")));
    fs::remove_file(root.join("bascule/b.efi")).unwrap();
    assert_eq!(found(), place("bascule-0-b.off", None));
    // An empty file is what a factory leaves where the group has nothing yet.
    fs::write(esp.entries().join("bascule-0-b.off"), "").unwrap();
    assert_eq!(found(), place("bascule-0-b.off", None));
    for listed in ["bascule-5-b+3-0.efi", "bascule-5-b.efi", "bascule-5-b+0-3.efi"] {
        // Neither with nor without a file of the group that it does not list.
        for beside in [&["bascule-4-a.efi", listed, "bascule-3-b.off"][..], &["bascule-4-a.efi", listed]] {
            esp.set(beside);
            assert_eq!(found(), Err("boot.beyond-repair"), "{beside:?}");
        }
        backend.mark_unbootable(b()).unwrap();
        assert_eq!(found(), place("bascule-5-b.off", None), "{listed}");
    }
    esp.set(&["bascule-4-a.efi"]);
    assert_eq!(found(), Err("boot.damaged"), "there is no entry of the group");
    let texts = Esp::factory(Kind::Text);
    assert_eq!(texts.backend().image_place(b()).unwrap_err().code(), "boot.beyond-repair");
}

#[test]
fn an_image_is_refused_that_the_loader_would_not_start_as_the_group_s() {
    let esp = Esp::factory(Kind::Image);
    let whole = contents(Kind::Image, Some(Group::B));
    let words = |words: &str| refused(&esp, &image(NAMED, words));
    assert_eq!(words("bascule.group=b"), None);
    assert_eq!(words(&format!("quiet root=PARTUUID={} bascule.group=b\n", ROOT.to_uppercase())), None);
    assert_eq!(words("root=/dev/vda3 bascule.group=b"), None, "what cannot be compared");
    let cases = [
        (words(""), "does not have bascule.group=b, once"),
        (words("bascule.group=a"), "does not have bascule.group=b, once"),
        (words("bascule.group=b bascule.group=a"), "does not have bascule.group=b, once"),
        (words("bascule.group=b bascule.trial=3"), "no tries can be told there"),
        (words("root=PARTUUID=0-a bascule.group=b"), "and the root of group b is 6c1b0a4f"),
        (refused(&esp, b"MZ"), "it is no EFI program"),
        (refused(&esp, &vec![0; 4096]), "it is no EFI program"),
        (refused(&esp, &image("VERSION_ID=2\n", "bascule.group=b")), "its os-release has no name"),
        (refused(&esp, &whole[..whole.len() - 1]), "it ends before its last section does"),
        (refused(&esp, &without(&whole, b".linux\0\0")), "it has no kernel"),
        (refused(&esp, &without(&whole, b".cmdline")), "it is no unified kernel image"),
        // The loader sorts by these before it looks at names: an older one would never be tried.
        (refused(&esp, &image("ID=bascule\nNAME=x\nVERSION_ID=2\n", "bascule.group=b")), "another ID or VERSION"),
        (refused(&esp, &image("ID=other\nNAME=x\n", "bascule.group=b")), "another ID or VERSION"),
    ];
    for (found, expected) in cases {
        let found = found.unwrap_or_default();
        assert!(found.starts_with("the unified kernel image of group b cannot be taken: "), "{found}");
        assert!(found.contains(expected), "{expected}: {found}");
    }
}

/// The same image with another name in the place of this section's.
fn without(bytes: &[u8], name: &[u8; 8]) -> Vec<u8> {
    let at = bytes.windows(8).position(|window| window == name).unwrap();
    let mut bytes = bytes.to_vec();
    bytes[at..at + 8].copy_from_slice(b".others\0");
    bytes
}

#[test]
fn a4_an_image_that_is_being_written_is_never_started_and_the_running_group_s_is_not_touched() {
    let new = image(NAMED, &format!("root=PARTUUID={ROOT} bascule.group=b {}", "x".repeat(3000)));
    for (old, lists) in
        [(Vec::new(), "bascule-3-b.off"), (contents(Kind::Image, Some(Group::B)), "bascule-5-b+0-3.efi")]
    {
        let esp = Esp::factory(Kind::Image);
        fs::remove_file(esp.root().join("bascule/b.efi")).unwrap();
        esp.set(&["bascule-4-a.efi", lists]);
        fs::write(esp.entries().join(lists), &old).unwrap();
        let running = fs::read(esp.entries().join("bascule-4-a.efi")).unwrap();
        let backend = esp.backend();
        if !lists.ends_with(".off") {
            backend.mark_unbootable(b()).unwrap();
        }
        let file = backend.image_place(b()).unwrap().file;
        for done in (0..=new.len()).step_by(512) {
            // In place: what was not reached yet is still the old one.
            let torn = [&new[..done], old.get(done..).unwrap_or_default()].concat();
            fs::write(&file, torn).unwrap();
            assert_eq!(esp.start(Renaming::Works), Some(Group::A), "{done}");
            let view = backend.view(a()).unwrap();
            let seen = (view.settings, view.primary, view.b);
            assert_eq!(seen, (Settings::Intact, Group::A, BootStatus::Unbootable), "{done}");
            // Cut off here, the next attempt has the same place.
            backend.mark_unbootable(b()).unwrap();
            assert_eq!(backend.image_place(b()).unwrap().file, file, "{done}");
        }
        fs::write(&file, &new).unwrap();
        backend.activate(b(), Tries::DEFAULT).unwrap();
        for _ in 0..3 {
            assert_eq!(esp.start(Renaming::Works), Some(Group::B));
        }
        assert_eq!(esp.start(Renaming::Works), Some(Group::A), "its tries are used up");
        assert_eq!(fs::read(esp.entries().join("bascule-4-a.efi")).unwrap(), running);
        backend.mark_unbootable(b()).unwrap();
        assert_eq!(fs::read(backend.image_place(b()).unwrap().file).unwrap(), new, "every name was of one file");
    }
}
