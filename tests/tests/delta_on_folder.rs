//! Installs by delta on a device made of files: what is fetched, copied, healed and refused.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test's own mistakes may end it"
)]

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use bascule_core::{Ending, Group, State, Transfer};
use bascule_image::manifest::{BlobsPlace, Payload};
use bascule_image::{BundleReader, Chunk, DeltaChunk, Timestamp, TrustStore, Way};
use bascule_tests::HttpServer;
use bascule_tests::rehearsal::{Boot, Rehearsal, Run, System, SystemSpec, Temper, Vendor};

/// Large enough that heads and windows are small beside it.
const IMAGE_BYTES: usize = 1000 << 10;
/// What an HTTP source asks for before it knows how much is wanted.
const WINDOW: u64 = 64 << 10;

/// A vendor, its factory system, an update of it, and a device that has come up with the factory system.
struct House {
    vendor: Vendor,
    factory: System,
    next: System,
    device: Rehearsal,
}

impl House {
    fn new(change: impl FnOnce(&mut SystemSpec)) -> House {
        let vendor = Vendor::new().unwrap();
        let factory = vendor.make(SystemSpec { size: IMAGE_BYTES, ..SystemSpec::new(1, Temper::Good) }).unwrap();
        let mut spec = SystemSpec::update_of(&factory, 2);
        change(&mut spec);
        let next = vendor.make(spec).unwrap();
        let mut device = Rehearsal::new(&vendor, &factory, &[factory.clone(), next.clone()]).unwrap();
        assert!(matches!(device.boot().unwrap(), Boot::Up { group: Group::A, .. }));
        House { vendor, factory, next, device }
    }

    fn serve(&self) -> HttpServer {
        HttpServer::serve(self.next.bundle.parent().unwrap()).unwrap()
    }

    fn url(&self, server: &HttpServer) -> String {
        server.url(&self.next.bundle.file_name().unwrap().to_string_lossy())
    }

    fn install_url(&self, url: &str) -> Run {
        Run::of(self.device.command(&["run-to-rest", "--install", url]).output().unwrap())
    }

    /// The bundle's payload, the chunks of its one delta, and what lies before its first blob.
    fn delta(&self) -> (Payload, Vec<DeltaChunk>, u64) {
        let trust = TrustStore::new(self.device.root().join("etc/bascule/root.json"), self.vendor.path("accepted"));
        let input = Box::new(File::open(&self.next.bundle).unwrap());
        let mut reader = BundleReader::open(input, &trust, Timestamp::now()).unwrap();
        reader.read_tables(&|_, _| true).unwrap();
        let table = reader.delta_table(0, 0).unwrap();
        let chunks = table.chunks(reader.chunk_table(0).unwrap()).collect();
        (reader.payloads().first().unwrap().clone(), chunks, reader.head_len())
    }

    /// Changes one byte of each of the booted slot's blocks at `offsets`.
    fn spoil(&self, offsets: &[u64]) {
        let slot = OpenOptions::new().read(true).write(true).open(self.device.slot(Group::A)).unwrap();
        for offset in offsets {
            let mut byte = [0];
            slot.read_exact_at(&mut byte, *offset).unwrap();
            slot.write_all_at(&[byte[0] ^ 0x20], *offset).unwrap();
        }
    }

    /// Demands that the new system is whole in group `b`, lets it commit, and says where its bytes came from.
    fn committed(&mut self) -> Transfer {
        let held = self.device.holds(Group::B).unwrap().map(|system| system.manifest);
        assert_eq!(held, Some(self.next.manifest));
        self.device.settle(3).unwrap();
        assert_eq!(self.device.booted(), Some(Group::B));
        let entry = self.device.record().unwrap().history.last().cloned().unwrap();
        assert_eq!(entry.ending, Ending::Committed);
        entry.deployment.transfer.unwrap()
    }

    /// Demands that an install fails with this code; says the whole run.
    fn fails(&self, source: &str, code: &str) -> Run {
        let run = self.install_url(source);
        assert_eq!(run.error_code(), Some(code), "{run:?}");
        run
    }
}

/// Chunks with a source that touches the block at `offset`.
fn touched(chunks: &[DeltaChunk], offsets: &[u64]) -> Vec<Chunk> {
    let touches = |chunk: &&DeltaChunk| {
        chunk.source.iter().any(|range| offsets.iter().any(|at| (range.offset..range.end()).contains(at)))
    };
    chunks.iter().filter(touches).map(|chunk| chunk.output).collect()
}

