//! The demo: one device in QEMU updates itself, refuses bad updates, and comes back from broken ones.

use std::process::ExitCode;

use bascule_tests::scenes::Stage;

fn main() -> ExitCode {
    match play() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("\nerror: the demo did not go as told");
            eprintln!("caused by: {error:#}");
            eprintln!("hint: the serial console of every boot is under target/bascule/logs/demo/");
            ExitCode::FAILURE
        }
    }
}

fn play() -> anyhow::Result<()> {
    let mut stage = Stage::set("demo", None)?;
    stage.installs_a_good_system("v2")?;
    stage.refuses_bad_bundles()?;
    stage.rolls_back_an_unhealthy_system()?;
    stage.comes_back_from_a_system_that_does_not_boot()?;
    stage.finishes_an_interrupted_install()?;
    let seconds = stage.timeline.seconds();
    stage.timeline.heading("Everything went as told");
    let (boots, logs) = (stage.machine.boots(), stage.machine.logs().display().to_string());
    stage.timeline.say(
        "demo",
        &format!("{boots} boots in {:.0} minutes", seconds / 60.0),
        &format!("serial logs: {logs}"),
    );
    Ok(())
}
