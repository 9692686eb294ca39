//! The developer's commands: `cargo xtask help` lists them.

mod arch;
mod cargo;
mod check;
mod ci;
mod fuzz;
mod image;
mod scenes;
mod setup;
mod test;
mod tidy;

use std::process::ExitCode;

use anyhow::Result;

/// One command of the developer.
struct Command {
    name: &'static str,
    arguments: &'static str,
    about: &'static str,
    run: fn(&[String]) -> Result<ExitCode>,
}

const COMMANDS: [Command; 12] = [
    Command {
        name: "setup",
        arguments: "[--no-install]",
        about: "install the Debian packages that images and virtual machines need; only list them",
        run: setup::run,
    },
    Command {
        name: "image",
        arguments: "[uboot|unified] [--arch aarch64]",
        about: "make the demo's systems, bundles and factory disk below target/bascule; or U-Boot, or those with unified kernel images",
        run: scenes::image,
    },
    Command {
        name: "build",
        arguments: "[--arch aarch64]",
        about: "the programs of a device, and how large they are",
        run: scenes::build,
    },
    Command {
        name: "vm",
        arguments: "[--arch aarch64]",
        about: "a shell on the serial console of a ready device",
        run: scenes::vm,
    },
    Command {
        name: "demo",
        arguments: "[--loader NAME [--unified]] [--arch aarch64]",
        about: "a device updates itself, refuses and comes back",
        run: scenes::demo,
    },
    Command {
        name: "matrix",
        arguments: "[--loader L] [SCENARIO...]",
        about: "every way to fail on one real loader, each held against how it has to end; about ten minutes",
        run: scenes::matrix,
    },
    Command {
        name: "test",
        arguments: "[--quick] [ARGUMENTS OF cargo test]",
        about: "run every test; --quick leaves out what needs images and virtual machines",
        run: test::run,
    },
    Command {
        name: "check",
        arguments: "[--advisories]",
        about: "format, lints, house rules, licences and bans; --advisories asks the network",
        run: check::run,
    },
    Command { name: "tidy", arguments: "", about: "the house rules alone", run: tidy::run },
    Command { name: "ci", arguments: "", about: "check, then test: what .ci/run runs", run: ci::run },
    Command {
        name: "bench",
        arguments: "install [ROUNDS] | delta [OPTIONS] | apply [ROUNDS]",
        about: "measure an install against dd and rauc, deltas against their peers, or installing by delta against dd",
        run: scenes::bench,
    },
    Command {
        name: "fuzz",
        arguments: "delta [--minutes N] [--seed S] [--threads N] [--replay CASE] | loaders [CASES]",
        about: "damage deltas with knowledge of their structure and hold the decoder against a second reading, or boot settings",
        run: fuzz::run,
    },
];

/// Exit code for a command line that is not understood.
const USAGE: u8 = 2;

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    let name = arguments.next().unwrap_or_else(|| "help".to_owned());
    let rest: Vec<String> = arguments.collect();
    if matches!(name.as_str(), "help" | "--help" | "-h") {
        help();
        return ExitCode::SUCCESS;
    }
    let Some(command) = COMMANDS.iter().find(|command| command.name == name) else {
        eprintln!("error: there is no command {name:?}\nhint: `cargo xtask help` lists them");
        return ExitCode::from(USAGE);
    };
    (command.run)(&rest).unwrap_or_else(|error| {
        eprintln!("error: {error}");
        error.chain().skip(1).for_each(|cause| eprintln!("caused by: {cause}"));
        ExitCode::FAILURE
    })
}

fn help() {
    println!("cargo xtask COMMAND\n");
    for command in &COMMANDS {
        println!("  {:<8} {}", command.name, command.about);
        if !command.arguments.is_empty() {
            println!("           {} {}", command.name, command.arguments);
        }
    }
    println!("  {:<8} this list", "help");
}
