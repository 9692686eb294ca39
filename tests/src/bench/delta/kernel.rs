//! bsdiff on the one file of a system that it can hold.
//!
//! Of the whole image it would need seventeen times the memory, and hours.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};

use super::Row;
use super::job::Job;
use super::sha256;

/// Measures bsdiff on the kernels of two ext4 images.
///
/// # Errors
/// When an image has no kernel, it is the same in both, or a program is missing or fails.
pub(super) fn bsdiff(job: &Job) -> Result<Row> {
    let (old, new) = (job.file("old-kernel"), job.file("new-kernel"));
    take(&job.old, &old)?;
    take(&job.new, &new)?;
    let kernels = Job::new(old, new, &job.file("kernels"))?;
    ensure!(sha256(&kernels.old)? != kernels.wanted, "both systems have the same kernel");
    let create = kernels.run(&["bsdiff OLD NEW DELTA"])?;
    let bytes = std::fs::metadata(kernels.delta())?.len();
    let apply = kernels.run(&["bspatch OLD OUT DELTA"])?;
    ensure!(sha256(&kernels.out())? == kernels.wanted, "bspatch made something else than the new kernel");
    let size = std::fs::metadata(&kernels.new)?.len() as f64 / 1e6;
    let title = format!("bsdiff, of the kernel's {size:.1} MB alone");
    Ok(Row { title, bytes, create: Some(create), apply: Some(apply), whole: false })
}

/// Copies the kernel out of an ext4 image.
fn take(image: &Path, to: &Path) -> Result<()> {
    let listing = debugfs(image, "ls -p /boot")?;
    let name = kernel_in(&listing).with_context(|| format!("{} has no kernel", image.display()))?;
    debugfs(image, &format!("dump /boot/{name} {}", to.display()))?;
    ensure!(to.is_file(), "debugfs copied nothing");
    Ok(())
}

fn debugfs(image: &Path, request: &str) -> Result<String> {
    let output = Command::new("debugfs").arg("-R").arg(request).arg(image).output().context("cannot start debugfs")?;
    ensure!(output.status.success(), "debugfs ended with {}", output.status);
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// The kernel's name in lines of the form `/INODE/MODE/UID/GID/NAME/SIZE/`.
fn kernel_in(listing: &str) -> Option<&str> {
    listing.lines().filter_map(|line| line.split('/').nth(5)).find(|name| name.starts_with("vmlinuz"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_is_found_by_its_name() {
        let listing = "/13/040755/0/0/.//\n/2/040755/0/0/..//\n/15/100644/0/0/config-6.1/123137/\n\
            /16/100644/0/0/vmlinuz-6.1/14186432/\n";
        assert_eq!(kernel_in(listing), Some("vmlinuz-6.1"));
        assert_eq!(kernel_in("/13/040755/0/0/.//\n"), None);
    }
}
