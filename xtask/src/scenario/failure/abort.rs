//! The kernel aborts a transaction because of a planted fault, and the file system is read-only
//! from then on. What was seen of the transaction is undone; what was found in it stays.

use std::fs;

use anyhow::{Result, ensure};

use super::{
    Outcome, Place, Watched, compare_at_rest, end, expect_undone, is_read_only, mounted_again,
    number, work, work_and_sync,
};
use crate::{
    plant::{Edit, plant},
    scenario::{
        field::{Field, sync},
        monitor::{Monitor, STATUS_FINDINGS},
    },
};

pub(super) fn run(place: &Place) -> Result<Outcome> {
    let Field { scratch, clone, .. } = Field::new(place)?;
    let edit = Edit::RemoveRef { inode: clone.inode, keep_total: false };
    plant(&scratch.device, clone.bytenr, edit)?;
    let monitor = Monitor::start(place, scratch.device_name(), &[])?;
    let mut watched = Watched { monitor, scratch };
    watched.mount("")?;
    work_and_sync(&watched.scratch, 1)?;

    // Much goes with it that is right.
    work(&watched.scratch, 2)?;
    fs::remove_file(watched.scratch.path("clone"))?;
    let _ = sync(&watched.scratch);
    ensure!(is_read_only(&watched.scratch)?, "the kernel did not abort");
    let (aborted, undone) = expect_undone(&mut watched)?;
    let transid = number(&aborted, "transid")?;
    let first = number(&undone, "on_disk")? + 1;
    ensure!(number(&undone, "first")? == first, "{undone}");
    ensure!(number(&undone, "last")? >= transid, "{undone}");
    ensure!(number(&undone, "findings")? == 1, "what becomes of the finding is not told: {undone}");
    let finding = &watched.monitor.findings()[0];
    ensure!(finding["transid"] == transid, "{finding}");
    watched.unmount()?;
    compare_at_rest(&mut watched, "unmounted", "after the unmount that followed")?;

    mounted_again(&mut watched)?;
    let ended = end(watched.monitor, STATUS_FINDINGS, 1)?;
    let coverage = ended.coverage()?;
    ensure!(coverage["undone"][0]["first"] == first, "not in the summary: {coverage}");
    Ok(Outcome::Passed)
}
