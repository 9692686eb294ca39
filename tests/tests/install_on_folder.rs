//! The whole agent, from the offer to the verdict, on a device made of files.

use std::fs;

use bascule_core::{Ending, Group, State};
use bascule_tests::rehearsal::{Boot, Rehearsal, System, Temper, Vendor};

/// A vendor with the factory system and the one that is to be installed, and a device that has just come up.
fn device(temper: Temper) -> (Vendor, System, Rehearsal) {
    let vendor = Vendor::new().unwrap();
    let (factory, next) = (vendor.system(1, Temper::Good).unwrap(), vendor.system(2, temper).unwrap());
    let mut device = Rehearsal::new(&vendor, &factory, &[factory.clone(), next.clone()]).unwrap();
    assert!(matches!(device.boot().unwrap(), Boot::Up { group: Group::A, .. }));
    (vendor, next, device)
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
}

#[test]
fn an_unhealthy_system_is_rolled_back_denied_and_refused_when_it_is_offered_again() {
    let (_vendor, next, mut device) = device(Temper::Unhealthy);
    assert!(device.install(&next.bundle).unwrap().wants_reboot());
    let boots = device.settle(5).unwrap();
    assert_eq!(boots.len(), 2);
    assert_eq!(device.booted(), Some(Group::A));
    assert!(device.record().unwrap().denied(&next.manifest).is_some());
    let before = fs::read(device.grubenv()).unwrap();
    let again = device.install(&next.bundle).unwrap();
    assert_eq!(again.error_code(), Some("bundle.denied"), "{again:?}");
    assert_eq!(fs::read(device.grubenv()).unwrap(), before);
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
    assert_eq!(device.install(&next.bundle).unwrap().error_code(), Some("bundle.denied"));
}
