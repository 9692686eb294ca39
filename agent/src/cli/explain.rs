//! `explain`: the story of one deployment, and what to do next.

use bascule_core::{Deployment, Ending};

use super::client::Client;
use super::failure::CliError;
use super::text::{Paint, clean, json_pretty, out, time};
use super::{Exit, Options};
use crate::api::HistoryLine;
use crate::names::transfer;
use crate::shared::CheckView;
use crate::status::{DeploymentStatus, StateWord, Status, timestamp};
use crate::story::Event;

/// Of a long story the first lines that are shown.
const FIRST: usize = 2;
/// And the last.
const LAST: usize = 8;

pub(super) async fn explain(options: &Options, client: &Client, id: Option<&str>) -> Result<Exit, CliError> {
    let status: Status = client.get("/v1/status").await?;
    let history: Vec<HistoryLine> = client.get("/v1/history").await?;
    let unknown = || CliError::UnknownDeployment { id: id.unwrap_or_default().to_owned() };
    let about = subject(&status, &history, id).ok_or_else(unknown)?;
    let events: Vec<Event> = match about.id() {
        Some(id) => client.get(&format!("/v1/deployments/{id}")).await?,
        None => Vec::new(),
    };
    let story = story(&status, about, &events);
    if options.json {
        json_pretty(&serde_json::json!({ "lines": story.lines, "next": story.next, "events": events }));
        return Ok(Exit::Done);
    }
    story.lines.iter().for_each(|line| out(&clean(line)));
    out(&format!("{} {}", Paint::stdout().faint("next:"), clean(&story.next)));
    Ok(Exit::Done)
}

#[derive(Debug, PartialEq, Eq)]
struct Story {
    lines: Vec<String>,
    next: String,
}

/// What the story is about.
#[derive(Debug, Clone, Copy)]
enum Subject<'a> {
    UnderWay(&'a DeploymentStatus),
    Ended(&'a HistoryLine),
    Nothing,
}

impl Subject<'_> {
    fn id(&self) -> Option<&str> {
        match self {
            Subject::UnderWay(it) => Some(&it.id),
            Subject::Ended(line) => Some(&line.entry.deployment.id.0),
            Subject::Nothing => None,
        }
    }
}

/// The deployment on its way, or else the last one, or the one with this id; `None` when `id` is not known here.
fn subject<'a>(status: &'a Status, history: &'a [HistoryLine], id: Option<&str>) -> Option<Subject<'a>> {
    let wanted = |known: &str| id.is_none_or(|id| id == known);
    let under_way = status.deployment.as_ref().filter(|it| wanted(&it.id)).map(Subject::UnderWay);
    let ended = || history.iter().find(|line| wanted(&line.entry.deployment.id.0)).map(Subject::Ended);
    under_way.or_else(ended).or(if id.is_none() { Some(Subject::Nothing) } else { None })
}

fn story(status: &Status, subject: Subject<'_>, events: &[Event]) -> Story {
    match subject {
        Subject::Ended(line) => ended(status, line, events),
        Subject::UnderWay(_) | Subject::Nothing => Story { lines: now(status, events), next: next_of_state(status) },
    }
}

/// What happened, one line each; of many the first and the last.
fn timeline(events: &[Event]) -> Vec<String> {
    let line = |event: &Event| {
        let at = time(timestamp(event.at));
        let clock = at.split(' ').nth(1).unwrap_or(&at).to_owned();
        format!("  {clock}  {:<8} {:<13} {}", event.running, event.what, event.detail)
    };
    let mut lines: Vec<String> = events.iter().map(line).collect();
    if lines.len() > FIRST + LAST + 1 {
        let left_out = lines.len() - FIRST - LAST;
        lines.splice(FIRST..FIRST + left_out, [format!("  ... {left_out} more, in `bascule explain --json`")]);
    }
    lines
}

/// What the required checks that failed in the last round that was told had printed last.
fn evidence(events: &[Event]) -> Vec<String> {
    let failing = |event: &&Event| event.what == "check-round" && event.checks.iter().any(|check| !check.passed);
    let Some(round) = events.iter().rev().find(failing) else { return Vec::new() };
    let said = |check: &CheckView| {
        let last = check.output.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or("it printed nothing");
        format!("  check {} failed after {} ms: {last}", check.name, check.millis)
    };
    round.checks.iter().filter(|check| !check.passed && check.requirement == "required").take(3).map(said).collect()
}

