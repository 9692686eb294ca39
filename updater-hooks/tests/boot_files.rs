//! Boot files: what a set is made of, what is refused before the first write, and what a kill at any moment leaves behind.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test stops where it fails"
)]

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use bascule_core::Group;
use bascule_hooks::boot_files::{Installed, MOST_FILES, check_mounted};
use bascule_hooks::{BootFileError, BootFileSet, BootImage, KeepList, SetPlaces};

const FILES: &str = "usr/lib/bascule/boot/files";
const HOME: &str = "BASCULE_BOOT_FILES_HOME";

/// A prepared root and a boot partition in a folder; group a runs, group b is prepared.
struct Device {
    home: PathBuf,
    _dir: Option<tempfile::TempDir>,
}

impl Device {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let device = Device { home: dir.path().to_owned(), _dir: Some(dir) };
        device.put("root/boot/vmlinuz", "kernel 2");
        device.put("esp/bascule/a/linux", "kernel 1");
        device
    }

    fn path(&self, path: &str) -> PathBuf {
        self.home.join(path)
    }

    fn put(&self, path: &str, bytes: impl AsRef<[u8]>) {
        let path = self.path(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }

    fn image_has(&self, name: &str, bytes: impl AsRef<[u8]>) {
        self.put(&format!("root/{FILES}/{name}"), bytes);
    }

    fn collect(&self, keep: &[&str]) -> Result<BootFileSet, BootFileError> {
        let (root, running, target) = (self.path("root"), self.path("esp/bascule/a"), self.path("esp/bascule/b"));
        let places = SetPlaces { root: &root, running: &running, target: &target };
        BootFileSet::collect(places, &KeepList::new(keep.iter().copied()).unwrap())
    }

    fn install(&self, keep: &[&str]) -> Result<Installed, BootFileError> {
        self.collect(keep)?.install()
    }

    fn install_image(&self) -> Result<Installed, BootFileError> {
        let (to, copy) = (self.path("esp").join(OFF), self.path("esp").join(COPY));
        let copy = Some(copy.as_path()).filter(|copy| copy.exists());
        BootImage::find(&self.path("root"), Group::B)?.install(&to, copy)
    }

    /// Every file and folder below, files with their bytes.
    fn tree(&self, folder: &str) -> BTreeMap<String, Option<Vec<u8>>> {
        fn walk(folder: &Path, prefix: &str, found: &mut BTreeMap<String, Option<Vec<u8>>>) {
            for entry in fs::read_dir(folder).into_iter().flatten() {
                let path = entry.unwrap().path();
                let name = format!("{prefix}{}", path.file_name().unwrap().to_string_lossy());
                if path.is_dir() {
                    walk(&path, &format!("{name}/"), found);
                    found.insert(name, None);
                } else {
                    found.insert(name, Some(fs::read(&path).unwrap()));
                }
            }
        }
        let mut found = BTreeMap::new();
        walk(&self.path(folder), "", &mut found);
        found
    }
}

fn files(list: &[(&str, Option<&str>)]) -> BTreeMap<String, Option<Vec<u8>>> {
    list.iter().map(|(name, text)| ((*name).to_owned(), text.map(|text| text.as_bytes().to_vec()))).collect()
}

#[test]
fn a_set_is_the_kernel_the_images_files_and_what_is_kept_and_nothing_else() {
    let device = Device::new();
    device.image_has("board.dtb", "tree 2");
    device.image_has("overlays/site-1.dtbo", "the image's");
    device.image_has("config.txt", "the image's");
    device.put("esp/bascule/a/overlays/site-1.dtbo", "the device's");
    device.put("esp/bascule/a/CONFIG.TXT", "the device's");
    device.put("esp/bascule/a/board.dtb", "tree 1");
    device.put("esp/bascule/b/linux", "a longer kernel of some earlier time");
    device.put("esp/bascule/b/old/deep/file", "left over");
    device.put("esp/bascule/b/overlays", "a file where a folder has to be");
    let running = device.tree("esp/bascule/a");
    let installed = device.install(&["overlays/site-*.dtbo", "config.txt"]).unwrap();
    assert_eq!((installed.files, installed.written), (4, 4));
    let expected = [
        ("CONFIG.TXT", Some("the device's")),
        ("board.dtb", Some("tree 2")),
        ("linux", Some("kernel 2")),
        ("overlays", None),
        ("overlays/site-1.dtbo", Some("the device's")),
    ];
    assert_eq!(device.tree("esp/bascule/b"), files(&expected));
    assert_eq!(device.tree("esp/bascule/a"), running, "the running group's set changed");
}

