//! Plants a fault: edits the extent tree of an unmounted btrfs, so that the kernel reads it
//! without a complaint (the checksum is valid, on every copy, and each leaf passes the
//! kernel's tree-checker) and only a change of the extent can bring it to light.
//!
//! The few parts of the format that this needs are written out here rather than taken from
//! the monitor: what plants a fault must not share a mistake with what has to find it.

use std::path::Path;

use anyhow::{Context, Result, bail, ensure};

mod image;
mod leaf;

use image::Image;
use leaf::Leaf;

/// `BTRFS_EXTENT_ITEM_KEY` (kernel: `include/uapi/linux/btrfs_tree.h`; the same in all).
const EXTENT_ITEM: u8 = 168;

/// `BTRFS_EXTENT_DATA_REF_KEY`.
const EXTENT_DATA_REF: u8 = 178;

/// Bytes of `struct btrfs_extent_item`: refs, generation, flags, 8 each.
const EXTENT_ITEM_LEN: usize = 24;

/// Bytes of an inline `EXTENT_DATA_REF`: type 1, root 8, objectid 8, offset 8, count 4.
const INLINE_DATA_REF_LEN: usize = 29;

/// What is done to a data extent's item.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Edit {
    /// The back reference of this inode goes. Where the total is kept, the sum of the inline
    /// references is below it, which the tree-checker allows and a reader can see; where it is
    /// lowered, nothing is left to see.
    RemoveRef { inode: u64, keep_total: bool },
    /// The reference of this inode names another root.
    ChangeRoot { inode: u64, root: u64 },
    /// The item goes, with all its references.
    RemoveItem,
    /// Count and total are lowered by one.
    LowerCount { inode: u64 },
}

/// Edits the item of the data extent at `bytenr` on `device`, which must not be mounted.
pub(crate) fn plant(device: &Path, bytenr: u64, edit: Edit) -> Result<()> {
    let image = Image::open(device)?;
    let mut leaf = image.extent_leaf(bytenr)?;
    apply(&mut leaf, bytenr, edit)
        .with_context(|| format!("cannot plant {edit:?} at extent {bytenr}"))?;
    image.write(leaf)
}

/// Makes the root of the tree of roots unreadable, on every copy. The device must not be mounted.
pub(crate) fn spoil_tree_root(device: &Path) -> Result<()> {
    Image::open(device)?.spoil_tree_root()
}

fn apply(leaf: &mut Leaf, bytenr: u64, edit: Edit) -> Result<()> {
    let slot = leaf
        .items
        .iter()
        .position(|(key, _)| key.objectid == bytenr && key.kind == EXTENT_ITEM)
        .context("the leaf has no such item")?;
    if let Edit::RemoveItem = edit {
        ensure!(slot > 0, "the leaf's first item is its parent's key");
        leaf.items.remove(slot);
        return Ok(());
    }
    let item = &mut leaf.items[slot].1;
    match edit {
        Edit::RemoveItem => unreachable!("done above"),
        Edit::RemoveRef { inode, keep_total } => {
            let at = data_ref(item, inode)?;
            item.drain(at..at + INLINE_DATA_REF_LEN);
            if !keep_total {
                let total = get_u64(item, 0);
                put_u64(item, 0, total - 1);
            }
        }
        Edit::ChangeRoot { inode, root } => {
            let at = data_ref(item, inode)?;
            put_u64(item, at + 1, root);
        }
        Edit::LowerCount { inode } => {
            let at = data_ref(item, inode)? + 25;
            let count = u32::from_le_bytes(item[at..at + 4].try_into()?);
            ensure!(count > 1, "the count is {count}: nothing would be left");
            item[at..at + 4].copy_from_slice(&(count - 1).to_le_bytes());
            let total = get_u64(item, 0);
            put_u64(item, 0, total - 1);
        }
    }
    Ok(())
}

/// Where in the item the inline data reference of `inode` begins.
fn data_ref(item: &[u8], inode: u64) -> Result<usize> {
    let mut at = EXTENT_ITEM_LEN;
    while at + INLINE_DATA_REF_LEN <= item.len() {
        if item[at] != EXTENT_DATA_REF {
            bail!("the item has an inline reference of type {}", item[at]);
        }
        if get_u64(item, at + 9) == inode {
            return Ok(at);
        }
        at += INLINE_DATA_REF_LEN;
    }
    bail!("the item has no inline reference of inode {inode}")
}

fn get_u64(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

fn put_u64(bytes: &mut [u8], at: usize, value: u64) {
    bytes[at..at + 8].copy_from_slice(&value.to_le_bytes());
}

fn get_u32(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}
