//! The files of a new device's boot partition, and the text of an entry: byte for byte, and written so that a cut is safe.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test stops where it fails"
)]

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;

use bascule_boot::sdboot::LOADER_CONF;
use bascule_boot::sdboot::names::Kind;
use bascule_boot::sdboot::partition::{Kernel, SecondGroup, factory_files, factory_images};
use bascule_boot::sdboot::simulator::{self, Renaming};
use bascule_boot::{BootBackend, SdBootBackend};
use bascule_core::{BootStatus, BootedGroup, Group, Settings, TargetGroup, Tries};

const TRACED: &str = "BASCULE_TRACED_PARTITION";

fn kernel(version: &str) -> Kernel {
    Kernel::new(&format!("Bascule {version}"), "/bascule/linux", "root=PARTUUID=1-2 rootwait panic=-1 quiet").unwrap()
}

/// A new device in a folder.
fn device(second: SecondGroup) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for (path, bytes) in factory_files(&kernel("1"), &kernel("1"), second) {
        fs::create_dir_all(dir.path().join(&path).parent().unwrap()).unwrap();
        fs::write(dir.path().join(path), bytes).unwrap();
    }
    fs::write(dir.path().join("bascule/linux"), "kernel").unwrap();
    dir
}

fn backend(root: &Path) -> SdBootBackend {
    SdBootBackend::new(root.to_owned(), Kind::Text)
}

fn started(root: &Path) -> Option<Group> {
    simulator::start(root, Renaming::Works).unwrap().started.and_then(|entry| entry.group)
}

fn target() -> TargetGroup {
    BootedGroup::proven(Group::A).target()
}

#[test]
fn a_new_device_has_exactly_these_files() {
    let text = |group: &str| {
        format!(
            "title Bascule 1 ({group})\nsort-key bascule\nlinux /bascule/linux\n\
             options root=PARTUUID=1-2 rootwait panic=-1 quiet bascule.group={group}\n"
        )
    };
    let files = |second: &str| {
        let files = [
            ("loader/loader.conf", LOADER_CONF.to_owned()),
            ("loader/entries/bascule-1-a.conf", text("a")),
            ("bascule/a.conf", text("a")),
            (second, text("b")),
            ("bascule/b.conf", text("b")),
        ];
        files.map(|(path, text)| (path.to_owned(), text.into_bytes())).to_vec()
    };
    let (a, b) = (kernel("1"), kernel("1"));
    assert_eq!(factory_files(&a, &b, SecondGroup::default()), files("loader/entries/bascule-0-b.off"));
    assert_eq!(factory_files(&a, &b, SecondGroup::Filled), files("loader/entries/bascule-0-b.conf"));
}

#[test]
fn a_new_device_with_unified_kernel_images_has_exactly_these_files() {
    let files = |second: &str, image: &str| {
        let files = [("loader/loader.conf", LOADER_CONF), ("EFI/Linux/bascule-1-a.efi", "image a"), (second, image)];
        files.map(|(path, text)| (path.to_owned(), text.as_bytes().to_vec())).to_vec()
    };
    assert_eq!(factory_images(b"image a".to_vec(), None), files("EFI/Linux/bascule-0-b.off", ""));
    let both = factory_images(b"image a".to_vec(), Some(b"image b".to_vec()));
    assert_eq!(both, files("EFI/Linux/bascule-0-b.efi", "image b"));
}

#[test]
fn a_new_device_starts_group_a_and_takes_its_first_update() {
    for (second, status) in [(SecondGroup::Empty, BootStatus::Unbootable), (SecondGroup::Filled, BootStatus::Good)] {
        let dir = device(second);
        let (root, backend) = (dir.path(), backend(dir.path()));
        let view = backend.view(BootedGroup::proven(Group::A)).unwrap();
        assert_eq!(
            (view.settings, view.primary, view.a, view.b),
            (Settings::Intact, Group::A, BootStatus::Good, status)
        );
        assert_eq!(started(root), Some(Group::A));
        backend.mark_unbootable(target()).unwrap();
        // Another version in the title: the names decide all the same.
        backend.write_entry(target(), &kernel("2")).unwrap();
        assert_eq!(started(root), Some(Group::A));
        backend.activate(target(), Tries::new(1).unwrap()).unwrap();
        assert_eq!(started(root), Some(Group::B));
        assert_eq!(started(root), Some(Group::A), "the trial is exhausted");
    }
}

#[test]
fn where_the_loaders_configuration_is_lost_ours_come_before_entries_without_a_sort_key() {
    let dir = device(SecondGroup::Filled);
    fs::write(dir.path().join("loader/entries/zz-vendor.conf"), "title Vendor\nlinux /bascule/linux\n").unwrap();
    fs::remove_file(dir.path().join("loader/loader.conf")).unwrap();
    assert_eq!(started(dir.path()), Some(Group::A));
}

