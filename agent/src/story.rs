//! The story of each deployment: one line for each thing that happened to it, for people and fleets.
//!
//! `deployments/ID.jsonl` below the state directory, one JSON object per line, appended to. Nothing that decides reads
//! it: a line that a power cut tore or lost is a gap in a tale. The record says where an update stands; this says
//! how it came there, with what each health check printed.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use bascule_core::{DeploymentId, Ending, HistoryEntry, Step};
use serde::{Deserialize, Serialize};

use crate::durable;
use crate::names;
use crate::shared::CheckView;

/// The folder below the state directory.
const FOLDER: &str = "deployments";
/// The report of the last update that failed, beside the stories.
const REPORT: &str = "failed.json";
/// From this length of a file on, lines are told without what checks printed; in bytes.
const EVIDENCE_LIMIT: u64 = 192 << 10;
/// No line is added to a file of this length; in bytes.
const FILE_LIMIT: u64 = 256 << 10;

/// One line of a story.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Event {
    /// When, seconds since 1970, as the device's clock said.
    pub at: i64,
    /// Seconds since the start of the boot in which it happened.
    pub uptime: u64,
    /// The boot in which it happened.
    pub boot: String,
    /// The version that was running.
    pub running: String,
    /// What happened, in a word: a step of the record, or `started`, `attempt-failed`, `check-round`, `hook`, `fallback`,
    /// `repaired`.
    pub what: String,
    /// The same for people, with numbers and reasons.
    pub detail: String,
    /// What the health checks said; of a round that was told.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub checks: Vec<CheckView>,
}

/// The stories kept on this device.
#[derive(Debug, Clone)]
pub struct Stories {
    folder: PathBuf,
}

impl Stories {
    /// Those below this state directory.
    #[must_use]
    pub fn new(state: &Path) -> Self {
        Stories { folder: state.join(FOLDER) }
    }

