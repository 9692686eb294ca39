//! Fuzzes what deltas are made of. `cargo xtask fuzz delta` builds this with checks for overflow, and starts it.

use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bascule_tests::fuzz::{Options, replay, run};

const USAGE: &str = "usage: cargo xtask fuzz delta [--minutes N] [--seed S] [--threads N] [--replay CASE]";
/// How often a long run says that it is still there.
const TELL_EVERY: Duration = Duration::from_secs(60);

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let Some((options, case)) = read(&arguments) else {
        eprintln!("{USAGE}");
        return ExitCode::from(2);
    };
    let seed = options.seed;
    if let Some(case) = case {
        return match replay(seed, case) {
            Ok(()) => ExitCode::SUCCESS,
            Err(finding) => {
                eprintln!("case {case} of seed {seed}: {finding}");
                ExitCode::FAILURE
            }
        };
    }
    println!("seed {seed}, {} threads, {:?}", options.threads, options.duration);
    let (started, told) = (Instant::now(), AtomicU64::new(0));
    let report = run(options, &|cases| {
        let minutes = started.elapsed().as_secs() / TELL_EVERY.as_secs();
        if told.fetch_max(minutes, Ordering::Relaxed) < minutes {
            println!("{minutes:>4} min, {cases} cases");
        }
    });
    println!("{report}");
    for (case, finding) in &report.findings {
        println!("{finding}\n  cargo xtask fuzz delta --seed {seed} --replay {case}");
    }
    if report.findings.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn read(arguments: &[String]) -> Option<(Options, Option<u64>)> {
    let ("delta", rest) = arguments.split_first().map(|(what, rest)| (what.as_str(), rest))? else { return None };
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let mut options = Options { seed: 1, duration: Duration::from_secs(60), cases: u64::MAX, threads };
    let mut case = None;
    for pair in rest.chunks(2) {
        let [name, value] = pair else { return None };
        let number: u64 = value.parse().ok()?;
        match name.as_str() {
            "--minutes" => options.duration = Duration::from_secs(number.checked_mul(60)?),
            "--seed" => options.seed = number,
            "--threads" => options.threads = usize::try_from(number).ok()?,
            "--replay" => case = Some(number),
            _ => return None,
        }
    }
    Some((options, case))
}
