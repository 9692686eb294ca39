//! One function per command.

use std::path::absolute;
use std::time::Duration;

use bascule_boot::tryboot::TrybootError;
use bascule_core::Blocker;
use serde::Serialize;

use super::client::Client;
use super::failure::CliError;
use super::follow::{Follow, Goal};
use super::progress::Reporter;
use super::text::{Paint, clean, json_line, json_pretty, out, table};
use super::{Cli, ConfigVerb, Exit, HooksVerb, Options, Verb, explain, hooks, show, show_lists, upload};
use crate::api::{AllowRequest, HistoryLine};
use crate::config::{Backend, Config};
use crate::loaders;
use crate::paths::Paths;
use crate::shared::Answer;
use crate::status::{BootSettings, Groups, StateWord, Status};

/// How long the last steps of a command are waited for.
const SETTLING: Duration = Duration::from_secs(10);

pub(super) async fn run(cli: &Cli) -> Result<Exit, CliError> {
    let options = &cli.options;
    let client = options.client();
    match &cli.command {
        Verb::Status { watch: false } => status(options, &client).await,
        Verb::Status { watch: true } => watch(options, &client).await,
        Verb::Check => check(options, &client).await,
        Verb::Plan(argument) => plan(options, &client, &argument.bundle).await,
        Verb::Prepare(argument) => deploy(options, &client, "/v1/prepare", &argument.bundle, Goal::Prepared).await,
        Verb::Install(argument) => deploy(options, &client, "/v1/install", &argument.bundle, Goal::Started).await,
        Verb::Activate => step(options, &client, "/v1/activate", Some(Goal::Started)).await,
        Verb::Rollback => step(options, &client, "/v1/rollback", Some(Goal::GoneBack)).await,
        Verb::Commit => step(options, &client, "/v1/commit", None).await,
        Verb::Cancel => step(options, &client, "/v1/cancel", None).await,
        Verb::Allow { bundle } => allow(options, &client, bundle).await,
        Verb::History => history(options, &client).await,
        Verb::Explain { id } => explain::explain(options, &client, id.as_deref()).await,
        Verb::Slots => slots(options, &client).await,
        Verb::Hooks(HooksVerb::List) => Ok(hooks::show(options)),
        Verb::Hooks(HooksVerb::Run { point, dry_run: _ }) => Ok(hooks::dry_run(options, point)),
        Verb::Config(ConfigVerb::Check) => Ok(config_check(options)),
        Verb::Config(ConfigVerb::Detect) => Ok(config_detect(options)),
    }
}

async fn status(options: &Options, client: &Client) -> Result<Exit, CliError> {
    let status: Status = client.get("/v1/status").await?;
    if options.json {
        json_pretty(&status);
    } else {
        show::status(&status, Paint::stdout()).iter().for_each(|line| out(line));
    }
    Ok(Exit::Done)
}

/// Goes on across a restart of the daemon; ends when it stays away.
async fn watch(options: &Options, client: &Client) -> Result<Exit, CliError> {
    let mut events = client.events().await?;
    let mut reporter = Reporter::new(options.json);
    loop {
        while let Some(status) = events.next().await? {
            reporter.show(&status);
        }
        reporter.note("the daemon has gone away");
        events = match client.events_once_back().await {
            Ok(events) => events,
            Err(_) => return Ok(Exit::TryLater),
        };
    }
}

async fn plan(options: &Options, client: &Client, bundle: &str) -> Result<Exit, CliError> {
    let answer = match bundle {
        "-" => client.command_with("/v1/plan", upload::standard_input()).await?.0,
        named => client.command_on("/v1/plan", source(named)?).await?,
    };
    let Answer::Plan(plan) = answer else { return Ok(Exit::Done) };
    if options.json {
        json_pretty(&plan);
    } else {
        show_lists::plan(&plan, Paint::stdout()).iter().for_each(|line| out(line));
    }
    Ok(match plan.blockers.as_slice() {
        [] => Exit::Done,
        [Blocker { code, .. }] if code == bascule_core::offer::SAME => Exit::NothingToDo,
        _ => Exit::Failed,
    })
}

