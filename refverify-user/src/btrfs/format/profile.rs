//! Profiles: how a chunk spreads over its stripes.

/// A chunk's profile (kernel: `btrfs_raid_array` in `fs/btrfs/volumes.c`, 6.12).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Profile {
    /// One copy, in one piece.
    Single,
    /// Whole copies, so many: DUP, RAID1, RAID1C3, RAID1C4.
    Copies(u16),
    /// Striped, without any redundancy.
    Raid0,
    /// Striped, each stripe twice.
    Raid10,
    /// Striped, with so many stripes of parity in each row: RAID5 and RAID6.
    Parity(u16),
}

/// How many copies RAID10 has: the number of stripes that belong together.
pub(super) const RAID10_COPIES: u16 = 2;

impl Profile {
    /// From `BTRFS_BLOCK_GROUP_*`: the bits of `BTRFS_BLOCK_GROUP_PROFILE_MASK`, and those of the
    /// feature `REMAP_TREE`.
    ///
    /// # Errors
    ///
    /// The name of what cannot be mapped.
    pub(super) const fn from_flags(flags: u64) -> Result<Self, &'static str> {
        Ok(match flags & !0b111 {
            0 => Self::Single,
            0x08 => Self::Raid0,
            0x10 | 0x20 => Self::Copies(2),
            0x40 => Self::Raid10,
            0x80 => Self::Parity(1),
            0x100 => Self::Parity(2),
            0x200 => Self::Copies(3),
            0x400 => Self::Copies(4),
            0x800 => return Err("REMAPPED"),
            0x1000 => return Err("METADATA_REMAP"),
            _ => return Err("unknown"),
        })
    }

    /// Whether a chunk of this profile can have so many stripes (kernel:
    /// `btrfs_check_chunk_valid`).
    pub(super) const fn can_have(self, num_stripes: u16, sub_stripes: u16) -> bool {
        match self {
            Self::Single => num_stripes == 1,
            Self::Copies(copies) => num_stripes == copies,
            Self::Raid0 => num_stripes >= 1,
            Self::Raid10 => {
                sub_stripes == RAID10_COPIES
                    && num_stripes >= RAID10_COPIES
                    && num_stripes.is_multiple_of(RAID10_COPIES)
            }
            Self::Parity(parities) => num_stripes > parities,
        }
    }
}
