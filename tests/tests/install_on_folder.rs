//! The whole agent, from the offer to the verdict, on a device made of files.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test's own mistakes may end it")]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use bascule_core::{Ending, Group, RollbackReason, State};
use bascule_tests::rehearsal::{Boot, Rehearsal, Run, System, SystemSpec, Temper, Vendor};

/// A vendor with the factory system and the one that is to be installed, and a device that has just come up.
fn device(temper: Temper) -> (Vendor, System, Rehearsal) {
    let vendor = Vendor::new().unwrap();
    let (factory, next) = (vendor.system(1, Temper::Good).unwrap(), vendor.system(2, temper).unwrap());
    let mut device = Rehearsal::new(&vendor, &factory, &[factory.clone(), next.clone()]).unwrap();
    assert!(matches!(device.boot().unwrap(), Boot::Up { group: Group::A, .. }));
    (vendor, next, device)
}

/// Both slots, the loader's files, and everything in the state directory but its lock and what is told for people.
fn disk(device: &Rehearsal) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut paths = vec![device.slot(Group::A), device.slot(Group::B), device.grubenv(), device.fallback()];
    let state = fs::read_dir(device.state()).unwrap().map(|entry| entry.unwrap().path());
    paths.extend(state.filter(|path| !path.ends_with("lock") && !path.ends_with("deployments")));
    paths.into_iter().map(|path| (path.clone(), fs::read(path).unwrap())).collect()
}

/// Offers the bundle and demands that it is refused with this code, and that nothing on the disk has changed.
fn refused(device: &Rehearsal, bundle: &Path, code: &str) -> Run {
    let before = disk(device);
    let run = device.install(bundle).unwrap();
    assert_eq!(run.error_code(), Some(code), "{run:?}");
    assert!(run.said.contains("hint: "), "{run:?}");
    let changed: Vec<PathBuf> =
        disk(device).into_iter().filter(|(p, b)| before.get(p) != Some(b)).map(|(p, _)| p).collect();
    assert_eq!(changed, Vec::<PathBuf>::new(), "{code}: a refused bundle changed the disk");
    run
}

#[test]
fn a_good_system_is_installed_and_committed() {
    let (_vendor, next, mut device) = device(Temper::Good);
    let run = device.install(&next.bundle).unwrap();
    assert!(run.wants_reboot(), "{run:?}");
    let boots = device.settle(5).unwrap();
    assert_eq!(boots.len(), 1);
    assert_eq!(device.booted(), Some(Group::B));
    let record = device.record().unwrap();
    assert_eq!(record.state, State::Idle);
    assert_eq!(record.installed.map(|deployment| deployment.manifest), Some(next.manifest));
    assert_eq!(record.history.last().map(|entry| entry.ending.clone()), Some(Ending::Committed));
    refused(&device, &next.bundle, "bundle.same");
}

#[test]
fn settings_that_were_damaged_at_rest_are_made_anew_and_the_story_says_so_once() {
    let (_vendor, next, mut device) = device(Temper::Good);
    assert!(device.install(&next.bundle).unwrap().wants_reboot());
    device.settle(5).unwrap();
    fs::write(device.grubenv(), [0u8; 1024]).unwrap();
    for _ in 0..2 {
        assert!(matches!(device.boot().unwrap(), Boot::Up { group: Group::B, .. }));
        device.run().unwrap();
    }
    assert!(fs::read(device.grubenv()).unwrap().starts_with(b"# GRUB Environment Block\norder=b a\n"));
    let id = device.record().unwrap().history.last().unwrap().deployment.id.0.clone();
    let story = fs::read_to_string(device.state().join(format!("deployments/{id}.jsonl"))).unwrap();
    let told: Vec<&str> = story.lines().filter(|line| line.contains("\"repaired\"")).collect();
    assert_eq!(told.len(), 1, "{story}");
    assert!(told[0].contains("the boot settings were damaged and are made anew: group b runs"), "{story}");
}

