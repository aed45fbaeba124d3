//! The file system is mounted by a device that is stacked on the one that is watched. What is read
//! has to be read through the upper one: a loop device writes by a page cache that reads of the
//! lower device do not see.

use std::path::PathBuf;

use anyhow::{Context, Result};

use super::{Outcome, Place, Watched, churn::churn};
use crate::command::run;

pub(super) fn run_all(place: &Place) -> Result<Outcome> {
    let mut watched = Watched::new(place, 1 << 30, &[])?;
    let lower = watched.scratch.device.clone();
    let upper = Upper::on(watched.scratch.device_name())?;
    watched.scratch.device.clone_from(&upper.0);
    watched.mount("")?;
    for round in 1..=2 {
        churn(&watched.scratch.mount_point, round)?;
        watched.expect_equal("mounted by a loop device on the watched one")?;
    }
    watched.unmount()?;
    watched.mount("")?;
    churn(&watched.scratch.mount_point, 3)?;
    watched.expect_equal("and mounted so again")?;
    watched.unmount()?;
    drop(upper);
    watched.scratch.device = lower;
    watched.mount("")?;
    churn(&watched.scratch.mount_point, 4)?;
    watched.expect_equal("mounted by the watched device itself")?;
    watched.end()
}

/// A loop device on another device; detached when dropped.
struct Upper(PathBuf);

impl Upper {
    fn on(device: &str) -> Result<Self> {
        let name = run("losetup", &["--find", "--show", device])?;
        Ok(Self(PathBuf::from(name.trim())))
    }
}

impl Drop for Upper {
    fn drop(&mut self) {
        let name = self.0.to_str().context("device names are ASCII");
        let detached = name.and_then(|name| run("losetup", &["--detach", name]));
        if let Err(error) = detached {
            println!("cannot detach: {error:#}");
        }
    }
}
