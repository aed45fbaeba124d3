//! The superblock of a zoned device. Zones can only be written from their beginning on, so it has
//! no place of its own: it is appended to a log in the first two zones, which are used in turn.
//!
//! The rules are those of the kernel's `sb_write_pointer` and `sb_log_location`
//! (`fs/btrfs/zoned.c`, 6.12); the zones' states come from `BLKREPORTZONE`
//! (`include/uapi/linux/blkzoned.h`).

use std::{fs, fs::File, io};

use rustix::{
    fs::{major, minor},
    ioctl::{Updater, ioctl, opcode},
};

use crate::btrfs::format::SUPERBLOCK_LEN_BYTES;

/// The zones that the primary superblock's log is in (kernel: `BTRFS_NR_SB_LOG_ZONES`).
const LOG_ZONES: usize = 2;

/// A unit of the report.
const SECTOR_BYTES: u64 = 512;

/// `BLK_ZONE_TYPE_CONVENTIONAL`: can be written anywhere.
const CONVENTIONAL: u8 = 1;
/// `BLK_ZONE_COND_EMPTY` and `BLK_ZONE_COND_FULL`.
const EMPTY: u8 = 1;
const FULL: u8 = 14;
/// `BLK_ZONE_REP_CAPACITY`: the capacities in the report mean something.
const HAS_CAPACITIES: u32 = 1;

/// `struct blk_zone`.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
struct DiskZone {
    start: u64,
    len: u64,
    write_pointer: u64,
    zone_type: u8,
    condition: u8,
    non_sequential: u8,
    reset: u8,
    reserved: [u8; 4],
    capacity: u64,
    reserved2: [u8; 24],
}

/// `struct blk_zone_report` without its zones: what the number of the call is made of.
#[repr(C)]
struct ReportHeader {
    sector: u64,
    nr_zones: u32,
    flags: u32,
}

/// The whole of it.
#[repr(C)]
struct Report {
    header: ReportHeader,
    zones: [DiskZone; LOG_ZONES],
}

const _: () = assert!(size_of::<DiskZone>() == 64 && size_of::<ReportHeader>() == 16);

const BLKREPORTZONE: rustix::ioctl::Opcode = opcode::read_write::<ReportHeader>(0x12, 130);

/// A zone of the log, in bytes of the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Zone {
    start: u64,
    /// Behind what can be written.
    end: u64,
    write_pointer: u64,
    is_conventional: bool,
    is_empty: bool,
    is_full: bool,
}

/// Whether a block device has to be written zone by zone; partitions do not say so.
pub(super) fn is_zoned(rdev: u64) -> bool {
    let path = format!("/sys/dev/block/{}:{}/queue/zoned", major(rdev), minor(rdev));
    fs::read_to_string(path).is_ok_and(|zoned| zoned.trim() != "none")
}

/// Where the newest primary superblock of a zoned device is; `generation_at` reads the generation
/// of the one at an offset.
///
/// # Errors
///
/// There is none, or the zones cannot be asked for.
pub(super) fn superblock_offset(
    file: &File,
    generation_at: impl Fn(u64) -> Option<u64>,
) -> io::Result<u64> {
    let zones = report(file)?;
    newest(zones, generation_at).ok_or_else(|| {
        io::Error::new(io::ErrorKind::NotFound, "the zones of the superblock hold none")
    })
}

/// Asks for the first zones.
fn report(file: &File) -> io::Result<[Zone; LOG_ZONES]> {
    let nr_zones = u32::try_from(LOG_ZONES).map_err(io::Error::other)?;
    let header = ReportHeader { sector: 0, nr_zones, flags: 0 };
    let mut report = Report { header, zones: [DiskZone::default(); LOG_ZONES] };
    // SAFETY: the number is that of `BLKREPORTZONE`, which fills as many zones as the header
    // says that there is room for; all of it are plain numbers.
    unsafe { ioctl(file, Updater::<BLKREPORTZONE, Report>::new(&mut report)) }?;
    if report.header.nr_zones < nr_zones {
        return Err(io::Error::other("the device has less than two zones"));
    }
    let has_capacities = report.header.flags & HAS_CAPACITIES != 0;
    Ok(report.zones.map(|zone| Zone::new(&zone, has_capacities)))
}

