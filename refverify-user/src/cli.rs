//! The command line.

use std::path::PathBuf;

use clap::{CommandFactory, Parser, ValueEnum};

/// The size of the ring buffer where none is asked for. At 300 bytes for an event with its
/// stack this holds some 200,000 of them: seconds of the busiest workload seen.
const RING_MIB_DEFAULT: &str = "64";

const EXAMPLES: &str = "\
Examples:
  refverify-monitor /dev/sdb                 watch one file system, report as text
  refverify-monitor --json /mnt/scratch      the one mounted there, as JSON lines
  refverify-monitor --on-violation stop /dev/sdb /dev/sdc
                                             stop at the first violation on either

SIGINT and SIGTERM end the run with a summary. With --ledger-dump FILE, SIGUSR1 writes what is
known of every extent to FILE.

Exit status, a sum of:
  0  no violation, and everything was verified
  1  usage or setup error, or the reports could not be written
  2  violations were found
  4  not everything was verified: events were lost, or a file system was refused";

/// Watches live btrfs file systems and checks every change of an extent reference at the
/// moment the kernel makes it.
///
/// The devices are only ever read. Nothing is unmounted, remounted or written.
#[derive(Clone, Debug, PartialEq, Eq, Parser)]
#[command(name = "refverify-monitor", version, after_help = EXAMPLES, max_term_width = 100)]
pub struct Cli {
    /// What to watch, and how.
    #[command(flatten)]
    pub watch: Watch,
}

/// What to watch, and how.
#[derive(Clone, Debug, PartialEq, Eq, clap::Args)]
pub struct Watch {
    /// Write one JSON object on one line for each report, instead of text.
    #[arg(long)]
    pub json: bool,

    /// Write reports to the journal too. It is used without being asked for when systemd
    /// started the program with its output on the journal.
    #[arg(long)]
    pub journal: bool,

    /// What to do after a violation.
    #[arg(long, value_enum, value_name = "WHAT", default_value_t = OnViolation::Report)]
    pub on_violation: OnViolation,

    /// Do not record stacks: less cost for each event, but findings do not say from where.
    #[arg(long)]
    pub no_stacks: bool,

    /// Size of the buffer between kernel and monitor, in MiB; a power of two.
    #[arg(long, value_name = "N", default_value = RING_MIB_DEFAULT, value_parser = ring_mib)]
    pub ring_mib: u32,

    /// Where SIGUSR1 writes what is known of every extent.
    #[arg(long, value_name = "FILE")]
    pub ledger_dump: Option<PathBuf>,

    /// A block device with a btrfs, or the mount point of one. If it is not mounted its mount
    /// is waited for.
    #[arg(required = true, value_name = "DEVICE")]
    pub devices: Vec<PathBuf>,
}

/// What to do after a violation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum OnViolation {
    /// Report it and go on.
    Report,
    /// Report it and end, as the kernel's own checker does.
    Stop,
}

impl Watch {
    /// The size of the ring buffer in bytes.
    pub const fn ring_bytes(&self) -> u32 {
        self.ring_mib << 20
    }
}

/// The definition of the command line, from which manual page and completions are made too.
pub fn command() -> clap::Command {
    Cli::command()
}

/// What is wrong with a command line, in one sentence.
pub fn usage_sentence(error: &clap::Error) -> String {
    let text = error.render().to_string();
    let first = text.split("\n\n").next().unwrap_or_default();
    let words: Vec<&str> = first.split_whitespace().collect();
    let words = words.join(" ");
    let what = words.strip_prefix("error: ").unwrap_or(&words);
    format!("{what}; see refverify-monitor --help")
}

fn ring_mib(text: &str) -> Result<u32, String> {
    let range = 1..=1024_u32;
    let parsed = text.parse().ok().filter(|n: &u32| range.contains(n) && n.is_power_of_two());
    parsed.ok_or_else(|| "not a power of two from 1 to 1024".to_owned())
}
