//! Makes docs/when-it-fails.md: what `bascule status` and `bascule explain` say after each kind of failure, taken from the
//! real programs on a device made of files. `BLESS=1` writes the page; otherwise it must be what it is.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test's own mistakes may end it")]

use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Output;

use bascule_tests::rehearsal::{Boot, Rehearsal, Run, Serving, System, SystemSpec, Temper, Vendor};
use nix::fcntl::{Flock, FlockArg};

const HEAD: &str = "# When it fails

What a person sees on the device after each kind of failure, from `bascule status` and `bascule explain` alone. A test makes
this page out of what the programs print; times, numbers of deployments and paths of the test are the only things replaced.
";

struct Page {
    text: String,
}

impl Page {
    fn section(&mut self, title: &str, what: &str) {
        self.text.push_str(&format!("\n## {title}\n\n{what}\n"));
    }

    /// What one command printed, under its prompt.
    fn show(&mut self, root: &Path, command: &str, output: &Output) {
        let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        self.block(root, command, &said);
    }

    fn block(&mut self, root: &Path, command: &str, said: &str) {
        let said = said.replace(&format!("{}/", root.display()), "/");
        let said: Vec<String> = said.lines().map(|line| masked(line.trim_end())).collect();
        self.text.push_str(&format!("\n```\n$ {command}\n{}\n```\n", said.join("\n")));
    }

    fn status_and_explain(&mut self, device: &Rehearsal, daemon: &Serving) {
        for command in ["status", "explain"] {
            self.show(device.root(), &format!("bascule {command}"), &daemon.ask(&[command]).unwrap());
        }
    }
}

/// What differs from run to run, and what stands in its place: `9` is a digit, `x` one of a hexadecimal number.
const CHANGING: [(&str, &str); 6] = [
    ("99999999T999999Z-xxxxxxxx", "20260101T120000Z-0a1b2c3d"),
    ("9999-99-99 99:99:99", "2026-01-01 12:00:00"),
    ("99:99:99", "12:00:00"),
    ("uid 9", "uid 0"),
    ("  xxxxxxxxxxxx  ", "  0a1b2c3d4e5f  "),
    ("99.9 KiB", "70.0 KiB"),
];

fn masked(line: &str) -> String {
    let mut rest = line;
    let mut out = String::new();
    'next: while let Some(first) = rest.chars().next() {
        for (pattern, instead) in CHANGING {
            if let Some(after) = matched(rest, pattern) {
                out.push_str(instead);
                rest = after;
                continue 'next;
            }
        }
        out.push(first);
        rest = rest.get(first.len_utf8()..).unwrap_or_default();
    }
    let changing = [("after ", " ms"), ("(in ", " s)"), ("(in ", " min)"), ("required  ", " ms")];
    changing.into_iter().fold(out, |line, (before, after)| number_after(&line, before, after))
}

fn matched<'t>(text: &'t str, pattern: &str) -> Option<&'t str> {
    let mut characters = text.chars();
    for wanted in pattern.chars() {
        let found = characters.next()?;
        let fits = match wanted {
            '9' => found.is_ascii_digit(),
            'x' => found.is_ascii_hexdigit(),
            other => found == other,
        };
        if !fits {
            return None;
        }
    }
    Some(characters.as_str())
}

/// Puts `N` in the place of a number between two words.
fn number_after(line: &str, before: &str, after: &str) -> String {
    let Some((head, tail)) = line.split_once(before) else { return line.to_owned() };
    let digits = tail.bytes().take_while(u8::is_ascii_digit).count();
    match tail.get(digits..) {
        Some(rest) if digits > 0 && rest.starts_with(after) => format!("{head}{before}N{rest}"),
        _ => line.to_owned(),
    }
}

struct Scene {
    _vendor: Vendor,
    next: System,
    device: Rehearsal,
}

