//! The demo's systems for devices that start by unified kernel images: each has two files more, an image for each group.
//!
//! They are made only where they are asked for, beside the other systems: with two more kernels in them they are larger, and so
//! are their bundles.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use serde_json::Value;

use super::cache::{self, Key, cached};
use super::demo::{VERSIONS, Version};
use super::system::Inputs;
use super::{SLOT_SIZE, shell};

/// What the names of these systems' files have more.
pub(super) const SUFFIX: &str = "-unified";

/// The first of the demo's systems: no scene on such a device wants more.
const SYSTEMS: usize = 5;
/// The program that an image begins with, of Debian's package systemd-boot-efi.
const STUB: &str = "/usr/lib/systemd/boot/efi/linuxx64.efi.stub";
/// What the disks of all the demo's devices are made with, here and in the crate `tests`.
const SEED: &str = "bascule demo";
/// Where each section begins has to be a multiple of this; no stub wants more.
const ALIGNMENT: u64 = 0x1000;
const GROUPS: [&str; 2] = ["a", "b"];

/// Where an update looks for the images: `$1` has them, `$2` is the tree.
const PUT: &str = r#"
to="$2/usr/lib/bascule/boot/uki"
mkdir -p "$to"
cp "$1"/a.efi "$1"/b.efi "$to/"
chmod 0644 "$to"/*.efi
"#;

/// The kernel's words for each group.
pub(super) struct Words([(&'static str, String); 2]);

impl Words {
    /// With the roots that the disks will have: an image is signed and fixed before it is on one.
    pub(super) fn find(tool: &Path) -> Result<Words> {
        let mut layout = Command::new(tool);
        let layout = shell::output(layout.args(["disk", "layout", "--seed", SEED, "--json"]))?;
        let layout: Value = serde_json::from_str(&layout).context("the layout of a disk is not JSON")?;
        let parts = layout.get("partitions").and_then(Value::as_array).context("a disk without partitions")?;
        let words = |group: &str| -> Result<String> {
            let text = |part: &Value, key: &str| part.get(key).and_then(Value::as_str).map(str::to_owned);
            let slot = format!("root-{group}");
            let root = parts.iter().find(|part| text(part, "name").as_ref() == Some(&slot));
            let root = root.and_then(|part| text(part, "partuuid")).context("a disk without root slots")?;
            Ok(format!("root=PARTUUID={root} rootwait panic=-1 quiet console=ttyS0 bascule.group={group}"))
        };
        let [a, b] = GROUPS;
        Ok(Words([(a, words(a)?), (b, words(b)?)]))
    }

    /// Changes with everything that an image is made of beside the kernel.
    pub(super) fn key(&self) -> Result<Key> {
        Ok(Key::of((&self.0, PUT, ALIGNMENT, os_release(""), Key::of_path(Path::new(STUB))?)))
    }
}

/// The systems that there are.
pub(super) fn versions() -> &'static [Version] {
    VERSIONS.get(..SYSTEMS).unwrap_or(&VERSIONS)
}

/// A system's name among the files.
pub(super) fn name(version: &str) -> String {
    format!("{version}{SUFFIX}")
}

/// Makes both images of the tree's own kernel, and puts them into the tree.
pub(super) fn add(directory: &Path, words: &Words, version: &Version, tree: &Path) -> Result<()> {
    let folder = directory.join(format!(".{}.uki", version.name));
    cache::remove(&folder)?;
    std::fs::create_dir_all(&folder)?;
    std::fs::write(folder.join("osrel"), os_release(version.version))?;
    for (group, words) in &words.0 {
        std::fs::write(folder.join("cmdline"), words)?;
        image(&folder, &tree.join("boot/vmlinuz"), &folder.join(format!("{group}.efi")))?;
    }
    shell::tree_script(PUT, &[&folder, tree])?;
    cache::remove(&folder)
}

/// The same in all versions but for the name in the menu: the loader sorts by the rest before it looks at the entries' names.
fn os_release(version: &str) -> String {
    format!("ID=bascule-demo\nPRETTY_NAME=\"Bascule demo {version}\"\n")
}

/// Adds the sections to the stub, the kernel last: some stubs start it where it lies, and it needs more room than its bytes.
fn image(folder: &Path, kernel: &Path, to: &Path) -> Result<()> {
    let sections =
        [(".osrel", folder.join("osrel")), (".cmdline", folder.join("cmdline")), (".linux", kernel.to_owned())];
    let mut objcopy = Command::new("objcopy");
    let mut at = end_of_stub()?;
    for (name, file) in &sections {
        at = at.next_multiple_of(ALIGNMENT);
        objcopy.arg("--add-section").arg(super::joined(&format!("{name}="), file));
        objcopy.arg("--change-section-vma").arg(format!("{name}={at:#x}"));
        at = at.saturating_add(file.metadata()?.len());
    }
    shell::run(objcopy.arg(STUB).arg(to)).context("no unified kernel image can be made")
}

/// The first address after all sections of the stub, as `objdump -h` lists them: number, name, size, address and more.
fn end_of_stub() -> Result<u64> {
    let listed = shell::output(Command::new("objdump").arg("-h").arg(STUB))?;
    let ends = listed.lines().filter_map(|line| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let [number, _, size, address, ..] = words[..] else { return None };
        number.parse::<u32>().ok()?;
        let hex = |text| u64::from_str_radix(text, 16).ok();
        Some(hex(address)?.saturating_add(hex(size)?))
    });
    ends.max().context("objdump lists no sections of the stub")
}

/// The factory disk: the first version in group `a`, which it starts by its unified kernel image.
pub(super) fn disk(directory: &Path, inputs: &Inputs, root: &Path, key: &Key) -> Result<PathBuf> {
    cached(directory, &format!("disk{SUFFIX}.img"), &Key::of((key, "disk")), |partial| {
        let mut create = Command::new(&inputs.tool);
        create.args(["disk", "create", "--loader", "systemd-boot", "--unified", "--seed", SEED, "--root-image"]);
        create.arg(root).args(["--slot-size", SLOT_SIZE, "-o"]).arg(partial);
        shell::run(&mut create)
    })
}