#[test]
fn what_the_loader_or_the_kernel_would_read_differently_is_refused() {
    let longest = "x".repeat(2047 - " bascule.group=a".len());
    assert!(Kernel::new("t", "/l", &longest).is_ok());
    let cases = [
        ("", "/l", "o"),
        ("t\nlinux /evil", "/l", "o"),
        ("\"t\"", "/l", "o"),
        ("t ", "/l", "o"),
        (&longest[..256], "/l", "o"),
        ("t", "", "o"),
        ("t", "l", "o"),
        ("t", "/", "o"),
        ("t", "//l", "o"),
        ("t", "/a/../l", "o"),
        ("t", "/a\\l", "o"),
        ("t", "/\"l\"", "o"),
        ("t", "/l\roptions x", "o"),
        ("t", "/l", ""),
        ("t", "/l", "o\noptions bascule.group=b"),
        ("t", "/l", "o\0"),
        ("t", "/l", " o"),
        ("t", "/l", "quiet bascule.group=b"),
        ("t", "/l", "bascule.trial=3 quiet"),
        ("t", "/l", &format!("{longest}x")),
    ];
    for (title, linux, options) in cases {
        let fault = Kernel::new(title, linux, options).unwrap_err();
        assert!(!fault.to_string().ends_with('.'), "{fault}");
    }
    // A value in double quotes loses them to the loader; ours never ends with one.
    let quoted = Kernel::new("t", "/l", "\"a b\"").unwrap().entry(Group::B);
    assert!(quoted.ends_with("options \"a b\" bascule.group=b\n"), "{quoted}");
}

#[test]
fn an_entry_is_overwritten_in_place_and_so_is_its_copy() {
    let dir = device(SecondGroup::Empty);
    let (entry, copy) = (dir.path().join("loader/entries/bascule-0-b.off"), dir.path().join("bascule/b.conf"));
    let file = fs::metadata(&entry).unwrap().ino();
    for version in ["a longer name than before", "2", "2"] {
        backend(dir.path()).write_entry(target(), &kernel(version)).unwrap();
        let text = kernel(version).entry(Group::B);
        assert_eq!(fs::read_to_string(&entry).unwrap(), text);
        assert_eq!(fs::read_to_string(&copy).unwrap(), text);
        assert_eq!(fs::metadata(&entry).unwrap().ino(), file);
    }
    // Copies are optional: none is made where there was none.
    fs::remove_file(&copy).unwrap();
    backend(dir.path()).write_entry(target(), &kernel("3")).unwrap();
    assert!(!copy.exists());
    assert_eq!(fs::read_to_string(dir.path().join("bascule/a.conf")).unwrap(), kernel("1").entry(Group::A));
}

#[test]
fn an_entry_that_the_loader_may_start_is_never_written() {
    let dir = device(SecondGroup::Filled);
    let (backend, root) = (backend(dir.path()), dir.path());
    let refused = |listed: &str, code: &str| {
        let path = root.join("loader/entries").join(listed);
        let before = fs::read(&path).unwrap();
        assert_eq!(backend.write_entry(target(), &kernel("2")).unwrap_err().code(), code, "{listed}");
        assert_eq!(fs::read(&path).unwrap(), before, "{listed}");
        assert_eq!(fs::read(root.join("bascule/b.conf")).unwrap(), kernel("1").entry(Group::B).as_bytes(), "{listed}");
    };
    refused("bascule-0-b.conf", "boot.beyond-repair");
    // The same with a file beside it that is not listed, and that could be taken for the one to write.
    fs::write(root.join("loader/entries/bascule-9-b.off"), "").unwrap();
    refused("bascule-0-b.conf", "boot.beyond-repair");
    fs::remove_file(root.join("loader/entries/bascule-9-b.off")).unwrap();
    backend.activate(target(), Tries::DEFAULT).unwrap();
    refused("bascule-2-b+3-0.conf", "boot.beyond-repair");
    // Damaged names are rebuilt first.
    backend.mark_unbootable(target()).unwrap();
    fs::copy(root.join("loader/entries/bascule-1-a.conf"), root.join("loader/entries/bascule-7-a.conf")).unwrap();
    refused("bascule-2-b.off", "boot.damaged");
    let images = SdBootBackend::new(root.to_owned(), Kind::Image);
    assert_eq!(images.write_entry(target(), &kernel("2")).unwrap_err().code(), "boot.beyond-repair");
}