#[test]
fn an_unhealthy_system_is_rolled_back_denied_and_refused_when_it_is_offered_again() {
    let (_vendor, next, mut device) = device(Temper::Unhealthy);
    assert!(device.install(&next.bundle).unwrap().wants_reboot());
    let boots = device.settle(5).unwrap();
    assert_eq!(boots.len(), 2);
    assert_eq!(device.booted(), Some(Group::A));
    assert!(device.record().unwrap().denied(&next.manifest).is_some());
    refused(&device, &next.bundle, "bundle.denied");
}

#[test]
fn a_system_whose_agent_hangs_is_rolled_back_at_the_deadline_by_the_watchdog_alone() {
    let (_vendor, next, mut device) = device(Temper::Hangs);
    assert!(device.install(&next.bundle).unwrap().wants_reboot());
    assert_eq!(device.settle(5).unwrap().len(), 2);
    assert_eq!(device.booted(), Some(Group::A));
    let record = device.record().unwrap();
    assert!(
        record.denied(&next.manifest).is_some_and(|denied| denied.reason == RollbackReason::Deadline),
        "{record:?}"
    );
}

#[test]
fn a_system_that_panics_is_started_three_times_and_the_old_one_says_why_it_is_back() {
    let (_vendor, next, mut device) = device(Temper::Panics);
    assert!(device.install(&next.bundle).unwrap().wants_reboot());
    let boots = device.settle(5).unwrap();
    let panicked = boots.iter().filter(|boot| matches!(boot, Boot::Panicked { group: Group::B, .. })).count();
    assert_eq!((panicked, boots.len()), (3, 4));
    let record = device.record().unwrap();
    assert!(record.denied(&next.manifest).is_some_and(|denied| denied.reason.explain().contains("did not boot")));
    refused(&device, &next.bundle, "bundle.denied");
}

#[test]
fn what_does_not_fit_this_device_is_refused_with_its_code_and_changes_nothing() {
    let (vendor, next, device) = device(Temper::Good);
    let with = |order: u64, change: &dyn Fn(&mut SystemSpec)| {
        let mut spec = SystemSpec::new(order, Temper::Good);
        change(&mut spec);
        vendor.make(spec).unwrap().bundle
    };
    let stranger = Vendor::new().unwrap();
    refused(&device, &stranger.system(2, Temper::Good).unwrap().bundle, "trust.wrong-signature");
    refused(&device, &with(3, &|spec| spec.release.compatible = vec!["toaster".into()]), "bundle.other-hardware");
    refused(&device, &with(4, &|spec| spec.release.product = "other".into()), "bundle.other-product");
    refused(&device, &with(5, &|spec| spec.size = (1 << 20) + 4096), "bundle.too-large-for-slot");
    refused(&device, &with(0, &|_| ()), "bundle.older");
    refused(&device, &vendor.path("nothing-here"), "source.file");
    fs::remove_file(device.root().join("etc/bascule/root.json")).unwrap();
    refused(&device, &next.bundle, "trust.no-root");
}

#[test]
fn a_bundle_cut_short_anywhere_is_refused_and_changes_nothing() {
    let (vendor, next, device) = device(Temper::Good);
    let whole = fs::read(&next.bundle).unwrap();
    let cut = vendor.path("cut.bascule");
    let places = [1, 7, 8, 40, 500, 2000, 4000, whole.len() / 2, whole.len() - 4096, whole.len() - 1];
    for length in places {
        fs::write(&cut, &whole[..length]).unwrap();
        refused(&device, &cut, "bundle.truncated");
    }
    fs::write(&cut, []).unwrap();
    refused(&device, &cut, "bundle.truncated");
    fs::write(&cut, [&whole[..], b"more"].concat()).unwrap();
    refused(&device, &cut, "bundle.trailing-bytes");
}

