//! What a bundle asks of a device, and whether this device may take it.
//!
//! [`blockers`] lists every reason at once, so that nobody has to fix one fault to hear of the next.

use serde::{Deserialize, Serialize};

use crate::record::{Denied, Record};
use crate::words::Digest;

/// What a bundle's signed manifest says of itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Offer {
    /// SHA-256 of the manifest's bytes: the bundle's identity everywhere.
    pub manifest: Digest,
    /// The product's name.
    pub product: String,
    /// The version as people write it; never compared.
    pub version: String,
    /// The version as machines compare it: a greater number is newer.
    pub order: u64,
    /// Names of the hardware it runs on.
    pub compatible: Vec<String>,
    /// What must hold before it may be installed.
    pub requires: Requires,
    /// Anti-rollback epoch: systems of a lower one are refused after this one was committed.
    pub security_epoch: u64,
    /// What goes into which slot.
    pub payloads: Vec<OfferedPayload>,
}

/// What must hold before a bundle may be installed.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Requires {
    /// The least `order` of the booted system it may be installed over.
    pub min_order: Option<u64>,
    /// The version to go to first when `min_order` is not met.
    pub via: Option<String>,
    /// The least version of the agent, as `MAJOR.MINOR.PATCH`.
    pub min_agent: Option<String>,
    /// Bytes that must be free on the file system of the state directory.
    pub free_space: u64,
}

/// One payload of an offer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OfferedPayload {
    /// The slot role it is for, such as `root`.
    pub role: String,
    /// Size of the image in bytes.
    pub size: u64,
}

/// The facts about this device that an offer is held against.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Device {
    /// The product the booted system says it is.
    pub product: String,
    /// Version of the booted system.
    pub version: String,
    /// `order` of the booted system.
    pub order: u64,
    /// Names of the hardware this device is.
    pub compatible: Vec<String>,
    /// The agent's own version, `MAJOR.MINOR.PATCH`.
    pub agent: String,
    /// Bytes free on the file system of the state directory.
    pub free_space: u64,
    /// Denials older than this have expired, seconds since 1970; `None`: they never do.
    pub denials_since: Option<i64>,
    /// Roles and sizes in bytes of the target group's slots.
    pub target_slots: Vec<(String, u64)>,
}

/// One reason why an update may not go on, with what to do about it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Blocker {
    /// Stable code of `docs/errors.md`.
    pub code: String,
    /// What is in the way, in one line.
    pub reason: String,
    /// What a person can do about it.
    pub hint: String,
}

impl Blocker {
    /// Makes a blocker.
    pub fn new(code: &str, reason: impl Into<String>, hint: impl Into<String>) -> Self {
        Blocker { code: code.to_owned(), reason: reason.into(), hint: hint.into() }
    }

    /// Whether it may go away by itself, so that asking again later makes sense.
    #[must_use]
    pub fn may_pass(&self) -> bool {
        matches!(
            self.code.as_str(),
            "hooks.deferred" | "disk.held" | "device.power" | "device.locked" | "device.inhibited"
        )
    }
}

/// The code of a bundle that is what runs already: nothing to do, and no failure.
pub const SAME: &str = "bundle.same";

/// Lists every reason why `device`, with `record`, may not take `offer`. Empty means it may.
#[must_use]
pub fn blockers(offer: &Offer, device: &Device, record: &Record) -> Vec<Blocker> {
    let mut found = Vec::new();
    found.extend(wrong_device(offer, device));
    found.extend(wrong_version(offer, device, record));
    found.extend(unmet_requirements(offer, device));
    found.extend(wrong_sizes(offer, device));
    found
}

fn wrong_device(offer: &Offer, device: &Device) -> Vec<Blocker> {
    let mut found = Vec::new();
    if offer.product != device.product {
        found.push(Blocker::new(
            "bundle.other-product",
            format!("the bundle is for product {:?}, this device runs {:?}", offer.product, device.product),
            "get the bundle made for this product",
        ));
    }
    if !offer.compatible.iter().any(|name| device.compatible.contains(name)) {
        found.push(Blocker::new(
            "bundle.other-hardware",
            format!(
                "the bundle is for {}, this device is {}",
                offer.compatible.join(", "),
                device.compatible.join(", ")
            ),
            "get the bundle made for this hardware",
        ));
    }
    found
}

fn wrong_version(offer: &Offer, device: &Device, record: &Record) -> Vec<Blocker> {
    let mut found = Vec::new();
    let installed = record.installed.as_ref().map(|d| d.manifest);
    if offer.order < device.order {
        found.push(Blocker::new(
            "bundle.older",
            format!(
                "version {} (order {}) is older than the running {} (order {})",
                offer.version, offer.order, device.version, device.order
            ),
            "to go back to the system in the spare slot group use `bascule rollback`",
        ));
    } else if offer.order == device.order && installed.is_some_and(|manifest| manifest != offer.manifest) {
        found.push(Blocker::new(
            "bundle.fork",
            format!("order {} is installed already, with other contents", offer.order),
            "two builds carry the same order: give the new one a higher `order` and sign it again",
        ));
    } else if offer.order == device.order {
        found.push(Blocker::new(
            SAME,
            format!("version {} (order {}) is what runs already", offer.version, offer.order),
            "nothing needs to be done",
        ));
    }
    if offer.security_epoch < record.epoch_floor {
        found.push(Blocker::new(
            "bundle.security-epoch",
            format!("its security epoch {} is below this device's floor {}", offer.security_epoch, record.epoch_floor),
            "install a bundle of the current security epoch",
        ));
    }
    let expired = |denied: &&Denied| device.denials_since.is_some_and(|since| denied.at < since);
    if let Some(denied) = record.denied(&offer.manifest).filter(|denied| !expired(denied)) {
        found.push(Blocker::new(
            "bundle.denied",
            format!("this bundle was rolled back here before: {}", denied.reason.explain()),
            "publish a corrected bundle, or allow this one once more: `bascule allow VERSION`",
        ));
    }
    found
}

