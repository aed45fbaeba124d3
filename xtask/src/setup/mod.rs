//! `cargo xtask setup`: installs what is missing and says what. Quick when all is there.

use anyhow::Result;

mod bpf_linker;
mod cargo_deny;
mod packages;
mod rust;

pub(crate) use bpf_linker::tools_dir;
pub(crate) use cargo_deny::install as install_cargo_deny;
pub(crate) use rust::STATIC_TARGET;

/// Brings the machine to where everything here can be built and run.
pub(crate) fn run() -> Result<()> {
    packages::install()?;
    rust::install()?;
    bpf_linker::install()?;
    println!("setup: everything is in place");
    Ok(())
}
