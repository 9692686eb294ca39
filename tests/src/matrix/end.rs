//! How a scenario has to end, and whether a device has ended so.

use anyhow::{Result, ensure};
use serde_json::Value;

use crate::scenes::Stage;
use crate::scenes::guest::text_at;

/// What has to be so when nothing is on its way any more.
#[derive(Debug, Clone)]
pub(super) struct End {
    /// The group that runs, is good and comes first.
    pub(super) group: &'static str,
    /// The version that runs.
    pub(super) version: &'static str,
    /// How the last deployment ended: `committed`, or the reason why it was rolled back.
    pub(super) ending: &'static str,
    /// What `bascule explain` says about it.
    pub(super) explained: &'static [&'static str],
    /// How many starts it takes, where that is certain.
    pub(super) starts: Option<u32>,
    /// Whether a person finds the device up at all; the rest says nothing where not.
    pub(super) is_up: bool,
}

impl End {
    pub(super) const fn of(group: &'static str, version: &'static str, ending: &'static str) -> End {
        End { group, version, ending, explained: &[], starts: None, is_up: true }
    }

    pub(super) const fn explained(self, explained: &'static [&'static str]) -> End {
        End { explained, ..self }
    }

    pub(super) const fn after(self, starts: u32) -> End {
        End { starts: Some(starts), ..self }
    }

    /// Holds the device against it; what was seen, in words.
    ///
    /// # Errors
    /// When it ended in another way.
    pub(super) fn check(&self, stage: &mut Stage, starts: u32) -> Result<String> {
        ensure!(self.starts.is_none_or(|wanted| wanted == starts), "it took {starts} starts, not {:?}", self.starts);
        if !self.is_up {
            return Ok("nothing starts by itself".into());
        }
        stage.wait_for_state(&["idle"])?;
        let status = stage.status()?;
        let (group, version) = (text_at(&status, "/booted"), text_at(&status, "/release/version"));
        ensure!(group == self.group && version == self.version, "{version} runs from {group}: {status}");
        let words = ["/boot_settings", &format!("/groups/{group}/status"), "/primary"].map(|at| text_at(&status, at));
        ensure!(words == ["intact", "good", self.group], "the settings are {words:?}: {status}");
        let ending = ending(&serde_json::from_str(&stage.machine.succeed("bascule history --json")?)?);
        ensure!(self.ending == ending, "the history says {ending}, not {}", self.ending);
        let told = stage.machine.succeed("NO_COLOR=1 bascule explain")?;
        for words in self.explained {
            ensure!(told.contains(words), "`bascule explain` does not say {words:?}: {told}");
        }
        for line in told.lines().filter(|line| !line.trim().is_empty()) {
            stage.say("explain", line.trim_end().to_owned(), "");
        }
        Ok(format!("{version} in {group}, `{ending}`"))
    }
}

/// The ending of the newest entry of a history.
fn ending(history: &Value) -> String {
    let newest = history.get(0).unwrap_or(history);
    let why = text_at(newest, "/reason/why");
    if why.is_empty() { text_at(newest, "/ending") } else { why }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_entry_says_how_it_ended() {
        let rolled_back = serde_json::json!([
            { "ending": "rolled-back", "reason": { "why": "did-not-boot" } },
            { "ending": "committed" }
        ]);
        assert_eq!(ending(&rolled_back), "did-not-boot");
        assert_eq!(ending(&serde_json::json!([{ "ending": "committed" }])), "committed");
        assert_eq!(ending(&serde_json::json!([])), "");
    }
}
