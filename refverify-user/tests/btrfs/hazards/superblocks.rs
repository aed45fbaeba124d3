//! Superblocks, and what is refused because of them.

use refverify_user::btrfs::{
    format::{Superblock, SuperblockError, Unsupported},
    reader::{ExtentReader, ReaderError},
};

use super::{read, sound_device};
use crate::{
    image::{ALL, drive},
    synthetic::seal,
};

#[test]
fn a_superblock_of_nonsense_ends_in_an_error() {
    for (at, bytes, field) in [
        (48, 0_u64, "bytenr"),
        (80, 0, "root"),
        (80, 4097, "root"),
        (88, 1, "chunk_root"),
        (144, 4095 | 4096 << 32, "sectorsize"),
        (144, 4096 | 2048 << 32, "nodesize"),
        (144, 4096 | 5000 << 32, "nodesize"),
        (144, 4096 | (128 << 10) << 32, "nodesize"),
        (144, 0, "sectorsize"),
        (156, 2049 << 32, "sys_chunk_array_size"),
        (156, 0xffff_ffff << 32, "sys_chunk_array_size"),
        (164, 8, "chunk_root_generation"),
        (191, 8 << 56, "root_level"),
        (192, 0xff << 56, "chunk_root_level"),
    ] {
        let mut device = sound_device();
        device.edit_superblock(|block| block[at..at + 8].copy_from_slice(&bytes.to_le_bytes()));
        let failed = read(&device).failed;
        assert!(
            matches!(
                failed,
                Some(ReaderError::Superblock(SuperblockError::Nonsense { field: found, .. }))
                    if found == field
            ),
            "{field}: {failed:?}"
        );
    }
    let mut device = sound_device();
    device.edit_superblock(|block| block[160..164].copy_from_slice(&20_u32.to_le_bytes()));
    let failed = read(&device).failed;
    assert!(
        matches!(failed, Some(ReaderError::Superblock(SuperblockError::SystemChunk(_)))),
        "{failed:?}"
    );
}

#[test]
fn what_is_not_btrfs_is_named_so() {
    let zeroes = Superblock::parse(&[0; 4096]);
    assert_eq!(zeroes, Err(SuperblockError::NotBtrfs));
    assert_eq!(Superblock::parse(&[]), Err(SuperblockError::Short { len_bytes: 0 }));
    let mut device = sound_device();
    device.bytes[(64 << 10) + 64] ^= 1;
    assert_eq!(read(&device).failed, Some(ReaderError::Superblock(SuperblockError::NotBtrfs)));
}

#[test]
fn a_superblock_that_stays_torn_ends_in_an_error() {
    let mut device = sound_device();
    device.bytes[(64 << 10) + 4095] ^= 1;
    let told = read(&device);
    assert_eq!(told.failed, Some(ReaderError::Superblock(SuperblockError::Checksum)));
    assert!((5..20).contains(&told.reads), "{} tries", told.reads);
}

#[test]
fn unsupported_features_are_refused_by_name() {
    let refusal = |at: usize, value: u64| {
        let mut device = sound_device();
        device.edit_superblock(|block| block[at..at + 8].copy_from_slice(&value.to_le_bytes()));
        match read(&device).failed {
            Some(ReaderError::Unsupported(unsupported)) => unsupported.to_string(),
            Some(ReaderError::Superblock(SuperblockError::Unsupported(unsupported))) => {
                unsupported.to_string()
            }
            other => panic!("not refused: {other:?}"),
        }
    };
    for (bit, name) in
        [(13, "EXTENT_TREE_V2"), (15, "unknown"), (17, "REMAP_TREE"), (18, "unknown")]
    {
        let text = refusal(188, 1 | 1 << bit);
        assert!(text.contains(name) && text.contains(&bit.to_string()), "{text}");
    }
    for (bit, name) in [
        (33, "METADUMP"),
        (35, "CHANGING_FSID"),
        (36, "CHANGING_FSID_V2"),
        (38, "CHANGING_BG_TREE"),
        (39, "CHANGING_DATA_CSUM"),
        (40, "CHANGING_META_CSUM"),
        (50, "unknown"),
    ] {
        let text = refusal(56, 1 | 1 << bit);
        assert!(text.contains(name) && text.contains(&bit.to_string()), "{text}");
    }
    assert!(refusal(188, 0).contains("MIXED_BACKREF"));
    assert!(refusal(196, 9).contains("checksum type 9"));
    assert_eq!(
        refusal(144, 2048 | 4096 << 32),
        Unsupported::SectorSize { sectorsize: 2048 }.to_string()
    );
}

#[test]
fn a_superblock_that_goes_back_or_changes_its_fsid_ends_in_an_error() {
    let device = sound_device();
    let mut reader = ExtentReader::new(ALL, 0);
    assert_eq!(drive(&mut reader, |read| device.read(read)).done, Some(7));
    let mut older = device.clone();
    older.edit_superblock(|block| block[72] = 6);
    reader.restart(ALL, 0);
    let failed = drive(&mut reader, |read| older.read(read)).failed;
    assert_eq!(failed, Some(ReaderError::WentBack { before: 7, now: 6 }));
    let mut other = device;
    other.bytes[(64 << 10) + 32] ^= 1;
    seal(&mut other.bytes[64 << 10..68 << 10]);
    reader.restart(ALL, 0);
    let failed = drive(&mut reader, |read| other.read(read)).failed;
    assert!(matches!(failed, Some(ReaderError::OtherFileSystem { .. })));
}
