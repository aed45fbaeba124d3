//! As a test suite works: make a file system, mount, work, unmount; again and again on the same
//! device, with one monitor throughout.

use std::collections::BTreeSet;

use anyhow::{Context, Result, ensure};

use super::{Outcome, Place, Scratch, Watched, churn::churn};
use crate::scenario::used::Used;

/// How often.
const TIMES: u64 = 100;

/// Each such time ledger and disk are compared.
const COMPARED: u64 = 10;

/// From here on the monitor has met everything once, and may not grow any more.
const SETTLED: u64 = 30;

/// What its memory may grow by from then on: the allocator's own play.
const PLAY_KIB: u64 = 4 << 10;

pub(super) fn run(place: &Place) -> Result<Outcome> {
    let mut watched = Watched::new(place, Scratch::new(place, 1 << 30)?)?;
    let mut settled = None;
    let mut fsids = BTreeSet::new();
    for time in 1..=TIMES {
        watched.scratch.mkfs(&[])?;
        let compared = time % COMPARED == 0;
        if compared {
            watched.mount("")?;
        } else {
            watched.scratch.mount()?;
        }
        churn(&watched.scratch.mount_point, time)?;
        if compared {
            watched.expect_equal(&format!("file system {time} of {TIMES}"))?;
            let last = watched.said("seeded").pop().context("it was not read")?;
            fsids.insert(last["fsid"].to_string());
        }
        watched.scratch.unmount()?;
        if time == SETTLED {
            settled = Some(Used::by(watched.monitor.pid())?);
        }
    }
    watched.monitor.wait_for_nth("unmounted", usize::try_from(TIMES)?)?;
    let (before, after) = (settled.context("too few times")?, Used::by(watched.monitor.pid())?);
    println!("memory and descriptors: {before:?} after {SETTLED}, {after:?} after {TIMES}");
    ensure!(after.descriptors <= before.descriptors, "descriptors are left open");
    ensure!(after.memory_kib <= before.memory_kib + PLAY_KIB, "its memory grows");
    ensure!(fsids.len() as u64 == TIMES / COMPARED, "not each was a new one: {fsids:?}");
    watched.end()
}
