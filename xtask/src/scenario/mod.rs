//! What is run on a live kernel. A scenario is a plain function; the same code runs on the
//! developer's machine and in a VM.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

mod compare;
mod hello;
mod honest;
mod monitor;
mod oracle;
mod scratch;
mod workload;

/// How a scenario can end, besides an error.
pub(crate) enum Outcome {
    Passed,
    #[expect(dead_code, reason = "scenarios with the monitor come")]
    Skipped(String),
}

/// A scenario.
pub(crate) struct Scenario {
    pub(crate) name: &'static str,
    pub(crate) about: &'static str,
    pub(crate) run: fn(&Place) -> Result<Outcome>,
}

/// All of them.
pub(crate) const SCENARIOS: [Scenario; 3] = [
    Scenario {
        name: "hello",
        about: "the machine and the tests' own tools work, without the monitor",
        run: hello::run,
    },
    Scenario {
        name: "honest",
        about: "the ledger equals the disk while an honest file system works",
        run: honest::attached_before,
    },
    Scenario {
        name: "attach-midway",
        about: "the same, attached in the middle of the work",
        run: honest::attached_midway,
    },
];

/// Where a scenario runs.
pub(crate) struct Place {
    /// The monitor's binary.
    pub(crate) monitor: PathBuf,
    device: Option<PathBuf>,
    dir: tempfile::TempDir,
}

impl Place {
    pub(crate) fn new(monitor: PathBuf, device: Option<PathBuf>) -> Result<Self> {
        let dir = tempfile::Builder::new().prefix("refverify-").tempdir();
        Ok(Self { monitor, device, dir: dir.context("cannot make a directory to work in")? })
    }

    /// A directory of this run alone.
    pub(crate) fn dir(&self) -> &Path {
        self.dir.path()
    }
}

/// The scenario of that name.
pub(crate) fn find(name: &str) -> Result<&'static Scenario> {
    SCENARIOS
        .iter()
        .find(|scenario| scenario.name == name)
        .with_context(|| format!("no scenario {name}; `cargo xtask vm 6.1 list` names them"))
}

/// Prints them.
pub(crate) fn list() {
    for scenario in &SCENARIOS {
        println!("{:16} {}", scenario.name, scenario.about);
    }
}