impl Zone {
    fn new(zone: &DiskZone, has_capacities: bool) -> Self {
        let bytes = |sectors: u64| sectors.saturating_mul(SECTOR_BYTES);
        let capacity = if has_capacities { zone.capacity } else { zone.len };
        let end = bytes(zone.start.saturating_add(capacity));
        let write_pointer = bytes(zone.write_pointer);
        let has_room = write_pointer.saturating_add(SUPERBLOCK_LEN_BYTES.into()) <= end;
        Self {
            start: bytes(zone.start),
            end,
            write_pointer,
            is_conventional: zone.zone_type == CONVENTIONAL,
            is_empty: zone.condition == EMPTY,
            is_full: zone.condition == FULL || !has_room,
        }
    }

    /// The last whole superblock before an offset.
    fn last_before(end: u64) -> Option<u64> {
        let len = u64::from(SUPERBLOCK_LEN_BYTES);
        (end / len).checked_sub(1).map(|number| number * len)
    }

    fn last_of_full(&self) -> Option<u64> {
        Self::last_before(self.end)
    }
}

/// Which superblock is the newest. The zones are filled in turn, and one is emptied when the
/// other is full: so where one is in use, it is newer than a full one.
fn newest(
    [first, second]: [Zone; LOG_ZONES],
    generation_at: impl Fn(u64) -> Option<u64>,
) -> Option<u64> {
    if first.is_conventional {
        return Some(first.start);
    }
    let in_use = |zone: &Zone| !zone.is_empty && !zone.is_full;
    match (first, second) {
        (a, b) if in_use(&a) && !in_use(&b) => Zone::last_before(a.write_pointer),
        (a, b) if in_use(&b) && a.is_full => Zone::last_before(b.write_pointer),
        (a, b) if a.is_full && b.is_empty => a.last_of_full(),
        (a, b) if a.is_empty && b.is_full => b.last_of_full(),
        (a, b) if a.is_full && b.is_full => {
            [a, b].iter().filter_map(Zone::last_of_full).max_by_key(|&at| generation_at(at))
        }
        // Both empty: never written. Else: no log of btrfs.
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn zone(start: u64, write_pointer: u64) -> Zone {
        let (len, capacity) = (64 * MIB, 60 * MIB);
        let condition = match write_pointer {
            0 => EMPTY,
            written if written == capacity => FULL,
            _ => 2,
        };
        let sectors = |bytes: u64| bytes / SECTOR_BYTES;
        let zone = DiskZone {
            start: sectors(start),
            len: sectors(len),
            write_pointer: sectors(start + write_pointer),
            zone_type: 2,
            condition,
            capacity: sectors(capacity),
            ..DiskZone::default()
        };
        Zone::new(&zone, true)
    }

    fn log(first: u64, second: u64) -> Option<u64> {
        // In the second zone it is newer.
        newest([zone(0, first), zone(64 * MIB, second)], |at| Some(at / (64 * MIB)))
    }

    #[test]
    fn the_newest_superblock_is_found_in_every_state_of_the_log() {
        let (full, end) = (60 * MIB, 60 * MIB - 4096);
        assert_eq!(log(0, 0), None, "never written");
        assert_eq!(log(4096, 0), Some(0));
        assert_eq!(log(8 * 4096, 0), Some(7 * 4096));
        assert_eq!(log(full, 0), Some(end));
        assert_eq!(log(full, 4096), Some(64 * MIB));
        assert_eq!(log(full, full), Some(64 * MIB + end), "by generation");
        assert_eq!(log(0, full), Some(64 * MIB + end), "the first was just emptied");
        assert_eq!(log(3 * 4096, full), Some(2 * 4096), "round the second time");
        assert_eq!(log(4096, 4096), None, "no log of btrfs");
    }

    #[test]
    fn a_rest_too_short_for_a_superblock_makes_a_zone_full() {
        let mut first =
            DiskZone { len: 1001, write_pointer: 1000, condition: 2, ..DiskZone::default() };
        first.zone_type = 2;
        let zone = Zone::new(&first, false);
        assert!(zone.is_full);
        assert_eq!(zone.last_of_full(), Some(124 * 4096));
    }

    #[test]
    fn a_conventional_zone_has_its_superblock_at_its_beginning() {
        let first = Zone { is_conventional: true, ..zone(0, 8 * 4096) };
        assert_eq!(newest([first, zone(64 * MIB, 0)], |_| None), Some(0));
    }
}