#[test]
fn what_is_there_is_not_written_again() {
    let device = Device::new();
    device.image_has("board.dtb", "tree 2");
    device.install(&[]).unwrap();
    let about = |name: &str| {
        let about = fs::metadata(device.path("esp/bascule/b").join(name)).unwrap();
        (about.ino(), about.mtime(), about.mtime_nsec())
    };
    let before = (about("linux"), about("board.dtb"));
    assert_eq!(device.install(&[]).unwrap(), Installed { files: 2, written: 0, bytes: 0 });
    assert_eq!((about("linux"), about("board.dtb")), before);
    device.image_has("board.dtb", "tree 3");
    assert_eq!(device.install(&[]).unwrap(), Installed { files: 2, written: 1, bytes: 6 });
    assert_eq!(about("linux"), before.0);
    assert_eq!(about("board.dtb").0, before.1.0, "it is written in place");
}

#[test]
fn the_kernel_is_the_images_whatever_is_kept() {
    let device = Device::new();
    device.install(&["*", "linux"]).unwrap();
    assert_eq!(device.tree("esp/bascule/b"), files(&[("linux", Some("kernel 2"))]));
}

#[test]
fn what_cannot_be_taken_is_refused_before_anything_is_written() {
    type Spoil = fn(&Device);
    let cases: [(&str, &str, Spoil); 9] = [
        ("no kernel", "boot-files.no-kernel", |device| fs::remove_file(device.path("root/boot/vmlinuz")).unwrap()),
        ("a folder as a kernel", "boot-files.no-kernel", |device| {
            fs::remove_file(device.path("root/boot/vmlinuz")).unwrap();
            fs::create_dir(device.path("root/boot/vmlinuz")).unwrap();
        }),
        ("the kernel's name", "boot-files.unfit", |device| device.image_has("Linux", "x")),
        ("two names that FAT takes for one", "boot-files.unfit", |device| {
            device.image_has("x/board.dtb", "x");
            device.image_has("x/BOARD.dtb", "x");
        }),
        ("a colon", "boot-files.unfit", |device| device.image_has("a:b", "x")),
        ("a dot at the end", "boot-files.unfit", |device| device.image_has("file.", "x")),
        ("too many", "boot-files.unfit", |device| {
            (0..MOST_FILES).for_each(|number| device.image_has(&format!("{number}"), "x"));
        }),
        ("folders without end", "boot-files.unfit", |device| device.image_has("1/2/3/4/5/6/7/8/9/10", "x")),
        ("a link to nothing", "boot-files.unfit", |device| {
            device.image_has("x", "x");
            symlink("nothing", device.path(&format!("root/{FILES}/link"))).unwrap();
        }),
    ];
    for (what, code, spoil) in cases {
        let device = Device::new();
        device.put("esp/bascule/b/linux", "kernel 0");
        let before = device.tree("esp");
        spoil(&device);
        let error = device.install(&[]).unwrap_err();
        assert_eq!(error.code(), code, "{what}: {error}");
        assert_eq!(device.tree("esp"), before, "{what}");
    }
}

