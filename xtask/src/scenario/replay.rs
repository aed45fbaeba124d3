//! A recording replays to what the run itself said, byte for byte, and one that was cut off up
//! to the cut.

use std::{
    fs::{self, File},
    path::Path,
    process::Command,
    time::Duration,
};

use anyhow::{Context, Result, ensure};

use super::{
    Outcome, Place,
    monitor::{Ended, Monitor},
    oracle,
    scratch::Scratch,
    workload::{Balances, Workload},
};
use crate::command::{self, Finished, text};

/// How long a replay may take.
const LIMIT: Duration = Duration::from_mins(5);

/// Exit status bit: not everything was verified.
const STATUS_GAPS: i32 = 4;

/// Operations of the workload.
const OPERATIONS: u64 = 400;

/// A run on this machine's own kernel, with an audit of every commit.
pub(super) fn local(place: &Place) -> Result<Outcome> {
    let mut scratch = Scratch::new(place, 2 << 30)?;
    scratch.mkfs(&[])?;
    scratch.mount()?;
    let recording = place.dir().join("recording");
    let name = text(&recording)?;
    let mut workload = Workload::start(&scratch.mount_point, 5, Balances::None)?;
    let mut monitor = Monitor::start(place, scratch.device_name(), &["--audit", "--record", name])?;
    monitor.wait_for("seeded")?;
    workload.work(OPERATIONS, LIMIT)?;
    let ledger = monitor.dump_ledger()?;
    workload.stop()?;
    scratch.unmount()?;
    let ended = monitor.stop()?;
    ended.expect_clean()?;
    replays_to_the_same(place, &recording, &ended, &ledger)?;
    breaks_off(place, &recording, &ended)?;
    let extents = oracle::parse_ledger(&ledger)?.extents;
    let (&newest, _) = extents.last_key_value().context("the ledger is empty")?;
    let life = explain(place, &recording, newest)?;
    ensure!(life.contains("ADD_EXTENT") && life.contains("at the end"), "{life}");
    Ok(Outcome::Passed)
}

/// Fails unless the replay says what the run said, and comes to this ledger at the place where
/// the run was last asked for it.
pub(super) fn replays_to_the_same(
    place: &Place,
    recording: &Path,
    ended: &Ended,
    ledger: &str,
) -> Result<()> {
    let replayed_ledger = place.dir().join("replayed-ledger");
    let mut arguments = vec!["--ledger-dump".as_ref(), replayed_ledger.as_os_str()];
    // The summary says what the journal took.
    let used_journal = ended.text.contains("\"journal\":{");
    if used_journal {
        arguments.push("--journal".as_ref());
    }
    let done = replay(place, recording, &arguments)?;
    ensure!(done.status.code() == Some(ended.status), "{}: {}", done.status, done.stderr);
    if let Some((ours, theirs)) = first_difference(&ended.text, &done.stdout) {
        anyhow::bail!("the run said {ours:?}, and its replay {theirs:?}");
    }
    let replayed = fs::read_to_string(&replayed_ledger).context("the replay wrote no ledger")?;
    if let Some((ours, theirs)) = first_difference(ledger, &replayed) {
        anyhow::bail!("the run's ledger has {ours:?}, and that of its replay {theirs:?}");
    }
    let (lines, extents) = (done.stdout.lines().count(), ledger.lines().count());
    println!("the replay is the same: {lines} lines, and a ledger of {extents}");
    Ok(())
}

/// Fails unless half of the recording replays to the beginning of what the run said, and the
/// replay says that this is not all.
pub(super) fn breaks_off(place: &Place, recording: &Path, ended: &Ended) -> Result<()> {
    let half = place.dir().join("half-recording");
    fs::copy(recording, &half)?;
    let len = fs::metadata(recording)?.len() / 2;
    File::options().write(true).open(&half)?.set_len(len)?;
    let done = replay(place, &half, &[])?;
    let status = done.status.code().context("the replay was killed")?;
    ensure!(status & STATUS_GAPS != 0, "half a recording ends with {status}");
    ensure!(done.stderr.contains("the recording breaks off after"), "{}", done.stderr);
    // The last line is a summary, which cannot be that of the run.
    let mut told: Vec<&str> = done.stdout.lines().collect();
    ensure!(told.pop().is_some_and(|line| line.contains("\"summary\"")), "{}", done.stdout);
    let wanted: Vec<&str> = ended.text.lines().take(told.len()).collect();
    ensure!(told == wanted, "half a recording tells {told:#?}, and not {wanted:#?}");
    println!("half of it replays to the first {} lines", told.len());
    Ok(())
}

/// The life of an extent, as it is told from a recording.
pub(super) fn explain(place: &Place, recording: &Path, bytenr: u64) -> Result<String> {
    let mut command = Command::new(&place.monitor);
    command.args(["explain", "--bytenr", &bytenr.to_string()]).arg(recording);
    let life = command::output(&mut command, LIMIT)?;
    println!("the life of {bytenr} is told in {} lines", life.lines().count());
    Ok(life)
}

fn replay(place: &Place, recording: &Path, arguments: &[&std::ffi::OsStr]) -> Result<Finished> {
    let mut command = Command::new(&place.monitor);
    command.args(["replay", "--json"]).args(arguments).arg(recording);
    command::finish(&mut command, LIMIT)
}

fn first_difference<'a>(ours: &'a str, theirs: &'a str) -> Option<(&'a str, &'a str)> {
    if ours == theirs {
        return None;
    }
    let both = ours.lines().zip(theirs.lines());
    let different = both.into_iter().find(|(ours, theirs)| ours != theirs);
    Some(different.unwrap_or(("another number of lines", "")))
}
