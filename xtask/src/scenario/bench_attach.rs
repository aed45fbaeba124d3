//! What watching costs a guest: the same work in one VM without a monitor, with a monitor in the
//! guest, and with a monitor outside that is attached to it, in turns.

use anyhow::{Context, Result};

use super::{Outcome, Place, attach::DISK, bench_path::median, monitor::Monitor};
use crate::{
    command::text,
    vm::{GUEST_NAME, Guest},
};

/// Rounds of all three ways; the medians are shown.
const ROUNDS: usize = 3;

/// Processes of the guest by the names of their threads: the agent, which runs as descriptor 9
/// of the shell that started it, and what carries its stream.
const AGENT: &str = "9";
const CARRIER: &str = "sshd";

/// One way to do the work, and what was measured, in seconds.
struct Way {
    name: &'static str,
    work: Vec<f64>,
    /// Processor time of what watches in the guest.
    watcher: Vec<f64>,
    /// Processor time of sshd.
    carrier: Vec<f64>,
}

pub(super) fn run(place: &Place, guest: &Guest) -> Result<Outcome> {
    guest.ask("rest")?;
    let mut ways = ["no monitor", "monitor in the guest", "attached"].map(Way::new);
    for round in 1..=ROUNDS {
        println!("round {round} of {ROUNDS}");
        let [alone, inside, attached] = &mut ways;
        alone.work.push(seconds(guest, "work")?);
        with_monitor_inside(guest, inside)?;
        with_monitor_outside(place, guest, attached)?;
    }
    print(&ways);
    Ok(Outcome::Passed)
}

fn with_monitor_inside(guest: &Guest, way: &mut Way) -> Result<()> {
    guest.ask("start-monitor")?;
    let before = seconds(guest, "cpu-of-monitor")?;
    way.work.push(seconds(guest, "work")?);
    way.watcher.push(seconds(guest, "cpu-of-monitor")? - before);
    guest.ask("stop-monitor")?;
    Ok(())
}

fn with_monitor_outside(place: &Place, guest: &Guest, way: &mut Way) -> Result<()> {
    let config = text(&guest.ssh_config)?;
    let arguments = ["attach", "--ssh-config", config, GUEST_NAME, DISK];
    let mut monitor = Monitor::start_with(place, &arguments)?;
    monitor.wait_for("seeded")?;
    let cpu = |name: &str| seconds(guest, &format!("cpu-of-{name}"));
    let before = (cpu(AGENT)?, cpu(CARRIER)?);
    way.work.push(seconds(guest, "work")?);
    // All that was sent has arrived before the dump is written.
    monitor.dump_ledger()?;
    way.watcher.push(cpu(AGENT)? - before.0);
    way.carrier.push(cpu(CARRIER)? - before.1);
    monitor.stop()?.expect_clean()
}

fn seconds(guest: &Guest, what: &str) -> Result<f64> {
    let answer = guest.ask(what)?;
    answer.trim().parse().with_context(|| format!("{what}: {answer} is no number"))
}

impl Way {
    const fn new(name: &'static str) -> Self {
        Self { name, work: Vec::new(), watcher: Vec::new(), carrier: Vec::new() }
    }
}

fn print(ways: &[Way; 3]) {
    let alone = median(&ways[0].work);
    println!("\nMedians of {ROUNDS} rounds in one VM, whose processors are emulated:\n");
    println!(
        "{:22} {:>9} {:>10} {:>18} {:>14}",
        "", "work [s]", "slow-down", "CPU of watcher [s]", "of sshd [s]"
    );
    for way in ways {
        let work = median(&way.work);
        print!("{:22} {work:9.2} {:9.1}%", way.name, (work / alone - 1.0) * 100.0);
        for spent in [&way.watcher, &way.carrier] {
            if spent.is_empty() {
                print!(" {:>16}", "-");
            } else {
                print!(" {:16.2}", median(spent));
            }
        }
        println!();
    }
}
