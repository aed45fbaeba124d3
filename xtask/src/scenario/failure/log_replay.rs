//! A crash after fsync. The mount that follows replays the log, and what it allocates no delayed
//! reference tells: kprobes see it at `btrfs_alloc_logged_file_extent`; with tracepoints the tree
//! is read at the replay's transaction or later.

use std::{
    fs::{self, File, OpenOptions},
    io::Write,
    os::unix::fs::FileExt,
};

use anyhow::{Result, ensure};

use super::{Disk, Outcome, Place, Scratch, Watched, work, work_and_sync};
use crate::scenario::{field::sync, monitor::Monitor};

/// Where the superblock says where the log is (kernel: `struct btrfs_super_block`).
const LOG_ROOT_AT: u64 = (64 << 10) + 96;

pub(super) fn run(place: &Place) -> Result<Outcome> {
    let crashed = place.dir().join("crashed");
    crash_after_fsync(place, &crashed)?;
    let disk = Disk::of(crashed)?;
    ensure!(has_log(&disk)?, "there is no log to replay: the crash came after a commit");
    let mut scratch = Scratch::on(place, &disk.device)?;
    let mut monitor = Monitor::start(place, disk.name(), &[])?;
    let is_by_kprobes = monitor.wait_for("start")?["mode"] == "kprobes";
    scratch.mount()?;
    let mounted = monitor.wait_for("mounted")?;
    ensure!(mounted["armed_before"] == is_by_kprobes, "armed before the mount: {mounted}");
    println!("{mounted}");
    // With tracepoints what the replay made has to be committed first.
    sync(&scratch)?;
    monitor.wait_for("seeded")?;
    let mut watched = Watched { monitor, scratch };
    watched.compare("after the replay")?;
    change_what_was_replayed(&watched.scratch)?;
    work_and_sync(&watched.scratch, 3)?;
    watched.compare("after changes of what was replayed")?;
    watched.end()
}

/// What the replay allocated is dropped, shared and overwritten.
fn change_what_was_replayed(scratch: &Scratch) -> Result<()> {
    for number in 0..10 {
        let name = scratch.path(format!("fsynced{number}"));
        ensure!(fs::metadata(&name)?.len() > 0, "fsynced{number} was not replayed");
        match number % 3 {
            0 => fs::remove_file(name)?,
            1 => {
                let clone = File::create(scratch.path(format!("of-fsynced{number}")))?;
                rustix::fs::ioctl_ficlone(clone, File::open(name)?)?;
            }
            _ => OpenOptions::new().write(true).open(name)?.write_all_at(&[7; 8192], 4096)?,
        }
    }
    Ok(())
}

/// Makes an image of a file system that was in use: files were fsynced since its last commit.
fn crash_after_fsync(place: &Place, image: &std::path::Path) -> Result<()> {
    let disk = Disk::new(place.dir().join("before"))?;
    let mut scratch = Scratch::on(place, &disk.device)?;
    scratch.mkfs(&[])?;
    // No commit comes by itself.
    scratch.mount_with("commit=300")?;
    work(&scratch, 1)?;
    sync(&scratch)?;
    for number in 0..10 {
        let mut file = File::create(scratch.path(format!("fsynced{number}")))?;
        file.write_all(&vec![number; 96 << 10])?;
        file.sync_all()?;
    }
    // It takes its time to be replayed: meanwhile the monitor sees that there is a log.
    let file = File::create(scratch.path("in-many-pieces"))?;
    for number in 0..20_000 {
        file.write_all_at(&[7; 4096], number * 8192)?;
    }
    file.sync_all()?;
    drop(file);
    disk.copy_to(image)?;
    scratch.unmount()
}

fn has_log(disk: &Disk) -> Result<bool> {
    let mut log_root = [0; 8];
    File::open(&disk.device)?.read_exact_at(&mut log_root, LOG_ROOT_AT)?;
    Ok(log_root != [0; 8])
}
