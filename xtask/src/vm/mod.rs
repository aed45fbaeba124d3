//! Stock Debian kernels in QEMU, with nothing in them but our own binaries as an initramfs. One
//! boot runs one scenario.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::Result;

use crate::workspace;

pub(crate) mod agreement;
mod guest;
mod image;
mod initramfs;
mod kernel;
mod modules;
mod qemu;

pub(crate) use agreement::Verdict;
pub(crate) use guest::{
    ALIAS as GUEST_ALIAS, Guest, Link, NAME as GUEST_NAME, SCENARIO as GUEST_SCENARIO,
    fetch as fetch_guest,
};
pub(crate) use kernel::{LINES, obstacle, unpacked_packages};
pub(crate) use qemu::Echo;

/// A kernel with an image to boot.
pub(crate) struct Vm {
    kernel: kernel::Kernel,
    initramfs: PathBuf,
}

impl Vm {
    /// Fetches the kernel, unless it is cached, and packs the image.
    pub(crate) fn prepare(line: &str, xtask: &Path, monitor: &Path) -> Result<Self> {
        let kernel = kernel::fetch(kernel::find(line)?)?;
        let initramfs = workspace::vm().join(format!("initramfs-{line}.cpio"));
        image::pack(&initramfs, &kernel, xtask, monitor, &image::Extras::default())?;
        Ok(Self { kernel, initramfs })
    }

    /// The kernel's release.
    pub(crate) fn release(&self) -> &str {
        &self.kernel.release
    }

    /// Boots, runs one scenario, and says how it ended.
    pub(crate) fn run(&self, scenario: &str, echo: Echo) -> Result<Verdict> {
        self.run_for(scenario, None, echo)
    }

    /// The same with a scenario that is told how long to work.
    pub(crate) fn run_for(
        &self,
        scenario: &str,
        minutes: Option<u64>,
        echo: Echo,
    ) -> Result<Verdict> {
        let line = self.kernel.line.name;
        qemu::run(&qemu::Boot {
            kernel: &self.kernel.vmlinuz,
            initramfs: &self.initramfs,
            scenario,
            minutes,
            log: workspace::vm().join(format!("{line}-{scenario}.log")),
            limit: Duration::from_mins(15 + minutes.unwrap_or(0)),
            echo,
        })
    }
}
