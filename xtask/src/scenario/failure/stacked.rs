//! The monitor is given a device that is stacked on another, which is mounted later without it. (The
//! other way, given the one below, is in `mapped`.)

use anyhow::Result;

use super::{Disk, Outcome, Place, Scratch, Watched, mapped::mounted_by};

pub(super) fn run(place: &Place) -> Result<Outcome> {
    let below = Disk::new(place.dir().join("image"))?;
    let above = Disk::of(below.device.clone())?;
    let mut watched = Watched::new(place, Scratch::on(place, &above.device)?)?;
    for (round, disk) in (0..).zip([&above, &below, &above]) {
        mounted_by(&mut watched, &disk.device, round)?;
    }
    watched.end()
}
