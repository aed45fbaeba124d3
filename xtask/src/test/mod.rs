//! `cargo xtask test`: everything that shows that the product does its job. `.ci/run` calls it.
//!
//! What this machine cannot run is skipped by name and counted. Where nobody reads the output
//! (`--no-skip`, or CI=true), a skip that the machine could have run is a failure.

use std::{env, path::Path, process::ExitCode, time::Instant};

use anyhow::Result;

use crate::{
    build,
    scenario::{self, Scenario, Tested},
    setup,
    vm::{self, Vm},
};

mod checks;
mod lanes;
mod live;
mod tally;

pub(crate) use tally::Skip;
use tally::{Outcome, Tally, Test};

/// Arguments of the verb.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Counts a skip that this machine could have run as a failure; so does CI=true
    #[arg(long)]
    no_skip: bool,
}

/// Runs everything; the last line is the summary.
pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    let start = Instant::now();
    setup::run()?;
    let strict = args.no_skip || env::var("CI").is_ok_and(|value| value == "true");
    let mut tally = Tally::new(strict);
    checks::run(&mut tally);
    scenarios(&mut tally);
    println!("\nin {} min {} s", start.elapsed().as_secs() / 60, start.elapsed().as_secs() % 60);
    Ok(tally.summary())
}

/// The scenarios, on this machine's kernel and in a VM with each line's.
fn scenarios(tally: &mut Tally) {
    println!("\n== building the monitor");
    let built = build::monitor().and_then(|monitor| Ok((monitor, build::static_xtask()?)));
    let (monitor, xtask) = match built {
        Ok(built) => built,
        Err(error) => {
            tally.record("build of the monitor", Outcome::Failed(format!("{error:#}")));
            return;
        }
    };
    // Not left to the scenarios, which run as root: what is downloaded is the user's.
    if vm::obstacle().is_none()
        && let Err(error) = vm::fetch_guest()
    {
        println!("no VM to attach to: {error:#}");
    }
    let vms: Vec<_> =
        vm::LINES.iter().map(|line| (line.name, prepare(line.name, &xtask, &monitor))).collect();
    println!("\n== scenarios, on this machine's kernel and in VMs with Debian's");
    let is_here =
        |tested| matches!(tested, Tested::Everywhere | Tested::HereOnly | Tested::HereAndInOneVm);
    let here = scenario::all().filter(|scenario| is_here(scenario.tested)).map(|scenario| {
        Test::new(format!("{} here", scenario.name), || live::run(scenario, &monitor))
    });
    let in_vms = vms.iter().flat_map(|(line, vm)| {
        tested_in(line).map(move |scenario| {
            Test::new(format!("{} on {line}", scenario.name), move || in_vm(vm, scenario))
        })
    });
    lanes::run(tally, here, in_vms);
}

/// The line whose kernel stands for all where one is enough.
const ONE_LINE: &str = "6.1";

/// The scenarios that a line's kernel is tested by.
fn tested_in(line: &str) -> impl Iterator<Item = &'static Scenario> {
    let is_the_one = line == ONE_LINE;
    scenario::all().filter(move |scenario| match scenario.tested {
        Tested::Everywhere => true,
        Tested::InOneVm | Tested::HereAndInOneVm => is_the_one,
        Tested::HereOnly | Tested::No => false,
    })
}

/// A VM with that line's kernel, or why there is none.
fn prepare(line: &str, xtask: &Path, monitor: &Path) -> Result<Vm, Skip> {
    vm::obstacle().map_or(Ok(()), Err)?;
    Vm::prepare(line, xtask, monitor).map_err(|error| Skip::could_run(format!("no VM: {error:#}")))
}

fn in_vm(vm: &Result<Vm, Skip>, scenario: &Scenario) -> Result<Outcome> {
    match vm {
        Ok(vm) => Ok(vm.run(scenario.name, vm::Echo::Nothing)?.into()),
        Err(skip) => Ok(Outcome::Skipped(skip.clone())),
    }
}
