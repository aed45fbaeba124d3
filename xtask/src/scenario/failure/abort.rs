//! The kernel aborts a transaction because of a planted fault, and the file system is read-only
//! from then on. What was seen of the transaction is undone; what was found in it stays.

use std::fs;

use anyhow::{Result, ensure};

use super::{
    Outcome, Place, compare_at_rest, compare_frozen, end, is_read_only, number, work_and_sync,
};
use crate::{
    plant::{Edit, plant},
    scenario::{
        compare::superblock,
        field::{Field, sync},
        monitor::{Monitor, STATUS_FINDINGS},
    },
};

pub(super) fn run(place: &Place) -> Result<Outcome> {
    let Field { mut scratch, clone, .. } = Field::new(place)?;
    let edit = Edit::RemoveRef { inode: clone.inode, keep_total: false };
    plant(&scratch.device, clone.bytenr, edit)?;
    let mut monitor = Monitor::start(place, scratch.device_name(), &[])?;
    scratch.mount()?;
    monitor.wait_for("seeded")?;
    work_and_sync(&scratch, 1)?;

    // Much goes with it that is right.
    super::work(&scratch, 2)?;
    fs::remove_file(scratch.path("clone"))?;
    let _ = sync(&scratch);
    ensure!(is_read_only(&scratch)?, "the kernel did not abort");
    let aborted = monitor.wait_for("aborted")?;
    let undone = monitor.wait_for("undone")?;
    println!("{aborted}\n{undone}");
    let on_disk = superblock(&scratch.device)?.generation;
    ensure!(number(&undone, "on_disk")? == on_disk, "the superblock is of {on_disk}: {undone}");
    let transid = number(&aborted, "transid")?;
    ensure!(number(&undone, "first")? == on_disk + 1, "{undone}");
    ensure!(number(&undone, "last")? >= transid, "{undone}");
    ensure!(number(&undone, "findings")? == 1, "what becomes of the finding is not told: {undone}");
    let finding = &monitor.findings()[0];
    ensure!(finding["transid"] == transid, "{finding}");
    compare_at_rest(&scratch, &mut monitor, "aborted", "after the abort")?;
    scratch.unmount()?;
    monitor.wait_for("unmounted")?;
    compare_at_rest(&scratch, &mut monitor, "unmounted", "after the unmount that followed")?;

    scratch.mount()?;
    monitor.wait_for_nth("seeded", 2)?;
    work_and_sync(&scratch, 3)?;
    compare_frozen(&scratch, &mut monitor, "mounted again")?;
    scratch.unmount()?;
    monitor.wait_for_nth("unmounted", 2)?;
    let ended = end(monitor, STATUS_FINDINGS, 1)?;
    let coverage = ended.coverage()?;
    ensure!(coverage["undone"][0]["first"] == on_disk + 1, "not in the summary: {coverage}");
    Ok(Outcome::Passed)
}
