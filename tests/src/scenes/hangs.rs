//! New systems that hang or die in every way there is: what the hardware watchdog, the deadline and the loader's counter
//! are each for.

use std::fs;
use std::io::Write;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::Stage;
use super::guest::{PATIENCE, text_at};

/// At each start another fault that only a hardware watchdog ends: a program that leaves no processor time to anybody, an
/// init that crashed and stays, a kernel that panicked and was told not to reboot.
const NEW_AT_EACH_START: &str = "#!/bin/sh
case $1 in
1) echo -1 > /proc/sys/kernel/sched_rt_runtime_us; exec chrt --fifo 99 sh -c 'while :; do :; done' ;;
2) kill -SEGV 1 ;;
3) echo 0 > /proc/sys/kernel/panic; echo c > /proc/sysrq-trigger ;;
esac
";

/// Nobody of userspace is left who could decide, but one: the daemon is stopped and will not be started again, for init
/// has crashed.
const ALL_BUT_THE_DEADLINE: &str = "#!/bin/sh
kill -STOP $(systemctl show --property=MainPID --value basculed.service)
kill -SEGV 1
";

/// How long a system that hangs may be silent before a person switches it off and on.
const SILENCE: Duration = Duration::from_secs(40);

impl Stage {
    /// A new system that hangs in another way at each start is reset by the hardware watchdog each time, until the loader
    /// falls back.
    ///
    /// # Errors
    /// When any step is not as told.
    pub fn is_reset_by_the_hardware_watchdog(&mut self) -> Result<()> {
        let bad = self.images.system("v5")?.clone();
        self.timeline.heading(&format!("A system that hangs, each time in another way: {}", bad.version));
        let held = self.machine.run("ls -l /proc/1/fd")?.text;
        ensure!(held.contains("/dev/watchdog"), "init does not hold the watchdog: {held}");
        self.say("device", "has a hardware watchdog, and init feeds it".into(), "without that it resets in 30 s");
        let before = self.status()?;
        self.fault(&bad.version, NEW_AT_EACH_START)?;
        self.install("v5")?;
        self.wait_for_state(&["activated"])?;
        let told = ["all processor time is taken", "init has crashed", "the kernel has panicked and stays"];
        for (start, what) in told.into_iter().enumerate() {
            self.machine.follow_reset(PATIENCE)?;
            self.say("device", format!("started {}, start {}", bad.version, start + 1), what);
        }
        self.machine.follow_resets_until_ready(1, PATIENCE)?;
        self.say("watchdog", "has reset the device three times".into(), "nobody fed it");
        let starts = self.machine.succeed(&format!("cat /data/fault-{}.starts", bad.version))?;
        ensure!(starts.trim() == "3", "it was started {starts} times");
        self.is_back(&before, &bad.version, "not-proven")
    }

    /// Init and the daemon are gone, and there is no hardware watchdog: the deadline's own program goes back by force.
    ///
    /// # Errors
    /// When any step is not as told.
    pub fn goes_back_by_force_without_init_and_daemon(&mut self) -> Result<()> {
        let bad = self.images.system("v5")?.clone();
        self.timeline.heading(&format!("A system without init and daemon: {}", bad.version));
        let before = self.status()?;
        self.fault(&bad.version, ALL_BUT_THE_DEADLINE)?;
        self.install("v5")?;
        self.wait_for_state(&["activated"])?;
        self.machine.follow_reset(PATIENCE)?;
        self.say("device", format!("started {}", bad.version), "its init crashes, its daemon is stopped");
        self.machine.follow_resets_until_ready(1, PATIENCE)?;
        let starts = self.machine.succeed(&format!("cat /data/fault-{}.starts", bad.version))?;
        ensure!(starts.trim() == "1", "it was started {starts} times: the loader fell back, not the deadline");
        self.is_back(&before, &bad.version, "gave-up-unrecorded")
    }

    /// Three ways not to boot, one at each start: init ends at once, init hangs until a person switches the device off, the
    /// kernel cannot even be loaded. After exactly three tries the old system runs.
    ///
    /// # Errors
    /// When any step is not as told.
    pub fn comes_back_from_three_ways_not_to_boot(&mut self) -> Result<()> {
        let bad = self.images.system("v5")?.clone();
        self.timeline.heading(&format!("A system that does not boot, each time in another way: {}", bad.version));
        let before = self.status()?;
        let target = if text_at(&before, "/booted") == "a" { "b" } else { "a" };
        let slot = self.slot_start(&before, target)?;
        self.install("v5")?;
        self.wait_for_state(&["activated"])?;
        self.machine.wait_for_stop(PATIENCE)?;

        self.with_init(slot, "#!/bin/sh\nexit 7\n")?;
        self.machine.start()?;
        self.machine.wait_for("Attempted to kill init! exitcode=0x00000700", PATIENCE)?;
        self.machine.wait_for_stop(PATIENCE)?;
        self.say("device", "its init ended at once".into(), "the kernel panicked and reset");

        self.with_init(slot, "#!/bin/sh\necho init hangs\nwhile :; do /bin/sleep 1000; done\n")?;
        self.machine.start()?;
        self.machine.wait_for("init hangs", PATIENCE)?;
        let woke = self.machine.wait_for("bascule", SILENCE);
        ensure!(woke.is_err() && !self.machine.has_stopped()?, "it went on: {woke:?}");
        self.machine.kill()?;
        self.say("person", "switches it off and on".into(), "its init hangs before anybody could feed a watchdog");

        let disk = fs::File::options().write(true).open(self.machine.disk())?;
        disk.write_all_at(&vec![0; 1 << 20], slot)?;
        self.machine.start()?;
        self.machine.wait_ready(PATIENCE)?;
        self.say("loader", "cannot read it any more, and starts the old system".into(), "that was the third try");
        self.is_back(&before, &bad.version, "did-not-boot")
    }

    /// Lays a fault where `version`, and no other, runs it.
    fn fault(&mut self, version: &str, script: &str) -> Result<()> {
        let place = format!("/data/fault-{version}");
        self.machine.succeed(&format!("cat > {place} <<'END'\n{script}END\nchmod 755 {place} && sync"))?;
        Ok(())
    }

    /// Gives the slot that begins there another init; the machine is off.
    fn with_init(&mut self, slot: u64, script: &str) -> Result<()> {
        let mut init = tempfile::NamedTempFile::new()?;
        init.write_all(script.as_bytes())?;
        fs::set_permissions(init.path(), fs::Permissions::from_mode(0o755))?;
        let image = format!("{}?offset={slot}", self.machine.disk().display());
        for request in ["rm /usr/sbin/init".to_owned(), format!("write {} /usr/sbin/init", init.path().display())] {
            let output = Command::new("debugfs").args(["-w", "-R", &request, &image]).output();
            let output = output.context("cannot start debugfs")?;
            ensure!(output.status.success(), "debugfs, {request}: {output:?}");
        }
        Ok(())
    }

    /// Where a group's root slot begins on the disk, in bytes.
    pub(super) fn slot_start(&mut self, status: &Value, group: &str) -> Result<u64> {
        let device = text_at(status, &format!("/groups/{group}/slots/0/device"));
        let name = device.rsplit('/').next().unwrap_or_default();
        let sectors = self.machine.succeed(&format!("cat /sys/class/block/{name}/start"))?;
        let sectors: u64 = sectors.trim().parse().with_context(|| format!("{name} begins at {sectors:?}"))?;
        Ok(sectors * 512)
    }
}
