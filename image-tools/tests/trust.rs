//! Whom a device trusts, since when, until when, and what it remembers.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, reason = "a test may fail")]

mod common;

use bascule_image::format::{HEADER_BYTES, Header, Metadata};
use bascule_image::keys::KeyDir;
use bascule_image::{Opening, Timestamp, TrustStore};
use common::{House, code, exists, image, now, years};
use tough::schema::RoleType;

fn accept(house: &House, bundle: &[u8]) {
    house.open(bundle).unwrap().accepted().persist().unwrap();
}

#[test]
fn a_stranger_is_refused_and_nothing_is_remembered() {
    let (house, stranger) = (House::new(), House::new());
    assert_eq!(code(house.open(&stranger.bundle(1, &[&image(1)]))), "trust.wrong-signature");
    stranger.keys.rotate(RoleType::Timestamp, years(5)).unwrap();
    assert_eq!(code(house.open(&stranger.bundle(2, &[&image(1)]))), "trust.root-chain");
    assert!(!exists(&house.path("accepted.json")));
}

#[test]
fn a_device_without_a_pinned_root_refuses_everything() {
    let house = House::new();
    let bundle = house.bundle(1, &[&image(1)]);
    std::fs::remove_file(house.path("pinned.json")).unwrap();
    assert_eq!(code(house.open(&bundle)), "trust.no-root");
    std::fs::write(house.path("pinned.json"), "{}").unwrap();
    assert_eq!(code(house.open(&bundle)), "trust.root-damaged");
}

#[test]
fn an_unsigned_manifest_of_a_signed_bundle_is_refused() {
    let house = House::new();
    let bundle = house.bundle(1, &[&image(1)]);
    let text = b"\"order\": 1";
    let place = bundle.windows(text.len()).rposition(|window| window == text).unwrap();
    let mut raised = bundle;
    raised[place + text.len() - 1] = b'9';
    assert_eq!(code(house.open(&raised)), "trust.not-listed");
}

#[test]
fn expiry_is_judged_by_the_later_of_the_given_clock_and_the_last_signed_time() {
    let house = House::new();
    let bundle = house.bundle_at(1, &[&image(1)], now(), years(2));
    let at = |text: &str| text.parse::<Timestamp>().unwrap();
    assert_eq!(code(house.open_at(&bundle, at("1970-01-01T00:00:00Z"))), "taken");
    assert_eq!(code(house.open_at(&bundle, at("2038-01-20T00:00:00Z"))), "trust.expired");
    assert_eq!(code(house.open_at(&bundle, at("2106-02-08T00:00:00Z"))), "trust.expired");
    assert_eq!(code(house.open(&bundle)), "taken", "a clock that was once in the future locks nobody out");
    let short = house.bundle_at(2, &[&image(1)], now(), years(1));
    let later = house.bundle_at(3, &[&image(1)], years(1), years(3));
    assert_eq!(code(house.open_at(&short, at("1970-01-01T00:00:00Z"))), "taken");
    accept(&house, &later);
    assert_eq!(house.trust.floor().unwrap(), Some(years(1)));
    let bad_clock = house.bundle_at(4, &[&image(1)], now(), years(1));
    assert_eq!(
        code(house.open_at(&bad_clock, at("1970-01-01T00:00:00Z"))),
        "taken",
        "it expires at the floor, not before"
    );
    let ends_before_floor = Timestamp::from_second(years(1).as_second() - 10).unwrap();
    let expired = house.bundle_at(5, &[&image(1)], now(), ends_before_floor);
    assert_eq!(code(house.open_at(&expired, at("1970-01-01T00:00:00Z"))), "trust.expired");
}

#[test]
fn nothing_is_remembered_before_persist_and_older_metadata_is_refused_after_it() {
    let house = House::new();
    let (older, newer) = (house.bundle(1, &[&image(1)]), house.bundle(2, &[&image(2)]));
    assert_eq!(code(house.open(&newer)), "taken");
    assert_eq!(code(house.open(&older)), "taken");
    accept(&house, &newer);
    assert_eq!(code(house.open(&older)), "trust.older-metadata");
    assert_eq!(code(house.open(&newer)), "taken", "the same bundle again is no rollback");
    let expired = house.bundle_at(3, &[&image(2)], now(), now());
    let before = std::fs::read(house.path("accepted.json")).unwrap();
    assert_eq!(code(house.open_at(&expired, years(1))), "trust.expired");
    assert_eq!(std::fs::read(house.path("accepted.json")).unwrap(), before);
    assert_eq!(code(house.open(&newer)), "taken");
}

#[test]
fn a_damaged_store_is_told_and_not_taken_for_an_empty_one() {
    let house = House::new();
    let bundle = house.bundle(1, &[&image(1)]);
    accept(&house, &bundle);
    let whole = std::fs::read(house.path("accepted.json")).unwrap();
    for cut in [0, 1, whole.len() / 2, whole.len() - 1] {
        std::fs::write(house.path("accepted.json"), &whole[..cut]).unwrap();
        assert_eq!(code(house.open(&bundle)), "trust.store-damaged");
    }
    std::fs::remove_file(house.path("accepted.json")).unwrap();
    assert_eq!(code(house.open(&bundle)), "taken");
}

