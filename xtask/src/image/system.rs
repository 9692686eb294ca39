//! Derives a demo system's tree from the base tree.

use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::arch::Arch;
use crate::cargo;

use super::cache::{self, Key};
use super::demo::{self, Behaviour, VERSIONS, Version};
use super::{DEVICE_PROGRAMS, shell};

/// Everything a system is made of beside its version.
pub(super) struct Inputs {
    /// The processor it is for.
    pub(super) arch: Arch,
    /// The base tree.
    base: PathBuf,
    /// `bascule-image`.
    pub(super) tool: PathBuf,
    /// `basculed` and `bascule`.
    daemon: PathBuf,
    command_line: PathBuf,
    packaging: PathBuf,
    loader_files: PathBuf,
    trust_root: PathBuf,
}

/// Copies the base tree and lays the overlay over it: `$1` base, `$2` overlay, `$3` the new tree. Only the first system,
/// whose `$4` is 1, has the kernel before the newest.
const COPY: &str = r#"
cp -a --reflink=auto "$1" "$3"
find "$3/var" "$3/run" "$3/tmp" -mindepth 1 -delete
cp -dR --preserve=mode,links "$2/." "$3/"
chmod 0700 "$3/root"
if test "$4" = 1; then mv "$3/boot/vmlinuz.before" "$3/boot/vmlinuz"; else rm "$3/boot/vmlinuz.before"; fi
"#;

/// Stands in the place of the agent where it cannot run.
const BROKEN_AGENT: &str = "#!/bin/sh\nexit 1\n";

/// Takes away everything the kernel would start as process 1.
const REMOVE_INIT: &str = r#"cd "$1" && rm -f usr/sbin/init usr/bin/init etc/init usr/bin/sh"#;

impl Inputs {
    /// Finds the inputs in the workspace.
    pub(super) fn find(
        workspace: &Path,
        arch: Arch,
        base: PathBuf,
        tool: PathBuf,
        trust_root: PathBuf,
    ) -> Result<Inputs> {
        let [daemon, command_line] = DEVICE_PROGRAMS.map(|name| built(&cargo::device_programs(arch)?, name));
        Ok(Inputs {
            arch,
            base,
            tool,
            daemon: daemon?,
            command_line: command_line?,
            packaging: workspace.join("agent/packaging"),
            loader_files: workspace.join("bootloader-glue/grub"),
            trust_root,
        })
    }

    /// Changes whenever any of the inputs but the base tree does.
    pub(super) fn key(&self) -> Result<Key> {
        let files =
            [&self.tool, &self.daemon, &self.command_line, &self.packaging, &self.loader_files, &self.trust_root];
        let keys = files.into_iter().map(|path| Key::of_path(path)).collect::<Result<Vec<_>>>()?;
        Ok(Key::of((keys, COPY, REMOVE_INIT, self.overlays_key()?)))
    }

    fn overlays_key(&self) -> Result<Key> {
        let scratch = self.base.with_file_name(".overlay-key");
        let mut keys = Vec::new();
        for version in &VERSIONS {
            cache::remove(&scratch)?;
            demo::write_overlay(&scratch, self.arch, version, &self.trust_root)?;
            keys.push(Key::of_path(&scratch)?);
        }
        cache::remove(&scratch)?;
        Ok(Key::of(keys))
    }
}

/// The release build of one of our programs.
pub(super) fn program(name: &str) -> Result<PathBuf> {
    built(&cargo::programs()?, name)
}

fn built(programs: &Path, name: &str) -> Result<PathBuf> {
    let path = programs.join(name);
    ensure!(path.exists(), "{name} was not built: there is no {}", path.display());
    Ok(path)
}

/// Makes the tree of one version, hands it to `work` and removes it.
pub(super) fn with_tree<R>(
    directory: &Path,
    inputs: &Inputs,
    version: &Version,
    work: impl FnOnce(&Path) -> Result<R>,
) -> Result<R> {
    let overlay = directory.join(format!(".{}.overlay", version.name));
    let tree = directory.join(format!(".{}.tree", version.name));
    cache::remove(&overlay)?;
    cache::remove(&tree)?;
    demo::write_overlay(&overlay, inputs.arch, version, &inputs.trust_root)?;
    add_agent(&overlay, inputs)?;
    if version.behaviour == Behaviour::NoAgent {
        demo::write(&overlay, "usr/sbin/basculed", demo::PROGRAM, BROKEN_AGENT)?;
    }
    shell::tree_script(COPY, &[&inputs.base, &overlay, &tree, Path::new(&version.order.to_string())])?;
    if version.behaviour == Behaviour::NoInit {
        shell::tree_script(REMOVE_INIT, &[&tree])?;
    }
    let result = work(&tree)?;
    cache::remove(&overlay)?;
    cache::remove(&tree)?;
    Ok(result)
}

/// Puts the agent's programs, units and loader files where a package would.
fn add_agent(overlay: &Path, inputs: &Inputs) -> Result<()> {
    let strip = format!("{}strip", inputs.arch.tools());
    for (program, place) in [(&inputs.daemon, "usr/sbin/basculed"), (&inputs.command_line, "usr/bin/bascule")] {
        let to = overlay.join(place);
        std::fs::create_dir_all(to.parent().context("no folder")?)?;
        // Debug information would be most of the image; without binutils it stays.
        if shell::run(Command::new(&strip).arg("-o").arg(&to).arg(program)).is_err() {
            std::fs::copy(program, &to)?;
        }
    }
    copy_files(&inputs.loader_files, &overlay.join("usr/lib/bascule/boot/grub"))?;
    let units = overlay.join("usr/lib/systemd/system");
    copy_files(&inputs.packaging.join("systemd"), &units)?;
    copy_files(&inputs.packaging.join("systemd/system.conf.d"), &overlay.join("usr/lib/systemd/system.conf.d"))?;
    copy_files(&inputs.packaging.join("systemd/system-preset"), &overlay.join("usr/lib/systemd/system-preset"))?;
    copy_files(&inputs.packaging.join("tmpfiles.d"), &overlay.join("usr/lib/tmpfiles.d"))?;
    enable_units(&units)
}

/// Copies the regular files of a folder, none of its folders; a missing folder holds no files.
fn copy_files(from: &Path, to: &Path) -> Result<()> {
    let Ok(entries) = std::fs::read_dir(from) else { return Ok(()) };
    std::fs::create_dir_all(to)?;
    for entry in entries {
        let entry = entry?;
        if entry.file_type()?.is_file() {
            std::fs::copy(entry.path(), to.join(entry.file_name()))?;
        }
    }
    Ok(())
}

/// Does what `systemctl enable` would do with the units' `WantedBy=` and `RequiredBy=` lines.
fn enable_units(units: &Path) -> Result<()> {
    for entry in std::fs::read_dir(units)? {
        let entry = entry?;
        if !entry.file_type()?.is_file() {
            continue;
        }
        let text = std::fs::read_to_string(entry.path())?;
        for (key, folder) in [("WantedBy=", "wants"), ("RequiredBy=", "requires")] {
            for target in text.lines().filter_map(|line| line.strip_prefix(key)) {
                let links = units.join(format!("{target}.{folder}"));
                std::fs::create_dir_all(&links)?;
                symlink(Path::new("..").join(entry.file_name()), links.join(entry.file_name()))?;
            }
        }
    }
    Ok(())
}
