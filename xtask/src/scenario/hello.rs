//! The machine works: a btrfs can be made, mounted, written, dumped and unmounted.

use std::fs;

use anyhow::{Result, ensure};

use super::{Outcome, Place, scratch::Scratch};
use crate::{command, machine};

pub(super) fn run(place: &Place) -> Result<Outcome> {
    println!("hello from Linux {}", machine::kernel_release());
    let mut scratch = Scratch::new(place, 512 << 20)?;
    scratch.mkfs(&[])?;
    scratch.mount()?;
    let file = scratch.path("file");
    fs::write(&file, vec![7; 1 << 20])?;
    fs::File::open(&file)?.sync_all()?;
    scratch.unmount()?;
    let args = ["inspect-internal", "dump-tree", "-t", "extent", scratch.device_name()];
    let dump = command::run("btrfs", &args)?;
    ensure!(dump.contains("EXTENT_ITEM 1048576"), "the file's extent is not on disk: {dump}");
    Ok(Outcome::Passed)
}
