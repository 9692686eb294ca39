//! Runs integrators' programs at named points, and the health checks; brings boot files to their place.
//!
//! An integrator hangs programs into folders of the root file system: *hooks* at the points of one update
//! ([`HookPoint`]), *health checks* that say whether the system does its work. Both run through the one child-process
//! runner ([`runner::run`]): a control group with limits where there can be one, a deadline, bounded and harmless output.
//! This crate runs and judges them; what follows from a verdict is decided elsewhere.
//!
//! | module | subject |
//! |---|---|
//! | [`runner`] | one child process, from start to the end of everything it started |
//! | [`output`] | the last 64 KiB of a child's output, with nothing in it that moves a terminal |
//! | [`programs`] | which files of the two folders are run: override, mask, order, symbolic links |
//! | [`hooks`] | the hook points, the context given to a hook, and the verdict of one point |
//! | [`health`] | health checks: programs, systemd units, ports and probes, required or wanted |
//! | [`soak`] | when to run the checks and when the verdict falls; pure |
//! | [`boot_files`] | a group's boot files on the boot partition, for a loader that cannot read the slot |
//! | [`error`] | what can go wrong, with stable codes |

pub mod boot_files;
pub mod error;
pub mod health;
pub mod hooks;
pub mod output;
mod paths;
pub mod programs;
pub mod runner;
pub mod soak;

pub use boot_files::{BootFileError, BootFileSet, BootImage, KeepList, SetPlaces};
pub use error::HooksError;
pub use health::{CheckKind, CheckResult, HealthChecks, HealthSettings, Probe, ProbeCheck, Requirement};
pub use hooks::{
    CONTEXT_JSON_SCHEMA, HookContext, HookPoint, HookRun, HookSettings, PointOutcome, PointVerdict, run_point,
    run_point_on,
};
pub use runner::{Command, Containment, Exit, Limits, MetLimit, Outcome, run};
pub use soak::{HealthPolicy, Round, Soak, Step, Verdict};
