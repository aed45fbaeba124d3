//! A monitor that is killed at any moment, or ends as it should, leaves nothing behind: no program,
//! map or link in the kernel, and nothing written to the device.

use std::{
    collections::BTreeSet,
    fs,
    process::Child,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, bail, ensure};
use rustix::process::Signal;

use super::{
    Outcome, Place,
    compare::Frozen,
    monitor::{self, Monitor, signal},
    scratch::Scratch,
    used::Sectors,
    workload::{Balances, Random, Workload},
};
use crate::command::{self, LIMIT};

/// How often it is attached and detached, if the machine is fast enough.
const ROUNDS: u64 = 200;

/// Rounds that a run must have made to count.
const ROUNDS_MIN: u64 = 40;

/// How long that may take.
const MINUTES: u64 = 3;

/// The kernel frees what a process held a little later.
const FREED_WITHIN: Duration = Duration::from_secs(10);

pub(super) fn run(place: &Place) -> Result<Outcome> {
    let mut scratch = Scratch::new(place, 3 << 30)?;
    scratch.mkfs(&[])?;
    scratch.mount()?;
    let workload = Workload::start(&scratch.mount_point, 21, Balances::None)?;
    // Killed within twice the time to attach: while it loads, attaches, reads, and when it is live.
    let start = Instant::now();
    Monitor::start(place, scratch.device_name(), &[])?.stop()?;
    let within_ms = u64::try_from(2 * start.elapsed().as_millis())?;
    let mut chance = Chance { random: Random(9), within_ms };
    let mut held = Ids::default();
    let (mut attached, mut rounds) = (0, 0);
    let end = Instant::now() + Duration::from_mins(place.minutes.unwrap_or(MINUTES));
    while rounds < ROUNDS && Instant::now() < end {
        rounds += 1;
        let ids = one(place, &scratch, &mut chance, rounds)?;
        let had_attached = !ids.links.is_empty();
        chance.learn(had_attached);
        attached += u64::from(had_attached);
        held.join(ids);
    }
    workload.stop()?;
    ensure!(rounds >= ROUNDS_MIN, "only {rounds} rounds");
    ensure!(attached > rounds / 4, "only {attached} of {rounds} had come to attach anything");
    held.wait_until_freed()?;
    nothing_is_written(place, &scratch, &mut chance)?;
    scratch.unmount()?;
    println!(
        "{rounds} rounds, {attached} with hooks in force; {} programs, {} maps and {} links are gone",
        held.programs.len(),
        held.maps.len(),
        held.links.len()
    );
    Ok(Outcome::Passed)
}

/// When a monitor is killed.
struct Chance {
    random: Random,
    within_ms: u64,
}

impl Chance {
    /// How long it takes to attach changes with what else the machine does: about half of all
    /// rounds are to come to it.
    const fn learn(&mut self, had_attached: bool) {
        let step_ms = self.within_ms / 10;
        if had_attached {
            self.within_ms -= step_ms;
        } else {
            self.within_ms += step_ms + 1;
        }
    }
}

/// Starts a monitor, and ends it: three times of four it is killed. Returns what it held.
fn one(place: &Place, scratch: &Scratch, chance: &mut Chance, round: u64) -> Result<Ids> {
    let mut child = monitor::command(place, scratch.device_name())
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .spawn()?;
    thread::sleep(Duration::from_millis(chance.random.below(chance.within_ms)));
    if round.is_multiple_of(4) {
        let ids = Ids::of(&child);
        // It may not listen yet, and end by the signal. Not SIGINT, which what a shell runs in the
        // background ignores until it listens.
        signal(&child, Signal::TERM)?;
        ensure!(command::wait(&mut child, LIMIT)?.is_some(), "it did not end");
        return ids;
    }
    // Standing still it makes no more.
    signal(&child, Signal::STOP)?;
    let ids = Ids::of(&child);
    child.kill()?;
    child.wait()?;
    ids
}

/// While the file system is frozen, whatever is written would be the monitor's.
fn nothing_is_written(place: &Place, scratch: &Scratch, chance: &mut Chance) -> Result<()> {
    let frozen = Frozen::freeze(scratch)?;
    let before = Sectors::moved(&scratch.device)?.written;
    for round in 0..8 {
        one(place, scratch, chance, round)?;
    }
    let after = Sectors::moved(&scratch.device)?.written;
    drop(frozen);
    ensure!(before == after, "{} sectors were written to a frozen file system", after - before);
    Ok(())
}

/// Numbers of eBPF objects; none is used twice while the kernel runs.
#[derive(Default)]
struct Ids {
    programs: BTreeSet<u32>,
    maps: BTreeSet<u32>,
    links: BTreeSet<u32>,
}

impl Ids {
    /// What a process holds, by its descriptors (kernel: `bpf_prog_show_fdinfo`,
    /// `bpf_map_show_fdinfo`, `bpf_link_show_fdinfo`).
    fn of(child: &Child) -> Result<Self> {
        let mut ids = Self::default();
        for entry in fs::read_dir(format!("/proc/{}/fdinfo", child.id()))? {
            // A descriptor may be closed meanwhile.
            let Ok(info) = fs::read_to_string(entry?.path()) else { continue };
            let number = |name: &str| {
                let mut lines = info.lines();
                lines.find_map(|line| line.strip_prefix(name)?.trim().parse::<u32>().ok())
            };
            // A link tells of its program too.
            if let Some(link) = number("link_id:") {
                ids.links.insert(link);
            } else if let Some(program) = number("prog_id:") {
                ids.programs.insert(program);
            }
            ids.maps.extend(number("map_id:"));
        }
        Ok(ids)
    }

    fn join(&mut self, other: Self) {
        self.programs.extend(other.programs);
        self.maps.extend(other.maps);
        self.links.extend(other.links);
    }

    /// Which of them the kernel still has.
    fn left(&self) -> Result<Self> {
        let mut left = Self::default();
        for program in aya::programs::loaded_programs() {
            left.programs.extend(self.programs.get(&program?.id()));
        }
        for map in aya::maps::loaded_maps() {
            left.maps.extend(self.maps.get(&map?.id()));
        }
        for link in aya::programs::loaded_links() {
            left.links.extend(self.links.get(&link?.id()));
        }
        Ok(left)
    }

    fn wait_until_freed(&self) -> Result<()> {
        ensure!(!self.programs.is_empty() && !self.maps.is_empty(), "nothing was ever loaded");
        let end = Instant::now() + FREED_WITHIN;
        loop {
            // One that goes while it is looked at is an error, and gone the next time.
            if let Ok(left) = self.left() {
                if left.programs.is_empty() && left.maps.is_empty() && left.links.is_empty() {
                    return Ok(());
                }
                if Instant::now() > end {
                    let Self { programs, maps, links } = left;
                    bail!("left in the kernel: programs {programs:?}, maps {maps:?}, {links:?}");
                }
            }
            ensure!(Instant::now() < end, "the kernel's programs cannot be listed");
            thread::sleep(Duration::from_millis(100));
        }
    }
}
