//! The command line.

use std::path::PathBuf;

use clap::{Args, CommandFactory, Parser, Subcommand, ValueEnum};

/// The size of the ring buffer where none is asked for. At 300 bytes for an event with its
/// stack this holds some 200,000 of them: seconds of the busiest workload seen.
const RING_MIB_DEFAULT: &str = "64";

const EXAMPLES: &str = "\
Examples:
  refverify-monitor /dev/sdb                 watch one file system, report as text
  refverify-monitor --json /mnt/scratch      the one mounted there, as JSON lines
  refverify-monitor --on-violation stop /dev/sdb /dev/sdc
                                             stop at the first violation on either
  refverify-monitor attach root@testvm /dev/vdb
                                             watch one in a virtual machine
  refverify-monitor check /dev/sdb           read the extent tree once and check it
  refverify-monitor --record r /dev/sdb      record what is seen, for replay and explain

SIGINT and SIGTERM end the run with a summary. With --ledger-dump FILE, SIGUSR1 writes what is
known of every extent to FILE.

Exit status, a sum of:
  0  no violation, and everything was verified
  1  usage or setup error, or the reports could not be written
  2  violations were found
  4  not everything was verified: events were lost, writes did not reach the disk, or a file
     system was refused";

const ATTACH_EXAMPLES: &str = "\
Examples:
  refverify-monitor attach root@testvm /dev/vdb
  refverify-monitor attach vsock/2222 /dev/vdb
  refverify-monitor attach vm1 vm2 /dev/vdb vm3 /dev/vdc /dev/vdd

The guest needs a shell, root and sha256sum. This program is sent there if the same is not there
already; it runs from memory and goes away with the connection.";

const CHECK_HELP: &str = "\
The file system may be mounted and in use: each range of it is then read as it was at one
generation.

Exit status, a sum of:
  0  no violation, and everything was read
  1  usage or setup error, or the reports could not be written
  2  violations were found
  4  not everything could be read";

/// Watches live btrfs file systems and checks every change of an extent reference at the
/// moment the kernel makes it.
///
/// The devices are only ever read. Nothing is unmounted, remounted or written.
#[derive(Clone, Debug, PartialEq, Eq, Parser)]
#[command(name = "refverify-monitor", version, after_help = EXAMPLES, max_term_width = 100)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub struct Cli {
    /// What else can be done.
    #[command(subcommand)]
    pub command: Option<Command>,

    /// What to watch, and how.
    #[command(flatten)]
    pub watch: Watch,
}

/// What else can be done.
#[derive(Clone, Debug, PartialEq, Eq, Subcommand)]
pub enum Command {
    /// Read an extent tree once: what it holds, and what is wrong with it.
    Check(Check),
    /// Watch file systems in virtual machines that run already, from outside.
    Attach(Attach),
    /// Verify a recording again, without root and without btrfs.
    Replay(Replay),
    /// Tell the life of one extent from a recording.
    Explain(Explain),
    /// Speak to a verifier at the other end of stdin and stdout: what runs in a guest.
    #[command(hide = true)]
    Agent(Agent),
}

/// What to watch, and how.
#[derive(Clone, Debug, PartialEq, Eq, Args)]
pub struct Watch {
    /// How to report.
    #[command(flatten)]
    pub reports: Reports,

    /// How to look.
    #[command(flatten)]
    pub probes: Probes,

    /// How much to remember.
    #[command(flatten)]
    pub memory: Memory,

    /// Whether to audit.
    #[command(flatten)]
    pub audits: Audits,

    /// Record everything that is seen in a new file, for replay and explain. It holds metadata
    /// of the file systems and is readable by its owner only.
    #[arg(long, value_name = "FILE")]
    pub record: Option<PathBuf>,

    /// A block device with a btrfs, or the mount point of one. If it is not mounted its mount
    /// is waited for.
    #[arg(required = true, value_name = "DEVICE")]
    pub devices: Vec<PathBuf>,
}

/// How to report.
#[derive(Clone, Debug, PartialEq, Eq, Args)]
pub struct Reports {
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

