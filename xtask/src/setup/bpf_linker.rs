//! bpf-linker, built against the LLVM that the pinned nightly ships: no LLVM of the
//! distribution is needed, and the two can never differ in version.

use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result};

use super::rust;
use crate::{
    command::{run, show_and_run},
    workspace,
};

const VERSION: &str = "0.13.0";

/// Where the tools that are built here are; belongs on PATH when cargo runs.
pub(crate) fn tools_dir() -> PathBuf {
    workspace::tools().join("bin")
}

/// Builds it, unless that version runs already.
pub(super) fn install() -> Result<()> {
    let linker = tools_dir().join("bpf-linker");
    let works = run(&linker.to_string_lossy(), &["--version"]);
    if works.is_ok_and(|version| version.contains(VERSION)) {
        return Ok(());
    }
    println!("setup: building bpf-linker {VERSION} against the nightly's LLVM (a minute)");
    let prefix = workspace::tools().join("llvm");
    lay_out_llvm(&prefix)?;
    show_and_run(
        Command::new("cargo")
            .args(["install", "bpf-linker", "--version", VERSION, "--locked", "--force"])
            .args(["--no-default-features", "--features", "llvm-22", "--quiet"])
            .arg("--root")
            .arg(workspace::tools())
            .env("LLVM_PREFIX", prefix),
    )
}

/// An LLVM prefix as bpf-linker's build expects it, made of links into the nightly.
fn lay_out_llvm(prefix: &Path) -> Result<()> {
    let nightly = rust::nightly_sysroot()?.join("lib");
    let library = find_llvm(&nightly)?;
    let name = library.file_name().context("a library has a name")?;
    let lib = prefix.join("lib");
    if lib.exists() {
        fs::remove_dir_all(&lib).with_context(|| format!("cannot clear {}", lib.display()))?;
    }
    fs::create_dir_all(&lib).with_context(|| format!("cannot make {}", lib.display()))?;
    // The build asks for `LLVM`, the program at run time for the name it was linked with.
    for link in [lib.join("libLLVM.so"), lib.join(name)] {
        symlink(&library, &link).with_context(|| format!("cannot make {}", link.display()))?;
    }
    Ok(())
}

fn find_llvm(dir: &Path) -> Result<PathBuf> {
    let entries = fs::read_dir(dir).with_context(|| format!("cannot list {}", dir.display()))?;
    entries
        .filter_map(Result::ok)
        .map(|entry| entry.path())
        .find(|path| {
            path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("libLLVM.so."))
        })
        .with_context(|| format!("{} holds no libLLVM.so.*", dir.display()))
}
