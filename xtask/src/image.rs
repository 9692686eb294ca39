//! Makes the demo's Debian systems, the bundles made of them and the factory disk.

mod archive;
mod base;
mod cache;
mod demo;
pub(crate) mod pairs;
mod places;
mod shell;
mod system;
pub(crate) mod uboot;
mod unified;

use std::ffi::OsString;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result};
use serde_json::{Value, json};

use crate::arch::Arch;
use crate::cargo;

use cache::{Key, cached};
use demo::{VERSIONS, Version};
use system::Inputs;

/// Size of a root slot, and so of every root image.
const SLOT_SIZE: &str = "512M";

/// What runs on a device.
pub(crate) const DEVICE_PROGRAMS: [&str; 2] = ["basculed", "bascule"];

/// The version that the refused bundles would be, so that nothing but their fault can refuse them.
const NEWEST_PLACE: usize = 4;

/// Everything the demo and the QEMU tests start from. Also written to `images.json` in the same folder, or to
/// `images-unified.json`.
#[derive(Debug)]
pub(crate) struct Images {
    /// The processor of the machines.
    pub(crate) arch: Arch,
    /// The folder that holds all of it: `target/bascule`.
    pub(crate) directory: PathBuf,
    /// The factory disk: v1 in group `a`, nothing in group `b`.
    pub(crate) disk: PathBuf,
    /// The kernel of all the systems, for starts without a boot loader.
    pub(crate) kernel: PathBuf,
    /// Root image and bundle of each version, `v1` to `v5`.
    pub(crate) systems: Vec<System>,
    /// A bundle of the newest version signed by keys that no device trusts.
    pub(crate) stranger: PathBuf,
    /// A rightly signed bundle of the newest version for other hardware.
    pub(crate) other_hardware: PathBuf,
    /// The first part of the newest version's bundle.
    pub(crate) truncated: PathBuf,
    /// Whether devices start by unified kernel images.
    pub(crate) unified: bool,
}

/// One demo version's files.
#[derive(Debug)]
pub(crate) struct System {
    /// What it is.
    pub(crate) version: Version,
    /// The ext4 image of its root.
    pub(crate) image: PathBuf,
    /// Its signed bundle.
    pub(crate) bundle: PathBuf,
}

/// Makes what is missing or out of date and says where everything is.
///
/// # Errors
/// When a program that is needed is missing or fails; its output is in the error.
pub(crate) fn ensure(arch: Arch) -> Result<Images> {
    let start = Start::find(arch)?;
    let Start { directory, inputs, key, .. } = &start;
    let roots = both_at_once(&VERSIONS, |version| root_image(directory, inputs, version, &Kind::usual(version), key))?;
    let disk = disk(directory, inputs, roots.first().context("no factory system")?, key)?;
    finish(&start, Bundler::new(&start, key.clone(), ""), &roots, disk)
}

/// The same for devices that start by unified kernel images; the other images need not be there.
///
/// # Errors
/// As [`ensure`].
pub(crate) fn ensure_unified() -> Result<Images> {
    let start = Start::find(Arch::X86_64)?;
    let Start { directory, inputs, key, .. } = &start;
    let words = unified::Words::find(&inputs.tool)?;
    let key = Key::of((key, words.key()?));
    let roots = both_at_once(unified::versions(), |version| {
        let add = |tree: &Path| unified::add(directory, &words, version, tree);
        root_image(directory, inputs, version, &Kind { name: unified::name(version.name), add: &add }, &key)
    })?;
    let disk = unified::disk(directory, inputs, roots.first().context("no factory system")?, &key)?;
    finish(&start, Bundler::new(&start, key, unified::SUFFIX), &roots, disk)
}

/// What all images are made of.
struct Start {
    directory: PathBuf,
    inputs: Inputs,
    keys: PathBuf,
    kernel: PathBuf,
    key: Key,
    /// Held as long as images are made.
    _lock: File,
}

impl Start {
    fn find(arch: Arch) -> Result<Start> {
        let directory = arch.images();
        std::fs::create_dir_all(&directory)?;
        let lock = File::create(directory.join(".lock"))?;
        lock.lock().context("cannot wait for another `cargo xtask image`")?;
        let (base, base_key) = base::ensure(&directory, arch)?;
        let tool = system::program("bascule-image")?;
        let keys = keys(&directory, &tool, "keys")?;
        let kernel = cached(&directory, "vmlinuz", &base_key, |partial| {
            std::fs::copy(base.join("boot/vmlinuz"), partial).map(drop).context("cannot copy the kernel")
        })?;
        let inputs = Inputs::find(cargo::workspace(), arch, base, tool, keys.join("root.json"))?;
        let key = Key::of((base_key, inputs.key()?, SLOT_SIZE));
        Ok(Start { directory, inputs, keys, kernel, key, _lock: lock })
    }
}

