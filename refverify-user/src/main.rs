//! The monitor: from the command line to what it asks for.

mod command;

use std::process::ExitCode;

use clap::{Parser, error::ErrorKind};
use refverify_user::{
    cli::{Cli, Command, usage_sentence},
    session::EXIT_SETUP,
};

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return usage(&error),
    };
    let done = match cli.command {
        None => command::watch::watch(cli.watch),
        Some(Command::Check(asked)) => command::check::check(asked),
        Some(Command::Attach(asked)) => command::attach::attach(&asked),
        Some(Command::Replay(asked)) => command::replay::replay(&asked),
        Some(Command::Explain(asked)) => command::explain::explain(&asked),
        Some(Command::Agent(asked)) => command::agent::agent(asked),
    };
    match done {
        Ok(status) => ExitCode::from(status),
        Err(error) => {
            eprintln!("refverify-monitor: {error}");
            ExitCode::from(EXIT_SETUP)
        }
    }
}

/// Help and version go to stdout; what is wrong with the command line is one sentence.
fn usage(error: &clap::Error) -> ExitCode {
    if matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion) {
        // A reader that has gone does not matter.
        let _ = error.print();
        return ExitCode::SUCCESS;
    }
    eprintln!("refverify-monitor: {}", usage_sentence(error));
    ExitCode::from(EXIT_SETUP)
}
