//! Installs the Debian packages that images, virtual machines and tests need.

mod aarch64;

use std::env;
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Result, bail, ensure};

use crate::arch::Arch;
use crate::cargo;

/// One package, by its name in Debian 12 and 13 and in Ubuntu.
#[derive(PartialEq, Eq)]
struct Package {
    name: &'static str,
    /// A file of it, by which it is found where there is no dpkg: a program's name, or an absolute path.
    proof: &'static str,
    reason: &'static str,
}

const fn package(name: &'static str, proof: &'static str, reason: &'static str) -> Package {
    Package { name, proof, reason }
}

const PACKAGES: [Package; 21] = [
    package("gcc", "gcc", "compiles zstd and aws-lc and links our programs"),
    package("libc6-dev", "/usr/include/stdio.h", "the C library's headers and its static form"),
    package("binutils", "strip", "takes the debug information off programs for a guest; makes unified kernel images"),
    package("qemu-system-x86", "qemu-system-x86_64", "runs the devices"),
    package("ovmf", "/usr/share/OVMF/OVMF_CODE_4M.fd", "UEFI firmware of the devices"),
    package("grub-efi-amd64-bin", "/usr/lib/grub/x86_64-efi/normal.mod", "GRUB's modules, for the devices' loader"),
    package("grub-pc-bin", "/usr/lib/grub/i386-pc/boot.img", "GRUB for devices with a BIOS"),
    package("grub-common", "grub-mkimage", "makes the loader; grub-editenv is what ours is compared with"),
    package("systemd-boot-efi", "/usr/lib/systemd/boot/efi/systemd-bootx64.efi", "what our simulator is compared with"),
    package("mtools", "mcopy", "looks into the FAT partition from outside in tests"),
    package("dosfstools", "mkfs.fat", "makes and checks the FAT partition"),
    package("gdisk", "sgdisk", "what our reading of partition tables is compared with"),
    package("libubootenv-tool", "fw_setenv", "what our reading of U-Boot's environment is compared with"),
    package("e2fsprogs", "mke2fs", "makes the root and data file systems"),
    package("util-linux", "losetup", "loop devices, unshare and mount for images and tests"),
    package("mmdebstrap", "mmdebstrap", "makes the Debian systems that the devices run"),
    package(
        "debian-archive-keyring",
        "/usr/share/keyrings/debian-archive-keyring.gpg",
        "checks those systems' packages",
    ),
    package("uidmap", "newuidmap", "makes those systems without being root"),
    package("kmod", "depmod", "picks the kernel modules of the guests"),
    package("strace", "strace", "shows the order of writes and syncs to the tests"),
    package("squashfs-tools", "mksquashfs", "makes images that deltas are tested on, and bundles of rauc"),
];

/// What only `cargo xtask bench` needs.
const FOR_BENCH: [Package; 10] = [
    package("rauc", "rauc", "what an install is measured against"),
    package("openssl", "openssl", "makes the keys that rauc signs with"),
    package("dbus", "dbus-daemon", "rauc talks to itself over it"),
    package("erofs-utils", "mkfs.erofs", "another format that deltas are made of"),
    package("zstd", "zstd", "what a delta is measured against: a compressed image, and --patch-from"),
    package("xdelta3", "xdelta3", "what a delta is measured against"),
    package("bsdiff", "bsdiff", "what a delta is measured against"),
    package("casync", "casync", "what a delta is measured against"),
    package("rdiff", "rdiff", "what a delta is measured against"),
    package("zchunk", "zck", "what a delta is measured against"),
];

/// What only `cargo xtask image uboot` needs, beside what everything needs.
const FOR_UBOOT: [Package; 5] = [
    package("make", "make", "builds U-Boot"),
    package("bison", "bison", "makes a part of U-Boot's device tree compiler"),
    package("flex", "flex", "makes a part of U-Boot's device tree compiler"),
    package("libssl-dev", "/usr/include/openssl/ssl.h", "U-Boot's mkimage signs with it"),
    package("dpkg-dev", "dpkg-source", "unpacks U-Boot's source"),
];

/// What only `--arch aarch64` needs, beside U-Boot.
const FOR_AARCH64: [Package; 4] = [
    package("arch-test", "arch-test", "tells mmdebstrap that this machine runs such programs"),
    package("qemu-system-arm", "qemu-system-aarch64", "runs the devices"),
    package("gcc-aarch64-linux-gnu", "aarch64-linux-gnu-gcc", "compiles zstd, aws-lc and U-Boot for the devices"),
    package("qemu-user-static", "qemu-aarch64-static", "runs the programs of Debian's packages while a system is made"),
];

/// What root can do without.
const ONLY_WITHOUT_ROOT: &str = "uidmap";

/// The command: installs what is missing, or with `--no-install` only lists everything.
pub(crate) fn run(arguments: &[String]) -> Result<ExitCode> {
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [] => ensure().map(|()| ExitCode::SUCCESS),
        ["--no-install"] => list(),
        _ => bail!("`cargo xtask setup` takes only --no-install"),
    }
}

/// Sees that every package is there. Prints one line when they all are.
///
/// # Errors
/// When something is missing and cannot be installed; the text says what to do by hand.
pub(crate) fn ensure() -> Result<()> {
    ensure_all(&[&PACKAGES])
}

/// Sees that what only the measurements need is there too.
///
/// # Errors
/// As [`ensure`].
pub(crate) fn ensure_for_bench() -> Result<()> {
    ensure_all(&[&FOR_BENCH])
}

/// Sees that what only the build of U-Boot needs is there too.
///
/// # Errors
/// As [`ensure`].
pub(crate) fn ensure_for_uboot(arch: Arch) -> Result<()> {
    match arch {
        Arch::X86_64 => ensure_all(&[&PACKAGES, &FOR_UBOOT]),
        Arch::Aarch64 => ensure_all(&[&PACKAGES, &FOR_UBOOT, &FOR_AARCH64]),
    }
}

