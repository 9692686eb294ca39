//! The daemon `basculed` and its command line `bascule`.
//!
//! ```text
//! command line --HTTP on a Unix socket--> api --Command--> engine: observe -> decide -> perform, again
//!                                          ^                  |
//!                                          +---- Snapshot ----+--> state (record), prepare (slots), bascule-boot (loader)
//! ```

pub mod config;
pub mod logging;
pub mod status;
pub mod paths;
pub mod shared;
