//! Which part of the measurement is wanted.

use anyhow::{Context, Result, bail, ensure};

use super::peers::{self, Peer};

/// One pair of systems.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Pair {
    /// All updates of a release.
    A,
    /// One setting and one program.
    C,
    /// All updates of a release for 64-bit ARM; as ext4 alone.
    Arm64,
}

impl Pair {
    const ALL: [Pair; 3] = [Pair::A, Pair::C, Pair::Arm64];

    pub(super) fn name(self) -> &'static str {
        match self {
            Pair::A => "a",
            Pair::C => "c",
            Pair::Arm64 => "arm64",
        }
    }

    pub(super) fn about(self) -> &'static str {
        match self {
            Pair::A => "a release without and with its updates",
            Pair::C => "one setting and one program changed",
            Pair::Arm64 => "a release for 64-bit ARM without and with its updates",
        }
    }
}

/// How a system's tree becomes an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Format {
    Ext4,
    Erofs,
    ErofsLz4hc,
    Squashfs,
}

impl Format {
    const ALL: [Format; 4] = [Format::Ext4, Format::Erofs, Format::ErofsLz4hc, Format::Squashfs];

    pub(super) fn name(self) -> &'static str {
        match self {
            Format::Ext4 => "ext4",
            Format::Erofs => "erofs",
            Format::ErofsLz4hc => "erofs-lz4hc",
            Format::Squashfs => "squashfs",
        }
    }
}

/// What to measure: everything, or a part of it.
#[derive(Debug, Default)]
pub struct Options {
    pair: Option<Pair>,
    format: Option<Format>,
    only: Vec<String>,
}

impl Options {
    /// Reads `[--pair a|c|arm64] [--format ext4|erofs|erofs-lz4hc|squashfs] [--only NAME,...]`.
    ///
    /// # Errors
    /// When there is anything else.
    pub fn parse(words: &[&str]) -> Result<Options> {
        let mut options = Options::default();
        for words in words.chunks(2) {
            let (&[name, value] | &[name, value, ..]) = words else { bail!("{words:?} has no value") };
            match name {
                "--pair" => options.pair = Some(found(&Pair::ALL, |pair| pair.name() == value, value)?),
                "--format" => options.format = Some(found(&Format::ALL, |format| format.name() == value, value)?),
                "--only" => options.only = value.split(',').map(str::to_owned).collect(),
                _ => bail!("{name:?} is not known"),
            }
        }
        let known = |name: &String| peers::ALL.iter().any(|peer| peer.name == name);
        let names: Vec<_> = peers::ALL.iter().map(|peer| peer.name).collect();
        ensure!(options.only.iter().all(known), "--only takes some of {}", names.join(","));
        ensure!(!options.series().is_empty(), "the pair arm64 is there as ext4 alone");
        Ok(options)
    }

    /// The pairs and formats that are wanted. Unless they are asked for, all pairs but a are measured as ext4 alone.
    pub(super) fn series(&self) -> Vec<(Pair, Format)> {
        let both = Pair::ALL.iter().flat_map(|&pair| Format::ALL.map(|format| (pair, format)));
        let both = both.filter(|&(pair, format)| pair != Pair::Arm64 || format == Format::Ext4);
        both.filter(|&(pair, format)| match (self.pair, self.format) {
            (None, None) => pair == Pair::A || format == Format::Ext4,
            (wanted_pair, wanted) => {
                wanted_pair.is_none_or(|wanted| wanted == pair) && wanted.unwrap_or(Format::Ext4) == format
            }
        })
        .collect()
    }

    /// Whether this tool is measured on this format.
    pub(super) fn wants(&self, peer: &Peer, format: Format) -> bool {
        let named = self.only.iter().any(|name| name == peer.name);
        named || (self.only.is_empty() && (format == Format::Ext4 || peer.on_every_format))
    }
}

fn found<T: Copy>(all: &[T], is_wanted: impl Fn(&T) -> bool, value: &str) -> Result<T> {
    all.iter().copied().find(is_wanted).with_context(|| format!("{value:?} is not known"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_options_pair_a_is_measured_in_all_formats_and_the_others_as_ext4() {
        let series = Options::parse(&[]).unwrap().series();
        assert_eq!(series.len(), 6);
        assert_eq!(series[4..], [(Pair::C, Format::Ext4), (Pair::Arm64, Format::Ext4)]);
    }

    #[test]
    fn a_part_can_be_asked_for() {
        let options = Options::parse(&["--pair", "c", "--format", "erofs", "--only", "ours,zstd-3"]).unwrap();
        assert_eq!(options.series(), [(Pair::C, Format::Erofs)]);
        assert_eq!(peers::ALL.iter().filter(|peer| options.wants(peer, Format::Erofs)).count(), 2);
        assert_eq!(Options::parse(&["--pair", "a"]).unwrap().series(), [(Pair::A, Format::Ext4)]);
    }

    #[test]
    fn what_is_not_known_is_refused() {
        for words in [["--pair", "b"], ["--only", "rsync"], ["--formats", "ext4"]] {
            assert!(Options::parse(&words).is_err(), "{words:?}");
        }
        assert!(Options::parse(&["--pair", "arm64", "--format", "erofs"]).is_err());
        assert!(Options::parse(&["--pair"]).is_err());
    }
}
