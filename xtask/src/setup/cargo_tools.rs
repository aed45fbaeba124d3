//! Subcommands of cargo's that one verb alone needs, so that only that verb installs them.

use std::{process::Command, time::Duration};

use anyhow::Result;

use super::tools_dir;
use crate::{
    command::{output, run},
    workspace,
};

/// A program `cargo-…`, at the version that is known to work.
pub(crate) struct CargoTool {
    name: &'static str,
    version: &'static str,
}

/// Looks at the dependencies.
pub(crate) const CARGO_DENY: CargoTool = CargoTool { name: "cargo-deny", version: "0.20.2" };

/// Builds and runs the fuzz targets.
pub(crate) const CARGO_FUZZ: CargoTool = CargoTool { name: "cargo-fuzz", version: "0.13.2" };

/// A build takes a minute or two.
const LIMIT: Duration = Duration::from_mins(15);

impl CargoTool {
    /// Builds it beside the other tools, unless that version is there.
    pub(crate) fn install(&self) -> Result<()> {
        let program = tools_dir().join(self.name);
        // Each is asked as cargo asks it: with its own name first.
        let subcommand = self.name.trim_start_matches("cargo-");
        let works = run(&program.to_string_lossy(), &[subcommand, "--version"]);
        if works.is_ok_and(|version| version.contains(self.version)) {
            return Ok(());
        }
        println!("setup: building {} {}", self.name, self.version);
        // --debug: it runs for a second, and optimising it would take minutes.
        let args = ["install", self.name, "--version", self.version, "--locked", "--debug"];
        let mut install = Command::new("cargo");
        install.args(args).arg("--quiet").arg("--root").arg(workspace::tools());
        output(&mut install, LIMIT)?;
        Ok(())
    }
}
