//! A loop device on the device, and a device under a loop device: the monitor is given one, and
//! the other is mounted. (Device-mapper is in `mapped`.)

use anyhow::Result;

use super::{Disk, Outcome, Place, Scratch, end, mapped::mounted_by};
use crate::scenario::monitor::Monitor;

pub(super) fn run(place: &Place) -> Result<Outcome> {
    let below = Disk::new(place.dir().join("image"))?;
    let mut scratch = Scratch::on(place, &below.device)?;
    scratch.mkfs(&[])?;

    let mut monitor = Monitor::start(place, below.name(), &[])?;
    mounted_by(&mut scratch, &mut monitor, &below.device, 0)?;
    let above = Disk::of(below.device.clone())?;
    mounted_by(&mut scratch, &mut monitor, &above.device, 1)?;
    end(monitor, 0, 0)?.expect_clean()?;

    let mut monitor = Monitor::start(place, above.name(), &[])?;
    mounted_by(&mut scratch, &mut monitor, &above.device, 0)?;
    mounted_by(&mut scratch, &mut monitor, &below.device, 1)?;
    end(monitor, 0, 0)?.expect_clean()?;
    Ok(Outcome::Passed)
}
