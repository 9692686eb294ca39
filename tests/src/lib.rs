//! Whole-system tests: QEMU machines, a web server with faults, a timeline that a person can follow.

pub mod bench;
pub mod factory;
pub mod fuzz;
mod http;
mod images;
mod machine;
pub mod matrix;
mod ping;
pub mod powercut;
pub mod rehearsal;
mod timeline;

pub use http::{Fault, HttpServer, Request};
pub use images::{DemoSystem, Images};
pub use machine::{Boot, CommandOutput, Machine, MachineBuilder, Snapshot, Stopped, WriteLogs};
pub use ping::{PingReport, PingWatch, Pong};
pub use timeline::Timeline;
pub mod scenes;
