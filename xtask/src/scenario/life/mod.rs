//! What comes and goes in the life of a file system without anything failing: mounts, other
//! file systems on the same device, devices, features, the module itself. After each thing the
//! ledger is compared with the frozen disk; none may make the monitor find or miss anything.

use anyhow::{Context, Result};

use super::{Outcome, Place, Scenario, Tested, scratch::Scratch, watched::Watched};
use churn::churn;

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

/// A file system that lives on between two changes.
struct Living {
    watched: Watched,
    round: u64,
}

impl Living {
    /// Unmounted, on a device of `len_bytes`.
    fn new(place: &Place, len_bytes: u64) -> Result<Self> {
        Ok(Self { watched: Watched::new(place, Scratch::new(place, len_bytes)?)?, round: 0 })
    }

    /// Works on, and compares; `what` is what was done before.
    fn on(&mut self, what: &str) -> Result<()> {
        self.round += 1;
        churn(&self.watched.scratch.mount_point, self.round).context(what.to_owned())?;
        self.watched.expect_equal(what)
    }
}