impl Scene {
    /// A device that runs 1.0.0, and a bundle of 2.0.0 with that temper.
    fn new(temper: Temper) -> Scene {
        let vendor = Vendor::new().unwrap();
        let (factory, next) = (vendor.system(1, Temper::Good).unwrap(), vendor.system(2, temper).unwrap());
        let mut device = Rehearsal::new(&vendor, &factory, &[factory.clone(), next.clone()]).unwrap();
        assert!(matches!(device.boot().unwrap(), Boot::Up { .. }));
        // The bundle is where a person would have put it.
        let bundle = device.root().join("data/demo-2.0.0.bascule");
        fs::copy(&next.bundle, &bundle).unwrap();
        let next = System { bundle, ..next };
        Scene { _vendor: vendor, next, device }
    }

    fn install(&self) -> Run {
        self.device.install(&self.next.bundle).unwrap()
    }

    fn put_hook(&self, point: &str, text: &str) {
        let path = self.device.root().join("usr/lib/bascule/hooks.d").join(point).join("10-database");
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, format!("#!/bin/sh\n{text}\n")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    }

    fn bundle(&self) -> String {
        self.next.bundle.display().to_string()
    }
}

/// The new system was started and is not any more: settles, and shows what the old one says.
fn comes_back(page: &mut Page, temper: Temper) {
    let mut scene = Scene::new(temper);
    assert!(scene.install().wants_reboot());
    scene.device.settle(6).unwrap();
    page.status_and_explain(&scene.device, &scene.device.serve().unwrap());
}

fn refused_bundle(page: &mut Page) {
    page.section("The bundle is not for this device", "Nothing was touched: it was refused before the first write.");
    let scene = Scene::new(Temper::Good);
    let mut spec = SystemSpec::new(3, Temper::Good);
    spec.release.compatible = vec!["gateway-rev-b".into()];
    spec.release.requires.min_order = Some(2);
    spec.release.requires.via = Some("2.0.0".into());
    let other = scene._vendor.make(spec).unwrap().bundle;
    let bundle = scene.device.root().join("data/other.bascule");
    fs::copy(other, &bundle).unwrap();
    let daemon = scene.device.serve().unwrap();
    let output = daemon.ask(&["install", &bundle.display().to_string()]).unwrap();
    assert_eq!(output.status.code(), Some(1));
    page.show(scene.device.root(), "bascule install /data/other.bascule", &output);
    page.status_and_explain(&scene.device, &daemon);
}

fn failed_preparation(page: &mut Page) {
    page.section("A hook says no", "The preparation ended. The running system was not touched.");
    let scene = Scene::new(Temper::Good);
    scene.put_hook("pre-prepare", "echo 'the database is being moved'; exit 1");
    scene.install();
    page.status_and_explain(&scene.device, &scene.device.serve().unwrap());
}

fn locked(page: &mut Page) {
    page.section(
        "The application must not be interrupted",
        "The bundle is prepared and waits. It goes on by itself when the lock is released.",
    );
    let scene = Scene::new(Temper::Good);
    let path = scene.device.root().join("run/bascule/locks/brewing");
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(&path, "coffee is being made\n").unwrap();
    let held = Flock::lock(File::open(&path).unwrap(), FlockArg::LockExclusive).map_err(|(_, error)| error).unwrap();
    let mut daemon = scene.device.serve().unwrap();
    daemon.ask(&["--no-monitor", "install", &scene.bundle()]).unwrap();
    daemon.wait_for("device.locked").unwrap();
    page.status_and_explain(&scene.device, &daemon);
    drop(held);
    daemon.wait_for_end().unwrap();
}

fn cancelled(page: &mut Page) {
    page.section("A person cancelled it", "What was written is not bootable and will be written again another time.");
    let scene = Scene::new(Temper::Good);
    let daemon = scene.device.serve().unwrap();
    daemon.ask(&["prepare", &scene.bundle()]).unwrap();
    daemon.ask(&["cancel"]).unwrap();
    daemon.wait_for("\"idle\"").unwrap();
    page.status_and_explain(&scene.device, &daemon);
}

