//! Tells the eBPF programs which chunk trees' UUIDs are those of watched devices.
//!
//! Only for kernels that do not describe btrfs: there it is how a file system is known whose mount
//! the hooks did not see. mkfs changes the UUID, so it is read again whenever such a mount is met.

use aya::maps::{HashMap, MapData, MapError};
use refverify_common::ChunkTreeUuid;

use super::device::Device;
use crate::btrfs::ChunkTreeError;

/// How often a root is read that the kernel is just overwriting.
const ATTEMPTS_MAX: u32 = 10;

/// The map of the eBPF programs, and what is in it.
#[derive(Debug)]
pub(super) struct ChunkTrees {
    map: HashMap<MapData, ChunkTreeUuid, u32>,
    /// By slot.
    told: Vec<Option<ChunkTreeUuid>>,
}

/// The file system on a device cannot be made known.
#[derive(Debug, thiserror::Error)]
pub(super) enum UnknownChunkTree {
    /// The device.
    #[error(transparent)]
    Device(#[from] ChunkTreeError),
    /// The map.
    #[error("cannot tell it to the eBPF programs: {0}")]
    Map(#[from] MapError),
}

impl ChunkTrees {
    /// Nothing is told yet.
    pub(super) fn new(map: HashMap<MapData, ChunkTreeUuid, u32>, slots: usize) -> Self {
        Self { map, told: vec![None; slots] }
    }

    /// Makes known what is on the device now. Changes of a mounted file system are seen from
    /// when this returns.
    pub(super) fn tell(&mut self, slot: u32, device: &Device) -> Result<(), UnknownChunkTree> {
        let uuid = read(device)?;
        let told = usize::try_from(slot).ok().and_then(|slot| self.told.get_mut(slot));
        let Some(told) = told.filter(|told| **told != Some(uuid)) else { return Ok(()) };
        self.map.insert(uuid, slot, 0)?;
        if let Some(before) = told.replace(uuid) {
            self.map.remove(&before)?;
        }
        Ok(())
    }
}

fn read(device: &Device) -> Result<ChunkTreeUuid, ChunkTreeError> {
    let mut attempts_left = ATTEMPTS_MAX;
    loop {
        attempts_left -= 1;
        match device.chunk_tree_uuid() {
            Err(ChunkTreeError::Root { .. }) if attempts_left > 0 => {}
            other => return other.map(uuid::Uuid::into_bytes),
        }
    }
}
