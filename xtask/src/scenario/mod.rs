//! What is run on a live kernel. A scenario is a plain function; the same code runs on the
//! developer's machine and in a VM.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

mod attach;
mod attach_detach;
mod attach_guest;
mod bench_attach;
mod bench_gate;
mod bench_path;
mod bench_reader;
mod bench_resync;
mod burst;
mod cannot_start;
mod changed_on_disk;
mod compare;
mod corpus;
mod demo;
mod failure;
mod field;
mod hello;
mod honest;
mod journal;
mod life;
mod loss;
mod missed;
mod monitor;
mod oracle;
mod planted;
mod progs;
mod replay;
mod scratch;
mod soak;
mod used;
mod watched;
mod workload;
mod zoned;

/// How a scenario can end, besides an error.
pub(crate) enum Outcome {
    Passed,
    Skipped(String),
}

/// Where `cargo xtask test` runs a scenario.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Tested {
    /// On this machine, and in a VM with each kernel.
    Everywhere,
    /// On this machine alone: it boots a VM of its own, or another kernel would show no more.
    HereOnly,
    /// In a VM with one kernel alone: it needs what this machine's kernel may not have.
    InOneVm,
    /// On this machine, and there: kprobes see more of it than raw tracepoints do.
    HereAndInOneVm,
    /// Nowhere: it is run by hand, or by another scenario.
    No,
}

/// A scenario.
pub(crate) struct Scenario {
    pub(crate) name: &'static str,
    pub(crate) about: &'static str,
    pub(crate) tested: Tested,
    pub(crate) run: fn(&Place) -> Result<Outcome>,
}

/// All of them, in the order in which they are run.
pub(crate) fn all() -> impl Iterator<Item = &'static Scenario> {
    [SCENARIOS, life::SCENARIOS, failure::SCENARIOS].into_iter().flatten()
}

