//! Log records in the journal: structured fields for programs, and a message that a person can read alone.

use log::kv::{Key, Source, Value, VisitSource};
use log::{Log, Metadata, Record};
use systemd_journal_logger::JournalLog;

use super::stderr;

/// The field that holds the constant text of an event, for those who search by it.
const EVENT: &str = "event";

/// Sends each record with all its fields; its message says them too, as `journalctl` and the console show nothing else.
pub(super) struct ReadableJournal {
    journal: JournalLog,
}

impl ReadableJournal {
    pub(super) fn new(journal: JournalLog) -> Self {
        ReadableJournal { journal }
    }
}

impl Log for ReadableJournal {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        self.journal.enabled(metadata)
    }

    fn log(&self, record: &Record<'_>) {
        let text = stderr::text(record);
        let event = record.args().to_string();
        let fields = WithEvent { fields: record.key_values(), event: &event };
        self.journal.log(&record.to_builder().args(format_args!("{text}")).key_values(&fields).build());
    }

    fn flush(&self) {
        self.journal.flush();
    }
}

struct WithEvent<'r> {
    fields: &'r dyn Source,
    event: &'r str,
}

impl Source for WithEvent<'_> {
    fn visit<'kvs>(&'kvs self, visitor: &mut dyn VisitSource<'kvs>) -> Result<(), log::kv::Error> {
        visitor.visit_pair(Key::from_str(EVENT), Value::from(self.event))?;
        self.fields.visit(visitor)
    }
}
