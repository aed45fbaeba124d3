//! Checksums of superblock and tree blocks.

use blake2::{Blake2b, digest::consts::U32};
use sha2::{Digest, Sha256};
use twox_hash::XxHash64;

use super::Unsupported;

/// Bytes at the start of a block that are kept for the checksum (kernel: `BTRFS_CSUM_SIZE`).
const CSUM_LEN_BYTES: usize = 32;

/// The algorithm of a file system's checksums (kernel: `enum btrfs_csum_type`, and
/// `btrfs_csum_final` in `fs/btrfs/fs.c`, 7.2). The checksum fills the first bytes of its place,
/// as many as it has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChecksumType {
    /// CRC-32C, 4 bytes.
    Crc32c,
    /// XXH64 with seed 0, 8 bytes.
    Xxhash64,
    /// SHA-256, 32 bytes.
    Sha256,
    /// `BLAKE2b` of 32 bytes, without a key.
    Blake2b,
}

impl ChecksumType {
    /// What `btrfs_super_block.csum_type` says.
    ///
    /// # Errors
    ///
    /// A type that no kernel up to 7.3 knows.
    pub fn from_disk(csum_type: u16) -> Result<Self, Unsupported> {
        match csum_type {
            0 => Ok(Self::Crc32c),
            1 => Ok(Self::Xxhash64),
            2 => Ok(Self::Sha256),
            3 => Ok(Self::Blake2b),
            _ => Err(Unsupported::Checksum { csum_type }),
        }
    }

    /// Whether the checksum at the start of `block` is that of the rest of it.
    pub fn matches(self, block: &[u8]) -> bool {
        let Some((stored, rest)) = block.split_at_checked(CSUM_LEN_BYTES) else {
            return false;
        };
        match self {
            // The crate uses the processor's instruction where there is one.
            Self::Crc32c => stored[..4] == crc32c::crc32c(rest).to_le_bytes(),
            Self::Xxhash64 => stored[..8] == XxHash64::oneshot(0, rest).to_le_bytes(),
            Self::Sha256 => stored == &Sha256::digest(rest)[..],
            Self::Blake2b => stored == &Blake2b::<U32>::digest(rest)[..],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The kernel's own test vectors are of other inputs; these are of the algorithms' authors, or
    /// made with the command line tools of the same names: the checksum of three bytes, "abc".
    #[test]
    fn each_algorithm_is_the_one_of_its_name() {
        for (algorithm, hex) in [
            (ChecksumType::Crc32c, "b73f4b36"),
            (ChecksumType::Xxhash64, "990977adf52cbc44"),
            (
                ChecksumType::Sha256,
                "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad",
            ),
            (
                ChecksumType::Blake2b,
                "bddd813c634239723171ef3fee98579b94964e3bb1cb3e427262c8c068d52319",
            ),
        ] {
            let digits = |at: usize| u8::from_str_radix(&hex[at..at + 2], 16).expect("hex");
            let mut block = [0; CSUM_LEN_BYTES + 3];
            block[CSUM_LEN_BYTES..].copy_from_slice(b"abc");
            assert!(!algorithm.matches(&block));
            for at in (0..hex.len()).step_by(2) {
                block[at / 2] = digits(at);
            }
            assert!(algorithm.matches(&block), "{algorithm:?}");
            block[hex.len() / 2 - 1] ^= 1;
            assert!(!algorithm.matches(&block), "{algorithm:?}: the last byte counts");
        }
        assert!(!ChecksumType::Sha256.matches(&[0; 31]));
    }
}
