//! Bad input gets one clear sentence and exit status 1.

use std::{
    fs::{File, OpenOptions},
    os::unix::{fs::FileExt, process::CommandExt},
    process::Command,
    time::Duration,
};

use anyhow::{Result, ensure};

use super::{Outcome, Place, scratch::Scratch};
use crate::command;

/// How long the refusal may take.
const LIMIT: Duration = Duration::from_secs(30);

/// `BTRFS_FEATURE_INCOMPAT_EXTENT_TREE_V2`: an extent tree of another kind.
const EXTENT_TREE_V2: u64 = 1 << 13;

/// Where in the superblock: `incompat_flags` (kernel: `btrfs_super_block`).
const INCOMPAT_FLAGS_AT: usize = 188;

pub(super) fn run(place: &Place) -> Result<Outcome> {
    let plain = place.dir().join("plain");
    File::create(&plain)?;
    refused(place, &plain.to_string_lossy(), None, "block device")?;
    refused(place, "/dev/no-such-device", None, "/dev/no-such-device")?;

    let scratch = Scratch::new(place, 512 << 20)?;
    let device = scratch.device_name();
    wipe(device)?;
    refused(place, device, None, "btrfs")?;

    scratch.mkfs(&[])?;
    refused(place, device, Some(65534), "root")?;

    set_extent_tree_v2(device)?;
    refused(place, device, None, "extent_tree_v2")?;
    Ok(Outcome::Passed)
}

/// Starts the monitor, perhaps as another user, and expects a refusal that names `word`.
fn refused(place: &Place, device: &str, user: Option<u32>, word: &str) -> Result<()> {
    let mut command = Command::new(&place.monitor);
    command.arg(device);
    if let Some(user) = user {
        command.uid(user).gid(user);
    }
    let done = command::finish(&mut command, LIMIT)?;
    let said = done.stderr.trim();
    println!("{device}: {said}");
    ensure!(done.status.code() == Some(1), "{device}: {} instead of 1", done.status);
    ensure!(said.lines().count() == 1, "{device}: more or less than one sentence: {said}");
    ensure!(said.to_lowercase().contains(word), "{device}: `{said}` does not say {word}");
    ensure!(done.stdout.is_empty(), "{device}: it said on standard output: {}", done.stdout);
    Ok(())
}

fn wipe(device: &str) -> Result<()> {
    let file = OpenOptions::new().write(true).open(device)?;
    file.write_all_at(&[0; 4096], 64 << 10)?;
    Ok(file.sync_all()?)
}

/// Sets the flag in the superblock, with a valid checksum.
fn set_extent_tree_v2(device: &str) -> Result<()> {
    let file = OpenOptions::new().read(true).write(true).open(device)?;
    let mut superblock = vec![0; 4096];
    file.read_exact_at(&mut superblock, 64 << 10)?;
    let field = &mut superblock[INCOMPAT_FLAGS_AT..INCOMPAT_FLAGS_AT + 8];
    let flags = u64::from_le_bytes((&*field).try_into()?) | EXTENT_TREE_V2;
    field.copy_from_slice(&flags.to_le_bytes());
    let checksum = crc32c::crc32c(&superblock[32..]);
    superblock[..4].copy_from_slice(&checksum.to_le_bytes());
    file.write_all_at(&superblock, 64 << 10)?;
    Ok(file.sync_all()?)
}
