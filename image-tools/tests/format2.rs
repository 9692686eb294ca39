//! Bundles of format 2: deltas, packed tables, full data elsewhere; and that those of format 1 stay readable.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test may fail")]

mod common;

use std::fs;
use std::path::{Path, PathBuf};

use bascule_image::delta::apply::InMemory;
use bascule_image::format::HEADER_BYTES;
use bascule_image::manifest::{BlobsPlace, sha256};
use bascule_image::write::{BaseSpec, BundleSpec, create_bundle};
use bascule_image::{BundleError, BundleFile, BundleReader, ChunkMaker, DeltaTable, Manifest, Opening, TrustStore};
use common::{House, code, image, now, read_all, stream};
use serde_json::{Value, json};

/// A vendor whose newest image has two older ones.
struct Vendor {
    house: House,
    old: [Vec<u8>; 2],
    new: Vec<u8>,
}

impl Vendor {
    fn new() -> Self {
        let house = House::new();
        let old = [image(1), [image(2), image(3)].concat()];
        let mut new = [&old[0][..9000], b"what is new", &old[0][9000..], &old[1][20_000..]].concat();
        new[100] = 7;
        fs::write(house.path("old-0"), &old[0]).unwrap();
        fs::write(house.path("old-1"), &old[1]).unwrap();
        Vendor { house, old, new }
    }

    fn spec(&self, full: BlobsPlace) -> BundleSpec {
        let base = |number: usize, version: Option<&str>| BaseSpec {
            role: "root".into(),
            image: self.house.path(&format!("old-{number}")),
            version: version.map(ToOwned::to_owned),
        };
        BundleSpec { bases: vec![base(0, Some("1.0.0")), base(1, None)], full, ..self.house.spec(2, &[&self.new]) }
    }

    fn create(&self, full: BlobsPlace) -> (PathBuf, Vec<u8>) {
        let output = self.house.path("new.bascule");
        create_bundle(&self.spec(full), &self.house.keys, &output, &mut |_| ()).unwrap();
        (output.clone(), fs::read(output).unwrap())
    }

    /// The image, made by delta `number`.
    fn apply(&self, reader: &mut BundleReader, number: usize) -> Result<Vec<u8>, BundleError> {
        reader.begin_delta(0, number)?;
        let table = reader.delta_table(0, number);
        let mut base = InMemory::new(&self.old[number], table.and_then(DeltaTable::units));
        let mut maker = ChunkMaker::new(table.and_then(DeltaTable::prediction));
        let (mut stored, mut out) = (Vec::new(), vec![0; 4096]);
        let mut made = Vec::new();
        while let Some(chunk) = reader.skip_delta_chunk() {
            reader.fetch_delta(&chunk, &mut stored)?;
            made.extend_from_slice(maker.make(&chunk, &stored, &mut base, &mut out)?);
        }
        Ok(made)
    }
}

fn manifest(bundle: &[u8]) -> Manifest {
    Manifest::parse(&Opening::inspect(stream(bundle)).unwrap().manifest).unwrap()
}

#[test]
fn each_delta_and_the_full_data_make_the_same_image() {
    let vendor = Vendor::new();
    let (_, bundle) = vendor.create(BlobsPlace::Inside);
    let mut reader = vendor.house.open(&bundle).unwrap();
    reader.read_tables(&|_, _| true).unwrap();
    assert_eq!(vendor.apply(&mut reader, 0).unwrap(), vendor.new);
    assert_eq!(vendor.apply(&mut reader, 1).unwrap(), vendor.new);
    assert_eq!(read_all(reader).unwrap(), std::slice::from_ref(&vendor.new));
    let manifest = manifest(&bundle);
    let deltas = &manifest.payloads[0].deltas;
    assert_eq!(deltas[0].base.version.as_deref(), Some("1.0.0"));
    assert_eq!(deltas[1].base.version, None);
    for (delta, old) in deltas.iter().zip(&vendor.old) {
        assert_eq!((delta.base.size, delta.base.sha256), (old.len() as u64, sha256(old)));
    }
    assert!(deltas.iter().all(|delta| delta.blobs < manifest.payloads[0].blobs.length));
}

