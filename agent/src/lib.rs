//! The daemon `basculed` and its command line `bascule`.
//!
//! ```text
//! command line --HTTP on a Unix socket--> api --Command--> engine: observe -> decide -> perform, again
//!                                          ^                  |
//!                                          +---- Snapshot ----+--> state (record), prepare (slots), bascule-boot (loader)
//! ```

pub mod paths;
pub mod shared;
