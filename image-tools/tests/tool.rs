//! The tool `bascule-image` as a person meets it.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test may fail")]

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Output, Stdio};

fn tool(dir: &Path, line: &str) -> Output {
    Command::new(env!("CARGO_BIN_EXE_bascule-image"))
        .args(line.split_whitespace())
        .current_dir(dir)
        .stdin(Stdio::null())
        .output()
        .unwrap()
}

fn succeeds(dir: &Path, line: &str) -> String {
    let output = tool(dir, line);
    assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn fails(dir: &Path, line: &str) -> String {
    let output = tool(dir, line);
    assert_eq!(output.status.code(), Some(1), "{line} did not fail");
    String::from_utf8(output.stderr).unwrap()
}

const CREATE: &str = "bundle create --keys keys --release release.toml --payload root=image -o demo.bascule";

fn house() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path();
    fs::write(at.join("image"), [vec![0; 2 << 20], b"some text ".repeat(50_000)].concat()).unwrap();
    fs::write(
        at.join("release.toml"),
        "product = \"demo\"\nversion = \"2.0.0\"\norder = 2\ncompatible = [\"qemu-x86_64\"]\nsecurity_epoch = 1\n[requires]\nmin_order = 1\n",
    )
    .unwrap();
    succeeds(at, "keys init keys --threshold 2 --count 3");
    dir
}

#[test]
fn a_bundle_is_made_shown_and_verified() {
    let dir = house();
    let at = dir.path();
    succeeds(at, CREATE);
    let shown: serde_json::Value = serde_json::from_str(&succeeds(at, "bundle inspect demo.bascule --json")).unwrap();
    assert_eq!(shown["manifest"]["order"], 2);
    assert_eq!(shown["manifest"]["requires"]["min_order"], 1);
    assert_eq!(shown["verified"], false);
    assert!(succeeds(at, "bundle inspect demo.bascule").contains("signatures not checked"));
    assert!(succeeds(at, "bundle verify demo.bascule --root keys/root.json").contains("is whole and signed"));
    let other: serde_json::Value =
        serde_json::from_str(&succeeds(at, &format!("{CREATE} --json --compatible x --compatible y"))).unwrap();
    assert_eq!(other["manifest"]["compatible"], serde_json::json!(["x", "y"]));
}

#[test]
fn a_bundle_is_verified_from_a_pipe() {
    let dir = house();
    succeeds(dir.path(), CREATE);
    let mut verify = Command::new(env!("CARGO_BIN_EXE_bascule-image"))
        .args(["bundle", "verify", "-", "--root", "keys/root.json"])
        .current_dir(dir.path())
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let bundle = fs::read(dir.path().join("demo.bascule")).unwrap();
    verify.stdin.take().unwrap().write_all(&bundle).unwrap();
    assert!(verify.wait().unwrap().success());
}

#[test]
fn errors_name_their_code_cause_and_hint() {
    let dir = house();
    let at = dir.path();
    succeeds(at, CREATE);
    succeeds(at, "keys init stranger");
    let stranger = fails(at, "bundle verify demo.bascule --root stranger/root.json");
    assert!(stranger.contains("[trust.wrong-signature]") && stranger.contains("hint: "), "{stranger}");
    assert!(stranger.contains("caused by: "), "{stranger}");
    let bundle = fs::read(at.join("demo.bascule")).unwrap();
    fs::write(at.join("cut"), &bundle[..bundle.len() - 1]).unwrap();
    assert!(fails(at, "bundle verify cut --root keys/root.json").contains("[bundle.truncated]"));
    assert!(fails(at, "bundle inspect release.toml").contains("[bundle.not-a-bundle]"));
    assert!(fails(at, "keys init keys").contains("has keys already"));
    fs::write(at.join("release.toml"), "product = \"demo\"\norder = 2\nflavour = 1\n").unwrap();
    let unknown = fails(at, CREATE);
    assert!(unknown.contains("release.toml") && unknown.contains("line 3"), "{unknown}");
}

