//! What goes into a bundle comes out of it, and nothing else ever does.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test may fail")]

mod common;

use std::fs::File;
use std::io::{self, Read};
use std::sync::{Arc, Mutex};

use bascule_image::format::{HEADER_BYTES, Header, Metadata};
use bascule_image::keys::KeyDir;
use bascule_image::{BundleRead, BundleReader, ChunkKind, Decoder, Manifest, Opening};
use common::{House, code, image, now, read_all, small_image, stream, years};
use proptest::prelude::*;

#[test]
fn a_bundle_gives_back_its_images_from_a_pipe_and_from_a_file() {
    let house = House::new();
    let images = [image(1), image(2), vec![0; 9000]];
    let bundle = house.bundle(1, &[&images[0], &images[1], &images[2]]);
    assert_eq!(house.read(&bundle).unwrap(), images);
    let file = File::open(house.path("bundle-1")).unwrap();
    let reader = BundleReader::open(Box::new(file), &house.trust, now()).unwrap();
    assert_eq!(reader.total_len(), bundle.len() as u64);
    assert_eq!(reader.offer().order, 1);
    assert_eq!(reader.offer().payloads[1].size, images[1].len() as u64);
    assert_eq!(read_all(reader).unwrap(), images);
}

#[test]
fn the_same_images_and_keys_make_the_same_manifest_and_blobs() {
    let house = House::new();
    let image = image(7);
    let (first, second) = (house.bundle(1, &[&image]), house.bundle(1, &[&image]));
    let digest = house.open(&first).unwrap().manifest_digest();
    assert_eq!(digest, house.open(&second).unwrap().manifest_digest());
}

#[test]
fn all_three_kinds_of_chunks_are_made_and_zeroes_cost_nothing() {
    let house = House::new();
    let mut reader = house.open(&house.bundle(1, &[&image(3)])).unwrap();
    reader.read_tables(&|_, _| false).unwrap();
    let kinds: Vec<_> = reader.chunk_table(0).unwrap().chunks().map(|chunk| (chunk.kind, chunk.stored_len)).collect();
    assert_eq!(kinds[0], (ChunkKind::Zeroes, 0));
    for kind in [ChunkKind::Raw, ChunkKind::Zstd] {
        assert!(kinds.iter().any(|(k, _)| *k == kind), "no chunk is {kind:?}");
    }
}

#[test]
fn a_bundle_cut_off_at_any_byte_is_told_as_truncated() {
    let house = House::new();
    let bundle = house.bundle(1, &[&small_image(1)]);
    for cut in 0..bundle.len() {
        assert_eq!(code(house.read(&bundle[..cut])), "bundle.truncated", "cut at {cut}");
    }
    std::fs::write(house.path("cut"), &bundle[..bundle.len() - 1]).unwrap();
    let cut = File::open(house.path("cut")).unwrap();
    assert_eq!(code(BundleReader::open(Box::new(cut), &house.trust, now())), "bundle.truncated");
}

#[test]
fn a_flipped_bit_anywhere_gives_an_error_or_the_same_images() {
    let house = House::new();
    let images = vec![small_image(1)];
    let bundle = house.bundle(1, &[&images[0]]);
    let mut refused = 0;
    for place in 0..bundle.len() {
        let mut damaged = bundle.clone();
        damaged[place] ^= 1 << (place % 8);
        match house.read(&damaged) {
            Ok(read) => assert_eq!(read, images, "wrong bytes after a flip at {place}"),
            Err(_) => refused += 1,
        }
    }
    // White space and the case of hexadecimal digits of the metadata's JSON may differ without another meaning.
    assert!(refused * 100 > bundle.len() * 97, "only {refused} of {} flips were seen", bundle.len());
}

#[test]
fn bytes_after_the_end_are_refused() {
    let house = House::new();
    let mut bundle = house.bundle(1, &[&image(1)]);
    bundle.push(0);
    assert_eq!(code(house.read(&bundle)), "bundle.trailing-bytes");
    std::fs::write(house.path("long"), &bundle).unwrap();
    let long = File::open(house.path("long")).unwrap();
    assert_eq!(code(BundleReader::open(Box::new(long), &house.trust, now())), "bundle.trailing-bytes");
}