#[test]
fn links_lead_where_they_would_in_the_new_system_and_never_out_of_it() {
    let device = Device::new();
    device.put("secret", "of the running system");
    device.put("root/usr/lib/dtb/board.dtb", "tree");
    device.image_has("x/y", "y");
    symlink("/usr/lib/dtb/board.dtb", device.path(&format!("root/{FILES}/board.dtb"))).unwrap();
    device.install(&[]).unwrap();
    let set = device.tree("esp/bascule/b");
    assert_eq!(set["board.dtb"], Some(b"tree".to_vec()));
    for link in [device.path("secret").display().to_string(), "../../../../../../../secret".into()] {
        let place = device.path(&format!("root/{FILES}/out"));
        fs::remove_file(&place).ok();
        symlink(&link, &place).unwrap();
        assert_eq!(device.install(&[]).unwrap_err().code(), "boot-files.unfit", "{link}");
    }
    // The folder itself may not be another one of the running system either.
    fs::remove_dir_all(device.path(&format!("root/{FILES}"))).unwrap();
    device.put("outside/key", "of the running system");
    symlink(device.path("outside"), device.path(&format!("root/{FILES}"))).unwrap();
    device.install(&[]).unwrap();
    assert_eq!(device.tree("esp/bascule/b"), files(&[("linux", Some("kernel 2"))]));
}

#[test]
fn b7_a_set_that_does_not_fit_is_refused_before_the_first_write() {
    let device = Device::new();
    device.put("esp/bascule/b/linux", "kernel 0");
    let before = device.tree("esp");
    // Larger than what is free, and not a byte of it is on the disk. No single file may be larger than 256 MiB.
    let free = nix::sys::statvfs::statvfs(&device.home).unwrap();
    let free = free.blocks_available() * free.fragment_size();
    let count = free / (256 << 20) + 1;
    if count >= MOST_FILES as u64 {
        println!("skipped: {free} bytes are free, more than any set may have");
        return;
    }
    for number in 0..count {
        device.image_has(&format!("{number}"), "");
        let file = fs::File::options().write(true).open(device.path(&format!("root/{FILES}/{number}"))).unwrap();
        file.set_len(256 << 20).unwrap();
    }
    let error = device.install(&[]).unwrap_err();
    assert_eq!(error.code(), "boot-files.no-room", "{error}");
    assert_eq!(device.tree("esp"), before);
}

#[test]
fn a_partition_that_is_not_mounted_is_not_written() {
    let device = Device::new();
    assert_eq!(check_mounted(&device.home, &device.path("esp")).unwrap_err().code(), "boot-files.not-mounted");
    assert_eq!(check_mounted(&device.home, &device.path("none")).unwrap_err().code(), "boot-files.not-mounted");
    check_mounted(Path::new("/"), Path::new("/proc")).unwrap();
}

#[test]
fn a_set_cannot_reach_the_loader_s_own_program() {
    let device = Device::new();
    for name in ["EFI/BOOT/BOOTX64.EFI", "loader/loader.conf", "boot.scr"] {
        device.put(&format!("esp/{name}"), "the device's");
        device.image_has(name, "the image's");
    }
    device.install(&["EFI/**"]).unwrap();
    for name in ["EFI/BOOT/BOOTX64.EFI", "loader/loader.conf", "boot.scr"] {
        assert_eq!(fs::read(device.path("esp").join(name)).unwrap(), b"the device's", "{name}");
        assert_eq!(fs::read(device.path("esp/bascule/b").join(name)).unwrap(), b"the image's", "{name}");
    }
    // No name leads out of the set's folder: neither the kernel's links nor FAT's own separator do.
    device.image_has(r"..\EFI", "the image's");
    assert_eq!(device.install(&[]).unwrap_err().code(), "boot-files.unfit");
}

const OFF: &str = "EFI/Linux/bascule-5-b.off";
const COPY: &str = "bascule/b.efi";

/// Group b's image in the prepared root; its last one, longer or shorter, on the boot partition.
fn device_with_image(new: usize, old: usize) -> Device {
    let device = Device::new();
    device.put("root/usr/lib/bascule/boot/uki/b.efi", vec![2; new]);
    device.put("root/usr/lib/bascule/boot/uki/a.efi", vec![3; new]);
    device.put("esp/EFI/Linux/bascule-4-a.efi", vec![1; old]);
    device.put(&format!("esp/{OFF}"), vec![1; old]);
    device.put(&format!("esp/{COPY}"), vec![0; old / 2]);
    device
}

