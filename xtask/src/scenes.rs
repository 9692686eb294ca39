//! The commands that need images and virtual machines: they prepare, and then start a program of the crate `tests`.

use std::process::{Command, ExitCode};

use anyhow::{Result, ensure};

use crate::{cargo, image, setup};

/// Makes everything the virtual machines start from; with `uboot` only the U-Boot that real devices are tested with.
pub(crate) fn image(arguments: &[String]) -> Result<ExitCode> {
    if arguments == ["uboot"] {
        setup::ensure_for_uboot()?;
        println!("U-Boot: {}", image::uboot::ensure()?.display());
        return Ok(ExitCode::SUCCESS);
    }
    ensure!(arguments.is_empty(), "`cargo xtask image` takes nothing or `uboot`");
    let images = prepare()?;
    println!("images: {}", images.directory.display());
    Ok(ExitCode::SUCCESS)
}

/// Starts a ready device with its serial console on this terminal.
pub(crate) fn vm(arguments: &[String]) -> Result<ExitCode> {
    start("bascule-machine", arguments)
}

/// Shows the whole main job as a timeline.
pub(crate) fn demo(arguments: &[String]) -> Result<ExitCode> {
    with_loader("demo", arguments)
}

/// Plays every scenario on one loader.
pub(crate) fn matrix(arguments: &[String]) -> Result<ExitCode> {
    with_loader("matrix", arguments)
}

/// Measures.
pub(crate) fn bench(arguments: &[String]) -> Result<ExitCode> {
    setup::ensure_for_bench()?;
    if matches!(arguments.first().map(String::as_str), Some("delta" | "apply")) {
        setup::ensure()?;
        cargo::build_programs()?;
        println!("pairs: {}", image::pairs::ensure()?.display());
        return run("bench", arguments);
    }
    start("bench", arguments)
}

/// Installs what is needed, builds the programs and makes the images.
///
/// # Errors
/// When any of these fails.
pub(crate) fn prepare() -> Result<image::Images> {
    setup::ensure()?;
    cargo::build_programs()?;
    image::ensure()
}

/// A program that may be asked for U-Boot, which then has to be built.
fn with_loader(program: &str, arguments: &[String]) -> Result<ExitCode> {
    if arguments.iter().any(|argument| argument == "uboot") {
        setup::ensure_for_uboot()?;
        image::uboot::ensure()?;
    }
    start(program, arguments)
}

fn start(program: &str, arguments: &[String]) -> Result<ExitCode> {
    prepare()?;
    run(program, arguments)
}

fn run(program: &str, arguments: &[String]) -> Result<ExitCode> {
    // Run as built: another build with `cargo run` would unite other features, and compile much of it again.
    let mut command = Command::new(cargo::programs()?.join(program));
    let status = cargo::run(command.args(arguments).current_dir(cargo::workspace()))?;
    Ok(status.code().and_then(|code| u8::try_from(code).ok()).map_or(ExitCode::FAILURE, ExitCode::from))
}