#[test]
fn what_is_no_bundle_or_too_new_or_announces_too_much_is_refused_before_it_is_read() {
    let house = House::new();
    assert_eq!(code(house.open(b"<!DOCTYPE html><html>not found</html>")), "bundle.not-a-bundle");
    assert_eq!(code(house.open(b"")), "bundle.truncated");
    let head = Header { version: 1, metadata: 100, manifest: 100 };
    let mut newer = head.to_bytes();
    newer[8] = 3;
    assert_eq!(code(house.open(&newer)), "bundle.format-too-new");
    for length in [1 << 31, (1 << 32) - 1, 1 << 32, (1 << 32) + 1, 1 << 63, u64::MAX] {
        let large = Header { version: 1, metadata: length, manifest: 1 }.to_bytes();
        assert_eq!(code(house.open(&large)), "bundle.too-large");
        let large = Header { version: 1, metadata: 1, manifest: length }.to_bytes();
        assert_eq!(code(house.open(&large)), "bundle.too-large");
    }
    let mut reserved = head.to_bytes();
    reserved[12] = 1;
    assert_eq!(code(house.open(&reserved)), "bundle.framing");
}

/// Signs any manifest with the vendor's keys and puts it together with tables and blobs.
fn forge(house: &House, name: &str, manifest: &[u8], rest: &[u8]) -> Vec<u8> {
    house.forge(1, name, manifest, rest)
}

fn edited(house: &House, edit: impl Fn(&mut serde_json::Value)) -> Vec<u8> {
    let bundle = house.bundle(1, &[&image(1)]);
    let opening = Opening::inspect(stream(&bundle)).unwrap();
    let mut json: serde_json::Value = serde_json::from_slice(&opening.manifest).unwrap();
    edit(&mut json);
    let name = format!("{}-{}.manifest.json", json["product"].as_str().unwrap(), json["version"].as_str().unwrap());
    let head = HEADER_BYTES + opening.metadata.to_bytes().unwrap().len() + opening.manifest.len();
    forge(house, &name.replace(['/', '\0'], "_"), json.to_string().as_bytes(), &bundle[head..])
}