#[test]
fn a_rule_of_the_format_is_told_before_a_bundle_is_left_behind() {
    let dir = house();
    let at = dir.path();
    fs::write(at.join("image"), "").unwrap();
    assert!(fails(at, CREATE).contains("[bundle.manifest-invalid]"));
    fs::write(at.join("image"), "text").unwrap();
    assert!(fails(at, &format!("{CREATE} --chunk-size 2M")).contains("chunk size"));
    assert!(fails(at, &format!("{CREATE} --compatible ../x")).contains("[bundle.manifest-invalid]"));
    let names: Vec<_> = fs::read_dir(at).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names.len(), 3, "{names:?}");
}

#[test]
fn rotated_keys_are_followed_by_a_device_that_pins_the_first_root() {
    let dir = house();
    let at = dir.path();
    fs::copy(at.join("keys/root.json"), at.join("pinned.json")).unwrap();
    for role in ["timestamp", "targets", "root", "snapshot"] {
        succeeds(at, &format!("keys rotate keys {role}"));
    }
    succeeds(at, CREATE);
    assert!(succeeds(at, "bundle verify demo.bascule --root pinned.json").contains("whole"));
}

/// What stands in the images: a megabyte of zeroes, then text in which each version has words of its own.
fn system(version: u8) -> Vec<u8> {
    let mut image = vec![0; 1 << 20];
    let words =
        (0..60_000u32).flat_map(|number| format!("{} {:x} ", number % 977, number.wrapping_mul(40_503)).into_bytes());
    image.extend(words);
    let at = image.len() * 3 / 4;
    image.splice(at..at, format!("this is version {version}").repeat(version.into()).into_bytes());
    image
}

#[test]
fn a_delta_file_turns_the_old_image_into_the_new_one_and_no_other() {
    let dir = house();
    let at = dir.path();
    fs::write(at.join("old"), system(1)).unwrap();
    fs::write(at.join("new"), system(2)).unwrap();
    let told = succeeds(at, "delta old new -o d --level 3");
    assert!(told.contains("zeroes") && told.contains("patched") && told.contains(" % of the image"), "{told}");
    assert!(fs::metadata(at.join("d")).unwrap().len() < 4000);
    succeeds(at, "apply old d -o made");
    assert_eq!(fs::read(at.join("made")).unwrap(), system(2));
    let json: serde_json::Value = serde_json::from_str(&succeeds(at, "apply old d -o made --json")).unwrap();
    assert_eq!(json["bytes"], system(2).len());
    let json: serde_json::Value = serde_json::from_str(&succeeds(at, "delta old new -o d2 --level 3 --json")).unwrap();
    assert_eq!(
        json["sha256"],
        serde_json::from_str::<serde_json::Value>(&succeeds(at, "apply old d2 -o x --json")).unwrap()["sha256"]
    );
    assert_eq!(fs::read(at.join("d")).unwrap(), fs::read(at.join("d2")).unwrap());
    let wrong = fails(at, "apply new d -o other");
    assert!(wrong.contains("[delta.wrong-base]") && wrong.contains("hint: "), "{wrong}");
    let short = fails(at, "apply release.toml d -o other");
    assert!(short.contains("[delta.wrong-base]") && short.contains("bytes"), "{short}");
    assert!(fails(at, "apply old image -o other").contains("[delta.not-a-delta]"));
    let told = succeeds(at, "delta old new -o d3 --level 3 --explain --no-prediction --no-repacking");
    assert!(told.contains("where the bytes went") && told.contains("the dearest files"), "{told}");
    let json = succeeds(at, "delta old new -o d3 --level 3 --explain --json");
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert!(json["explanation"]["matters"]["table"].is_u64() && json["explanation"]["files"].is_array(), "{json}");
    assert!(fails(at, "delta old new -o other --chunk-size 6000").contains("[delta.chunk-size]"));
    assert!(!at.join("other").exists());
}

