//! Where things are in the workspace.

use std::path::{Path, PathBuf};

/// The root of the workspace.
pub(crate) fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("xtask lies in the workspace")
}

/// What cargo builds, and what xtask keeps between runs.
pub(crate) fn target() -> PathBuf {
    root().join("target")
}

/// Programs that `setup` builds for this workspace alone.
pub(crate) fn tools() -> PathBuf {
    target().join("tools")
}

/// Kernels, VM images and console logs.
pub(crate) fn vm() -> PathBuf {
    target().join("vm")
}