#[test]
fn a_validly_signed_manifest_that_breaks_a_rule_is_refused() {
    let house = House::new();
    assert_eq!(code(house.read(&edited(&house, |json| json["future"] = "is ignored".into()))), "taken");
    type Edit<'a> = &'a dyn Fn(&mut serde_json::Value);
    let cases: [(&str, Edit<'_>); 12] = [
        ("bundle.unknown-critical", &|json| json["critical"] = vec!["future"].into()),
        ("bundle.manifest-invalid", &|json| json["version"] = "1/2".into()),
        ("bundle.manifest-invalid", &|json| json["compatible"] = serde_json::json!([])),
        ("bundle.manifest-invalid", &|json| json["compatible"] = serde_json::json!(["x".repeat(65)])),
        ("bundle.manifest-invalid", &|json| json["payloads"][0]["role"] = "../root".into()),
        ("bundle.manifest-invalid", &|json| json["payloads"][0]["sha256"] = "AB".repeat(32).into()),
        ("bundle.manifest-invalid", &|json| json["payloads"][0]["size"] = 0.into()),
        ("bundle.manifest-invalid", &|json| json["payloads"][0]["size"] = (-1).into()),
        ("bundle.too-large", &|json| json["payloads"][0]["size"] = u64::MAX.into()),
        ("bundle.too-large", &|json| json["payloads"][0]["blobs"]["length"] = u64::MAX.into()),
        ("bundle.too-large", &|json| json["payloads"][0]["chunk_table"]["length"] = (1u64 << 63).into()),
        ("bundle.manifest-invalid", &|json| {
            let same = json["payloads"][0].clone();
            json["payloads"].as_array_mut().unwrap().push(same);
        }),
    ];
    for (number, (wanted, edit)) in cases.into_iter().enumerate() {
        assert_eq!(code(house.read(&edited(&house, edit))), wanted, "case {number}");
    }
}

#[test]
fn a_manifest_with_a_repeated_key_or_another_name_is_refused() {
    let house = House::new();
    let bundle = house.bundle(1, &[&image(1)]);
    let manifest = String::from_utf8(Opening::inspect(stream(&bundle)).unwrap().manifest).unwrap();
    let twice = manifest.replacen("\"order\": 1", "\"order\": 1, \"x\": 1, \"x\": 2", 1);
    let name = "demo-1.1.0.manifest.json";
    assert_eq!(code(house.open(&forge(&house, name, twice.as_bytes(), b""))), "bundle.manifest-invalid");
    let renamed = forge(&house, "demo-9.manifest.json", manifest.as_bytes(), b"");
    assert_eq!(code(house.open(&renamed)), "bundle.manifest-invalid");
}

#[test]
fn a_short_bundle_that_announces_gigantic_tables_is_refused_at_once() {
    let house = House::new();
    let announce = |size: u64| {
        edited(&house, |json| {
            json["payloads"][0]["size"] = size.into();
            json["payloads"][0]["chunk_table"]["length"] = (8u64 << 20).into();
        })
    };
    let bundle = announce(1 << 40);
    let started = std::time::Instant::now();
    assert_eq!(code(house.read(&bundle)), "bundle.truncated");
    assert!(started.elapsed().as_secs() < 2);
}

/// An input that notes where it was sent.
struct Noting {
    bytes: io::Cursor<Vec<u8>>,
    skips: Arc<Mutex<Vec<u64>>>,
    read: Arc<Mutex<usize>>,
}

impl Read for Noting {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        // One byte at most of every odd request, to show that short reads are fine.
        let most = if *self.read.lock().unwrap() % 2 == 1 { 1 } else { buffer.len() };
        let count = self.bytes.read(&mut buffer[..most])?;
        *self.read.lock().unwrap() += count;
        Ok(count)
    }
}

impl BundleRead for Noting {
    fn skip_to(&mut self, offset: u64) -> io::Result<()> {
        self.skips.lock().unwrap().push(offset);
        self.bytes.set_position(offset);
        Ok(())
    }
}

#[test]
fn skipped_chunks_are_not_fetched_and_the_rest_is_right() {
    let house = House::new();
    let image = image(4);
    let bundle = house.bundle(1, &[&image, &image]);
    let (skips, read) = (Arc::default(), Arc::default());
    let bytes = io::Cursor::new(bundle.clone());
    let input = Noting { bytes, skips: Arc::clone(&skips), read: Arc::clone(&read) };
    let mut reader = BundleReader::open(Box::new(input), &house.trust, now()).unwrap();
    reader.begin_payload(1).unwrap();
    let before = *read.lock().unwrap();
    while reader.peek_chunk().is_some_and(|chunk| chunk.offset < 16384) {
        reader.skip_chunk();
    }
    let (mut raw, mut out) = (Vec::new(), vec![0; 4096]);
    let chunk = reader.fetch_next(&mut raw).unwrap().unwrap();
    let made = Decoder::new().decode(&chunk, &raw, &mut out).unwrap();
    assert_eq!(made, &image[16384..16384 + 4096]);
    assert_eq!(skips.lock().unwrap().len(), 1, "several skipped chunks are one skip");
    assert_eq!(*read.lock().unwrap() - before, chunk.stored_len as usize);
    assert!(reader.begin_payload(0).is_err(), "a reader does not go back");
}

