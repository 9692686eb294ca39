//! U-Boot as a firmware for QEMU, built from Debian's source package with the redundant environment that we need.
//!
//! ```text
//! target/bascule/uboot/u-boot.rom           for `qemu-system-x86_64 -M q35 -bios`, or `qemu-system-aarch64 -M virt -bios`
//! target/bascule/uboot/u-boot-initial-env   its built-in environment as text, which lies beside boot.scr on a device
//! target/bascule/uboot/mkimage              U-Boot's own tool, which packs scripts
//! target/bascule/uboot/version              the version of the source package
//! target/bascule/uboot/boot.scr             the script we ship, packed
//! ```
//! `bootloader-glue/uboot/qemu-x86.config` and `qemu-arm64.config` say what differs from U-Boot's own configuration for QEMU.
//! What is for 64-bit ARM lies below `target/bascule-aarch64`. The device tree
//! compiler, the tools and the firmware are compiled here; U-Boot's own way to put a ROM together would need Python and
//! three more packages, so [`rom`] does that.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use super::archive::{self, SUITE};
use super::cache::{Key, cached};
use super::shell;
use crate::arch::Arch;
use crate::cargo;

/// What the release of Debian carries.
const VERSION: &str = "2023.01";

/// Where apt has the keys of Debian's archive.
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// Fetches and unpacks the source below `$1/work`, with settings of apt that are this build's alone.
const FETCH: &str = r#"
work=$1/work
mkdir -p "$work/lists/partial" "$work/cache/archives/partial"
cd "$work"
printf '%s\n' "$SOURCES" > sources.list
cat > apt.conf << END
Dir::Etc::SourceList "$work/sources.list";
Dir::Etc::SourceParts "/dev/null";
Dir::State::Lists "$work/lists";
Dir::Cache "$work/cache";
APT::Sandbox::User "root";
Acquire::Languages "none";
END
export APT_CONFIG="$work/apt.conf"
apt-get -qq update
apt-get -qq source --download-only u-boot
sed -n 's/^Version: *//p' u-boot_*.dsc | head -n 1 > "$1/version"
dpkg-source --no-check -x u-boot_*.dsc source
"#;

/// Configures and compiles in `$1/work`, and keeps of it what is needed.
const BUILD: &str = r#"
cd "$1/work"
printf '%s\n' "$CONFIG" | cat source/configs/qemu-x86_defconfig - > source/configs/bascule_defconfig
make -C source O=../out bascule_defconfig
printf '%s\n' "$CONFIG" | grep -e '^CONFIG_' -e ' is not set$' > wanted
if grep -vxF -f out/.config wanted; then echo "these lines are not known to this U-Boot" >&2; exit 1; fi
make -C source O=../out "-j$(nproc)" CONFIG_PYLIBFDT= \
    u-boot.bin u-boot-x86-start16.bin u-boot-x86-reset16.bin u-boot-initial-env
cp out/tools/mkimage out/u-boot-initial-env "$1"
"#;

/// The ROM ends at 4 GiB, where the processor starts.
const ROM_SIZE: usize = 1 << 20;
/// Where U-Boot's first instructions in 16-bit mode lie: `CONFIG_SYS_X86_START16`, seen from the start of the ROM.
const START16: usize = ROM_SIZE - 0x800;
/// Where the processor starts: `CONFIG_RESET_VEC_LOC`.
const RESET16: usize = ROM_SIZE - 0x10;

/// Makes or finds the firmware and the packed script.
///
/// The key does not name the package's revision: a security update is taken when the cache is removed.
///
/// # Errors
/// When a program that is needed is missing or fails; its output is in the error.
pub(crate) fn ensure(arch: Arch) -> Result<PathBuf> {
    let workspace = cargo::workspace();
    let directory = arch.images();
    fs::create_dir_all(&directory)?;
    let lock = File::create(directory.join(".uboot.lock"))?;
    lock.lock().context("cannot wait for another build of U-Boot")?;

    let (config, processor) = match arch {
        Arch::X86_64 => ("qemu-x86.config", "x86"),
        Arch::Aarch64 => ("qemu-arm64.config", "arm64"),
    };
    let config = workspace.join("bootloader-glue/uboot").join(config);
    let config = fs::read_to_string(&config).with_context(|| format!("cannot read {}", config.display()))?;
    let key = Key::of((SUITE, VERSION, FETCH, build_script(arch), [ROM_SIZE, START16, RESET16], &config));
    let built = cached(&directory, "uboot", &key, |partial| build(partial, arch, &config))?;

    let script = workspace.join("bootloader-glue/uboot/boot.cmd");
    let key = Key::of((key, fs::read(&script)?));
    let packed = cached(&directory, "boot.scr", &key, |partial| {
        let mut pack = Command::new(built.join("mkimage"));
        pack.args(["-A", processor, "-T", "script", "-C", "none", "-d"]).arg(&script).arg(partial);
        shell::run(pack.env("SOURCE_DATE_EPOCH", "0"))
    })?;
    fs::copy(packed, built.join("boot.scr"))?;
    Ok(built)
}

