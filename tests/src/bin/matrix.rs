//! Every way a new system or its loader's settings can fail, on one real loader: what `cargo xtask matrix` starts.

use std::process::ExitCode;

use bascule_image::disk::Loader;
use bascule_tests::{factory, matrix};

const USAGE: &str = "usage: cargo xtask matrix [--loader grub|grub-bios|systemd-boot|uboot|efi] [SCENARIO...]";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let (loader, scenarios) = match words.as_slice() {
        ["--loader", name, rest @ ..] => (factory::loader(name), rest),
        rest => (Ok(Loader::Grub), rest),
    };
    let loader = match loader {
        Ok(loader) => loader,
        Err(error) => {
            eprintln!("error: {error:#}\n{USAGE}");
            return ExitCode::from(2);
        }
    };
    match matrix::play(loader, scenarios) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => {
            eprintln!("\nerror: not every scenario ended as it has to");
            eprintln!("hint: the serial console of every boot is under target/bascule/logs/");
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!("error: {error:#}\n{USAGE}");
            ExitCode::from(2)
        }
    }
}
