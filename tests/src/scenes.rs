//! The demo's scenes, each played on a real machine in QEMU and held against what must come out.
//!
//! A scene begins with a system that is up and good, and ends with one. The demo plays most of them one after the other on
//! one device; the tests play each on a device of its own.

mod agents;
mod boot_files;
mod clones;
mod delta;
pub(crate) mod guest;
mod hangs;
mod wire;

use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use crate::{HttpServer, Images, Machine, MachineBuilder, Timeline, factory};
use guest::{PATIENCE, text_at};
use wire::{DeltaBundle, Wire};

/// A device in QEMU, the server it updates from, and the story that is told.
pub struct Stage {
    /// The systems and bundles.
    pub images: Images,
    /// The device.
    pub machine: Machine,
    /// Serves the folder with the bundles.
    pub server: HttpServer,
    /// What is told.
    pub timeline: Timeline,
    /// Boots of the devices that were there before.
    earlier_boots: u32,
}

/// How a refusal is expected to look.
struct Refusal<'r> {
    what: &'r str,
    bundle: &'r Path,
    codes: &'r [&'r str],
}

impl Stage {
    /// Sets a stage named `scene` with a device as it left the factory, and boots it.
    ///
    /// # Errors
    /// When images are missing or the device does not come up.
    pub fn set(scene: &str) -> Result<Stage> {
        Stage::set_with(scene, |builder| builder)
    }

    /// Like [`Stage::set`], with a machine that is made in another way.
    ///
    /// # Errors
    /// Like [`Stage::set`].
    pub fn set_with(scene: &str, make: impl FnOnce(MachineBuilder) -> MachineBuilder) -> Result<Stage> {
        Stage::set_on(Images::load()?, scene, make)
    }

    /// Like [`Stage::set_with`], with other images.
    ///
    /// # Errors
    /// Like [`Stage::set`].
    pub fn set_on(images: Images, scene: &str, make: impl FnOnce(MachineBuilder) -> MachineBuilder) -> Result<Stage> {
        let mut stage = Stage::dark_on(images, scene, make)?;
        stage.timeline.heading("The device starts");
        stage.starts()?;
        Ok(stage)
    }

    /// Puts another device on the stage, as it left the factory; its logs go to a folder named `scene`.
    ///
    /// # Errors
    /// When it does not come up.
    pub fn another_device(&mut self, scene: &str, make: impl FnOnce(MachineBuilder) -> MachineBuilder) -> Result<()> {
        self.timeline.heading("Another device, as it left the factory");
        self.earlier_boots = self.boots();
        // Two at once would be more than a small host has memory and processors for.
        self.machine.kill()?;
        self.machine = make(Machine::builder(scene, &self.images)).build()?;
        self.starts()
    }

