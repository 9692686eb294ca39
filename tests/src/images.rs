//! Where `cargo xtask image` put the demo's systems.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use bascule_image::disk::{Arch, Entries};
use serde_json::Value;

/// The folder of images for another processor than this machine's, where a command was told of one.
const FOLDER: &str = "BASCULE_IMAGES";

/// What `cargo xtask image` made, read from its `images.json`.
#[derive(Debug, Clone)]
pub struct Images {
    /// The processor of the machines.
    pub arch: Arch,
    /// The folder of all of it: `target/bascule`.
    pub directory: PathBuf,
    /// The factory disk.
    pub disk: PathBuf,
    /// The kernel of all the systems, for starts without a boot loader.
    pub kernel: PathBuf,
    /// The systems in their order.
    pub systems: Vec<DemoSystem>,
    /// A bundle signed by keys that no device trusts.
    pub stranger: PathBuf,
    /// A rightly signed bundle for other hardware.
    pub other_hardware: PathBuf,
    /// The first part of a bundle.
    pub truncated: PathBuf,
    /// By what systemd-boot starts such a device.
    pub entries: Entries,
}

/// One system of the demo.
#[derive(Debug, Clone)]
pub struct DemoSystem {
    /// Its short name: `v1`.
    pub name: String,
    /// Its version: `1.0.0`.
    pub version: String,
    /// The ext4 image of its root.
    pub image: PathBuf,
    /// Its signed bundle.
    pub bundle: PathBuf,
}

impl Images {
    /// Reads `images.json` in the folder that `BASCULE_IMAGES` names, which is `target/bascule` of this workspace by default.
    ///
    /// # Errors
    /// When `cargo xtask image` has not been run, or the file has another form.
    pub fn load() -> Result<Images> {
        Images::load_list("images.json", "cargo xtask image")
    }

    /// Like [`Images::load`], those of devices that start by unified kernel images, from `images-unified.json`.
    ///
    /// # Errors
    /// When `cargo xtask image unified` has not been run, or the file has another form.
    pub fn load_unified() -> Result<Images> {
        Images::load_list("images-unified.json", "cargo xtask image unified")
    }

    fn load_list(name: &str, command: &str) -> Result<Images> {
        let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("no workspace above the tests")?;
        let folder = std::env::var_os(FOLDER).map_or_else(|| workspace.join("target/bascule"), PathBuf::from);
        let file = folder.join(name);
        let text = std::fs::read_to_string(&file)
            .with_context(|| format!("cannot read {}: run `{command}` first", file.display()))?;
        let json: Value = serde_json::from_str(&text).with_context(|| format!("{name} is not JSON"))?;
        let systems =
            json.get("systems").and_then(Value::as_array).with_context(|| format!("{name} names no systems"))?;
        let unified = json.get("unified").and_then(Value::as_bool).unwrap_or_default();
        Ok(Images {
            arch: if text_of(&json, "arch") == Some("aarch64") { Arch::Aarch64 } else { Arch::X86_64 },
            directory: path(&json, "directory")?,
            disk: path(&json, "disk")?,
            kernel: path(&json, "kernel")?,
            systems: systems.iter().map(DemoSystem::read).collect::<Result<_>>()?,
            stranger: path(&json, "stranger")?,
            other_hardware: path(&json, "other_hardware")?,
            truncated: path(&json, "truncated")?,
            entries: if unified { Entries::Images } else { Entries::Texts },
        })
    }

    /// The system of a short name such as `v2`.
    ///
    /// # Errors
    /// When there is none of that name.
    pub fn system(&self, name: &str) -> Result<&DemoSystem> {
        self.systems.iter().find(|system| system.name == name).with_context(|| format!("no demo system {name}"))
    }
}

impl DemoSystem {
    fn read(json: &Value) -> Result<DemoSystem> {
        Ok(DemoSystem {
            name: text(json, "name")?,
            version: text(json, "version")?,
            image: path(json, "image")?,
            bundle: path(json, "bundle")?,
        })
    }

    /// The name of the bundle's file, as a web server would offer it.
    #[must_use]
    pub fn bundle_name(&self) -> String {
        self.bundle.file_name().unwrap_or_default().to_string_lossy().into_owned()
    }
}

fn text_of<'j>(json: &'j Value, name: &str) -> Option<&'j str> {
    json.get(name).and_then(Value::as_str)
}

fn text(json: &Value, name: &str) -> Result<String> {
    text_of(json, name)
        .map(str::to_owned)
        .with_context(|| format!("images.json has no {name}: run `cargo xtask image` again"))
}

fn path(json: &Value, name: &str) -> Result<PathBuf> {
    text(json, name).map(PathBuf::from)
}
