//! A demo device with its serial console on this terminal: what `cargo xtask vm` starts.

use std::io::{IsTerminal, Read, Write};
use std::process::Command;
use std::time::Duration;

use anyhow::Result;
use bascule_tests::{HttpServer, Images, Machine};

/// Typing this ends the machine: Control-], as in other consoles.
const END: u8 = 0x1d;

fn main() -> Result<()> {
    let images = Images::load()?;
    let server = HttpServer::serve(&images.directory)?;
    let mut machine = Machine::builder("vm", &images).build()?;
    machine.start()?;
    println!("The console is this terminal; Control-] ends the machine. Bundles for `bascule install`:");
    for system in &images.systems {
        println!("  {}  {}", system.version, server.url_for_guest(&system.bundle_name()));
    }
    let _terminal = RawTerminal::new();
    connect(&mut machine)
}

/// Joins the terminal and the console, through every reset, until the person or the guest ends it.
fn connect(machine: &mut Machine) -> Result<()> {
    let keys = keys();
    let mut shown = 0;
    loop {
        let console = machine.console()?;
        if let Some(new) = console.get(shown..) {
            print!("{new}");
            std::io::stdout().flush()?;
            shown = console.len();
        }
        while let Ok(key) = keys.try_recv() {
            if key == END {
                return Ok(());
            }
            machine.type_bytes(&[key])?;
        }
        if machine.has_stopped()? {
            println!("\r\n[the machine resets]\r");
            machine.wait_for_stop(Duration::from_secs(1))?;
            machine.start()?;
            shown = 0;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn keys() -> std::sync::mpsc::Receiver<u8> {
    let (sender, receiver) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        for byte in std::io::stdin().lock().bytes() {
            let Ok(byte) = byte else { return };
            if sender.send(byte).is_err() {
                return;
            }
        }
    });
    receiver
}

/// Passes keys on as they are typed; the terminal is as before when this is dropped.
struct RawTerminal;

impl RawTerminal {
    fn new() -> Option<RawTerminal> {
        let raw = std::io::stdin().is_terminal() && stty(&["raw", "-echo"]);
        raw.then_some(RawTerminal)
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        stty(&["sane"]);
    }
}

fn stty(arguments: &[&str]) -> bool {
    Command::new("stty").args(arguments).status().is_ok_and(|status| status.success())
}
