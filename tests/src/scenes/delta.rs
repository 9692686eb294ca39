//! The scenes of one update by delta: onto a root as it left the factory, one that was written to, and cut off half way.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use bascule_core::Transfer;
use serde_json::Value;

use super::Stage;
use super::guest::{PATIENCE, text_at};
use super::wire::{DeltaBundle, Fit, Wire, mebibytes};

/// `prepare.checkpoint` of the demo's systems: no more than so many fetched bytes are fetched again after a cut.
const CHECKPOINT: u64 = 1 << 20;

/// More than this nobody fetches for nothing: the first request asks for so many bytes where the head may be shorter.
const WINDOW: u64 = 64 << 10;

/// The most memory that the daemon may need for an install.
const MEMORY: u64 = 32 << 20;

/// So many chunks are fetched and not yet written at a time: one for each of two cores, and one at each end.
const IN_THE_MAKING: u64 = 4;

/// A delta fetched in this many seconds can be met in its middle.
const SLOWED_TO_SECONDS: u64 = 20;

/// How many files [`WRITE_TO_ROOT`] changes: 19 notes and the map, 5 new notes, 15 libraries, and the times of 10 programs.
const WRITTEN_TO: usize = 50;

/// Changes files of the root, and prints how many.
const WRITE_TO_ROOT: &str = r#"(set -e
touch /run/before
mount -o remount,rw /
cd /usr/share/demo/places
for file in note-0?.txt note-1?.txt; do echo "written on the device" >> "$file"; done
printf x | dd of=map.bin bs=1 seek=12345678 conv=notrunc status=none
for new in 1 2 3 4 5; do echo new > "new-$new.txt"; done
find /usr/lib/*-linux-gnu -type f -name '*.so.*' | sort | sed -n 1,15p | while read -r file; do printf x >> "$file"; done
find /usr/bin -type f | sort | sed -n 1,10p | xargs touch
cd /
sync
mount -o remount,ro /
find /usr -xdev -type f -newer /run/before | wc -l)"#;

impl Stage {
    /// The root that a device left the factory with is written to: what the delta cannot make any more is taken whole,
    /// chunk by chunk, and nothing else is.
    ///
    /// # Errors
    /// When any step is not as told.
    pub fn heals_a_delta_where_the_root_was_written_to(&mut self, name: &str) -> Result<()> {
        let system = self.images.system(name)?.clone();
        self.timeline.heading(&format!("{} by delta, on a root that was written to", system.version));
        let bundle = DeltaBundle::open(&self.images, &system)?;
        let before = self.status()?;
        let printed = self.machine.succeed(WRITE_TO_ROOT)?;
        let files: usize = printed.trim().parse().with_context(|| format!("writing to the root said: {printed}"))?;
        ensure!(files == WRITTEN_TO, "{files} files were changed, not {WRITTEN_TO}");
        self.say("person", format!("makes the root writable and changes {files} files"), "and read-only again");
        let start = self.slot_start(&before, &text_at(&before, "/booted"))?;
        let fit = bundle.fit(&self.machine.disk(), start)?;
        ensure!(fit.missing.image > 0, "the delta still fits all of the root");

        let wire = Wire::begin(&self.server);
        self.install(name)?;
        self.wait_for_state(&["activated"])?;
        let sent = wire.bytes(&self.server);
        self.follow_into_target(&before)?;
        self.wait_for_verdict(&system.version)?;
        self.say("agent", format!("{} is committed", system.version), "probation passed");
        let transfer = self.transfer(&system.version)?;
        self.tell_bytes(&bundle, sent)?;
        self.say(
            "demo",
            format!("the root differs under {} of the image", mebibytes(fit.missing.image)),
            &format!("whole they are {} in the bundle", mebibytes(fit.missing.stored)),
        );
        check_bytes(&bundle, &fit, sent, &transfer)
    }

    /// QEMU is killed half way of a delta; the device starts the old system, and goes on where it was.
    ///
    /// # Errors
    /// When any step is not as told.
    pub fn finishes_a_delta_that_was_cut_off(&mut self, name: &str) -> Result<()> {
        let system = self.images.system(name)?.clone();
        self.timeline.heading(&format!("{} by delta, and QEMU is killed half way", system.version));
        let bundle = DeltaBundle::open(&self.images, &system)?;
        let before = self.status()?;
        self.server.limit_bandwidth(Some(bundle.delta() / SLOWED_TO_SECONDS));
        let wire = Wire::begin(&self.server);
        self.install(name)?;
        let first = self.wait_for_fetched(bundle.head() + bundle.delta() / 2)?;
        self.machine.kill()?;
        self.server.drop_connections();
        self.server.limit_bandwidth(None);
        let sent = wire.bytes(&self.server);
        let way = format!("{} are over the wire, {} are with the agent", mebibytes(sent), mebibytes(first));
        self.say("power", "QEMU is killed".into(), &way);

        self.finishes_by_itself(&before, &system.version)?;
        let second = wire.bytes(&self.server).saturating_sub(sent);
        let transfer = self.transfer(&system.version)?;
        self.tell_bytes(&bundle, second)?;
        let lost = CHECKPOINT + IN_THE_MAKING * bundle.largest()?;
        let most = bundle.delta() + lost + wire.openings(&self.server) * bundle.head().max(WINDOW);
        self.say(
            "demo",
            format!("{} before the kill, {} after it", mebibytes(first), mebibytes(second)),
            &format!("the delta is {}; kept {} of the image", mebibytes(bundle.delta()), mebibytes(transfer.kept)),
        );
        ensure!(transfer.kept > 0, "nothing was kept: {transfer:?}");
        ensure!(transfer.healed == 0, "nothing was written to, and yet: {transfer:?}");
        // What was still on its way when the power went is nobody's.
        let all = first + transfer.fetched;
        ensure!(all <= most, "{first} and {} bytes were fetched, {most} are enough", transfer.fetched);
        is_near(second, transfer.fetched)
    }

    /// Tells what the daemon made of compressed data and of programs, and in how much memory at most since it started.
    pub(super) fn tell_memory(&mut self, bundle: &DeltaBundle) -> Result<()> {
        let (predicted, packed) = bundle.transformed()?;
        let pid = "$(systemctl show --property MainPID --value basculed.service)";
        let peak =
            self.machine.succeed(&format!("sed -n 's/^VmHWM:[^0-9]*\\([0-9]*\\) kB$/\\1/p' /proc/{pid}/status"))?;
        let peak = peak.trim().parse::<u64>().with_context(|| format!("no peak of memory: {peak:?}"))? << 10;
        self.say(
            "agent",
            format!("made {} with addresses predicted, {} packed again", mebibytes(predicted), mebibytes(packed)),
            &format!("at most {} of memory since it started", mebibytes(peak)),
        );
        ensure!(packed > 0, "the kernel of the second system is not made of that of the first");
        ensure!(peak <= MEMORY, "the daemon needed {peak} bytes, and {MEMORY} are promised");
        Ok(())
    }

    /// Says what was sent, and what the device's history says of it.
    pub(super) fn tell_bytes(&mut self, bundle: &DeltaBundle, sent: u64) -> Result<()> {
        self.say(
            "server",
            format!("sent {} for an image of {}", mebibytes(sent), mebibytes(bundle.image())),
            &format!("a delta against {}; the whole bundle is {}", bundle.base(), mebibytes(bundle.length())),
        );
        let history = self.machine.succeed("NO_COLOR=1 bascule history")?;
        let last = history.lines().find(|line| line.contains(" fetched")).context("the history tells no bytes")?;
        self.say("history", last.to_owned(), "");
        Ok(())
    }

    /// Where the bytes of the last deployment of `version` came from, by the device's history.
    pub(super) fn transfer(&mut self, version: &str) -> Result<Transfer> {
        let printed = self.machine.succeed("bascule history --json")?;
        let history: Vec<Value> = serde_json::from_str(&printed).with_context(|| format!("not JSON: {printed}"))?;
        let of_version = history.iter().filter(|line| text_at(line, "/deployment/version") == version);
        let last = of_version.max_by_key(|line| text_at(line, "/time"));
        let transfer = last.and_then(|line| line.pointer("/deployment/transfer"));
        let transfer = transfer.with_context(|| format!("the history does not tell what was fetched: {printed}"))?;
        Ok(serde_json::from_value(transfer.clone())?)
    }

    /// Waits until the agent has taken so many bytes from the source, and says how many it has.
    fn wait_for_fetched(&mut self, bytes: u64) -> Result<u64> {
        let until = Instant::now() + PATIENCE;
        loop {
            let status = self.status()?;
            let fetched = status.pointer("/progress/fetched_bytes").and_then(Value::as_u64).unwrap_or_default();
            if fetched >= bytes {
                ensure!(text_at(&status, "/state") == "preparing", "the middle was missed: {status}");
                return Ok(fetched);
            }
            ensure!(Instant::now() < until, "{fetched} bytes of {bytes} were fetched");
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

/// Holds what was sent, and what the device says, against what the bundle and the disk say.
pub(super) fn check_bytes(bundle: &DeltaBundle, fit: &Fit, sent: u64, transfer: &Transfer) -> Result<()> {
    ensure!(transfer.base.as_deref() == Some(&bundle.base()), "it was not made by delta: {transfer:?}");
    ensure!(transfer.copied == fit.copied.image, "{} bytes fit: {transfer:?}", fit.copied.image);
    ensure!(transfer.healed == fit.missing.image, "{} bytes do not fit: {transfer:?}", fit.missing.image);
    let most = bundle.head() + bundle.delta() + fit.missing.stored + WINDOW;
    ensure!(sent <= most, "{sent} bytes were sent, {most} are enough");
    is_near(sent, transfer.fetched)
}

fn is_near(sent: u64, fetched: u64) -> Result<()> {
    ensure!(sent.abs_diff(fetched) <= WINDOW, "the server sent {sent} bytes, the device says {fetched}");
    Ok(())
}
