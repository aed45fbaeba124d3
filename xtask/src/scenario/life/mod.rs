//! What comes and goes in the life of a file system without anything failing: mounts, other
//! file systems on the same device, devices, features, the module itself. After each thing the
//! ledger is compared with the frozen disk; none may make the monitor find or miss anything.

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::{
    Outcome, Place, Scenario, Tested,
    compare::{Frozen, compare_nth},
    monitor::{Monitor, of_type},
    scratch::Scratch,
};

mod churn;
mod devices;
mod features;
mod mkfs;
mod module;
mod mounts;
mod several;
mod sprout;

/// In the order in which they are run.
pub(super) const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "life-mounts",
        about: "mounted again, remounted, mounted elsewhere, exchanged: the ledger equals the disk",
        tested: Tested::HereOnly,
        run: mounts::run_all,
    },
    Scenario {
        name: "life-mkfs",
        about: "a hundred file systems on one device, one after the other, under one monitor",
        tested: Tested::HereOnly,
        run: mkfs::run,
    },
    Scenario {
        name: "life-several",
        about: "two devices are watched at once, each with a coverage of its own",
        tested: Tested::HereOnly,
        run: several::run,
    },
    Scenario {
        name: "life-devices",
        about: "grown, shrunk, converted, balanced, devices added, removed and replaced",
        tested: Tested::HereOnly,
        run: devices::run_all,
    },
    Scenario {
        name: "life-features",
        about: "swap files, nodatacow, quotas, simple quotas, discard",
        tested: Tested::HereOnly,
        run: features::run_all,
    },
    Scenario {
        name: "life-sprout",
        about: "a seed is mounted and sprouts: the fsid changes on a live mount",
        tested: Tested::HereOnly,
        run: sprout::run_all,
    },
    Scenario {
        name: "life-module",
        about: "the btrfs module is unloaded and loaded again under the monitor",
        tested: Tested::Everywhere,
        run: module::run_all,
    },
];

/// A file system, the monitor that watches it, and where it is in the monitor's command line.
struct Watched {
    scratch: Scratch,
    monitor: Monitor,
}

impl Watched {
    /// Unmounted, and the monitor is there already.
    fn new(place: &Place, len_bytes: u64, mkfs: &[&str]) -> Result<Self> {
        let scratch = Scratch::new(place, len_bytes)?;
        scratch.mkfs(mkfs)?;
        let monitor = Monitor::start(place, scratch.device_name(), &[])?;
        Ok(Self { scratch, monitor })
    }

    /// Mounts it, and waits until every event is judged.
    fn mount(&mut self, options: &str) -> Result<()> {
        let seen = self.said("seeded").len();
        self.scratch.mount_with(options)?;
        self.monitor.wait_for_nth("seeded", seen + 1).map(drop)
    }

    /// Unmounts it, and waits until the monitor knows.
    fn unmount(&mut self) -> Result<()> {
        let seen = self.said("unmounted").len();
        self.scratch.unmount()?;
        self.monitor.wait_for_nth("unmounted", seen + 1).map(drop)
    }

    /// Fails unless the ledger equals the frozen disk; `what` is what was done before.
    fn expect_equal(&mut self, what: &str) -> Result<()> {
        expect_equal(&self.scratch, &mut self.monitor, 0, what)
    }

    /// What the monitor said of a kind.
    fn said(&self, kind: &str) -> Vec<Value> {
        of_type(&self.monitor.lines(), kind)
    }

    /// Unmounts, ends the monitor, and expects that it saw everything and found nothing.
    fn end(mut self) -> Result<Outcome> {
        if self.scratch.is_mounted() {
            self.unmount()?;
        }
        let ended = self.monitor.stop()?;
        ended.expect_clean()?;
        println!("{}", ended.coverage()?);
        Ok(Outcome::Passed)
    }
}

/// Freezes and compares; `what` is what was done before.
fn expect_equal(scratch: &Scratch, monitor: &mut Monitor, slot: usize, what: &str) -> Result<()> {
    let frozen = Frozen::freeze(scratch).with_context(|| format!("{what}: cannot freeze"))?;
    let compared = compare_nth(scratch, monitor, slot);
    drop(frozen);
    let extents = compared.with_context(|| format!("{what}: ledger and disk differ"))?;
    ensure!(monitor.findings().is_empty(), "{what}: found {:?}", monitor.findings());
    println!("{what}: all {extents} extents are equal");
    Ok(())
}
