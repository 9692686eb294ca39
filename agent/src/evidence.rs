//! What is left behind that tells why a system did not come up: the kernel's last words, the hardware watchdog, the
//! journal of that boot where it lies on a disk that both systems share.

use std::fs;
use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use bascule_hooks::output::neutralise;
use bascule_hooks::runner::{self, Command, Limits};

use crate::durable;
use crate::paths::Paths;
use crate::story::Event;

/// The longest line that is kept, in characters.
const LINE_LIMIT: usize = 200;
/// No file looked at here is longer, in bytes.
const FILE_LIMIT: u64 = 1 << 20;
/// How long the journal may take to answer.
const JOURNAL_DEADLINE: Duration = Duration::from_secs(10);
/// `WDIOF_CARDRESET` of the kernel's watchdog interface: the card had reset the device.
const CARD_RESET: u32 = 0x20;

/// Everything that is found, one line each. `story` is that of the deployment that did not come up.
#[must_use]
pub fn gather(paths: &Paths, story: &[Event], version: &str) -> Vec<String> {
    let mut lines = last_words(paths);
    lines.extend(watchdogs(paths));
    lines.extend(journal(paths, story, version));
    lines.into_iter().map(|line| neutralise(&line).chars().take(LINE_LIMIT).collect()).collect()
}

/// What the kernel could write to a place that survives a reset.
fn last_words(paths: &Paths) -> Vec<String> {
    let said = |path: &Path| {
        let text = String::from_utf8_lossy(&durable::read_bounded(path, FILE_LIMIT).ok()?).into_owned();
        let telling =
            |line: &&str| ["Kernel panic", "BUG:", "Oops", "not syncing"].iter().any(|word| line.contains(word));
        let line = text.lines().find(telling).or_else(|| text.lines().last())?.trim().to_owned();
        Some(format!("the kernel's last words: {line}"))
    };
    let folders = [paths.pstore(), paths.kept_pstore()];
    let mut files: Vec<_> =
        folders.iter().flat_map(|folder| fs::read_dir(folder).into_iter().flatten().flatten()).collect();
    files.sort_by_key(fs::DirEntry::path);
    files.iter().filter_map(|file| said(&file.path())).take(3).collect()
}

fn watchdogs(paths: &Paths) -> Vec<String> {
    let entries = fs::read_dir(paths.watchdogs()).into_iter().flatten().flatten();
    let reset = entries.filter(|entry| {
        let text = fs::read_to_string(entry.path().join("bootstatus")).unwrap_or_default();
        text.trim().parse::<u32>().is_ok_and(|status| status & CARD_RESET != 0)
    });
    reset.map(|entry| format!("the hardware watchdog {} had reset the device", entry.file_name().display())).collect()
}

/// Errors of the last boot of that version that told anything, where this system's journal knows that boot.
fn journal(paths: &Paths, story: &[Event], version: &str) -> Vec<String> {
    let boot = story.iter().rev().find(|event| event.running == version && !event.boot.is_empty());
    let (Some(boot), true) = (boot, paths.is_real()) else { return Vec::new() };
    let arguments = ["--priority=err", "--lines=3", "--output=cat", "--no-pager", "--quiet"];
    let command = Command::new("journalctl").arg(format!("--boot={}", boot.boot.replace('-', "")));
    let command = arguments.iter().fold(command, |command, argument| command.arg(*argument));
    let outcome = runner::run(&command, &Limits::within(JOURNAL_DEADLINE), &AtomicBool::new(false));
    if !outcome.succeeded() {
        return Vec::new();
    }
    outcome.output_tail.lines().filter(|line| !line.is_empty()).map(|line| format!("its journal: {line}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(path: &Path, text: &str) {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    #[test]
    fn a_panic_and_a_reset_by_the_watchdog_are_found_and_nothing_else_is_made_up() {
        let dir = tempfile::tempdir().unwrap();
        let paths = Paths::under(dir.path());
        assert!(gather(&paths, &[], "2").is_empty());
        let dump =
            "Panic#1 Part1\n<6>[ 1.0] all is well\n<0>[ 1.2] Kernel panic - not syncing: No working init\u{1b}[31m\n";
        write(&paths.pstore().join("dmesg-efi-1"), dump);
        write(&paths.watchdogs().join("watchdog0/bootstatus"), "32\n");
        write(&paths.watchdogs().join("watchdog1/bootstatus"), "0\n");
        let lines = gather(&paths, &[], "2");
        assert_eq!(lines.len(), 2, "{lines:?}");
        assert!(lines[0].contains("Kernel panic - not syncing: No working init") && !lines[0].contains('\u{1b}'));
        assert_eq!(lines[1], "the hardware watchdog watchdog0 had reset the device");
    }
}
