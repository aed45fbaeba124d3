//! Failures in the life of a file system, one file for each theme. Each ends with the ledger
//! compared with the disk.
//!
//! They work on loop devices, in a VM too: their images can be copied, put back and cut off.

use std::{
    fs::{self, File},
    path::Path,
};

use anyhow::{Context, Result, ensure};
use rustix::fs::{StatVfsMountFlags, ioctl_ficlone, statvfs};
use serde_json::Value;

use super::{
    Outcome, Place, Scenario, Tested,
    compare::{compare_with, superblock},
    field::sync,
    monitor::{Ended, Monitor, of_type},
    oracle,
    scratch::Scratch,
    watched::Watched,
    workload::Random,
};

mod abort;
mod disk;
mod log_replay;
mod lost_device;
mod mapped;
mod older;
mod shutdown;
mod stacked;
mod unplugged;
mod write_errors;

use disk::Disk;

/// Length of a file system here.
const LEN_BYTES: u64 = 512 << 20;

/// All of them.
pub(super) const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "log-replay",
        about: "a crash after fsync: what the mount replays is known to the ledger",
        tested: Tested::HereAndInOneVm,
        run: log_replay::run,
    },
    Scenario {
        name: "abort",
        about: "a transaction is aborted: it is undone, and what was found in it stays",
        tested: Tested::HereOnly,
        run: abort::run,
    },
    Scenario {
        name: "write-errors",
        about: "writes fail: the superblock decides what is undone",
        tested: Tested::HereOnly,
        run: write_errors::run,
    },
    Scenario {
        name: "lost-device",
        about: "the device goes while it is mounted, and comes back",
        tested: Tested::HereOnly,
        run: lost_device::run,
    },
    Scenario {
        name: "shutdown",
        about: "the file system is shut down, where the kernel can do that",
        tested: Tested::HereOnly,
        run: shutdown::run,
    },
    Scenario {
        name: "older",
        about: "older generations come back: a restored image, usebackuproot",
        tested: Tested::HereOnly,
        run: older::run,
    },
    Scenario {
        name: "stacked",
        about: "given a device on another one, and the other one is mounted",
        tested: Tested::HereOnly,
        run: stacked::run,
    },
    Scenario {
        name: "mapped",
        about: "device-mapper drops writes, fails them and logs them",
        tested: Tested::InOneVm,
        run: mapped::run_all,
    },
    Scenario {
        name: "unplugged",
        about: "a device is pulled out while it is mounted",
        tested: Tested::InOneVm,
        run: unplugged::run,
    },
    Scenario {
        name: "failures",
        about: "all failures in the life of a file system, in one boot",
        // Under emulation it takes many minutes: those that only a VM can have are tested alone.
        tested: Tested::No,
        run: run_all,
    },
];

/// All the others, one after the other; those that this kernel cannot have are told.
fn run_all(place: &Place) -> Result<Outcome> {
    for scenario in SCENARIOS.iter().filter(|scenario| scenario.name != "failures") {
        println!("== {}: {}", scenario.name, scenario.about);
        let place = place.another()?;
        match (scenario.run)(&place).with_context(|| scenario.name)? {
            Outcome::Passed => {}
            Outcome::Skipped(why) => println!("SKIPPED: {why}"),
        }
    }
    Ok(Outcome::Passed)
}

/// Honest changes: files, clones, a snapshot and deletions, some of them on disk at the end.
fn work(scratch: &Scratch, round: u64) -> Result<()> {
    let mut random = Random(round + 1);
    for number in 0..80 {
        let name = |number: u64| scratch.path(format!("file{}", number % 120));
        let mut data = vec![0; 4096 << random.below(6)];
        random.fill(&mut data);
        let number = round * 50 + number;
        fs::write(name(number), &data)?;
        if number.is_multiple_of(3) {
            let clone = File::create(scratch.path(format!("clone{}", number % 40)))?;
            ioctl_ficlone(clone, File::open(name(number))?)?;
        }
        if number.is_multiple_of(5) {
            let _ = fs::remove_file(name(number + 60));
        }
    }
    Ok(())
}

/// The same, all of it committed.
fn work_and_sync(scratch: &Scratch, round: u64) -> Result<()> {
    work(scratch, round)?;
    sync(scratch)
}

/// A new file system on a device, mounted under a monitor and worked on: so far all is well.
fn begin(place: &Place, device: &Path, options: &str) -> Result<Watched> {
    let mut watched = Watched::new(place, Scratch::on(place, device)?)?;
    watched.mount(options)?;
    work_and_sync(&watched.scratch, 1)?;
    watched.compare("before")?;
    Ok(watched)
}

/// Works on until the kernel gives up.
fn work_until_read_only(scratch: &Scratch) -> Result<()> {
    let mut round = 2;
    while !is_read_only(scratch)? {
        ensure!(round < 20, "the kernel does not notice that its device fails");
        // Fails sooner or later.
        let _ = work(scratch, round);
        let _ = sync(scratch);
        round += 1;
    }
    Ok(())
}

/// Waits until the monitor knows of an abort and of what became of its transaction, which the
/// superblock says. Gives both lines.
fn expect_undone(watched: &mut Watched) -> Result<(Value, Value)> {
    let aborted = watched.monitor.wait_for("aborted")?;
    let undone = watched.monitor.wait_for("undone")?;
    println!("{aborted}\n{undone}");
    let on_disk = superblock(&watched.scratch.device)?.generation;
    ensure!(number(&undone, "on_disk")? == on_disk, "the superblock is of {on_disk}: {undone}");
    compare_at_rest(watched, "aborted", "after the abort")?;
    Ok((aborted, undone))
}

/// Compares a ledger in a state in which nothing changes any more.
fn compare_at_rest(watched: &mut Watched, state: &str, when: &str) -> Result<()> {
    let ledger = oracle::parse_ledger(&watched.monitor.dump_ledger()?)?;
    ensure!(ledger.state == state, "{when}: the ledger's state is {}", ledger.state);
    let extents = compare_with(&ledger, &watched.scratch).with_context(|| when.to_owned())?;
    println!("{when}: all {extents} extents are equal");
    Ok(())
}

/// What failed works again: mounts, works, compares and unmounts.
fn mounted_again(watched: &mut Watched) -> Result<()> {
    watched.mount("")?;
    // Not the same work as before, so that the same generations are not alike.
    work_and_sync(&watched.scratch, 20)?;
    watched.compare("mounted again")?;
    watched.unmount()
}

/// After an abort it is.
fn is_read_only(scratch: &Scratch) -> Result<bool> {
    Ok(statvfs(&scratch.mount_point)?.f_flag.contains(StatVfsMountFlags::RDONLY))
}

/// Ends the monitor, and expects a status, and as many findings.
fn end(monitor: Monitor, status: i32, findings: usize) -> Result<Ended> {
    let ended = monitor.stop()?;
    let found = of_type(&ended.lines, "finding");
    ensure!(found.len() == findings, "{} findings, not {findings}: {found:?}", found.len());
    ensure!(
        ended.status == status,
        "exit status {}, not {status}: {:?}\n{}",
        ended.status,
        of_type(&ended.lines, "summary"),
        ended.stderr
    );
    Ok(ended)
}

/// A number in a line of the monitor's.
fn number(line: &Value, name: &str) -> Result<u64> {
    line[name].as_u64().with_context(|| format!("no {name} in {line}"))
}
