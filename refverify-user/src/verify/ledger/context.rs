//! What the extents of one page have in common, so that each need not say it.

use super::{
    Extent,
    codes::{from_disk_code, from_disk_of_code, kind_code},
    varint::SECTOR_BITS,
};

/// What the extents of one page most likely have in common. It may be anything: it only
/// makes what agrees with it small.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Context {
    /// The kind, as [`kind_code`] has it.
    pub(super) kind: u8,
    pub(super) len_bytes: u32,
    /// The root of direct references, as a signed number.
    pub(super) root: i32,
    /// The generation at which they were read, and one; 0 is not from disk.
    pub(super) from_disk: u32,
    /// About this owner, as direct references of data have it.
    pub(super) owner: u32,
    /// Parents of shared references lie near this sector.
    pub(super) parent_sector: u32,
}

impl Context {
    /// How many bytes it takes in a page.
    pub(super) const SIZE: usize = 21;

    /// The context in which this extent is small.
    pub(super) fn of(extent: &Extent) -> Self {
        let mut context = Self {
            kind: kind_code(extent.kind).try_into().unwrap_or(0),
            len_bytes: extent.len_bytes.try_into().unwrap_or(0),
            from_disk: from_disk_code(extent.from_disk)
                .and_then(|code| code.try_into().ok())
                .unwrap_or(0),
            ..Self::default()
        };
        for (key, _) in extent.refs.iter().take(8) {
            if key.is_shared() {
                context.parent_sector = (key.parent >> SECTOR_BITS).try_into().unwrap_or(0);
            } else {
                context.root = key.root.cast_signed().try_into().unwrap_or(0);
                context.owner = key.owner.try_into().unwrap_or(0);
            }
        }
        context
    }

    pub(super) fn bytes(&self) -> [u8; Self::SIZE] {
        let mut bytes = [0; Self::SIZE];
        bytes[0] = self.kind;
        bytes[1..5].copy_from_slice(&self.len_bytes.to_le_bytes());
        bytes[5..9].copy_from_slice(&self.root.to_le_bytes());
        bytes[9..13].copy_from_slice(&self.from_disk.to_le_bytes());
        bytes[13..17].copy_from_slice(&self.owner.to_le_bytes());
        bytes[17..21].copy_from_slice(&self.parent_sector.to_le_bytes());
        bytes
    }

    pub(super) fn of_bytes(bytes: &[u8; Self::SIZE]) -> Self {
        let word = |at: usize| [bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]];
        Self {
            kind: bytes[0],
            len_bytes: u32::from_le_bytes(word(1)),
            root: i32::from_le_bytes(word(5)),
            from_disk: u32::from_le_bytes(word(9)),
            owner: u32::from_le_bytes(word(13)),
            parent_sector: u32::from_le_bytes(word(17)),
        }
    }

    pub(super) const fn root(&self) -> u64 {
        (self.root as i64).cast_unsigned()
    }

    pub(super) fn parent(&self) -> u64 {
        u64::from(self.parent_sector) << SECTOR_BITS
    }

    pub(super) fn read_at(&self) -> Option<u64> {
        from_disk_of_code(u64::from(self.from_disk))
    }
}
