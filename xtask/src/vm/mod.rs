//! `cargo xtask vm KERNEL SCENARIO...`: boots a stock Debian kernel in QEMU, with nothing in
//! it but our own binaries as an initramfs, and runs scenarios in it, one boot each.

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use anyhow::{Result, bail};

use crate::{build, scenario, workspace};

pub(crate) mod agreement;
mod image;
mod initramfs;
mod kernel;
mod modules;
mod qemu;

pub(crate) use agreement::Verdict;
pub(crate) use kernel::{LINES, obstacle};
pub(crate) use qemu::Echo;

/// Arguments of the verb.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Which kernel: 5.10, 6.1 or 6.12
    kernel: String,
    /// What to run in it; `cargo xtask vm 6.1 list` names them
    #[arg(required = true)]
    scenarios: Vec<String>,
}

/// A kernel with an image to boot.
pub(crate) struct Vm {
    kernel: kernel::Kernel,
    initramfs: PathBuf,
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
        let verdict = vm.run(scenario::find(name)?, Echo::Console)?;
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

impl Vm {
    /// Fetches the kernel, unless it is cached, and packs the image.
    pub(crate) fn prepare(line: &str, xtask: &Path, monitor: &Path) -> Result<Self> {
        let kernel = kernel::fetch(kernel::find(line)?)?;
        let initramfs = workspace::vm().join(format!("initramfs-{line}.cpio"));
        image::pack(&initramfs, &kernel, xtask, monitor)?;
        Ok(Self { kernel, initramfs })
    }

    /// The kernel's release.
    pub(crate) fn release(&self) -> &str {
        &self.kernel.release
    }

    /// Boots, runs one scenario, and says how it ended.
    pub(crate) fn run(&self, scenario: &scenario::Scenario, echo: Echo) -> Result<Verdict> {
        let line = self.kernel.line.name;
        qemu::run(&qemu::Boot {
            kernel: &self.kernel.vmlinuz,
            initramfs: &self.initramfs,
            scenario: scenario.name,
            log: workspace::vm().join(format!("{line}-{}.log", scenario.name)),
            limit: Duration::from_mins(15),
            echo,
        })
    }
}
