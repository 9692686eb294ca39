//! The custom backend: an integrator's program keeps the choice of group, and speaks JSON.
//!
//! The program is run with one word and gets one JSON object on its standard input. Exit code 0 means that it is done and
//! survives a power cut. Anything else is an error, told by the last line of its standard error.
//!
//! | word | input, beside `"version":1` | what must be so afterwards |
//! |---|---|---|
//! | `view` | `"booted":"a"` | nothing has changed; the answer is on standard output |
//! | `mark-unbootable` | `"booted":"a","target":"b"` | `b` is never started, `a` is primary |
//! | `activate` | `"booted":"a","target":"b","tries":3` | `b` is primary for this many starts, then `a` |
//! | `mark-good` | `"booted":"b"` | `b` is good and primary, `a` is what it was |
//! | `roll-back` | `"booted":"b"` | `a` is good and primary, `b` is never started |
//!
//! The answer to `view`, where `tries_left` belongs to `trial` alone; keys that are not known are ignored:
//!
//! ```json
//! {"settings": "intact", "primary": "b", "a": {"status": "good"}, "b": {"status": "trial", "tries_left": 2}}
//! ```
//!
//! | value | means |
//! |---|---|
//! | settings `intact` | what follows is what the loader reads |
//! | settings `damaged` | the loader goes by a fallback, which is what follows; `mark-unbootable` and `mark-good` rebuild |
//! | status `good` | started uncounted |
//! | status `trial` | started `tries_left` times more, 1 to 9, without a commit |
//! | status `exhausted` | its trial is used up, the loader has fallen back |
//! | status `unbootable` | never started |
//!
//! Nothing is believed: before each act `view` is asked whether the act is allowed, after it whether what the act promises
//! is so. An act is asked for again where all is so already, because an earlier one may have been cut off before its sync.
//! A loader that tries once only has to be given a policy of one try.

mod error;
mod run;

use std::path::PathBuf;
use std::time::Duration;

use bascule_core::{BootStatus, BootView, BootedGroup, Group, Settings, TargetGroup, Tries};
use serde_json::{Value, json};

use crate::{BootBackend, BootError};

pub use error::CustomError;
pub use run::OUTPUT_LIMIT;
use run::Outcome;

/// The version of what is said to the program.
const VERSION: u32 = 1;

/// Keeps the choice of group with an integrator's program.
#[derive(Debug, Clone)]
pub struct CustomBackend {
    program: PathBuf,
    timeout: Duration,
}

impl CustomBackend {
    /// A backend that runs this program, each time for at most as long as this.
    #[must_use]
    pub fn new(program: PathBuf, timeout: Duration) -> Self {
        CustomBackend { program, timeout }
    }

    fn ask(&self, booted: Group) -> Result<BootView, BootError> {
        let output = self.run("view", json!({ "version": VERSION, "booted": booted }))?;
        let unusable = |fault: String| CustomError::Answer { program: self.program.clone(), fault };
        let view: BootView = serde_json::from_slice(&output).map_err(|error| unusable(error.to_string()))?;
        let odd =
            |group| matches!(view.status(group), BootStatus::Trial { tries_left } if Tries::new(tries_left).is_err());
        match Group::ALL.into_iter().find(|group| odd(*group)) {
            Some(group) => Err(unusable(format!("group {group} is on trial with tries_left not from 1 to 9")).into()),
            None => Ok(view),
        }
    }

    fn run(&self, verb: &'static str, input: Value) -> Result<Vec<u8>, BootError> {
        let program = self.program.clone();
        match run::run(&program, verb, input.to_string().as_bytes(), self.timeout) {
            Err(source) => Err(CustomError::Run { program, verb, source }.into()),
            Ok(Outcome::TimedOut) => Err(CustomError::TimedOut { program, verb, deadline: self.timeout }.into()),
            Ok(Outcome::TooLong) => {
                Err(CustomError::Answer { program, fault: format!("it has more than {OUTPUT_LIMIT} bytes") }.into())
            }
            Ok(Outcome::Ended { status, output, .. }) if status.success() => Ok(output),
            Ok(Outcome::Ended { status, said, .. }) => Err(CustomError::Failed { program, verb, status, said }.into()),
        }
    }

