//! The daemon `basculed` and its command line `bascule`.
//!
//! ```text
//! command line --HTTP on a Unix socket--> api --Command--> engine: observe -> decide -> perform, again
//!                                          ^                  |
//!                                          +---- Snapshot ----+--> state (record), prepare (slots), bascule-boot (loader)
//! ```

pub mod api;
pub mod boot_complete;
pub mod cli;
pub mod clock;
pub mod conditions;
pub mod config;
pub mod contained;
pub mod daemon;
pub mod device;
pub mod durable;
pub mod engine;
pub mod evidence;
pub mod heartbeat;
pub mod loaders;
pub mod logging;
pub mod mounted;
mod names;
mod pace;
pub mod paths;
pub mod prepare;
pub mod probes;
pub mod reboot;
pub mod shared;
pub mod source;
pub mod state;
pub mod status;
pub mod story;
pub mod watchdogs;
