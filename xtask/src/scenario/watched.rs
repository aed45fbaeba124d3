//! A file system and the monitor that watches it.

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::{
    Outcome, Place,
    compare::compare,
    monitor::{Monitor, of_type},
    scratch::Scratch,
};

/// Both of them; the file system is the first of the monitor's command line.
pub(super) struct Watched {
    // In the order in which they are to be let go after a failure.
    pub(super) monitor: Monitor,
    pub(super) scratch: Scratch,
}

impl Watched {
    /// A new file system, unmounted; the monitor is there already.
    pub(super) fn new(place: &Place, scratch: Scratch) -> Result<Self> {
        scratch.mkfs(&[])?;
        let monitor = Monitor::start(place, scratch.device_name(), &[])?;
        Ok(Self { monitor, scratch })
    }

    /// Mounts it, and waits until every event is judged.
    pub(super) fn mount(&mut self, options: &str) -> Result<()> {
        let seen = self.said("seeded").len();
        self.scratch.mount_with(options)?;
        self.monitor.wait_for_nth("seeded", seen + 1).map(drop)
    }

    /// Unmounts it, and waits until the monitor knows.
    pub(super) fn unmount(&mut self) -> Result<()> {
        let seen = self.said("unmounted").len();
        self.scratch.unmount()?;
        self.monitor.wait_for_nth("unmounted", seen + 1).map(drop)
    }

    /// Freezes it, and fails unless the ledger equals the disk; `what` is what was done before.
    pub(super) fn compare(&mut self, what: &str) -> Result<()> {
        let extents = compare(&self.scratch, &mut self.monitor).with_context(|| what.to_owned())?;
        println!("{what}: all {extents} extents are equal");
        Ok(())
    }

    /// The same; nothing may have been found either.
    pub(super) fn expect_equal(&mut self, what: &str) -> Result<()> {
        self.compare(what)?;
        let findings = self.monitor.findings();
        ensure!(findings.is_empty(), "{what}: found {findings:?}");
        Ok(())
    }

    /// What the monitor said of a kind.
    pub(super) fn said(&self, kind: &str) -> Vec<Value> {
        of_type(&self.monitor.lines(), kind)
    }

    /// Unmounts, ends the monitor, and expects that it saw everything and found nothing.
    pub(super) fn end(mut self) -> Result<Outcome> {
        if self.scratch.is_mounted() {
            self.unmount()?;
        }
        let ended = self.monitor.stop()?;
        ended.expect_clean()?;
        println!("{}", ended.coverage()?);
        Ok(Outcome::Passed)
    }
}
