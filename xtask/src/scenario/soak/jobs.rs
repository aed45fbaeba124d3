//! What goes on beside the writers, snapshots and balances of the workload: each job is a loop of
//! its own.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::Command,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use anyhow::{Context, Result, anyhow, bail, ensure};

use super::dedupe::dedupe;
use crate::{
    command::{self, LIMIT, run, text},
    machine::program,
    scenario::workload::{Random, Workload},
};

/// Small files that come and go together.
const SMALL_FILES: u64 = 200;

/// What is made equal, and shared: the most that one request may hold is 16 MiB.
const SHARED_LEN_BYTES: usize = 256 << 10;

/// Between two turns of quotas and of defragmentation.
const PAUSE: Duration = Duration::from_secs(3);

/// Jobs that run until stopped.
pub(super) struct Jobs {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<Result<()>>>,
}

/// What a job works with.
struct Job {
    stop: Arc<AtomicBool>,
    mount_point: PathBuf,
    snapshotting: Arc<Mutex<()>>,
    random: Random,
}

impl Jobs {
    /// Starts them beside the workload.
    pub(super) fn start(mount_point: &Path, workload: &Workload) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let mut jobs: Vec<fn(&mut Job) -> Result<()>> =
            vec![Job::churn, Job::share, Job::defragment, Job::toggle_quotas];
        if program("fio").is_some() {
            jobs.push(Job::run_fio);
        } else {
            println!("there is no fio here: the other writers sync alone");
        }
        let start = |(number, job): (u64, fn(&mut Job) -> Result<()>)| {
            let stop = Arc::clone(&stop);
            let random = Random(100 + number);
            let snapshotting = workload.snapshotting();
            let mut state = Job { stop, mount_point: mount_point.to_owned(), snapshotting, random };
            thread::spawn(move || job(&mut state))
        };
        let threads = (0..).zip(jobs).map(start).collect();
        Self { stop, threads }
    }

    /// An error if one has ended: they go on until stopped.
    pub(super) fn check(&mut self) -> Result<()> {
        if let Some(ended) = self.threads.iter().position(JoinHandle::is_finished) {
            join(self.threads.swap_remove(ended))?;
            bail!("a job ended early");
        }
        Ok(())
    }

    /// Ends them; an error if any failed.
    pub(super) fn stop(&mut self) -> Result<()> {
        self.stop.store(true, Relaxed);
        self.threads.drain(..).try_for_each(join)
    }
}

impl Drop for Jobs {
    /// After a failure: nothing may go on working on a file system that is being taken down.
    fn drop(&mut self) {
        let _ = self.stop();
    }
}

fn join(thread: JoinHandle<Result<()>>) -> Result<()> {
    thread.join().map_err(|_| anyhow!("a job panicked"))?
}

fn write(path: &Path, data: &[u8]) -> Result<()> {
    fs::write(path, data).with_context(|| format!("cannot write {}", path.display()))
}

impl Job {
    fn is_stopped(&self) -> bool {
        self.stop.load(Relaxed)
    }

    /// Sleeps, but not past the end.
    fn pause(&self) {
        for _ in 0..PAUSE.as_millis() / 50 {
            if self.is_stopped() {
                return;
            }
            thread::sleep(Duration::from_millis(50));
        }
    }

    /// A directory of its own.
    fn dir(&self, name: &str) -> Result<PathBuf> {
        let dir = self.mount_point.join(name);
        fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
        Ok(dir)
    }

    fn mount_name(&self) -> Result<&str> {
        text(&self.mount_point)
    }

    /// Small files, inline ones among them, are made and deleted again.
    fn churn(&mut self) -> Result<()> {
        while !self.is_stopped() {
            let dir = self.dir("churn")?;
            for number in 0..SMALL_FILES {
                let len = self.random.below(20_000);
                let mut data = vec![7; usize::try_from(len)?];
                self.random.fill(&mut data);
                write(&dir.join(format!("small{number}")), &data)?;
            }
            fs::remove_dir_all(dir)?;
        }
        Ok(())
    }

    /// Two files are made equal, and share what they hold from then on.
    fn share(&mut self) -> Result<()> {
        let dir = self.dir("shared")?;
        let mut data = vec![0; SHARED_LEN_BYTES];
        while !self.is_stopped() {
            self.random.fill(&mut data);
            let path = |number: u64| dir.join(format!("equal{number}"));
            let (first, second) = (self.random.below(8), self.random.below(8));
            if first == second {
                continue;
            }
            write(&path(first), &data)?;
            write(&path(second), &data)?;
            let (from, to) =
                (File::open(path(first))?, File::options().write(true).open(path(second))?);
            let shared = dedupe(&from, &to, SHARED_LEN_BYTES as u64)?;
            ensure!(shared == SHARED_LEN_BYTES as u64, "only {shared} bytes were shared");
        }
        Ok(())
    }

    /// What the writers wrote is made whole, which ends sharing.
    fn defragment(&mut self) -> Result<()> {
        let work = self.mount_point.join("work");
        while !self.is_stopped() {
            let work = text(&work)?;
            // Files that are deleted meanwhile make it end with an error.
            let arguments = ["filesystem", "defragment", "-r", "-f", "-t", "1M", work];
            command::finish(Command::new("btrfs").args(arguments), LIMIT)?;
            self.pause();
        }
        Ok(())
    }

    /// No snapshot is made while quotas are on: together with a relocation that makes the kernel
    /// itself err (`docs/soak.md`), which is no test of the monitor's honesty.
    fn toggle_quotas(&mut self) -> Result<()> {
        while !self.is_stopped() {
            let held = self.snapshotting.lock().map_err(|_| anyhow!("the lock is poisoned"))?;
            run("btrfs", &["quota", "enable", self.mount_name()?])?;
            self.pause();
            run("btrfs", &["quota", "disable", self.mount_name()?])?;
            drop(held);
            self.pause();
        }
        Ok(())
    }

    /// Random writes with fsync, a few seconds at a time.
    fn run_fio(&mut self) -> Result<()> {
        let dir = self.dir("fio")?;
        let directory = format!("--directory={}", dir.display());
        let arguments = [
            "--name=soak",
            &directory,
            "--rw=randwrite",
            "--bsrange=4k-64k",
            "--size=48M",
            "--numjobs=2",
            "--fsync=16",
            "--ioengine=psync",
            "--time_based",
            "--runtime=5",
        ];
        while !self.is_stopped() {
            run("fio", &arguments)?;
        }
        Ok(())
    }
}
