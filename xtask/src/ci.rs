//! Check, then test, with the time of each step.

use std::fmt;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use crate::check::{self, Advisories};
use crate::{cargo, scenes, test};

/// How each step ended, and how long it took.
#[derive(Default)]
pub(crate) struct Times {
    steps: Vec<(String, Duration, bool)>,
}

impl Times {
    /// Runs one step, shows its error at once and keeps its time.
    ///
    /// # Errors
    /// The step's own.
    pub(crate) fn step<R>(&mut self, name: &str, step: impl FnOnce() -> Result<R>) -> Result<R> {
        println!("==> {name}");
        let started = Instant::now();
        let result = step();
        if let Err(error) = &result {
            eprintln!("error: {name}: {error:#}");
        }
        self.steps.push((name.to_owned(), started.elapsed(), result.is_ok()));
        result
    }
}

impl fmt::Display for Times {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f)?;
        for (name, time, passed) in &self.steps {
            writeln!(f, "{:>8.1} s  {}  {name}", time.as_secs_f64(), if *passed { "ok    " } else { "FAILED" })?;
        }
        let whole: Duration = self.steps.iter().map(|(_, time, _)| *time).sum();
        write!(f, "{:>8.1} s  in all", whole.as_secs_f64())
    }
}

/// The command. The tests run also when a check failed: one run says everything that is wrong.
pub(crate) fn run(arguments: &[String]) -> Result<ExitCode> {
    ensure!(arguments.is_empty(), "`cargo xtask ci` takes no arguments");
    let mut times = Times::default();
    let checked = check::all(Advisories::LeaveOut, &mut times);
    let built = times.step("programs", cargo::build_programs);
    let prepared = built.and_then(|()| times.step("packages and images", scenes::prepare));
    // Without images there is still much to test, and the step above has already failed.
    let sums = times.step("tests", || test::tests(prepared.is_err(), &[]));
    println!("{times}");
    let passed = checked && prepared.is_ok() && sums.as_ref().is_ok_and(|sums| sums.all_passed());
    if let Ok(sums) = sums {
        println!("{sums}");
    }
    Ok(if passed { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
