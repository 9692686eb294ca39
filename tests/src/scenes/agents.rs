//! What the agent withstands on a real system: one that brings no agent that runs, a daemon that hangs, hooks that go
//! wrong.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::Stage;
use super::guest::{PATIENCE, text_at};

/// More processes than a hook may have.
const BOMB: &str = r#"#!/bin/sh
n=0
while [ $n -lt 400 ]; do sleep 1000 & n=$((n + 1)); done
echo "all 400 run"
"#;

/// Puts a program into a folder of the owner's on the root, which is made writable for it.
fn put(path: &str, text: &str) -> String {
    format!(
        "mount -o remount,rw / && mkdir -p $(dirname {path}) && cat > {path} <<'END'\n{text}END\nchmod 755 {path} && \
         mount -o remount,ro / && echo there"
    )
}

fn remove(path: &str) -> String {
    format!("mount -o remount,rw / && rm {path} && mount -o remount,ro / && echo gone")
}

impl Stage {
    /// A new system whose agent cannot run is restarted by the deadman until the loader falls back.
    ///
    /// # Errors
    /// When any step is not as told.
    pub fn comes_back_from_a_system_without_an_agent(&mut self) -> Result<()> {
        let bad = self.images.system("v6")?.clone();
        self.timeline.heading(&format!("A system in which no program of the agent runs: {}", bad.version));
        let before = self.status()?;
        self.install("v6")?;
        self.wait_for_state(&["activated"])?;
        let mut starts = 0;
        loop {
            starts += 1;
            ensure!(starts <= 4, "the old system is not back after {starts} starts");
            self.machine.follow_resets_until_ready(1, PATIENCE)?;
            let release = self.machine.succeed("cat /usr/lib/bascule/release.toml")?;
            if !release.contains(&bad.version) {
                break;
            }
            self.say("device", format!("started {}", bad.version), "nobody there can judge it, or go back");
        }
        ensure!(starts == 4, "the old system came up at start {starts}: three tries and a fallback make four");
        self.is_back(&before, &bad.version, "did-not-boot")
    }

    /// A hook that starts more processes than it may is ended with all of them, and named; the system works on.
    ///
    /// # Errors
    /// When any step is not as told.
    pub fn contains_a_hook_that_forks_without_end(&mut self) -> Result<()> {
        self.timeline.heading("A hook that starts processes without end");
        let hook = "/etc/bascule/hooks.d/check/50-bomb";
        self.machine.succeed(&put(hook, BOMB))?;
        let output = self.machine.run("NO_COLOR=1 bascule check")?;
        for line in output.text.lines() {
            self.say("check", line.trim_end().to_owned(), "");
        }
        ensure!(output.code == 1 && output.text.contains("50-bomb"), "the hook should fail: {}", output.text);
        ensure!(!output.text.contains("all 400 run"), "it was not limited: {}", output.text);
        let left = self.machine.run("cat /proc/[0-9]*/cmdline 2>/dev/null | tr '\\0' ' ' | grep -c 's[l]eep 1000'")?;
        ensure!(left.text.trim() == "0", "{} processes are left", left.text.trim());
        self.machine.succeed(&remove(hook))?;
        self.say("system", "no process of it is left".into(), "its control group was ended as a whole");
        Ok(())
    }

    /// A hook that writes into the prepared slot is found out before the switch.
    ///
    /// # Errors
    /// When any step is not as told.
    pub fn finds_out_a_hook_that_writes_into_the_prepared_slot(&mut self) -> Result<()> {
        self.timeline.heading("A hook that writes into the prepared slot");
        let before = self.status()?;
        let target = if text_at(&before, "/booted") == "a" { "b" } else { "a" };
        let hook = "/etc/bascule/hooks.d/pre-activate/10-vandal";
        let text = format!(
            "#!/bin/sh\nprintf x | dd of=/dev/disk/by-partlabel/root-{target} bs=1 seek=123456789 conv=notrunc,fsync\n"
        );
        self.machine.succeed(&put(hook, &text))?;
        self.install("v5")?;
        self.wait_for_state(&["idle"])?;
        let status = self.status()?;
        ensure!(text_at(&status, "/error/code") == "prepare.read-back", "it was not found out: {status}");
        ensure!(text_at(&status, "/booted") == text_at(&before, "/booted"), "another group is booted");
        self.machine.succeed(&remove(hook))?;
        self.say("agent", "did not start it".into(), &text_at(&status, "/error/message"));
        Ok(())
    }

