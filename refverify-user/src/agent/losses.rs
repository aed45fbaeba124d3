//! What was lost, as the kernel side counts it.

use std::{
    fs::File,
    io,
    os::{
        fd::{AsFd, AsRawFd, RawFd},
        unix::fs::FileExt,
    },
};

use aya::{
    Ebpf,
    maps::{MapData, MapError, PerCpuArray},
};
use refverify_common::{LOSS_SLOTS, Losses, SLOTS_MAX};

use crate::feed::{FsSlot, Loss, LossSource};

/// Reads the counters and tells what they gained.
pub(super) struct LossCounters {
    counted: PerCpuArray<MapData, Losses>,
    counted_before: Losses,
    /// `fdinfo` files of the programs. They stay open, since they are read at every drain.
    programs: Vec<File>,
    missed_before: u64,
}

impl LossCounters {
    /// The counters in `map`, and those of all loaded programs of `ebpf`.
    pub(super) fn new(map: PerCpuArray<MapData, Losses>, ebpf: &Ebpf) -> Result<Self, LossError> {
        let loaded = ebpf.programs().filter_map(|(_, program)| program.fd().ok());
        let fdinfos = loaded.map(|fd| fdinfo(fd.as_fd().as_raw_fd()));
        Ok(Self {
            counted: map,
            counted_before: [0; 3 * LOSS_SLOTS],
            programs: fdinfos.collect::<Result<_, _>>()?,
            missed_before: 0,
        })
    }

    /// What was lost since the last call.
    pub(super) fn poll(&mut self) -> Result<Vec<Loss>, LossError> {
        let now = sum(&self.counted.get(&0, 0)?);
        let mut losses = gained(&self.counted_before, &now);
        self.counted_before = now;
        let missed = self.missed()?;
        if missed > self.missed_before {
            let count = missed - self.missed_before;
            losses.push(Loss { fs: None, source: LossSource::ProgramMissed, count });
            self.missed_before = missed;
        }
        Ok(losses)
    }

    /// How often the kernel skipped one of the programs because another ran on that CPU
    /// (`bpf_prog_info.recursion_misses`; kernels before 5.12 do not tell).
    fn missed(&self) -> Result<u64, LossError> {
        let mut total = 0;
        for program in &self.programs {
            total += number_in(program, "recursion_misses:")?;
        }
        Ok(total)
    }
}

/// The counters cannot be read, so nothing can be said of completeness.
#[derive(Debug, thiserror::Error)]
pub enum LossError {
    /// The map.
    #[error("cannot read the loss counters: {0}")]
    Map(#[from] MapError),
    /// A program's `fdinfo`.
    #[error("cannot read how often a program was skipped: {0}")]
    Program(#[from] io::Error),
}

fn sum(cpus: &[Losses]) -> Losses {
    let mut total = [0; 3 * LOSS_SLOTS];
    for cpu in cpus {
        for (total, count) in total.iter_mut().zip(cpu) {
            *total += count;
        }
    }
    total
}

fn gained(before: &Losses, now: &Losses) -> Vec<Loss> {
    let gains = before.iter().zip(now).enumerate();
    gains
        .filter(|(_, (before, now))| now > before)
        .map(|(index, (before, now))| Loss {
            fs: slot_of(index % LOSS_SLOTS),
            source: source_of(index / LOSS_SLOTS),
            count: now - before,
        })
        .collect()
}

fn source_of(group: usize) -> LossSource {
    match group {
        0 => LossSource::RingBuffer,
        1 => LossSource::Unreadable,
        _ => LossSource::ProgramMissed,
    }
}

fn slot_of(index: usize) -> Option<FsSlot> {
    u32::try_from(index).ok().filter(|_| index < SLOTS_MAX).map(FsSlot)
}

fn fdinfo(fd: RawFd) -> io::Result<File> {
    File::open(format!("/proc/self/fdinfo/{fd}"))
}

/// The number behind a name in an `fdinfo` file, as it is now: each reading from its start makes it
/// anew (kernel: `seq_read_iter`; for a program `bpf_prog_show_fdinfo`). 0 where the name is not.
fn number_in(fdinfo: &File, name: &str) -> io::Result<u64> {
    // Those of programs take some 250 bytes.
    let mut bytes = [0; 1024];
    let len_bytes = fdinfo.read_at(&mut bytes, 0)?;
    if len_bytes == bytes.len() {
        return Err(io::ErrorKind::FileTooLarge.into());
    }
    let text = String::from_utf8_lossy(&bytes[..len_bytes]);
    let value = text.lines().find_map(|line| line.strip_prefix(name));
    Ok(value.and_then(|value| value.trim().parse().ok()).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use std::io::{Seek, SeekFrom};

    use refverify_common::{SLOT_UNKNOWN, missed_index, ring_full_index, unreadable_index};

    use super::*;

    #[test]
    fn a_loss_is_attributed_to_the_slot_and_source_that_the_kernel_side_counted() {
        let before = [0; 3 * LOSS_SLOTS];
        let mut now = before;
        now[ring_full_index(3)] = 7;
        now[unreadable_index(0)] = 1;
        now[unreadable_index(SLOT_UNKNOWN)] = 2;
        now[missed_index(2)] = 3;
        let expected = [
            Loss { fs: Some(FsSlot(3)), source: LossSource::RingBuffer, count: 7 },
            Loss { fs: Some(FsSlot(0)), source: LossSource::Unreadable, count: 1 },
            Loss { fs: None, source: LossSource::Unreadable, count: 2 },
            Loss { fs: Some(FsSlot(2)), source: LossSource::ProgramMissed, count: 3 },
        ];
        assert_eq!(gained(&before, &now), expected);
        assert!(gained(&now, &now).is_empty());
    }

    #[test]
    fn counts_of_all_cpus_are_added() {
        let mut one = [0; 3 * LOSS_SLOTS];
        one[5] = 2;
        let mut other = [0; 3 * LOSS_SLOTS];
        other[5] = 3;
        assert_eq!(sum(&[one, other])[5], 5);
    }

    #[test]
    fn what_an_open_fdinfo_file_tells_is_as_of_now() {
        let mut file = tempfile::tempfile().unwrap();
        let told = fdinfo(file.as_raw_fd()).unwrap();
        for offset in [0, 42, 7] {
            file.seek(SeekFrom::Start(offset)).unwrap();
            assert_eq!(number_in(&told, "pos:").unwrap(), offset);
        }
        // As of kernels that do not count skipped programs.
        assert_eq!(number_in(&told, "recursion_misses:").unwrap(), 0);
    }
}
