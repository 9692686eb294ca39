//! Deltas: whatever the two images are, the new one comes back, whole or not at all.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test may fail")]

use std::fs;

use bascule_image::delta::DeltaError;
use bascule_image::delta::image::DeltaSpec;
use bascule_image::delta::whole::{apply_delta, create_delta};
use bascule_image::{BundleFile, ForwardOnly};
use proptest::prelude::*;

/// A folder with two images.
struct Pair(tempfile::TempDir);

impl Pair {
    fn new(old: &[u8], new: &[u8]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("old"), old).unwrap();
        fs::write(dir.path().join("new"), new).unwrap();
        Pair(dir)
    }

    fn at(&self, name: &str) -> std::path::PathBuf {
        self.0.path().join(name)
    }

    fn create(&self, spec: DeltaSpec) -> Vec<u8> {
        create_delta(&self.at("old"), &self.at("new"), spec, &self.at("delta"), &mut |_| ()).unwrap();
        fs::read(self.at("delta")).unwrap()
    }

    fn apply(&self, delta: &[u8]) -> Result<Vec<u8>, DeltaError> {
        let _ = fs::remove_file(self.at("made"));
        let input = Box::new(ForwardOnly::new(std::io::Cursor::new(delta.to_vec())));
        let applied = apply_delta(&self.at("old"), input, &self.at("made"), &mut |_| ());
        assert_eq!(applied.is_ok(), self.at("made").exists(), "whole or not at all");
        applied.map(|_| fs::read(self.at("made")).unwrap())
    }

    fn files(&self) -> usize {
        fs::read_dir(self.0.path()).unwrap().count()
    }
}

fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 32) as u8
    };
    std::iter::repeat_with(next).take(len).collect()
}

/// One stretch of an image.
#[derive(Debug, Clone)]
enum Stretch {
    Zeroes(usize),
    Noise(u64, usize),
    Text(u64, usize),
}

/// One change of an image; places are parts of a thousand of its length.
#[derive(Debug, Clone)]
enum Edit {
    Flip(usize, u8),
    Insert(usize, Stretch),
    Remove(usize, usize),
    Move(usize, usize, usize),
    Add(usize, usize, u8),
    Truncate(usize),
}

fn bytes(stretch: &Stretch) -> Vec<u8> {
    match *stretch {
        Stretch::Zeroes(len) => vec![0; len],
        Stretch::Noise(seed, len) => noise(seed, len),
        Stretch::Text(seed, len) => noise(seed, len).iter().map(|byte| b"some text "[usize::from(byte % 10)]).collect(),
    }
}

fn edited(mut image: Vec<u8>, edits: &[Edit]) -> Vec<u8> {
    for edit in edits {
        let place = |part: usize| image.len() * part / 1000;
        match *edit {
            Edit::Flip(at, by) => {
                let at = place(at);
                if let Some(byte) = image.get_mut(at) {
                    *byte ^= by;
                }
            }
            Edit::Insert(at, ref stretch) => {
                let at = place(at);
                image.splice(at..at, bytes(stretch));
            }
            Edit::Remove(at, len) => {
                let at = place(at);
                image.drain(at..image.len().min(at + len));
            }
            Edit::Move(from, len, to) => {
                let from = place(from);
                let moved: Vec<u8> = image.drain(from..image.len().min(from + len)).collect();
                let to = image.len() * to / 1000;
                image.splice(to..to, moved);
            }
            Edit::Add(at, len, by) => {
                let at = place(at);
                let end = image.len().min(at + len);
                image[at..end].iter_mut().step_by(7).for_each(|byte| *byte = byte.wrapping_add(by));
            }
            Edit::Truncate(at) => {
                let at = place(at);
                image.truncate(at);
            }
        }
    }
    image
}

fn stretch() -> impl Strategy<Value = Stretch> {
    prop_oneof![
        (1usize..20_000).prop_map(Stretch::Zeroes),
        (any::<u64>(), 1usize..20_000).prop_map(|(seed, len)| Stretch::Noise(seed, len)),
        (any::<u64>(), 1usize..20_000).prop_map(|(seed, len)| Stretch::Text(seed, len)),
    ]
}