async fn deploy(options: &Options, client: &Client, path: &str, bundle: &str, goal: Goal) -> Result<Exit, CliError> {
    let (answer, sent) = if bundle == "-" {
        let (answer, sent) = client.command_with(path, upload::standard_input()).await?;
        (answer, Some(sent))
    } else {
        (client.command_on(path, source(bundle)?).await?, None)
    };
    let id = match &answer {
        Answer::Accepted { deployment } => Some(deployment.id.0.clone()),
        _ => None,
    };
    if !options.no_monitor {
        return Follow::new(client, options.json, goal, id).run().await;
    }
    if let Some(sent) = sent {
        // The daemon reads what this process sends: leaving earlier would break the bundle off.
        let _ = sent.await;
    }
    accepted(options, &answer);
    Ok(Exit::Done)
}

fn accepted(options: &Options, answer: &Answer) {
    match answer {
        _ if options.json => json_line(answer),
        Answer::Accepted { deployment: it } => {
            out(&format!("accepted: {} {} into group {}, deployment {}", it.product, it.version, it.target, it.id));
        }
        _ => out("accepted"),
    }
}

/// A command on what is on its way already.
async fn step(options: &Options, client: &Client, path: &str, goal: Option<Goal>) -> Result<Exit, CliError> {
    let before: Status = client.get("/v1/status").await?;
    let answer = client.command(path).await?;
    match goal.filter(|_| !options.no_monitor) {
        Some(goal) => {
            let id = before.deployment.map(|deployment| deployment.id);
            Follow::new(client, options.json, goal, id).run().await
        }
        None if options.no_monitor => {
            accepted(options, &answer);
            Ok(Exit::Done)
        }
        None => {
            let after = settled(client, before).await?;
            if options.json {
                json_line(&after)
            } else {
                out(&clean(&after.details))
            }
            Ok(Exit::Done)
        }
    }
}

/// The status once what was on its way is decided: the answer to a command may come before its last step.
async fn settled(client: &Client, before: Status) -> Result<Status, CliError> {
    let mut last = before;
    let decided = async {
        let mut events = client.events().await?;
        while let Some(status) = events.next().await? {
            last = status;
            if matches!(last.state, StateWord::Idle | StateWord::RollingBack) {
                break;
            }
        }
        Ok(())
    };
    match tokio::time::timeout(SETTLING, decided).await {
        Ok(Err(error)) => Err(error),
        Ok(Ok(())) | Err(_) => Ok(last),
    }
}

async fn allow(options: &Options, client: &Client, bundle: &str) -> Result<Exit, CliError> {
    let answer = client.command_with_json("/v1/allow", &AllowRequest { bundle: bundle.to_owned() }).await?;
    if options.json {
        json_line(&answer)
    } else {
        out(&format!("{bundle} may be tried again"))
    }
    Ok(Exit::Done)
}

async fn history(options: &Options, client: &Client) -> Result<Exit, CliError> {
    let lines: Vec<HistoryLine> = client.get("/v1/history").await?;
    if options.json {
        json_pretty(&lines);
    } else {
        show_lists::history(&lines, Paint::stdout()).iter().for_each(|line| out(line));
    }
    Ok(Exit::Done)
}

async fn slots(options: &Options, client: &Client) -> Result<Exit, CliError> {
    if options.json {
        json_pretty(&client.get::<Groups>("/v1/slots").await?);
    } else {
        let status: Status = client.get("/v1/status").await?;
        show_lists::slots(&status).iter().for_each(|line| out(line));
    }
    Ok(Exit::Done)
}

/// A URL as it is; a path made absolute, because the daemon has another working directory.
fn source(bundle: &str) -> Result<String, CliError> {
    if bundle.starts_with("http://") || bundle.starts_with("https://") {
        return Ok(bundle.to_owned());
    }
    let path = absolute(bundle).map_err(|source| CliError::Path { path: bundle.to_owned(), source })?;
    Ok(path.display().to_string())
}

