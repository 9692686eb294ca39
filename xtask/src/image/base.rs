//! The one Debian tree that every demo system is derived from.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};

use super::archive::{self, SUITE};
use super::cache::{self, Key};
use super::shell;
use crate::arch::Arch;

/// What the systems need beside Debian's essential packages. With systemd-boot comes a unit that commits by itself if it is let.
const PACKAGES: [&str; 9] =
    ["systemd-sysv", "udev", "dbus", "iproute2", "e2fsprogs", "kmod", "busybox-static", "efibootmgr", "systemd-boot"];

/// Kernel modules of the guests; disk, ext4 and serial console are built into the cloud kernel.
const MODULES: &str =
    "vfat nls_cp437 nls_ascii nls_utf8 nls_iso8859_1 virtio_pci virtio_net virtio_rng loop watchdog efivarfs";

/// Paths that dpkg does not unpack.
const LEFT_OUT: [&str; 6] = [
    "/usr/share/doc/*",
    "/usr/share/man/*",
    "/usr/share/info/*",
    "/usr/share/locale/*",
    "/usr/share/zoneinfo/*",
    "/usr/share/lintian/*",
];

/// The driver of QEMU's hardware watchdog. The cloud kernel is built without it; the generic kernel of the same source
/// has it, and a module of the one can be forced into the other.
const WATCHDOG: &str = "kernel/drivers/watchdog/i6300esb.ko";

/// Fetches the newest cloud kernel and the one before it, with the guest's own package lists; keeps the images, of both the
/// modules in [`MODULES`], and [`WATCHDOG`] from the generic kernel. The first system starts the kernel before, all others
/// the newest; where the archive has one only, that is both.
const ADD_KERNEL: &str = r#"
tree=$1
work=$(mktemp -d)
cd "$work"
export APT_CONFIG="$MMDEBSTRAP_APT_CONFIG"
add() {
    package=$1
    generic=$(echo "$package" | sed s/-cloud//)
    apt-get -qq -o APT::Sandbox::User=root download "$package" "$generic"
    rm -rf kernel
    mkdir kernel
    dpkg-deb --fsys-tarfile "$package"_*.deb | tar -x -C kernel
    version=$(ls kernel/lib/modules)
    depmod -b kernel "$version"
    cp "kernel/boot/vmlinuz-$version" "$tree/boot/$2"
    to="usr/lib/modules/$version"
    mkdir -p "$tree/$to"
    for module in $MODULES; do
        modprobe -d kernel -S "$version" --show-depends "$module"
    done | sed -n 's/^insmod \([^ ]*\).*/\1/p' | sort -u | while read -r file; do
        inside=${file##*/lib/modules/}
        mkdir -p "$tree/usr/lib/modules/${inside%/*}"
        cp "$file" "$tree/usr/lib/modules/$inside"
    done
    mkdir -p "$tree/$to/extra"
    dpkg-deb --fsys-tarfile "$generic"_*.deb | tar -xO --wildcards "./lib/modules/*/$WATCHDOG" > "$tree/$to/extra/${WATCHDOG##*/}"
    test -s "$tree/$to/extra/${WATCHDOG##*/}"
    cp kernel/lib/modules/"$version"/modules.builtin* kernel/lib/modules/"$version"/modules.order "$tree/$to/"
    depmod -b "$tree" "$version"
}
newest=$(apt-cache depends linux-image-cloud-amd64 | sed -n 's/.*Depends: \(linux-image-[0-9][^ ]*\)$/\1/p' | head -n 1)
test -n "$newest"
before=$(apt-cache pkgnames linux-image- | grep -x 'linux-image-[0-9.]*-[0-9]*-cloud-amd64' | sort -V | grep -xB 1 "$newest" | head -n 1)
add "$newest" vmlinuz
if test "$before" = "$newest"; then cp "$tree/boot/vmlinuz" "$tree/boot/vmlinuz.before"; else add "$before" vmlinuz.before; fi
cd /
rm -rf "$work"
"#;

/// Takes away what a device with a read-only root and no logins does not use, and what only slows its start.
///
/// Nothing below `/var` and `/tmp`: mmdebstrap's own settings of apt are there, and without them its clean-up would work
/// on the host's package lists. The copies of the tree do without them.
const TRIM: &str = r#"
cd "$1"
rm -rf etc/apt/apt.conf.d/99mmdebstrap etc/dpkg/dpkg.cfg.d/99mmdebstrap
rm -f usr/lib/udev/hwdb.bin etc/udev/hwdb.bin
rm -rf usr/lib/udev/hwdb.d usr/lib/systemd/catalog usr/share/bash-completion usr/share/zsh
cd usr/lib/udev/rules.d
for rule in *; do
    case $rule in
    50-udev-default.rules | 60-block.rules | 60-persistent-storage.rules | 80-drivers.rules | 99-systemd.rules) ;;
    *) rm "$rule" ;;
    esac
