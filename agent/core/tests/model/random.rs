//! Random numbers that are the same for the same seed, and the faults that are drawn with them.

/// The generator splitmix64.
#[derive(Debug, Clone)]
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Random(seed)
    }

    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit.max(1)
    }

    /// Yes in so many of a thousand cases. Nothing is drawn where the answer is certain.
    pub fn chance(&mut self, per_mille: u64) -> bool {
        per_mille > 0 && self.below(1000) < per_mille
    }

    pub fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.below(of.len() as u64) as usize]
    }
}

/// How often what goes wrong, in thousandths.
#[derive(Debug, Clone)]
pub struct Faults {
    pub random: Random,
    /// A durable write is the last thing before the power fails.
    pub cut: u64,
    /// A cut during a write of the settings tears them.
    pub torn: u64,
    /// A write of the loader's settings fails and changes nothing.
    pub loader_fails: u64,
    /// A write of the record fails and changes nothing.
    pub record_fails: u64,
    /// A write is on the disk, but is reported as failed.
    pub late: u64,
    /// After a cut the data partition is empty.
    pub record_lost: u64,
    /// `pre-activate` says no.
    pub hook_refuses: u64,
    /// `pre-activate` asks to be asked later.
    pub hook_defers: u64,
    /// The target slots cannot be written.
    pub prepare_fails: u64,
    /// A round of checks of a good system says nothing yet.
    pub health_hangs: u64,
    /// A round of checks of a good system fails.
    pub health_fails: u64,
}

impl Faults {
    pub fn none() -> Self {
        Faults {
            random: Random::new(0),
            cut: 0,
            torn: 0,
            loader_fails: 0,
            record_fails: 0,
            late: 0,
            record_lost: 0,
            hook_refuses: 0,
            hook_defers: 0,
            prepare_fails: 0,
            health_hangs: 0,
            health_fails: 0,
        }
    }

    /// A selection for one seed: each kind is absent, rare or frequent.
    pub fn drawn(seed: u64) -> Self {
        let mut random = Random::new(seed ^ 0xfa17);
        let mut draw = |rare: u64, frequent: u64| random.pick(&[0, 0, rare, frequent]);
        let (cut, torn) = (draw(20, 120), draw(0, 300));
        let (loader_fails, record_fails, late) = (draw(50, 400), draw(30, 300), draw(20, 150));
        let (hook_refuses, hook_defers, prepare_fails) = (draw(100, 300), draw(100, 400), draw(50, 300));
        let (health_hangs, health_fails, record_lost) = (draw(200, 600), draw(50, 300), draw(0, 200));
        Faults {
            random,
            cut,
            torn,
            loader_fails,
            record_fails,
            late,
            record_lost,
            hook_refuses,
            hook_defers,
            prepare_fails,
            health_hangs,
            health_fails,
        }
    }
}