#[test]
fn an_image_is_written_in_place_once_and_nothing_else_is_touched() {
    for (new, old) in [(3000, 0), (3000, 5000), (5000, 3000), (2 << 20, 1 << 20)] {
        let device = device_with_image(new, old);
        let mut expected = device.tree("esp");
        expected.insert(OFF.into(), Some(vec![2; new]));
        expected.remove(COPY);
        let inode = || fs::metadata(device.path("esp").join(OFF)).unwrap().ino();
        let before = inode();
        let installed = device.install_image().unwrap();
        assert_eq!(installed, Installed { files: 1, written: 1, bytes: new as u64 });
        assert_eq!((device.tree("esp"), inode()), (expected, before), "{new} over {old}");
        // A copy that holds the same is nobody's fault.
        device.put(&format!("esp/{COPY}"), vec![2; new]);
        let before = device.tree("esp");
        assert_eq!(device.install_image().unwrap(), Installed { files: 1, written: 0, bytes: 0 });
        assert_eq!(device.tree("esp"), before);
    }
}

#[test]
fn an_image_that_is_not_there_too_large_or_outside_is_refused_before_anything_is_written() {
    type Spoil = fn(&Path);
    let cases: [(&str, Spoil); 4] = [
        ("boot-files.no-image", |image| fs::remove_file(image).unwrap()),
        ("boot-files.no-image", |image| {
            fs::remove_file(image).unwrap();
            fs::create_dir(image).unwrap();
        }),
        ("boot-files.no-image", |image| {
            fs::remove_file(image).unwrap();
            symlink("/esp/EFI/Linux/bascule-4-a.efi", image).unwrap();
        }),
        ("boot-files.unfit", |image| {
            fs::File::options().write(true).open(image).unwrap().set_len((256 << 20) + 1).unwrap();
        }),
    ];
    for (code, spoil) in cases {
        let device = device_with_image(3000, 5000);
        let before = device.tree("esp");
        spoil(&device.path("root/usr/lib/bascule/boot/uki/b.efi"));
        assert_eq!(device.install_image().unwrap_err().code(), code);
        assert_eq!(device.tree("esp"), before, "{code}");
    }
}

/// Where a small file system can be mounted: the last cluster counts, and what is refused changed nothing.
#[test]
fn b7_an_image_needs_its_clusters_and_one_for_the_folder() {
    let device = device_with_image(0, 0);
    let small = device.path("small");
    fs::create_dir(&small).unwrap();
    let options = "size=64k";
    let flags = nix::mount::MsFlags::empty();
    if let Err(error) = nix::mount::mount(Some("none"), &small, Some("tmpfs"), flags, Some(options)) {
        println!("skipped: no file system can be mounted: {error}");
        return;
    }
    let place = small.join("bascule-5-b.off");
    let install = |pages: usize, old: usize| {
        device.put("root/usr/lib/bascule/boot/uki/b.efi", vec![2; pages * 4096 - 5]);
        fs::write(&place, vec![1; old * 4096]).unwrap();
        let image = BootImage::find(&device.path("root"), Group::B).unwrap();
        image.install(&place, None).map_err(|error| error.to_string())
    };
    let found = [(15, 0), (16, 0), (15, 16), (16, 16)]
        .map(|(pages, old)| (install(pages, old), fs::metadata(&place).unwrap().len()));
    nix::mount::umount(&small).unwrap();
    let refused = |found: &Result<Installed, String>| {
        found.as_ref().is_err_and(|text| text.contains("take 69632 bytes, and the boot partition has 65536"))
    };
    assert!(found[0].0.is_ok() && found[2].0.is_ok(), "{found:?}");
    assert!(refused(&found[1].0) && found[1].1 == 0, "{found:?}");
    assert!(refused(&found[3].0) && found[3].1 == 16 * 4096, "{found:?}");
}

/// Not a test of its own: the half of the next ones that is killed.
#[test]
fn killed_half() {
    let Ok(home) = std::env::var(HOME) else { return };
    let device = Device { home: home.into(), _dir: None };
    if device.path("root/usr/lib/bascule/boot/uki").exists() {
        device.install_image().unwrap();
    } else {
        device.install(&["site.txt"]).unwrap();
    }
}

