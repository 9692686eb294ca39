//! The commands that need images and virtual machines: they prepare, and then start a program of the crate `tests`.

use std::process::{Command, ExitCode};

use anyhow::{Result, ensure};

use crate::arch::Arch;
use crate::{cargo, image, setup};

/// Where a program of the crate `tests` finds images other than those of this machine's own processor.
const IMAGES: &str = "BASCULE_IMAGES";

/// What a command is told for devices that start by unified kernel images.
const UNIFIED: &str = "--unified";

/// Makes everything the virtual machines start from; with `uboot` only the U-Boot that real devices are tested with, with
/// `unified` what devices start from that have unified kernel images.
pub(crate) fn image(arguments: &[String]) -> Result<ExitCode> {
    let (arch, arguments) = Arch::take(arguments)?;
    if arguments == ["uboot"] {
        setup::ensure_for_uboot(arch)?;
        println!("U-Boot: {}", image::uboot::ensure(arch)?.display());
        return Ok(ExitCode::SUCCESS);
    }
    if arch == Arch::X86_64 && arguments == ["unified"] {
        println!("images: {}", prepare_unified()?.directory.display());
        return Ok(ExitCode::SUCCESS);
    }
    ensure!(arguments.is_empty(), "`cargo xtask image` takes nothing, `uboot` or `unified`, and --arch");
    let images = prepare_for(arch)?;
    println!("images: {}", images.directory.display());
    Ok(ExitCode::SUCCESS)
}

/// Builds what runs on a device, and says how large each program is.
pub(crate) fn build(arguments: &[String]) -> Result<ExitCode> {
    let (arch, arguments) = Arch::take(arguments)?;
    ensure!(arguments.is_empty(), "`cargo xtask build` takes only --arch");
    if arch == Arch::Aarch64 {
        setup::ensure_for_aarch64()?;
    }
    build_programs(arch)?;
    for name in image::DEVICE_PROGRAMS {
        let program = cargo::device_programs(arch)?.join(name);
        println!("{}  {} bytes", program.display(), program.metadata()?.len());
    }
    Ok(ExitCode::SUCCESS)
}

/// Starts a ready device with its serial console on this terminal.
pub(crate) fn vm(arguments: &[String]) -> Result<ExitCode> {
    start("bascule-machine", arguments)
}

/// Shows the whole main job as a timeline.
pub(crate) fn demo(arguments: &[String]) -> Result<ExitCode> {
    if arguments.iter().any(|argument| argument == UNIFIED) {
        let (arch, rest) = Arch::take(arguments)?;
        ensure!(
            arch == Arch::X86_64 && rest.iter().any(|argument| argument == "systemd-boot"),
            "{UNIFIED} is for --loader systemd-boot"
        );
        prepare_unified()?;
        return run("demo", &rest, arch);
    }
    with_loader("demo", arguments)
}

/// Plays every scenario on one loader.
pub(crate) fn matrix(arguments: &[String]) -> Result<ExitCode> {
    with_loader("matrix", arguments)
}

/// Measures.
pub(crate) fn bench(arguments: &[String]) -> Result<ExitCode> {
    let (arch, rest) = Arch::take(arguments)?;
    arch.ensure_plays("bench", &rest)?;
    setup::ensure_for_bench()?;
    if matches!(arguments.first().map(String::as_str), Some("delta" | "apply")) {
        setup::ensure()?;
        cargo::build_programs()?;
        let named = arguments.iter().skip_while(|argument| *argument != "--pair").nth(1);
        let named: Vec<_> = named.map(String::as_str).into_iter().collect();
        println!("pairs: {}", image::pairs::ensure(&named)?.display());
        return run("bench", arguments, Arch::X86_64);
    }
    start("bench", arguments)
}

/// Installs what is needed, builds the programs and makes all images that tests start from.
///
/// # Errors
/// When any of these fails.
pub(crate) fn prepare() -> Result<()> {
    prepare_for(Arch::X86_64)?;
    image::ensure_unified().map(drop)
}

fn prepare_unified() -> Result<image::Images> {
    setup::ensure()?;
    cargo::build_programs()?;
    image::ensure_unified()
}

fn prepare_for(arch: Arch) -> Result<image::Images> {
    match arch {
        Arch::X86_64 => setup::ensure()?,
        Arch::Aarch64 => {
            setup::ensure_for_uboot(arch)?;
            setup::ensure_aarch64_works()?;
        }
    }
    build_programs(arch)?;
    if arch != Arch::X86_64 {
        // The tool that makes images, and the demo itself, run here in any case.
        cargo::build_programs()?;
    }
    image::ensure(arch)
}

fn build_programs(arch: Arch) -> Result<()> {
    match arch {
        Arch::X86_64 => cargo::build_programs(),
        Arch::Aarch64 => cargo::build_device_programs(arch),
    }
}

/// A program that may be asked for U-Boot, which then has to be built.
fn with_loader(program: &str, arguments: &[String]) -> Result<ExitCode> {
    let (arch, rest) = Arch::take(arguments)?;
    arch.ensure_plays(program, &rest)?;
    if arch == Arch::X86_64 && rest.iter().any(|argument| argument == "uboot") {
        setup::ensure_for_uboot(arch)?;
        image::uboot::ensure(arch)?;
    }
    start(program, arguments)
}

fn start(program: &str, arguments: &[String]) -> Result<ExitCode> {
    let (arch, arguments) = Arch::take(arguments)?;
    prepare_for(arch)?;
    run(program, &arguments, arch)
}

fn run(program: &str, arguments: &[String], arch: Arch) -> Result<ExitCode> {
    // Run as built: another build with `cargo run` would unite other features, and compile much of it again.
    let mut command = Command::new(cargo::programs()?.join(program));
    if arch != Arch::X86_64 {
        command.env(IMAGES, arch.images());
    }
    let status = cargo::run(command.args(arguments).current_dir(cargo::workspace()))?;
    Ok(status.code().and_then(|code| u8::try_from(code).ok()).map_or(ExitCode::FAILURE, ExitCode::from))
}