#[test]
fn keys_can_be_rotated_and_revoked_ones_stay_revoked() {
    let house = House::new();
    let before = house.bundle(1, &[&image(1)]);
    let thief = KeyDir::open(house.path("stolen"));
    copy_tree(&house.path("keys"), &house.path("stolen"));
    for role in [RoleType::Targets, RoleType::Root, RoleType::Timestamp] {
        house.keys.rotate(role, years(9)).unwrap();
    }
    let after = house.bundle(2, &[&image(2)]);
    assert_eq!(house.read(&after).unwrap(), [image(2)], "a device that pins root 1 follows the chain to root 4");
    assert_eq!(code(house.open(&before)), "taken", "until then it cannot know");
    accept(&house, &after);
    assert_eq!(code(house.open(&before)), "trust.wrong-signature");
    let house = House { keys: thief, ..house };
    let stolen = house.bundle(3, &[&image(3)]);
    assert_eq!(code(house.open(&stolen)), "trust.wrong-signature");
}

#[test]
fn a_time_signed_far_in_the_future_is_undone_by_new_timestamp_keys() {
    let house = House::new();
    accept(&house, &house.bundle_at(1, &[&image(1)], years(80), years(82)));
    assert_eq!(code(house.open(&house.bundle(2, &[&image(2)]))), "trust.expired");
    house.keys.rotate(RoleType::Timestamp, years(9)).unwrap();
    assert_eq!(code(house.open(&house.bundle(3, &[&image(3)]))), "taken");
}

#[test]
fn a_root_that_skips_a_version_or_lacks_the_old_keys_is_refused() {
    let (house, stranger) = (House::new(), House::new());
    house.keys.rotate(RoleType::Targets, years(9)).unwrap();
    house.keys.rotate(RoleType::Targets, years(9)).unwrap();
    std::fs::copy(house.path("keys/3.root.json"), house.path("keys/2.root.json")).unwrap();
    assert_eq!(code(house.open(&house.bundle(1, &[&image(1)]))), "trust.root-chain");
    stranger.keys.rotate(RoleType::Root, years(9)).unwrap();
    std::fs::copy(stranger.path("keys/2.root.json"), house.path("keys/2.root.json")).unwrap();
    assert_eq!(code(house.open(&house.bundle(2, &[&image(1)]))), "trust.root-chain");
}

#[test]
fn a_threshold_of_two_needs_both_keys() {
    let house = House::with_threshold(2);
    assert_eq!(code(house.open(&house.bundle(1, &[&image(1)]))), "taken");
    std::fs::remove_file(house.path("keys/private/targets-1-2.pk8")).unwrap();
    let spec = house.spec(2, &[&image(1)]);
    let output = house.path("unsigned");
    assert!(bascule_image::write::create_bundle(&spec, &house.keys, &output, &mut |_| ()).is_err());
    assert!(!exists(&output), "no bundle is left behind");
}

#[test]
fn two_bundles_of_one_second_have_an_order() {
    let house = House::new();
    let first = house.bundle(1, &[&image(1)]);
    let second = house.bundle(2, &[&image(1)]);
    accept(&house, &second);
    assert_eq!(code(house.open(&first)), "trust.older-metadata");
}

#[test]
fn a_check_works_inside_an_async_runtime() {
    let house = House::new();
    let bundle = house.bundle(1, &[&image(1)]);
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    assert_eq!(runtime.block_on(async { code(house.open(&bundle)) }), "taken");
}

#[test]
fn a_check_without_room_for_scratch_files_is_told() {
    let house = House::new();
    let bundle = house.bundle(1, &[&image(1)]);
    let trust = TrustStore::new(house.path("pinned.json"), house.path("accepted.json")).scratch("/nonexistent");
    let opened = bascule_image::BundleReader::open(common::stream(&bundle), &trust, now());
    assert_eq!(code(opened), "trust.store-failed");
}

fn copy_tree(from: &std::path::Path, to: &std::path::Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let place = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_tree(&entry.path(), &place);
        } else {
            std::fs::copy(entry.path(), place).unwrap();
        }
    }
}

/// Puts edited metadata and the manifest of `bundle` together again.
fn with_metadata(bundle: &[u8], edit: impl Fn(&mut Metadata)) -> Vec<u8> {
    let opening = Opening::inspect(common::stream(bundle)).unwrap();
    let before = HEADER_BYTES + opening.metadata.to_bytes().unwrap().len();
    let mut metadata = opening.metadata;
    edit(&mut metadata);
    let metadata = metadata.to_bytes().unwrap();
    let header = Header { version: 1, metadata: metadata.len() as u64, manifest: opening.manifest.len() as u64 };
    [&header.to_bytes()[..], &metadata, &bundle[before..]].concat()
}

