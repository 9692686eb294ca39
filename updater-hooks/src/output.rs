//! The last part of a child's output, bounded and with nothing in it that moves a terminal.

use std::collections::VecDeque;

/// How much of a child's output is kept: its end, in bytes.
pub const OUTPUT_LIMIT: usize = 64 * 1024;

/// How long a line quoted as a reason may be, in characters.
pub const REASON_LIMIT: usize = 200;

/// Keeps the last [`OUTPUT_LIMIT`] bytes of what is put in, and counts what was let go.
#[derive(Debug, Default)]
pub struct Tail {
    bytes: VecDeque<u8>,
    dropped: u64,
}

impl Tail {
    /// Puts more output at the end; the oldest bytes beyond the limit go.
    pub fn push(&mut self, more: &[u8]) {
        let skipped = more.len().saturating_sub(OUTPUT_LIMIT);
        let kept = more.get(skipped..).unwrap_or_default();
        let room = OUTPUT_LIMIT.saturating_sub(kept.len());
        let excess = self.bytes.len().saturating_sub(room);
        self.bytes.drain(..excess);
        self.bytes.extend(kept);
        self.dropped = self.dropped.saturating_add((skipped as u64).saturating_add(excess as u64));
    }

    /// How many bytes were let go because there was more than the limit.
    #[must_use]
    pub fn dropped(&self) -> u64 {
        self.dropped
    }

    /// What was kept, as harmless text of at most [`OUTPUT_LIMIT`] bytes.
    #[must_use]
    pub fn into_text(self) -> String {
        let bytes: Vec<u8> = self.bytes.into();
        end_of(&neutralise(&String::from_utf8_lossy(&bytes)), OUTPUT_LIMIT).to_owned()
    }
}

/// The end of `text`, at most `limit` bytes of it, cut between two characters.
#[must_use]
pub fn end_of(text: &str, limit: usize) -> &str {
    let mut start = text.len().saturating_sub(limit);
    while !text.is_char_boundary(start) {
        start += 1;
    }
    text.get(start..).unwrap_or_default()
}

/// Replaces every character that a terminal or a log reader would obey: control characters become their visible
/// pictures (`ESC` becomes `␛`), direction marks and other controls become `\u{FFFD}`. Line feeds and tabs stay.
#[must_use]
pub fn neutralise(text: &str) -> String {
    text.replace("\r\n", "\n").chars().map(neutral).collect()
}

/// The last line of `text` that is not blank, cut to [`REASON_LIMIT`] characters.
#[must_use]
pub fn last_line(text: &str) -> Option<String> {
    let line = text.lines().rev().map(str::trim).find(|line| !line.is_empty())?;
    Some(line.chars().take(REASON_LIMIT).collect())
}

fn neutral(character: char) -> char {
    match character {
        '\n' | '\t' => character,
        '\u{0}'..='\u{1f}' => {
            char::from_u32(0x2400_u32.saturating_add(u32::from(character))).unwrap_or(char::REPLACEMENT_CHARACTER)
        }
        '\u{7f}' => '\u{2421}',
        '\u{80}'..='\u{9f}'
        | '\u{61c}'
        | '\u{200b}'..='\u{200f}'
        | '\u{2028}'..='\u{202e}'
        | '\u{2060}'..='\u{2069}'
        | '\u{feff}' => char::REPLACEMENT_CHARACTER,
        _ => character,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_the_output_is_kept_and_the_rest_counted() {
        let mut tail = Tail::default();
        for _ in 0..1000 {
            tail.push(&[b'x'; 100]);
        }
        tail.push(b"the end");
        assert_eq!(tail.dropped(), 100_007 - OUTPUT_LIMIT as u64);
        let text = tail.into_text();
        assert_eq!(text.len(), OUTPUT_LIMIT);
        assert!(text.ends_with("xxthe end"));
    }

    #[test]
    fn one_piece_larger_than_the_limit_keeps_its_end() {
        let mut tail = Tail::default();
        tail.push(b"begin");
        let mut piece = vec![b'y'; OUTPUT_LIMIT + 5];
        piece.push(b'z');
        tail.push(&piece);
        assert_eq!(tail.dropped(), 11);
        assert!(tail.into_text().ends_with("yyz"));
    }

    #[test]
    fn garbage_stays_within_the_limit_although_each_byte_becomes_a_longer_character() {
        let mut tail = Tail::default();
        tail.push(&vec![0xff; OUTPUT_LIMIT]);
        let text = tail.into_text();
        assert!(text.len() <= OUTPUT_LIMIT && text.len() > OUTPUT_LIMIT - 4, "{}", text.len());
        assert!(text.chars().all(|character| character == char::REPLACEMENT_CHARACTER));
    }

    #[test]
    fn nothing_a_terminal_obeys_is_left() {
        let evil = "\u{1b}]0;owned\u{7}\u{9b}2J\u{202e}txt\u{0}\rhid\r\nline\tend\u{7f}";
        let text = neutralise(evil);
        assert_eq!(text, "␛]0;owned␇\u{fffd}2J\u{fffd}txt␀␍hid\nline\tend␡");
    }

    #[test]
    fn the_reason_is_the_last_line_that_says_something() {
        assert_eq!(last_line("one\n  two \n\n \n"), Some("two".to_owned()));
        assert_eq!(last_line(" \n\n"), None);
        assert_eq!(last_line(&"w".repeat(999)).map(|line| line.len()), Some(REASON_LIMIT));
    }
}