/// [`BUILD`] for this processor. A firmware for 64-bit ARM is one file that starts at its first byte.
fn build_script(arch: Arch) -> String {
    match arch {
        Arch::X86_64 => BUILD.to_owned(),
        Arch::Aarch64 => BUILD
            .replace("configs/qemu-x86_defconfig", "configs/qemu_arm64_defconfig")
            .replace(" u-boot-x86-start16.bin u-boot-x86-reset16.bin", ""),
    }
}

fn build(product: &Path, arch: Arch, config: &str) -> Result<()> {
    let signed = format!("deb-src [signed-by={KEYRING}] ");
    let sources: Vec<String> = archive::lines()?.iter().map(|line| line.replacen("deb ", &signed, 1)).collect();
    ensure!(!sources.is_empty(), "the apt of this machine gets nothing from Debian, so there is no source of U-Boot");
    fs::create_dir_all(product)?;
    let script = |text: &str| {
        let mut command = Command::new("sh");
        command.args(["-euc", text, "sh"]).arg(product).env("SOURCES", sources.join("\n")).env("CONFIG", config);
        // U-Boot says when it was built, and takes this for now.
        command.env("SOURCE_DATE_EPOCH", "0").env("LC_ALL", "C");
        for name in ["MAKEFLAGS", "ARCH", "CROSS_COMPILE", "KBUILD_OUTPUT"] {
            command.env_remove(name);
        }
        if arch != Arch::X86_64 {
            command.env("CROSS_COMPILE", arch.tools());
        }
        shell::run(&mut command)
    };
    script(FETCH)?;
    let version = fs::read_to_string(product.join("version"))?;
    ensure!(version.starts_with(VERSION), "{SUITE} carries U-Boot {} and not {VERSION}", version.trim());
    script(&build_script(arch))?;
    let out = product.join("work/out");
    let part = |name: &str| fs::read(out.join(name)).with_context(|| format!("U-Boot did not build {name}"));
    let rom = match arch {
        Arch::X86_64 => {
            let rom = rom(&part("u-boot.bin")?, &part("u-boot-x86-start16.bin")?, &part("u-boot-x86-reset16.bin")?);
            rom.context("U-Boot does not fit into its ROM")?
        }
        Arch::Aarch64 => part("u-boot.bin")?,
    };
    fs::write(product.join("u-boot.rom"), rom)?;
    fs::remove_dir_all(product.join("work")).context("cannot clean up after the build of U-Boot")
}

/// Puts the parts where the processor expects them; nothing when one of them reaches into the next.
fn rom(uboot: &[u8], start16: &[u8], reset16: &[u8]) -> Option<Vec<u8>> {
    let mut rom = uboot.to_vec();
    for (at, part) in [(START16, start16), (RESET16, reset16), (ROM_SIZE, &[])] {
        if rom.len() > at {
            return None;
        }
        rom.resize(at, 0xff);
        rom.extend_from_slice(part);
    }
    Some(rom)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_part_of_the_rom_lies_where_the_processor_looks_for_it() {
        let rom = rom(&[1; 100], &[2; 112], &[3; 5]).unwrap();
        assert_eq!((rom.len(), &rom[99..101]), (0x10_0000, &[1, 0xff][..]));
        assert_eq!((rom[0xf_f800], rom[0xf_f86f], rom[0xf_f870]), (2, 2, 0xff));
        assert_eq!(rom[0xf_fff0..], [3, 3, 3, 3, 3, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff]);
    }

    #[test]
    fn a_part_that_reaches_into_the_next_is_refused() {
        assert!(rom(&[1; START16 + 1], &[], &[]).is_none());
        assert!(rom(&[], &[2; 0x7f1], &[]).is_none());
        assert!(rom(&[], &[], &[3; 17]).is_none());
    }
}