#[test]
fn a_chunk_whose_bytes_change_after_the_check_is_never_given_out() {
    let house = House::new();
    let images = [image(1), image(2)];
    let (ours, other) = (house.bundle(1, &[&images[0]]), house.bundle(2, &[&images[1]]));
    let head = |bundle: &[u8]| {
        let opening = Opening::inspect(stream(bundle)).unwrap();
        let manifest = Manifest::parse(&opening.manifest).unwrap();
        bundle.len() - manifest.payloads[0].blobs.length as usize
    };
    let swapped = [&ours[..head(&ours)], &other[head(&other)..]].concat();
    let error = house.read(&swapped).unwrap_err();
    assert!(["bundle.chunk-mismatch", "bundle.truncated"].contains(&error.code()), "{error}");
}

#[test]
fn swapping_any_part_between_two_valid_bundles_is_refused() {
    let house = House::new();
    let bundles = [house.bundle(1, &[&image(1)]), house.bundle(2, &[&image(2)])];
    let openings = bundles.each_ref().map(|bundle| Opening::inspect(stream(bundle)).unwrap());
    let rest = |which: usize| {
        let opening = &openings[which];
        &bundles[which][HEADER_BYTES + opening.metadata.to_bytes().unwrap().len() + opening.manifest.len()..]
    };
    // Bit by bit: which bundle the timestamp, snapshot, targets, manifest and the rest are taken from.
    for choice in 0..32usize {
        let from = |bit: usize| choice >> bit & 1;
        let metadata = Metadata {
            roots: Vec::new(),
            timestamp: openings[from(0)].metadata.timestamp.clone(),
            snapshot: openings[from(1)].metadata.snapshot.clone(),
            targets: openings[from(2)].metadata.targets.clone(),
        };
        let metadata = metadata.to_bytes().unwrap();
        let manifest = &openings[from(3)].manifest;
        let header = Header { version: 1, metadata: metadata.len() as u64, manifest: manifest.len() as u64 };
        let mixed = [&header.to_bytes()[..], &metadata, manifest, rest(from(4))].concat();
        let result = house.read(&mixed);
        match choice {
            0 => assert_eq!(result.unwrap(), [image(1)]),
            31 => assert_eq!(result.unwrap(), [image(2)]),
            _ => assert!(result.is_err(), "mixture {choice:05b} was taken"),
        }
    }
}

#[test]
fn private_keys_are_readable_by_their_owner_only_and_keys_are_never_overwritten() {
    use std::os::unix::fs::PermissionsExt;
    let house = House::with_threshold(2);
    let keys = std::fs::read_dir(house.path("keys/private")).unwrap().map(|entry| entry.unwrap());
    let modes: Vec<_> = keys.map(|key| key.metadata().unwrap().permissions().mode() & 0o777).collect();
    assert_eq!(modes, [0o600; 6]);
    let new = bascule_image::keys::NewKeys { count: 1, threshold: 1, expires: years(1) };
    assert!(KeyDir::init(house.path("keys"), new).is_err());
    assert!(KeyDir::init(house.path("more"), bascule_image::keys::NewKeys { threshold: 2, ..new }).is_err());
    assert_eq!(house.read(&house.bundle(1, &[&image(1)])).unwrap(), [image(1)]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn any_image_comes_back_whole(parts in proptest::collection::vec((any::<u8>(), 1usize..9000, any::<bool>()), 1..6)) {
        let mut image = Vec::new();
        for (seed, length, plain) in parts {
            let noise = |i: usize| (i as u32).wrapping_mul(2_654_435_761).wrapping_add(u32::from(seed)).rotate_left(9) as u8;
            image.extend((0..length).map(|i| if plain { 0 } else { noise(i) }));
        }
        let house = House::new();
        prop_assert_eq!(house.read(&house.bundle(1, &[&image])).unwrap(), [image]);
    }

    #[test]
    fn any_bytes_are_refused_without_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..2000)) {
        let house = House::new();
        prop_assert!(house.open(&bytes).is_err());
        let framed = [&Header { version: 1, metadata: bytes.len() as u64, manifest: 0 }.to_bytes()[..], &bytes].concat();
        prop_assert!(house.open(&framed).is_err());
        prop_assert!(Metadata::parse(&bytes).is_err());
        prop_assert!(Manifest::parse(&bytes).is_err());
    }
}
