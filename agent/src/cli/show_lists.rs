//! `history`, `slots` and `plan`, for people.

use bascule_core::{Ending, Group};

use super::show::group_word;
use super::text::{Paint, clean, table, time};
use crate::api::HistoryLine;
use crate::names::{bytes, transfer};
use crate::shared::Plan;
use crate::status::Status;

/// One line per ending, newest first.
pub(super) fn history(lines: &[HistoryLine], paint: Paint) -> Vec<String> {
    if lines.is_empty() {
        return vec!["nothing has happened yet".into()];
    }
    let row = |line: &HistoryLine| {
        let it = &line.entry.deployment;
        let (word, why) = ending(&line.entry.ending);
        let change = clean(&format!("{} -> {}", it.from_version, it.version));
        let moved = it.transfer.as_ref().map_or_else(String::new, transfer);
        vec![time(line.time), change, format!("group {}", it.target), word.to_owned(), clean(&moved), clean(&why)]
    };
    let text = table(&lines.iter().map(row).collect::<Vec<_>>());
    let colour = |(text, line): (String, &HistoryLine)| {
        let (word, _) = ending(&line.entry.ending);
        let painted = if line.entry.ending == Ending::Committed { paint.good(word) } else { paint.busy(word) };
        text.replacen(word, &painted, 1)
    };
    text.into_iter().zip(lines).map(colour).collect()
}

/// How a deployment ended, in words, and why.
pub(super) fn ending(ending: &Ending) -> (&'static str, String) {
    match ending {
        Ending::Committed => ("committed", String::new()),
        Ending::RolledBack { reason } => ("rolled back", reason.explain()),
        Ending::Failed { error } => ("failed", format!("[{}] {}", error.code, error.message)),
        Ending::Cancelled => ("cancelled", String::new()),
        Ending::Stranded { reason } => ("stranded", reason.explain()),
        Ending::Unknown => ("unknown", "a newer agent wrote this line".into()),
    }
}

/// Every slot of both groups.
pub(super) fn slots(status: &Status) -> Vec<String> {
    let heading = ["group", "role", "version", "loader", "size", "device", "partition"].map(str::to_owned).to_vec();
    let mut rows = vec![heading];
    for group in Group::ALL {
        let it = status.groups.get(group);
        let mark = if status.booted == group { format!("{group} *") } else { group.to_string() };
        let version = it.version.clone().map_or_else(|| "-".into(), |version| clean(&version));
        rows.extend(it.slots.iter().map(|slot| {
            let (role, size) = (slot.role.clone(), bytes(slot.size));
            let (device, partition) = (slot.device.clone(), slot.partuuid.clone());
            vec![mark.clone(), role, version.clone(), group_word(it), size, device, partition]
        }));
    }
    let mut lines = table(&rows);
    lines.push("* booted".into());
    lines
}

fn by_delta(plan: &Plan) -> String {
    plan.base.as_ref().map_or_else(String::new, |base| clean(&format!(", by delta from {base}")))
}

/// What would happen.
pub(super) fn plan(plan: &Plan, paint: Paint) -> Vec<String> {
    let offer = &plan.offer;
    let mut lines = vec![
        clean(&format!("{} {} (order {}) into group {}", offer.product, offer.version, offer.order, plan.target)),
        format!("  fetch  {}{}", bytes(plan.fetch_bytes), by_delta(plan)),
        format!("  write  {}, {} of it zeroes", bytes(plan.write_bytes), bytes(plan.zero_bytes)),
        String::new(),
    ];
    lines.extend(plan.steps.iter().enumerate().map(|(n, step)| clean(&format!("  {}. {step}", n.saturating_add(1)))));
    lines.push(String::new());
    if plan.blockers.is_empty() {
        lines.push(paint.good("nothing is in the way"));
    }
    for blocker in &plan.blockers {
        lines.push(format!("{} [{}] {}", paint.bad("blocked:"), clean(&blocker.code), clean(&blocker.reason)));
        lines.push(format!("  hint: {}", clean(&blocker.hint)));
    }
    lines
}