#[test]
fn one_roles_signed_metadata_is_never_taken_for_anothers() {
    let house = House::new();
    let bundle = house.bundle(1, &[&image(1)]);
    assert_eq!(code(house.open(&with_metadata(&bundle, |_| ()))), "taken");
    let root = std::fs::read(house.path("keys/root.json")).unwrap();
    let parts = |m: &Metadata| [m.timestamp.clone(), m.snapshot.clone(), m.targets.clone(), root.clone()];
    for to in 0..3 {
        for from in (0..4).filter(|from| *from != to) {
            let mixed = with_metadata(&bundle, |metadata| {
                let part = parts(metadata)[from].clone();
                *[&mut metadata.timestamp, &mut metadata.snapshot, &mut metadata.targets][to] = part;
            });
            assert!(house.open(&mixed).is_err(), "part {from} was taken for part {to}");
        }
    }
}

#[test]
fn a_signature_of_the_wrong_length_or_of_zeroes_or_of_no_known_key_is_refused() {
    let house = House::new();
    let bundle = house.bundle(1, &[&image(1)]);
    let edit_signature = |edit: &dyn Fn(&mut serde_json::Value)| {
        with_metadata(&bundle, |metadata| {
            let mut json: serde_json::Value = serde_json::from_slice(&metadata.timestamp).unwrap();
            edit(&mut json["signatures"]);
            metadata.timestamp = json.to_string().into_bytes();
        })
    };
    let good = edit_signature(&|_| ());
    assert_eq!(code(house.open(&good)), "taken");
    for length in [0, 2, 126, 130, 128] {
        let bad = edit_signature(&|signatures| signatures[0]["sig"] = "0".repeat(length).into());
        assert_eq!(code(house.open(&bad)), "trust.wrong-signature", "{length} digits");
    }
    let unknown = edit_signature(&|signatures| signatures[0]["keyid"] = "ab".repeat(32).into());
    assert_eq!(code(house.open(&unknown)), "trust.wrong-signature");
    let none = edit_signature(&|signatures| *signatures = serde_json::json!([]));
    assert_eq!(code(house.open(&none)), "trust.wrong-signature");
}

#[test]
fn a_signature_given_twice_does_not_count_twice() {
    let house = House::with_threshold(2);
    let bundle = house.bundle(1, &[&image(1)]);
    let twice = with_metadata(&bundle, |metadata| {
        let mut json: serde_json::Value = serde_json::from_slice(&metadata.targets).unwrap();
        json["signatures"][1] = json["signatures"][0].clone();
        metadata.targets = json.to_string().into_bytes();
    });
    assert_ne!(code(house.open(&twice)), "taken");
}

#[test]
fn a_failed_persist_leaves_the_old_store_whole_and_a_left_over_file_does_no_harm() {
    let house = House::new();
    let (first, second) = (house.bundle(1, &[&image(1)]), house.bundle(2, &[&image(1)]));
    accept(&house, &first);
    let before = std::fs::read(house.path("accepted.json")).unwrap();
    // A directory in the way of the temporary file: writing fails before the store is touched.
    std::fs::create_dir(house.path("accepted.new")).unwrap();
    assert_eq!(house.open(&second).unwrap().accepted().persist().unwrap_err().code(), "trust.store-failed");
    assert_eq!(std::fs::read(house.path("accepted.json")).unwrap(), before);
    std::fs::remove_dir(house.path("accepted.new")).unwrap();
    // What a power cut while writing leaves behind.
    std::fs::write(house.path("accepted.new"), "half of").unwrap();
    assert_eq!(code(house.open(&second)), "taken");
    accept(&house, &second);
    assert_eq!(code(house.open(&first)), "trust.older-metadata");
}

/// Runs itself again under `strace` and compares the whole ordered list of what made the store durable.
#[test]
fn the_store_is_synced_before_it_is_renamed_and_its_directory_after() {
    const TRACED: &str = "BASCULE_TEST_IS_TRACED";
    if std::env::var_os(TRACED).is_some() {
        let house = House::new();
        accept(&house, &house.bundle(1, &[&image(1)]));
        return;
    }
    let log = tempfile::NamedTempFile::new().unwrap();
    let done = std::process::Command::new("strace")
        .args(["-f", "-y", "-e", "trace=fsync,fdatasync,rename,renameat,renameat2", "-o"])
        .arg(log.path())
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", "the_store_is_synced_before_it_is_renamed_and_its_directory_after"])
        .env(TRACED, "1")
        .output()
        .expect("strace is installed by `cargo xtask setup`");
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    let log = std::fs::read_to_string(log.path()).unwrap();
    let calls: Vec<&str> =
        log.lines().filter_map(|line| line.split_once(' ').map(|(_, call)| call.trim_start())).collect();
    let renamed = calls.iter().position(|call| call.starts_with("rename") && call.contains("/accepted.json")).unwrap();
    assert!(calls[renamed - 1].starts_with("fsync") && calls[renamed - 1].contains("/accepted.new>"), "{log}");
    let directory = calls[renamed].split('"').nth(1).and_then(|path| path.strip_suffix("/accepted.new")).unwrap();
    assert!(calls[renamed + 1].starts_with("fsync") && calls[renamed + 1].contains(&format!("<{directory}>")), "{log}");
}