#[test]
fn a_cut_at_any_byte_leaves_the_booted_group_and_a_text_that_can_be_written_again() {
    let dir = device(SecondGroup::Empty);
    let entry = dir.path().join("loader/entries/bascule-0-b.off");
    let (old, new) = (kernel("1").entry(Group::B), kernel("2").entry(Group::B));
    for cut in 0..=new.len() {
        fs::write(&entry, [&new.as_bytes()[..cut], old.as_bytes().get(cut..).unwrap_or_default()].concat()).unwrap();
        assert_eq!(started(dir.path()), Some(Group::A));
        fs::write(&entry, &new[..cut]).unwrap();
        assert_eq!(started(dir.path()), Some(Group::A));
    }
    backend(dir.path()).write_entry(target(), &kernel("2")).unwrap();
    assert_eq!(fs::read_to_string(&entry).unwrap(), new);
}

/// Not a test of its own: the traced half of the next one.
#[test]
fn traced_call() {
    let Ok(root) = std::env::var(TRACED) else { return };
    let error = backend(root.as_ref()).write_entry(target(), &kernel("2")).err();
    println!("ended with {:?}", error.map(|error| error.code()));
}

/// The calls on the entry of `b` and its copy, in order, and what the act ended with.
fn traced(root: &Path, options: &[&str]) -> Option<(Vec<String>, String)> {
    let log = root.join("strace");
    let mut command = Command::new("strace");
    command.args(["-f", "-y", "-e", "trace=openat,pwrite64,ftruncate,fsync,pread64,fadvise64,rename,unlink"]);
    command.args(options).arg("-o").arg(&log).arg(std::env::current_exe().unwrap());
    let Ok(output) = command.args(["--exact", "traced_call", "--nocapture"]).env(TRACED, root).output() else {
        println!("skipped: strace is not installed");
        return None;
    };
    let log = fs::read_to_string(&log).unwrap_or_default();
    if log.is_empty() {
        println!("skipped: strace cannot trace here: {}", String::from_utf8_lossy(&output.stderr));
        return None;
    }
    let effect = |line: &str| -> Option<String> {
        let (name, rest) = line.split_once(' ')?.1.trim_start().split_once('(')?;
        let file = ["bascule-0-b.off", "bascule/b.conf"].into_iter().find(|file| rest.contains(file))?;
        let how = match name {
            // A look at what is there.
            "openat" if rest.contains("O_RDONLY") => return None,
            "openat" => ["O_CREAT", "O_TRUNC", "O_DIRECT", "O_NOFOLLOW"].into_iter().filter(|flag| rest.contains(flag)),
            _ => return Some(format!("{name} {file}")),
        };
        Some(format!("open {file} {}", how.collect::<Vec<_>>().join(" ")))
    };
    let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
    let ended = stdout.split("ended with ").nth(1).unwrap_or(&stdout).lines().next().unwrap_or_default().to_owned();
    Some((log.lines().filter_map(effect).collect(), ended))
}

#[test]
fn an_entry_is_written_in_place_synced_and_read_back_before_its_copy_is_touched() {
    let dir = device(SecondGroup::Empty);
    let Some((calls, ended)) = traced(dir.path(), &[]) else { return };
    let written = |file: &str| {
        [
            "open FILE O_NOFOLLOW",
            "pwrite64 FILE",
            "ftruncate FILE",
            "fsync FILE",
            "open FILE O_DIRECT O_NOFOLLOW",
            "pread64 FILE",
        ]
        .map(|call| call.replace("FILE", file))
    };
    let expected = [written("bascule-0-b.off"), written("bascule/b.conf")].concat();
    // Where the file system knows no direct reading, the pages are dropped.
    if !calls.iter().any(|call| call.starts_with("fadvise64")) {
        assert_eq!(calls, expected);
    }
    assert_eq!(ended, "None");
    let lost = format!("pwrite64:retval={}:when=1", kernel("2").entry(Group::B).len());
    for (spoil, error) in [
        ("pwrite64:error=EIO:when=1", "boot.write"),
        ("ftruncate:error=ENOSPC:when=1", "boot.write"),
        ("fsync:error=EIO:when=1", "boot.write"),
        ("pread64:error=EIO:when=1", "boot.read"),
        ("pread64:retval=0:when=1", "boot.read-back"),
        (&lost, "boot.read-back"),
        ("fsync:error=EIO:when=2", "boot.write"),
    ] {
        let dir = device(SecondGroup::Empty);
        let (_, ended) = traced(dir.path(), &["-e", &format!("inject={spoil}")]).unwrap();
        assert_eq!(ended, format!("Some(\"{error}\")"), "{spoil}");
        assert_eq!(started(dir.path()), Some(Group::A), "{spoil}");
    }
}