/// What the killed half does to the boot partition, in order: the call, and the path below that; `None` without strace.
fn effects(device: &Device) -> Option<Vec<(String, String)>> {
    let log = device.path("strace");
    let calls = "trace=write,copy_file_range,sendfile,splice,fallocate,ftruncate,mkdir,mkdirat,fsync";
    let mut command = Command::new("strace");
    command.args(["-f", "-y", "-s", "0", "-e", calls, "-o"]).arg(&log);
    command.arg(std::env::current_exe().unwrap()).args(["--exact", "killed_half"]).env(HOME, &device.home);
    let ran = command.output().is_ok_and(|output| output.status.success());
    let text = fs::read_to_string(&log).unwrap_or_default();
    if !ran || text.is_empty() {
        println!("skipped: strace is not installed, or cannot trace here");
        return None;
    }
    let esp = format!("{}/", device.path("esp").display());
    let effect = |line: &str| {
        let (call, rest) = line.split_once(' ')?.1.trim_start().split_once('(')?;
        let (path, result) = (rest.rsplit_once(esp.as_str())?.1.split(['"', '>']).next()?, rest.rsplit_once("= ")?.1);
        let word = match call {
            "write" | "copy_file_range" | "sendfile" | "splice" => "copy",
            other => other.trim_end_matches("at"),
        };
        let ends_a_file = word == "copy" && result == "0";
        let did_it = !result.starts_with('-') && !ends_a_file;
        did_it.then(|| (word.to_owned(), path.to_owned()))
    };
    Some(text.lines().filter_map(effect).collect())
}

/// Else a cut between the two leaves a length without clusters, and Linux makes the boot partition read-only at its next read.
#[test]
fn a12_clusters_are_on_the_medium_before_the_length_or_the_name_that_leads_to_them() {
    let device = Device::new();
    device.put("root/boot/vmlinuz", vec![9; 9 << 20]);
    device.image_has("x/board.dtb", vec![7; 3000]);
    device.image_has("site.txt", "the image's");
    fs::create_dir_all(device.path("esp/bascule/a")).unwrap();
    let Some(effects) = effects(&device) else { return };
    let of = |path: &str| {
        let (folder, _) = path.rsplit_once('/').unwrap();
        let about = effects.iter().filter(|(_, of)| of == path || of == folder);
        let mut calls: Vec<String> =
            about.map(|(call, of)| if of == path { call.clone() } else { format!("{call} folder") }).collect();
        // It may take several calls to copy the bytes.
        calls.dedup();
        calls
    };
    let is_first = |calls: &[String], first: &[&str]| calls.iter().take(first.len()).eq(first);
    for folder in ["bascule/b", "bascule/b/x"] {
        let calls = of(folder);
        let begin = calls.iter().position(|call| call == "mkdir").unwrap();
        assert!(is_first(&calls[begin..], &["mkdir", "fsync", "fsync folder"]), "{folder}: {calls:?}");
    }
    for file in ["bascule/b/linux", "bascule/b/x/board.dtb"] {
        let calls = of(file);
        let begin = calls.iter().position(|call| call == "ftruncate").unwrap();
        let wanted =
            ["ftruncate", "fsync", "fallocate", "fsync folder", "fsync", "copy", "ftruncate", "fsync", "fsync folder"];
        assert!(is_first(&calls[begin..], &wanted), "{file}: {calls:?}");
    }
}

