//! The command line `bascule`.

use std::process::ExitCode;

fn main() -> ExitCode {
    bascule_agent::cli::main()
}
