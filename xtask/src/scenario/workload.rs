//! Honest work on a mounted btrfs: writes, fsyncs, reflinks, truncates, holes and deletes by
//! two writers, snapshots and their deletion, and full balances one after the other.
//!
//! What each writer does follows from its seed alone; what the kernel makes of it does not,
//! and need not.

use std::{
    fs::{self, File, OpenOptions},
    io,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    process::Command,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow, bail};
use rustix::fs::{FallocateFlags, copy_file_range, fallocate, ioctl_ficlone};

use crate::command::{self, LIMIT, run, text};

/// Files that a writer juggles.
const FILES: u64 = 150;

/// Data and offsets are multiples of it, so that reflinks can share them.
const SECTOR: u64 = 4096;

/// The longest file, in sectors.
const FILE_SECTORS: u64 = 96;

/// Snapshots that exist at a time.
const SNAPSHOTS: u64 = 4;

/// From metadata twice and data once, and back; on one device nothing else can be had. To give up
/// the second copy of metadata has to be forced.
const CONVERSIONS: [&[&str]; 3] = [
    &["--force", "-mconvert=single", "-dconvert=dup"],
    &["--full-balance"],
    &["--force", "-mconvert=dup", "-dconvert=single"],
];

/// Work going on in threads until stopped.
pub(crate) struct Workload {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<Result<()>>>,
}

struct Shared {
    mount_point: PathBuf,
    stop: AtomicBool,
    /// No balance may be started: a freeze waits for the one that runs.
    hold_balance: AtomicBool,
    operations: AtomicU64,
    balances: AtomicU64,
    snapshots: AtomicU64,
    /// Held while a snapshot is made.
    snapshotting: Arc<Mutex<()>>,
    /// Held by the balance thread while it starts or runs one.
    balancing: Mutex<()>,
}

/// Whether balances are part of the work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Balances {
    /// All of it, again and again.
    Running,
    /// The same, to another profile each time.
    Converting,
    None,
}

/// How much was done.
pub(crate) struct Done {
    pub(crate) operations: u64,
    pub(crate) balances: u64,
    pub(crate) snapshots: u64,
}

impl Workload {
    /// Starts work in a subvolume of the file system at `mount_point`.
    pub(crate) fn start(mount_point: &Path, seed: u64, balances: Balances) -> Result<Self> {
        let subvolume = mount_point.join("work");
        run("btrfs", &["subvolume", "create", text(&subvolume)?])?;
        let shared = Arc::new(Shared {
            mount_point: mount_point.to_owned(),
            stop: AtomicBool::new(false),
            hold_balance: AtomicBool::new(false),
            operations: AtomicU64::new(0),
            balances: AtomicU64::new(0),
            snapshots: AtomicU64::new(0),
            snapshotting: Arc::default(),
            balancing: Mutex::new(()),
        });
        let mut threads = Vec::new();
        for writer in 0..2 {
            let dir = subvolume.join(format!("writer{writer}"));
            fs::create_dir(&dir)?;
            let shared = Arc::clone(&shared);
            let mut writer = Writer { dir, random: Random(seed * 2 + writer + 1), shared };
            threads.push(thread::spawn(move || writer.run()));
        }
        let mut start = |job: fn(&Shared) -> Result<()>| {
            let shared = Arc::clone(&shared);
            threads.push(thread::spawn(move || job(&shared)));
        };
        start(take_snapshots);
        match balances {
            Balances::Running => start(|shared| run_balances(shared, &[&["--full-balance"]])),
            Balances::Converting => start(|shared| run_balances(shared, &CONVERSIONS)),
            Balances::None => {}
        }
        Ok(Self { shared, threads })
    }