#[test]
fn deltas_are_read_once_in_order_and_only_those_that_were_wanted() {
    let vendor = Vendor::new();
    let (_, bundle) = vendor.create(BlobsPlace::Inside);
    let open = || vendor.house.open(&bundle).unwrap();
    let misused = |result: Result<(), BundleError>| assert_eq!(code(result), "bundle.reader-misused");
    let mut reader = open();
    misused(reader.begin_delta(0, 0));
    reader.read_tables(&|_, delta| delta.base.version.is_none()).unwrap();
    misused(reader.begin_delta(0, 0));
    misused(reader.begin_delta(0, 2));
    misused(reader.begin_delta(1, 0));
    assert!(reader.delta_table(0, 0).is_none() && reader.delta_table(0, 1).is_some());
    assert_eq!(vendor.apply(&mut reader, 1).unwrap(), vendor.new);
    misused(reader.begin_delta(0, 1));
    reader.begin_payload(0).unwrap();
    misused(reader.begin_delta(0, 1));
    assert!(reader.skip_delta_chunk().is_none());
    let mut reader = open();
    assert_eq!(read_all(std::mem::replace(&mut reader, open())).unwrap(), std::slice::from_ref(&vendor.new));
    reader.read_tables(&|_, _| true).unwrap();
    reader.begin_delta(0, 0).unwrap();
    assert!(reader.peek_chunk().is_none() && reader.skip_chunk().is_none());
    let chunk = reader.skip_delta_chunk().unwrap();
    reader.begin_payload(0).unwrap();
    misused(reader.fetch_delta(&chunk, &mut Vec::new()));
}

#[test]
fn full_data_beside_the_bundle_are_found_there_and_nowhere_else() {
    let vendor = Vendor::new();
    let (path, bundle) = vendor.create(BlobsPlace::Beside);
    let beside = vendor.house.path("demo-1.2.0.root.blobs");
    assert_eq!(fs::metadata(&beside).unwrap().len(), manifest(&bundle).payloads[0].blobs.length);
    let open = || BundleReader::open(Box::new(BundleFile::open(&path).unwrap()), &vendor.house.trust, now()).unwrap();
    let mut reader = open();
    reader.read_tables(&|_, _| true).unwrap();
    assert_eq!(vendor.apply(&mut reader, 1).unwrap(), vendor.new);
    assert_eq!(read_all(reader).unwrap(), std::slice::from_ref(&vendor.new));
    assert_eq!(code(vendor.house.read(&bundle)), "bundle.full-data-missing");
    let whole = fs::read(&beside).unwrap();
    fs::write(&beside, &whole[1..]).unwrap();
    assert_eq!(code(read_all(open())), "bundle.truncated");
    fs::write(&beside, [&whole[..], b"x"].concat()).unwrap();
    assert_eq!(code(read_all(open())), "bundle.trailing-bytes");
    fs::write(&beside, [b"x", &whole[1..]].concat()).unwrap();
    assert_eq!(code(read_all(open())), "bundle.chunk-mismatch");
    fs::remove_file(&beside).unwrap();
    assert_eq!(code(read_all(open())), "bundle.full-data-missing");
}

#[test]
fn a_bundle_without_full_data_says_so_and_its_deltas_are_right() {
    let vendor = Vendor::new();
    let (_, bundle) = vendor.create(BlobsPlace::Absent);
    let mut reader = vendor.house.open(&bundle).unwrap();
    reader.read_tables(&|_, _| true).unwrap();
    assert_eq!(vendor.apply(&mut reader, 0).unwrap(), vendor.new);
    assert_eq!(code(reader.begin_payload(0)), "bundle.no-full-data");
    let names = fs::read_dir(vendor.house.dir.path()).unwrap().map(|entry| entry.unwrap().file_name());
    assert!(names.into_iter().all(|name| Path::new(&name).extension().is_none_or(|end| end != "blobs")));
    let none = BundleSpec { bases: Vec::new(), ..vendor.spec(BlobsPlace::Absent) };
    assert!(create_bundle(&none, &vendor.house.keys, &vendor.house.path("none"), &mut |_| ()).is_err());
    assert!(!vendor.house.path("none").exists());
}

#[test]
fn only_what_needs_the_newer_format_has_it() {
    let vendor = Vendor::new();
    let version = |bundle: &[u8]| u16::from_le_bytes([bundle[8], bundle[9]]);
    assert_eq!(version(&vendor.house.bundle(1, &[&vendor.new])), 1);
    for full in [BlobsPlace::Inside, BlobsPlace::Beside, BlobsPlace::Absent] {
        assert_eq!(version(&vendor.create(full).1), 2, "{full:?}");
    }
    let beside = BundleSpec { bases: Vec::new(), ..vendor.spec(BlobsPlace::Beside) };
    create_bundle(&beside, &vendor.house.keys, &vendor.house.path("beside"), &mut |_| ()).unwrap();
    assert_eq!(version(&fs::read(vendor.house.path("beside")).unwrap()), 2);
}

