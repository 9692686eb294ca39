//! Trust: The Update Framework through the `tough` crate, with the metadata served from memory and a clock of our own.
//!
//! A device pins `root.json`. [`TrustStore::verify`] runs every check of the framework on a temporary copy of what was
//! accepted before, and hands out an [`Accepted`]; only its [`Accepted::persist`] changes what the device remembers.
//!
//! `tough` asks the system clock itself and refuses when it stepped back since its last look. A device whose clock was
//! once wrong would be locked out, so that check is left out: its note of the time is never kept, its own expiry check
//! is off, and our own judges all four roles by the clock that the caller passes in, or by the last
//! accepted signed time where that is later.

mod error;
mod store;
mod transport;
mod verify;

pub use error::TrustError;
pub use store::{Accepted, TrustStore};
pub use verify::SIGNED_AT;

/// The specification version that our metadata states.
pub(crate) const SPEC_VERSION: &str = "1.0.0";
