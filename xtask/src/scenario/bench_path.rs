//! What the whole path costs on the kernel that is running: the same work without the monitor,
//! with it, and with it but without stacks, in turns.
//!
//! The work makes as many events a second as one thread can: a file of many extents is cloned
//! again and again, and the clones are deleted.

use std::{
    collections::{BTreeMap, HashSet},
    fs::{self, File},
    os::unix::fs::FileExt,
    time::Instant,
};

use anyhow::{Context, Result, ensure};
use rustix::fs::{ioctl_ficlone, syncfs};
use serde_json::Value;

use super::{Outcome, Place, monitor::Monitor, scratch::Scratch};
use crate::command;

/// Rounds of all three ways; the medians are shown.
const ROUNDS: usize = 5;

/// Extents of the file that is cloned.
const EXTENTS: u64 = 200;

/// Clones that a round makes and deletes.
const CLONES: u64 = 300;

/// Turns the kernel's own measuring of eBPF programs on (kernel: Documentation/admin-guide/
/// sysctl/kernel.rst).
const STATS: &str = "/proc/sys/kernel/bpf_stats_enabled";

/// One way to do the work, and what was measured.
#[derive(Default)]
struct Way {
    name: &'static str,
    /// The monitor's options; `None`: no monitor.
    options: Option<&'static [&'static str]>,
    seconds: Vec<f64>,
    events: Vec<f64>,
    /// Processor time of the monitor, in seconds.
    monitor_seconds: Vec<f64>,
    /// Runs and nanoseconds of each eBPF program.
    programs: BTreeMap<String, (u64, u64)>,
}

pub(super) fn run(place: &Place) -> Result<Outcome> {
    let before = fs::read_to_string(STATS).context("the kernel does not measure eBPF")?;
    fs::write(STATS, "1").with_context(|| format!("cannot write {STATS}"))?;
    let measured = measure(place);
    fs::write(STATS, before)?;
    print(&measured?)?;
    Ok(Outcome::Passed)
}

fn measure(place: &Place) -> Result<[Way; 3]> {
    let mut ways = [
        Way { name: "no monitor", ..Way::default() },
        Way { name: "without stacks", options: Some(&["--no-stacks"]), ..Way::default() },
        Way { name: "with stacks", options: Some(&[]), ..Way::default() },
    ];
    for round in 1..=ROUNDS {
        println!("round {round} of {ROUNDS}");
        for way in &mut ways {
            one_round(place, way).with_context(|| way.name)?;
        }
    }
    Ok(ways)
}

fn one_round(place: &Place, way: &mut Way) -> Result<()> {
    let mut scratch = Scratch::new(place, 2 << 30)?;
    scratch.mkfs(&[])?;
    scratch.mount()?;
    prepare(&scratch)?;
    let Some(options) = way.options else {
        way.seconds.push(work(&scratch, CLONES)?);
        return scratch.unmount();
    };
    let mut monitor = Monitor::start(place, scratch.device_name(), options)?;
    monitor.wait_for("seeded")?;
    let monitor_before = processor_seconds(monitor.pid())?;
    way.seconds.push(work(&scratch, CLONES)?);
    // All that was sent is judged before the dump is written.
    monitor.dump_ledger()?;
    way.monitor_seconds.push(processor_seconds(monitor.pid())? - monitor_before);
    add_programs(&mut way.programs, monitor.pid())?;
    scratch.unmount()?;
    let ended = monitor.stop()?;
    ended.expect_clean()?;
    let events = ended.coverage()?["events_seen"].as_f64().context("no events_seen")?;
    way.events.push(events);
    Ok(())
}

pub(super) fn prepare(scratch: &Scratch) -> Result<()> {
    let source = File::create(scratch.path("source"))?;
    // Every other sector, so that no two extents are merged.
    for extent in 0..EXTENTS {
        source.write_all_at(&[1; 4096], extent * 8192)?;
    }
    Ok(syncfs(source)?)
}

