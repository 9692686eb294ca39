//! What building and making systems for 64-bit ARM needs beside packages.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

use crate::arch::Arch;
use crate::cargo;

/// Where the kernel is told which program runs foreign ones.
const HANDLERS: &str = "/proc/sys/fs/binfmt_misc";

/// What the package qemu-user-static says about the programs of this processor, in the form that the kernel takes.
const HANDLER: &str = "/usr/lib/binfmt.d/qemu-aarch64.conf";

/// Sees that the compiler has its part for devices of this processor.
///
/// # Errors
/// When it has not, and rustup cannot add it.
pub(super) fn ensure_target() -> Result<()> {
    let triple = cargo::device_triple(Arch::Aarch64)?;
    let mut compiler = Command::new("rustc");
    compiler.args(["--print", "target-libdir", "--target", &triple]).current_dir(cargo::workspace());
    if Path::new(cargo::output(&mut compiler)?.trim()).is_dir() {
        return Ok(());
    }
    println!("setup: the compiler has no {triple} yet");
    let mut add = Command::new("rustup");
    let added = cargo::run(add.args(["target", "add", &triple]).current_dir(cargo::workspace()));
    let added = added.with_context(|| format!("install Rust's standard library for {triple} by hand"))?;
    ensure!(added.success(), "rustup could not add {triple}: install that target by hand");
    Ok(())
}

/// Sees that this kernel runs programs of this processor. Where systemd runs, the package has seen to it.
///
/// # Errors
/// When it does not, and cannot be told to.
pub(super) fn ensure_runs() -> Result<()> {
    if Path::new(HANDLERS).join("qemu-aarch64").exists() {
        return Ok(());
    }
    let rule = fs::read_to_string(HANDLER).unwrap_or_default();
    if fs::write(Path::new(HANDLERS).join("register"), rule.trim()).is_err() {
        bail!(
            "this kernel does not run programs for aarch64: as root, mount binfmt_misc at {HANDLERS} and write the line of \
             {HANDLER} to {HANDLERS}/register"
        );
    }
    println!("setup: this kernel runs programs for aarch64 from now on");
    Ok(())
}