fn edit() -> impl Strategy<Value = Edit> {
    prop_oneof![
        (0usize..1000, any::<u8>()).prop_map(|(at, by)| Edit::Flip(at, by)),
        (0usize..=1000, stretch()).prop_map(|(at, stretch)| Edit::Insert(at, stretch)),
        (0usize..1000, 1usize..30_000).prop_map(|(at, len)| Edit::Remove(at, len)),
        (0usize..1000, 1usize..30_000, 0usize..=1000).prop_map(|(at, len, to)| Edit::Move(at, len, to)),
        (0usize..1000, 1usize..9000, any::<u8>()).prop_map(|(at, len, by)| Edit::Add(at, len, by)),
        (0usize..=1000).prop_map(Edit::Truncate),
    ]
}

/// What sizes of images are multiples of: bytes, sectors, blocks.
fn grain() -> impl Strategy<Value = usize> {
    prop_oneof![Just(1usize), Just(512), Just(4096)]
}

fn cut(mut image: Vec<u8>, grain: usize) -> Vec<u8> {
    image.resize(image.len().next_multiple_of(grain), 0);
    image
}

fn round_trip(old: &[u8], new: &[u8], chunk_bytes: u32) {
    let pair = Pair::new(old, new);
    let delta = pair.create(DeltaSpec::new(chunk_bytes, 3));
    assert_eq!(pair.apply(&delta).unwrap(), new, "of {} bytes from {}", new.len(), old.len());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn an_edited_image_comes_back(
        stretches in proptest::collection::vec(stretch(), 0..8),
        edits in proptest::collection::vec(edit(), 0..8),
        grain in grain(),
        chunk in 1u32..20,
    ) {
        let old = cut(stretches.iter().flat_map(bytes).collect(), grain);
        let new = cut(edited(old.clone(), &edits), grain);
        round_trip(&old, &new, chunk * 4096);
    }

    #[test]
    fn an_unrelated_image_comes_back(
        old in proptest::collection::vec(stretch(), 0..4),
        new in proptest::collection::vec(stretch(), 0..4),
        grain in grain(),
    ) {
        let [old, new] = [old, new].map(|parts| cut(parts.iter().flat_map(bytes).collect(), grain));
        round_trip(&old, &new, 8192);
    }
}

#[test]
fn equal_empty_shorter_and_longer_images_come_back() {
    let whole = [noise(1, 10_000), vec![0; 9000], noise(2, 512 * 9)].concat();
    for size in [0, 1, 511, 512, 4095, 4096, 4097, 8192, 12_800, whole.len()] {
        let part = &whole[..size];
        for (old, new) in [(part, part), (&[][..], part), (part, &[][..]), (part, &whole[..]), (&whole[..], part)] {
            round_trip(old, new, 4096);
        }
    }
}

#[test]
fn bytes_behind_and_between_long_stretches_of_zeroes_come_back() {
    let zeroes = |length| vec![0; length];
    let old = [zeroes(70_000), noise(5, 3_000), zeroes(200_000), noise(6, 100), zeroes(131_072), noise(7, 1)].concat();
    let new = [zeroes(140_000), noise(5, 3_000), zeroes(65_535), noise(6, 100), zeroes(300_000)].concat();
    for (old, new) in [(&old, &new), (&new, &old)] {
        let pair = Pair::new(old, new);
        let delta = pair.create(DeltaSpec::new(65_536, 3));
        assert_eq!(pair.apply(&delta).unwrap(), *new);
        // The noise, which is more than that, was found in the base.
        assert!(delta.len() < 3_000, "{} bytes", delta.len());
    }
}

#[test]
fn a_delta_of_images_larger_than_a_chunk_of_a_mebibyte_comes_back() {
    let old = noise(3, 3 << 20);
    let new = edited(old.clone(), &[Edit::Insert(100, Stretch::Noise(4, 777)), Edit::Move(700, 100_000, 200)]);
    let pair = Pair::new(&old, &new);
    let delta = pair.create(DeltaSpec::new(1 << 20, 3));
    assert_eq!(pair.apply(&delta).unwrap(), new);
    assert!(delta.len() < 10_000, "{} bytes", delta.len());
}

