//! What it costs to be exact again after a loss: how much is read, and how long it takes, by how
//! much of the file system was changed meanwhile and by how large it is.

use std::{
    fs::{self, File},
    path::Path,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use rustix::fs::ioctl_ficlone;

use super::{
    Outcome, Place, compare::compare, field::sync, monitor::Monitor, scratch::Scratch,
    used::Sectors,
};

/// Sizes of the file system, in files of one extent each.
const SIZES: [u64; 2] = [20_000, 80_000];

/// How much of it is changed, in hundredths.
const SHARES: [u64; 3] = [1, 10, 100];

/// Files of one directory.
const DIR_FILES: u64 = 200;

/// Clones that fill the smallest ring buffer: each makes two events and more, of 300 bytes.
const FILLING: u64 = 4000;

/// Bytes of a node, as mkfs makes them.
const NODE_LEN_BYTES: u64 = 16 << 10;

pub(super) fn run(place: &Place) -> Result<Outcome> {
    println!(
        "| files | changed | blocks read | of a first reading | seconds | of a first reading |"
    );
    println!("|---|---|---|---|---|---|");
    for files in SIZES {
        measure(place, files).with_context(|| format!("with {files} files"))?;
    }
    Ok(Outcome::Passed)
}

/// What a reading cost.
struct Cost {
    blocks: u64,
    seconds: f64,
}

fn measure(place: &Place, files: u64) -> Result<()> {
    let mut scratch = Scratch::new(place, 4 << 30)?;
    scratch.mkfs(&[])?;
    scratch.mount()?;
    for dir in 0..files / DIR_FILES {
        fs::create_dir(scratch.path(format!("dir{dir}")))?;
    }
    write(&scratch, files)?;
    fs::write(scratch.path("source"), vec![1; 64 << 10])?;
    sync(&scratch)?;

    let at = Meter::start(&scratch.device)?;
    let mut monitor = Monitor::start(place, scratch.device_name(), &["--ring-mib", "1"])?;
    monitor.wait_for("seeded")?;
    let first = at.stop()?;
    for (losses, share) in (1..).zip(SHARES) {
        let cost = resync(&scratch, &mut monitor, files * share / 100, losses)?;
        compare(&scratch, &mut monitor)?;
        println!(
            "| {files} | {share} % | {} | {} | {:.2} | {:.2} |",
            cost.blocks, first.blocks, cost.seconds, first.seconds
        );
    }
    monitor.stop()?;
    scratch.unmount()
}

/// Changes so many files while the monitor stands still and its buffer is full.
fn resync(scratch: &Scratch, monitor: &mut Monitor, files: u64, losses: usize) -> Result<Cost> {
    monitor.stop_for_now()?;
    let source = File::open(scratch.path("source"))?;
    let target = File::create(scratch.path("target"))?;
    for _ in 0..FILLING {
        ioctl_ficlone(&target, &source)?;
    }
    write(scratch, files)?;
    sync(scratch)?;
    let at = Meter::start(&scratch.device)?;
    monitor.go_on()?;
    monitor.wait_for_nth("blind", losses)?;
    // It waits for what ran when the loss was told, and one more.
    while !is_live(monitor, losses) {
        fs::write(scratch.path("commit"), [2; 8192])?;
        sync(scratch)?;
        ensure!(at.start.elapsed() < Duration::from_mins(2), "it did not come back");
        thread::sleep(Duration::from_millis(20));
    }
    at.stop()
}

/// Whether the reading after that many losses has ended.
fn is_live(monitor: &Monitor, losses: usize) -> bool {
    let lines = monitor.lines();
    let seeded = lines.iter().filter(|line| line["type"] == "seeded").count();
    seeded == losses + 1
}

/// Writes the first so many files anew.
fn write(scratch: &Scratch, files: u64) -> Result<()> {
    for file in 0..files {
        let name = format!("dir{}/file{file}", file / DIR_FILES);
        fs::write(scratch.path(name), [3; 4096])?;
    }
    Ok(())
}

/// What is read from a device meanwhile; the kernel has all that it needs in its cache.
struct Meter<'a> {
    device: &'a Path,
    start: Instant,
    sectors: u64,
}

impl<'a> Meter<'a> {
    fn start(device: &'a Path) -> Result<Self> {
        Ok(Self { device, start: Instant::now(), sectors: Sectors::moved(device)?.read })
    }

    fn stop(self) -> Result<Cost> {
        let seconds = self.start.elapsed().as_secs_f64();
        let sectors = Sectors::moved(self.device)?.read - self.sectors;
        Ok(Cost { blocks: sectors * 512 / NODE_LEN_BYTES, seconds })
    }
}
