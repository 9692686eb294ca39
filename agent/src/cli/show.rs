//! `status`, for people.

use super::text::{Paint, clean, table, time};
use crate::names::{bytes, transfer};
use crate::shared::CheckView;
use crate::status::{DeploymentStatus, GroupStatus, GroupWord, StateWord, Status};
use bascule_core::{Blocker, Group};

/// The lines of `status`: a label at the left, what it is about at the right.
pub(super) fn status(status: &Status, paint: Paint) -> Vec<String> {
    let mut lines = Vec::new();
    let word = status.state.as_str();
    let word = match status.state {
        StateWord::Idle | StateWord::Prepared => paint.good(word),
        StateWord::Newer | StateWord::Unreadable => paint.bad(word),
        _ => paint.busy(word),
    };
    block(&mut lines, "state", vec![word, clean(&status.details)]);
    let groups: Vec<Vec<String>> = Group::ALL.into_iter().map(|group| group_row(status, group)).collect();
    block(&mut lines, "groups", table(&groups));
    if let Some(deployment) = &status.deployment {
        block(&mut lines, "update", deployment_lines(deployment));
    }
    if let Some(progress) = &status.progress {
        let (done, total) = (bytes(progress.done_bytes), bytes(progress.total_bytes));
        let amounts = transfer(&progress.transfer());
        let line = format!("{} %  {done} of {total}  {}  ({amounts})", progress.percent, clean(&progress.step));
        block(&mut lines, "progress", vec![line]);
    }
    if let Some(deadline) = status.deadline {
        block(&mut lines, "deadline", vec![format!("{}, then it is rolled back", time(deadline))]);
    }
    if !status.checks.is_empty() {
        block(&mut lines, "checks", checks(&status.checks, paint));
    }
    for blocker in &status.blocked {
        block(&mut lines, "waiting", blocker_lines(blocker));
    }
    for warning in &status.warnings {
        let said = format!("[{}] {}", clean(&warning.code), clean(&warning.reason));
        block(&mut lines, "warning", vec![said, format!("hint: {}", clean(&warning.hint))]);
    }
    if let Some(error) = &status.error {
        let mut text = vec![format!("[{}] {}", clean(&error.code), clean(&error.message))];
        text.extend(error.cause.iter().map(|cause| format!("caused by: {}", clean(cause))));
        text.push(format!("hint: {}", clean(&error.hint)));
        block(&mut lines, "error", text);
    }
    if !status.deny.is_empty() {
        let row = |deny: &crate::status::Deny| vec![clean(&deny.version), deny.manifest.short(), clean(&deny.reason)];
        block(&mut lines, "denied", table(&status.deny.iter().map(row).collect::<Vec<_>>()));
    }
    lines
}

fn block(lines: &mut Vec<String>, label: &str, text: Vec<String>) {
    for (number, line) in text.into_iter().enumerate() {
        let label = if number == 0 { label } else { "" };
        lines.push(format!("{label:>8}  {line}").trim_end().to_owned());
    }
}

fn group_row(status: &Status, group: Group) -> Vec<String> {
    let it = status.groups.get(group);
    let mut roles = Vec::new();
    if status.booted == group {
        roles.push("booted");
    }
    if status.primary == Some(group) {
        roles.push("primary");
    }
    let version = it.version.clone().unwrap_or_else(|| "-".into());
    vec![group.letter().to_owned(), clean(&version), group_word(it), roles.join(", ")]
}

/// What the loader may do with a group, with the tries it has left.
pub(super) fn group_word(group: &GroupStatus) -> String {
    match (group.status, group.tries_left) {
        (GroupWord::Trial, Some(1)) => "trial, 1 try left".into(),
        (GroupWord::Trial, Some(left)) => format!("trial, {left} tries left"),
        (word, _) => word.as_str().into(),
    }
}

fn deployment_lines(it: &DeploymentStatus) -> Vec<String> {
    let change = format!("{} {} -> {}, into group {}", it.product, it.from_version, it.version, it.target);
    let attempt = it.attempt.filter(|attempt| *attempt > 1).map_or(String::new(), |n| format!(", attempt {n}"));
    let mut lines = vec![
        clean(&format!("{change}{attempt}")),
        clean(&format!("from {}", if it.source == "-" { "standard input" } else { &it.source })),
        clean(&format!("asked for by {} at {}, id {}", it.requested_by, time(it.began), it.id)),
    ];
    lines.extend(it.transfer.as_ref().map(|it| clean(&transfer(it))));
    lines
}

fn checks(checks: &[CheckView], paint: Paint) -> Vec<String> {
    let row = |check: &CheckView| {
        let mark = if check.passed { "ok" } else { "FAIL" };
        let last = check.output.lines().last().unwrap_or_default();
        let (requirement, millis) = (check.requirement.clone(), format!("{} ms", check.millis));
        vec![mark.to_owned(), clean(&check.name), requirement, millis, clean(last)]
    };
    let rows: Vec<Vec<String>> = checks.iter().map(row).collect();
    table(&rows).into_iter().map(|line| line.replacen("FAIL", &paint.bad("FAIL"), 1)).collect()
}

fn blocker_lines(blocker: &Blocker) -> Vec<String> {
    let mut text = vec![format!("[{}] {}", clean(&blocker.code), clean(&blocker.reason))];
    if !blocker.hint.is_empty() {
        text.push(format!("hint: {}", clean(&blocker.hint)));
    }
    text
}