fn unmet_requirements(offer: &Offer, device: &Device) -> Vec<Blocker> {
    let mut found = Vec::new();
    let requires = &offer.requires;
    if let Some(least) = requires.min_order.filter(|least| device.order < *least) {
        let via = requires.via.as_deref().map_or(String::new(), |via| format!(": go to {via} first"));
        found.push(Blocker::new(
            "bundle.path",
            format!("it may be installed over order {least} or above, this device runs order {}{via}", device.order),
            "install the release in between first",
        ));
    }
    if let Some(least) = requires.min_agent.as_deref().filter(|least| triple(&device.agent) < triple(least)) {
        found.push(Blocker::new(
            "bundle.agent-too-old",
            format!("it needs the agent at version {least} or above, this is {}", device.agent),
            "install a release with a newer agent first",
        ));
    }
    if device.free_space < requires.free_space {
        found.push(Blocker::new(
            "bundle.no-space",
            format!("it needs {} bytes free on the data partition, {} are", requires.free_space, device.free_space),
            "make room on the data partition",
        ));
    }
    found
}

fn wrong_sizes(offer: &Offer, device: &Device) -> Vec<Blocker> {
    let mut found = Vec::new();
    for payload in &offer.payloads {
        match device.target_slots.iter().find(|(role, _)| *role == payload.role) {
            None => found.push(Blocker::new(
                "bundle.unknown-role",
                format!("it has a payload for slot role {:?}, which this device does not have", payload.role),
                "add the role under [slots] in the configuration, or use another bundle",
            )),
            Some((_, size)) if *size < payload.size => found.push(Blocker::new(
                "bundle.too-large-for-slot",
                format!("the {} image has {} bytes, the target slot {size}", payload.role, payload.size),
                "build the image no larger than the slot",
            )),
            Some(_) => {}
        }
    }
    found
}

/// `MAJOR.MINOR.PATCH` as numbers; what is not a number counts as 0.
fn triple(version: &str) -> [u64; 3] {
    let mut parts = version.split(['.', '-', '+']).map(|part| part.parse().unwrap_or(0));
    [parts.next().unwrap_or(0), parts.next().unwrap_or(0), parts.next().unwrap_or(0)]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::{Denied, RollbackReason};

    fn offer() -> Offer {
        Offer {
            manifest: Digest([2; 32]),
            product: "demo".into(),
            version: "2.0.0".into(),
            order: 2,
            compatible: vec!["board".into()],
            requires: Requires::default(),
            security_epoch: 0,
            payloads: vec![OfferedPayload { role: "root".into(), size: 100 }],
        }
    }

    fn device() -> Device {
        Device {
            product: "demo".into(),
            version: "1.0.0".into(),
            order: 1,
            compatible: vec!["board".into()],
            agent: "0.1.0".into(),
            free_space: 10,
            denials_since: None,
            target_slots: vec![("root".into(), 100)],
        }
    }

    fn codes(offer: &Offer, device: &Device, record: &Record) -> Vec<String> {
        blockers(offer, device, record).into_iter().map(|b| b.code).collect()
    }

    #[test]
    fn a_fitting_newer_bundle_has_no_blocker_and_an_equal_slot_is_large_enough() {
        assert_eq!(codes(&offer(), &device(), &Record::default()), Vec::<String>::new());
    }

    #[test]
    fn every_blocker_is_listed_at_once() {
        let mut offer = offer();
        offer.product = "other".into();
        offer.compatible = vec!["elsewhere".into()];
        offer.order = 0;
        offer.requires = Requires { min_order: Some(5), via: None, min_agent: Some("0.1.1".into()), free_space: 11 };
        offer.payloads =
            vec![OfferedPayload { role: "root".into(), size: 101 }, OfferedPayload { role: "app".into(), size: 1 }];
        let mut record = Record { epoch_floor: 1, ..Record::default() };
        record.deny.push(Denied {
            manifest: offer.manifest,
            version: "2".into(),
            reason: RollbackReason::Deadline,
            at: 0,
            attempts: 1,
            allowed: false,
        });
        assert_eq!(
            codes(&offer, &device(), &record),
            [
                "bundle.other-product",
                "bundle.other-hardware",
                "bundle.older",
                "bundle.security-epoch",
                "bundle.denied",
                "bundle.path",
                "bundle.agent-too-old",
                "bundle.no-space",
                "bundle.too-large-for-slot",
                "bundle.unknown-role"
            ]
        );
    }

    #[test]
    fn a_denial_expires_where_the_policy_says_so() {
        let (offer, mut device, mut record) = (offer(), device(), Record::default());
        record.deny.push(Denied {
            manifest: offer.manifest,
            version: "2".into(),
            reason: RollbackReason::Deadline,
            at: 100,
            attempts: 1,
            allowed: false,
        });
        for (since, denied) in [(None, true), (Some(100), true), (Some(101), false)] {
            device.denials_since = since;
            assert_eq!(codes(&offer, &device, &record).contains(&"bundle.denied".to_owned()), denied, "{since:?}");
        }
    }

    #[test]
    fn the_same_order_is_nothing_to_do_unless_its_contents_differ_from_what_was_committed() {
        let mut device = device();
        device.order = 2;
        assert_eq!(codes(&offer(), &device, &Record::default()), [SAME]);
        let mut record = Record::default();
        let mut installed = crate::record::test_deployment();
        installed.manifest = Digest([9; 32]);
        record.installed = Some(installed);
        assert_eq!(codes(&offer(), &device, &record), ["bundle.fork"]);
    }
}
