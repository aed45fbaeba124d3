//! Faults planted on disk before mounting, each brought to light by one change of the extent.
//!
//! After most of them the kernel aborts the transaction and turns the file system read-only:
//! the disk stays as it was, and only the event tells.

use std::{
    fs::{self, File},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use rustix::fs::{StatVfsMountFlags, ioctl_ficlone, statvfs, syncfs};
use serde_json::Value;

use super::{
    Outcome, Place,
    compare::compare,
    field::{FS_TREE, Field, Target, sync},
    journal::{self, Journal},
    monitor::{Monitor, STATUS_FINDINGS},
    scratch::Scratch,
    workload::{Balances, Workload},
};
use crate::plant::{Edit, plant};

/// What is expected of the monitor.
struct Expected {
    /// The finding's kind, once the extent is touched.
    kind: &'static str,
    /// What reading the extent tree shows already, by itself.
    on_disk: &'static [&'static str],
    target: Target,
}

/// Item edit: the clone's inline `EXTENT_DATA_REF` is removed, the total kept; whoever reads the
/// item sees that it does not add up. Trigger: the clone is deleted, which drops the reference.
/// The kernel does not find it and aborts.
pub(super) fn missing_ref(place: &Place) -> Result<Outcome> {
    let field = Field::new(place)?;
    let target = field.clone;
    plant(
        &field.scratch.device,
        target.bytenr,
        Edit::RemoveRef { inode: target.inode, keep_total: true },
    )?;
    deletion_is_found(
        place,
        field,
        "clone",
        &Expected { kind: "drop-missing-ref", on_disk: &["ref-count-mismatch"], target },
    )
}

/// Item edit: the inline `EXTENT_DATA_REF` names another subvolume. Trigger: the file is deleted,
/// which drops the reference of the root it is in. The kernel does not find it and aborts.
pub(super) fn wrong_root(place: &Place) -> Result<Outcome> {
    let field = Field::new(place)?;
    let target = field.single;
    let edit = Edit::ChangeRoot { inode: target.inode, root: field.other_root };
    plant(&field.scratch.device, target.bytenr, edit)?;
    deletion_is_found(
        place,
        field,
        "single",
        &Expected { kind: "drop-missing-ref", on_disk: &[], target },
    )
}

/// Item edit: the `EXTENT_ITEM` is removed. Trigger: the file is deleted, which drops a reference
/// to an extent that is not there. The kernel does not find it and aborts.
pub(super) fn missing_item(place: &Place) -> Result<Outcome> {
    let field = Field::new(place)?;
    let target = field.single;
    plant(&field.scratch.device, target.bytenr, Edit::RemoveItem)?;
    deletion_is_found(place, field, "single", &Expected { kind: "no-entry", on_disk: &[], target })
}

/// Item edit: count and total go from 2 to 1. Trigger: the file is deleted, which drops two
/// references; the first takes the extent to 0. The kernel sees fewer than it has to drop and
/// aborts.
pub(super) fn low_count(place: &Place) -> Result<Outcome> {
    let field = Field::new(place)?;
    let target = field.split;
    plant(&field.scratch.device, target.bytenr, Edit::LowerCount { inode: target.inode })?;
    deletion_is_found(place, field, "split", &Expected { kind: "zero-refs", on_disk: &[], target })
}

/// Item edits: as in `missing_ref`, but with the total lowered too, so that nothing shows on
/// disk; and as in `missing_item`. First trigger: the origin is
/// cloned over its clone again; the drop and the add of the clone's reference cancel each
/// other in the transaction, so the kernel never looks for it and nothing aborts. The monitor
/// reports, goes on through honest work, still equals the disk, and finds the second fault.
pub(super) fn goes_on(place: &Place) -> Result<Outcome> {
    let Field { mut scratch, origin, clone, single, .. } = Field::new(place)?;
    ensure!(origin.bytenr == clone.bytenr, "the clone shares nothing");
    plant(
        &scratch.device,
        clone.bytenr,
        Edit::RemoveRef { inode: clone.inode, keep_total: false },
    )?;
    plant(&scratch.device, single.bytenr, Edit::RemoveItem)?;
    let mut monitor = Monitor::start(place, scratch.device_name(), &[])?;
    scratch.mount()?;
    monitor.wait_for("seeded")?;

    let mut seen = 0;
    clone_again(&scratch)?;
    expect(
        &mut monitor,
        &mut seen,
        &Expected { kind: "drop-missing-ref", on_disk: &[], target: clone },
    )?;

    // A balance would move the broken extents, which is another story.
    let mut workload = Workload::start(&scratch.mount_point, 3, Balances::None)?;
    workload.work(1_000, Duration::from_mins(5))?;
    workload.stop().context("the file system did not stay healthy")?;
    let extents = compare(&scratch, &mut monitor)?;
    println!("after the finding, all {extents} extents are equal");
    let findings = monitor.findings().len();
    ensure!(findings == 1, "one wrong event became {findings} findings: {:?}", monitor.findings());

    delete_and_sync(&scratch, "single")?;
    expect(&mut monitor, &mut seen, &Expected { kind: "no-entry", on_disk: &[], target: single })?;
    end(monitor, scratch)?;
    Ok(Outcome::Passed)
}

