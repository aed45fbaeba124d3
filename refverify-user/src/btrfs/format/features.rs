//! Which file systems can be read: what is not supported is refused, by name.

use super::Superblock;

/// A file system that is sound, as far as can be told, and that this program cannot read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unsupported {
    /// An incompatible feature.
    #[error("the file system uses the feature {name} (incompat bit {bit}), which is not supported")]
    Incompat {
        /// The bit's number.
        bit: u32,
        /// Its name in the kernel's headers, without the prefix.
        name: &'static str,
    },
    /// A superblock flag that tells of an unfinished conversion or of a special device.
    #[error("the superblock has the flag {name} (bit {bit}), which is not supported")]
    SuperFlag {
        /// The bit's number.
        bit: u32,
        /// Its name in the kernel's headers, without the prefix.
        name: &'static str,
    },
    /// The extent tree is in the format of before 2009.
    #[error(
        "the file system lacks the feature MIXED_BACKREF: its extent tree is in the old format"
    )]
    OldExtentTree,
    /// A checksum that is not known.
    #[error("the file system's checksum type {csum_type} is not known")]
    Checksum {
        /// As in the superblock.
        csum_type: u16,
    },
    /// A sector size that only debugging kernels have.
    #[error("the file system's sector size of {sectorsize} bytes is not supported")]
    SectorSize {
        /// In bytes.
        sectorsize: u32,
    },
    /// A profile of a chunk that holds tree blocks.
    #[error(
        "the chunk at {logical} has the profile {profile}, which is not supported for metadata"
    )]
    Profile {
        /// Where the chunk begins.
        logical: u64,
        /// The profile's name.
        profile: &'static str,
    },
}

/// What is known of an incompat bit.
enum Policy {
    Handled,
    Refused(&'static str),
}

/// `BTRFS_FEATURE_INCOMPAT_*`, bit by bit, up to kernel 7.3.
const INCOMPAT: [Policy; 18] = [
    Policy::Handled, // MIXED_BACKREF
    Policy::Handled, // DEFAULT_SUBVOL
    Policy::Handled, // MIXED_GROUPS
    Policy::Handled, // COMPRESS_LZO
    Policy::Handled, // COMPRESS_ZSTD
    Policy::Handled, // BIG_METADATA
    Policy::Handled, // EXTENDED_IREF
    Policy::Handled, // RAID56
    Policy::Handled, // SKINNY_METADATA
    Policy::Handled, // NO_HOLES
    Policy::Handled, // METADATA_UUID
    Policy::Handled, // RAID1C34
    // The superblock does not stay at 64 KiB: whoever reads the device has to find it.
    Policy::Handled, // ZONED
    // More than one extent tree.
    Policy::Refused("EXTENT_TREE_V2"),
    // Data stripes only; tree blocks are mapped by chunks as ever.
    Policy::Handled, // RAID_STRIPE_TREE
    Policy::Refused("unknown"),
    Policy::Handled, // SIMPLE_QUOTA
    // Metadata too can be anywhere else than its chunk says.
    Policy::Refused("REMAP_TREE"),
];

/// `BTRFS_FEATURE_INCOMPAT_MIXED_BACKREF`.
const MIXED_BACKREF: u64 = 1;

/// Superblock flags that kernels accept and that do not change how a tree is read: WRITTEN,
/// RELOC (`BTRFS_HEADER_FLAG_*`), ERROR, and SEEDING: a file system that others are based on.
const SUPER_FLAGS_HANDLED: u64 = 1 << 32 | 0b111;

/// Whether this program can read the file system.
///
/// # Errors
///
/// The first thing about it that is not supported.
pub fn check(superblock: &Superblock) -> Result<(), Unsupported> {
    if superblock.incompat_flags & MIXED_BACKREF == 0 {
        return Err(Unsupported::OldExtentTree);
    }
    bits(superblock.incompat_flags).try_for_each(check_incompat)?;
    if let Some(bit) = bits(superblock.super_flags & !SUPER_FLAGS_HANDLED).next() {
        return Err(Unsupported::SuperFlag { bit, name: super_flag_name(bit) });
    }
    // Kernels with CONFIG_BTRFS_EXPERIMENTAL take 2048; O_DIRECT reads would need care.
    if superblock.sectorsize < 4096 {
        return Err(Unsupported::SectorSize { sectorsize: superblock.sectorsize });
    }
    superblock.sys_chunks.check_profiles()
}

fn check_incompat(bit: u32) -> Result<(), Unsupported> {
    match INCOMPAT.get(bit as usize) {
        Some(Policy::Handled) => Ok(()),
        Some(Policy::Refused(name)) => Err(Unsupported::Incompat { bit, name }),
        None => Err(Unsupported::Incompat { bit, name: "unknown" }),
    }
}

/// `BTRFS_SUPER_FLAG_*` (kernel: `include/uapi/linux/btrfs_tree.h`).
fn super_flag_name(bit: u32) -> &'static str {
    match bit {
        33 => "METADUMP",
        34 => "METADUMP_V2",
        35 => "CHANGING_FSID",
        36 => "CHANGING_FSID_V2",
        38 => "CHANGING_BG_TREE",
        39 => "CHANGING_DATA_CSUM",
        40 => "CHANGING_META_CSUM",
        _ => "unknown",
    }
}

/// The numbers of the bits that are set, lowest first.
fn bits(flags: u64) -> impl Iterator<Item = u32> {
    (0..u64::BITS).filter(move |bit| flags & (1 << bit) != 0)
}
