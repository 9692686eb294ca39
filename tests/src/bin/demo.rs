//! The demo: devices in QEMU update themselves by delta, refuse bad updates, and come back from broken ones.

use std::process::ExitCode;

use bascule_image::disk::{Entries, Loader};
use bascule_tests::scenes::Stage;
use bascule_tests::{Images, MachineBuilder, factory};

const USAGE: &str =
    "usage: cargo xtask demo [--loader grub|grub-bios|systemd-boot|uboot|efi] [--unified] [--arch aarch64]";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let (unified, words): (Vec<&str>, Vec<&str>) = words.into_iter().partition(|word| *word == "--unified");
    let unified = !unified.is_empty();
    let loader = match words[..] {
        ["--loader", "systemd-boot"] if unified => Ok(None),
        _ if unified => Err(anyhow::anyhow!("--unified is for --loader systemd-boot")),
        [] => Ok(None),
        ["--loader", name] => factory::loader(name).map(Some),
        _ => Err(anyhow::anyhow!("only --loader and --unified are known")),
    };
    let loader = match loader {
        Ok(loader) => loader,
        Err(error) => {
            eprintln!("error: {error:#}\n{USAGE}");
            return ExitCode::from(2);
        }
    };
    let images = match if unified { Images::load_unified() } else { Images::load() } {
        Ok(images) => images,
        Err(error) => {
            eprintln!("error: {error:#}");
            return ExitCode::FAILURE;
        }
    };
    match play(&images, loader.unwrap_or(factory::usual_loader(&images))) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("\nerror: the demo did not go as told");
            eprintln!("caused by: {error:#}");
            eprintln!("hint: the serial console of every boot is under {}", images.directory.join("logs").display());
            ExitCode::FAILURE
        }
    }
}

fn play(images: &Images, loader: Loader) -> anyhow::Result<()> {
    let device = |builder: MachineBuilder| builder.factory(loader, "v1");
    let name = match (loader, images.entries) {
        (Loader::Grub, _) => "demo".to_owned(),
        (loader, Entries::Texts) => format!("demo-{}", factory::name(loader)),
        (loader, Entries::Images) => format!("demo-{}-unified", factory::name(loader)),
    };
    let mut stage = Stage::set_on(images.clone(), &name, device)?;
    stage.installs_a_good_system("v2")?;
    if images.entries == Entries::Images {
        stage.was_started_by_its_unified_image()?;
    }
    stage.refuses_bad_bundles()?;
    stage.rolls_back_an_unhealthy_system()?;
    stage.comes_back_from_a_system_that_does_not_boot()?;
    stage.another_device(&format!("{name}-written-to"), device)?;
    stage.heals_a_delta_where_the_root_was_written_to("v2")?;
    stage.another_device(&format!("{name}-cut-off"), device)?;
    stage.finishes_a_delta_that_was_cut_off("v2")?;
    let seconds = stage.timeline.seconds();
    stage.timeline.heading("Everything went as told");
    let told = format!("{} boots in {:.0} minutes", stage.boots(), seconds / 60.0);
    stage.timeline.say("demo", &told, &format!("serial logs: {}", stage.images.directory.join("logs").display()));
    Ok(())
}