/// Without the monitor: the kernel mounts every planted file system without a complaint, and
/// meets the fault as the scenarios above say. A plant that it does not take, or takes for
/// nothing, would make them void.
pub(super) fn kernel_meets_them(place: &Place) -> Result<Outcome> {
    type Plant = fn(&Field) -> (&'static str, Target, Edit);
    let plants: [Plant; 4] = [
        |field| {
            ("clone", field.clone, Edit::RemoveRef { inode: field.clone.inode, keep_total: true })
        },
        |field| {
            let inode = field.single.inode;
            ("single", field.single, Edit::ChangeRoot { inode, root: field.other_root })
        },
        |field| ("single", field.single, Edit::RemoveItem),
        |field| ("split", field.split, Edit::LowerCount { inode: field.split.inode }),
    ];
    for choose in plants {
        let mut field = Field::new(place)?;
        let (file, target, edit) = choose(&field);
        plant(&field.scratch.device, target.bytenr, edit)?;
        field.scratch.mount()?;
        let data = fs::read(field.scratch.path(file))?;
        ensure!(data.len() == 128 << 10, "{file} is {} bytes long", data.len());
        ensure!(!is_read_only(&field.scratch)?, "{edit:?}: read-only before it was touched");
        delete_and_sync(&field.scratch, file)?;
        ensure!(is_read_only(&field.scratch)?, "{edit:?}: the kernel did not abort");
        field.scratch.unmount()?;
        println!("{edit:?}: mounted in silence, aborted when {file} was deleted");
    }
    let mut field = Field::new(place)?;
    plant(
        &field.scratch.device,
        field.clone.bytenr,
        Edit::RemoveRef { inode: field.clone.inode, keep_total: false },
    )?;
    field.scratch.mount()?;
    clone_again(&field.scratch)?;
    sync(&field.scratch)?;
    ensure!(!is_read_only(&field.scratch)?, "cloning again aborted");
    field.scratch.unmount()?;
    println!("RemoveRef: not noticed when the origin was cloned again");
    Ok(Outcome::Passed)
}

fn clone_again(scratch: &Scratch) -> Result<()> {
    let source = File::open(scratch.path("origin"))?;
    let target = File::options().write(true).open(scratch.path("clone"))?;
    ioctl_ficlone(&target, &source).context("cannot clone again")
}

/// After an abort it is.
fn is_read_only(scratch: &Scratch) -> Result<bool> {
    Ok(statvfs(&scratch.mount_point)?.f_flag.contains(StatVfsMountFlags::RDONLY))
}

/// Watches the file's deletion, and expects it reported: on standard output, in the journal,
/// and by the exit status.
fn deletion_is_found(
    place: &Place,
    field: Field,
    file: &str,
    expected: &Expected,
) -> Result<Outcome> {
    let mut scratch = field.scratch;
    let _journal = Journal::start()?;
    let mut monitor = Monitor::start(place, scratch.device_name(), &["--journal"])?;
    scratch.mount()?;
    monitor.wait_for("seeded")?;
    delete_and_sync(&scratch, file)?;
    ensure!(is_read_only(&scratch)?, "the kernel did not abort");
    let finding = expect(&mut monitor, &mut 0, expected)?;
    only_expected(&monitor.findings(), expected)?;
    in_journal(&monitor, &finding)?;
    end(monitor, scratch)?;
    Ok(Outcome::Passed)
}

/// The finding that has to come, after the `seen` ones that came before.
fn expect(monitor: &mut Monitor, seen: &mut usize, expected: &Expected) -> Result<Value> {
    let Expected { kind, target, .. } = expected;
    let is_it = |finding: &Value| finding["bytenr"] == target.bytenr && finding["kind"] == *kind;
    loop {
        let finding = monitor
            .wait_for_nth("finding", *seen + 1)
            .with_context(|| format!("{kind} of {} is wanted", target.bytenr))?;
        *seen += 1;
        if !is_it(&finding) {
            println!("found besides: {}", finding["message"]);
            continue;
        }
        println!("found: {}", finding["message"]);
        ensure!(finding["root"] == FS_TREE, "root: {finding}");
        ensure!(finding["owner"] == target.inode, "owner: {finding}");
        ensure!(finding["parent"] == 0, "parent: {finding}");
        ensure!(finding["transid"].as_u64().is_some_and(|transid| transid > 0), "{finding}");
        ensure!(finding["pid"] == std::process::id(), "pid: {finding}");
        let stack: Option<Vec<&str>> = finding["stack"]
            .as_array()
            .map(|frames| frames.iter().filter_map(Value::as_str).collect());
        stack_is_in_btrfs(&stack.unwrap_or_default())?;
        return Ok(finding);
    }
}

/// One fault is not reported as anything else, nor anywhere else, nor twice.
fn only_expected(findings: &[Value], expected: &Expected) -> Result<()> {
    let mut kinds: Vec<&str> = Vec::new();
    for finding in findings {
        ensure!(finding["bytenr"] == expected.target.bytenr, "not planted: {finding}");
        kinds.extend(finding["kind"].as_str());
    }
    let mut wanted = expected.on_disk.to_vec();
    wanted.push(expected.kind);
    ensure!(kinds == wanted, "found were {kinds:?}, not {wanted:?}");
    Ok(())
}

/// The innermost frames are btrfs's: of its module, or named so where it is built in.
fn stack_is_in_btrfs(stack: &[&str]) -> Result<()> {
    let is_module = fs::exists("/sys/module/btrfs/initstate")?;
    let top = stack.get(..3).with_context(|| format!("a stack of few frames: {stack:?}"))?;
    let inside = |frame: &&str| {
        if is_module { frame.ends_with("[btrfs]") } else { frame.contains("btrfs_") }
    };
    let needed = if is_module { top.len() } else { 1 };
    ensure!(
        top.iter().filter(|frame| inside(frame)).count() >= needed,
        "the top of the stack is not in btrfs: {top:?}"
    );
    Ok(())
}

/// The journal has the same finding.
fn in_journal(monitor: &Monitor, finding: &Value) -> Result<()> {
    let text = |name: &str| finding[name].as_str().unwrap_or_default().to_owned();
    let entry = journal::wait_for(
        monitor.pid(),
        &[("REFVERIFY_KIND", text("kind")), ("REFVERIFY_BYTENR", finding["bytenr"].to_string())],
    )?;
    for (field, value) in [
        ("PRIORITY", "3".to_owned()),
        ("REFVERIFY_ROOT", finding["root"].to_string()),
        ("REFVERIFY_OWNER", finding["owner"].to_string()),
        ("REFVERIFY_OFFSET", finding["offset"].to_string()),
        ("REFVERIFY_PARENT", finding["parent"].to_string()),
        ("REFVERIFY_TRANSID", finding["transid"].to_string()),
        ("REFVERIFY_PID", finding["pid"].to_string()),
        ("REFVERIFY_COMM", text("comm")),
        ("REFVERIFY_DEVICE", text("device")),
        ("REFVERIFY_FSID", text("fsid")),
    ] {
        ensure!(entry[field] == value, "the journal's {field} is {}, not {value}", entry[field]);
    }
    let id = entry["MESSAGE_ID"].as_str().unwrap_or_default();
    ensure!(id.len() == 32, "MESSAGE_ID is {id:?}");
    ensure!(entry["MESSAGE"].as_str().is_some_and(|text| !text.is_empty()), "no MESSAGE");
    let stack = entry["REFVERIFY_STACK"].as_str().unwrap_or_default();
    stack_is_in_btrfs(&stack.lines().map(str::trim).collect::<Vec<_>>())?;
    println!("read back from the journal: {}", entry["MESSAGE"]);
    Ok(())
}

/// Unmounts, ends the monitor, and expects its status to say that there were findings.
fn end(mut monitor: Monitor, mut scratch: Scratch) -> Result<()> {
    scratch.unmount()?;
    monitor.wait_for("unmounted")?;
    let ended = monitor.stop()?;
    ensure!(ended.status & STATUS_FINDINGS != 0, "exit status {}", ended.status);
    Ok(())
}

/// Deletes a file and has the kernel carry it out.
fn delete_and_sync(scratch: &Scratch, file: &str) -> Result<()> {
    fs::remove_file(scratch.path(file)).with_context(|| format!("cannot delete {file}"))?;
    // Fails where the kernel aborts, which is as it should be.
    let _ = syncfs(File::open(&scratch.mount_point)?);
    Ok(())
}
