//! Runs one scenario on the kernel that is running, as root: in a VM it is all there is; on
//! the developer's machine it works on a loop device of its own.

use std::{path::PathBuf, process::ExitCode};

use anyhow::{Result, bail};

use crate::{
    machine,
    scenario::{self, Outcome, Place},
};

/// Exit status of a scenario that this machine cannot run.
pub(crate) const SKIPPED: i32 = 77;

/// Arguments of the hidden verb.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Which one
    scenario: String,
    /// The monitor's binary
    #[arg(long)]
    monitor: PathBuf,
    /// A block device to overwrite; without it, a loop device is made
    #[arg(long)]
    device: Option<PathBuf>,
    /// How long it works, where a scenario can be told
    #[arg(long)]
    minutes: Option<u64>,
}

/// Runs it; its last line says how it ended.
pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    if !machine::is_root() {
        bail!("a scenario mounts file systems and loads eBPF: it needs root");
    }
    let scenario = scenario::find(&args.scenario)?;
    let place = Place::new(args.monitor.clone(), args.device.clone(), args.minutes)?;
    match (scenario.run)(&place)? {
        Outcome::Passed => {
            println!("{}: passed", scenario.name);
            Ok(ExitCode::SUCCESS)
        }
        Outcome::Skipped(why) => {
            println!("{}: SKIPPED: {why}", scenario.name);
            Ok(ExitCode::from(u8::try_from(SKIPPED)?))
        }
    }
}
