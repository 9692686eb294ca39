//! Log lines on the standard error stream.

use std::fmt::Write as _;
use std::io::{IsTerminal, Write as _};

use log::kv::{Error, Key, Value, VisitSource};
use log::{Level, Log, Metadata, Record};

/// How a line is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Style {
    /// `<4>message key=value`: systemd reads the priority.
    Prefixed,
    /// `WARN  message key=value`.
    Readable,
}

/// Writes each record as one line.
pub(super) struct StderrLog {
    style: Style,
}

impl StderrLog {
    pub(super) fn new() -> Self {
        let style = if std::io::stderr().is_terminal() { Style::Readable } else { Style::Prefixed };
        StderrLog { style }
    }
}

impl Log for StderrLog {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &Record<'_>) {
        let line = line(self.style, record);
        // Nobody is left to hear of a broken standard error stream.
        let _ = std::io::stderr().write_all(line.as_bytes());
    }

    fn flush(&self) {}
}

fn line(style: Style, record: &Record<'_>) -> String {
    let mut line = match style {
        Style::Prefixed => format!("<{}>", priority(record.level())),
        Style::Readable => format!("{:5} ", record.level()),
    };
    line.push_str(&text(record));
    line.push('\n');
    line
}

/// What a record says, with its fields, in one line whatever they hold.
pub(super) fn text(record: &Record<'_>) -> String {
    let mut text = record.args().to_string();
    let _ = record.key_values().visit(&mut Pairs(&mut text));
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

fn priority(level: Level) -> u8 {
    match level {
        Level::Error => 3,
        Level::Warn => 4,
        Level::Info => 5,
        Level::Debug => 6,
        Level::Trace => 7,
    }
}

struct Pairs<'a>(&'a mut String);

impl<'kvs> VisitSource<'kvs> for Pairs<'_> {
    fn visit_pair(&mut self, key: Key<'kvs>, value: Value<'kvs>) -> Result<(), Error> {
        let text = value.to_string();
        let quoted = text.is_empty() || text.contains(|c: char| c.is_whitespace() || c == '"');
        let _ = if quoted { write!(self.0, " {key}={text:?}") } else { write!(self.0, " {key}={text}") };
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_carries_priority_and_fields_and_stays_one_line() {
        let fields = [("slot", "b"), ("said", "two words\n<0>forged")];
        let record = Record::builder().args(format_args!("a\nb")).level(Level::Warn).key_values(&fields).build();
        assert_eq!(line(Style::Prefixed, &record), "<4>a b slot=b said=\"two words\\n<0>forged\"\n");
        assert!(line(Style::Readable, &record).starts_with("WARN  a b slot=b"));
    }
}
