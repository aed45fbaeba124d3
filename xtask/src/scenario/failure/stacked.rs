//! The monitor is given a device that is stacked on another, which is mounted later without it. (The
//! other way is in `life::stacked`, and with device-mapper in `mapped`.)

use anyhow::Result;

use super::{Disk, Outcome, Place, Scratch, end, mapped::mounted_by};
use crate::scenario::monitor::Monitor;

pub(super) fn run(place: &Place) -> Result<Outcome> {
    let below = Disk::new(place.dir().join("image"))?;
    let mut scratch = Scratch::on(place, &below.device)?;
    scratch.mkfs(&[])?;
    let above = Disk::of(below.device.clone())?;
    let mut monitor = Monitor::start(place, above.name(), &[])?;
    mounted_by(&mut scratch, &mut monitor, &above.device, 0)?;
    mounted_by(&mut scratch, &mut monitor, &below.device, 1)?;
    mounted_by(&mut scratch, &mut monitor, &above.device, 2)?;
    end(monitor, 0, 0)?.expect_clean()?;
    Ok(Outcome::Passed)
}