    /// Where SIGUSR1 writes what is known of every extent. Of several guests each has its own,
    /// with .NAME at the end.
    #[arg(long, value_name = "FILE")]
    pub ledger_dump: Option<PathBuf>,
}

/// How to look.
#[derive(Clone, Debug, PartialEq, Eq, Args)]
pub struct Probes {
    /// Do not record stacks: less cost for each event, but findings do not say from where.
    #[arg(long)]
    pub no_stacks: bool,

    /// Size of the buffer between kernel and monitor, in MiB; a power of two.
    #[arg(long, value_name = "N", default_value = RING_MIB_DEFAULT, value_parser = ring_mib)]
    pub ring_mib: u32,

    /// Read no more than so many bytes a second of all devices together; K, M and G are allowed.
    #[arg(long, value_name = "RATE", value_parser = size)]
    pub io_limit: Option<u64>,
}

/// How much to remember.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Args)]
pub struct Memory {
    /// How many actions are kept of each extent: the first since it was allocated, and the newest.
    #[arg(long, value_name = "N", default_value = "32", value_parser = history)]
    pub history: usize,

    /// How much memory what is known of extents may take, such as 512M or 4G. Beyond it the
    /// oldest actions are given up, then which extents were freed, never an extent in use.
    #[arg(long = "memory", value_name = "SIZE", default_value = "2G", value_parser = size)]
    pub bytes: u64,
}

/// Whether to compare what is on disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Args)]
pub struct Audits {
    /// Compare what commits put on disk with what the changes lead to, every so many seconds, or
    /// at every commit. Only what has changed is read.
    #[arg(long = "audit", value_name = "SECONDS", num_args = 0..=1, require_equals = true)]
    #[arg(default_missing_value = "0", value_parser = seconds)]
    pub seconds: Option<u32>,
}

/// What to read once.
#[derive(Clone, Debug, PartialEq, Eq, Args)]
#[command(after_help = CHECK_HELP)]
pub struct Check {
    /// Write one JSON object on one line for each report, instead of text.
    #[arg(long)]
    pub json: bool,

    /// Read no more than so many bytes a second; K, M and G are allowed.
    #[arg(long, value_name = "RATE", value_parser = size)]
    pub io_limit: Option<u64>,

    /// Write every extent with its references to a new file, in the form of a ledger dump.
    #[arg(long, value_name = "FILE")]
    pub dump: Option<PathBuf>,

    /// A block device with a btrfs, the mount point of one, or an image file.
    #[arg(value_name = "DEVICE")]
    pub device: PathBuf,

    /// More images of the same file system; its block devices are found without being named.
    #[arg(value_name = "OTHER")]
    pub others: Vec<PathBuf>,
}

/// Which recording to verify.
#[derive(Clone, Debug, PartialEq, Eq, Args)]
pub struct Replay {
    /// How to report.
    #[command(flatten)]
    pub reports: Reports,

    /// How much to remember.
    #[command(flatten)]
    pub memory: Memory,

    /// A recording.
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
}

/// Which extent to tell of.
#[derive(Clone, Debug, PartialEq, Eq, Args)]
pub struct Explain {
    /// The extent's logical address, or one within it.
    #[arg(long, value_name = "N")]
    pub bytenr: u64,

    /// A recording.
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
}

/// What to watch in a guest.
#[derive(Clone, Debug, PartialEq, Eq, Args)]
pub struct Agent {
    /// How to look.
    #[command(flatten)]
    pub probes: Probes,

    /// Speak on this character device, a virtio-serial port, instead.
    #[arg(long, value_name = "DEVICE")]
    pub port: Option<PathBuf>,

    /// Block devices or mount points.
    #[arg(required = true, value_name = "DEVICE")]
    pub devices: Vec<PathBuf>,
}

/// Which guests to watch.
#[derive(Clone, Debug, PartialEq, Eq, Args)]
#[command(after_help = ATTACH_EXAMPLES)]
pub struct Attach {
    /// How to report.
    #[command(flatten)]
    pub reports: Reports,

