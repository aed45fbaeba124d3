//! What must be near the kernel: it loads the eBPF programs, decodes the ring buffer, reads
//! blocks of the devices when asked, names kernel addresses, and notices mounts. It knows
//! nothing of rules.
//!
//! | file | what |
//! |---|---|
//! | `preflight` | what must be there before anything is loaded |
//! | `btf`, `layout` | where this kernel keeps what is needed of its structures |
//! | `probes` | which hooks there are, loading, attaching |
//! | `second_count` | raw tracepoints beside the kprobes, to find those that were missed |
//! | `armed` | the hooks in force, with all that belongs to them |
//! | `module` | whether the btrfs module is there, and which one |
//! | `decode` | from the bytes of the ring buffer to events |
//! | `late` | what happens after the monitor was told to stop |
//! | `losses` | what was lost, as the kernel side counts it |
//! | `watched` | which devices the eBPF programs know as watched ones |
//! | `chunk_trees` | how a mounted file system is known where BTF does not help |
//! | `mounts` | which of the watched file systems are mounted |
//! | `disks` | the devices of a file system that is only read |
//! | `reads` | many reads at a time |
//! | `device` | the watched devices, found and checked |
//! | `members`, `member` | all devices of a file system, found when they are asked for |
//! | `direct` | reads with `O_DIRECT` |
//! | `zones` | where a zoned device keeps its superblock |
//! | `sysfs` | what sysfs tells of block devices and of mounted btrfs |
//! | `symbols` | kernel addresses to names |
//! | `pump` | the loop: drain, tell, answer |
//! | `answers` | the thread that reads and names, so that the loop never waits |

use std::{
    collections::{BTreeMap, HashSet},
    fmt, io,
    path::PathBuf,
    sync::{Arc, atomic::AtomicBool, mpsc},
    thread,
    time::Instant,
};

use refverify_common::SLOTS_MAX;
use tokio::sync::mpsc::{Receiver, Sender};

use crate::feed::{BlockRequest, Hello, ToAgent, ToVerifier};

mod answers;
mod armed;
mod btf;
#[cfg(test)]
mod btf_fixture;
mod chunk_trees;
mod decode;
mod device;
mod direct;
mod disks;
mod late;
mod layout;
mod losses;
mod member;
mod members;
mod module;
mod mountinfo;
mod mounts;
mod preflight;
mod probes;
mod pump;
mod reads;
mod second_count;
mod symbols;
mod sysfs;
mod watched;
mod zones;

pub use btf::BtfError;
pub use device::DeviceError;
pub use disks::{Disks, DisksError};
pub use layout::LayoutError;
pub use losses::LossError;
pub use member::Member;
pub use members::Members;
pub use preflight::PreflightError;
pub use probes::ProbeError;

use answers::Pending;
use armed::{Armed, Arming};
use device::Device;
use late::Late;
use pump::Pump;
use reads::Reads;
use symbols::Symbols;

/// What is watched, and how.
#[derive(Clone, Debug)]
pub struct AgentConfig {
    /// Block devices, or mount points that stand for their devices; each one's place is its
    /// [`FsSlot`](crate::feed::FsSlot).
    pub devices: Vec<PathBuf>,
    /// Whether the stack of each change is recorded.
    pub stacks: bool,
    /// The size of the ring buffer in bytes: a power of two, at least one page.
    pub ring_bytes: u32,
    /// How many bytes a second may be read of all devices together.
    pub io_limit_bytes: Option<u64>,
}

/// The agent cannot start.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// This machine cannot be watched.
    #[error(transparent)]
    Preflight(#[from] PreflightError),
    /// A device cannot be watched.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// The kernel's types cannot be read.
    #[error(transparent)]
    Btf(#[from] BtfError),
    /// The kernel's types are not known.
    #[error(transparent)]
    Layout(#[from] LayoutError),
    /// Nothing can be read.
    #[error("cannot start to read devices: {0}")]
    Reads(io::Error),
    /// The eBPF programs cannot be put in force.
    #[error(transparent)]
    Probes(#[from] ProbeError),
    /// The module cannot be followed.
    #[error("cannot tell whether the btrfs module is loaded: {0}")]
    Module(io::Error),
    /// What is lost cannot be known.
    #[error(transparent)]
    Losses(#[from] LossError),
    /// Too many devices.
    #[error("{given} devices are too many; at most {max} can be watched at once", max = SLOTS_MAX)]
    TooManyDevices {
        /// How many were given.
        given: usize,
    },
    /// No devices.
    #[error("no device to watch was given")]
    NoDevices,
    /// A bad size.
    #[error(
        "a ring buffer of {ring_bytes} bytes is not possible; it must be a power of two from 4096 to 1 GiB"
    )]
    RingSize {
        /// What was asked for.
        ring_bytes: u32,
    },
}

/// The hooks are in force as long as this lives.
pub struct Agent {
    arming: Arming,
    armed: Armed,
    devices: Arc<[Device]>,
    reads: Reads<BlockRequest>,
    /// Read before it is needed: a finding would have to wait for it.
    symbols: Symbols,
    hello: Hello,
}

impl fmt::Debug for Agent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Agent").field("hello", &self.hello).finish_non_exhaustive()
    }
}

