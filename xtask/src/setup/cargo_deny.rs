//! cargo-deny, which looks at the dependencies. Only `test` needs it, so only `test` installs it.

use std::{process::Command, time::Duration};

use anyhow::Result;

use super::tools_dir;
use crate::{
    command::{output, run},
    workspace,
};

const VERSION: &str = "0.20.2";

/// A build takes a minute or two.
const LIMIT: Duration = Duration::from_mins(15);

/// Builds it beside the other tools, unless that version is there.
pub(crate) fn install() -> Result<()> {
    let program = tools_dir().join("cargo-deny");
    let works = run(&program.to_string_lossy(), &["--version"]);
    if works.is_ok_and(|version| version.contains(VERSION)) {
        return Ok(());
    }
    // --debug: it runs for a second, and optimising it would take minutes.
    let args = ["install", "cargo-deny", "--version", VERSION, "--locked", "--debug", "--quiet"];
    output(Command::new("cargo").args(args).arg("--root").arg(workspace::tools()), LIMIT)?;
    Ok(())
}
