//! One verb per job: `cargo xtask VERB`.
//!
//! The same binary has three lives. On the developer's machine it is the verbs; as root it
//! runs scenarios (`live`, started by the verbs, through sudo where need be); and as process
//! 1 of a test VM it is the whole of user space (`guest`), which then starts `live`.

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

mod bench;
mod boot;
mod build;
mod command;
mod corpus;
mod demo;
mod fuzz;
mod guest;
mod live;
mod machine;
mod plant;
mod scenario;
mod setup;
mod soak;
mod test;
mod vm;
mod workspace;

#[derive(Parser)]
#[command(name = "cargo xtask", about = "One verb per job", max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Installs what is missing to build and to test, and says what
    Setup,
    /// Shows the main job on a scratch file system: an honest run, then a planted fault
    Demo(demo::Args),
    /// Runs everything that shows that the product does its job
    Test(test::Args),
    /// Runs scenarios in a QEMU VM with a stock Debian kernel
    Vm(boot::Args),
    /// Makes file systems of every kind and compares what is read of them with btrfs-progs
    Corpus,
    /// Works on a file system in every way at once, for minutes or hours, watched and audited
    Soak(soak::Args),
    /// Measures, and prints a table
    Bench(bench::Args),
    /// Gives the fuzz targets arbitrary bytes for a while
    Fuzz(fuzz::Args),
    /// Runs one scenario on the live kernel, as root
    #[command(hide = true)]
    Live(live::Args),
}

fn main() -> ExitCode {
    if std::process::id() == 1 {
        guest::main();
    }
    match run(Cli::parse().verb) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(verb: Verb) -> Result<ExitCode> {
    match verb {
        Verb::Setup => setup::run().map(|()| ExitCode::SUCCESS),
        Verb::Demo(args) => demo::run(&args),
        Verb::Test(args) => test::run(&args),
        Verb::Vm(args) => boot::run(&args),
        Verb::Corpus => corpus::run(),
        Verb::Soak(args) => soak::run(&args),
        Verb::Bench(args) => bench::run(&args),
        Verb::Fuzz(args) => fuzz::run(&args),
        Verb::Live(args) => live::run(&args),
    }
}