/// The work, on so many clones; seconds it took.
pub(super) fn work(scratch: &Scratch, clones: u64) -> Result<f64> {
    let start = Instant::now();
    let source = File::open(scratch.path("source"))?;
    for clone in 0..clones {
        ioctl_ficlone(File::create(scratch.path(format!("clone{clone}")))?, &source)?;
    }
    syncfs(&source)?;
    for clone in 0..clones {
        fs::remove_file(scratch.path(format!("clone{clone}")))?;
    }
    syncfs(&source)?;
    Ok(start.elapsed().as_secs_f64())
}

/// User and system time of a process (man 5 proc, /proc/PID/stat: fields 14 and 15, in ticks of
/// which Linux shows 100 a second).
pub(super) fn processor_seconds(pid: u32) -> Result<f64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The second field may hold anything, but it is the last in parentheses.
    let (_, fields) = stat.rsplit_once(')').context("no fields in /proc/PID/stat")?;
    let ticks: Vec<f64> =
        fields.split_whitespace().skip(11).take(2).filter_map(|field| field.parse().ok()).collect();
    ensure!(ticks.len() == 2, "no times in /proc/PID/stat");
    Ok((ticks[0] + ticks[1]) / 100.0)
}

/// Adds the kernel's counts of the monitor's programs.
fn add_programs(programs: &mut BTreeMap<String, (u64, u64)>, pid: u32) -> Result<()> {
    let ids = program_ids(pid)?;
    let text = command::run("bpftool", &["--json", "prog", "show"])?;
    let all: Value = serde_json::from_str(&text).context("bpftool printed what is no JSON")?;
    for program in all.as_array().into_iter().flatten() {
        if !program["id"].as_u64().is_some_and(|id| ids.contains(&id)) {
            continue;
        }
        let name = program["name"].as_str().unwrap_or("?");
        let sums = programs.entry(name.to_owned()).or_default();
        sums.0 += program["run_cnt"].as_u64().unwrap_or_default();
        sums.1 += program["run_time_ns"].as_u64().unwrap_or_default();
    }
    Ok(())
}

/// The ids of the eBPF programs that a process holds (kernel: kernel/bpf/syscall.c,
/// `bpf_prog_show_fdinfo`).
fn program_ids(pid: u32) -> Result<HashSet<u64>> {
    let mut ids = HashSet::new();
    for entry in fs::read_dir(format!("/proc/{pid}/fdinfo"))? {
        // A descriptor may have been closed meanwhile.
        let Ok(text) = fs::read_to_string(entry?.path()) else { continue };
        let id = text.lines().find_map(|line| line.strip_prefix("prog_id:"));
        ids.extend(id.and_then(|id| id.trim().parse::<u64>().ok()));
    }
    Ok(ids)
}

fn print(ways: &[Way; 3]) -> Result<()> {
    let [none, ..] = ways;
    let alone = median(&none.seconds);
    println!("\nMedians of {ROUNDS} rounds on Linux {}:\n", crate::machine::kernel_release());
    println!(
        "{:16} {:>9} {:>9} {:>12} {:>10} {:>22}",
        "", "work [s]", "events", "events/s", "slow-down", "capacity [events/s]*"
    );
    for way in ways {
        let seconds = median(&way.seconds);
        print!("{:16} {seconds:9.3}", way.name);
        if way.options.is_none() {
            println!();
            continue;
        }
        let events = median(&way.events);
        let capacity = events / median(&way.monitor_seconds).max(0.01);
        println!(
            " {events:9.0} {:12.0} {:9.1}% {capacity:22.0}",
            events / seconds,
            (seconds / alone - 1.0) * 100.0
        );
    }
    println!("\n* events by the monitor's own processor time: what one core of it can take.\n");
    println!(
        "{:32} {:>10} {:>18} {:>18}",
        "program", "runs", "ns without stacks", "ns with stacks"
    );
    let [_, without, with] = ways;
    for (name, &(runs, ns)) in &with.programs {
        let per_run = |(runs, ns): (u64, u64)| ns.checked_div(runs);
        let show = |ns: Option<u64>| ns.map_or_else(|| "-".to_owned(), |ns| ns.to_string());
        let bare = without.programs.get(name).copied().and_then(per_run);
        println!("{name:32} {runs:10} {:>18} {:>18}", show(bare), show(per_run((runs, ns))));
    }
    ensure!(!with.programs.is_empty(), "the monitor holds no eBPF program");
    Ok(())
}

pub(super) fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or(f64::NAN)
}