    /// A daemon that hangs in the middle of an install is restarted by the service manager and goes on; the hook that the
    /// prepared system brings runs before it is started.
    ///
    /// # Errors
    /// When any step is not as told.
    pub fn goes_on_after_its_daemon_hung(&mut self) -> Result<()> {
        let good = self.images.system("v5")?.clone();
        self.timeline.heading(&format!("The daemon hangs while it installs {}", good.version));
        let before = self.status()?;
        let size = std::fs::metadata(&good.bundle)?.len();
        self.server.limit_bandwidth(Some(size / 30));
        self.install("v5")?;
        self.wait_for_progress(10)?;
        let pid = self.machine.succeed("systemctl show --property=MainPID --value basculed.service")?;
        self.machine.succeed("kill -STOP $(systemctl show --property=MainPID --value basculed.service)")?;
        self.say("daemon", "is stopped".into(), "SIGSTOP: it answers nobody any more");
        self.server.drop_connections();
        self.server.limit_bandwidth(None);
        self.waits_for_another_daemon(pid.trim())?;
        self.wait_for_state(&["activated"])?;
        self.follow_into_target(&before)?;
        self.wait_for_verdict(&good.version)?;
        self.say("agent", format!("{} is committed", good.version), "probation passed");
        let seen = self.machine.succeed("cat /data/prepared-version")?;
        ensure!(seen.contains(&good.version), "the hook of the prepared system did not see it: {seen}");
        Ok(())
    }

    fn waits_for_another_daemon(&mut self, pid: &str) -> Result<()> {
        let begun = Instant::now();
        loop {
            let now = self.machine.succeed("systemctl show --property=MainPID --value basculed.service")?;
            if !["0", pid].contains(&now.trim()) {
                let seconds = begun.elapsed().as_secs();
                self.say("systemd", format!("has restarted the daemon after {seconds} s"), "its watchdog was not fed");
                return Ok(());
            }
            ensure!(begun.elapsed() < PATIENCE, "the daemon was not restarted: its watchdog should have bitten");
            std::thread::sleep(Duration::from_secs(2));
        }
    }

    /// systemd's own unit that takes the counter from a boot entry is started in a system that is not healthy: it waits for the
    /// verdict, which is no commit.
    ///
    /// # Errors
    /// When the target is reached before the verdict, or the device does not go back.
    pub fn is_not_blessed_before_its_verdict(&mut self) -> Result<()> {
        let bad = self.images.system("v3")?.clone();
        self.timeline.heading(&format!("systemd would bless a system that is not healthy: {}", bad.version));
        self.machine.succeed("systemctl start boot-complete.target").context("a committed system is not complete")?;
        let before = self.status()?;
        self.install("v3")?;
        self.wait_for_state(&["activated"])?;
        self.follow_into_target(&before)?;
        self.machine.succeed("systemctl start --no-block systemd-bless-boot.service")?;
        self.machine.succeed("sleep 3; ! systemctl is-active boot-complete.target")?;
        self.say(
            "systemd",
            "waits with systemd-bless-boot.service".into(),
            "boot-complete.target waits for the verdict",
        );
        self.machine.follow_resets_until_ready(1, PATIENCE).context("it did not go back by itself")?;
        self.is_back(&before, &bad.version, "unhealthy")
    }
}
