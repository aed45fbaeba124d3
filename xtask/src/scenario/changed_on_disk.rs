//! The tree on disk is changed behind a monitor that runs, in every copy and with valid checksums:
//! an audit finds it at the commit. No rule about events can: none was wrong.

use std::{
    fs::{self, File},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use rustix::fs::{ioctl_ficlone, syncfs};

use super::{
    Outcome, Place,
    compare::Frozen,
    field::{Field, Target},
    monitor::{Monitor, STATUS_FINDINGS},
    scratch::Scratch,
};
use crate::plant::{Edit, plant};

/// Longer than an audit of a small file system takes.
const AUDIT: Duration = Duration::from_secs(2);

/// The item says one reference where the events made two.
pub(super) fn run(place: &Place) -> Result<Outcome> {
    let Field { mut scratch, origin, clone, .. } = Field::new(place)?;
    let mut monitor = Monitor::start(place, scratch.device_name(), &["--audit"])?;
    scratch.mount()?;
    monitor.wait_for("seeded")?;

    // An audit without a change finds nothing.
    touch(&scratch)?;
    let frozen = Frozen::freeze(&scratch)?;
    std::thread::sleep(AUDIT);
    drop(frozen);
    ensure!(monitor.findings().is_empty(), "nothing was changed: {:?}", monitor.findings());

    // The monitor must not look between the commit and the change.
    monitor.stop_for_now()?;
    touch(&scratch)?;
    let frozen = Frozen::freeze(&scratch)?;
    change(&scratch, clone)?;
    monitor.go_on()?;
    let finding = monitor.wait_for("finding")?;
    drop(frozen);
    println!("found: {}", finding["message"]);
    ensure!(finding["kind"] == "disk-differs", "{finding}");
    ensure!(finding["bytenr"] == origin.bytenr, "not the one that was changed: {finding}");
    ensure!(finding["extent"]["total_refs"] == 2, "what the events lead to: {finding}");
    ensure!(finding["on_disk"]["total_refs"] == 1, "what is on disk: {finding}");

    scratch.unmount()?;
    monitor.wait_for("unmounted")?;
    let ended = monitor.stop()?;
    ensure!(ended.status & STATUS_FINDINGS != 0, "exit status {}", ended.status);
    Ok(Outcome::Passed)
}

/// An event for the extent, which changes nothing of it: the origin is cloned over its clone again.
fn touch(scratch: &Scratch) -> Result<()> {
    let source = File::open(scratch.path("origin"))?;
    let target = File::options().write(true).open(scratch.path("clone"))?;
    ioctl_ficlone(&target, &source).context("cannot clone again")?;
    // Something that the commit is made for in any case.
    fs::write(scratch.path("changes"), [1; 8192])?;
    Ok(syncfs(&target)?)
}

fn change(scratch: &Scratch, clone: Target) -> Result<()> {
    let edit = Edit::RemoveRef { inode: clone.inode, keep_total: false };
    plant(&scratch.device, clone.bytenr, edit)
}