fn finish(start: &Start, bundler: Bundler<'_>, roots: &[PathBuf], disk: PathBuf) -> Result<Images> {
    let list = format!("images{}.json", bundler.suffix);
    let images = bundles(bundler, roots, disk, start.kernel.clone())?;
    std::fs::write(images.directory.join(list), format!("{:#}\n", images.to_json()))?;
    Ok(images)
}

impl Images {
    fn to_json(&self) -> Value {
        let systems: Vec<Value> = self
            .systems
            .iter()
            .map(|s| {
                json!({ "name": s.version.name, "version": s.version.version, "order": s.version.order,
                    "image": s.image, "bundle": s.bundle })
            })
            .collect();
        json!({ "arch": self.arch.name(), "directory": self.directory, "disk": self.disk, "kernel": self.kernel,
            "systems": systems, "stranger": self.stranger,
            "other_hardware": self.other_hardware, "truncated": self.truncated, "unified": self.unified })
    }
}

/// Runs `work` on every item, two at a time, and keeps their order.
fn both_at_once<T: Sync, R: Send>(items: &[T], work: impl Fn(&T) -> Result<R> + Sync) -> Result<Vec<R>> {
    let mut results = Vec::new();
    for pair in items.chunks(2) {
        let finished: Vec<Result<R>> = std::thread::scope(|scope| {
            let running: Vec<_> = pair.iter().map(|item| scope.spawn(|| work(item))).collect();
            running.into_iter().map(|one| one.join().unwrap_or_else(|_| anyhow::bail!("a worker panicked"))).collect()
        });
        results.extend(finished.into_iter().collect::<Result<Vec<R>>>()?);
    }
    Ok(results)
}

fn keys(directory: &Path, tool: &Path, name: &str) -> Result<PathBuf> {
    cached(directory, name, &Key::of("keys"), |partial| {
        shell::run(Command::new(tool).args(["keys", "init"]).arg(partial))
    })
}

/// One of the images that a version's tree is made into.
struct Kind<'a> {
    /// The image's name, without its ending.
    name: String,
    /// What is added to the tree.
    add: &'a dyn Fn(&Path) -> Result<()>,
}

impl Kind<'_> {
    fn usual(version: &Version) -> Kind<'static> {
        Kind { name: version.name.to_owned(), add: &|_| Ok(()) }
    }
}

/// The ext4 image of one version's root.
fn root_image(directory: &Path, inputs: &Inputs, version: &Version, kind: &Kind<'_>, key: &Key) -> Result<PathBuf> {
    cached(directory, &format!("{}.ext4", kind.name), &Key::of((key, version)), |partial| {
        system::with_tree(directory, inputs, version, |tree| {
            (kind.add)(tree)?;
            let mut create = shell::tree_command(&inputs.tool);
            create.args(["image", "create", "--tree"]).arg(tree).args(["--size", SLOT_SIZE, "-o"]).arg(partial);
            shell::run(&mut create)
        })
    })
}

/// Makes all bundles in the order in which the demo offers them.
///
/// A device takes no metadata older than what it has seen, and their age is the second they were signed in. So each is
/// made after the one before, and made anew when that one was.
fn bundles(mut bundler: Bundler<'_>, roots: &[PathBuf], disk: PathBuf, kernel: PathBuf) -> Result<Images> {
    let Bundler { directory, keys, suffix, .. } = bundler;
    let arch = bundler.inputs.arch;
    let hardware = arch.hardware();
    let strangers = self::keys(directory, &bundler.inputs.tool, "stranger-keys")?;
    let find = |place| VERSIONS.get(place).zip(roots.get(place)).context("no such version");
    let system = |bundler: &mut Bundler<'_>, place: usize, base: Option<usize>| -> Result<System> {
        let (version, image) = find(place)?;
        let name = format!("demo-{}{suffix}.bascule", version.version);
        let content = Content { image, version, base: base.map(find).transpose()?, compatible: hardware };
        let bundle = bundler.make(&name, keys, &content)?;
        Ok(System { version: *version, image: image.clone(), bundle })
    };
    let (version, image) = find(NEWEST_PLACE)?;
    let faulty = |fault: &str| format!("demo-{}{suffix}-{fault}.bascule", version.version);
    let newest = Content { image, version, base: None, compatible: hardware };

    // The one with a delta; the others are full images only.
    let second = system(&mut bundler, 1, Some(0))?;
    let stranger = bundler.make(&faulty("stranger"), &strangers, &newest)?;
    let other_hardware =
        bundler.make(&faulty("other-hardware"), keys, &Content { compatible: "other-board", ..newest })?;
    let whole = bundler.make(&faulty("whole"), keys, &newest)?;
    let truncated = truncated(directory, &faulty("truncated"), &whole, &bundler.previous)?;
    // After the second, so that its order refuses it and not the age of its metadata.
    let first = system(&mut bundler, 0, None)?;
    let later = (2..roots.len()).map(|place| system(&mut bundler, place, None)).collect::<Result<Vec<_>>>()?;
    let systems = [first, second].into_iter().chain(later).collect();
    let (directory, unified) = (directory.to_owned(), suffix == unified::SUFFIX);
    Ok(Images { arch, directory, disk, kernel, systems, stranger, other_hardware, truncated, unified })
}