/// Those that have no room of their own.
const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "hello",
        about: "the machine and the tests' own tools work, without the monitor",
        tested: Tested::Everywhere,
        run: hello::run,
    },
    Scenario {
        name: "honest",
        about: "the ledger equals the disk while an honest file system works",
        tested: Tested::HereOnly,
        run: honest::attached_before,
    },
    Scenario {
        name: "attach-midway",
        about: "the same, attached in the middle of the work",
        tested: Tested::Everywhere,
        run: honest::attached_midway,
    },
    Scenario {
        name: "soak",
        about: "everything at once, with an audit of every commit: no finding, and exact",
        tested: Tested::Everywhere,
        run: soak::run,
    },
    Scenario {
        name: "losing",
        about: "events are lost again and again, and the ledger is exact after each time",
        tested: Tested::HereOnly,
        run: loss::run,
    },
    Scenario {
        name: "missed",
        about: "kprobes are missed in silence: the second count shows it, and it is exact again",
        tested: Tested::Everywhere,
        run: missed::run,
    },
    Scenario {
        name: "burst",
        about: "more events than any file system makes: no false finding, and exact after it",
        tested: Tested::HereOnly,
        run: burst::run,
    },
    Scenario {
        name: "two-devices",
        about: "the same on RAID1, by the device that the kernel does not name",
        tested: Tested::HereOnly,
        run: honest::on_two_devices,
    },
    Scenario {
        name: "new-device",
        about: "the same after a device has joined, by which the kernel then names it",
        tested: Tested::HereOnly,
        run: honest::on_a_new_device,
    },
    Scenario {
        name: "clone",
        about: "the same on a clone of a mounted file system, under a temporary fsid",
        tested: Tested::HereOnly,
        run: honest::on_a_clone,
    },
    Scenario {
        name: "zoned",
        about: "the ledger equals the disk on a zoned device",
        tested: Tested::Everywhere,
        run: zoned::run_zoned,
    },
    Scenario {
        name: "plants",
        about: "the kernel meets planted faults as the tests of the monitor suppose",
        tested: Tested::Everywhere,
        run: planted::kernel_meets_them,
    },
    Scenario {
        name: "planted-missing-ref",
        about: "a back reference removed on disk is found when it is dropped",
        tested: Tested::Everywhere,
        run: planted::missing_ref,
    },
    Scenario {
        name: "planted-wrong-root",
        about: "a back reference that names another root is found when the right one is dropped",
        tested: Tested::Everywhere,
        run: planted::wrong_root,
    },
    Scenario {
        name: "planted-missing-item",
        about: "an extent item removed on disk is found when a reference is dropped",
        tested: Tested::Everywhere,
        run: planted::missing_item,
    },
    Scenario {
        name: "planted-low-count",
        about: "a count too low is found when one reference too many is dropped",
        tested: Tested::Everywhere,
        run: planted::low_count,
    },
    Scenario {
        name: "planted-goes-on",
        about: "after a finding that the kernel survives, the monitor goes on and is right",
        tested: Tested::Everywhere,
        run: planted::goes_on,
    },
    Scenario {
        name: "changed-on-disk",
        about: "the tree on disk is changed behind the monitor, and an audit finds it",
        tested: Tested::Everywhere,
        run: changed_on_disk::run,
    },
    Scenario {
        name: "attach-detach",
        about: "a monitor that is killed at any moment leaves nothing behind",
        tested: Tested::HereOnly,
        run: attach_detach::run,
    },
    Scenario {
        name: "cannot-start",
        about: "bad input gets one sentence and status 1",
        tested: Tested::Everywhere,
        run: cannot_start::run,
    },
    Scenario {
        name: "record",
        about: "a recording replays to what the run said; half of it to the half",
        tested: Tested::HereOnly,
        run: replay::local,
    },
    Scenario {
        name: "corpus-quick",
        about: "file systems of several kinds, some damaged, are read exactly",
        tested: Tested::HereOnly,
        run: corpus::run_quick,
    },
    Scenario {
        name: "corpus",
        about: "the same with every kind that this kernel and mkfs.btrfs can make",
        tested: Tested::No,
        run: corpus::run_all,
    },
    Scenario {
        name: "attach-ssh",
        about: "a VM is watched by ssh, up to its panic; its recording replays to the same",
        tested: Tested::HereOnly,
        run: |place| attach::in_guest(place, attach::by_ssh),
    },
    Scenario {
        name: "attach-cut",
        about: "the link to a VM is cut and comes back; its agent is killed",
        tested: Tested::HereOnly,
        run: |place| attach::in_guest(place, attach::cut_link),
    },
    Scenario {
        name: "attach-serial",
        about: "a VM is watched by a virtio-serial port",
        tested: Tested::HereOnly,
        run: |place| attach::in_guest(place, attach::by_serial),
    },
    Scenario {
        name: "attach-several",
        about: "two names in a file are watched at once, each for itself",
        tested: Tested::No,
        run: |place| attach::in_guest(place, attach::several),
    },
    Scenario {
        name: crate::vm::GUEST_SCENARIO,
        about: "the guest's side of these",
        tested: Tested::No,
        run: attach_guest::run_guest,
    },
    Scenario {
        name: "demo",
        about: "the main job, shown: an honest run, then a planted fault",
        tested: Tested::HereOnly,
        run: demo::run,
    },
    Scenario {
        name: "bench-path",
        about: "what the whole path costs, from the probe to the verdict, as a table",
        tested: Tested::No,
        run: bench_path::run,
    },
    Scenario {
        name: "bench-reader",
        about: "how fast an extent tree is read, beside others, as a table",
        tested: Tested::No,
        run: bench_reader::run,
    },
    Scenario {
        name: "bench-resync",
        about: "what it costs to be exact again after a loss, as a table",
        tested: Tested::No,
        run: bench_resync::run,
    },
    Scenario {
        name: "bench-gate",
        about: "how long a finding is held back, with little to do and with much, as a table",
        tested: Tested::No,
        run: bench_gate::run,
    },
    Scenario {
        name: "bench-attach",
        about: "what watching costs a guest, from inside and from outside, as a table",
        tested: Tested::No,
        run: |place| attach::in_guest(place, bench_attach::run),
    },
];

/// Where a scenario runs.
pub(crate) struct Place {
    /// The monitor's binary.
    pub(crate) monitor: PathBuf,
    /// How long it is to work, for a scenario that can be told.
    pub(crate) minutes: Option<u64>,
    device: Option<PathBuf>,
    dir: tempfile::TempDir,
}

impl Place {
    pub(crate) fn new(
        monitor: PathBuf,
        device: Option<PathBuf>,
        minutes: Option<u64>,
    ) -> Result<Self> {
        let dir = tempfile::Builder::new().prefix("refverify-").tempdir();
        Ok(Self {
            monitor,
            minutes,
            device,
            dir: dir.context("cannot make a directory to work in")?,
        })
    }

    /// The same, with a directory of its own.
    pub(crate) fn another(&self) -> Result<Self> {
        Self::new(self.monitor.clone(), self.device.clone(), self.minutes)
    }

    /// Whether there is one disk, and no other: in a VM.
    pub(crate) fn has_device(&self) -> bool {
        self.device.is_some()
    }

    /// A directory of this run alone.
    pub(crate) fn dir(&self) -> &Path {
        self.dir.path()
    }
}

/// The scenario of that name.
pub(crate) fn find(name: &str) -> Result<&'static Scenario> {
    all()
        .find(|scenario| scenario.name == name)
        .with_context(|| format!("no scenario {name}; `cargo xtask vm 6.1 list` names them"))
}

/// Prints them.
pub(crate) fn list() {
    for scenario in all() {
        println!("{:16} {}", scenario.name, scenario.about);
    }
}
