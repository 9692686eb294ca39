//! `explain`: the story of one deployment, and what to do next.

use bascule_core::{Deployment, Ending};

use super::client::Client;
use super::failure::CliError;
use super::show_lists::transfer;
use super::text::{Paint, clean, json_pretty, out, time};
use super::{Exit, Options};
use crate::api::HistoryLine;
use crate::status::{StateWord, Status, timestamp};

pub(super) async fn explain(options: &Options, client: &Client, id: Option<&str>) -> Result<Exit, CliError> {
    let status: Status = client.get("/v1/status").await?;
    let history: Vec<HistoryLine> = client.get("/v1/history").await?;
    let Some(story) = story(&status, &history, id) else {
        return Err(CliError::UnknownDeployment { id: id.unwrap_or_default().to_owned() });
    };
    if options.json {
        json_pretty(&serde_json::json!({ "lines": story.lines, "next": story.next }));
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

/// `None` when `id` is not known here.
fn story(status: &Status, history: &[HistoryLine], id: Option<&str>) -> Option<Story> {
    let under_way = status.deployment.as_ref().filter(|deployment| id.is_none_or(|id| id == deployment.id));
    if under_way.is_some() {
        return Some(Story { lines: now(status), next: next_of_state(status) });
    }
    let past = history.iter().find(|line| id.is_none_or(|id| id == line.entry.deployment.id.0));
    match (past, id) {
        (Some(line), _) => Some(ended(status, line)),
        (None, None) => Some(Story { lines: now(status), next: next_of_state(status) }),
        (None, Some(_)) => None,
    }
}

fn now(status: &Status) -> Vec<String> {
    let mut lines = Vec::new();
    if let Some(it) = &status.deployment {
        lines.push(format!("{}: {} {} -> {} into group {}", it.id, it.product, it.from_version, it.version, it.target));
        lines.push(format!("asked for by {} at {}, from {}", it.requested_by, time(it.began), it.source));
    }
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

fn ended(status: &Status, line: &HistoryLine) -> Story {
    let it = &line.entry.deployment;
    let mut lines = vec![
        format!("{}: {} {} -> {} into group {}", it.id, it.product, it.from_version, it.version, it.target),
        format!("asked for by {} at {}, from {}", it.requested_by, time(timestamp(it.began)), it.source),
        format!("manifest {}", it.manifest),
    ];
    lines.extend(it.transfer.as_ref().map(transfer));
    let at = time(line.time);
    let next = match &line.entry.ending {
        Ending::Committed => {
            lines.push(format!("committed at {at}: the health checks passed, or a person decided so"));
            "nothing; `bascule rollback` goes back while the other group is good".to_owned()
        }
        Ending::RolledBack { reason } => {
            lines.push(format!("rolled back at {at}: {}", reason.explain()));
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
    if status.deny.iter().any(|deny| deny.manifest == deployment.manifest) {
        lines.push("its bytes are on the deny-list of this device and will not be tried again".into());
        "publish a corrected bundle; the journal of the failed boot says more (`journalctl -b -1`)".into()
    } else {
        "it says nothing against the bundle: it may be installed again".into()
    }
}
