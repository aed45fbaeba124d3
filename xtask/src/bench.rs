//! `cargo xtask bench`: measures, and prints a table.

use std::{env, process::ExitCode};

use anyhow::Result;

use crate::{
    build,
    command::show_and_run,
    machine::{self, as_root},
    setup,
};

/// Arguments of the verb.
#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    bench: Option<Bench>,
}

#[derive(clap::Subcommand)]
enum Bench {
    /// The whole path on this machine's kernel: events per second, and what they cost (default)
    Path,
    /// The ledger alone: memory for each extent, and changes judged per second
    Ledger {
        /// What is measured, and how much of it: see refverify-user/benches/ledger/main.rs
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<String>,
    },
    /// What watching costs a guest: from inside, and from outside
    Attach,
    /// How long a finding is held back, with little to do and with much
    Gate,
    /// What it costs to be exact again after a loss, by how much was changed
    Resync,
    /// How fast an extent tree is read, beside btrfs-progs and what the device can do
    Reader,
}

/// Runs the benchmark.
pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    match &args.bench {
        None | Some(Bench::Path) => scenario("bench-path"),
        Some(Bench::Ledger { args }) => ledger(args),
        Some(Bench::Gate) => scenario("bench-gate"),
        Some(Bench::Resync) => scenario("bench-resync"),
        Some(Bench::Reader) => scenario("bench-reader"),
        Some(Bench::Attach) => {
            build::static_xtask()?;
            scenario("bench-attach")
        }
    }
}

fn ledger(args: &[String]) -> Result<ExitCode> {
    setup::run()?;
    let bench = ["bench", "--quiet", "-p", "refverify-user", "--bench", "ledger", "--"];
    show_and_run(build::cargo(&bench).args(args))?;
    Ok(ExitCode::SUCCESS)
}

fn scenario(name: &str) -> Result<ExitCode> {
    setup::run()?;
    let monitor = build::monitor()?;
    let mut command = as_root(env::current_exe()?);
    command.args(["live", name, "--monitor"]).arg(monitor);
    show_and_run(command.env("PATH", machine::path_with_system_dirs()))?;
    Ok(ExitCode::SUCCESS)
}
