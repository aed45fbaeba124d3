//! Puts made-up changes into the ring buffer of a monitor that runs, as fast as it is told: see
//! `refverify-ebpf/src/bin/burst.rs`. The scenarios of `xtask` use it.
//!
//!     burst PID DIR [--wrong]
//!
//! PID is the monitor's, DIR an empty directory of a BPF file system. Each line on stdin is a
//! rate in records per second; it is answered by a line of JSON that says what was met and made
//! until then. Ends with stdin.

use std::{
    collections::BTreeSet,
    env,
    error::Error,
    fs,
    io::{self, BufRead, Write},
    path::Path,
};

use aya::{
    Ebpf, EbpfLoader,
    maps::{Array, HashMap, MapData, MapInfo, PerCpuArray},
    programs::RawTracePoint,
};
use refverify_common::{
    Layout,
    burst::{MADE, MET, Made, Pace},
};
use rustix::time::{ClockId, clock_gettime};
use serde_json::json;

/// The program, as the build script made it.
static PROGRAM: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/burst"));

/// The monitor's maps that the program works on.
const SHARED: [&str; 3] = ["RECORDS", "LOSSES", "FILE_SYSTEMS"];

/// Where the eBPF programs keep their [`Layout`].
const CONSTANTS: &str = ".rodata";

/// Its hooks.
const HOOKS: [(&str, &str); 2] =
    [("burst_tree_ref", "add_delayed_tree_ref"), ("burst_data_ref", "add_delayed_data_ref")];

type Fallible<T> = Result<T, Box<dyn Error>>;

fn main() -> Fallible<()> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let (pid, dir, is_wrong) = match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [pid, dir] => (pid, dir, false),
        [pid, dir, "--wrong"] => (pid, dir, true),
        _ => return Err("usage: burst PID DIR [--wrong]".into()),
    };
    let mut ebpf = load(pid, Path::new(dir))?;
    let mut pace: Array<_, Pace> = Array::try_from(ebpf.take_map("PACE").ok_or("no PACE")?)?;
    let made = PerCpuArray::try_from(ebpf.take_map("MADE_UP").ok_or("no MADE_UP")?)?;
    let lost_in = HashMap::try_from(ebpf.take_map("LOST_IN").ok_or("no LOST_IN")?)?;
    for (program, tracepoint) in HOOKS {
        let program = ebpf.program_mut(program).ok_or("no program")?;
        let program: &mut RawTracePoint = program.try_into()?;
        program.load()?;
        program.attach(tracepoint)?;
    }
    let mut out = io::stdout();
    for line in io::stdin().lock().lines() {
        let rate: u64 = line?.trim().parse()?;
        pace.set(0, pace_of(rate, is_wrong), 0)?;
        writeln!(out, "{}", told(&made, &lost_in)?)?;
        out.flush()?;
    }
    Ok(())
}

/// Loads the program onto the maps of the monitor `pid`.
fn load(pid: &str, dir: &Path) -> Fallible<Ebpf> {
    let mut loader = EbpfLoader::new();
    let mut layout = None;
    for id in map_ids(pid)? {
        let Ok(info) = MapInfo::from_id(id) else { continue };
        let name = info.name_as_str().unwrap_or_default();
        if name == CONSTANTS {
            layout = Some(layout_in(id)?);
        } else if let Some(&name) = SHARED.iter().find(|&&shared| shared == name) {
            let path = dir.join(name);
            MapData::from_id(id)?.pin(&path)?;
            loader.map_pin_path(name, path);
        }
    }
    let layout = layout.ok_or("the process has no eBPF programs of the monitor's")?;
    let ebpf = loader.override_global("LAYOUT", layout.as_slice(), true).load(PROGRAM)?;
    for name in SHARED {
        // One that was not among the monitor's is missing here: the program would have its own.
        fs::remove_file(dir.join(name))?;
    }
    Ok(ebpf)
}

/// The maps that a process holds (kernel: `bpf_map_show_fdinfo`).
fn map_ids(pid: &str) -> Fallible<BTreeSet<u32>> {
    let mut ids = BTreeSet::new();
    for entry in fs::read_dir(format!("/proc/{pid}/fdinfo"))? {
        // A descriptor may have been closed meanwhile.
        let Ok(text) = fs::read_to_string(entry?.path()) else { continue };
        let id = text.lines().find_map(|line| line.strip_prefix("map_id:"));
        ids.extend(id.and_then(|id| id.trim().parse::<u32>().ok()));
    }
    Ok(ids)
}

/// The layout of the running kernel, as the monitor has found it: all that its programs have of
/// constants.
fn layout_in(id: u32) -> Fallible<[u8; size_of::<Layout>()]> {
    let constants = aya::maps::Map::from_map_data(MapData::from_id(id)?)?;
    Ok(Array::<_, [u8; size_of::<Layout>()]>::try_from(constants)?.get(&0, 0)?)
}

/// From now on so many records a second. An honest extent has two, a wrong one a single one.
fn pace_of(rate: u64, is_wrong: bool) -> Pace {
    let records: u64 = if is_wrong { 1 } else { 2 };
    let step_ns = (records * 1_000_000_000).checked_div(rate).map_or(0, |step_ns| step_ns.max(1));
    [step_ns, now_ns(), u64::from(is_wrong)]
}

fn told(
    made: &PerCpuArray<MapData, Made>,
    lost_in: &HashMap<MapData, u64, u64>,
) -> Fallible<serde_json::Value> {
    let cpus = made.get(&0, 0)?;
    let sum = |index: usize| cpus.iter().map(|cpu| cpu[index]).sum::<u64>();
    let lost_in = lost_in.keys().collect::<Result<BTreeSet<u64>, _>>()?;
    Ok(json!({
        "time_ns": now_ns(),
        "met": sum(MET),
        "made": sum(MADE),
        "lost_in": lost_in,
    }))
}

fn now_ns() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    now.tv_sec.cast_unsigned() * 1_000_000_000 + now.tv_nsec.cast_unsigned()
}
