//! A file system's space and devices change while it is worked on.

use std::{path::Path, time::Duration};

use anyhow::{Context, Result, ensure};

use super::{Outcome, Place, Scratch, Watched, churn::churn};
use crate::{
    command::{run, text},
    scenario::{
        monitor::Monitor,
        workload::{Balances, Workload},
    },
};

/// Operations during and after each change.
const OPERATIONS: u64 = 60;

/// How large each device is: with less, the chunks that a replacement holds on to while the work
/// goes on may be all there are (kernel: `scrub_enumerate_chunks` asks for another before it copies
/// one; seen with 4 GiB in 6.18).
const DEVICE_BYTES: u64 = 16 << 30;

/// How long they may take.
const LIMIT: Duration = Duration::from_secs(100);

pub(super) fn run_all(place: &Place) -> Result<Outcome> {
    let mut watched = Watched::new(place, Scratch::new(place, DEVICE_BYTES)?)?;
    watched.mount("")?;
    let workload = Workload::start(&watched.scratch.mount_point, 11, Balances::None)?;
    let mut changing = Changing { watched, workload };
    changing.sizes()?;
    changing.profiles()?;
    let [second, third] = [
        changing.watched.scratch.add_loop(place, "added", DEVICE_BYTES)?,
        changing.watched.scratch.add_loop(place, "replacement", DEVICE_BYTES)?,
    ];
    changing.devices(&second, &third)?;
    let Changing { watched, workload } = changing;
    workload.stop()?;
    watched.end()?;
    mounted_by_a_new_device(place)
}

/// A device takes the place of the first one, by which the kernel knows a file system, and it is
/// mounted again at once: before the monitor has looked for devices that have joined, as it does
/// every second.
fn mounted_by_a_new_device(place: &Place) -> Result<Outcome> {
    let Some(scratch) = Scratch::pair(place, 1 << 30)? else {
        return Ok(Outcome::Skipped("there is one disk only".to_owned()));
    };
    scratch.mkfs(&[])?;
    let named = scratch.others[0].clone();
    let monitor = Monitor::start(place, text(&named)?, &[])?;
    let mut watched = Watched { monitor, scratch };
    watched.mount("")?;
    churn(&watched.scratch.mount_point, 0)?;
    watched.scratch.replace_first(place, 1 << 30)?;
    watched.scratch.unmount()?;
    watched.scratch.mount()?;
    // What is done within the second counts.
    for round in 1..=4 {
        churn(&watched.scratch.mount_point, round)?;
    }
    watched.monitor.wait_for_nth("seeded", 2)?;
    churn(&watched.scratch.mount_point, 5)?;
    watched.expect_equal("mounted at once by a device that has just joined")?;
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
        self.change("shrunk", &to("1:6G"))?;
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