/// Killed before each call that changes the boot partition: no name is made or lost, the running group's image is untouched,
/// and the next attempt finishes.
#[test]
fn a12_a_kill_at_any_call_of_an_image_leaves_only_the_unlisted_file_torn_and_the_next_attempt_finishes() {
    let prepare = || device_with_image(300_000, 400_000);
    let whole = prepare();
    whole.install_image().unwrap();
    let expected = whole.tree("esp");
    let mut kills = 0;
    for call in ["write", "copy_file_range", "fallocate", "ftruncate", "fsync", "unlink", "rename", "openat"] {
        for when in 1.. {
            let device = prepare();
            let before = device.tree("esp");
            let mut command = Command::new("strace");
            let log = device.path("strace");
            command.args(["-f", "-qq", "-e", &format!("trace={call}")]);
            for path in ["EFI/Linux", OFF, "bascule", COPY] {
                command.arg("-P").arg(device.path("esp").join(path));
            }
            command.args(["-e", &format!("inject={call}:signal=KILL:when={when}"), "-o"]).arg(&log);
            command.arg(std::env::current_exe().unwrap()).args(["--exact", "killed_half"]).env(HOME, &device.home);
            let Ok(output) = command.output() else {
                println!("skipped: strace is not installed");
                return;
            };
            if output.status.success() {
                break;
            }
            if fs::read_to_string(&log).unwrap_or_default().is_empty() {
                println!("skipped: strace cannot trace here: {}", String::from_utf8_lossy(&output.stderr));
                return;
            }
            assert!(output.status.signal().is_some() || output.status.code() == Some(137), "{output:?}");
            kills += 1;
            let mut left = device.tree("esp");
            let old = |name: &str| before[name].clone();
            assert!(left.contains_key(COPY) || call != "unlink", "{call} {when}");
            left.extend([(OFF.to_owned(), old(OFF)), (COPY.to_owned(), old(COPY))]);
            assert_eq!(left, before, "killed at {call} {when}");
            device.install_image().unwrap();
            assert_eq!(device.tree("esp"), expected, "killed at {call} {when}");
        }
    }
    assert!(kills > 10, "only {kills} kills");
}

/// Killed before each call that changes the boot partition: the running group's set is untouched, and the next attempt
/// makes the other one what it has to be.
#[test]
fn a12_a_kill_at_any_call_leaves_the_running_set_whole_and_the_next_attempt_finishes() {
    let prepare = || {
        let device = Device::new();
        device.image_has("x/board.dtb", vec![7; 3000]);
        device.image_has("site.txt", "the image's");
        device.put("root/boot/vmlinuz", vec![9; 300_000]);
        device.put("esp/bascule/a/site.txt", "the device's");
        device.put("esp/bascule/b/linux", vec![1; 500_000]);
        device.put("esp/bascule/b/gone/file", "left over");
        device
    };
    let whole = prepare();
    whole.install(&["site.txt"]).unwrap();
    let expected = whole.tree("esp");
    let mut kills = 0;
    let calls = ["write", "copy_file_range", "fallocate", "ftruncate", "fsync", "unlink", "unlinkat", "rmdir", "mkdir"];
    for call in calls.into_iter().chain(["mkdirat"]) {
        for when in 1.. {
            let device = prepare();
            let before = device.tree("esp/bascule/a");
            let mut command = Command::new("strace");
            let log = device.path("strace");
            command.args(["-f", "-qq", "-e", &format!("trace={call}"), "-P"]).arg(device.path("esp"));
            // Only calls on the boot partition count; strace takes each path that is named, and no folder below it.
            for path in ["bascule", "bascule/b", "bascule/b/linux", "bascule/b/x", "bascule/b/x/board.dtb"] {
                command.arg("-P").arg(device.path("esp").join(path));
            }
            for path in ["bascule/b/site.txt", "bascule/b/gone", "bascule/b/gone/file"] {
                command.arg("-P").arg(device.path("esp").join(path));
            }
            command.args(["-e", &format!("inject={call}:signal=KILL:when={when}"), "-o"]).arg(&log);
            command.arg(std::env::current_exe().unwrap()).args(["--exact", "killed_half"]).env(HOME, &device.home);
            let Ok(output) = command.output() else {
                println!("skipped: strace is not installed");
                return;
            };
            if output.status.success() {
                break;
            }
            if fs::read_to_string(&log).unwrap_or_default().is_empty() {
                println!("skipped: strace cannot trace here: {}", String::from_utf8_lossy(&output.stderr));
                return;
            }
            assert!(output.status.signal().is_some() || output.status.code() == Some(137), "{output:?}");
            kills += 1;
            assert_eq!(device.tree("esp/bascule/a"), before, "killed at {call} {when}");
            device.install(&["site.txt"]).unwrap();
            assert_eq!(device.tree("esp"), expected, "killed at {call} {when}");
        }
    }
    assert!(kills > 15, "only {kills} kills");
}
