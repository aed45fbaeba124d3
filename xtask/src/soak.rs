//! `cargo xtask soak`: everything at once for as long as one likes.

use std::{env, process::ExitCode};

use anyhow::{Result, bail};

use crate::{
    build,
    command::show_and_run,
    machine::{self, as_root},
    setup,
    vm::{Echo, Verdict, Vm},
};

/// Arguments of the verb.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// How long it works
    #[arg(default_value_t = 3)]
    minutes: u64,
    /// In a QEMU VM with a stock Debian kernel (5.10, 6.1 or 6.12), not on this machine's
    #[arg(long, value_name = "KERNEL")]
    vm: Option<String>,
}

/// Builds, and runs it.
pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    setup::run()?;
    let monitor = build::monitor()?;
    if let Some(line) = &args.vm {
        let vm = Vm::prepare(line, &build::static_xtask()?, &monitor)?;
        let verdict = vm.run_for("soak", Some(args.minutes), Echo::Scenario)?;
        if verdict != Verdict::Passed {
            bail!("the soak on Linux {}: {verdict}", vm.release());
        }
        return Ok(ExitCode::SUCCESS);
    }
    let mut command = as_root(env::current_exe()?);
    command
        .args(["live", "soak", "--minutes", &args.minutes.to_string(), "--monitor"])
        .arg(monitor);
    show_and_run(command.env("PATH", machine::path_with_system_dirs()))?;
    Ok(ExitCode::SUCCESS)
}
