//! From tracing events to the journal.
//!
//! Each event, with the fields of the spans around it, becomes one [`log::Record`] with key-values, which
//! systemd-journal-logger sends as structured fields. Where the standard error stream does not end in the journal, the
//! same goes there: with a `<N>` priority that systemd understands, or readable on a terminal.

mod journal;
mod layer;
mod stderr;

use systemd_journal_logger::{JournalLog, connected_to_journal};
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::{Layer, Registry};

use crate::config::LogLevel;
use journal::ReadableJournal;
use layer::LogLayer;
use stderr::StderrLog;

/// The name under which the journal keeps what is logged.
const IDENTIFIER: &str = "basculed";

/// Sends everything of `level` and above to the journal, or to the standard error stream where that leads elsewhere.
///
/// The second call in one process changes nothing.
pub fn init(level: LogLevel) {
    let journal = if connected_to_journal() { JournalLog::empty().ok() } else { None };
    let sink: Box<dyn log::Log> = match journal {
        Some(journal) => Box::new(ReadableJournal::new(journal.with_syslog_identifier(IDENTIFIER.to_owned()))),
        None => Box::new(StderrLog::new()),
    };
    let layer = LogLayer::new(sink).with_filter(filter(level));
    // An error means that a subscriber is there already: that one stays.
    let _ = tracing::subscriber::set_global_default(Registry::default().with(layer));
}

fn filter(level: LogLevel) -> LevelFilter {
    match level {
        LogLevel::Error => LevelFilter::ERROR,
        LogLevel::Warn => LevelFilter::WARN,
        LogLevel::Info => LevelFilter::INFO,
        LogLevel::Debug => LevelFilter::DEBUG,
        LogLevel::Trace => LevelFilter::TRACE,
    }
}
