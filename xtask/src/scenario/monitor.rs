//! The monitor as its users meet it: a process with JSON lines on its standard output, a
//! ledger dump on SIGUSR1, and an exit status.

use std::{
    fs,
    io::{BufRead, BufReader, Read},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow, bail, ensure};
use rustix::{
    process::{Pid, Signal, kill_process},
    time::{ClockId, clock_gettime},
};
use serde_json::Value;

use super::Place;

/// How long the monitor may take for one step, under emulation too. Longer than it waits for a guest
/// of which nothing is heard: then it says so itself.
const LIMIT: Duration = Duration::from_mins(4);

/// Exit status bit: not everything was verified.
pub(crate) const STATUS_COVERAGE_LOST: i32 = 4;

/// Exit status bit: there were findings.
pub(crate) const STATUS_FINDINGS: i32 = 2;

/// A running monitor. Killed when dropped.
pub(crate) struct Monitor {
    child: Child,
    lines: Arc<Mutex<Vec<Value>>>,
    stdout: Option<JoinHandle<Result<String>>>,
    stderr: Option<JoinHandle<String>>,
    ledger_dump: PathBuf,
}

/// A monitor that has ended.
pub(crate) struct Ended {
    /// The exit status: a mask, see the product's README.
    pub(crate) status: i32,
    /// Every line it said, with `heard_ns` (`CLOCK_MONOTONIC`) added.
    pub(crate) lines: Vec<Value>,
    /// The same, as it wrote them.
    pub(crate) text: String,
    /// Its diagnostics.
    pub(crate) stderr: String,
}

impl Monitor {
    /// Starts it on `device`, with `options`, and waits until its hooks are live.
    pub(crate) fn start(place: &Place, device: &str, options: &[&str]) -> Result<Self> {
        Self::start_with(place, &[options, &[device]].concat())
    }

    /// Starts it with these arguments, which may begin with a subcommand.
    pub(crate) fn start_with(place: &Place, arguments: &[&str]) -> Result<Self> {
        let ledger_dump = place.dir().join("ledger");
        let mut command = Command::new(&place.monitor);
        let subcommand = usize::from(arguments.first() == Some(&"attach"));
        let (subcommand, arguments) = arguments.split_at(subcommand);
        command.args(subcommand).args(["--json", "--ledger-dump"]).arg(&ledger_dump);
        command.args(arguments).stdin(Stdio::null());
        let mut child = command
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot start {}", place.monitor.display()))?;
        let lines = Arc::new(Mutex::new(Vec::new()));
        let stdout = read_lines(child.stdout.take().expect("piped"), Arc::clone(&lines));
        let stderr = read_text(child.stderr.take().expect("piped"));
        let (stdout, stderr) = (Some(stdout), Some(stderr));
        let mut monitor = Self { child, lines, stdout, stderr, ledger_dump };
        monitor.wait_for("start")?;
        Ok(monitor)
    }

    /// Waits until it ends by itself.
    pub(crate) fn wait_for_end(mut self) -> Result<Ended> {
        let status = crate::command::wait(&mut self.child, LIMIT)?
            .ok_or_else(|| anyhow!("the monitor did not end"))?;
        let status = status.code().with_context(|| format!("the monitor ended with {status}"))?;
        self.ended(status)
    }

    /// The monitor's process id.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What it has said so far.
    pub(crate) fn lines(&self) -> Vec<Value> {
        self.lines.lock().expect("no holder panics").clone()
    }

    /// How many lines of a type there are so far.
    pub(crate) fn count_of(&self, kind: &str) -> usize {
        let lines = self.lines.lock().expect("no holder panics");
        lines.iter().filter(|line| line["type"] == kind).count()
    }

    /// The findings so far.
    pub(crate) fn findings(&self) -> Vec<Value> {
        of_type(&self.lines(), "finding")
    }

    /// Waits for the first line of a type.
    pub(crate) fn wait_for(&mut self, kind: &str) -> Result<Value> {
        self.wait_for_nth(kind, 1)
    }