impl Agent {
    /// Checks the machine and the devices, loads and attaches. When this returns, every change
    /// of a watched file system is recorded.
    ///
    /// # Errors
    ///
    /// If the machine or a device cannot be watched; each [`AgentError`] is one sentence.
    pub fn start(config: AgentConfig) -> Result<Self, AgentError> {
        let AgentConfig { devices, stacks, ring_bytes, io_limit_bytes } = config;
        check_ring(ring_bytes)?;
        preflight::check()?;
        let devices = open_all(&devices)?;
        let reads = Reads::new(io_limit_bytes).map_err(AgentError::Reads)?;
        let arming = Arming { devices: Arc::clone(&devices), stacks, ring_bytes };
        let (armed, hello, symbols) = arming.arm()?;
        Ok(Self { arming, armed, devices, reads, symbols, hello })
    }

    /// Who speaks, and what it can see.
    pub fn hello(&self) -> Hello {
        self.hello.clone()
    }

    /// Tells the verifier all that happens, in the order of the ring buffer, and answers its
    /// requests, until it says [`ToAgent::Stop`] or its end of a channel is dropped. Then the
    /// hooks are let go, what happened up to then is told, and [`ToVerifier::Bye`] follows;
    /// from then on only requests are answered, until the verifier drops its end. The first
    /// message is [`ToVerifier::Hello`].
    ///
    /// Blocks: meant for a thread of its own, outside of an async runtime's. While
    /// `to_verifier` is full nothing is drained; the ring buffer fills, and what does not fit
    /// is counted and told.
    ///
    /// Setting `dump` asks for a [`ToVerifier::DumpWanted`] once all events up to then are told.
    pub fn run(
        self,
        to_verifier: Sender<ToVerifier>,
        from_verifier: Receiver<ToAgent>,
        dump: Arc<AtomicBool>,
    ) {
        if to_verifier.blocking_send(ToVerifier::Hello(self.hello)).is_err() {
            return;
        }
        let (work, requests) = mpsc::channel();
        let pending = Pending::default();
        let pump = Pump {
            arming: self.arming,
            armed: self.armed,
            dump,
            to_verifier: to_verifier.clone(),
            work,
            pending: pending.clone(),
            batch: Vec::new(),
            strays: BTreeMap::new(),
            late: Late::default(),
            arm_at: Instant::now(),
        };
        let answers_to = to_verifier;
        let (devices, reads, symbols) = (&self.devices, self.reads, self.symbols);
        thread::scope(|scope| {
            scope.spawn(move || {
                answers::serve(&requests, devices, reads, symbols, &answers_to, &pending);
            });
            // Whether the verifier is gone or not, there is nothing left to do.
            let _ = pump.run(from_verifier);
        });
    }
}

fn check_ring(ring_bytes: u32) -> Result<(), AgentError> {
    let possible = ring_bytes.is_power_of_two() && (4096..=1 << 30).contains(&ring_bytes);
    if possible { Ok(()) } else { Err(AgentError::RingSize { ring_bytes }) }
}

fn open_all(given: &[PathBuf]) -> Result<Arc<[Device]>, AgentError> {
    if given.is_empty() {
        return Err(AgentError::NoDevices);
    }
    if given.len() > SLOTS_MAX {
        return Err(AgentError::TooManyDevices { given: given.len() });
    }
    let mut seen = HashSet::new();
    let mut devices = Vec::new();
    for path in given {
        let device = Device::open(path)?;
        if !device.keys().iter().all(|key| seen.insert(key.number)) {
            return Err(DeviceError::Twice { path: path.clone() }.into());
        }
        devices.push(device);
    }
    Ok(devices.into())
}