#[test]
fn a_byte_flipped_in_the_signed_part_is_refused_and_in_a_payload_never_started() {
    let (vendor, next, mut device) = device(Temper::Good);
    let factory = device.systems().first().unwrap().clone();
    let whole = fs::read(&next.bundle).unwrap();
    let flipped = vendor.path("flipped.bascule");
    let image = fs::read(&next.image).unwrap();
    // The second chunk is noise and therefore stored as it is.
    let noise = image.get(16 << 10..(16 << 10) + 64).unwrap();
    let payload = whole.windows(noise.len()).position(|window| window == noise).unwrap();
    for place in (0..payload.min(6000)).step_by(241) {
        let mut bytes = whole.clone();
        bytes[place] ^= 0x20;
        fs::write(&flipped, bytes).unwrap();
        let before = disk(&device);
        let run = device.install(&flipped).unwrap();
        if run.wants_reboot() {
            // White space, and the case of a hexadecimal digit, mean nothing in JSON: it is the same bundle, whole.
            assert_eq!(device.holds(Group::B).unwrap().map(|system| system.manifest), Some(next.manifest));
            device = Rehearsal::new(&vendor, &factory, &[factory.clone(), next.clone()]).unwrap();
            device.boot().unwrap();
            continue;
        }
        assert!(run.error_code().is_some(), "byte {place}: {run:?}");
        assert_eq!(disk(&device), before, "byte {place}: {run:?}");
    }
    device.configure("[prepare]\nmax_attempts = 2\n").unwrap();
    let mut bytes = whole;
    bytes[payload] ^= 1;
    fs::write(&flipped, bytes).unwrap();
    let run = device.install(&flipped).unwrap();
    assert_eq!(run.error_code(), Some("bundle.chunk-mismatch"), "{run:?}");
    let record = device.record().unwrap();
    let ending = record.history.last().map(|entry| entry.ending.clone());
    assert!(matches!(ending, Some(Ending::Failed { error }) if error.code == "bundle.chunk-mismatch"), "{record:?}");
    assert_eq!(device.settle(1).unwrap().len(), 1);
    assert_eq!(device.booted(), Some(Group::A));
}

/// The agent's command under strace with a fault injected.
fn with_fault(device: &Rehearsal, arguments: &[&str], bundle: Option<&Path>, options: &[&str]) -> Run {
    let command = device.command(arguments);
    let mut strace = std::process::Command::new("strace");
    strace.args(["-f", "-o", "/dev/null"]).args(options).arg("--").arg(command.get_program()).args(command.get_args());
    strace.args(bundle);
    Run::of(strace.output().expect("strace is installed: `cargo xtask setup`"))
}

#[test]
fn killed_at_any_call_that_changes_the_disk_the_agent_goes_on_where_it_was() {
    const CALLS: &str = "pwrite64,fsync,rename,unlink,fallocate,write";
    let mut kills = 0;
    for call in 1.. {
        let (_vendor, next, mut device) = device(Temper::Good);
        let inject = format!("inject={CALLS}:signal=KILL:when={call}");
        let run = with_fault(&device, &["run-to-rest", "--install"], Some(&next.bundle), &["-e", &inject]);
        if run.code.is_some() {
            assert!(run.wants_reboot(), "{run:?}");
            break;
        }
        kills += 1;
        // With every other kill the device is started again, with the others only the daemon is.
        if call % 2 == 0 {
            device.boot().unwrap();
        }
        let accepted = device.record().unwrap().state != State::Idle;
        let again = if accepted { device.run().unwrap() } else { device.install(&next.bundle).unwrap() };
        assert!(matches!(again.code, Some(0 | 4)), "call {call}: {again:?}");
        device.settle(3).unwrap();
        let record = device.record().unwrap();
        assert_eq!(record.installed.map(|installed| installed.manifest), Some(next.manifest), "call {call}");
    }
    assert!(kills > 20, "only {kills} calls");
}