fn config_check(options: &Options) -> Exit {
    let paths = Paths::under(&options.root);
    match Config::load(&paths) {
        Ok(config) if options.json => json_pretty(&serde_json::json!({ "ok": true, "faults": [], "config": config })),
        Ok(_) => out(&format!("{}: no fault found", paths.config().display())),
        Err(error) => {
            if options.json {
                json_pretty(&serde_json::json!({ "ok": false, "faults": error.faults }));
            } else {
                let paint = Paint::stderr();
                for fault in &error.faults {
                    let text = clean(&fault.to_string());
                    eprintln!("{} [{}] {text}\n  hint: {}", paint.bad("error:"), fault.code, clean(&fault.hint));
                }
            }
            return Exit::Failed;
        }
    }
    Exit::Done
}

/// Which loader is found, whatever the configuration says; and which one is used.
fn config_detect(options: &Options) -> Exit {
    let paths = Paths::under(&options.root);
    let Ok(config) = Config::load(&paths) else { return config_check(options) };
    let marks = loaders::look(&paths, &config.boot);
    let found: Vec<&str> = marks.iter().filter(|mark| mark.found).map(|mark| mark.backend.name()).collect();
    let configured = config.boot.backend;
    let only = match marks.iter().filter(|mark| mark.found).collect::<Vec<_>>().as_slice() {
        [only] => Some(only.backend),
        _ => None,
    };
    let used = configured.or(only);
    // Where the configuration names the loader, this is a fault of the configuration.
    let lacks = used.and_then(Backend::needs_role).filter(|role| !config.slots.contains_key(*role));
    let name = |backend: Option<Backend>| backend.map(Backend::name);
    if options.json {
        let (used, configured) = (name(used), name(configured));
        json_pretty(
            &serde_json::json!({ "used": used, "configured": configured, "loaders": marks, "lacks_slots": lacks }),
        );
    } else {
        for mark in &marks {
            let sign = if mark.found { "found" } else { "-" };
            out(&format!("{:12}  {sign:5}  {}", mark.backend.name(), clean(&mark.why)));
        }
        match (name(configured), name(used)) {
            (Some(configured), _) => out(&format!("used: {configured}, as `backend` under [boot] says")),
            (None, Some(used)) => out(&format!("used: {used}, the only one that is found")),
            (None, None) if found.is_empty() => out("none is found: is the boot partition mounted?"),
            (None, None) => out(&format!("{} are found: set `backend` under [boot] to one", found.join(" and "))),
        }
        if let Some(role) = lacks {
            out(&format!("[slots.{role}] is missing: {}", TrybootError::NoSlots.hint()));
        }
    }
    if used.is_some() && lacks.is_none() { Exit::Done } else { Exit::Failed }
}

/// One thing that `check` looked at.
#[derive(Debug, Serialize)]
struct Finding {
    ok: bool,
    retryable: bool,
    subject: &'static str,
    message: String,
    hint: String,
}

impl Finding {
    fn good(subject: &'static str, message: impl Into<String>) -> Self {
        Finding { ok: true, retryable: false, subject, message: message.into(), hint: String::new() }
    }

    /// Nothing that stands in the way; the hint says what to do about it.
    fn warning(subject: &'static str, message: impl Into<String>, hint: impl Into<String>) -> Self {
        Finding { hint: hint.into(), ..Finding::good(subject, message) }
    }

    fn bad(subject: &'static str, message: impl Into<String>, hint: impl Into<String>) -> Self {
        Finding { ok: false, retryable: false, subject, message: message.into(), hint: hint.into() }
    }
}

async fn check(options: &Options, client: &Client) -> Result<Exit, CliError> {
    let mut findings = vec![match Config::load(&Paths::under(&options.root)) {
        Ok(_) => Finding::good("configuration", "no fault found"),
        Err(error) => {
            let faults: Vec<String> = error.faults.iter().map(ToString::to_string).collect();
            Finding::bad("configuration", faults.join("; "), "`bascule config check` explains every fault")
        }
    }];
    match client.get::<Status>("/v1/status").await {
        Ok(status) => {
            findings.extend(look_at(&status));
            findings.extend(in_the_way(client, &status).await);
        }
        Err(error) => {
            let refused = error.refused();
            findings.push(Finding::bad("daemon", refused.error.message, refused.error.hint));
            let disks = |blocker: Blocker| {
                Finding::bad("disks", format!("[{}] {}", blocker.code, blocker.reason), blocker.hint)
            };
            findings.extend(refused.blockers.into_iter().map(disks));
        }
    }
    report(options, &findings);
    let faults: Vec<&Finding> = findings.iter().filter(|finding| !finding.ok).collect();
    Ok(match faults.as_slice() {
        [] => Exit::Done,
        faults if faults.iter().all(|fault| fault.retryable) => Exit::TryLater,
        _ => Exit::Failed,
    })
}

