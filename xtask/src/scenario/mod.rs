//! What is run on a live kernel. A scenario is a plain function; the same code runs on the
//! developer's machine and in a VM.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

mod attach;
mod attach_guest;
mod bench_path;
mod cannot_start;
mod compare;
mod corpus;
mod demo;
mod field;
mod hello;
mod honest;
mod journal;
mod monitor;
mod oracle;
mod planted;
mod scratch;
mod workload;

/// How a scenario can end, besides an error.
pub(crate) enum Outcome {
    Passed,
    Skipped(String),
}

/// A scenario.
pub(crate) struct Scenario {
    pub(crate) name: &'static str,
    pub(crate) about: &'static str,
    /// Whether `cargo xtask test` runs it.
    pub(crate) is_test: bool,
    pub(crate) run: fn(&Place) -> Result<Outcome>,
}

/// All of them.
pub(crate) const SCENARIOS: [Scenario; 19] = [
    Scenario {
        name: "hello",
        about: "the machine and the tests' own tools work, without the monitor",
        is_test: true,
        run: hello::run,
    },
    Scenario {
        name: "honest",
        about: "the ledger equals the disk while an honest file system works",
        is_test: true,
        run: honest::attached_before,
    },
    Scenario {
        name: "attach-midway",
        about: "the same, attached in the middle of the work",
        is_test: true,
        run: honest::attached_midway,
    },
    Scenario {
        name: "two-devices",
        about: "the same on RAID1, by the device that the kernel does not name",
        is_test: true,
        run: honest::on_two_devices,
    },
    Scenario {
        name: "plants",
        about: "the kernel meets planted faults as the tests of the monitor suppose",
        is_test: true,
        run: planted::kernel_meets_them,
    },
    Scenario {
        name: "planted-missing-ref",
        about: "a back reference removed on disk is found when it is dropped",
        is_test: true,
        run: planted::missing_ref,
    },
    Scenario {
        name: "planted-wrong-root",
        about: "a back reference that names another root is found when the right one is dropped",
        is_test: true,
        run: planted::wrong_root,
    },
    Scenario {
        name: "planted-missing-item",
        about: "an extent item removed on disk is found when a reference is dropped",
        is_test: true,
        run: planted::missing_item,
    },
    Scenario {
        name: "planted-low-count",
        about: "a count too low is found when one reference too many is dropped",
        is_test: true,
        run: planted::low_count,
    },
    Scenario {
        name: "planted-goes-on",
        about: "after a finding that the kernel survives, the monitor goes on and is right",
        is_test: true,
        run: planted::goes_on,
    },
    Scenario {
        name: "cannot-start",
        about: "bad input gets one sentence and status 1",
        is_test: true,
        run: cannot_start::run,
    },
    Scenario {
        name: "corpus-quick",
        about: "file systems of several kinds, some damaged, are read exactly",
        is_test: true,
        run: corpus::run_quick,
    },
    Scenario {
        name: "corpus",
        about: "the same with every kind that this kernel and mkfs.btrfs can make",
        is_test: false,
        run: corpus::run_all,
    },
    Scenario {
        name: "attach-ssh",
        about: "a VM is watched by ssh, up to its panic; its recording replays to the same",
        is_test: true,
        run: attach::by_ssh,
    },
    Scenario {
        name: "attach-cut",
        about: "the link to a VM is cut and comes back; its agent is killed",
        is_test: true,
        run: attach::cut_link,
    },
    Scenario {
        name: "attach-serial",
        about: "a VM is watched by a virtio-serial port",
        is_test: true,
        run: attach::by_serial,
    },
    Scenario {
        name: crate::vm::GUEST_SCENARIO,
        about: "the guest's side of these",
        is_test: false,
        run: attach_guest::run_guest,
    },
    Scenario {
        name: "demo",
        about: "the main job, shown: an honest run, then a planted fault",
        is_test: true,
        run: demo::run,
    },
    Scenario {
        name: "bench-path",
        about: "what the whole path costs, from the probe to the verdict, as a table",
        is_test: false,
        run: bench_path::run,
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