fn sum(numbers: impl Iterator<Item = u32>) -> u64 {
    numbers.map(u64::from).sum()
}

#[test]
fn an_update_of_the_booted_system_fetches_its_delta_and_nothing_more() {
    let mut house = House::new(|_| ());
    let server = house.serve();
    let run = house.install_url(&house.url(&server));
    assert!(run.wants_reboot(), "{run:?}");
    let (payload, chunks, head) = house.delta();
    for way in [|way| way == Way::Copied, |way| matches!(way, Way::Patched { .. }), |way| way == Way::Zeroes] {
        assert!(chunks.iter().any(|chunk| way(chunk.way)), "the image has chunks of every kind");
    }
    let transfer = house.committed();
    let made = chunks.iter().filter(|chunk| !chunk.source.is_empty());
    let (copied, saved) = made.fold((0, 0), |(copied, saved), chunk| {
        let less = chunk.output.stored_len - chunk.stored_len;
        (copied + u64::from(chunk.output.len), saved + u64::from(less))
    });
    assert_eq!((transfer.base.as_deref(), transfer.copied), (Some("1.0.0"), copied));
    assert_eq!((transfer.healed, transfer.kept, transfer.saved), (0, 0, saved));
    let delta = payload.deltas[0].blobs;
    assert!(delta < payload.blobs.length / 2, "{delta} of {}", payload.blobs.length);
    let most = head.max(WINDOW) + delta;
    assert!(server.body_bytes() <= most, "{} were sent, {most} at most are needed", server.body_bytes());
    assert_eq!(transfer.fetched, server.body_bytes());
}

#[test]
fn a_booted_slot_that_was_written_to_heals_from_the_full_data_chunk_by_chunk() {
    let (_, chunks, _) = House::new(|_| ()).delta();
    // One in a copied chunk, two in patched ones, one in a block that nothing is made of.
    let source = |wanted: fn(&Way) -> bool| chunks.iter().find(|chunk| wanted(&chunk.way)).unwrap().source[0].offset;
    let patched = source(|way| matches!(way, Way::Patched { .. }));
    let offsets = [source(|way| *way == Way::Copied) + 5, patched + 4000, patched + 17, 900 << 10];
    let mut house = House::new(|_| ());
    house.spoil(&offsets);
    let server = house.serve();
    let run = house.install_url(&house.url(&server));
    assert!(run.wants_reboot(), "{run:?}");
    assert!(run.said.contains("healing"), "{run:?}");
    let (payload, chunks, head) = house.delta();
    let touched = touched(&chunks, &offsets);
    assert!((2..8).contains(&touched.len()), "{touched:?}");
    let transfer = house.committed();
    assert_eq!(transfer.healed, sum(touched.iter().map(|chunk| chunk.len)));
    let most = head.max(WINDOW) + payload.deltas[0].blobs + sum(touched.iter().map(|chunk| chunk.stored_len));
    assert!(server.body_bytes() <= most, "{} were sent, {most} at most are needed", server.body_bytes());
}

#[test]
fn a_part_of_the_booted_slot_that_cannot_be_read_heals_as_well() {
    let mut house = House::new(|_| ());
    let slot = house.device.slot(Group::A);
    let size = fs::metadata(&slot).unwrap().len();
    // A file that ends early is what a device with bad sectors at its end looks like to a reader.
    OpenOptions::new().write(true).open(&slot).unwrap().set_len(300 << 10).unwrap();
    let run = house.install_url(&house.next.bundle.display().to_string());
    assert!(run.wants_reboot(), "{run:?}");
    OpenOptions::new().write(true).open(&slot).unwrap().set_len(size).unwrap();
    let transfer = house.committed();
    assert!(transfer.healed > 300 << 10 && transfer.copied > 0, "{transfer:?}");
}