#[test]
fn the_same_images_give_the_same_bytes_on_one_thread_and_on_three() {
    let old = [noise(1, 300_000), vec![0; 50_000], noise(2, 300_000)].concat();
    let new = edited(old.clone(), &[Edit::Insert(300, Stretch::Text(9, 5000)), Edit::Add(600, 9000, 3)]);
    let pair = Pair::new(&old, &new);
    let made = [1, 3, 1].map(|workers| pair.create(DeltaSpec { workers, ..DeltaSpec::new(8192, 19) }));
    assert_eq!(made[0], made[1]);
    assert_eq!(made[0], made[2]);
    assert_eq!(pair.apply(&made[0]).unwrap(), new);
}

#[test]
fn an_image_that_is_not_the_base_is_refused_at_the_first_chunk_made_of_it() {
    let old = noise(5, 100_000);
    let new = edited(old.clone(), &[Edit::Flip(999, 1)]);
    let pair = Pair::new(&old, &new);
    let delta = pair.create(DeltaSpec::new(4096, 3));
    let refused = |other: &[u8]| {
        fs::write(pair.at("old"), other).unwrap();
        pair.apply(&delta).unwrap_err()
    };
    let mut done = 0;
    fs::write(pair.at("old"), noise(6, 100_000)).unwrap();
    let file = Box::new(BundleFile::open(&pair.at("delta")).unwrap());
    let error = apply_delta(&pair.at("old"), file, &pair.at("made"), &mut |bytes| done += bytes).unwrap_err();
    assert_eq!((error.code(), done), ("delta.wrong-base", 0));
    let short = refused(&old[..99_999]);
    assert_eq!(short.code(), "delta.wrong-base");
    assert!(short.to_string().contains("99999") && short.to_string().contains("100000"), "{short}");
    let mut other = old.clone();
    other[50_000] ^= 1;
    let error = refused(&other);
    assert!(error.to_string().contains("chunk 12 ") && error.to_string().contains("byte 49152"), "{error}");
    assert_eq!(pair.files(), 3, "nothing is left behind");
    fs::write(pair.at("old"), [&old[..], b"a device is longer"].concat()).unwrap();
    assert_eq!(pair.apply(&delta).unwrap(), new);
}

#[test]
fn a_chunk_size_that_no_device_could_write_is_refused() {
    let pair = Pair::new(b"a", b"b");
    for wrong in [0, 1, 4095, 4097, 6000, (1 << 20) + 4096, u32::MAX] {
        let made =
            create_delta(&pair.at("old"), &pair.at("new"), DeltaSpec::new(wrong, 3), &pair.at("delta"), &mut |_| ());
        assert_eq!(made.unwrap_err().code(), "delta.chunk-size", "{wrong}");
    }
    assert_eq!(pair.files(), 2);
}

#[test]
fn a_delta_file_cut_off_or_changed_anywhere_is_refused_or_gives_the_same_image() {
    let old = noise(7, 20_000);
    let new = edited(old.clone(), &[Edit::Insert(400, Stretch::Noise(8, 100)), Edit::Truncate(800)]);
    let pair = Pair::new(&old, &new);
    let delta = pair.create(DeltaSpec::new(4096, 3));
    for cut in 0..delta.len() {
        assert_eq!(pair.apply(&delta[..cut]).unwrap_err().code(), "delta.damaged", "cut at {cut}");
    }
    assert_eq!(pair.apply(&[&delta[..], b"x"].concat()).unwrap_err().code(), "delta.damaged");
    for place in 0..delta.len() {
        let mut damaged = delta.clone();
        damaged[place] ^= 1 << (place % 8);
        if let Ok(made) = pair.apply(&damaged) {
            assert_eq!(made, new, "a flip at {place}");
        }
    }
}
