//! One pair of images, the files that tools make of it, and running those tools.

use std::fs::{self, File};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, anyhow};
use bascule_core::Digest;

use super::super::process::{self, Usage};
use super::super::slot::sha256;

/// Two images and a folder for what is made of them.
#[derive(Debug)]
pub(super) struct Job {
    pub(super) old: PathBuf,
    pub(super) new: PathBuf,
    /// SHA-256 of the new image.
    pub(super) wanted: Digest,
    scratch: PathBuf,
}

impl Job {
    /// Plans to make `new` of `old`, with an empty folder inside `scratch`.
    ///
    /// # Errors
    /// When the new image or the folder cannot be read or made.
    pub(super) fn new(old: PathBuf, new: PathBuf, scratch: &Path) -> Result<Job> {
        let wanted = sha256(&new)?;
        let job = Job { old, new, wanted, scratch: scratch.join("job") };
        job.clear()?;
        Ok(job)
    }

    /// Where the delta goes.
    pub(super) fn delta(&self) -> PathBuf {
        self.file("delta")
    }

    /// Where the new image is made.
    pub(super) fn out(&self) -> PathBuf {
        self.file("out")
    }

    /// A file in between.
    pub(super) fn file(&self, name: &str) -> PathBuf {
        self.scratch.join(name)
    }

    /// Removes everything that was made.
    ///
    /// # Errors
    /// When the folder cannot be emptied.
    pub(super) fn clear(&self) -> Result<()> {
        if self.scratch.exists() {
            fs::remove_dir_all(&self.scratch)?;
        }
        fs::create_dir_all(&self.scratch).context("cannot make a folder for deltas")
    }

    /// Runs programs one after the other; in their words `OLD`, `NEW`, `DELTA`, `OUT` and `TMP` stand for the files.
    ///
    /// # Errors
    /// When one is missing or fails; its last line is in the error.
    pub(super) fn run(&self, lines: &[&str]) -> Result<Usage> {
        let mut sum = Usage::default();
        for line in lines {
            let mut words = line.split(' ');
            let name = words.next().unwrap_or_default();
            let program = super::super::built(name).unwrap_or_else(|_| PathBuf::from(name));
            let mut command = Command::new(program);
            for word in words {
                command.arg(self.word(word)?);
            }
            let usage = self.follow(&mut command, name)?;
            sum.wall += usage.wall;
            sum.add(&usage);
        }
        Ok(sum)
    }

    fn follow(&self, command: &mut Command, name: &str) -> Result<Usage> {
        let said = self.file("said");
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(File::create(&said)?);
        let started = Instant::now();
        let child = command.spawn().map_err(|error| match error.kind() {
            ErrorKind::NotFound => anyhow!("{name} is not installed"),
            _ => anyhow!(error).context(format!("cannot start {name}")),
        })?;
        process::finish(child, name, started).with_context(|| {
            let text = fs::read_to_string(&said).unwrap_or_default();
            format!("it said {:?}", text.trim().lines().next().unwrap_or_default())
        })
    }

    /// A word of a command line with the names of files in it.
    fn word(&self, word: &str) -> Result<String> {
        let mut text = word.to_owned();
        let files = [
            ("OLD", self.old.clone()),
            ("NEW", self.new.clone()),
            ("DELTA", self.delta()),
            ("OUT", self.out()),
            ("TMP", self.file("tmp")),
        ];
        for (name, path) in files {
            if text.contains(name) {
                text = text.replace(name, path.to_str().context("the workspace's path is not UTF-8")?);
                break;
            }
        }
        Ok(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn job(folder: &Path) -> Job {
        fs::write(folder.join("a"), "old").unwrap();
        fs::write(folder.join("b"), "new").unwrap();
        Job::new(folder.join("a"), folder.join("b"), folder).unwrap()
    }

    #[test]
    fn words_stand_for_files_and_usage_is_summed() {
        let folder = tempfile::tempdir().unwrap();
        let job = job(folder.path());
        let usage = job.run(&["cp OLD TMP.1", "cp NEW DELTA", "cp DELTA OUT"]).unwrap();
        assert!(usage.wall.as_nanos() > 0);
        assert_eq!(sha256(&job.out()).unwrap(), job.wanted);
        assert_eq!(fs::read(job.file("tmp.1")).unwrap(), b"old");
        job.clear().unwrap();
        assert!(!job.out().exists());
    }

    #[test]
    fn a_program_that_is_missing_or_fails_is_told_with_what_it_said() {
        let folder = tempfile::tempdir().unwrap();
        let job = job(folder.path());
        let missing = format!("{:#}", job.run(&["no-such-program OLD"]).unwrap_err());
        assert_eq!(missing, "no-such-program is not installed");
        let failed = format!("{:#}", job.run(&["cp TMP OUT"]).unwrap_err());
        assert!(failed.contains("No such file") && failed.contains("ended with"), "{failed}");
    }
}
