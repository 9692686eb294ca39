//! Measures. `cargo xtask bench install [ROUNDS]` prepares everything and starts this.

use std::process::ExitCode;

const ROUNDS: usize = 3;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let rounds = match words[..] {
        ["install"] => Some(ROUNDS),
        ["install", rounds] => rounds.parse().ok().filter(|&rounds| rounds > 0),
        _ => None,
    };
    let Some(rounds) = rounds else {
        eprintln!("usage: cargo xtask bench install [ROUNDS]");
        return ExitCode::from(2);
    };
    match bascule_tests::bench::install(rounds) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: the measurement failed");
            eprintln!("caused by: {error:#}");
            ExitCode::FAILURE
        }
    }
}