/// Sees that programs for devices with 64-bit ARM can be compiled, and that this machine runs such programs too.
///
/// # Errors
/// As [`ensure`].
pub(crate) fn ensure_for_aarch64() -> Result<()> {
    ensure_all(&[&FOR_AARCH64])?;
    ensure_aarch64_works()
}

/// The same, where the packages are there.
///
/// # Errors
/// When the compiler lacks its part or the kernel runs no such programs, and neither can be mended.
pub(crate) fn ensure_aarch64_works() -> Result<()> {
    aarch64::ensure_target()?;
    aarch64::ensure_runs()
}

fn ensure_all(groups: &[&'static [Package]]) -> Result<()> {
    let missing = groups.iter().map(|packages| missing(packages)).collect::<Result<Vec<_>>>()?.concat();
    if missing.is_empty() {
        println!("setup: everything is installed");
        return Ok(());
    }
    println!("setup: these packages are missing:");
    missing.iter().for_each(|package| show(package));
    if !is_debian() {
        bail!("this is not Debian or Ubuntu: install what these packages contain by hand, then run this again");
    }
    install(&missing)
}

fn list() -> Result<ExitCode> {
    let missing = [missing(&PACKAGES)?, missing(&FOR_BENCH)?, missing(&FOR_UBOOT)?, missing(&FOR_AARCH64)?].concat();
    for package in PACKAGES.iter().chain(&FOR_BENCH).chain(&FOR_UBOOT).chain(&FOR_AARCH64) {
        let is_missing = missing.contains(&package);
        print!("{}", if is_missing { "missing  " } else { "there    " });
        show(package);
    }
    Ok(ExitCode::SUCCESS)
}

fn show(package: &Package) {
    println!("  {:<24} {}", package.name, package.reason);
}

fn install(missing: &[&Package]) -> Result<()> {
    // The lists may be old and yet good enough, or a third party's archive may be down: the install decides.
    let updated = cargo::run(&mut apt_get(&["-q", "update"]))?.success();
    let mut command = apt_get(&["-q", "install", "--yes", "--no-install-recommends"]);
    command.args(missing.iter().map(|package| package.name));
    let installed = cargo::run(&mut command)?.success();
    ensure!(
        installed,
        "apt-get could not install them{}",
        if updated { "" } else { "; it could not renew its lists either: is the network there?" }
    );
    println!("setup: {} packages were installed", missing.len());
    Ok(())
}

/// apt-get as root, through sudo where we are not.
fn apt_get(arguments: &[&str]) -> Command {
    let words = ["env", "DEBIAN_FRONTEND=noninteractive", "apt-get"];
    let mut command = if is_root() {
        Command::new("env")
    } else {
        println!("setup: root is needed for apt-get; sudo may ask for your password");
        let mut command = Command::new("sudo");
        command.arg("env");
        command
    };
    command.args(&words[1..]).args(arguments);
    command
}

fn missing(packages: &'static [Package]) -> Result<Vec<&'static Package>> {
    let needed = packages.iter().filter(|package| !(is_root() && package.name == ONLY_WITHOUT_ROOT));
    if !is_debian() {
        return Ok(needed.filter(|package| !is_there(package.proof)).collect());
    }
    let mut query = Command::new("dpkg-query");
    query.args(["--show", "--showformat=${db:Status-Abbrev} ${Package}\\n"]);
    query.args(packages.iter().map(|package| package.name));
    // It fails, and says so on standard error, as soon as one of them is unknown: that is no error here.
    let printed = query.stderr(Stdio::null()).output()?.stdout;
    let installed = installed(&String::from_utf8_lossy(&printed));
    Ok(needed.filter(|package| !installed.iter().any(|name| name == package.name)).collect())
}

/// The packages that dpkg calls installed: the second letter of the status, whatever is wanted of it.
fn installed(printed: &str) -> Vec<String> {
    let name = |line: &str| {
        let (status, name) = line.split_once(' ')?;
        (status.as_bytes().get(1) == Some(&b'i')).then(|| name.trim().to_owned())
    };
    printed.lines().filter_map(name).collect()
}

fn is_debian() -> bool {
    in_search_path("dpkg-query") && in_search_path("apt-get")
}

fn is_there(proof: &str) -> bool {
    if proof.starts_with('/') { Path::new(proof).exists() } else { in_search_path(proof) }
}

fn in_search_path(program: &str) -> bool {
    let path = env::var_os("PATH").unwrap_or_default();
    let system = ["/usr/sbin", "/sbin"].map(Into::into);
    env::split_paths(&path).chain(system).any(|folder| folder.join(program).is_file())
}

fn is_root() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let effective = status.lines().find_map(|line| line.strip_prefix("Uid:")?.split_whitespace().nth(1));
    effective == Some("0")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_package_that_was_removed_but_left_its_settings_is_not_installed() {
        let printed = "ii  mtools\nrc  strace\nun  ovmf\nhi  cpio\n";
        assert_eq!(installed(printed), ["mtools", "cpio"]);
    }

    #[test]
    fn every_package_has_a_reason_and_is_named_once() {
        let all = PACKAGES.iter().chain(&FOR_BENCH).chain(&FOR_UBOOT).chain(&FOR_AARCH64);
        let mut names: Vec<_> = all.map(|package| package.name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), PACKAGES.len() + FOR_BENCH.len() + FOR_UBOOT.len() + FOR_AARCH64.len());
        assert!(PACKAGES.iter().all(|package| !package.reason.is_empty() && !package.proof.is_empty()));
    }
}