#[test]
fn a_second_attempt_keeps_the_chunks_that_the_target_holds_already() {
    let (vendor, next, device) = device(Temper::Good);
    let bundle = vendor.path("once.bascule");
    fs::copy(&next.bundle, &bundle).unwrap();
    let inject = ["-e", "inject=pwrite64:signal=KILL:when=6"];
    assert_eq!(with_fault(&device, &["run-to-rest", "--install"], Some(&bundle), &inject).code, None);
    // The stored bytes of a chunk that was written are spoilt: whoever fetches them again fails.
    let (mut bytes, image) = (fs::read(&bundle).unwrap(), fs::read(&next.image).unwrap());
    let noise = image.get(16 << 10..(16 << 10) + 64).unwrap();
    let place = bytes.windows(noise.len()).position(|window| window == noise).unwrap();
    bytes[place] ^= 1;
    fs::write(&bundle, bytes).unwrap();
    let run = device.run().unwrap();
    assert!(run.wants_reboot(), "{run:?}");
    assert_eq!(device.holds(Group::B).unwrap().map(|system| system.manifest), Some(next.manifest));
}

#[test]
fn without_room_for_the_record_the_bundle_is_refused_and_later_taken() {
    let (_vendor, next, mut device) = device(Temper::Good);
    let record = device.state().join("record.1.json.new");
    let options = ["-P", record.to_str().unwrap(), "-e", "trace=write", "-e", "inject=write:error=ENOSPC"];
    let before = (fs::read(device.slot(Group::B)).unwrap(), fs::read(device.grubenv()).unwrap());
    let run = with_fault(&device, &["run-to-rest", "--install"], Some(&next.bundle), &options);
    assert_eq!((run.code, run.error_code()), (Some(75), Some("state.write")), "{run:?}");
    assert!(run.said.contains("No space left"), "{run:?}");
    assert_eq!((fs::read(device.slot(Group::B)).unwrap(), fs::read(device.grubenv()).unwrap()), before);
    assert_eq!(device.record().unwrap().state, State::Idle);
    assert!(device.install(&next.bundle).unwrap().wants_reboot());
    device.settle(2).unwrap();
    assert_eq!(device.booted(), Some(Group::B));
}

#[test]
fn a_write_that_fails_once_is_made_again_whichever_it_is() {
    let faults = [
        ("data/bascule/record.0.json.new", "inject=write:error=ENOSPC:when=1"),
        ("data/bascule/record.0.json.new", "inject=fsync:error=EIO:when=1"),
        ("boot/efi/bascule/grubenv", "inject=pwrite64:error=EIO:when=1"),
        ("boot/efi/bascule/grubenv", "inject=fsync:error=EIO:when=1"),
    ];
    for (path, inject) in faults {
        let (_vendor, next, mut device) = device(Temper::Good);
        let path = device.root().join(path);
        let options = ["-P", path.to_str().unwrap(), "-e", inject];
        let run = with_fault(&device, &["run-to-rest", "--install"], Some(&next.bundle), &options);
        assert!(run.wants_reboot(), "{path:?} {inject}: {run:?}");
        assert!(run.said.contains("error"), "{path:?} {inject}: the fault was not met: {run:?}");
        device.settle(2).unwrap();
        assert_eq!(device.booted(), Some(Group::B), "{path:?} {inject}");
    }
}

#[test]
fn a_slot_that_cannot_be_written_or_synced_is_given_up_and_never_activated() {
    for call in ["pwrite64", "fsync"] {
        let (_vendor, next, mut device) = device(Temper::Good);
        device.configure("[prepare]\nmax_attempts = 2\n").unwrap();
        let (slot, before) = (device.slot(Group::B), fs::read(device.grubenv()).unwrap());
        let inject = format!("inject={call}:error=EIO");
        let options = ["-P", slot.to_str().unwrap(), "-e", &inject];
        let run = with_fault(&device, &["run-to-rest", "--install"], Some(&next.bundle), &options);
        assert_eq!((run.code, run.error_code()), (Some(75), Some("prepare.slot-io")), "{call}: {run:?}");
        let ending = device.record().unwrap().history.last().map(|entry| entry.ending.clone());
        assert!(matches!(&ending, Some(Ending::Failed { error }) if error.code == "prepare.slot-io"), "{ending:?}");
        assert_eq!(fs::read(device.grubenv()).unwrap(), before);
        device.settle(1).unwrap();
        assert_eq!(device.booted(), Some(Group::A));
    }
}
