//! `cargo xtask setup`: installs what is missing and says what. Quick when all is there.

use anyhow::Result;

mod bpf_linker;
mod cargo_tools;
mod packages;
mod rust;

pub(crate) use bpf_linker::tools_dir;
pub(crate) use cargo_tools::{CARGO_DENY, CARGO_FUZZ};
pub(crate) use rust::{NIGHTLY, STATIC_TARGET};

/// Brings the machine to where everything here can be built and run.
pub(crate) fn run() -> Result<()> {
    packages::install()?;
    rust::install()?;
    bpf_linker::install()?;
    println!("setup: everything is in place");
    Ok(())
}