fn now(status: &Status, events: &[Event]) -> Vec<String> {
    let mut lines = Vec::new();
    if let Some(it) = &status.deployment {
        lines.push(format!("{}: {} {} -> {} into group {}", it.id, it.product, it.from_version, it.version, it.target));
        lines.push(format!("asked for by {} at {}, from {}", it.requested_by, time(it.began), it.source));
    }
    lines.extend(timeline(events));
    lines.push(status.details.clone());
    lines.extend(status.blocked.iter().map(|blocker| format!("waiting: [{}] {}", blocker.code, blocker.reason)));
    let failing = status.checks.iter().filter(|check| !check.passed);
    lines.extend(failing.map(|check| format!("health check {} fails: {}", check.name, check.output)));
    if let Some(error) = &status.error {
        lines.push(format!("[{}] {}", error.code, error.message));
        lines.extend(error.cause.iter().map(|cause| format!("caused by: {cause}")));
    }
    lines
}

fn next_of_state(status: &Status) -> String {
    if let Some(blocker) = status.blocked.first() {
        return blocker.hint.clone();
    }
    match status.state {
        StateWord::Idle => match &status.error {
            Some(error) => error.hint.clone(),
            None => "nothing; `bascule install BUNDLE` begins an update".into(),
        },
        StateWord::Preparing => "nothing: it goes on by itself; `bascule cancel` stops it".into(),
        StateWord::Prepared => "`bascule activate` reboots into it; `bascule cancel` drops it".into(),
        StateWord::Activating | StateWord::Activated => {
            "nothing: the device reboots; `bascule cancel` before that".into()
        }
        StateWord::Probation => {
            "nothing: it is committed or rolled back by itself; `bascule commit` or `bascule rollback` decide it now"
                .into()
        }
        StateWord::RollingBack => "nothing: the device reboots into the system that was good".into(),
        StateWord::Newer => "update this system's agent, or finish the update with the newer one".into(),
        StateWord::Unreadable => {
            status.error.as_ref().map_or_else(|| "look in the journal of basculed".into(), |error| error.hint.clone())
        }
    }
}

fn ended(status: &Status, line: &HistoryLine, events: &[Event]) -> Story {
    let it = &line.entry.deployment;
    let mut lines = vec![
        format!("{}: {} {} -> {} into group {}", it.id, it.product, it.from_version, it.version, it.target),
        format!("asked for by {} at {}, from {}", it.requested_by, time(timestamp(it.began)), it.source),
    ];
    lines.extend(timeline(events));
    if events.is_empty() {
        lines.extend(it.transfer.as_ref().map(transfer));
    }
    let at = time(line.time);
    let next = match &line.entry.ending {
        Ending::Committed => {
            lines.push(format!("committed at {at}: the health checks passed, or a person decided so"));
            "nothing; `bascule rollback` goes back while the other group is good".to_owned()
        }
        Ending::RolledBack { reason } => {
            lines.push(format!("rolled back at {at}: {}", reason.explain()));
            lines.extend(evidence(events));
            denied(status, it, &mut lines)
        }
        Ending::Failed { error } => {
            lines.push(format!("failed at {at}: [{}] {}", error.code, error.message));
            lines.extend(error.cause.iter().map(|cause| format!("caused by: {cause}")));
            lines.push("the running system was not touched".into());
            error.hint.clone()
        }
        Ending::Cancelled => {
            lines.push(format!("cancelled at {at}; the running system was not touched"));
            "nothing; install it again whenever you want".into()
        }
        Ending::Stranded { reason } => {
            lines.push(format!("given up at {at}: {}", reason.explain()));
            lines.push("the boot loader could not bring the other group up, so this one goes on running".into());
            "install a corrected bundle soon: there is nothing to fall back to".into()
        }
        Ending::Unknown => "`bascule history` of the newer agent knows how it ended".into(),
    };
    lines.push(format!("now: {}", status.details));
    Story { lines, next }
}

fn denied(status: &Status, deployment: &Deployment, lines: &mut Vec<String>) -> String {
    if status.deny.iter().any(|deny| deny.manifest == deployment.manifest && !deny.allowed) {
        lines.push("its bytes are on the deny-list of this device and will not be tried again".into());
        format!("publish a corrected bundle; or allow this one once more: `bascule allow {}`", deployment.version)
    } else {
        "it says nothing against the bundle: it may be installed again".into()
    }
}
