//! A device is pulled out while it is mounted. Here `null_blk` plays one, in a VM.

use std::{fs, path::Path};

use anyhow::{Context, Result, ensure};
use rustix::mount::{MountFlags, mount};

use super::{Outcome, Place, begin, end, work};
use crate::scenario::{field::sync, monitor::STATUS_COVERAGE_LOST};

/// Where devices are made and taken away (kernel: `Documentation/block/null_blk.rst`).
const CONFIGFS: &str = "/sys/kernel/config";

pub(super) fn run(place: &Place) -> Result<Outcome> {
    if !place.has_device() {
        return Ok(Outcome::Skipped("only a VM has null_blk".to_owned()));
    }
    let nullb = Path::new(CONFIGFS).join("nullb");
    if !nullb.exists() {
        mount("configfs", CONFIGFS, "configfs", MountFlags::empty(), None)
            .context("cannot mount configfs")?;
    }
    let pluggable = nullb.join("pluggable");
    fs::create_dir(&pluggable)?;
    // The module was loaded for zoned devices.
    let settings = [("zoned", "0"), ("size", "512"), ("memory_backed", "1"), ("power", "1")];
    for (name, value) in settings {
        fs::write(pluggable.join(name), value).with_context(|| format!("{name}={value}"))?;
    }
    let index = fs::read_to_string(pluggable.join("index"))?;
    // Newer kernels call it as its directory is called.
    let names = ["/dev/pluggable".to_owned(), format!("/dev/nullb{}", index.trim())];
    let is_there = |name: &&String| Path::new(name).exists();
    let device = names.iter().find(is_there).context("null_blk made no device")?;
    let mut watched = begin(place, Path::new(device), "")?;
    fs::write(pluggable.join("power"), "0")?;
    ensure!(!fs::exists(device)?, "{device} is still there");
    let _ = work(&watched.scratch, 2);
    let _ = sync(&watched.scratch);
    println!("{}", watched.monitor.wait_for("aborted")?);
    println!("{}", watched.monitor.wait_for("blind")?);
    watched.unmount()?;
    let ended = end(watched.monitor, STATUS_COVERAGE_LOST, 0)?;
    println!("{}", ended.coverage()?);
    fs::remove_dir(pluggable)?;
    Ok(Outcome::Passed)
}