    /// Waits until `operations` more have been done by the writers.
    pub(crate) fn work(&mut self, operations: u64, limit: Duration) -> Result<()> {
        let end = Instant::now() + limit;
        let goal = self.shared.operations.load(Relaxed) + operations;
        while self.shared.operations.load(Relaxed) < goal {
            self.check()?;
            if Instant::now() > end {
                let done = self.shared.operations.load(Relaxed);
                bail!("the workload did {done} of {goal} operations in {} s", limit.as_secs());
            }
            thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    /// An error if a thread has ended: they go on until stopped.
    pub(crate) fn check(&mut self) -> Result<()> {
        if let Some(ended) = self.threads.iter().position(JoinHandle::is_finished) {
            join(self.threads.swap_remove(ended))?;
            bail!("a thread of the workload ended early");
        }
        Ok(())
    }

    /// Pauses the balance that runs and lets none start until [`Self::resume_balance`]: the
    /// balance ioctl holds off a freeze until it returns.
    pub(crate) fn pause_balance(&self) -> Result<()> {
        self.shared.hold_balance.store(true, Relaxed);
        let mount_point = text(&self.shared.mount_point)?.to_owned();
        let end = Instant::now() + LIMIT;
        // "Not running" is an error too: the thread may be about to start one.
        while self.shared.balancing.try_lock().is_err() {
            let _ = command::finish(
                Command::new("btrfs").args(["balance", "pause", &mount_point]),
                LIMIT,
            )?;
            if Instant::now() > end {
                bail!("the balance did not pause in {} s", LIMIT.as_secs());
            }
            thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    /// Who holds it keeps snapshots from being made.
    pub(crate) fn snapshotting(&self) -> Arc<Mutex<()>> {
        Arc::clone(&self.shared.snapshotting)
    }

    /// Lets balances go on.
    pub(crate) fn resume_balance(&self) {
        self.shared.hold_balance.store(false, Relaxed);
    }

    /// Ends the work; an error if any of it failed.
    pub(crate) fn stop(mut self) -> Result<Done> {
        self.shared.stop.store(true, Relaxed);
        self.pause_balance()?;
        for thread in self.threads.drain(..) {
            join(thread)?;
        }
        Ok(Done {
            operations: self.shared.operations.load(Relaxed),
            balances: self.shared.balances.load(Relaxed),
            snapshots: self.shared.snapshots.load(Relaxed),
        })
    }
}

impl Drop for Workload {
    /// After a failure: nothing may go on working on a file system that is being taken down.
    fn drop(&mut self) {
        self.shared.stop.store(true, Relaxed);
        if !self.threads.is_empty() {
            let _ = self.pause_balance();
        }
        for thread in self.threads.drain(..) {
            let _ = join(thread);
        }
    }
}

fn join(thread: JoinHandle<Result<()>>) -> Result<()> {
    thread.join().map_err(|_| anyhow!("a thread of the workload panicked"))?
}

impl Shared {
    fn stopping(&self) -> bool {
        self.stop.load(Relaxed)
    }
}

struct Writer {
    dir: PathBuf,
    random: Random,
    shared: Arc<Shared>,
}

impl Writer {
    fn run(&mut self) -> Result<()> {
        while !self.shared.stopping() {
            let path = self.any_file();
            match self.operate(&path) {
                // Another operation of this writer has deleted it, or not yet made it.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                result => {
                    result.with_context(|| format!("working on {}", path.display()))?;
                    self.shared.operations.fetch_add(1, Relaxed);
                }
            }
        }
        Ok(())
    }

    fn operate(&mut self, path: &Path) -> io::Result<()> {
        match self.random.below(100) {
            0..45 => self.write(path, false),
            45..53 => self.write(path, true),
            53..58 => fs::write(path, [1; 900]),
            58..70 => self.clone_whole(path),
            70..80 => self.clone_part(path),
            80..86 => {
                let len = self.random.below(FILE_SECTORS) * SECTOR;
                OpenOptions::new().write(true).open(path)?.set_len(len)
            }
            86..90 => {
                let (at, len) = self.range();
                let file = OpenOptions::new().write(true).open(path)?;
                let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
                Ok(fallocate(&file, punch, at, len)?)
            }
            90..93 => {
                let (at, len) = self.range();
                Ok(fallocate(&create(path)?, FallocateFlags::empty(), at, len)?)
            }
            _ => fs::remove_file(path),
        }
    }

    fn write(&mut self, path: &Path, sync: bool) -> io::Result<()> {
        let file = create(path)?;
        let (at, len) = self.range();
        let mut data = vec![0; usize::try_from(len).expect("some hundred KiB")];
        self.random.fill(&mut data);
        file.write_all_at(&data, at)?;
        if sync { file.sync_all() } else { Ok(()) }
    }

    fn clone_whole(&mut self, path: &Path) -> io::Result<()> {
        let source = File::open(self.other_file(path))?;
        let target = create(path)?;
        if source.metadata()?.len() % SECTOR != 0 {
            // An end inside a sector can only be cloned to the target's end.
            target.set_len(0)?;
        }
        Ok(ioctl_ficlone(target, source)?)
    }

    /// On btrfs, copying whole sectors within one file system shares them (kernel:
    /// `fs/read_write.c`, `vfs_copy_file_range`).
    fn clone_part(&mut self, path: &Path) -> io::Result<()> {
        let source = File::open(self.other_file(path))?;
        let target = create(path)?;
        let (mut from, len) = self.range();
        let mut to = self.range().0;
        let len = usize::try_from(len).expect("some hundred KiB");
        copy_file_range(&source, Some(&mut from), &target, Some(&mut to), len)?;
        Ok(())
    }

    fn any_file(&mut self) -> PathBuf {
        self.dir.join(format!("file{}", self.random.below(FILES)))
    }

    /// Not `path`: ranges of one file could overlap, which cloning refuses.
    fn other_file(&mut self, path: &Path) -> PathBuf {
        loop {
            let other = self.any_file();
            if other != path {
                return other;
            }
        }
    }

    /// Offset and length in bytes, whole sectors.
    fn range(&mut self) -> (u64, u64) {
        let at = self.random.below(FILE_SECTORS - 1);
        let len = 1 + self.random.below(32.min(FILE_SECTORS - at));
        (at * SECTOR, len * SECTOR)
    }
}

/// Opens a file, which may have to be made.
fn create(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path)
}

/// Takes snapshots and deletes the oldest, a few a second.
fn take_snapshots(shared: &Shared) -> Result<()> {
    let source = shared.mount_point.join("work");
    let snapshot = |number: u64| shared.mount_point.join(format!("snapshot{number}"));
    let mut goal = 0;
    while !shared.stopping() {
        if shared.operations.load(Relaxed) < goal {
            thread::sleep(Duration::from_millis(10));
            continue;
        }
        goal = shared.operations.load(Relaxed) + 400;
        let number = shared.snapshots.fetch_add(1, Relaxed);
        let held = shared.snapshotting.lock().map_err(|_| anyhow!("the lock is poisoned"))?;
        run("btrfs", &["subvolume", "snapshot", text(&source)?, text(&snapshot(number))?])?;
        drop(held);
        if number >= SNAPSHOTS {
            run("btrfs", &["subvolume", "delete", text(&snapshot(number - SNAPSHOTS))?])?;
        }
    }
    Ok(())
}

/// Balances again and again, with each of these arguments in turn; goes on with one that was
/// paused.
fn run_balances(shared: &Shared, kinds: &[&[&str]]) -> Result<()> {
    let mount_point = text(&shared.mount_point)?;
    let mut kinds = kinds.iter().cycle();
    let mut paused = false;
    while !shared.stopping() {
        let held = shared.balancing.lock().map_err(|_| anyhow!("the lock is poisoned"))?;
        if shared.hold_balance.load(Relaxed) {
            drop(held);
            thread::sleep(Duration::from_millis(20));
            continue;
        }
        let mut command = Command::new("btrfs");
        if paused {
            command.args(["balance", "resume", mount_point]);
        } else {
            command.args(["balance", "start"]).args(*kinds.next().context("no kind of balance")?);
            command.arg(mount_point);
        }
        let done = command::finish(&mut command, Duration::from_mins(10))?;
        // The status of one that was paused differs between versions of btrfs-progs.
        let said = format!("{}{}", done.stdout, done.stderr);
        paused = said.contains("paused by user");
        if !paused && !done.status.success() {
            bail!("a balance ended with {}: {}", done.status, said.trim());
        }
        if !paused {
            shared.balances.fetch_add(1, Relaxed);
        }
        drop(held);
        thread::sleep(Duration::from_millis(100));
    }
    if paused {
        run("btrfs", &["balance", "cancel", mount_point])?;
    }
    Ok(())
}

/// A small generator (xorshift64*): good enough to choose operations, the same everywhere.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// A number below `limit`, which is not 0.
    pub(crate) fn below(&mut self, limit: u64) -> u64 {
        (self.next() >> 16) % limit
    }

    pub(crate) fn fill(&mut self, bytes: &mut [u8]) {
        // One word a sector tells sectors apart; more would only cost time.
        for sector in bytes.chunks_mut(4096) {
            let word = self.next().to_le_bytes();
            let len = sector.len().min(word.len());
            sector[..len].copy_from_slice(&word[..len]);
        }
    }
}