/// What a bundle is made of.
#[derive(Clone, Copy)]
struct Content<'c> {
    image: &'c Path,
    version: &'c Version,
    /// A version and its image that a delta is made against.
    base: Option<(&'c Version, &'c PathBuf)>,
    compatible: &'c str,
}

/// Makes one bundle after the other.
struct Bundler<'i> {
    directory: &'i Path,
    inputs: &'i Inputs,
    keys: &'i Path,
    /// What the names of these bundles have after the version.
    suffix: &'static str,
    /// What the next bundle depends on: everything before it.
    previous: Key,
}

impl<'i> Bundler<'i> {
    fn new(start: &'i Start, previous: Key, suffix: &'static str) -> Bundler<'i> {
        let Start { directory, inputs, keys, .. } = start;
        Bundler { directory, inputs, keys, suffix, previous }
    }

    fn make(&mut self, name: &str, keys: &Path, content: &Content<'_>) -> Result<PathBuf> {
        let &Content { image, version, base, compatible } = content;
        let release = self.directory.join(format!("release-{}-{compatible}.toml", version.name));
        std::fs::write(&release, demo::release(version, compatible))?;
        let key = Key::of((&self.previous, name, version, base, compatible));
        let bundle = cached(self.directory, name, &key, |partial| {
            // The next second: two bundles never have the same age.
            std::thread::sleep(Duration::from_secs(1));
            let mut create = Command::new(&self.inputs.tool);
            create.args(["bundle", "create", "--keys"]).arg(keys).arg("--release").arg(&release);
            create.arg("--payload").arg(joined("root=", image)).arg("-o").arg(partial);
            if let Some((older, image)) = base {
                create.arg("--from").arg(joined(&format!("root@{}=", older.version), image));
            }
            shell::run(&mut create)
        })?;
        self.previous = Key::of((key, modified(&bundle)?));
        Ok(bundle)
    }
}

fn joined(start: &str, path: &Path) -> OsString {
    let mut joined = OsString::from(start);
    joined.push(path);
    joined
}

fn modified(path: &Path) -> Result<SystemTime> {
    path.metadata()?.modified().context("this file system keeps no times")
}

fn truncated(directory: &Path, name: &str, whole: &Path, key: &Key) -> Result<PathBuf> {
    cached(directory, name, key, |partial| {
        std::fs::copy(whole, partial)?;
        let length = std::fs::metadata(partial)?.len();
        File::options().write(true).open(partial)?.set_len(length / 5 * 3)?;
        Ok(())
    })
}

/// The factory disk: the first version in group `a`, nothing in group `b`. It starts through GRUB, and through U-Boot where
/// there is no other loader.
fn disk(directory: &Path, inputs: &Inputs, root: &Path, key: &Key) -> Result<PathBuf> {
    let factory = VERSIONS.first().context("no factory system")?;
    let (key, loader) = match inputs.arch {
        Arch::X86_64 => (Key::of((key, "disk")), None),
        Arch::Aarch64 => {
            let uboot = uboot::ensure(inputs.arch)?;
            (Key::of((key, "disk", Key::of_path(&uboot)?)), Some(uboot))
        }
    };
    cached(directory, "disk.img", &key, |partial| {
        system::with_tree(directory, inputs, factory, |tree| {
            let mut create = shell::tree_command(&inputs.tool);
            create.args(["disk", "create", "--tree"]).arg(tree).arg("--root-image").arg(root);
            if let Some(uboot) = &loader {
                create.args(["--loader", "uboot", "--arch", inputs.arch.name(), "--boot-files"]).arg(uboot);
            }
            create.args(["--slot-size", SLOT_SIZE, "-o"]).arg(partial);
            shell::run(&mut create)
        })
    })
}