#[test]
fn a_delta_against_another_image_is_seen_before_its_first_byte_is_fetched() {
    let mut house = House::new(|_| ());
    let vendor = Vendor::new().unwrap();
    let stranger = vendor.make(SystemSpec { size: IMAGE_BYTES, ..SystemSpec::new(7, Temper::Good) }).unwrap();
    // The system in the slot says the same version, and is another build of it.
    let other = fs::read(&stranger.image).unwrap();
    OpenOptions::new().write(true).open(house.device.slot(Group::A)).unwrap().write_all_at(&other, 0).unwrap();
    let server = house.serve();
    house.device.configure("[prepare]\nways = [\"delta\"]\n").unwrap();
    house.fails(&house.url(&server), "prepare.no-way");
    let (payload, _, head) = house.delta();
    assert!(server.body_bytes() <= head.max(WINDOW), "{} of {head}", server.body_bytes());
    house.device.configure("[prepare]\nways = [\"delta\", \"full\"]\n").unwrap();
    let run = house.install_url(&house.url(&server));
    assert!(run.wants_reboot(), "{run:?}");
    let transfer = house.committed();
    assert_eq!((&transfer.base, transfer.copied, transfer.healed), (&None, 0, 0));
    assert!(transfer.fetched >= payload.blobs.length, "{transfer:?}");
}

#[test]
fn a_device_of_another_version_does_not_read_the_delta_at_all() {
    let vendor = Vendor::new().unwrap();
    let old = vendor.make(SystemSpec { size: IMAGE_BYTES, ..SystemSpec::new(1, Temper::Good) }).unwrap();
    let middle = vendor.make(SystemSpec::update_of(&old, 2)).unwrap();
    let next = vendor.make(SystemSpec::update_of(&middle, 3)).unwrap();
    let mut device = Rehearsal::new(&vendor, &old, &[old.clone(), next.clone()]).unwrap();
    device.boot().unwrap();
    let run = device.install(&next.bundle).unwrap();
    assert!(run.wants_reboot(), "{run:?}");
    assert!(run.said.contains("none of the 1 in the bundle"), "{run:?}");
}

#[test]
fn the_policy_caps_the_bytes_before_and_in_the_middle_of_an_install() {
    let house = House::new(|_| ());
    let (payload, chunks, _) = house.delta();
    let before = fs::read(house.device.slot(Group::B)).unwrap();
    let path = house.next.bundle.display().to_string();
    let delta = payload.deltas[0].blobs;
    house.device.configure(&format!("[prepare]\nmax_fetch = \"{}\"\n", delta - 1)).unwrap();
    let refused = house.fails(&path, "prepare.no-way");
    assert!(refused.said.contains("prepare.max_fetch allows"), "{refused:?}");
    assert_eq!(fs::read(house.device.slot(Group::B)).unwrap(), before, "a refused bundle changes nothing");
    // Room for the delta, and not for what was fetched before it.
    house.device.configure(&format!("[prepare]\nmax_fetch = \"{}\"\n", delta + 100)).unwrap();
    house.fails(&path, "prepare.fetch-limit");
    let ending = house.device.record().unwrap().history.last().map(|entry| entry.ending.clone());
    assert!(matches!(&ending, Some(Ending::Failed { error }) if !error.retryable), "{ending:?}");
    // Room for all of that, and not for what a look at the slot shows that must be healed on top.
    house.device.configure(&format!("[prepare]\nmax_fetch = \"{}\"\n", delta + 20_000)).unwrap();
    let copied: Vec<u64> =
        chunks.iter().filter(|chunk| chunk.way == Way::Copied).skip(1).map(|chunk| chunk.source[0].offset).collect();
    house.spoil(&copied);
    let before = fs::read(house.device.slot(Group::B)).unwrap();
    house.fails(&path, "prepare.no-way");
    assert_eq!(fs::read(house.device.slot(Group::B)).unwrap(), before, "it is known before the first write");
}

#[test]
fn a_policy_of_full_images_alone_takes_no_delta() {
    let mut house = House::new(|_| ());
    house.device.configure("[prepare]\nways = [\"full\"]\n").unwrap();
    assert!(house.device.install(&house.next.bundle).unwrap().wants_reboot());
    let transfer = house.committed();
    assert_eq!((transfer.base, transfer.copied), (None, 0));
}

#[test]
fn full_data_beside_the_bundle_heal_from_a_folder_and_from_a_server() {
    for over_http in [false, true] {
        let mut house = House::new(|spec| spec.full = BlobsPlace::Beside);
        let (_, chunks, _) = house.delta();
        let spoilt = chunks.iter().find(|chunk| chunk.way == Way::Copied).unwrap().source[0].offset;
        house.spoil(&[spoilt]);
        let server = house.serve();
        let source = if over_http { house.url(&server) } else { house.next.bundle.display().to_string() };
        let run = house.install_url(&source);
        assert!(run.wants_reboot(), "{run:?}");
        assert!(house.committed().healed > 0);
        let asked = server.requests().iter().any(|request| request.path.ends_with("demo-2.0.0.root.blobs"));
        assert_eq!(asked, over_http);
    }
}

