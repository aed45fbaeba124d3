//! Builds the eBPF programs, so that they can be embedded in the binary.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

use aya_build::{Package, Toolchain};

/// The compiler of the eBPF programs: a fixed one, whose LLVM is the one that bpf-linker was
/// built with.
const TOOLCHAIN: &str = "nightly-2026-05-20";

fn main() {
    if let Err(reason) = build() {
        println!("cargo::error={reason}");
    }
}

fn build() -> Result<(), String> {
    // cargo-fuzz sets it. No fuzz target loads a program, and to build them would take longer than
    // all the rest.
    if env::var_os("CARGO_CFG_FUZZING").is_some() {
        return write_no_programs();
    }
    let workspace = workspace_dir()?;
    let tools = workspace.join("target/tools/bin");
    println!("cargo::rerun-if-changed={}", workspace.join("refverify-common/src").display());
    find_linker(&tools)?;
    find_toolchain()?;
    let ebpf = workspace.join("refverify-ebpf");
    let package = Package {
        name: "refverify-ebpf",
        root_dir: ebpf.to_str().ok_or("the workspace's path is not UTF-8")?,
        ..Package::default()
    };
    aya_build::build_ebpf([package], Toolchain::Custom(TOOLCHAIN))
        .map_err(|error| format!("building the eBPF programs failed: {error:#}"))
}

/// An empty file, which nothing can be loaded from.
fn write_no_programs() -> Result<(), String> {
    let out_dir = env::var_os("OUT_DIR").ok_or("OUT_DIR is not set")?;
    let file = Path::new(&out_dir).join("refverify-ebpf");
    fs::write(&file, []).map_err(|error| format!("cannot write {}: {error}", file.display()))
}

fn workspace_dir() -> Result<PathBuf, String> {
    let manifest_dir = env::var_os("CARGO_MANIFEST_DIR").ok_or("CARGO_MANIFEST_DIR is not set")?;
    let parent = Path::new(&manifest_dir).parent();
    Ok(parent.ok_or("refverify-user lies in no workspace")?.to_owned())
}

/// Puts the place where `cargo xtask setup` installs bpf-linker in front of the search path.
fn find_linker(tools: &Path) -> Result<(), String> {
    let path = env::var_os("PATH").unwrap_or_default();
    let dirs = std::iter::once(tools.to_owned()).chain(env::split_paths(&path));
    let dirs: Vec<PathBuf> = dirs.collect();
    if !dirs.iter().any(|dir| dir.join("bpf-linker").is_file()) {
        return Err("bpf-linker is neither in PATH nor in target/tools/bin; run `cargo xtask \
                    setup`, which installs it"
            .to_owned());
    }
    let path = env::join_paths(dirs).map_err(|error| format!("PATH: {error}"))?;
    // SAFETY: a build script has one thread here.
    unsafe { env::set_var("PATH", path) };
    Ok(())
}

fn find_toolchain() -> Result<(), String> {
    let rustc = Command::new("rustup").args(["run", TOOLCHAIN, "rustc", "--version"]).output();
    if rustc.is_ok_and(|output| output.status.success()) {
        return Ok(());
    }
    Err(format!(
        "the toolchain {TOOLCHAIN}, which compiles the eBPF programs, is not installed; run \
         `cargo xtask setup`, which installs it"
    ))
}
