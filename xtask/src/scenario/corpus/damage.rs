//! What is done to devices so that not every copy of a tree block is good. Where the copies are
//! is taken from btrfs-progs' dump of the chunk tree.

use std::{fs::File, os::unix::fs::FileExt};

use anyhow::{Context, Result, bail, ensure};
use rustix::fs::{FallocateFlags, fallocate};

use super::file_system::FileSystem;

/// Where the system and metadata of a device are: offset and length.
type DeviceExtents = Vec<(u64, u64)>;

/// What happens to a device. Devices are counted from 1.
#[derive(Clone, Copy, Debug)]
pub(super) enum Damage {
    /// All that it has of tree blocks is overwritten; of two copies on the device the first.
    TreeBlocks { devid: u64 },
    /// All of it is zero.
    Zeroed { devid: u64 },
    /// It is not there.
    Missing { devid: u64 },
}

impl Damage {
    pub(super) fn devid(self) -> u64 {
        match self {
            Self::TreeBlocks { devid } | Self::Zeroed { devid } | Self::Missing { devid } => devid,
        }
    }

    /// Does it to the images of a file system that is not mounted, whose chunk tree was dumped
    /// when all was well.
    pub(super) fn inflict(self, chunks: &str, file_system: &mut FileSystem) -> Result<()> {
        let index = usize::try_from(self.devid() - 1)?;
        let open = || File::options().write(true).open(file_system.image(index));
        match self {
            Self::TreeBlocks { devid } => {
                let places = tree_blocks(chunks, devid)?;
                ensure!(!places.is_empty(), "device {devid} holds no tree blocks");
                let image = open()?;
                for (offset, len_bytes) in places {
                    let garbage = vec![0xa5; usize::try_from(len_bytes)?];
                    image.write_all_at(&garbage, offset)?;
                }
                image.sync_all()?;
            }
            Self::Zeroed { .. } => {
                let image = open()?;
                let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
                fallocate(&image, punch, 0, image.metadata()?.len())?;
                image.sync_all()?;
            }
            Self::Missing { .. } => return file_system.detach(index),
        }
        // What the loop device still has of its file in memory is of before.
        file_system.detach(index)?;
        file_system.attach(index)
    }
}

/// The chunks of system and metadata on a device, from lines such as
///
/// ```text
///     item 2 key (FIRST_CHUNK_TREE CHUNK_ITEM 30408704) itemoff 15909 itemsize 112
///             length 53673984 owner 2 stripe_len 65536 type METADATA|DUP
///             io_align 65536 io_width 65536 sector_size 4096
///             num_stripes 2 sub_stripes 1
///                     stripe 0 devid 1 offset 38797312
/// ```
fn tree_blocks(dump: &str, devid: u64) -> Result<DeviceExtents> {
    let mut places = DeviceExtents::new();
    let (mut len_bytes, mut kind, mut stripes) = (0_u64, "", 1_u64);
    let mut is_done = true;
    for line in dump.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words[..] {
            ["length", len, .., "type", profile] => {
                (len_bytes, kind) = (len.parse()?, profile);
                is_done = !(kind.contains("METADATA") || kind.contains("SYSTEM"));
            }
            ["num_stripes", num, ..] => stripes = num.parse()?,
            ["stripe", _, "devid", id, "offset", offset] if !is_done && id.parse() == Ok(devid) => {
                is_done = true;
                places.push((offset.parse()?, len_bytes / data_stripes(kind, stripes)?));
            }
            _ => {}
        }
    }
    Ok(places)
}

/// Over how many stripes a chunk's data is spread.
fn data_stripes(kind: &str, stripes: u64) -> Result<u64> {
    let profile = kind.split('|').find(|word| !matches!(*word, "METADATA" | "SYSTEM" | "DATA"));
    Ok(match profile.context("a chunk without a profile")? {
        "single" | "DUP" | "RAID1" | "RAID1C3" | "RAID1C4" => 1,
        "RAID0" => stripes,
        "RAID10" => stripes / 2,
        "RAID5" => stripes - 1,
        "RAID6" => stripes - 2,
        other => bail!("a profile that is not known: {other}"),
    })
}
