//! `bascule hooks`: which hooks there are, and what would run at one point. Needs no daemon and runs nothing.

use bascule_hooks::HookPoint;
use bascule_hooks::hooks::{CONTEXT_JSON_SCHEMA, list};

use super::text::{clean, json_pretty, out, table};
use super::{Exit, Options};

/// Lists every point that has hooks, in the order an update comes by them.
pub(super) fn show(options: &Options) -> Exit {
    let points = list(&[&options.root]);
    if options.json {
        json_pretty(&points);
        return Exit::Done;
    }
    let mut rows = Vec::new();
    for point in &points {
        for hook in &point.hooks {
            let fault = hook.fault.as_ref().map_or_else(String::new, |fault| format!("cannot run: {fault}"));
            rows.push(vec![point.point.to_string(), clean(&hook.hook), hook.path.display().to_string(), clean(&fault)]);
        }
        rows.extend(point.faults.iter().map(|fault| vec![point.point.to_string(), String::new(), clean(fault)]));
    }
    if rows.is_empty() {
        out("no hooks");
    }
    table(&rows).iter().for_each(|line| out(line));
    let fails =
        points.iter().any(|point| !point.faults.is_empty() || point.hooks.iter().any(|hook| hook.fault.is_some()));
    if fails { Exit::Failed } else { Exit::Done }
}

/// Says what would run at one point, and with which context; nothing is run.
pub(super) fn dry_run(options: &Options, point: &str) -> Exit {
    let mut points = list(&[&options.root]);
    points.retain(|listed| listed.point.name() == point);
    if options.json {
        json_pretty(&points);
        return Exit::Done;
    }
    let hooks: Vec<_> = points.iter().flat_map(|listed| &listed.hooks).collect();
    if hooks.is_empty() {
        out(&format!("no hooks at {point}"));
    }
    for hook in &hooks {
        let line = match &hook.runs {
            Some(path) => format!("would run {}", path.display()),
            None => format!("cannot run {}: {}", hook.path.display(), hook.fault.as_deref().unwrap_or_default()),
        };
        out(&clean(&line));
    }
    if !hooks.is_empty() {
        out(&format!(
            "with BASCULE_HOOK_POINT={point}, BASCULE_DEPLOYMENT, and BASCULE_CONTEXT naming a file of this form:"
        ));
        out(CONTEXT_JSON_SCHEMA.trim_end());
    }
    if hooks.iter().any(|hook| hook.fault.is_some()) { Exit::Failed } else { Exit::Done }
}

/// The names of all points, for the command line.
pub(super) fn names() -> Vec<&'static str> {
    HookPoint::ALL.into_iter().map(HookPoint::name).collect()
}
