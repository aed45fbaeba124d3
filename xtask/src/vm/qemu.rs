//! One boot: QEMU, its console, and how it ended.

use std::{
    fmt::Write as _,
    fs::{self, File},
    io::{BufRead, BufReader, Write},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::mpsc::{self, RecvTimeoutError},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};

use super::agreement::{self, Verdict};

/// What a kernel says when it will not go on.
const HANG_MARKERS: [&str; 5] =
    ["Kernel panic", "soft lockup", "BUG: ", "Oops: ", "Out of memory: Killed"];

/// How long the console is read on after a marker: what follows says where it happened.
const EPILOGUE: Duration = Duration::from_secs(5);

/// What to boot.
pub(super) struct Boot<'a> {
    pub(super) kernel: &'a Path,
    pub(super) initramfs: &'a Path,
    pub(super) scenario: &'a str,
    /// How long it is to work, where it can be told.
    pub(super) minutes: Option<u64>,
    /// Where the console is kept.
    pub(super) log: PathBuf,
    pub(super) limit: Duration,
    pub(super) echo: Echo,
}

/// What of the console is shown while it runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Echo {
    Nothing,
    /// All of it, marked as such.
    Console,
    /// What the scenario prints, without the kernel's messages.
    Scenario,
}

/// How it ended.
struct Ended {
    verdict: Verdict,
    /// Whether the guest's first program ran.
    has_begun: bool,
}

/// Boots, and watches the console until QEMU ends, hangs or is out of time.
///
/// A kernel that dies before its first program runs is booted once more, which is said: two emulated
/// processors may meet code that the other is just patching, which kills one of some hundred boots
/// (seen with QEMU 7.2 and Linux 6.12: `Oops: int3` at a static key).
pub(super) fn run(boot: &Boot) -> Result<Verdict> {
    let ended = boot_once(boot)?;
    if ended.has_begun {
        return Ok(ended.verdict);
    }
    println!("vm: nothing had begun to run; booting once more: {}", ended.verdict);
    fs::rename(&boot.log, boot.log.with_extension("died.log"))?;
    Ok(boot_once(boot)?.verdict)
}

fn boot_once(boot: &Boot) -> Result<Ended> {
    let disk = tempfile::NamedTempFile::new().context("cannot make a scratch disk")?;
    disk.as_file().set_len(agreement::DISK_LEN_BYTES)?;
    let log =
        File::create(&boot.log).with_context(|| format!("cannot create {}", boot.log.display()))?;
    // QEMU's own complaints go to the log as well.
    let mut qemu = start(boot, disk.path(), log.try_clone()?)?;
    let ended = watch(boot, &mut qemu, log);
    // Harmless when it has ended; needed when it has not.
    let _ = qemu.kill();
    qemu.wait()?;
    ended
}

/// The kernel's command line for a scenario.
pub(super) fn kernel_parameters(scenario: &str) -> String {
    format!(
        "console=ttyS0 panic=-1 loglevel=5 mitigations=off watchdog_thresh=60 {}={scenario}",
        agreement::SCENARIO_PARAMETER,
    )
}

fn start(boot: &Boot, disk: &Path, complaints: File) -> Result<Child> {
    let mut append = kernel_parameters(boot.scenario);
    if let Some(minutes) = boot.minutes {
        let _ = write!(append, " {}={minutes}", agreement::MINUTES_PARAMETER);
    }
    command(boot.kernel, boot.initramfs, &append, disk)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(complaints)
        .spawn()
        .context("cannot start qemu-system-x86_64")
}

/// A machine with a console on its standard output and a disk.
pub(super) fn command(kernel: &Path, initramfs: &Path, append: &str, disk: &Path) -> Command {
    let mut command = Command::new("qemu-system-x86_64");
    command
        // Emulation works everywhere. KVM that is there but does not work (in nested VMs) ends
        // QEMU instead of being passed over.
        .args(["-accel", "tcg,thread=multi"])
        .args(["-cpu", "max", "-m", "2048M", "-smp", "2"])
        .args(["-display", "none", "-serial", "stdio", "-monitor", "none", "-no-reboot"])
        .args(["-nodefaults", "-no-user-config"])
        .arg("-kernel")
        .arg(kernel)
        .arg("-initrd")
        .arg(initramfs)
        .args(["-append", append])
        .arg("-drive")
        .arg(format!("file={},format=raw,if=virtio,cache=unsafe", disk.display()));
    command
}

