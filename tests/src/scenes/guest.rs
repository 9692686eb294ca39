//! Asks the agent in the guest, through its command line as a person would.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use super::Stage;

/// How long a boot or a change of state may take on a slow, loaded host without virtualisation, where the guests' own
/// deadlines are longer as well.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20 * 60);

const LOOK_EVERY: Duration = Duration::from_millis(700);

/// A string inside a JSON document; empty where there is none.
pub(crate) fn text_at(json: &Value, pointer: &str) -> String {
    json.pointer(pointer).and_then(Value::as_str).unwrap_or_default().to_owned()
}

impl Stage {
    pub(crate) fn say(&self, actor: &str, what: String, why: &str) {
        self.timeline.say(actor, &what, why);
    }

    /// The agent's status; the daemon may still be starting.
    pub(crate) fn status(&mut self) -> Result<Value> {
        let until = Instant::now() + PATIENCE;
        loop {
            let output = self.machine.run("bascule status --json")?;
            if output.code == 0 {
                return serde_json::from_str(&output.text).with_context(|| format!("not JSON: {}", output.text));
            }
            ensure!(Instant::now() < until, "no status: {}", output.text);
            std::thread::sleep(LOOK_EVERY);
        }
    }

    pub(crate) fn came_up(&mut self) -> Result<()> {
        let status = self.status()?;
        let (wall, cpu) = self.machine.seconds()?;
        let (version, group) = (text_at(&status, "/release/version"), text_at(&status, "/booted"));
        self.say(
            "device",
            format!("runs {version} from group {group}"),
            &format!("up in {wall:.0} s, {cpu:.0} s of processor"),
        );
        ensure!(text_at(&status, "/state") == "idle", "it should be idle: {status}");
        Ok(())
    }

    /// Asks what an install would do, and tells the answer.
    pub(crate) fn plan(&mut self, name: &str) -> Result<()> {
        let url = self.server.url_for_guest(&self.images.system(name)?.bundle_name());
        self.say("person", format!("bascule plan {url}"), "changes nothing");
        let plan = self.machine.succeed(&format!("NO_COLOR=1 bascule plan {url}"))?;
        // The steps come after an empty line.
        for line in plan.lines().take_while(|line| !line.is_empty()) {
            self.say("plan", line.to_owned(), "");
        }
        Ok(())
    }

    /// Asks for an install and returns at once.
    pub(crate) fn install(&mut self, name: &str) -> Result<()> {
        let bundle = self.images.system(name)?.bundle_name();
        let url = self.server.url_for_guest(&bundle);
        self.say("person", format!("bascule install {url}"), "");
        let output = self.machine.run(&format!("bascule --no-monitor install {url}"))?;
        ensure!(output.code == 0, "{bundle} was not taken: {}", output.text);
        for line in output.text.lines() {
            self.say("agent", line.to_owned(), "");
        }
        Ok(())
    }

    /// Waits until the update is in one of `states`, or the device resets on its way there.
    pub(crate) fn wait_for_state(&mut self, states: &[&str]) -> Result<()> {
        let until = Instant::now() + PATIENCE;
        let mut last = String::new();
        loop {
            // The reboot may come between two looks: then what was waited for has happened.
            if self.machine.has_stopped()? {
                return Ok(());
            }
            let Ok(output) = self.machine.run("bascule status --json") else { return Ok(()) };
            if let Ok(status) = serde_json::from_str::<Value>(&output.text) {
                let state = text_at(&status, "/state");
                if state != last {
                    self.say("agent", format!("is {state}"), &text_at(&status, "/details"));
                    last = state;
                }
                if states.contains(&last.as_str()) {
                    return Ok(());
                }
                if last == "idle" && status.pointer("/error/code").is_some() && !states.contains(&"idle") {
                    bail!("the update ended: {}", output.text);
                }
            }
            ensure!(Instant::now() < until, "still {last}, not {states:?}");
            std::thread::sleep(LOOK_EVERY);
        }
    }

    pub(crate) fn wait_for_progress(&mut self, percent: u64) -> Result<()> {
        let until = Instant::now() + PATIENCE;
        loop {
            let status = self.status()?;
            let state = text_at(&status, "/state");
            let now = status.pointer("/progress/percent").and_then(Value::as_u64).unwrap_or(0);
            if state == "preparing" && now >= percent {
                self.say("agent", format!("has done {now} % of the preparation"), "");
                return Ok(());
            }
            ensure!(matches!(state.as_str(), "preparing" | "idle"), "it is {state} already: the middle was missed");
            ensure!(Instant::now() < until, "no progress: {status}");
            std::thread::sleep(Duration::from_millis(200));
        }
    }

    /// Waits until probation is over and the booted group is good.
    pub(crate) fn wait_for_verdict(&mut self, version: &str) -> Result<()> {
        self.wait_for_state(&["idle"])?;
        let status = self.status()?;
        let group = text_at(&status, "/booted");
        let word = text_at(&status, &format!("/groups/{group}/status"));
        ensure!(word == "good", "{version} is {word} after probation: {status}");
        Ok(())
    }

    /// SHA-256 of the target slot, read past the page cache.
    pub(crate) fn target_digest(&mut self) -> Result<String> {
        let status = self.status()?;
        let target = if text_at(&status, "/booted") == "a" { "b" } else { "a" };
        let device = text_at(&status, &format!("/groups/{target}/slots/0/device"));
        let command = format!("dd if={device} bs=1M iflag=direct status=none | sha256sum");
        let digest = self.machine.run_within(&command, PATIENCE)?;
        ensure!(digest.code == 0, "cannot read {device}: {}", digest.text);
        Ok(digest.text.split_whitespace().next().unwrap_or_default().to_owned())
    }
}
