//! What comes from rustup: the nightly that builds the eBPF programs, with the sources of
//! `core`; the target of static binaries; and the tools of the house's own checks.

use std::{path::PathBuf, process::Command};

use anyhow::{Context, Result};

use crate::{
    command::{run, show_and_run},
    machine::program,
};

/// The nightly that builds the eBPF programs. Its LLVM is the one bpf-linker is built with.
pub(crate) const NIGHTLY: &str = "nightly-2026-05-20";

/// The target of binaries that run in a VM without any library.
pub(crate) const STATIC_TARGET: &str = "x86_64-unknown-linux-musl";

/// Installs what is missing.
pub(super) fn install() -> Result<()> {
    program("rustup").context(
        "rustup is missing: the eBPF programs are built by a pinned nightly with its sources, \
         which rustup installs",
    )?;
    if !installed(Some(NIGHTLY), "component", "rust-src") {
        println!("setup: installing {NIGHTLY} with rust-src, for the eBPF programs");
        let install = ["toolchain", "install", NIGHTLY, "--profile", "minimal", "-c", "rust-src"];
        show_and_run(Command::new("rustup").args(install))?;
    }
    if !installed(None, "target", STATIC_TARGET) {
        println!("setup: installing the target {STATIC_TARGET}, for static binaries");
        show_and_run(Command::new("rustup").args(["target", "add", STATIC_TARGET]))?;
    }
    for component in ["rustfmt", "clippy"] {
        if !installed(None, "component", component) {
            println!("setup: installing {component}");
            show_and_run(Command::new("rustup").args(["component", "add", component]))?;
        }
    }
    Ok(())
}

/// Whether a toolchain (or the one in use) has a component or target.
fn installed(toolchain: Option<&str>, what: &str, name: &str) -> bool {
    let mut args = vec![what, "list", "--installed"];
    if let Some(toolchain) = toolchain {
        args.extend(["--toolchain", toolchain]);
    }
    // An error is a toolchain that is not there.
    run("rustup", &args).is_ok_and(|list| list.lines().any(|line| line.starts_with(name)))
}

/// The directory of the nightly.
pub(super) fn nightly_sysroot() -> Result<PathBuf> {
    let toolchain = format!("+{NIGHTLY}");
    let sysroot = run("rustc", &[&toolchain, "--print", "sysroot"])?;
    Ok(PathBuf::from(sysroot.trim()))
}