#[test]
fn without_full_data_a_spoilt_slot_fails_with_the_numbers() {
    let house = House::new(|spec| spec.full = BlobsPlace::Absent);
    let (_, chunks, _) = house.delta();
    let spoilt = chunks.iter().find(|chunk| chunk.way == Way::Copied).unwrap().source[0].offset;
    house.spoil(&[spoilt]);
    let run = house.fails(&house.next.bundle.display().to_string(), "prepare.not-healed");
    assert!(run.said.contains(&format!("of {} chunks", chunks.len())), "{run:?}");
    house.spoil(&[spoilt]);
    let run = house.device.install(&house.next.bundle).unwrap();
    assert!(run.wants_reboot(), "what was spoilt and is whole again is no reason: {run:?}");
}

#[test]
fn a_delta_and_its_healing_come_from_a_pipe_as_well() {
    let house = House::new(|_| ());
    let (_, chunks, _) = house.delta();
    let spoilt = chunks.iter().find(|chunk| chunk.way == Way::Copied).unwrap().source[0].offset;
    house.spoil(&[spoilt]);
    let quiet = |command: &mut Command| command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let mut daemon = house.device.command(&[]);
    let program = Path::new(daemon.get_program()).with_file_name("bascule");
    let mut daemon = quiet(&mut daemon);
    let bascule = |arguments: &[&str], input: Stdio| {
        let mut command = Command::new(&program);
        command.arg("--root").arg(house.device.root()).args(arguments).stdin(input).output().unwrap()
    };
    let patience = Instant::now() + Duration::from_secs(20);
    while !bascule(&["status"], Stdio::null()).status.success() && Instant::now() < patience {
        std::thread::yield_now();
    }
    let prepared = bascule(&["prepare", "-"], Stdio::from(File::open(&house.next.bundle).unwrap()));
    daemon.kill().unwrap();
    daemon.wait().unwrap();
    assert!(prepared.status.success(), "{}", String::from_utf8_lossy(&prepared.stderr));
    assert_eq!(house.device.holds(Group::B).unwrap().map(|system| system.manifest), Some(house.next.manifest));
    let State::Prepared { deployment } = house.device.record().unwrap().state else { panic!("it is prepared") };
    let transfer = deployment.transfer.unwrap();
    assert!(transfer.healed > 0 && transfer.copied > 0, "{transfer:?}");
}

#[test]
fn killed_half_way_the_delta_goes_on_and_fetches_little_twice() {
    let mut house = House::new(|_| ());
    house.device.configure("[prepare]\ncheckpoint = \"64K\"\n").unwrap();
    let (payload, _, head) = house.delta();
    let server = house.serve();
    server.limit_bandwidth(Some(150_000));
    let mut daemon = house.device.command(&["run-to-rest", "--install", &house.url(&server)]);
    let mut daemon = daemon.stderr(Stdio::null()).stdout(Stdio::null()).spawn().unwrap();
    let half = head + payload.deltas[0].blobs * 3 / 4;
    let patience = Instant::now() + Duration::from_secs(60);
    while server.body_bytes() < half && Instant::now() < patience {
        std::thread::yield_now();
    }
    daemon.kill().unwrap();
    daemon.wait().unwrap();
    server.limit_bandwidth(None);
    let run = house.device.run().unwrap();
    assert!(run.wants_reboot(), "{run:?}");
    let transfer = house.committed();
    assert!(transfer.kept > 0, "{transfer:?}");
    // Twice: the heads, what was on its way, and a checkpoint interval.
    let most = 2 * head.max(WINDOW) + payload.deltas[0].blobs + 4 * (64 << 10);
    assert!(server.body_bytes() <= most, "{} were sent, {most} at most are needed", server.body_bytes());
}

#[test]
fn the_slot_that_is_read_is_never_written() {
    let mut house = House::new(|_| ());
    let before = fs::read(house.device.slot(Group::A)).unwrap();
    assert!(house.device.install(Path::new(&house.next.bundle)).unwrap().wants_reboot());
    house.committed();
    assert_eq!(fs::read(house.device.slot(Group::A)).unwrap(), before);
    assert!(house.factory.is_in(&before));
}
