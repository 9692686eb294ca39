//! The commands of `bascule-image`.

mod bundle;
mod delta;
mod disk;
mod from;
mod keys;
mod show;
mod value;
mod verify;

use bascule_image::disk::DiskError;
use bascule_image::{BundleError, DeltaError, TrustError};
use clap::{Parser, Subcommand};

/// Makes and checks what Bascule installs: signing keys, bundles, deltas, root images, A/B disk images.
#[derive(Debug, Parser)]
#[command(name = "bascule-image", version)]
pub(crate) struct Command {
    #[command(subcommand)]
    subject: Subject,
}

#[derive(Debug, Subcommand)]
enum Subject {
    /// Make and rotate signing keys.
    #[command(subcommand)]
    Keys(keys::Keys),
    /// Make, show and check bundles.
    #[command(subcommand)]
    Bundle(bundle::Bundle),
    /// Make the delta between two images: what turns OLD into NEW.
    Delta(delta::Create),
    /// Make the new image of the old one and a delta.
    Apply(delta::Apply),
    /// Make A/B disk images.
    #[command(subcommand)]
    Disk(disk::Disk),
    /// Make root images.
    #[command(subcommand)]
    Image(disk::Image),
}

impl Command {
    pub(crate) fn run(self) -> anyhow::Result<()> {
        match self.subject {
            Subject::Keys(command) => command.run(),
            Subject::Bundle(command) => command.run(),
            Subject::Delta(command) => command.run(),
            Subject::Apply(command) => command.run(),
            Subject::Disk(command) => command.run(),
            Subject::Image(command) => command.run(),
        }
    }
}

/// Prints an error with its causes, and the code and hint of the first cause that has them.
#[allow(clippy::print_stderr, reason = "this is where a command line reports")]
pub(crate) fn report(error: &anyhow::Error) {
    let mut advice = None;
    for cause in error.chain() {
        advice = advice.or_else(|| advice_of(cause));
    }
    let code = advice.as_ref().map_or(String::new(), |(code, _)| format!(" [{code}]"));
    eprintln!("error: {error}{code}");
    for cause in error.chain().skip(1) {
        eprintln!("caused by: {cause}");
    }
    if let Some((_, hint)) = advice {
        eprintln!("hint: {hint}");
    }
}

fn advice_of(cause: &(dyn std::error::Error + 'static)) -> Option<(&'static str, String)> {
    if let Some(error) = cause.downcast_ref::<BundleError>() {
        return Some((error.code(), error.hint()));
    }
    if let Some(error) = cause.downcast_ref::<DeltaError>() {
        return Some((error.code(), error.hint()));
    }
    if let Some(error) = cause.downcast_ref::<TrustError>() {
        return Some((error.code(), error.hint()));
    }
    cause.downcast_ref::<DiskError>().map(|error| (error.code(), error.hint()))
}
