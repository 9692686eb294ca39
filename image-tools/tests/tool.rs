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
