//! Pairs of Debian systems, one older than the other, that tools for deltas are measured with.
//!
//! ```text
//! a-old: the release as it was published      a-new: the same packages with all updates
//! c-old: a-old                                c-new: a-old with one setting and one program changed
//! arm64-old, arm64-new: as a, for 64-bit ARM; unpacked only, for its programs do not run here
//! ```
//! Each of them as ext4, those for x86-64 as erofs (plain and lz4hc) and as squashfs too. The same packages give the same
//! bytes.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};

use super::archive::{self, SUITE};
use super::base;
use super::cache::{self, Key, cached};
use super::shell;
use crate::arch::Arch;
use crate::cargo;

/// What a small device with containers and a network has.
const PACKAGES: [&str; 17] = [
    "systemd",
    "udev",
    "dbus",
    "openssh-server",
    "openssl",
    "curl",
    "python3-minimal",
    "network-manager",
    "busybox",
    "ca-certificates",
    "podman",
    "iproute2",
    "nftables",
    "sudo",
    "e2fsprogs",
    "kmod",
    "tzdata",
];

/// The kernel beside these.
const KERNELS: [(Arch, &str); 2] =
    [(Arch::X86_64, "linux-image-cloud-amd64"), (Arch::Aarch64, "linux-image-cloud-arm64")];

/// Paths that dpkg does not unpack.
const LEFT_OUT: [&str; 5] =
    ["/usr/share/doc/*", "/usr/share/man/*", "/usr/share/info/*", "/usr/share/locale/*", "/usr/share/lintian/*"];

/// Seconds since 1970 of everything that is made here, and of files that are younger: 2026-01-01.
const EPOCH: &str = "1767225600";

/// Takes away what is made on the device, differs from build to build, or is never read: an initial RAM disk (the cloud
/// kernel starts from ext4 without one), keys and logs.
const TRIM: &str = r#"
cd "$1"
rm -f boot/initrd.img* initrd.img* vmlinuz.old etc/ssh/ssh_host_* var/lib/dbus/machine-id
rm -f var/cache/ldconfig/aux-cache var/log/*.log var/log/apt/* var/cache/debconf/*-old var/lib/dpkg/*-old
rm -f etc/passwd- etc/shadow- etc/group- etc/gshadow- etc/subuid- etc/subgid-
: > etc/machine-id
"#;

/// Unpacks the tar file `$2` to the new folder `$1`.
const UNPACK: &str = "mkdir \"$1\"; tar -x --numeric-owner --exclude='./dev/*' -C \"$1\" -f \"$2\"";

/// Edits one setting of the tree `$1` and puts in its place that program of the newer tree `$2` which is nearest to a
/// megabyte, of all that are in both and differ. Prints which.
const SMALL_CHANGE: &str = r#"
sed -i 's/^#PermitRootLogin .*/PermitRootLogin no/' "$1/etc/ssh/sshd_config"
grep -q '^PermitRootLogin no$' "$1/etc/ssh/sshd_config"
touch -d "@$SOURCE_DATE_EPOCH" "$1/etc/ssh/sshd_config" "$1/etc/ssh"
cd "$2"
program=$(find usr/bin usr/sbin -type f -links 1 -perm -100 -size +500k -size -2000k -printf '%s %p\n' |
    while read -r size file; do
        test -f "$1/$file" || continue
        test "$(head -c 4 "$file" | tail -c 3)" = ELF || continue
        cmp -s "$file" "$1/$file" && continue
        distance=$((size - 1000000))
        echo "${distance#-} $file"
    done | sort -n | head -n 1 | cut -d ' ' -f 2)
test -n "$program"
directory=$(dirname "$1/$program")
cp -p "$program" "$1/$program"
touch -d "@$SOURCE_DATE_EPOCH" "$directory"
echo "$program"
"#;

/// Features as in our own images, without a journal.
const EXT4: &str = r#"
truncate -s 704M "$2"
mke2fs -q -F -t ext4 -b 4096 -I 256 -m 0 -L root -d "$1" \
    -O none,ext_attr,dir_index,filetype,extent,64bit,flex_bg,sparse_super,large_file,huge_file,dir_nlink,extra_isize,metadata_csum \
    -U 6d1f3b52-8c0e-4e0b-9d0a-0f5f6b1f6a01 \
    -E hash_seed=6d1f3b52-8c0e-4e0b-9d0a-0f5f6b1f6a02,lazy_itable_init=0,nodiscard,root_owner=0:0 "$2"
# The other times of a file say when it was unpacked here. Sorted, for the superblock counts what was written.
(cd "$1" && find . -printf 'sif "/%P" atime @%Ts\nsif "/%P" ctime @%Ts\n') | LC_ALL=C sort > "$2.times"
debugfs -w -f "$2.times" "$2" > "$2.said" 2>&1 || { cat "$2.said"; exit 1; }
rm "$2.times" "$2.said"
"#;

const EROFS: &str =
    "mkfs.erofs --quiet -T \"$SOURCE_DATE_EPOCH\" -U 6d1f3b52-8c0e-4e0b-9d0a-0f5f6b1f6a03 \"$2\" \"$1\"";

const EROFS_LZ4HC: &str =
    "mkfs.erofs --quiet -zlz4hc -T \"$SOURCE_DATE_EPOCH\" -U 6d1f3b52-8c0e-4e0b-9d0a-0f5f6b1f6a03 \"$2\" \"$1\"";

const SQUASHFS: &str = "mksquashfs \"$1\" \"$2\" -quiet -no-progress -noappend -comp zstd -xattrs";

/// What each format is called and the script that makes it: the tree is its `$1`, the image its `$2`.
const FORMATS: [(&str, &str); 4] =
    [("ext4", EXT4), ("erofs", EROFS), ("erofs-lz4hc", EROFS_LZ4HC), ("squashfs", SQUASHFS)];

