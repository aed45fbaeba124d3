//! The btrfs module goes and comes back while the monitor runs: probes neither keep it loaded nor
//! outlive it, and are there again for the next mount.

use std::{
    fs::{self, File},
    path::PathBuf,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use rustix::system::{delete_module, finit_module};

use super::{Outcome, Place, Scratch, Watched, churn::churn};
use crate::{command::LIMIT, scenario::field::sync, vm::agreement::MODULES};

/// `O_NONBLOCK`: refused at once where the module is in use.
const AT_ONCE: i32 = 0o4000;

/// Where the kernel lists its probes.
const PROBES: &str = "/sys/kernel/debug/kprobes/list";

pub(super) fn run_all(place: &Place) -> Result<Outcome> {
    let Some(module) = module_file()? else {
        return Ok(Outcome::Skipped("btrfs is built into this kernel".to_owned()));
    };
    let mut watched = Watched::new(place, Scratch::new(place, 1 << 30)?)?;
    worked_on(&mut watched, "before", 0)?;
    unload().context("while the monitor runs and nothing is mounted")?;
    load(&module)?;
    wait_for_probes()?;
    worked_on(&mut watched, "unloaded and loaded again", 1)?;
    let last = watched.said("mounted").pop().context("it was not mounted")?;
    ensure!(last["armed_before"] == true, "the probes were not there before the mount: {last}");
    // Too fast to be seen as anything but another module, which is mounted at once.
    unload()?;
    load(&module)?;
    worked_on(&mut watched, "unloaded, loaded again and mounted at once", 2)?;
    unload()?;
    thread::sleep(Duration::from_secs(1));
    ensure!(!fs::read_to_string(PROBES)?.contains("btrfs"), "probes are left behind");
    load(&module)?;
    worked_on(&mut watched, "away for a while and mounted at once", 3)?;
    unmount_and_unload(&mut watched)?;
    watched.end()
}

/// One right after the other: what the monitor keeps the module loaded by, while a file system is
/// mounted, it lets go by itself.
fn unmount_and_unload(watched: &mut Watched) -> Result<()> {
    watched.mount("")?;
    let seen = watched.said("unmounted").len();
    watched.scratch.unmount()?;
    let refused = unload().context("right after an unmount")?;
    println!("right after an unmount it was refused for {} ms", refused.as_millis());
    watched.monitor.wait_for_nth("unmounted", seen + 1).map(drop)
}

fn worked_on(watched: &mut Watched, what: &str, round: u64) -> Result<()> {
    let seen = watched.said("seeded").len();
    watched.scratch.mount()?;
    // A mount that is met midway is read once what may be running has ended: an idle one has no
    // commit for hours, and before 5.11, whose sysfs does not say what runs, two are needed.
    let end = Instant::now() + LIMIT;
    while watched.said("seeded").len() == seen {
        ensure!(Instant::now() < end, "{what}: the monitor did not come to judge events");
        fs::write(watched.scratch.path("touched"), what)?;
        sync(&watched.scratch)?;
        thread::sleep(Duration::from_millis(100));
    }
    churn(&watched.scratch.mount_point, round).context(what.to_owned())?;
    watched.expect_equal(what)?;
    watched.unmount()
}

/// The module's file, in a VM that has loaded it.
fn module_file() -> Result<Option<PathBuf>> {
    if !fs::exists("/sys/module/btrfs/initstate")? || !fs::exists(MODULES)? {
        return Ok(None);
    }
    for entry in fs::read_dir(MODULES)? {
        let path = entry?.path();
        if path.to_string_lossy().ends_with("-btrfs.ko") {
            return Ok(Some(path));
        }
    }
    Ok(None)
}

/// The kernel itself may hold it for a moment after an unmount. Gives for how long it was refused.
fn unload() -> Result<Duration> {
    let begun = Instant::now();
    loop {
        let refused = begun.elapsed();
        match delete_module(c"btrfs", AT_ONCE) {
            Ok(()) => return Ok(refused),
            Err(error) if refused > Duration::from_secs(10) => {
                return Err(error).context("btrfs cannot be unloaded");
            }
            Err(_) => thread::sleep(Duration::from_millis(5)),
        }
    }
}

fn load(module: &PathBuf) -> Result<()> {
    finit_module(File::open(module)?, c"", 0).context("btrfs cannot be loaded again")
}

/// That of a mount's beginning is the last one. Those of the module that has gone are listed too,
/// until the monitor lets them go, and a new one a moment before its program is in force.
fn wait_for_probes() -> Result<()> {
    let end = Instant::now() + LIMIT;
    let is_there = |line: &str| line.contains("open_ctree") && !line.contains("[GONE]");
    while !fs::read_to_string(PROBES)?.lines().any(is_there) {
        if Instant::now() > end {
            bail!("the probes did not come back");
        }
        thread::sleep(Duration::from_millis(50));
    }
    thread::sleep(Duration::from_secs(1));
    Ok(())
}
