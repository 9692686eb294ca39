//! Makes the demo's Debian systems, the bundles made of them and the factory disk.

mod archive;
mod base;
mod cache;
mod demo;
mod shell;
mod system;

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use crate::cargo;

use cache::{Key, cached};
use demo::{VERSIONS, Version};
use system::Inputs;

/// Size of a root slot, and so of every root image.
const SLOT_SIZE: &str = "512M";

/// The version that the refused bundles would be, so that nothing but their fault can refuse them.
const NEWEST: Version = VERSIONS[4];

/// Everything the demo and the QEMU tests start from. Also written to `images.json` in the same folder.
#[derive(Debug)]
pub(crate) struct Images {
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
pub(crate) fn ensure() -> Result<Images> {
    let workspace = cargo::workspace();
    let directory = workspace.join("target/bascule");
    std::fs::create_dir_all(&directory)?;
    let lock = File::create(directory.join(".lock"))?;
    lock.lock().context("cannot wait for another `cargo xtask image`")?;

    let (base, base_key) = base::ensure(&directory)?;
    let tool = system::program("bascule-image")?;
    let keys = keys(&directory, &tool, "keys")?;
    let strangers = keys_of_strangers(&directory, &tool)?;
    let kernel = cached(&directory, "vmlinuz", &base_key, |partial| {
        std::fs::copy(base.join("boot/vmlinuz"), partial).map(drop).context("cannot copy the kernel")
    })?;
    let inputs = Inputs::find(workspace, base, tool, keys.join("root.json"))?;
    let key = Key::of((base_key, inputs.key()?, SLOT_SIZE));

    let systems = both_at_once(&VERSIONS, |version| make_system(&directory, &inputs, &keys, version, &key))?;
    let newest = systems.iter().find(|s| s.version == NEWEST).context("no newest version")?;
    let images = Images {
        kernel,
        disk: disk(&directory, &inputs, &systems, &key)?,
        stranger: variant(&directory, &inputs, &strangers, newest, "stranger", "qemu-x86_64", &key)?,
        other_hardware: variant(&directory, &inputs, &keys, newest, "other-hardware", "other-board", &key)?,
        truncated: truncated(&directory, newest, &key)?,
        systems,
        directory,
    };
    std::fs::write(images.directory.join("images.json"), format!("{:#}\n", images.to_json()))?;
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
        json!({ "directory": self.directory, "disk": self.disk, "kernel": self.kernel,
            "systems": systems, "stranger": self.stranger,
            "other_hardware": self.other_hardware, "truncated": self.truncated })
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

fn keys_of_strangers(directory: &Path, tool: &Path) -> Result<PathBuf> {
    keys(directory, tool, "stranger-keys")
}

fn make_system(directory: &Path, inputs: &Inputs, keys: &Path, version: &Version, key: &Key) -> Result<System> {
    let key = Key::of((key.clone(), version));
    let image = cached(directory, &format!("{}.ext4", version.name), &key, |partial| {
        system::with_tree(directory, inputs, version, |tree| {
            let mut create = shell::tree_command(&inputs.tool);
            create.args(["image", "create", "--tree"]).arg(tree).args(["--size", SLOT_SIZE, "-o"]).arg(partial);
            shell::run(&mut create)
        })
    })?;
    let name = format!("demo-{}.bascule", version.version);
    let bundle = cached(directory, &name, &key, |partial| {
        bundle(directory, inputs, keys, &image, version, "qemu-x86_64", partial)
    })?;
    Ok(System { version: *version, image, bundle })
}

/// The newest version's bundle with other keys or for other hardware.
fn variant(
    directory: &Path,
    inputs: &Inputs,
    keys: &Path,
    newest: &System,
    name: &str,
    compatible: &str,
    key: &Key,
) -> Result<PathBuf> {
    let file = format!("demo-{}-{name}.bascule", newest.version.version);
    cached(directory, &file, &Key::of((key.clone(), &file)), |partial| {
        bundle(directory, inputs, keys, &newest.image, &newest.version, compatible, partial)
    })
}

fn bundle(
    directory: &Path,
    inputs: &Inputs,
    keys: &Path,
    image: &Path,
    version: &Version,
    compatible: &str,
    output: &Path,
) -> Result<()> {
    let release = directory.join(format!("release-{}-{compatible}.toml", version.name));
    std::fs::write(&release, demo::release(version, compatible))?;
    let mut payload = std::ffi::OsString::from("root=");
    payload.push(image);
    let mut create = Command::new(&inputs.tool);
    create.args(["bundle", "create", "--keys"]).arg(keys).arg("--release").arg(&release);
    create.arg("--payload").arg(payload).arg("-o").arg(output);
    shell::run(&mut create)
}

fn truncated(directory: &Path, newest: &System, key: &Key) -> Result<PathBuf> {
    let file = format!("demo-{}-truncated.bascule", newest.version.version);
    cached(directory, &file, &Key::of((key.clone(), &file)), |partial| {
        std::fs::copy(&newest.bundle, partial)?;
        let whole = std::fs::metadata(partial)?.len();
        File::options().write(true).open(partial)?.set_len(whole / 5 * 3)?;
        Ok(())
    })
}

fn disk(directory: &Path, inputs: &Inputs, systems: &[System], key: &Key) -> Result<PathBuf> {
    let factory = systems.first().context("no factory system")?;
    cached(directory, "disk.img", &Key::of((key.clone(), "disk")), |partial| {
        system::with_tree(directory, inputs, &factory.version, |tree| {
            let mut create = shell::tree_command(&inputs.tool);
            create.args(["disk", "create", "--tree"]).arg(tree).arg("--root-image").arg(&factory.image);
            create.args(["--slot-size", SLOT_SIZE, "-o"]).arg(partial);
            shell::run(&mut create)
        })
    })
}
