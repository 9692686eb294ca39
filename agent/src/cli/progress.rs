//! Shows one status after the other: a bar on a terminal, a line per change elsewhere, or JSON lines.

use std::io::IsTerminal;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::text::{clean, json_line, out};
use crate::names::{bytes, transfer};
use crate::shared::Progress;
use crate::status::{StateWord, Status};

const BAR: &str = "{msg} [{wide_bar}] {percent:>3} %  {binary_bytes_per_sec}  {eta} left";

/// Shows changes.
pub(super) struct Reporter {
    way: Way,
    last: String,
    progress: Option<Progress>,
}

enum Way {
    Json,
    Lines,
    /// The bar is there while there is progress to show.
    Bar(Option<ProgressBar>),
}

impl Reporter {
    pub(super) fn new(json: bool) -> Self {
        let terminal = std::io::stdout().is_terminal() && std::io::stderr().is_terminal();
        let way = match (json, terminal) {
            (true, _) => Way::Json,
            (false, false) => Way::Lines,
            (false, true) => Way::Bar(None),
        };
        Reporter { way, last: String::new(), progress: None }
    }

    /// Shows a status, unless it looks like the last one.
    pub(super) fn show(&mut self, status: &Status) {
        if matches!(status.state, StateWord::Prepared | StateWord::Activating | StateWord::Activated) {
            self.summarise();
        }
        let (line, key) = (clean(&status.details), key(status));
        let changed = std::mem::replace(&mut self.last, key.clone()) != key;
        match &mut self.way {
            Way::Json => json_line(status),
            Way::Lines if changed => out(&line),
            Way::Lines => {}
            Way::Bar(bar) => match &status.progress {
                Some(progress) if progress.total_bytes > 0 => {
                    let bar = bar.get_or_insert_with(new_bar);
                    bar.set_message(clean(&progress.step));
                    bar.set_length(progress.total_bytes);
                    bar.set_position(progress.done_bytes);
                }
                _ if changed => {
                    if let Some(bar) = bar.take() {
                        bar.finish_and_clear();
                    }
                    out(&line);
                }
                _ => {}
            },
        }
        self.progress.clone_from(&status.progress);
    }

    /// Says something that is no status.
    pub(super) fn note(&mut self, text: &str) {
        self.finish();
        if !matches!(self.way, Way::Json) {
            out(text);
        }
    }

    /// Takes the bar away.
    pub(super) fn finish(&mut self) {
        if let Way::Bar(bar) = &mut self.way
            && let Some(bar) = bar.take()
        {
            bar.finish_and_clear();
        }
    }

    /// Says what a preparation came to, once it is over.
    fn summarise(&mut self) {
        let Some(progress) = self.progress.take().filter(|progress| progress.total_bytes > 0) else { return };
        self.note(&summary(&progress));
    }
}

fn new_bar() -> ProgressBar {
    let style = ProgressStyle::with_template(BAR).unwrap_or_else(|_| ProgressStyle::default_bar());
    ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr_with_hz(5)).with_style(style.progress_chars("=> "))
}

fn summary(progress: &Progress) -> String {
    let verified = format!("{} verified in the target slots", bytes(progress.total_bytes));
    // The last look may have been before the end: then what was fetched is not known.
    if progress.percent < 100 {
        return verified;
    }
    format!("{verified}: {}", transfer(&progress.transfer()))
}

/// What must change before another line is worth it: every tenth of the progress, every step, everything else.
fn key(status: &Status) -> String {
    match &status.progress {
        Some(progress) => {
            let attempt = status.deployment.as_ref().and_then(|deployment| deployment.attempt);
            let codes: Vec<&str> = status.blocked.iter().map(|blocker| blocker.code.as_str()).collect();
            format!("{} {} {attempt:?} {codes:?}", progress.step, progress.percent / 10)
        }
        None => format!("{} {}", status.state.as_str(), status.details),
    }
}