    /// Adds a line. What cannot be told is logged, and nothing else comes of it.
    pub fn tell(&self, id: &DeploymentId, event: &Event) {
        if let Err(error) = self.append(id, event) {
            let error = &error as &(dyn std::error::Error + 'static);
            tracing::warn!(deployment = id.0, error, "a line of the deployment's story is lost");
        }
    }

    fn append(&self, id: &DeploymentId, event: &Event) -> io::Result<()> {
        let path = self.path(&id.0).ok_or(io::ErrorKind::InvalidInput)?;
        fs::create_dir_all(&self.folder)?;
        let mut file = OpenOptions::new().append(true).create(true).mode(0o640).open(path)?;
        let length = file.metadata()?.len();
        // The last quarter is kept for what happens, not for what is said again each time somebody asks for later.
        let again = matches!(event.what.as_str(), "waiting" | "baseline");
        if length >= FILE_LIMIT || (length >= EVIDENCE_LIMIT && again) {
            return Ok(());
        }
        let short = Event { checks: Vec::new(), ..event.clone() };
        // A line that was cut off by the power is ended here: the next one begins on a line of its own.
        let mut line = vec![b'\n'];
        serde_json::to_writer(&mut line, if length < EVIDENCE_LIMIT { event } else { &short })?;
        file.write_all(&line)
    }

    /// The lines of one story, oldest first; none where nothing is known. Lines that cannot be read are left out.
    #[must_use]
    pub fn read(&self, id: &str) -> Vec<Event> {
        let Some(path) = self.path(id) else { return Vec::new() };
        let bytes = durable::read_bounded(&path, 2 * FILE_LIMIT).unwrap_or_default();
        let text = String::from_utf8_lossy(&bytes);
        text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
    }

    /// Forgets every story but these.
    pub fn keep(&self, ids: &[&DeploymentId]) {
        let Ok(entries) = fs::read_dir(&self.folder) else { return };
        for entry in entries.flatten() {
            let name = entry.file_name();
            let id = name.to_str().and_then(|name| name.strip_suffix(".jsonl"));
            if id.is_some_and(|id| ids.iter().all(|kept| id != kept.0)) {
                let _ = fs::remove_file(entry.path());
            }
        }
    }

    /// Leaves the report of a failed update behind as `failed.json`, or takes it away after a good one.
    pub fn report(&self, end: &HistoryEntry) {
        let path = self.folder.join(REPORT);
        let done = match &end.ending {
            Ending::Committed | Ending::Cancelled => match fs::remove_file(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
                _ => Ok(()),
            },
            _ => {
                let report = serde_json::json!({ "end": end, "story": self.read(&end.deployment.id.0) });
                let text = format!("{report:#}\n");
                fs::create_dir_all(&self.folder)
                    .and_then(|()| durable::replace(&path, text.as_bytes()).map_err(|error| error.source))
            }
        };
        if let Err(error) = done {
            let error = &error as &(dyn std::error::Error + 'static);
            tracing::warn!(path = path.display().to_string(), error, "the report of the last update is out of date");
        }
    }

    /// `None` for what cannot be the name of a file.
    fn path(&self, id: &str) -> Option<PathBuf> {
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
        let named = !id.is_empty() && id.len() <= 128 && id.bytes().all(plain);
        named.then(|| self.folder.join(format!("{id}.jsonl")))
    }
}

/// What a step of the record means, for people.
#[must_use]
pub fn step_in_words(step: &Step) -> String {
    match step {
        Step::Preparing(it) => format!(
            "{} {} for group {}, from {}, asked for by {}",
            it.product, it.version, it.target, it.source, it.requested_by
        ),
        Step::NextAttempt => "another attempt to prepare it".into(),
        Step::Prepared(transfer) => format!("written and read back: {}", names::transfer(transfer)),
        Step::Abandoned(Ending::Failed { error }) => format!("[{}] {}", error.code, error.message),
        Step::Abandoned(_) => "given up before the loader was told".into(),
        Step::Activating(_) => "the loader is about to be armed".into(),
        Step::Activated => "the loader is armed".into(),
        Step::Committed => "the loader says good".into(),
        Step::RollingBack(reason) => reason.explain(),
        Step::RollingBackInstalled => "a person goes back to the system before".into(),
        Step::RolledBack => "the old system runs, the new one cannot be started any more".into(),
        Step::Stranded => "the old system does not come up: this one goes on".into(),
        Step::HooksDone => "the hooks of its end have run".into(),
        Step::Allowed(_) => "a person allows it to be tried again".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(what: &str, output: usize) -> Event {
        let check = CheckView {
            name: "app".into(),
            requirement: "required".into(),
            passed: false,
            millis: 3,
            output: "x".repeat(output),
        };
        Event { what: what.into(), checks: vec![check], ..Event::default() }
    }

    #[test]
    fn lines_come_back_in_order_and_a_torn_one_is_left_out() {
        let dir = tempfile::tempdir().unwrap();
        let (stories, id) = (Stories::new(dir.path()), DeploymentId("20260101T000000Z-ab".into()));
        stories.tell(&id, &event("prepared", 1));
        let path = dir.path().join("deployments/20260101T000000Z-ab.jsonl");
        let mut torn = fs::read(&path).unwrap();
        torn.extend(b"\n{\"what\":\"activa");
        fs::write(&path, torn).unwrap();
        stories.tell(&id, &event("committed", 1));
        let told: Vec<_> = stories.read(&id.0).into_iter().map(|event| event.what).collect();
        assert_eq!(told, ["prepared", "committed"]);
    }

    #[test]
    fn a_story_stays_bounded_and_what_happened_outlives_what_was_printed() {
        let dir = tempfile::tempdir().unwrap();
        let (stories, id) = (Stories::new(dir.path()), DeploymentId("1".into()));
        for _ in 0..3000 {
            stories.tell(&id, &event("check-round", 4096));
        }
        let length = fs::metadata(dir.path().join("deployments/1.jsonl")).unwrap().len();
        assert!((EVIDENCE_LIMIT..FILE_LIMIT + 8192).contains(&length), "{length}");
        let told = stories.read("1");
        assert!(!told.first().unwrap().checks.is_empty() && told.last().unwrap().checks.is_empty());
    }

    #[test]
    fn only_what_is_kept_stays_and_no_name_leads_elsewhere() {
        let dir = tempfile::tempdir().unwrap();
        let stories = Stories::new(dir.path());
        let ids = ["1", "2", "3"].map(|id| DeploymentId(id.into()));
        ids.iter().for_each(|id| stories.tell(id, &event("x", 0)));
        stories.keep(&[&ids[1]]);
        assert_eq!(ids.each_ref().map(|id| stories.read(&id.0).len()), [0, 1, 0]);
        fs::write(dir.path().join("secret.jsonl"), "{\"what\":\"secret\"}").unwrap();
        assert!(stories.read("../secret").is_empty());
    }
}