/// What the daemon finds in the way; only root may ask.
async fn in_the_way(client: &Client, status: &Status) -> Vec<Finding> {
    let blockers = match client.command("/v1/check").await {
        Ok(Answer::Checked { blockers }) => blockers,
        Ok(_) => Vec::new(),
        Err(error) => {
            let refused = error.refused();
            return vec![Finding::bad("conditions", refused.error.message, refused.error.hint)];
        }
    };
    if blockers.is_empty() {
        return vec![Finding::good("conditions", "slots, loader, space, power, locks and hooks: nothing in the way")];
    }
    // What the state says is said already.
    let new = blockers
        .into_iter()
        .filter(|blocker| !blocker.code.starts_with("request.") && !status.blocked.contains(blocker));
    new.map(|blocker| Finding {
        retryable: blocker.may_pass(),
        ..Finding::bad("conditions", format!("[{}] {}", blocker.code, blocker.reason), blocker.hint)
    })
    .collect()
}

fn look_at(status: &Status) -> Vec<Finding> {
    let mut found = vec![Finding::good("daemon", format!("answers, version {}", status.agent))];
    found.push(match status.boot_settings {
        BootSettings::Intact => Finding::good("boot settings", "intact"),
        BootSettings::Damaged => Finding::bad("boot settings", "damaged", "the daemon rebuilds them: look again soon"),
        BootSettings::Unknown => Finding::bad("boot settings", "cannot be read", "is the boot partition mounted?"),
    });
    found.push(match status.state {
        StateWord::Idle => Finding::good("state", "an update may begin"),
        StateWord::Prepared => Finding::good("state", "a bundle is prepared; another one may take its place"),
        StateWord::Newer | StateWord::Unreadable => {
            let hint = status.error.as_ref().map_or("update this system's agent", |error| &error.hint);
            Finding::bad("state", status.details.clone(), hint)
        }
        _ => Finding {
            retryable: true,
            ..Finding::bad("state", status.details.clone(), "wait for it: `bascule status --watch`")
        },
    });
    found.extend(status.blocked.iter().map(|blocker| Finding {
        retryable: true,
        ..Finding::bad("waiting", format!("[{}] {}", blocker.code, blocker.reason), blocker.hint.clone())
    }));
    found.extend(status.warnings.iter().map(|warning| {
        Finding::warning("warning", format!("[{}] {}", warning.code, warning.reason), warning.hint.clone())
    }));
    let failing = status.checks.iter().filter(|check| !check.passed && check.requirement == "required");
    found.extend(failing.map(|check| {
        Finding::bad("health", format!("{} fails: {}", check.name, check.output), "look at what the check needs")
    }));
    found
}

fn report(options: &Options, findings: &[Finding]) {
    if options.json {
        let ok = findings.iter().all(|finding| finding.ok);
        return json_pretty(&serde_json::json!({ "ok": ok, "findings": findings }));
    }
    let row = |finding: &Finding| {
        let mark = match (finding.ok, finding.hint.as_str()) {
            (true, "") => "ok",
            (true, _) => "warn",
            (false, _) => "FAIL",
        };
        vec![mark.to_owned(), finding.subject.to_owned(), clean(&finding.message)]
    };
    let paint = Paint::stdout();
    let rows: Vec<Vec<String>> = findings.iter().map(row).collect();
    for (line, finding) in table(&rows).iter().zip(findings) {
        out(&if finding.ok { line.clone() } else { line.replacen("FAIL", &paint.bad("FAIL"), 1) });
        if !finding.hint.is_empty() {
            out(&format!("      hint: {}", clean(&finding.hint)));
        }
    }
}