fn probation(page: &mut Page) {
    page.section(
        "A health check fails in probation",
        "The new system runs and has until the time in the status to become healthy. Nobody has to do anything.",
    );
    let mut scene = Scene::new(Temper::Good);
    scene.device.configure("[health]\nsettle = \"0s\"\ninterval = \"100ms\"\npasses = 2\n").unwrap();
    assert!(scene.install().wants_reboot());
    scene.device.boot().unwrap();
    let check = scene.device.root().join("usr/lib/bascule/health.d/required/self-test");
    fs::write(&check, "#!/bin/sh\necho 'the uplink has no address'\nexit 1\n").unwrap();
    let daemon = scene.device.serve().unwrap();
    daemon.wait_for("no address").unwrap();
    page.status_and_explain(&scene.device, &daemon);
}

fn lost_settings(page: &mut Page) {
    page.section(
        "The boot settings were destroyed",
        "The loader started its fallback, the group that was good. That says nothing against the bundle.",
    );
    let mut scene = Scene::new(Temper::Good);
    assert!(scene.install().wants_reboot());
    fs::write(scene.device.grubenv(), [0u8; 1024]).unwrap();
    scene.device.settle(4).unwrap();
    page.status_and_explain(&scene.device, &scene.device.serve().unwrap());
}

fn gone_back(page: &mut Page) {
    page.section("A person went back", "To the system before, after the new one had been committed.");
    let mut scene = Scene::new(Temper::Good);
    assert!(scene.install().wants_reboot());
    scene.device.settle(3).unwrap();
    let mut daemon = scene.device.serve().unwrap();
    daemon.ask(&["--no-monitor", "rollback"]).unwrap();
    daemon.wait_for_end().unwrap();
    scene.device.settle(3).unwrap();
    page.status_and_explain(&scene.device, &scene.device.serve().unwrap());
}

fn unreadable_record(page: &mut Page) {
    page.section(
        "The record cannot be read",
        "The system runs and boots without it; no update begins until a person has looked.",
    );
    let scene = Scene::new(Temper::Good);
    scene.device.run().unwrap();
    assert!(scene.install().wants_reboot());
    for entry in fs::read_dir(scene.device.state()).unwrap() {
        let path = entry.unwrap().path();
        if path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("record")) {
            fs::write(path, "rubbish").unwrap();
        }
    }
    page.status_and_explain(&scene.device, &scene.device.serve().unwrap());
}

#[test]
fn the_page_says_what_the_programs_say() {
    let mut page = Page { text: HEAD.to_owned() };
    refused_bundle(&mut page);
    failed_preparation(&mut page);
    locked(&mut page);
    cancelled(&mut page);
    probation(&mut page);
    page.section(
        "The new system is unhealthy",
        "It was rolled back, and the same bytes are not tried again by themselves.",
    );
    comes_back(&mut page, Temper::Unhealthy);
    page.section("The new system does not boot", "The loader counted its tries and started the old one.");
    comes_back(&mut page, Temper::Panics);
    page.section("The new system hangs", "The deadline's own watchdog went back; the daemon there did nothing.");
    comes_back(&mut page, Temper::Hangs);
    lost_settings(&mut page);
    gone_back(&mut page);
    unreadable_record(&mut page);
    let path: PathBuf = [env!("CARGO_MANIFEST_DIR"), "..", "docs", "when-it-fails.md"].iter().collect();
    if std::env::var_os("BLESS").is_some() {
        fs::write(&path, &page.text).unwrap();
    }
    let held = fs::read_to_string(&path).unwrap_or_default();
    let differs = held.lines().zip(page.text.lines()).find(|(held, now)| held != now);
    assert_eq!(differs, None, "docs/when-it-fails.md is out of date: BLESS=1 writes it anew");
    assert_eq!(held.lines().count(), page.text.lines().count(), "docs/when-it-fails.md is out of date");
}
