//! What the kernel has counted: what a process holds, and what went to and from a device.

use std::{fs, path::Path};

use anyhow::{Context, Result};

/// What a process holds.
#[derive(Debug)]
pub(super) struct Used {
    /// Of main memory.
    pub(super) memory_kib: u64,
    /// Open file descriptors.
    pub(super) descriptors: usize,
}

impl Used {
    pub(super) fn by(pid: u32) -> Result<Self> {
        let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
        let memory = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let memory = memory.and_then(|it| it.trim().strip_suffix(" kB")).context("no VmRSS")?;
        let descriptors = fs::read_dir(format!("/proc/{pid}/fd"))?.count();
        Ok(Self { memory_kib: memory.trim().parse()?, descriptors })
    }
}

/// Sectors of 512 bytes that a device was asked for, since it is there.
pub(super) struct Sectors {
    pub(super) read: u64,
    pub(super) written: u64,
}

impl Sectors {
    /// The third and the seventh number of `/sys/class/block/NAME/stat` (kernel:
    /// `Documentation/block/stat.rst`).
    pub(super) fn moved(device: &Path) -> Result<Self> {
        let name = device.file_name().context("a device has a name")?;
        let stat = fs::read_to_string(Path::new("/sys/class/block").join(name).join("stat"))?;
        let numbers: Vec<&str> = stat.split_whitespace().collect();
        let number =
            |nth: usize| -> Result<u64> { Ok(numbers.get(nth).context("a short stat")?.parse()?) };
        Ok(Self { read: number(2)?, written: number(6)? })
    }
}
