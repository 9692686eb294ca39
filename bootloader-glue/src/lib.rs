//! Everything that knows how a boot loader picks a slot group.
//!
//! ```text
//!            mounted root ("/")                                 the loader's settings
//!                  |                                                  ^        |
//!   disk::locate: mountinfo -> sysfs -> GPT                           |        v
//!                  |                                              one write   view
//!                  v                                                  |        |
//!   Layout{booted, slots} --> BootedGroup --> TargetGroup --> BootBackend (grub)
//!                                 |                                   |
//!                                 v                                   v
//!             disk::open_target: the one device that     the next start picks a group:
//!             may be written, opened exclusively         the real loader, or its simulator
//! ```
//!
//! | module | subject |
//! |---|---|
//! | [`grub`] | the GRUB backend: environment block, durable writes, and [`grub::simulator`] of the script we ship |
//! | [`uboot`] | the U-Boot backend: the redundant environment, durable writes, and [`uboot::simulator`] of the script we ship |
//! | [`sdboot`] | the systemd-boot backend: names of boot entries, one rename for each act, and [`sdboot::simulator`] of the loader |
//! | [`efi`] | the EFI backend: the firmware's own variables, and [`efi::simulator`] of its boot manager |
//! | [`gpt`] | the GPT backend: ChromeOS-style bits in the attributes of the slots' partition entries, and [`gpt::simulator`] of loaders that read them |
//! | [`tryboot`] | the Raspberry Pi backend: `autoboot.txt` and a flag of the reboot, and [`tryboot::simulator`] of the firmware |
//! | [`custom`] | the custom backend: an integrator's program that speaks JSON |
//! | [`conformance`] | the contract of [`BootBackend`] as a suite that every backend runs against its simulator |
//! | [`disk`] | which group is booted, which partitions are the slots, and opening the one that may be written |
//!
//! A backend decides nothing: `bascule-core` says what to do, and a backend does it so that it survives a power cut.

pub mod conformance;
pub mod custom;
pub mod disk;
pub mod efi;
mod error;
pub mod gpt;
pub mod grub;
mod medium;
mod script;
pub mod sdboot;
pub mod tryboot;
pub mod uboot;

use bascule_core::{BootView, BootedGroup, TargetGroup, Tries, Warning};
pub use custom::CustomBackend;
pub use efi::EfiBackend;
pub use error::BootError;
pub use gpt::GptBackend;
pub use grub::GrubBackend;
pub use sdboot::SdBootBackend;
pub use tryboot::TrybootBackend;
pub use uboot::UbootBackend;

/// One way of keeping a boot loader's choice of slot group.
///
/// The contract of every method that writes:
/// - `Ok` means that the change survives a power cut: written, synced, read back from the device and compared.
/// - Calling it twice is the same as calling it once.
/// - The loader's choice changes in one atomic write, the *commit point*. A power cut before it leaves the old choice, a
///   power cut after it the new one; at no moment may the loader start a group that is not complete.
/// - `Err` means that the loader's choice is the old one or the new one, and that the same call may be made again.
///
/// Damaged settings (missing, torn, of another form) are no error of [`view`](Self::view): the loader then starts the
/// group its fallback names. [`mark_unbootable`](Self::mark_unbootable) and [`mark_good`](Self::mark_good) rebuild them.
///
/// The caller holds the daemon's lock: two processes never write at once.
pub trait BootBackend: Send + Sync {
    /// The backend's name in the configuration, such as `grub`.
    fn name(&self) -> &'static str;

    /// Reads the settings as the loader would at its next start.
    ///
    /// # Errors
    /// When the place of the settings cannot be read; not when the settings are damaged.
    fn view(&self, booted: BootedGroup) -> Result<BootView, BootError>;

    /// The loader may not start `target`; the booted group is primary. Comes before the first write to a target slot.
    ///
    /// # Errors
    /// [`BootError::NoGoodGroup`] when the booted group is not good: the loader would be left with nothing to start.
    fn mark_unbootable(&self, target: TargetGroup) -> Result<(), BootError>;

    /// `target` is primary with `tries` counted starts; then the loader falls back to the booted group.
    ///
    /// # Errors
    /// [`BootError::NoGoodGroup`] when the booted group is not good, [`BootError::Damaged`] when the settings are damaged.
    fn activate(&self, target: TargetGroup, tries: Tries) -> Result<(), BootError>;

    /// The booted group is good and primary; the opposite group keeps its status.
    ///
    /// # Errors
    /// When a write cannot be made durable.
    fn mark_good(&self, booted: BootedGroup) -> Result<(), BootError>;

    /// The opposite group is primary and good, the booted group unbootable, both in one write.
    ///
    /// # Errors
    /// [`BootError::NoGoodGroup`] when the opposite group is not good; with damaged settings, when the fallback does not
    /// name it.
    fn roll_back(&self, booted: BootedGroup) -> Result<(), BootError>;

    /// Of settings that are kept twice, the copy that is damaged while the loader goes by the other one; `None` where both are
    /// whole, where settings are not kept twice, and where the settings as such are damaged: then [`view`](Self::view) says so.
    ///
    /// # Errors
    /// As those of [`view`](Self::view).
    fn damaged_copy(&self) -> Result<Option<Warning>, BootError> {
        Ok(None)
    }

    /// What the reboot has to be called with for the loader to start the armed target; `None` for most loaders, and where
    /// nothing is armed. Asked last of all before the reboot: where the loader keeps no count, this is the count.
    ///
    /// # Errors
    /// When it cannot be counted: then the reboot goes without it, into the group that is good.
    fn reboot_argument(&self, _booted: BootedGroup) -> Result<Option<&'static str>, BootError> {
        Ok(None)
    }
}
