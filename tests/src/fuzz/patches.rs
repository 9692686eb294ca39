//! Patches: valid ones, damaged ones, and what the agent's decoder makes of them.

use std::time::Duration;

use bascule_image::Patcher;

use super::judge::{Finding, Outcome, timed};
use super::oracle;
use super::pack::Packer;
use super::random::{Random, fold, push_number};

/// One operation as it is written.
#[derive(Debug, Clone)]
struct Operation {
    copy: u64,
    new: u64,
    seek: u64,
}

/// A patch before it is packed, and what it is for.
struct Patch {
    source: Vec<u8>,
    len: u64,
    operations: Vec<Operation>,
    differences: Vec<u8>,
    fresh: Vec<u8>,
}

/// Makes a patch, damages it most of the time, and compares what comes out with what should.
pub(super) fn run(patcher: &mut Patcher, packer: &mut Packer, random: &mut Random) -> Result<Outcome, Finding> {
    let mut patch = Patch::valid(random);
    if !random.once_in(16) {
        for _ in 0..=random.below(3) {
            patch.damage(random);
        }
    }
    let bytes = patch.pack(packer, random);
    let len = usize::try_from(patch.len.min(1 << 20)).unwrap_or(0);
    judge(patcher, &bytes, &patch.source, len)
}

fn judge(patcher: &mut Patcher, bytes: &[u8], source: &[u8], len: usize) -> Result<Outcome, Finding> {
    let wanted = oracle::read_patch(bytes, source, len);
    // More room than the output, so that a byte behind it would be seen.
    let mut room = vec![0xa5; len + 64];
    let (out, behind) = room.split_at_mut(len);
    let (found, took) = timed(len, || patcher.apply(bytes, source, out))?;
    if behind.iter().any(|byte| *byte != 0xa5) {
        return Err(Finding::new("wrote behind the output", ""));
    }
    match (found, wanted) {
        (Ok(()), Ok(wanted)) if *out == wanted => Ok(Outcome { taken: true, bytes: len, took }),
        (Ok(()), Ok(_)) => Err(Finding::new("made other bytes", "")),
        (Ok(()), Err(reason)) => Err(Finding::new("took what must be refused", reason)),
        (Err(reason), Ok(_)) => Err(Finding::new("refused what is right", reason)),
        (Err(_), Err(_)) => Ok(Outcome { taken: false, bytes: len, took: Duration::ZERO.max(took) }),
    }
}

impl Patch {
    fn valid(random: &mut Random) -> Self {
        let many = random.once_in(300);
        let large = random.once_in(400);
        let source_len = if large { random.below(2 << 20) } else { random.of_any_length(13) };
        let source = random.bytes(source_len as usize);
        let (mut operations, mut copied, mut fresh, mut end) = (Vec::new(), 0u64, 0u64, 0i64);
        let count = if many { random.below(30_000) } else { random.below(10) };
        let most = if large { 1 << 18 } else { 200 };
        for _ in 0..count {
            let place = random.below(source_len + 1);
            let copy = random.below(most).min(source_len - place).min((1 << 20) - copied - fresh);
            let new = random.below(most / 2).min((1 << 20) - copied - fresh - copy);
            if copy == 0 && new == 0 {
                continue;
            }
            operations.push(Operation { copy, new, seek: fold(place as i64 - end) });
            end = (place + copy) as i64;
            copied += copy;
            fresh += new;
        }
        let differences = if random.once_in(2) { vec![0; copied as usize] } else { random.bytes(copied as usize) };
        Patch { source, len: copied + fresh, operations, differences, fresh: random.bytes(fresh as usize) }
    }

    fn damage(&mut self, random: &mut Random) {
        let at = random.place(self.operations.len());
        match random.below(12) {
            0 => self.len = random.instead_of(self.len),
            1 => random.damage(&mut self.differences),
            2 => random.damage(&mut self.fresh),
            3 => random.damage(&mut self.source),
            4 => {
                let end = random.place(self.source.len() + 1);
                self.source.truncate(end);
            }
            5 if at < self.operations.len() => drop(self.operations.remove(at)),
            6 => {
                if let Some(operation) = self.operations.get(at).cloned() {
                    self.operations.insert(at, operation);
                }
            }
            7 => {
                let operation =
                    Operation { copy: random.of_any_length(20), new: random.of_any_length(20), seek: random.next() };
                self.operations.insert(at, operation);
            }
            _ => self.change_number(at, random),
        }
    }

    /// Changes a number of one operation; half of the time the rest of the patch is made to fit again.
    fn change_number(&mut self, at: usize, random: &mut Random) {
        let Some(operation) = self.operations.get_mut(at) else { return };
        match random.below(4) {
            0 => operation.copy = random.instead_of(operation.copy),
            1 => operation.new = random.instead_of(operation.new),
            2 => operation.seek = random.instead_of(operation.seek),
            _ => operation.seek = fold(random.instead_of(0) as i64),
        }
        if random.once_in(2) {
            let sum = |of: fn(&Operation) -> u64| self.operations.iter().map(of).fold(0, u64::saturating_add);
            let (copied, fresh) = (sum(|operation| operation.copy), sum(|operation| operation.new));
            if let Some(len) = copied.checked_add(fresh).filter(|len| *len <= 1 << 20) {
                self.differences.resize(copied as usize, 1);
                self.fresh.resize(fresh as usize, 2);
                self.len = len;
            }
        }
    }

    fn pack(&self, packer: &mut Packer, random: &mut Random) -> Vec<u8> {
        let mut control = Vec::new();
        for operation in &self.operations {
            push_number(&mut control, operation.copy);
            push_number(&mut control, operation.new);
            push_number(&mut control, operation.seek);
        }
        if random.once_in(12) {
            random.damage(&mut control);
        }
        let parts = [&control, &self.differences, &self.fresh].map(|part| packer.frame(part, random));
        let mut patch = Vec::new();
        for part in parts.iter().take(2) {
            let length = part.len() as u64;
            push_number(&mut patch, if random.once_in(40) { random.instead_of(length) } else { length });
        }
        parts.iter().for_each(|part| patch.extend_from_slice(part));
        if random.once_in(20) {
            random.damage(&mut patch);
        }
        patch
    }
}
