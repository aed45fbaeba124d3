//! The main job as a person sees it: what the monitor says of an honest file system, and what
//! it says of one in which a fault was planted.

use std::{
    fs,
    io::{BufRead, BufReader},
    path::PathBuf,
    process::{Child, Stdio},
    sync::{Arc, Mutex},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow, ensure};

use super::{
    Outcome, Place,
    compare::{Frozen, read_disk},
    field::{Field, sync},
    monitor::{self, STATUS_FINDINGS},
    oracle,
    scratch::Scratch,
    workload::{Balances, Workload},
};
use crate::{
    machine,
    plant::{Edit, plant},
};

/// How long one step may take, under emulation too.
const LIMIT: Duration = Duration::from_mins(5);

pub(super) fn run(place: &Place) -> Result<Outcome> {
    honest(place)?;
    faulty(place)?;
    heading("Done");
    say("The honest file system got a clean verdict, and the planted fault was caught.");
    Ok(Outcome::Passed)
}

fn honest(place: &Place) -> Result<()> {
    heading("1. An honest file system");
    let mut scratch = Scratch::new(place, 3 << 30)?;
    scratch.mkfs(&[])?;
    scratch.mount()?;
    let (device, release) = (scratch.device_name(), machine::kernel_release());
    say(&format!("A scratch btrfs is mounted from {device}, on Linux {release} as it is."));
    say("The monitor attaches to it:");
    let mut shown = Shown::start(place, device)?;
    shown.wait_until_live(|| commit_something(&scratch))?;

    say("Now two writers write, fsync, reflink, truncate and delete, snapshots come and go,");
    say("and a full balance moves everything, again and again.");
    let start = Instant::now();
    let mut workload = Workload::start(&scratch.mount_point, 4, Balances::Running)?;
    workload.work(5_000, LIMIT)?;
    workload.pause_balance()?;
    let seconds = start.elapsed().as_secs_f64();
    say(&format!("After {seconds:.0} s the file system is frozen, and what the monitor knows is"));
    say("compared with what `btrfs inspect-internal dump-tree` reads from the device:");
    let frozen = Frozen::freeze(&scratch)?;
    let ledger = oracle::parse_ledger(&shown.ledger()?)?;
    let disk = read_disk(&scratch.device)?;
    let differences = oracle::differences(&disk.extents, &ledger.extents);
    ensure!(differences.is_empty(), "ledger and disk differ: {}", differences.join("\n"));
    let refs: u64 = disk.extents.values().map(|extent| extent.total_refs).sum();
    say(&format!("all {} extents and their {refs} references are equal.\n", disk.extents.len()));
    drop(frozen);
    workload.resume_balance();
    let done = workload.stop()?;
    say(&format!(
        "The work ends: {} operations, {} snapshots, {} full balances. The monitor is stopped:",
        done.operations, done.snapshots, done.balances
    ));
    scratch.unmount()?;
    shown.wait_for("unmounted")?;
    let status = shown.stop()?;
    ensure!(status == 0, "the monitor's exit status is {status}, not 0");
    say("Exit status 0: clean, and complete.");
    Ok(())
}

fn faulty(place: &Place) -> Result<()> {
    heading("2. A planted fault");
    let Field { mut scratch, clone, .. } = Field::new(place)?;
    let inode = clone.inode;
    say("A fresh btrfs holds a file and its reflink; they share one extent. It is unmounted, and");
    say("in its extent tree one of the two references is removed, with a valid checksum:");
    plant(&scratch.device, clone.bytenr, Edit::RemoveRef { inode, keep_total: false })?;
    say(&format!("extent {} no longer knows that inode {inode} uses it.", clone.bytenr));
    say("The monitor waits for the mount; the kernel mounts without a complaint:");
    let mut shown = Shown::start(place, scratch.device_name())?;
    scratch.mount()?;
    shown.wait_until_live(|| Ok(()))?;
    say("The reflink is deleted, which takes back the reference that is not there:\n");
    fs::remove_file(scratch.path("clone"))?;
    shown.wait_for("drop-missing-ref")?;
    shown.wait_for("the action that is wrong")?;
    // The rest of the stack.
    thread::sleep(Duration::from_millis(300));
    say("\nFound at the moment of the change. The kernel notices only when it carries the change");
    say("out, and does not know any more who asked for it:\n");
    // Fails, because the kernel aborts.
    let _ = sync(&scratch);
    shown.wait_for("aborted")?;
    scratch.unmount()?;
    shown.wait_for("unmounted")?;
    let status = shown.stop()?;
    ensure!(status & STATUS_FINDINGS != 0, "the exit status {status} does not tell of findings");
    say(&format!("Exit status {status}: there were findings."));
    Ok(())
}

