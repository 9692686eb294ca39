//! Deltas between images that the real `mksquashfs` made: bit-exact, and much shorter where blocks are packed again.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, reason = "a test may fail")]

use std::fs;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::process::{Command, Stdio};

use bascule_image::delta::explain::Advice;
use bascule_image::delta::image::{DeltaSpec, Transforms};
use bascule_image::delta::whole::{Created, apply_delta, create_delta};
use bascule_image::manifest::sha256;
use tempfile::TempDir;

/// Bytes that pack to about a third: numbers and words.
fn prose(length: usize, seed: u32) -> Vec<u8> {
    let mut state = seed | 1;
    let mut bytes = Vec::with_capacity(length + 16);
    while bytes.len() < length {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        let word = ["register", "of", "the ", "frame", "\0\0\0\0", "loads"][(state >> 24) as usize % 6];
        bytes.extend_from_slice(word.as_bytes());
        bytes.extend_from_slice(&(state >> 12).to_le_bytes()[..2]);
    }
    bytes.truncate(length);
    bytes
}

/// A tree with files of many blocks and of less than one, a hole, and one that does not pack. In `new` a few hundred bytes
/// are more, so that everything behind them has moved.
fn tree(place: &Path, is_new: bool) {
    let write = |name: &str, content: &[u8]| {
        let path = place.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    };
    let changed = |mut content: Vec<u8>, at: usize| {
        if is_new {
            content.splice(at..at, prose(300, 99));
            // An address in every line of a table.
            for place in (at + 400..content.len() - 4).step_by(900) {
                content[place] ^= 1;
            }
        }
        content
    };
    write("usr/bin/long", &changed(prose(1_500_000, 1), 20_000));
    write("usr/bin/other", &changed(prose(700_000, 2), 1_000));
    write("usr/lib/same", &prose(400_000, 3));
    for number in 0..20 {
        write(&format!("etc/small-{number}"), &changed(prose(7_000, 10 + number), 50));
    }
    let noise: Vec<u8> = (0..10_000u32).flat_map(|number| sha256(&number.to_le_bytes()).0).collect();
    write("usr/share/noise", &noise);
    let holes = fs::File::create(place.join("usr/share/holes")).unwrap();
    holes.write_all_at(&prose(200_000, 5), 600_000).unwrap();
    fs::hard_link(place.join("usr/lib/same"), place.join("usr/lib/linked")).unwrap();
    std::os::unix::fs::symlink("long", place.join("usr/bin/link")).unwrap();
}

/// Both images as `mksquashfs` makes them with these `options`, `old` and `new` in a folder.
fn images(options: &[&str]) -> TempDir {
    let folder = TempDir::new().unwrap();
    for (name, is_new) in [("old", false), ("new", true)] {
        let place = folder.path().join("tree");
        tree(&place, is_new);
        let status = Command::new("mksquashfs")
            .args([&place, &folder.path().join(name)])
            .args(["-quiet", "-no-progress", "-noappend", "-all-root", "-mkfs-time", "0", "-all-time", "0"])
            .args(options)
            .stdout(Stdio::null())
            .status()
            .expect("mksquashfs, of the package squashfs-tools");
        assert!(status.success());
        fs::remove_dir_all(place).unwrap();
    }
    folder
}

/// The delta between both, which makes the new one of the old one.
fn delta(images: &TempDir, transforms: Transforms) -> Created {
    let at = |name: &str| images.path().join(name);
    let spec = DeltaSpec { transforms, explain: true, ..DeltaSpec::new(256 << 10, 3) };
    let made = create_delta(&at("old"), &at("new"), spec, &at("delta"), &mut |_| ()).unwrap();
    let file = fs::File::open(at("delta")).unwrap();
    apply_delta(&at("old"), Box::new(file), &at("made"), &mut |_| ()).unwrap();
    assert!(fs::read(at("made")).unwrap() == fs::read(at("new")).unwrap());
    made
}

const REPACKED: Transforms = Transforms { predict: false, repack: true };

#[test]
fn blocks_are_packed_again_whatever_the_options_are() {
    // These levels come out the same with every libzstd since 1.5.4; of others that depends on the one of mksquashfs.
    for options in [
        &["-comp", "zstd", "-Xcompression-level", "13"][..],
        &["-comp", "zstd", "-Xcompression-level", "12", "-no-fragments", "-no-exports"],
        &["-comp", "zstd", "-Xcompression-level", "12", "-always-use-fragments", "-b", "64K", "-noI"],
        &["-comp", "zstd", "-Xcompression-level", "1", "-noF", "-no-duplicates"],
    ] {
        let images = images(options);
        let (plain, repacked) = (delta(&images, Transforms::NONE), delta(&images, REPACKED));
        assert!(repacked.tally.repacked > 0, "{options:?}");
        assert!(repacked.bytes * 3 < plain.bytes, "{options:?}: {} of {}", repacked.bytes, plain.bytes);
        let files: Vec<_> = repacked.explanation.unwrap().files.into_iter().map(|file| file.path).collect();
        assert!(files.iter().any(|path| path == "usr/bin/long"), "{files:?}");
    }
}

#[test]
fn what_cannot_be_packed_again_is_sent_as_it_is() {
    // Another way to pack, blocks that a device has no memory for, and the level that not every libzstd does the same.
    for options in [
        &["-comp", "gzip"][..],
        &["-comp", "zstd", "-b", "256K"],
        &["-comp", "zstd", "-Xcompression-level", "15"],
        &["-comp", "zstd", "-noD", "-noF"],
    ] {
        let made = delta(&images(options), REPACKED);
        let is_usual = options.contains(&"15");
        assert!(made.tally.repacked == 0 || is_usual, "{options:?}");
        let advice = made.explanation.unwrap().advice;
        let wanted = (!options.contains(&"-noD")).then_some(Advice::OtherSquashfs);
        assert!(advice == wanted || is_usual, "{options:?}: {advice:?}");
    }
}