/// The bundle with another manifest, validly signed, and other tables and blobs.
fn edited(house: &House, bundle: &[u8], edit: impl Fn(&mut Value, &mut Vec<u8>)) -> Vec<u8> {
    let opening = Opening::inspect(stream(bundle)).unwrap();
    let mut value: Value = serde_json::from_slice(&opening.manifest).unwrap();
    let head = HEADER_BYTES + opening.metadata.to_bytes().unwrap().len() + opening.manifest.len();
    let mut rest = bundle[head..].to_vec();
    edit(&mut value, &mut rest);
    house.forge(2, "demo-1.2.0.manifest.json", value.to_string().as_bytes(), &rest)
}

fn verdict(vendor: &Vendor, bundle: &[u8], edit: impl Fn(&mut Value)) -> &'static str {
    let bundle = edited(&vendor.house, bundle, |value, _| edit(value));
    let tried = vendor.house.open(&bundle).and_then(|mut reader| {
        reader.read_tables(&|_, _| true)?;
        vendor.apply(&mut reader, 0)
    });
    if tried.as_ref().is_ok_and(|made| *made != vendor.new) { "another image" } else { code(tried) }
}

#[test]
fn a_validly_signed_manifest_whose_deltas_break_a_rule_is_refused() {
    let vendor = Vendor::new();
    let (_, bundle) = vendor.create(BlobsPlace::Inside);
    fn delta(value: &mut Value) -> &mut Value {
        &mut value["payloads"][0]["deltas"][0]
    }
    assert_eq!(verdict(&vendor, &bundle, |_| ()), "taken");
    assert_eq!(verdict(&vendor, &bundle, |value| delta(value)["future"] = json!({ "is": ["ignored"] })), "taken");
    assert_eq!(verdict(&vendor, &bundle, |value| delta(value)["base"]["future"] = 1.into()), "taken");
    type Edit<'a> = &'a dyn Fn(&mut Value);
    let cases: [(&str, Edit<'_>); 14] = [
        ("bundle.too-large", &|value| delta(value)["base"]["size"] = ((1u64 << 40) + 1).into()),
        ("bundle.too-large", &|value| delta(value)["blobs"] = u64::MAX.into()),
        ("bundle.too-large", &|value| {
            let size = value["payloads"][0]["size"].as_u64().unwrap();
            delta(value)["blobs"] = (size + 1).into();
        }),
        ("bundle.too-large", &|value| delta(value)["table"]["length"] = ((8u64 << 20) + 1).into()),
        ("bundle.too-large", &|value| delta(value)["table"]["unpacked"] = ((8u64 << 20) + 1).into()),
        ("bundle.too-large", &|value| value["payloads"][0]["chunk_table"]["unpacked"] = (1u64 << 40).into()),
        ("bundle.too-large", &|value| {
            let same = delta(value).clone();
            value["payloads"][0]["deltas"] = vec![same; 33].into();
        }),
        ("bundle.manifest-invalid", &|value| delta(value)["base"]["version"] = "../1".into()),
        ("bundle.manifest-invalid", &|value| delta(value)["base"]["sha256"] = "1".into()),
        ("bundle.manifest-invalid", &|value| value["payloads"][0]["blobs"]["place"] = "elsewhere".into()),
        ("bundle.manifest-invalid", &|value| {
            value["payloads"][0]["blobs"]["place"] = "absent".into();
            value["payloads"][0]["deltas"] = json!([]);
        }),
        ("bundle.table-invalid", &|value| delta(value)["table"]["sha256"] = "0".repeat(64).into()),
        ("bundle.table-invalid", &|value| {
            let unpacked = delta(value)["table"]["unpacked"].as_u64().unwrap();
            delta(value)["table"]["unpacked"] = (unpacked + 1).into();
        }),
        ("bundle.table-invalid", &|value| delta(value)["base"]["size"] = 4096.into()),
    ];
    for (number, (wanted, edit)) in cases.into_iter().enumerate() {
        assert_eq!(verdict(&vendor, &bundle, edit), wanted, "case {number}");
    }
}

/// Replaces the table of the first delta by `table`, with everything that is said of it.
fn with_table(vendor: &Vendor, bundle: &[u8], change: impl Fn(&mut Vec<u8>)) -> Vec<u8> {
    edited(&vendor.house, bundle, |value, rest| {
        let length = |about: &Value| about["length"].as_u64().unwrap() as usize;
        let start = length(&value["payloads"][0]["chunk_table"]);
        let about = &mut value["payloads"][0]["deltas"][0]["table"];
        let end = start + length(about);
        let mut table = zstd::bulk::decompress(&rest[start..end], 1 << 20).unwrap();
        change(&mut table);
        let packed = zstd::bulk::compress(&table, 3).unwrap();
        *about = json!({ "length": packed.len(), "sha256": sha256(&packed), "unpacked": table.len() });
        rest.splice(start..end, packed);
    })
}

#[test]
fn a_chunk_from_the_future_is_told_before_anything_is_made() {
    let vendor = Vendor::new();
    let (_, bundle) = vendor.create(BlobsPlace::Inside);
    let read = |change: &dyn Fn(&mut Vec<u8>)| {
        let mut reader = vendor.house.open(&with_table(&vendor, &bundle, change)).unwrap();
        code(reader.read_tables(&|_, _| true))
    };
    assert_eq!(read(&|_| ()), "taken");
    assert_eq!(read(&|table| table[0] = 6), "bundle.unknown-chunk-kind");
    assert_eq!(read(&|table| table[1] = 1), "bundle.unknown-chunk-kind");
    assert_eq!(read(&|table| table.truncate(table.len() - 1)), "bundle.table-invalid");
    // An agent that does not want the delta does not mind.
    let future = with_table(&vendor, &bundle, |table| table[1] = 1);
    assert_eq!(vendor.house.read(&future).unwrap(), std::slice::from_ref(&vendor.new));
}

#[test]
fn a_changed_byte_anywhere_behind_the_manifest_is_an_error_or_changes_nothing() {
    let vendor = Vendor::new();
    let (_, bundle) = vendor.create(BlobsPlace::Inside);
    let opening = Opening::inspect(stream(&bundle)).unwrap();
    let head = HEADER_BYTES + opening.metadata.to_bytes().unwrap().len() + opening.manifest.len();
    for place in (head..bundle.len()).step_by(997) {
        let mut damaged = bundle.clone();
        damaged[place] ^= 1 << (place % 8);
        let mut reader = vendor.house.open(&damaged).unwrap();
        let tried = reader.read_tables(&|_, _| true).and_then(|()| vendor.apply(&mut reader, 0));
        assert!(tried.is_err() || tried.is_ok_and(|made| made == vendor.new), "a flip at {place}");
    }
}

#[test]
fn tables_that_do_not_fit_in_memory_together_are_passed_over() {
    let vendor = Vendor::new();
    let (_, bundle) = vendor.create(BlobsPlace::Inside);
    let large = edited(&vendor.house, &bundle, |value, _| {
        value["payloads"][0]["deltas"][0]["table"]["unpacked"] = (8u64 << 20).into();
    });
    let mut reader = vendor.house.open(&large).unwrap();
    reader.read_tables(&|_, _| true).unwrap();
    assert!(reader.delta_table(0, 0).is_none(), "8 MiB and the chunk table are more than 8 MiB");
    assert_eq!(vendor.apply(&mut reader, 1).unwrap(), vendor.new);
}

/// Made by the program of the version before, signed on 2026-11-21 for two years.
#[test]
fn a_bundle_of_format_1_stays_readable() {
    let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data");
    let scratch = tempfile::tempdir().unwrap();
    let trust = TrustStore::new(data.join("format-1.root.json"), scratch.path().join("accepted.json"));
    let input = BundleFile::open(&data.join("format-1.bascule")).unwrap();
    let reader = BundleReader::open(Box::new(input), &trust, "2026-11-22T00:00:00Z".parse().unwrap()).unwrap();
    assert!(reader.payloads().iter().all(|payload| payload.deltas.is_empty()));
    let images = read_all(reader).unwrap();
    let digests: Vec<_> = images.iter().map(|image| sha256(image).to_string()).collect();
    assert_eq!(digests, ["1313ee8269a1d2975f3e928faca62ffa823d3e97ed54941ab722811ca7a2aae9"]);
}

#[test]
fn a_format_from_the_future_is_refused_by_its_number() {
    let vendor = Vendor::new();
    let (_, bundle) = vendor.create(BlobsPlace::Inside);
    let mut future = bundle;
    future[8] = 3;
    let refused = vendor.house.open(&future).unwrap_err();
    assert_eq!(refused.code(), "bundle.format-too-new");
    assert!(refused.to_string().contains('3') && refused.to_string().contains('2'), "{refused}");
}
