//! Tells what happens, as lines of time, actor, what and why.

use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::sync::Mutex;
use std::time::Instant;

use anyhow::{Context, Result};

/// Prints each step to standard output and keeps a copy beside the logs.
#[derive(Debug)]
pub struct Timeline {
    started: Instant,
    copy: Mutex<File>,
}

impl Timeline {
    /// Begins at zero seconds and keeps the copy in `file`.
    ///
    /// # Errors
    /// When the file cannot be created.
    pub fn begin(file: &Path) -> Result<Timeline> {
        if let Some(folder) = file.parent() {
            std::fs::create_dir_all(folder)?;
        }
        let copy = File::create(file).with_context(|| format!("cannot create {}", file.display()))?;
        Ok(Timeline { started: Instant::now(), copy: Mutex::new(copy) })
    }

    /// Says who did what, and why; an empty reason is left out.
    pub fn say(&self, actor: &str, what: &str, why: &str) {
        let seconds = self.started.elapsed().as_secs_f32();
        let reason = if why.is_empty() { String::new() } else { format!("  ({why})") };
        self.print(&format!("{seconds:7.1} s  {actor:<8}  {what}{reason}"));
    }

    /// Begins a part of the story with a heading.
    pub fn heading(&self, title: &str) {
        self.print(&format!("\n== {title}"));
    }

    /// Seconds since the beginning.
    #[must_use]
    pub fn seconds(&self) -> f32 {
        self.started.elapsed().as_secs_f32()
    }

    fn print(&self, line: &str) {
        println!("{line}");
        if let Ok(mut copy) = self.copy.lock() {
            // The copy is a convenience; the story goes on without it.
            writeln!(copy, "{line}").ok();
        }
    }
}
