//! Builds what the scenarios run.

use std::{env, ffi::OsString, path::PathBuf, process::Command};

use anyhow::Result;

use crate::{
    command::show_and_run,
    setup::{STATIC_TARGET, tools_dir},
    workspace,
};

/// The monitor as a static release binary: the same file runs here and in every VM. The examples,
/// some of which scenarios use, lie beside it.
pub(crate) fn monitor() -> Result<PathBuf> {
    let what = ["build", "--quiet", "--release", "-p", "refverify-user", "--bins", "--examples"];
    let args = [&what[..], &["--target", STATIC_TARGET]].concat();
    show_and_run(&mut cargo(&args))?;
    Ok(workspace::target().join(STATIC_TARGET).join("release/refverify-monitor"))
}

/// This program as a static binary: the init of a VM.
pub(crate) fn static_xtask() -> Result<PathBuf> {
    show_and_run(&mut cargo(&["build", "--quiet", "-p", "xtask", "--target", STATIC_TARGET]))?;
    Ok(static_xtask_file())
}

/// Where that is, once it was built.
pub(crate) fn static_xtask_file() -> PathBuf {
    workspace::target().join(STATIC_TARGET).join("debug/xtask")
}

/// Cargo in the workspace, with the tools of `setup` on PATH.
pub(crate) fn cargo(args: &[&str]) -> Command {
    let mut command = Command::new("cargo");
    command.args(args).current_dir(workspace::root()).env("PATH", path_with_tools());
    command
}

fn path_with_tools() -> OsString {
    let path = env::var_os("PATH").unwrap_or_default();
    let dirs = std::iter::once(tools_dir()).chain(env::split_paths(&path));
    env::join_paths(dirs).expect("each comes from a PATH")
}
