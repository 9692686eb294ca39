//! Which states a power cut can leave behind, each of them once.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use anyhow::Result;
use bascule_core::Group;
use sha2::{Digest as _, Sha256};

use super::disk::{Disk, Fate, Pending, Tree};
use super::trace::Effect;

/// Up to this many visible changes that are not synced, every subset of them is a state.
const ALL_SUBSETS: usize = 6;
/// Beyond that, so many subsets by chance.
const BY_CHANCE: usize = 24;
const SECTOR: usize = 512;
/// Where a write of a slot's payload is torn.
const PAGE: usize = 4096;

/// What a power cut left behind.
#[derive(Debug, Clone)]
pub(super) struct State {
    /// The disk.
    pub(super) tree: Tree,
    /// What the agent had said until then.
    pub(super) said: Said,
    /// The last effect before the cut, and what the cut took, for messages.
    pub(super) story: String,
    pub(super) key: [u8; 32],
}

/// What the world outside of the disk knows: from here on it must stay true.
#[derive(Debug, Clone, Copy)]
pub(super) struct Said {
    /// The highest generation of the record that the agent has called durable.
    pub(super) acknowledged: u64,
    /// The group that the agent has asked to be started next.
    pub(super) asked: Option<Group>,
    /// The group that was running.
    pub(super) booted: Group,
}

/// Lists every state that a cut after any effect of `log` from `from` on can leave behind.
///
/// # Errors
/// When an effect does not fit the disk.
pub(super) fn enumerate(start: &Tree, booted: Group, log: &[Effect], from: usize) -> Result<Vec<State>> {
    let mut disk = Disk::new(start)?;
    let mut found = Found { chance: Chance(0x5eed), ..Found::default() };
    let mut said = Said { acknowledged: 0, asked: None, booted };
    for (id, effect) in log.iter().enumerate() {
        disk.apply(id, effect)?;
        match effect {
            Effect::Recorded(generation) => said.acknowledged = said.acknowledged.max(*generation),
            Effect::Asked(group) => said.asked = Some(*group),
            Effect::Restart(group) => (said.asked, said.booted) = (None, *group),
            _ => {}
        }
        if id >= from {
            found.at(&disk, said, &format!("after {id} {}", name(effect)));
        }
    }
    Ok(found.states)
}

#[derive(Default)]
struct Found {
    states: Vec<State>,
    seen: HashSet<[u8; 32]>,
    digests: HashMap<*const Vec<u8>, Hashed>,
    chance: Chance,
}

/// Contents that are kept, so that their address is not used again, and their digest.
type Hashed = (Arc<Vec<u8>>, [u8; 32]);

impl Found {
    fn at(&mut self, disk: &Disk, said: Said, moment: &str) {
        let pending = disk.pending();
        for fates in self.fates(&pending) {
            let tree = disk.after_cut(|id| fates.get(&id).copied().unwrap_or(Fate::Lost));
            let key = self.key(&tree, said);
            if self.seen.insert(key) {
                self.states.push(State { tree, said, story: format!("{moment}: {}", took(&pending, &fates)), key });
            }
        }
    }

    /// Visible changes by subsets, a slot's payload by representatives: nothing reads it before the record vouches for
    /// it but the next attempt, which keeps a chunk by its hash alone.
    fn fates(&mut self, pending: &[Pending]) -> Vec<HashMap<usize, Fate>> {
        let (payload, visible): (Vec<&Pending>, Vec<&Pending>) = pending.iter().partition(|change| change.payload);
        let mut all = Vec::new();
        for kept in self.payload_fates(&payload) {
            for shown in self.visible_fates(&visible) {
                let both = kept.iter().chain(&shown).map(|(id, fate)| (*id, *fate)).collect();
                all.push(both);
            }
        }
        all
    }

    fn payload_fates(&mut self, payload: &[&Pending]) -> Vec<Vec<(usize, Fate)>> {
        let Some((last, others)) = payload.split_last() else { return vec![Vec::new()] };
        let whole = |changes: &[&Pending]| changes.iter().map(|change| (change.id, Fate::Whole)).collect::<Vec<_>>();
        let but_last = whole(others);
        let torn = but_last.iter().copied().chain([(last.id, Fate::Prefix(PAGE))]).collect();
        let by_chance = whole(payload).into_iter().filter(|_| self.chance.coin()).collect();
        vec![Vec::new(), whole(payload), but_last, torn, by_chance]
    }