/// Makes what is missing and says in which folder all of it is. `wanted` are the names of pairs; all, if there are none.
///
/// As for the demo's systems the archive's state is not asked for: remove the folder to take newer updates.
///
/// # Errors
/// When the host's apt does not know the release, or a program that is needed is missing or fails.
pub(crate) fn ensure(wanted: &[&str]) -> Result<PathBuf> {
    let directory = cargo::workspace().join("target/bascule/pairs");
    fs::create_dir_all(&directory)?;
    let lock = File::create(directory.join(".lock"))?;
    lock.lock().context("cannot wait for another `cargo xtask bench`")?;
    let is_wanted = |pair| wanted.is_empty() || wanted.contains(&pair);
    if is_wanted("a") || is_wanted("c") {
        ensure_x86_64(&directory)?;
    }
    if is_wanted("arm64") {
        let (old, new, key) = systems(&directory, Arch::Aarch64)?;
        images(&directory, "arm64-old", &FORMATS[..1], &key, |tree| unpack(&old, tree))?;
        images(&directory, "arm64-new", &FORMATS[..1], &key, |tree| unpack(&new, tree))?;
    }
    Ok(directory)
}

/// The old system, the new one, and the key of what is made of them.
fn systems(directory: &Path, arch: Arch) -> Result<(PathBuf, PathBuf, Key)> {
    let name =
        |age: &str| if arch == Arch::X86_64 { format!("{age}.tar") } else { format!("{}-{age}.tar", arch.debian()) };
    let key = Key::of((SUITE, PACKAGES, arch.debian(), LEFT_OUT, EPOCH, TRIM));
    let old = cached(directory, &name("old"), &key, |partial| system(partial, Updates::None, arch))?;
    let new = cached(directory, &name("new"), &key, |partial| system(partial, Updates::All, arch))?;
    let key = Key::of((Key::of_path(&old)?, Key::of_path(&new)?, UNPACK));
    Ok((old, new, key))
}

fn ensure_x86_64(directory: &Path) -> Result<()> {
    let (old, new, key) = systems(directory, Arch::X86_64)?;
    // What is needed first is made first.
    let (first, others) = FORMATS.split_at(1);
    for formats in [first, others] {
        images(directory, "a-old", formats, &key, |tree| unpack(&old, tree))?;
        images(directory, "a-new", formats, &key, |tree| unpack(&new, tree))?;
        let key = Key::of((&key, SMALL_CHANGE));
        images(directory, "c-new", formats, &key, |tree| {
            unpack(&old, tree)?;
            let newer = tree.with_extension("newer");
            unpack(&new, &newer)?;
            let mut change = shell::tree_command("sh");
            change.args(["-euc", SMALL_CHANGE, "sh"]).args([tree, &newer]).env("SOURCE_DATE_EPOCH", EPOCH);
            let program = shell::output(&mut change)?;
            eprintln!("image: pair c has a newer /{}", program.trim());
            cache::remove(&newer)
        })?;
        for (format, _) in formats {
            let name = directory.join(format!("c-old.{format}"));
            fs::remove_file(&name).ok();
            fs::hard_link(directory.join(format!("a-old.{format}")), name)?;
        }
    }
    Ok(())
}

/// Which of the archive's suites a system is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Updates {
    None,
    All,
}

/// A system as a tar file with its files in the order of their names.
fn system(output: &Path, updates: Updates, arch: Arch) -> Result<()> {
    let mut sources = archive::lines()?;
    let release = format!(" {SUITE} main");
    if updates == Updates::None {
        sources.retain(|line| line.ends_with(&release));
    }
    ensure!(!sources.is_empty(), "the apt of this machine has no source for {SUITE}");
    let kernels = KERNELS.iter().filter(|(of, _)| *of == arch).map(|(_, kernel)| *kernel);
    let packages: Vec<_> = PACKAGES.into_iter().chain(kernels).collect();
    let variant = if arch == Arch::X86_64 { "minbase" } else { "extract" };
    let mut command = base::mmdebstrap(arch, variant, &packages, &LEFT_OUT);
    command.arg("--format=tar").env("TRIM", TRIM).env("SOURCE_DATE_EPOCH", EPOCH);
    command.arg("--customize-hook=set -eu; eval \"$TRIM\"").arg(SUITE).arg("-").args(&sources);
    let made =
        command.stdin(Stdio::null()).stdout(File::create(output)?).status().context("cannot start mmdebstrap")?;
    ensure!(made.success(), "mmdebstrap ended with {made}");
    Ok(())
}

fn unpack(system: &Path, tree: &Path) -> Result<()> {
    shell::tree_script(UNPACK, &[tree, system])
}

/// Makes `name` in all `formats`, from a tree that is made only if one of them is out of date.
fn images(
    directory: &Path,
    name: &str,
    formats: &[(&str, &str)],
    key: &Key,
    make: impl Fn(&Path) -> Result<()>,
) -> Result<()> {
    let tree = directory.join(format!(".{name}.tree"));
    for (format, script) in formats {
        cached(directory, &format!("{name}.{format}"), &Key::of((key, script)), |partial| {
            if !tree.exists() {
                make(&tree)?;
            }
            let mut command: Command = shell::tree_command("sh");
            command.args(["-euc", script, "sh"]).args([&tree, partial]).env("SOURCE_DATE_EPOCH", EPOCH);
            command.env("E2FSPROGS_FAKE_TIME", EPOCH).env("MKE2FS_CONFIG", "/dev/null");
            shell::run(&mut command)
        })?;
    }
    cache::remove(&tree)
}