    /// Puts a device on the stage that is off and stays so; the one before it is switched off. Its logs go to a folder named
    /// `scene`.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn put(&mut self, scene: &str, make: impl FnOnce(MachineBuilder) -> MachineBuilder) -> Result<()> {
        self.earlier_boots = self.boots();
        self.machine.kill().ok();
        self.machine = make(Machine::builder(scene, &self.images)).build()?;
        Ok(())
    }

    /// Sets a stage whose first device is off.
    ///
    /// # Errors
    /// When images are missing or the device cannot be made.
    pub fn dark(scene: &str, make: impl FnOnce(MachineBuilder) -> MachineBuilder) -> Result<Stage> {
        Stage::dark_on(Images::load()?, scene, make)
    }

    fn dark_on(images: Images, scene: &str, make: impl FnOnce(MachineBuilder) -> MachineBuilder) -> Result<Stage> {
        let server = HttpServer::serve(&images.directory)?;
        let machine = make(Machine::builder(scene, &images)).build()?;
        let timeline = Timeline::begin(&machine.logs().join("timeline.txt"))?;
        Ok(Stage { images, machine, server, timeline, earlier_boots: 0 })
    }

    /// How often a device was started on this stage.
    #[must_use]
    pub fn boots(&self) -> u32 {
        self.earlier_boots + self.machine.boots()
    }

    fn starts(&mut self) -> Result<()> {
        factory::finish(&mut self.machine)?;
        self.machine.start()?;
        self.machine.wait_ready(PATIENCE)?;
        self.came_up()
    }

    /// A good system is installed by delta while the old one keeps answering, boots, passes probation, is committed.
    ///
    /// # Errors
    /// When any step is not as told.
    pub fn installs_a_good_system(&mut self, name: &str) -> Result<()> {
        let system = self.images.system(name)?.clone();
        let version = system.version.clone();
        self.timeline.heading(&format!("A good system: {version}, by delta"));
        let bundle = DeltaBundle::open(&self.images, &system)?;
        let before = self.status()?;
        let start = self.slot_start(&before, &text_at(&before, "/booted"))?;
        let fit = bundle.fit(&self.machine.disk(), start)?;
        self.plan(name)?;
        let wire = Wire::begin(&self.server);
        let watch = self.machine.watch_ping();
        self.install(name)?;
        self.wait_for_state(&["activated"])?;
        let report = watch.stop();
        self.tell_memory(&bundle)?;
        let sent = wire.bytes(&self.server);
        ensure!(report.failures == 0, "the ping service failed {} times during the install", report.failures);
        ensure!(report.answers > 0, "the ping service was never asked");
        let silence = report.longest_silence.as_millis();
        self.say(
            "service",
            format!("answered {} pings during the install", report.answers),
            &format!("longest silence {silence} ms"),
        );
        self.follow_into_target(&before)?;
        self.wait_for_verdict(&version)?;
        let status = self.status()?;
        ensure!(text_at(&status, "/release/version") == version, "{version} does not run: {status}");
        self.say(
            "agent",
            format!("{version} is committed in group {}", text_at(&status, "/booted")),
            "probation passed",
        );
        let transfer = self.transfer(&version)?;
        self.tell_bytes(&bundle, sent)?;
        ensure!(transfer.healed == 0, "nobody wrote to the root, and yet: {transfer:?}");
        ensure!(sent < bundle.length() / 4, "{sent} bytes were sent of a bundle of {}", bundle.length());
        delta::check_bytes(&bundle, &fit, sent, &transfer)
    }

    /// Bundles that must not be installed are refused, each with its own code and hint; the target is not touched.
    ///
    /// # Errors
    /// When one is taken, the code is another's, or a byte of the target changed.
    pub fn refuses_bad_bundles(&mut self) -> Result<()> {
        self.timeline.heading("Bundles that must be refused");
        let before = self.target_digest()?;
        let images = self.images.clone();
        let older = &images.system("v1")?.bundle;
        let refusals = [
            Refusal { what: "signed by a stranger", bundle: &images.stranger, codes: &["trust.wrong-signature"] },
            Refusal {
                what: "made for other hardware",
                bundle: &images.other_hardware,
                codes: &["bundle.other-hardware"],
            },
            Refusal { what: "truncated", bundle: &images.truncated, codes: &["bundle.truncated"] },
            Refusal { what: "older", bundle: older, codes: &["bundle.older", "trust.older-metadata"] },
        ];
        for refusal in refusals {
            self.is_refused(&refusal)?;
        }
        let after = self.target_digest()?;
        ensure!(before == after, "the target slot changed: {before} became {after}");
        self.say(
            "slot",
            format!("the target still has SHA-256 {}...", after.get(..16).unwrap_or_default()),
            "no byte was written",
        );
        Ok(())
    }

    /// A system that boots but is unhealthy is rolled back, and refused from then on.
    ///
    /// # Errors
    /// When any step is not as told.
    pub fn rolls_back_an_unhealthy_system(&mut self) -> Result<()> {
        let bad = self.images.system("v3")?.clone();
        self.timeline.heading(&format!("A system that boots but is not healthy: {}", bad.version));
        let before = self.status()?;
        self.install("v3")?;
        self.wait_for_state(&["activated"])?;
        self.follow_into_target(&before)?;
        self.say("agent", "health checks run".into(), "the new system is in probation");
        self.machine.follow_resets_until_ready(1, PATIENCE).context("it did not go back by itself")?;
        self.is_back(&before, &bad.version, "unhealthy")?;
        let again = Refusal { what: "offered again", bundle: &bad.bundle, codes: &["bundle.denied"] };
        self.is_refused(&again)
    }

    /// The daemon of a new system is stopped in probation: the watchdog beside it goes back at the deadline.
    ///
    /// # Errors
    /// When any step is not as told.
    pub fn goes_back_at_the_deadline_without_the_daemon(&mut self) -> Result<()> {
        let bad = self.images.system("v3")?.clone();
        self.timeline.heading(&format!("A system whose daemon does nothing: {}", bad.version));
        let before = self.status()?;
        self.install("v3")?;
        self.wait_for_state(&["activated"])?;
        self.follow_into_target(&before)?;
        self.machine.succeed("systemctl stop basculed.service")?;
        self.say("person", "stops the daemon of the new system".into(), "nobody is left to decide but the deadline");
        self.machine.follow_resets_until_ready(1, PATIENCE).context("it did not go back by itself")?;
        self.is_back(&before, &bad.version, "deadline")
    }

    /// A system that does not boot is given up by the loader; the old one says so.
    ///
    /// # Errors
    /// When any step is not as told.
    pub fn comes_back_from_a_system_that_does_not_boot(&mut self) -> Result<()> {
        let bad = self.images.system("v4")?.clone();
        self.timeline.heading(&format!("A system that does not boot: {}", bad.version));
        let before = self.status()?;
        self.install("v4")?;
        self.wait_for_state(&["activated"])?;
        let (tries, words) = match factory::tries(self.machine.loader()) {
            1 => (1, "one try"),
            tries => (tries, "three counted tries"),
        };
        self.say("device", "reboots".into(), &format!("the loader is armed for {words}"));
        let starts = self.machine.follow_resets_until_ready(6, PATIENCE)?;
        self.say(
            "loader",
            format!("started it {} times, then the old system", starts.saturating_sub(1)),
            "the kernel panicked each time",
        );
        ensure!(starts == tries + 1, "the old system came up at start {starts}: {tries} tries and a fallback");
        self.is_back(&before, &bad.version, "did-not-boot")
    }

    /// QEMU is killed in the middle of an install; the device starts the old system and finishes the install.
    ///
    /// # Errors
    /// When any step is not as told.
    pub fn finishes_an_interrupted_install(&mut self) -> Result<()> {
        let good = self.images.system("v5")?.clone();
        self.timeline.heading(&format!("QEMU is killed in the middle of installing {}", good.version));
        let before = self.status()?;
        // Slow enough that the middle can be met.
        let size = std::fs::metadata(&good.bundle)?.len();
        self.server.limit_bandwidth(Some(size / 20));
        self.install("v5")?;
        self.wait_for_progress(25)?;
        self.machine.kill()?;
        self.server.drop_connections();
        self.server.limit_bandwidth(None);
        self.say("power", "QEMU is killed".into(), "more than a quarter was written");
        self.finishes_by_itself(&before, &good.version)
    }

    /// Starts a device again that was cut off while it prepared `version`, and follows it into that.
    fn finishes_by_itself(&mut self, before: &Value, version: &str) -> Result<()> {
        self.machine.start()?;
        self.machine.wait_ready(PATIENCE)?;
        let running = self.machine.wait_for_ping(PATIENCE)?.version;
        ensure!(running == text_at(before, "/release/version"), "{running} runs after the kill");
        self.say("device", format!("started {running}"), "the target was not bootable while it was written");
        self.wait_for_state(&["activated"])?;
        self.say("agent", "finished the install by itself".into(), "the intent was recorded before the first write");
        self.follow_into_target(before)?;
        self.wait_for_verdict(version)?;
        self.say("agent", format!("{version} is committed"), "probation passed");
        Ok(())
    }

    pub(crate) fn follow_into_target(&mut self, before: &Value) -> Result<()> {
        let starts = self.machine.follow_resets_until_ready(1, PATIENCE)?;
        ensure!(starts == 1, "the new system came up at start {starts}");
        let status = self.status()?;
        let (old, new) = (text_at(before, "/booted"), text_at(&status, "/booted"));
        ensure!(old != new, "group {old} is booted again: {status}");
        let (wall, cpu) = self.machine.seconds()?;
        let version = text_at(&status, "/release/version");
        self.say(
            "device",
            format!("started {version} from group {new} in {wall:.0} s ({cpu:.0} s of processor)"),
            "one try was counted",
        );
        Ok(())
    }

    fn is_back(&mut self, before: &Value, bad: &str, why: &str) -> Result<()> {
        self.wait_for_state(&["idle"])?;
        let status = self.status()?;
        let version = text_at(&status, "/release/version");
        ensure!(version == text_at(before, "/release/version"), "{version} runs, not the old system");
        ensure!(text_at(&status, "/booted") == text_at(before, "/booted"), "another group is booted: {status}");
        let denied = status.pointer("/deny").and_then(Value::as_array).into_iter().flatten();
        let denied = denied.filter(|entry| text_at(entry, "/version") == bad).count();
        ensure!(denied == 1, "{bad} is not on the deny-list: {status}");
        let history = self.machine.succeed("bascule history --json")?;
        ensure!(history.contains(why), "the history does not say {why}: {history}");
        self.say("device", format!("runs {version} again"), &format!("{bad} is on the deny-list"));
        for line in self.machine.succeed("NO_COLOR=1 bascule explain")?.lines().filter(|line| !line.trim().is_empty()) {
            self.say("explain", line.trim_end().to_owned(), "");
        }
        Ok(())
    }

    fn is_refused(&mut self, refusal: &Refusal<'_>) -> Result<()> {
        let name = refusal.bundle.file_name().context("a bundle without a name")?.to_string_lossy().into_owned();
        let url = self.server.url_for_guest(&name);
        let output = self.machine.run(&format!("NO_COLOR=1 bascule install {url}"))?;
        // 1 is for good, 75 is "try again later": a truncated bundle may be one that is still being uploaded.
        ensure!(matches!(output.code, 1 | 75), "{name} ended with exit code {}: {}", output.code, output.text);
        let line = |start: &str| {
            let found = output.text.lines().map(str::trim).find(|line| line.starts_with(start));
            found.map(str::to_owned).with_context(|| format!("no line {start:?} in: {}", output.text))
        };
        let (error, hint) = (line("error:")?, line("hint:")?);
        let Some(code) = refusal.codes.iter().find(|code| error.contains(&format!("[{code}]"))) else {
            bail!("{name} should be refused with {:?}: {error}", refusal.codes);
        };
        ensure!(text_at(&self.status()?, "/state") == "idle", "something is on its way after {code}");
        self.say("agent", format!("refused the bundle {}", refusal.what), &error);
        self.say("agent", hint, "");
        Ok(())
    }
}