    /// Waits for the `nth` line of a type, counted from 1.
    pub(crate) fn wait_for_nth(&mut self, kind: &str, nth: usize) -> Result<Value> {
        let end = Instant::now() + LIMIT;
        loop {
            let ended = self.child.try_wait()?;
            if let Some(line) = of_type(&self.lines(), kind).into_iter().nth(nth - 1) {
                return Ok(line);
            }
            if let Some(status) = ended {
                bail!("the monitor ended with {status}: {}", self.diagnostics().trim());
            }
            if Instant::now() > end {
                let (limit, said) = (LIMIT.as_secs(), show(&self.lines()));
                let error =
                    anyhow!("it did not say `{kind}` ({nth}) within {limit} s; it said: {said}");
                return Err(self.with_its_words(&error));
            }
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// Stops it for a while, as a debugger or a starved machine does.
    pub(crate) fn stand_still(&self, time: Duration) -> Result<()> {
        self.stop_for_now()?;
        thread::sleep(time);
        self.go_on()
    }

    /// Stops it until [`Self::go_on`].
    pub(crate) fn stop_for_now(&self) -> Result<()> {
        signal(&self.child, Signal::STOP)
    }

    /// Lets it go on.
    pub(crate) fn go_on(&self) -> Result<()> {
        signal(&self.child, Signal::CONT)
    }

    /// Asks for the ledger, and waits for it.
    pub(crate) fn dump_ledger(&mut self) -> Result<String> {
        dump_ledger(&mut self.child, &self.ledger_dump)
    }

    /// Ends it as a user does (SIGINT), and gives what it said.
    pub(crate) fn stop(mut self) -> Result<Ended> {
        let status = interrupt(&mut self.child).map_err(|error| self.with_its_words(&error))?;
        self.ended(status)
    }

    /// What went wrong, with what it said of it.
    fn with_its_words(&mut self, error: &anyhow::Error) -> anyhow::Error {
        // Where it has ended already, it has said all.
        let _ = self.child.kill();
        anyhow!("{error:#}: {}", self.diagnostics().trim())
    }

    /// Its diagnostics, once it has ended.
    fn diagnostics(&mut self) -> String {
        self.stderr.take().map(|handle| handle.join().unwrap_or_default()).unwrap_or_default()
    }

    fn ended(&mut self, status: i32) -> Result<Ended> {
        let stdout = self.stdout.take().expect("taken here alone").join();
        let text = stdout.map_err(|_| anyhow!("the reader of the monitor's output panicked"))??;
        let stderr = self.diagnostics();
        Ok(Ended { status, lines: self.lines(), text, stderr })
    }
}

impl Drop for Monitor {
    fn drop(&mut self) {
        // Ended already in the good case.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Ended {
    /// The summary of the first file system.
    pub(crate) fn coverage(&self) -> Result<Value> {
        let summary = of_type(&self.lines, "summary").pop().context("it printed no summary")?;
        Ok(summary["file_systems"][0].clone())
    }

    /// How many events it says were lost.
    pub(crate) fn events_lost(&self) -> Result<u64> {
        let summary = of_type(&self.lines, "summary").pop().context("it printed no summary")?;
        let losses = summary["losses"].as_array().context("no losses")?;
        Ok(losses.iter().filter_map(|loss| loss["events_lost"].as_u64()).sum())
    }

    /// Fails unless it saw everything, found nothing, and ended with status 0.
    pub(crate) fn expect_clean(&self) -> Result<()> {
        let bad: Vec<_> = ["finding", "blind", "aborted", "refused"]
            .iter()
            .flat_map(|kind| of_type(&self.lines, kind))
            .collect();
        ensure!(bad.is_empty(), "an honest file system made the monitor say: {}", show(&bad));
        let summary = of_type(&self.lines, "summary").pop().context("it printed no summary")?;
        ensure!(summary["losses"].as_array().is_some_and(Vec::is_empty), "loss: {summary}");
        ensure!(self.status == 0, "exit status {}: {}", self.status, self.stderr.trim());
        Ok(())
    }
}

/// The monitor's command line, without the options.
pub(crate) fn command(place: &Place, device: &str) -> Command {
    let mut command = Command::new(&place.monitor);
    command.arg(device).stdin(Stdio::null());
    command
}

/// Ends it as a user does (SIGINT); its exit status.
pub(crate) fn interrupt(child: &mut Child) -> Result<i32> {
    signal(child, Signal::INT)?;
    let status = crate::command::wait(child, LIMIT)?
        .ok_or_else(|| anyhow!("the monitor did not end on SIGINT"))?;
    status.code().with_context(|| format!("the monitor ended with {status}"))
}

/// Asks for the ledger (SIGUSR1), and waits for it at `path`.
pub(crate) fn dump_ledger(child: &mut Child, path: &Path) -> Result<String> {
    if path.exists() {
        fs::remove_file(path)?;
    }
    signal(child, Signal::USR1)?;
    let end = Instant::now() + LIMIT;
    // It is written beside its place and renamed: once there, it is whole.
    while !path.exists() {
        if let Some(status) = child.try_wait()? {
            bail!("the monitor ended with {status} when asked for its ledger");
        }
        ensure!(Instant::now() < end, "no ledger dump within {} s", LIMIT.as_secs());
        thread::sleep(Duration::from_millis(20));
    }
    fs::read_to_string(path).context("cannot read the ledger's dump")
}

/// Signals a monitor.
pub(crate) fn signal(child: &Child, signal: Signal) -> Result<()> {
    let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
    kill_process(pid.context("a child has a process id")?, signal)
        .context("cannot signal the monitor")
}

/// The lines whose `type` is `kind`.
pub(crate) fn of_type(lines: &[Value], kind: &str) -> Vec<Value> {
    lines.iter().filter(|line| line["type"] == kind).cloned().collect()
}

/// Lines for an error message.
fn show(lines: &[Value]) -> String {
    let lines: Vec<_> = lines.iter().map(Value::to_string).collect();
    lines.join("\n")
}

fn read_lines(
    from: impl Read + Send + 'static,
    lines: Arc<Mutex<Vec<Value>>>,
) -> JoinHandle<Result<String>> {
    thread::spawn(move || {
        let mut text = String::new();
        for line in BufReader::new(from).lines() {
            let line = line?;
            let mut value: Value = serde_json::from_str(&line)
                .with_context(|| format!("the monitor printed what is no JSON: {line}"))?;
            if let Some(fields) = value.as_object_mut() {
                fields.insert("heard_ns".to_owned(), now_ns().into());
            }
            text.push_str(&line);
            text.push('\n');
            lines.lock().expect("no holder panics").push(value);
        }
        Ok(text)
    })
}

/// By the clock of the kernel's events.
fn now_ns() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    now.tv_sec.cast_unsigned() * 1_000_000_000 + now.tv_nsec.cast_unsigned()
}

fn read_text(mut from: impl Read + Send + 'static) -> JoinHandle<String> {
    thread::spawn(move || {
        let mut bytes = Vec::new();
        let _ = from.read_to_end(&mut bytes);
        String::from_utf8_lossy(&bytes).into_owned()
    })
}
