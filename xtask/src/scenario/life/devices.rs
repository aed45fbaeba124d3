//! A file system's space and devices change while it is worked on.

use std::{path::Path, time::Duration};

use anyhow::{Context, Result, ensure};

use super::{Outcome, Place, Scratch, Watched};
use crate::{
    command::{run, text},
    scenario::workload::{Balances, Workload},
};

/// Operations during and after each change.
const OPERATIONS: u64 = 60;

/// How long they may take.
const LIMIT: Duration = Duration::from_secs(100);

pub(super) fn run_all(place: &Place) -> Result<Outcome> {
    let mut watched = Watched::new(place, Scratch::new(place, 4 << 30)?)?;
    watched.mount("")?;
    let workload = Workload::start(&watched.scratch.mount_point, 11, Balances::None)?;
    let mut changing = Changing { watched, workload };
    changing.sizes()?;
    changing.profiles()?;
    let [second, third] = [
        changing.watched.scratch.add_loop(place, "added", 4 << 30)?,
        changing.watched.scratch.add_loop(place, "replacement", 4 << 30)?,
    ];
    changing.devices(&second, &third)?;
    let Changing { watched, workload } = changing;
    workload.stop()?;
    watched.end()
}

/// A file system that is worked on.
struct Changing {
    watched: Watched,
    workload: Workload,
}

impl Changing {
    fn sizes(&mut self) -> Result<()> {
        let to = |size: &'static str| ["filesystem", "resize", size];
        self.change("shrunk", &to("1:1500M"))?;
        self.change("grown", &to("1:max"))
    }

    fn profiles(&mut self) -> Result<()> {
        let convert = |to: &'static str| ["balance", "start", "-f", to];
        self.change("metadata converted to single", &convert("-mconvert=single"))?;
        self.change("data converted to dup", &convert("-dconvert=dup"))?;
        self.change("data converted to single", &convert("-dconvert=single"))?;
        self.change("balanced", &["balance", "start", "--full-balance"])
    }

    fn devices(&mut self, second: &Path, third: &Path) -> Result<()> {
        let first = self.watched.scratch.device.clone();
        self.watched.scratch.others = vec![second.to_owned()];
        self.change("a device added", &["device", "add", "-f", text(second)?])?;
        self.change(
            "converted to RAID1",
            &["balance", "start", "-f", "-mconvert=raid1", "-dconvert=raid1"],
        )?;
        self.watched.scratch.others.push(third.to_owned());
        let replace = ["replace", "start", "-B", "-f", text(second)?, text(third)?];
        self.change("a device replaced", &replace)?;
        self.watched.scratch.others = vec![third.to_owned()];
        self.change(
            "converted to one copy",
            &["balance", "start", "-f", "-mconvert=single", "-dconvert=single"],
        )?;
        self.change("a device removed", &["device", "remove", text(third)?])?;
        self.watched.scratch.others.clear();
        ensure!(self.watched.scratch.device == first, "the watched device stays");
        self.change("what is left balanced", &["balance", "start", "--full-balance"])
    }

    /// Runs `btrfs` with these words and the mount point, in the middle of the work.
    fn change(&mut self, what: &str, words: &[&str]) -> Result<()> {
        self.workload.work(OPERATIONS, LIMIT)?;
        let words = [words, &[self.watched.scratch.mount_name()]].concat();
        run("btrfs", &words).with_context(|| what.to_owned())?;
        self.workload.work(OPERATIONS, LIMIT)?;
        self.watched.expect_equal(what)
    }
}
