//! Makes up changes beside the real ones: `refverify-user/examples/burst.rs`, which lies beside the
//! monitor once it is built.

use std::{
    fs,
    io::{BufRead, BufReader, Write},
    path::{Path, PathBuf},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use serde_json::Value;

use crate::scenario::{Place, monitor::Monitor};

/// What it makes up.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Extents that are allocated and dropped at once.
    Honest,
    /// Extents that are dropped without having been allocated: a finding each.
    Wrong,
}

/// Where a kernel has kprobes; the monitor then prefers them.
const KPROBES: &str = "/sys/bus/event_source/devices/kprobe/type";

/// Why it cannot run here.
pub(crate) fn obstacle() -> Option<String> {
    let why = "changes are made up in the form in which raw tracepoints tell them, and this kernel \
               has kprobes";
    Path::new(KPROBES).exists().then(|| why.to_owned())
}

/// Ended when dropped, and before the monitor.
pub(crate) struct Producer {
    child: Child,
    rates: Option<ChildStdin>,
    answers: BufReader<ChildStdout>,
    _maps: MapsDir,
}

/// What was made until then.
#[derive(Clone, Debug, Default)]
pub(crate) struct Made {
    time: Duration,
    /// References that the kernel made.
    pub(crate) met: u64,
    /// Records that were made up, with those that found no room.
    pub(crate) records: u64,
    /// Transactions in which some of these found no room.
    pub(crate) lost_in: Vec<u64>,
}

impl Producer {
    /// Starts it on the monitor's ring buffer; it makes up nothing yet.
    pub(crate) fn start(place: &Place, monitor: &Monitor, kind: Kind) -> Result<Self> {
        let program = place.monitor.with_file_name("examples").join("burst");
        ensure!(
            program.exists(),
            "there is no {}; `cargo build -p refverify-user --example burst` builds it",
            program.display()
        );
        let maps = MapsDir::mount(place)?;
        let mut command = Command::new(program);
        command.arg(monitor.pid().to_string()).arg(&maps.0);
        if kind == Kind::Wrong {
            command.arg("--wrong");
        }
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let rates = child.stdin.take();
        let answers = BufReader::new(child.stdout.take().context("its stdout is piped")?);
        let mut producer = Self { child, rates, answers, _maps: maps };
        producer.at_rate(0)?;
        Ok(producer)
    }

    /// From now on so many records a second, 0 for none; what was made until now.
    pub(crate) fn at_rate(&mut self, records_per_second: u64) -> Result<Made> {
        let rates = self.rates.as_mut().context("it has ended")?;
        writeln!(rates, "{records_per_second}").context("it takes no rate")?;
        let mut line = String::new();
        self.answers.read_line(&mut line)?;
        let told: Value = serde_json::from_str(&line)
            .with_context(|| format!("what makes up changes has ended: {line:?}"))?;
        let number = |name: &str| told[name].as_u64().with_context(|| format!("no {name}: {told}"));
        let lost_in = told["lost_in"].as_array().context("no lost_in")?;
        Ok(Made {
            time: Duration::from_nanos(number("time_ns")?),
            met: number("met")?,
            records: number("made")?,
            lost_in: lost_in.iter().filter_map(Value::as_u64).collect(),
        })
    }
}

impl Drop for Producer {
    fn drop(&mut self) {
        // It ends with its input.
        self.rates = None;
        let _ = self.child.wait();
    }
}

impl Made {
    /// What came after `before`, a second: of the kernel, and made up.
    pub(crate) fn rates_since(&self, before: &Self) -> (u64, u64) {
        let ns = self.time.saturating_sub(before.time).as_nanos().max(1);
        let rate = |count: u64| u64::try_from(u128::from(count) * 1_000_000_000 / ns);
        let per_second = |count| rate(count).unwrap_or(u64::MAX);
        (per_second(self.met - before.met), per_second(self.records - before.records))
    }
}

/// Where the monitor's maps are handed over; a BPF file system of its own.
struct MapsDir(PathBuf);

impl MapsDir {
    fn mount(place: &Place) -> Result<Self> {
        let dir = place.dir().join("maps");
        fs::create_dir_all(&dir)?;
        mount("bpf", &dir, "bpf", MountFlags::empty(), None::<&std::ffi::CStr>)
            .context("cannot mount a BPF file system")?;
        Ok(Self(dir))
    }
}

impl Drop for MapsDir {
    fn drop(&mut self) {
        let _ = unmount(&self.0, UnmountFlags::DETACH);
    }
}
