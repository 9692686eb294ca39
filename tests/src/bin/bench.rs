//! Measures. `cargo xtask bench install|delta|apply|service` prepares everything and starts this.

use std::process::ExitCode;

use anyhow::Result;
use bascule_tests::bench::{self, Options};

const ROUNDS: usize = 3;
const USAGE: &str = "usage: cargo xtask bench install [ROUNDS]
       cargo xtask bench delta [--pair a|c|arm64] [--format ext4|erofs|erofs-lz4hc|squashfs] [--only NAME,...]
       cargo xtask bench apply [ROUNDS]
       cargo xtask bench service [ROUNDS]";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let measured = match words[..] {
        ["install", ref rest @ ..] => rounds(rest).map(bench::install),
        ["service", ref rest @ ..] => rounds(rest).map(bench::service),
        ["apply", ref rest @ ..] => rounds(rest).map(bench::apply),
        ["delta", ref rest @ ..] => Options::parse(rest).map(|options| bench::delta(&options)),
        _ => Err(anyhow::anyhow!("nothing that can be measured is named")),
    };
    match measured {
        Ok(Ok(())) => ExitCode::SUCCESS,
        Ok(Err(error)) => {
            eprintln!("error: the measurement failed");
            eprintln!("caused by: {error:#}");
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!("error: {error:#}\n{USAGE}");
            ExitCode::from(2)
        }
    }
}

fn rounds(words: &[&str]) -> Result<usize> {
    match words {
        [] => Ok(ROUNDS),
        [rounds] => match rounds.parse() {
            Ok(rounds) if rounds > 0 => Ok(rounds),
            _ => anyhow::bail!("{rounds:?} is no number of rounds"),
        },
        _ => anyhow::bail!("only a number of rounds is known"),
    }
}
