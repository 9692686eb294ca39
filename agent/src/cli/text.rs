//! Small things about text on a terminal.

use std::io::{IsTerminal, Write};

use jiff::Timestamp;
use serde::Serialize;

/// Replaces control characters: nothing that came from a bundle or a program may steer the terminal.
pub(super) fn clean(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

/// Prints a value as one line of JSON, at once.
pub(super) fn json_line(value: &impl Serialize) {
    if let Ok(line) = serde_json::to_string(value) {
        out(&line);
    }
}

/// Prints a value as JSON for people and programs.
pub(super) fn json_pretty(value: &impl Serialize) {
    if let Ok(text) = serde_json::to_string_pretty(value) {
        out(&text);
    }
}

/// Prints a line; a reader that has gone away is no failure of the update.
pub(super) fn out(line: &str) {
    let mut stdout = std::io::stdout().lock();
    let _ = writeln!(stdout, "{line}").and_then(|()| stdout.flush());
}

/// A time as people read it.
pub(super) fn time(at: Timestamp) -> String {
    at.strftime("%Y-%m-%d %H:%M:%S UTC").to_string()
}

/// Pads every column but the last to its widest cell; two spaces between columns.
pub(super) fn table(rows: &[Vec<String>]) -> Vec<String> {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max();
    let widths: Vec<usize> = (0..columns).map(|column| width(column).unwrap_or(0)).collect();
    let line = |row: &Vec<String>| {
        let cells: Vec<String> = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        cells.join("  ").trim_end().to_owned()
    };
    rows.iter().map(line).collect()
}

/// Colours, where they are wanted.
#[derive(Debug, Clone, Copy)]
pub(super) struct Paint {
    on: bool,
}

impl Paint {
    /// For standard output.
    pub(super) fn stdout() -> Self {
        Paint { on: wanted(std::io::stdout().is_terminal()) }
    }

    /// For standard error.
    pub(super) fn stderr() -> Self {
        Paint { on: wanted(std::io::stderr().is_terminal()) }
    }

    /// All is well.
    pub(super) fn good(self, text: &str) -> String {
        self.wrap(text, "32")
    }

    /// Something is on its way, or wants to be seen.
    pub(super) fn busy(self, text: &str) -> String {
        self.wrap(text, "33")
    }

    /// Something is wrong.
    pub(super) fn bad(self, text: &str) -> String {
        self.wrap(text, "1;31")
    }

    /// Less important.
    pub(super) fn faint(self, text: &str) -> String {
        self.wrap(text, "2")
    }

    fn wrap(self, text: &str, code: &str) -> String {
        if self.on { format!("\u{1b}[{code}m{text}\u{1b}[0m") } else { text.to_owned() }
    }
}

fn wanted(terminal: bool) -> bool {
    terminal && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let row = |a: &str, b: &str| vec![a.to_owned(), b.to_owned()];
        assert_eq!(table(&[row("a", "1"), row("long", "")]), ["a     1", "long"]);
    }

    #[test]
    fn text_from_outside_cannot_steer_the_terminal() {
        assert_eq!(clean("a\u{1b}[2Jb\nc"), "a [2Jb c");
    }
}