fn watch(boot: &Boot, qemu: &mut Child, mut log: File) -> Result<Ended> {
    let lines = read_lines(qemu);
    let mut end = Instant::now() + boot.limit;
    let mut verdict = None;
    let mut hang = None;
    let mut has_begun = false;
    loop {
        let line = match lines.recv_timeout(end.saturating_duration_since(Instant::now())) {
            Ok(line) => line,
            Err(RecvTimeoutError::Disconnected) => break,
            Err(RecvTimeoutError::Timeout) => {
                let late = format!("not done after {} s", boot.limit.as_secs());
                hang.get_or_insert(late);
                break;
            }
        };
        writeln!(log, "{line}")?;
        match boot.echo {
            Echo::Console => println!("  | {line}"),
            Echo::Scenario if !line.starts_with('[') => println!("{line}"),
            Echo::Scenario | Echo::Nothing => {}
        }
        if hang.is_none() && HANG_MARKERS.iter().any(|marker| line.contains(marker)) {
            hang = Some(format!("the kernel said: {line}"));
            end = Instant::now() + EPILOGUE;
        }
        verdict = verdict.or_else(|| agreement::parse_verdict(&line));
        has_begun |= line.contains(agreement::BEGUN) || verdict.is_some();
    }
    let log = boot.log.display();
    let verdict = match (hang, verdict) {
        (Some(hang), _) => Verdict::Failed(format!("{hang} (see {log})")),
        (None, Some(Verdict::Failed(why))) => Verdict::Failed(format!("{why} (see {log})")),
        (None, Some(verdict)) => verdict,
        (None, None) => Verdict::Failed(format!("QEMU ended without a verdict (see {log})")),
    };
    Ok(Ended { verdict, has_begun })
}

/// The console's lines, without the terminal's carriage returns.
fn read_lines(qemu: &mut Child) -> mpsc::Receiver<String> {
    let (sender, receiver) = mpsc::channel();
    let stdout = qemu.stdout.take().expect("it was piped");
    thread::spawn(move || {
        let mut reader = BufReader::new(stdout);
        let mut bytes = Vec::new();
        while reader.read_until(b'\n', &mut bytes).is_ok_and(|len| len > 0) {
            let line = String::from_utf8_lossy(&bytes).trim_end().replace('\r', "");
            if sender.send(line).is_err() {
                return;
            }
            bytes.clear();
        }
    });
    receiver
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What `watch` makes of a machine that prints `console` by `sh`.
    fn watched(console: &str, limit: Duration) -> Ended {
        let boot = Boot {
            kernel: Path::new("none"),
            initramfs: Path::new("none"),
            scenario: "none",
            minutes: None,
            log: PathBuf::from("none"),
            limit,
            echo: Echo::Nothing,
        };
        let mut machine =
            Command::new("sh").args(["-c", console]).stdout(Stdio::piped()).spawn().unwrap();
        let ended = watch(&boot, &mut machine, tempfile::tempfile().unwrap()).unwrap();
        machine.kill().unwrap();
        machine.wait().unwrap();
        ended
    }

    #[test]
    fn a_verdict_counts_only_when_the_kernel_lived() {
        let long = Duration::from_mins(1);
        assert_eq!(watched("echo guest verdict: passed", long).verdict, Verdict::Passed);
        let panicked = "echo guest verdict: passed; echo Kernel panic - not syncing";
        let verdict = watched(panicked, long).verdict;
        assert!(matches!(verdict, Verdict::Failed(why) if why.contains("panic")));
    }

    #[test]
    fn only_a_kernel_that_died_before_anything_ran_is_booted_again() {
        let minute = Duration::from_mins(1);
        assert!(!watched("echo Oops: int3", minute).has_begun);
        let begun = format!("echo {}; echo Oops: int3", agreement::BEGUN);
        assert!(watched(&begun, minute).has_begun);
    }

    #[test]
    fn no_verdict_is_a_failure() {
        let verdict = watched("echo booting", Duration::from_mins(1)).verdict;
        assert!(matches!(verdict, Verdict::Failed(why) if why.contains("without a verdict")));
    }

    #[test]
    fn a_machine_that_hangs_is_given_up() {
        let verdict = watched("echo booting; exec sleep 60", Duration::from_millis(300)).verdict;
        assert!(matches!(verdict, Verdict::Failed(why) if why.contains("not done")));
    }
}