    fn visible_fates(&mut self, visible: &[&Pending]) -> Vec<Vec<(usize, Fate)>> {
        let subset = |keep: &dyn Fn(usize) -> bool| -> Vec<(usize, Fate)> {
            let kept = visible.iter().enumerate().filter(|(at, _)| keep(*at));
            kept.map(|(_, change)| (change.id, Fate::Whole)).collect()
        };
        let count = visible.len();
        let mut all = Vec::new();
        if count <= ALL_SUBSETS {
            all.extend((0..1usize << count).map(|mask| subset(&|at| mask & (1 << at) != 0)));
        } else {
            all.extend([subset(&|_| false), subset(&|_| true)]);
            all.extend((0..count).map(|one| subset(&|at| at == one)));
            all.extend((0..count).map(|one| subset(&|at| at != one)));
            for _ in 0..BY_CHANCE {
                let kept: Vec<usize> = (0..count).filter(|_| self.chance.coin()).collect();
                all.push(subset(&|at| kept.contains(&at)));
            }
        }
        let newest = visible.iter().rev().find(|change| change.len > 0);
        if let Some(newest) = newest {
            let others: Vec<(usize, Fate)> = subset(&|_| true).into_iter().filter(|(id, _)| *id != newest.id).collect();
            for fate in tears(newest) {
                for rest in [&others[..], &[]] {
                    all.push(rest.iter().copied().chain([(newest.id, fate)]).collect());
                }
            }
        }
        all
    }

    /// The digest of everything, with each file's contents hashed once.
    fn key(&mut self, tree: &Tree, said: Said) -> [u8; 32] {
        let mut hash = Sha256::new();
        hash.update(format!("{said:?}"));
        for (path, bytes) in tree {
            let entry = self.digests.entry(Arc::as_ptr(bytes));
            let (_, digest) = entry.or_insert_with(|| (bytes.clone(), Sha256::digest(bytes.as_slice()).into()));
            hash.update(path.as_bytes());
            hash.update([0]);
            hash.update(*digest);
        }
        hash.finalize().into()
    }
}

/// Every 512-byte prefix and suffix of a write, and of a new file its length without its bytes.
fn tears(write: &Pending) -> Vec<Fate> {
    let cuts = (1..write.len.div_ceil(SECTOR)).map(|sector| sector * SECTOR);
    let zeroes = write.fresh.then_some(Fate::Zeroes);
    cuts.flat_map(|cut| [Fate::Prefix(cut), Fate::Suffix(cut)]).chain(zeroes).collect()
}

fn took(pending: &[Pending], fates: &HashMap<usize, Fate>) -> String {
    let lost: Vec<usize> = pending.iter().map(|change| change.id).filter(|id| !fates.contains_key(id)).collect();
    let torn = fates.iter().find(|(_, fate)| !matches!(fate, Fate::Whole | Fate::Lost));
    match torn {
        Some((id, fate)) => format!("lost {lost:?}, {fate:?} of {id}"),
        None => format!("lost {lost:?} of {} unsynced", pending.len()),
    }
}

/// An effect in a few words.
pub(super) fn name(effect: &Effect) -> String {
    match effect {
        Effect::Create(path) => format!("create {path}"),
        Effect::Truncate(path, length) => format!("cut {path} to {length}"),
        Effect::Write(path, offset, bytes) => format!("write {path} at {offset}, {} bytes", bytes.len()),
        Effect::Zero(path, offset, length) => format!("zero {path} at {offset}, {length} bytes"),
        Effect::Rename(from, to) => format!("rename {from} to {to}"),
        Effect::Unlink(path) => format!("remove {path}"),
        Effect::Sync(path) => format!("sync {path}"),
        Effect::Recorded(generation) => format!("record {generation} is durable"),
        Effect::Asked(group) => format!("{group} is to be started"),
        Effect::Loader(_) => "loader counts a try".into(),
        Effect::Restart(group) => format!("restart into {group}"),
    }
}

/// Chance that is the same in every run: xorshift.
#[derive(Debug, Default)]
struct Chance(u64);

impl Chance {
    fn coin(&mut self) -> bool {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 & 1 == 1
    }
}
