//! Keeps what was built as long as nothing it was built from has changed.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result};

use super::shell;

/// Names everything a product was made from; equal keys mean the product can be used again.
#[derive(Clone, PartialEq, Eq, Hash)]
pub(super) struct Key(String);

impl Key {
    /// The key of inputs that can be hashed in memory.
    pub(super) fn of(inputs: impl Hash) -> Key {
        let mut hasher = DefaultHasher::new();
        inputs.hash(&mut hasher);
        Key(format!("{:016x}", hasher.finish()))
    }

    /// The key of a file's or a folder's names and contents; a missing one has a key too.
    pub(super) fn of_path(path: &Path) -> Result<Key> {
        let mut hasher = DefaultHasher::new();
        hash_path(path, &mut hasher)?;
        Ok(Key(format!("{:016x}", hasher.finish())))
    }
}

fn hash_path(path: &Path, hasher: &mut DefaultHasher) -> Result<()> {
    if path.is_dir() {
        let mut entries =
            std::fs::read_dir(path)?.map(|entry| entry.map(|e| e.path())).collect::<Result<Vec<_>, _>>()?;
        entries.sort();
        for entry in entries {
            entry.file_name().hash(hasher);
            hash_path(&entry, hasher)?;
        }
    } else if path.exists() {
        std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?.hash(hasher);
    }
    Ok(())
}

/// Returns `directory/name`, made anew by `make` unless it was made from the same `key` before.
///
/// `make` gets a path beside the final one, so an interrupted build leaves nothing that looks finished.
pub(super) fn cached(
    directory: &Path,
    name: &str,
    key: &Key,
    make: impl FnOnce(&Path) -> Result<()>,
) -> Result<PathBuf> {
    let product = directory.join(name);
    let stamp = directory.join(format!(".{name}.key"));
    if product.exists() && std::fs::read_to_string(&stamp).is_ok_and(|made_from| made_from == key.0) {
        return Ok(product);
    }
    let started = Instant::now();
    let partial = directory.join(format!(".{name}.partial"));
    remove(&partial)?;
    make(&partial).with_context(|| format!("cannot make {name}"))?;
    std::fs::remove_file(&stamp).ok();
    remove(&product)?;
    std::fs::rename(&partial, &product).with_context(|| format!("cannot put {name} in place"))?;
    std::fs::write(&stamp, &key.0)?;
    eprintln!("image: {name} made in {:.1} s", started.elapsed().as_secs_f32());
    Ok(product)
}

/// Removes a file or a tree of several users' files.
pub(super) fn remove(path: &Path) -> Result<()> {
    if !path.exists() {
        return Ok(());
    }
    shell::tree_script("rm -rf -- \"$1\"", &[path])
}