#[test]
fn a_bundle_with_deltas_is_made_from_raw_images_and_older_bundles_shown_and_verified() {
    let dir = house();
    let at = dir.path();
    let release = |version: &str, order: u8| {
        let text = format!("product = \"demo\"\nversion = \"{version}\"\norder = {order}\ncompatible = [\"qemu\"]\n");
        fs::write(at.join("release.toml"), text).unwrap();
        fs::write(at.join("image"), system(order)).unwrap();
    };
    release("1.0.0", 1);
    succeeds(
        at,
        "bundle create --keys keys --release release.toml --payload root=image -o old.bascule --expires 2099-01-01",
    );
    fs::copy(at.join("keys/root.json"), at.join("pinned.json")).unwrap();
    succeeds(at, "keys rotate keys targets");
    fs::write(at.join("raw"), system(2)).unwrap();
    release("3.0.0", 3);
    let create = format!("{CREATE} --from old.bascule --from root@2.0.0=raw --from raw --delta-level 3");
    let told = succeeds(at, &create);
    assert!(told.contains("root from 1.0.0: ") && told.contains("root from 2.0.0: "), "{told}");
    assert!(told.contains("% of the full") && told.contains("made of"), "{told}");
    let shown = succeeds(at, "bundle inspect demo.bascule");
    assert!(shown.contains("root from 1.0.0: "), "{shown}");
    let json: serde_json::Value = serde_json::from_str(&succeeds(at, "bundle inspect demo.bascule --json")).unwrap();
    let versions = json["manifest"]["payloads"][0]["deltas"].as_array().unwrap().iter();
    let versions: Vec<_> = versions.map(|delta| delta["base"]["version"].as_str()).collect();
    assert_eq!(versions, [Some("1.0.0"), Some("2.0.0"), None]);
    let verified = succeeds(at, "bundle verify demo.bascule --root pinned.json --base raw");
    assert!(verified.contains("is whole and signed") && verified.contains("1.0.0 was not checked"), "{verified}");
    fs::write(at.join("first"), system(1)).unwrap();
    let verified = succeeds(at, "bundle verify demo.bascule --root pinned.json --base raw --base first");
    assert!(!verified.contains("not checked"), "{verified}");
    assert!(fails(at, "bundle verify demo.bascule --root pinned.json --base image").contains("no delta of the bundle"));
    let left = fs::read_dir(at).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    assert_eq!(left.filter(|name| name.starts_with('.')).count(), 0, "nothing is left behind");
    assert!(fails(at, &format!("{CREATE} --from app=raw")).contains("no such payload"));
    succeeds(at, "keys init strangers");
    let strange = create.replace("--keys keys", "--keys strangers");
    assert!(fails(at, &strange).contains("[trust.wrong-signature]"));
}

#[test]
fn full_data_go_inside_beside_or_nowhere() {
    let dir = house();
    let at = dir.path();
    fs::write(at.join("image"), system(2)).unwrap();
    fs::write(at.join("raw"), system(1)).unwrap();
    let verify = "bundle verify demo.bascule --root keys/root.json";
    let told = succeeds(at, &format!("{CREATE} --from raw --delta-level 3 --full beside"));
    assert!(told.contains("demo-2.0.0.root.blobs"), "{told}");
    succeeds(at, verify);
    fs::rename(at.join("demo-2.0.0.root.blobs"), at.join("away")).unwrap();
    assert!(fails(at, verify).contains("[bundle.full-data-missing]"));
    succeeds(at, &format!("{CREATE} --from raw --delta-level 3 --full absent"));
    assert!(!at.join("demo-2.0.0.root.blobs").exists());
    let verified = succeeds(at, &format!("{verify} --base raw"));
    assert!(verified.contains("no full data"), "{verified}");
    assert!(fails(at, &format!("{CREATE} --full absent")).contains("[bundle.manifest-invalid]"));
}