    /// How to look.
    #[command(flatten)]
    pub probes: Probes,

    /// How much to remember, of each guest.
    #[command(flatten)]
    pub memory: Memory,

    /// Whether to audit.
    #[command(flatten)]
    pub audits: Audits,

    /// Record everything that is seen in a new file; of several guests each has its own, with
    /// .NAME at the end.
    #[arg(long, value_name = "FILE")]
    pub record: Option<PathBuf>,

    /// Only print what would be run.
    #[arg(long)]
    pub dry_run: bool,

    /// Attach to the guest that virtme-ng runs with --ssh.
    #[arg(long, value_name = "CID", num_args = 0..=1, require_equals = true)]
    #[arg(default_missing_value = "2222", conflicts_with = "serial")]
    pub vng: Option<u32>,

    /// Take the stream of an agent that speaks on a virtio-serial port, from the port's socket.
    /// In the guest: refverify-monitor agent --port /dev/virtio-ports/NAME DEVICE...
    #[arg(long, value_name = "SOCKET")]
    pub serial: Option<PathBuf>,

    /// Start the agent by the guest's QEMU guest agent, which listens at this socket, on the
    /// port of --serial.
    #[arg(long, value_name = "SOCKET", requires = "serial")]
    pub qga: Option<PathBuf>,

    /// What the guest calls the port of --serial.
    #[arg(long, value_name = "NAME", default_value = "refverify")]
    pub port: String,

    /// A file for ssh to read instead of the user's own configuration.
    #[arg(long, value_name = "FILE")]
    pub ssh_config: Option<PathBuf>,

    /// Read more guests and devices from a file; # begins a comment.
    #[arg(long, value_name = "FILE")]
    pub targets: Option<PathBuf>,

    /// How many seconds a guest may be silent before it is given up.
    #[arg(long, value_name = "SECONDS", default_value = "150")]
    pub patience: u64,

    /// Where the flight record goes that is written when a guest is lost.
    #[arg(long, value_name = "DIR", default_value = ".")]
    pub flight_dir: PathBuf,

    /// Guests, each with its devices: a device begins with /, a guest is what ssh takes. Guests
    /// in a row share the devices that follow.
    #[arg(value_name = "TARGET DEVICE", allow_hyphen_values = true)]
    pub words: Vec<String>,
}

/// What to do after a violation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum OnViolation {
    /// Report it and go on.
    Report,
    /// Report it and end, as the kernel's own checker does.
    Stop,
}

impl Probes {
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

fn history(text: &str) -> Result<usize, String> {
    let parsed = text.parse().ok().filter(|n| (2..=1_000_000).contains(n));
    parsed.ok_or_else(|| "not a number from 2 to 1000000".to_owned())
}

/// A number of bytes, KiB (`K`), MiB (`M`) or GiB (`G`).
fn size(text: &str) -> Result<u64, String> {
    let (number, shift) = match text.split_at_checked(text.len().saturating_sub(1)) {
        Some((number, "K" | "k")) => (number, 10),
        Some((number, "M")) => (number, 20),
        Some((number, "G")) => (number, 30),
        _ => (text, 0),
    };
    let parsed = number.parse::<u64>().ok().and_then(|number| number.checked_mul(1 << shift));
    let above_zero = parsed.filter(|&bytes| bytes > 0);
    above_zero.ok_or_else(|| "not a number of bytes above 0, such as 512M or 4G".to_owned())
}

fn seconds(text: &str) -> Result<u32, String> {
    let parsed = text.parse().ok().filter(|n| *n <= 1_000_000);
    parsed.ok_or_else(|| "not a number up to 1000000".to_owned())
}

fn ring_mib(text: &str) -> Result<u32, String> {
    let range = 1..=1024_u32;
    let parsed = text.parse().ok().filter(|n: &u32| range.contains(n) && n.is_power_of_two());
    parsed.ok_or_else(|| "not a power of two from 1 to 1024".to_owned())
}
