//! Checksums of superblock and tree blocks.

use super::Unsupported;

/// Bytes at the start of a block that are kept for the checksum (kernel: `BTRFS_CSUM_SIZE`).
const CSUM_LEN_BYTES: usize = 32;

/// The algorithm of a file system's checksums (kernel: `enum btrfs_csum_type`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChecksumType {
    /// CRC-32C, in the first 4 bytes.
    Crc32c,
}

impl ChecksumType {
    /// What `btrfs_super_block.csum_type` says.
    ///
    /// # Errors
    ///
    /// The type by its name, where it cannot be computed here.
    pub fn from_disk(csum_type: u16) -> Result<Self, Unsupported> {
        let name = match csum_type {
            0 => return Ok(Self::Crc32c),
            1 => "xxhash64",
            2 => "sha256",
            3 => "blake2b-256",
            _ => "unknown",
        };
        Err(Unsupported::Checksum { csum_type, name })
    }

    /// Whether the checksum at the start of `block` is that of the rest of it.
    pub fn matches(self, block: &[u8]) -> bool {
        let Some((stored, rest)) = block.split_at_checked(CSUM_LEN_BYTES) else {
            return false;
        };
        match self {
            Self::Crc32c => stored[..4] == crc32c::crc32c(rest).to_le_bytes(),
        }
    }
}
