//! `cargo xtask demo`: the main job on a fresh machine, with nothing prepared.

use std::{env, process::ExitCode};

use anyhow::{Result, bail};

use crate::{
    build,
    command::show_and_run,
    machine::{self, as_root},
    scenario, setup,
    vm::{Echo, Verdict, Vm},
};

/// Arguments of the verb.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Runs it in a QEMU VM with a stock Debian kernel (5.10, 6.1 or 6.12), not on this one
    #[arg(long, value_name = "KERNEL")]
    vm: Option<String>,
}

/// Sets the machine up, builds, and shows it.
pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    setup::run()?;
    println!("Building the monitor (the first time takes a few minutes).");
    let monitor = build::monitor()?;
    if let Some(line) = &args.vm {
        let vm = Vm::prepare(line, &build::static_xtask()?, &monitor)?;
        println!(
            "Booting Linux {} in QEMU, which emulates the processor: it takes a while.",
            vm.release()
        );
        let verdict = vm.run(scenario::find("demo")?.name, Echo::Scenario)?;
        if verdict != Verdict::Passed {
            bail!("the demo on Linux {}: {verdict}", vm.release());
        }
        return Ok(ExitCode::SUCCESS);
    }
    let mut command = as_root(env::current_exe()?);
    command.args(["live", "demo", "--monitor"]).arg(monitor);
    show_and_run(command.env("PATH", machine::path_with_system_dirs()))?;
    Ok(ExitCode::SUCCESS)
}
