//! The processors that the demo's devices have.

use std::path::PathBuf;

use anyhow::{Context, Result, bail, ensure};

use crate::cargo;

/// A device's processor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Arch {
    /// That of this machine; all loaders, all tests.
    X86_64,
    /// 64-bit ARM, on QEMU's `virt`; only through U-Boot, and only the demo.
    Aarch64,
}

impl Arch {
    /// Takes `--arch NAME` out of a command's arguments, and says what is left.
    ///
    /// # Errors
    /// When there is no such name.
    pub(crate) fn take(arguments: &[String]) -> Result<(Arch, Vec<String>)> {
        let mut rest = arguments.to_vec();
        let Some(at) = rest.iter().position(|argument| argument == "--arch") else { return Ok((Arch::X86_64, rest)) };
        let words: Vec<String> = rest.drain(at..rest.len().min(at + 2)).collect();
        let name = words.get(1).context("--arch wants a name: x86_64 or aarch64")?;
        match [Arch::X86_64, Arch::Aarch64].into_iter().find(|arch| arch.name() == name) {
            Some(arch) => Ok((arch, rest)),
            None => bail!("no architecture {name:?}: it is x86_64 or aarch64"),
        }
    }

    /// Sees that its devices can play what a command is asked for, before its systems are made, which takes long.
    ///
    /// # Errors
    /// When they start through another loader than the one after `--loader`, or the command is not for them.
    pub(crate) fn ensure_plays(self, command: &str, rest: &[String]) -> Result<()> {
        if self == Arch::X86_64 {
            return Ok(());
        }
        let name = self.name();
        ensure!(
            command == "demo",
            "`cargo xtask {command}` has no --arch {name}: it plays on this machine's own processor"
        );
        match rest {
            [option, loader, ..] if option == "--loader" && loader != "uboot" => {
                bail!("a device with {name} starts only through U-Boot: say --loader uboot, or leave it out")
            }
            _ => Ok(()),
        }
    }

    /// The name in Rust and in the kernel.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Arch::X86_64 => "x86_64",
            Arch::Aarch64 => "aarch64",
        }
    }

    /// Debian's name.
    pub(crate) fn debian(self) -> &'static str {
        match self {
            Arch::X86_64 => "amd64",
            Arch::Aarch64 => "arm64",
        }
    }

    /// What bundles are compatible with.
    pub(crate) fn hardware(self) -> &'static str {
        match self {
            Arch::X86_64 => "qemu-x86_64",
            Arch::Aarch64 => "qemu-aarch64",
        }
    }

    /// The folder with everything that its machines start from.
    pub(crate) fn images(self) -> PathBuf {
        let name = match self {
            Arch::X86_64 => "target/bascule",
            Arch::Aarch64 => "target/bascule-aarch64",
        };
        cargo::workspace().join(name)
    }

    /// The beginning of the names of GNU tools that work for it.
    pub(crate) fn tools(self) -> &'static str {
        match self {
            Arch::X86_64 => "",
            Arch::Aarch64 => "aarch64-linux-gnu-",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn taken(line: &str) -> Result<(Arch, String)> {
        let words: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
        Arch::take(&words).map(|(arch, rest)| (arch, rest.join(" ")))
    }

    #[test]
    fn the_architecture_is_taken_from_wherever_it_stands_and_the_rest_is_left() {
        assert_eq!(taken("--loader uboot --arch aarch64").unwrap(), (Arch::Aarch64, "--loader uboot".into()));
        assert_eq!(taken("--arch aarch64 uboot").unwrap(), (Arch::Aarch64, "uboot".into()));
        assert_eq!(taken("--loader grub").unwrap(), (Arch::X86_64, "--loader grub".into()));
    }

    #[test]
    fn what_devices_with_64_bit_arm_cannot_play_is_refused_before_anything_is_made() {
        let plays = |arch: Arch, command: &str, rest: &[&str]| {
            arch.ensure_plays(command, &rest.iter().map(|&word| word.to_owned()).collect::<Vec<_>>()).is_ok()
        };
        assert!(plays(Arch::Aarch64, "demo", &[]));
        assert!(plays(Arch::Aarch64, "demo", &["--loader", "uboot"]));
        assert!(!plays(Arch::Aarch64, "demo", &["--loader", "grub"]));
        assert!(!plays(Arch::Aarch64, "matrix", &["--loader", "uboot"]));
        assert!(!plays(Arch::Aarch64, "bench", &["install"]));
        assert!(plays(Arch::X86_64, "matrix", &["--loader", "grub"]));
        assert!(plays(Arch::X86_64, "bench", &["install"]));
    }

    #[test]
    fn an_architecture_that_is_not_known_or_not_named_is_refused() {
        assert!(taken("--arch riscv64").is_err());
        assert!(taken("--arch").is_err());
    }
}
