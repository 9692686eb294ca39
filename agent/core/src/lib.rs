//! The words and decisions of Bascule.
//!
//! Everything here is a value or a pure function: no input or output, no clock, no async, no logging. The daemon
//! observes the world into [`Observed`], asks [`decide`] what to do with the durable [`Record`], and performs the one
//! [`Decision`] it gets. After a crash the same loop looks at the same facts and goes on.
//!
//! | module | subject |
//! |---|---|
//! | [`words`] | groups, booted and target group, digests, identifiers, versions |
//! | [`boot`] | what a boot loader's settings say: [`BootStatus`], [`BootView`] |
//! | [`boot_set`](mod@boot_set) | where a group's boot files are |
//! | [`record`] | the durable record: [`State`], [`Deployment`], deny-list, history |
//! | [`observed`] | the facts a decision is made of |
//! | [`decide`](mod@decide) | the whole state machine, one pure function |
//! | [`offer`] | what a bundle's manifest asks of a device, and whether this device may take it |
//! | [`report`] | errors as people and fleets see them: code, phase, cause, hint |

pub mod boot;
pub mod boot_set;
pub mod decide;
pub mod observed;
pub mod offer;
pub mod record;
pub mod report;
pub mod words;

pub use boot::{BootStatus, BootView, Settings};
pub use decide::{Action, Decision, Refusal, decide};
pub use observed::{Health, Observed, Policy, PreparationFailure, Request};
pub use offer::{Blocker, Device, Offer, OfferedPayload, Requires};
pub use record::{
    Attempt, Baseline, Denied, Deployment, Ending, HistoryEntry, HooksDue, Image, Record, RollbackReason, Stamp, State,
    Step, Then, Transfer,
};
pub use report::{Disposition, ErrorReport, Phase, Warning};
pub use words::{BootId, BootedGroup, DeploymentId, Digest, Group, TargetGroup, Tries};
