//! What the chosen superblock led to: chunks, devices, and where the extent tree begins.

use std::{collections::BTreeMap, sync::Arc};

use uuid::Uuid;

use crate::btrfs::format::{BlockFormat, BlockPointer, ChunkMap, DeviceItem, Superblock};

/// So many seeds can a file system be based on here; no one stacks even a tenth of it.
const SEEDS_MAX: usize = 64;

/// What the chosen superblock led to. Each part is kept, with the pointer that it was read
/// through, for as long as newer superblocks have the same pointer.
#[derive(Debug, Default)]
pub(super) struct Found {
    pub(super) superblock: Option<Arc<Superblock>>,
    pub(super) chunks: Option<(BlockPointer, ChunkMap)>,
    pub(super) extent_root: Option<(BlockPointer, BlockPointer)>,
    /// By device id.
    pub(super) devices: BTreeMap<u64, DeviceItem>,
    /// The fsids of the seeds, as far as the chunk tree has told of them.
    seeds: Vec<Uuid>,
}

impl Found {
    /// The chosen superblock's generation; 0 without one.
    pub(super) fn generation(&self) -> u64 {
        self.superblock.as_ref().map_or(0, |superblock| superblock.generation)
    }

    /// Takes an item of the chunk tree. A device that was added to another file system is a
    /// seed's (kernel: `read_one_dev`).
    pub(super) fn add_device(&mut self, device: DeviceItem) {
        let own = self.superblock.as_ref().map(|superblock| superblock.metadata_uuid);
        let is_new = Some(device.fsid) != own && !self.is_seed(device.fsid);
        if is_new && self.seeds.len() < SEEDS_MAX {
            self.seeds.push(device.fsid);
        }
        self.devices.insert(device.devid, device);
    }

    /// Whether a seed with this id is known.
    pub(super) fn is_seed(&self, fsid: Uuid) -> bool {
        self.seeds.contains(&fsid)
    }

    /// What every tree block must look like.
    pub(super) fn block_format(&self) -> Option<BlockFormat> {
        let mut format = self.superblock.as_ref()?.block_format();
        if !self.seeds.is_empty() {
            format.fsids = format.fsids.iter().chain(&self.seeds).copied().collect();
        }
        Some(format)
    }

    /// Which device to ask for the superblock: the one that gave it last, twice, in case that it
    /// is just being written; then, in turn, all that are known.
    pub(super) fn superblock_device(&self, last: u64, tries: u32) -> u64 {
        match tries.checked_sub(2) {
            None => last,
            Some(turn) => {
                let count = self.devices.len() + 1;
                let all = std::iter::once(last).chain(self.devices.keys().copied());
                all.cycle().nth(turn as usize % count).unwrap_or(last)
            }
        }
    }
}
