//! A seed sprouts: a device is added to a mounted seed, and from then on it is another file system,
//! with another fsid, on two devices.

use anyhow::{Result, ensure};

use super::{Outcome, Place, Scratch, Watched, churn::churn};
use crate::{
    command::{run, text},
    scenario::monitor::Monitor,
};

pub(super) fn run_all(place: &Place) -> Result<Outcome> {
    let mut scratch = Scratch::new(place, 1 << 30)?;
    scratch.mkfs(&[])?;
    scratch.mount()?;
    churn(&scratch.mount_point, 0)?;
    scratch.unmount()?;
    run("btrfstune", &["-f", "-S", "1", scratch.device_name()])?;
    let monitor = Monitor::start(place, scratch.device_name(), &[])?;
    let mut watched = Watched { monitor, scratch };
    sprout(place, &mut watched)?;
    watched.end()
}

/// The seed is what the monitor was given.
fn sprout(place: &Place, watched: &mut Watched) -> Result<()> {
    watched.mount("ro")?;
    watched.expect_equal("a seed, mounted")?;
    let seed = watched.scratch.device.clone();
    let new = watched.scratch.add_loop(place, "sprout", 1 << 30)?;
    let mount_name = watched.scratch.mount_name().to_owned();
    run("btrfs", &["device", "add", "-f", text(&new)?, &mount_name])?;
    run("mount", &["-o", "remount,rw", &mount_name])?;
    // What is current is on the new device from here on.
    watched.scratch.device = new;
    watched.scratch.others = vec![seed];
    for round in 1..=2 {
        churn(&watched.scratch.mount_point, round)?;
        watched.expect_equal("sprouted")?;
    }
    // The next look at the superblock shows it.
    let named = watched.monitor.wait_for("named")?;
    watched.unmount()?;
    watched.mount("")?;
    churn(&watched.scratch.mount_point, 3)?;
    watched.expect_equal("the sprout mounted again")?;
    let seeded = watched.said("seeded");
    let fsid = |nth: usize| seeded.get(nth).map(|line| line["fsid"].clone());
    ensure!(fsid(0) != fsid(1), "the sprout has the seed's fsid: {seeded:?}");
    ensure!(fsid(1) == Some(named["fsid"].clone()), "{named}, and then: {seeded:?}");
    Ok(())
}