/// The monitor waits for the end of what may run when it attaches. An idle file system may have no
/// commit for hours; before 5.11, whose sysfs does not say which transaction runs, two are needed.
fn commit_something(scratch: &Scratch) -> Result<()> {
    fs::write(scratch.path("touched"), "something")?;
    sync(scratch)
}

fn heading(text: &str) {
    println!("\n=== {text} ===\n");
}

fn say(text: &str) {
    println!("{text}");
}

/// A monitor whose text is shown, indented, while it runs.
struct Shown {
    child: Child,
    lines: Arc<Mutex<Vec<String>>>,
    reader: Option<JoinHandle<()>>,
    ledger_dump: PathBuf,
}

impl Shown {
    fn start(place: &Place, device: &str) -> Result<Self> {
        let ledger_dump = place.dir().join("ledger");
        println!("\n    # refverify-monitor {device}");
        let mut child = monitor::command(place, device)
            .arg("--ledger-dump")
            .arg(&ledger_dump)
            // The reports are shown, not the program's own log.
            .env("RUST_LOG", "warn")
            .stdout(Stdio::piped())
            .spawn()
            .context("cannot start the monitor")?;
        let stdout = child.stdout.take().expect("piped");
        let lines = Arc::new(Mutex::new(Vec::new()));
        let said = Arc::clone(&lines);
        let reader = thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                println!("    {line}");
                said.lock().expect("no holder panics").push(line);
            }
        });
        let mut shown = Self { child, lines, reader: Some(reader), ledger_dump };
        // Its first line: the hooks are live, and so are its signal handlers.
        shown.wait_for("watching")?;
        Ok(shown)
    }

    /// Waits until a line that contains `text` has been said.
    fn wait_for(&mut self, text: &str) -> Result<()> {
        let end = Instant::now() + LIMIT;
        loop {
            let ended = self.child.try_wait()?;
            if self.lines.lock().expect("no holder panics").iter().any(|line| line.contains(text)) {
                return Ok(());
            }
            ensure!(ended.is_none(), "the monitor ended early");
            ensure!(Instant::now() < end, "the monitor did not say `{text}`");
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// Waits until every event is judged, doing `meanwhile` again and again.
    fn wait_until_live(&mut self, meanwhile: impl Fn() -> Result<()>) -> Result<()> {
        let end = Instant::now() + LIMIT;
        while oracle::parse_ledger(&self.ledger()?)?.state != "live" {
            ensure!(Instant::now() < end, "the monitor did not come to judge events");
            meanwhile()?;
            thread::sleep(Duration::from_millis(100));
        }
        println!();
        Ok(())
    }

    fn ledger(&mut self) -> Result<String> {
        monitor::dump_ledger(&mut self.child, &self.ledger_dump)
    }

    /// Ends it; its exit status.
    fn stop(mut self) -> Result<i32> {
        println!();
        let status = monitor::interrupt(&mut self.child)?;
        if let Some(reader) = self.reader.take() {
            reader.join().map_err(|_| anyhow!("the reader of the monitor's text panicked"))?;
        }
        println!();
        Ok(status)
    }
}

impl Drop for Shown {
    fn drop(&mut self) {
        // Ended already in the good case.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
