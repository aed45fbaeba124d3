//! `cargo xtask corpus`: every kind of file system that this kernel and a current mkfs.btrfs can
//! make, read and compared with btrfs-progs.

use std::{env, process::ExitCode};

use anyhow::Result;

use crate::{
    build,
    command::show_and_run,
    machine::{self, as_root},
    setup,
};

/// Sets the machine up, builds, and runs the scenario.
pub(crate) fn run() -> Result<ExitCode> {
    setup::run()?;
    let monitor = build::monitor()?;
    let mut command = as_root(env::current_exe()?);
    command.args(["live", "corpus", "--monitor"]).arg(monitor);
    show_and_run(command.env("PATH", machine::path_with_system_dirs()))?;
    Ok(ExitCode::SUCCESS)
}