    /// Asks for an act, then whether what it promises is so.
    fn act(
        &self,
        verb: &'static str,
        booted: Group,
        input: Value,
        promised: impl Fn(&BootView) -> bool,
    ) -> Result<(), BootError> {
        self.run(verb, input)?;
        let seen = self.ask(booted)?;
        if seen.settings == Settings::Intact && promised(&seen) {
            return Ok(());
        }
        let seen = serde_json::to_string(&seen).unwrap_or_default();
        Err(CustomError::NotKept { program: self.program.clone(), verb, seen }.into())
    }
}

impl BootBackend for CustomBackend {
    fn name(&self) -> &'static str {
        "custom"
    }

    fn view(&self, booted: BootedGroup) -> Result<BootView, BootError> {
        self.ask(booted.group())
    }

    fn mark_unbootable(&self, target: TargetGroup) -> Result<(), BootError> {
        let (target, booted) = (target.group(), target.group().opposite());
        let before = self.ask(booted)?;
        if before.settings == Settings::Intact && before.status(booted) != BootStatus::Good {
            // Stopping here is safe: the program was only asked.
            return Err(BootError::NoGoodGroup { act: "give the target group up", group: booted });
        }
        let input = json!({ "version": VERSION, "booted": booted, "target": target });
        self.act("mark-unbootable", booted, input, |seen| {
            let statuses = (seen.status(booted), seen.status(target));
            seen.primary == booted && statuses == (BootStatus::Good, BootStatus::Unbootable)
        })
    }

    fn activate(&self, target: TargetGroup, tries: Tries) -> Result<(), BootError> {
        let (target, booted) = (target.group(), target.group().opposite());
        let before = self.ask(booted)?;
        // Stopping here is safe: the program was only asked.
        if before.settings == Settings::Damaged {
            let damage = "its program says so".to_owned();
            return Err(BootError::Damaged { path: self.program.clone(), damage });
        }
        if before.status(booted) != BootStatus::Good {
            return Err(BootError::NoGoodGroup { act: "activate the target group", group: booted });
        }
        let input = json!({ "version": VERSION, "booted": booted, "target": target, "tries": tries.get() });
        self.act("activate", booted, input, |seen| {
            let armed = BootStatus::Trial { tries_left: tries.get() };
            seen.primary == target && (seen.status(booted), seen.status(target)) == (BootStatus::Good, armed)
        })
    }

    fn mark_good(&self, booted: BootedGroup) -> Result<(), BootError> {
        let booted = booted.group();
        let before = self.ask(booted)?;
        let kept = match before.settings {
            Settings::Intact => before.status(booted.opposite()),
            Settings::Damaged => BootStatus::Unbootable,
        };
        let input = json!({ "version": VERSION, "booted": booted });
        self.act("mark-good", booted, input, |seen| {
            let statuses = (seen.status(booted), seen.status(booted.opposite()));
            seen.primary == booted && statuses == (BootStatus::Good, kept)
        })
    }

    fn roll_back(&self, booted: BootedGroup) -> Result<(), BootError> {
        let (booted, opposite) = (booted.group(), booted.group().opposite());
        if self.ask(booted)?.status(opposite) != BootStatus::Good {
            // Stopping here is safe: the program was only asked.
            return Err(BootError::NoGoodGroup { act: "go back to the opposite group", group: opposite });
        }
        let input = json!({ "version": VERSION, "booted": booted });
        self.act("roll-back", booted, input, |seen| {
            let statuses = (seen.status(opposite), seen.status(booted));
            seen.primary == opposite && statuses == (BootStatus::Good, BootStatus::Unbootable)
        })
    }
}
