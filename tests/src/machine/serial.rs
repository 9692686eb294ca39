//! What a guest prints on a serial port, kept and searched while it comes.

use std::fs::File;
use std::io::{Read, Write};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

/// How much of the end of the text an error shows.
const SHOWN_AT_ERRORS: usize = 2000;

/// The text of one serial port in one boot.
#[derive(Debug, Clone, Default)]
pub(super) struct Serial {
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    text: Mutex<Text>,
    grown: Condvar,
}

#[derive(Debug, Default)]
struct Text {
    bytes: Vec<u8>,
    /// Everything before this was already matched.
    read_to: usize,
    ended: bool,
}

impl Serial {
    /// Keeps what comes from `source` until its end, and copies it to `log`.
    pub(super) fn follow(mut source: impl Read + Send + 'static, mut log: File) -> Serial {
        let serial = Serial::default();
        let shared = Arc::clone(&serial.shared);
        std::thread::spawn(move || {
            let mut buffer = [0u8; 4096];
            loop {
                let count = source.read(&mut buffer).unwrap_or(0);
                let came = buffer.get(..count).unwrap_or_default();
                // A full disk must not stop the test; the text is in memory too.
                log.write_all(came).ok();
                let mut text = lock(&shared.text);
                text.bytes.extend_from_slice(came);
                text.ended = count == 0;
                shared.grown.notify_all();
                if count == 0 {
                    return;
                }
            }
        });
        serial
    }

    /// Waits until one of `wanted` appears after everything matched before.
    ///
    /// Returns which one came first and the text up to and with it.
    pub(super) fn wait_for_any(&self, wanted: &[&str], patience: Duration) -> Result<(usize, String)> {
        let deadline = Instant::now() + patience;
        let mut text = lock(&self.shared.text);
        loop {
            if let Some((which, end)) = first_match(text.unread(), wanted) {
                let from = text.read_to;
                text.read_to = from + end;
                let matched = text.bytes.get(from..from + end).unwrap_or_default();
                return Ok((which, String::from_utf8_lossy(matched).into_owned()));
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if text.ended {
                bail!("the machine stopped before it printed {wanted:?}; it said:\n{}", text.tail());
            }
            if left.is_zero() {
                bail!("{wanted:?} did not come in {} s; the machine said:\n{}", patience.as_secs(), text.tail());
            }
            text = self.shared.grown.wait_timeout(text, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Whether the machine has closed the port, as it does when it stops.
    pub(super) fn has_ended(&self) -> bool {
        lock(&self.shared.text).ended
    }

    /// Everything printed so far.
    pub(super) fn all(&self) -> String {
        String::from_utf8_lossy(&lock(&self.shared.text).bytes).into_owned()
    }
}

impl Text {
    fn unread(&self) -> &[u8] {
        self.bytes.get(self.read_to..).unwrap_or_default()
    }

    fn tail(&self) -> String {
        let from = self.bytes.len().saturating_sub(SHOWN_AT_ERRORS);
        String::from_utf8_lossy(self.bytes.get(from..).unwrap_or_default()).into_owned()
    }
}

/// Which of `wanted` is found first in `text`, and where it ends.
fn first_match(text: &[u8], wanted: &[&str]) -> Option<(usize, usize)> {
    let found = wanted.iter().enumerate().filter_map(|(which, word)| {
        let start = text.windows(word.len().max(1)).position(|window| window == word.as_bytes())?;
        Some((start, which, start + word.len()))
    });
    found.min().map(|(_, which, end)| (which, end))
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn serial_of(text: &'static str) -> Serial {
        Serial::follow(text.as_bytes(), tempfile::tempfile().unwrap())
    }

    #[test]
    fn the_first_of_several_words_is_found_and_not_found_again() {
        let serial = serial_of("one two three two");
        let (which, text) = serial.wait_for_any(&["three", "two"], Duration::from_secs(5)).unwrap();
        assert_eq!((which, text.as_str()), (1, "one two"));
        let (_, text) = serial.wait_for_any(&["two"], Duration::from_secs(5)).unwrap();
        assert_eq!(text, " three two");
    }

    #[test]
    fn the_end_of_the_machine_ends_the_waiting() {
        let error = serial_of("kernel panic").wait_for_any(&["login"], Duration::from_secs(60)).unwrap_err();
        assert!(error.to_string().contains("kernel panic"), "{error}");
    }
}
