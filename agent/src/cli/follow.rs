//! Follows what was begun to its end, also across a restart of the daemon.

use bascule_core::{Ending, ErrorReport, Phase};

use super::Exit;
use super::client::Client;
use super::failure::{CliError, exit_of_error, print_error};
use super::progress::Reporter;
use super::text::{clean, json_line, out};
use crate::api::HistoryLine;
use crate::status::{StateWord, Status};

/// What the caller waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Goal {
    /// The bundle is in the target slots.
    Prepared,
    /// The device reboots into the target.
    Started,
    /// The device is on its way back.
    GoneBack,
}

/// Where following ends.
#[derive(Debug, Clone, PartialEq, Eq)]
enum End {
    /// The goal is reached.
    Reached,
    /// The loader is armed, but something holds the reboot back.
    RebootHeld,
    /// Nothing goes on before a person acts.
    Stuck,
}

/// Follows one deployment.
pub(super) struct Follow<'a> {
    client: &'a Client,
    json: bool,
    goal: Goal,
    id: Option<String>,
    seen: bool,
    last: Option<Status>,
    reporter: Reporter,
}

impl<'a> Follow<'a> {
    pub(super) fn new(client: &'a Client, json: bool, goal: Goal, id: Option<String>) -> Self {
        Follow { client, json, goal, id, seen: false, last: None, reporter: Reporter::new(json) }
    }

    pub(super) async fn run(mut self) -> Result<Exit, CliError> {
        let mut events = self.client.events().await?;
        loop {
            while let Some(status) = events.next().await? {
                if let Some(exit) = self.look(status).await? {
                    return Ok(exit);
                }
            }
            if let Some(exit) = self.rebooting() {
                return Ok(exit);
            }
            events = self.client.events_once_back().await?;
        }
    }

    /// The daemon has gone away: expected, when it was about to reboot.
    fn rebooting(&mut self) -> Option<Exit> {
        let status = self.last.as_ref()?;
        let target = status.deployment.as_ref()?.target;
        let group = match status.state {
            StateWord::Activated => target,
            StateWord::RollingBack if status.booted == target => target.opposite(),
            _ => return None,
        };
        let (state, done) = (status.state, (self.goal == Goal::GoneBack) == (status.state == StateWord::RollingBack));
        self.reporter.finish();
        if self.json {
            json_line(&serde_json::json!({ "rebooting": group, "state": state }));
        } else {
            out(&format!("rebooting into group {group}"));
        }
        Some(if done { Exit::Done } else { Exit::Failed })
    }

    async fn look(&mut self, status: Status) -> Result<Option<Exit>, CliError> {
        let current = status.deployment.as_ref().map(|deployment| deployment.id.clone());
        if self.id.is_none() {
            self.id.clone_from(&current);
        }
        let ours = self.id.is_some() && current == self.id;
        self.seen |= ours;
        if !ours
            && self.id.is_some()
            && let Some(exit) = self.ended(&status).await?
        {
            return Ok(Some(exit));
        }
        let end = end(self.goal, &status, ours);
        if ours || end.is_some() {
            self.reporter.show(&status);
        }
        self.last = Some(status);
        let Some(end) = end else { return Ok(None) };
        self.reporter.finish();
        Ok(Some(match end {
            End::Reached => Exit::Done,
            End::RebootHeld => Exit::RebootNeeded,
            End::Stuck => self.stuck(),
        }))
    }

    fn stuck(&self) -> Exit {
        match self.last.as_ref().and_then(|status| status.error.as_ref()) {
            Some(error) => self.failed(error),
            None => Exit::Failed,
        }
    }

    fn failed(&self, error: &ErrorReport) -> Exit {
        if !self.json {
            print_error(error);
        }
        exit_of_error(error)
    }

    /// The deployment is no longer on its way: history knows why. `None` while it has not begun to show.
    async fn ended(&mut self, status: &Status) -> Result<Option<Exit>, CliError> {
        let lines: Vec<HistoryLine> = self.client.get("/v1/history").await?;
        let line = lines.into_iter().find(|line| Some(&line.entry.deployment.id.0) == self.id.as_ref());
        let Some(line) = line else {
            if !self.seen {
                return Ok(None);
            }
            self.reporter.finish();
            return Ok(Some(self.lost(status)));
        };
        self.reporter.finish();
        if self.json {
            json_line(&line);
        }
        let version = &line.entry.deployment.version;
        let (text, exit) = match &line.entry.ending {
            Ending::Failed { error } => return Ok(Some(self.failed(error))),
            Ending::Committed => (format!("version {version} is committed"), Exit::Done),
            Ending::RolledBack { reason } => {
                let exit = if self.goal == Goal::GoneBack { Exit::Done } else { Exit::Failed };
                (format!("version {version} was rolled back: {}", reason.explain()), exit)
            }
            Ending::Stranded { reason } => (
                format!("version {version} had to go, but the other group did not start: {}", reason.explain()),
                Exit::Failed,
            ),
            Ending::Cancelled => (format!("the update to version {version} was cancelled"), Exit::Failed),
            Ending::Unknown => (format!("the update to version {version} ended"), Exit::Failed),
        };
        if !self.json {
            out(&clean(&text));
        }
        Ok(Some(exit))
    }

    fn lost(&self, status: &Status) -> Exit {
        let error = ErrorReport {
            code: "cli.unknown-deployment".into(),
            phase: Phase::Daemon,
            message: "the deployment is no longer on its way and history does not know it".into(),
            cause: vec![status.details.clone()],
            hint: "look at `bascule status`".into(),
            retryable: false,
        };
        self.failed(&error)
    }
}

/// Whether following ends here.
fn end(goal: Goal, status: &Status, ours: bool) -> Option<End> {
    match status.state {
        StateWord::Newer | StateWord::Unreadable => Some(End::Stuck),
        _ if !ours => None,
        StateWord::Prepared if goal == Goal::Prepared => Some(End::Reached),
        StateWord::Activated if goal == Goal::Started && !status.blocked.is_empty() => Some(End::RebootHeld),
        StateWord::Probation if goal == Goal::Started => Some(End::Reached),
        _ => None,
    }
}
