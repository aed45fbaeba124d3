//! Reads past the page cache. btrfs writes metadata past the block device's page cache, so a
//! buffered read of a mounted device goes stale as soon as a block's address is used again.

use std::{
    fs::{File, OpenOptions},
    io::{self, Seek, SeekFrom},
    os::unix::fs::{FileExt, OpenOptionsExt},
    path::Path,
};

use bytes::Bytes;
use rustix::fs::OFlags;

use crate::feed::BlockRequest;

/// What offsets, lengths and memory of a read are aligned to: enough for all block sizes that
/// btrfs runs on.
pub(super) const ALIGN: usize = 4096;

/// Opens for reading with `O_DIRECT`.
pub(super) fn open(path: &Path) -> io::Result<File> {
    let flags = OFlags::DIRECT.bits().cast_signed();
    OpenOptions::new().read(true).custom_flags(flags).open(path)
}

pub(super) fn size_of(mut file: &File) -> io::Result<u64> {
    file.seek(SeekFrom::End(0))
}

/// Whether a part of a device may be read: aligned, within bounds, not too long.
pub(super) fn is_allowed(offset: u64, len_bytes: u32, size: u64) -> bool {
    let align = ALIGN as u64;
    let len = u64::from(len_bytes);
    let end = offset.checked_add(len);
    len_bytes > 0
        && len_bytes <= BlockRequest::LEN_MAX_BYTES
        && offset.is_multiple_of(align)
        && len.is_multiple_of(align)
        && end.is_some_and(|end| end <= size)
}

/// Reads into memory that is aligned as direct reads want it: a longer vector, of which the
/// aligned part is used.
pub(super) fn read(file: &File, offset: u64, len_bytes: u32) -> io::Result<Bytes> {
    let len = usize::try_from(len_bytes).map_err(io::Error::other)?;
    let mut buffer = vec![0; len + ALIGN];
    let start = buffer.as_ptr().align_offset(ALIGN);
    let aligned = buffer.get_mut(start..start + len).ok_or(io::ErrorKind::OutOfMemory)?;
    file.read_exact_at(aligned, offset)?;
    Ok(Bytes::from(buffer).slice(start..start + len))
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    fn number_at(offset: usize) -> u8 {
        u8::try_from(offset / 512 % 251).expect("below 256")
    }

    /// A file of numbered bytes on a file system that takes direct reads, or none.
    fn numbered_file(len: usize) -> Option<(tempfile::TempPath, File)> {
        // The build directory is on a disk, where /tmp may be in memory.
        let mut file = tempfile::NamedTempFile::new_in(env!("CARGO_MANIFEST_DIR")).ok()?;
        let bytes: Vec<u8> = (0..len).map(number_at).collect();
        file.write_all(&bytes).ok()?;
        file.as_file().sync_all().ok()?;
        let path = file.into_temp_path();
        let direct = open(&path).ok()?;
        Some((path, direct))
    }

    #[test]
    fn a_direct_read_lands_aligned_and_returns_exactly_the_bytes_asked_for() {
        let Some((_path, file)) = numbered_file(1 << 18) else {
            eprintln!(
                "SKIPPED: no file system with direct reads under {}",
                env!("CARGO_MANIFEST_DIR")
            );
            return;
        };
        for (offset, len) in [(0, 4096), (65536, 4096), (4096, 16384), (131_072, 131_072)] {
            let bytes = read(&file, offset, len).expect("readable");
            assert_eq!(bytes.len(), len as usize);
            assert_eq!(bytes.as_ptr().align_offset(ALIGN), 0);
            assert_eq!(bytes[0], number_at(usize::try_from(offset).expect("small")));
        }
    }

    #[test]
    fn a_read_past_the_end_is_an_error_not_a_short_answer() {
        let Some((_path, file)) = numbered_file(8192) else { return };
        assert!(read(&file, 4096, 8192).is_err());
    }

    #[test]
    fn requests_that_are_unaligned_too_long_or_outside_are_refused() {
        let size = 1 << 30;
        assert!(is_allowed(0, 4096, size));
        assert!(is_allowed(size - 4096, 4096, size));
        for (offset, len) in [
            (1, 4096),
            (512, 4096),
            (0, 0),
            (0, 512),
            (0, BlockRequest::LEN_MAX_BYTES + 4096),
            (size, 4096),
            (size - 4096, 8192),
            (u64::MAX - 4095, 4096),
        ] {
            assert!(!is_allowed(offset, len, size), "{offset} {len}");
        }
    }
}