done
cd ../../../..
find etc/systemd/system -mindepth 1 -delete
cd usr/lib/systemd/system
for unit in *.wants/*; do
    case ${unit##*/} in
    kmod-static-nodes.service | systemd-journald.service | systemd-modules-load.service) ;;
    systemd-tmpfiles-setup*.service | systemd-udev*.service | systemd-journald*.socket | systemd-udevd-*.socket) ;;
    dbus.socket) ;;
    *) rm "$unit" ;;
    esac
done
"#;

/// Makes or finds the base tree.
///
/// The key does not name the archive's state: a new kernel or security update is taken when the cache is removed.
pub(super) fn ensure(directory: &Path, arch: Arch) -> Result<(PathBuf, Key)> {
    let key = Key::of((SUITE, PACKAGES, MODULES, WATCHDOG, LEFT_OUT, add_kernel(arch), TRIM));
    let tree = cache::cached(directory, "base", &key, |tree| build(tree, arch))?;
    Ok((tree, key))
}

fn build(tree: &Path, arch: Arch) -> Result<()> {
    let sources = archive::lines()?;
    if shell::is_root() {
        let mut command = with_hooks("directory", arch);
        command.arg(SUITE).arg(tree).args(&sources);
        return shell::run(&mut command);
    }
    std::fs::create_dir(tree)?;
    let mut command = with_hooks("tar", arch);
    let mut maker = command.arg(SUITE).arg("-").args(&sources).stdout(Stdio::piped()).spawn()?;
    let archive = maker.stdout.take().context("mmdebstrap has no output")?;
    let mut unpack = shell::tree_command("tar");
    unpack.args(["-x", "--numeric-owner", "--exclude=./dev/*", "-C"]).arg(tree).stdin(archive);
    let unpacked = unpack.status().context("cannot start tar")?;
    ensure!(maker.wait()?.success() && unpacked.success(), "mmdebstrap or tar failed");
    Ok(())
}

fn add_kernel(arch: Arch) -> String {
    ADD_KERNEL.replace(Arch::X86_64.debian(), arch.debian())
}

fn with_hooks(format: &str, arch: Arch) -> Command {
    let mut command = mmdebstrap(arch, "essential", &PACKAGES, &LEFT_OUT);
    command.arg(format!("--format={format}"));
    command.env("MODULES", MODULES).env("WATCHDOG", WATCHDOG).env("ADD_KERNEL", add_kernel(arch)).env("TRIM", TRIM);
    command.args(["--customize-hook=set -eu; eval \"$ADD_KERNEL\"", "--customize-hook=set -eu; eval \"$TRIM\""]);
    command
}

/// A command that makes a Debian system of these packages, as root or without.
pub(super) fn mmdebstrap(arch: Arch, variant: &str, packages: &[&str], left_out: &[&str]) -> Command {
    let mut command = Command::new("mmdebstrap");
    command.arg("--quiet").arg(format!("--architectures={}", arch.debian())).arg(format!("--variant={variant}"));
    command.arg(if shell::is_root() { "--mode=root" } else { "--mode=unshare" });
    command.arg(format!("--include={}", packages.join(",")));
    command.arg("--aptopt=APT::Install-Recommends false").arg("--aptopt=Acquire::Languages \"none\"");
    if let Some(proxy) = proxy() {
        command.arg(format!("--aptopt=Acquire::http::Proxy \"{proxy}\""));
    }
    for path in left_out {
        command.arg(format!("--dpkgopt=path-exclude={path}"));
    }
    command
}

/// The proxy that the host's apt uses; the environment's is inherited anyway.
fn proxy() -> Option<String> {
    let printed = shell::output(Command::new("apt-config").args(["shell", "PROXY", "Acquire::http::Proxy"])).ok()?;
    let value = printed.trim().strip_prefix("PROXY='")?.strip_suffix('\'')?;
    (!value.is_empty()).then(|| value.to_owned())
}
