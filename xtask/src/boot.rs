//! `cargo xtask vm KERNEL SCENARIO...`: runs scenarios in a VM with a stock Debian kernel, one
//! boot each.

use std::process::ExitCode;

use anyhow::{Result, bail};

use crate::{
    build, scenario,
    vm::{Echo, Verdict, Vm},
};

/// Arguments of the verb.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Which kernel: 5.10, 6.1 or 6.12
    kernel: String,
    /// What to run in it; `cargo xtask vm 6.1 list` names them
    #[arg(required = true)]
    scenarios: Vec<String>,
}

/// Runs the verb.
pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    if args.scenarios == ["list"] {
        scenario::list();
        return Ok(ExitCode::SUCCESS);
    }
    for name in &args.scenarios {
        scenario::find(name)?;
    }
    let vm = Vm::prepare(&args.kernel, &build::static_xtask()?, &build::monitor()?)?;
    let mut failed = Vec::new();
    for name in &args.scenarios {
        let verdict = vm.run(scenario::find(name)?.name, Echo::Console)?;
        println!("{name} on Linux {}: {verdict}", vm.release());
        if !matches!(verdict, Verdict::Passed) {
            failed.push(name.as_str());
        }
    }
    if !failed.is_empty() {
        bail!("did not pass: {}", failed.join(", "));
    }
    Ok(ExitCode::SUCCESS)
}
