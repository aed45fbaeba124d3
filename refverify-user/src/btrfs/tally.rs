//! What an extent tree holds, in numbers.

use std::collections::BTreeMap;

use super::{DiskExtent, ExtentKind, format::LEVELS_MAX};

/// Counts are kept of so many roots; the references of further ones are counted together.
const ROOTS_MAX: usize = 1 << 16;

/// Some extents.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Extents {
    /// How many.
    pub count: u64,
    /// Their lengths together.
    pub len_bytes: u64,
}

/// Some references.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Refs {
    /// How many different ones.
    pub keys: u64,
    /// Their counts together.
    pub count: u64,
}

/// The sums of an extent tree, or of a part of one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Extents of file data.
    pub data: Extents,
    /// Tree blocks, by their level.
    pub tree_blocks: [Extents; LEVELS_MAX as usize],
    /// References to data from inodes.
    pub data_direct: Refs,
    /// References to data from leaves.
    pub data_shared: Refs,
    /// References to tree blocks from roots.
    pub tree_direct: Refs,
    /// References to tree blocks from blocks above.
    pub tree_shared: Refs,
    /// Extents with a simple-quota owner.
    pub owners: u64,
    /// The counts of direct references by their root.
    pub roots: BTreeMap<u64, u64>,
    /// The counts of direct references of roots that are too many to be listed.
    pub other_roots: u64,
    /// The first and the last transaction that allocated one of the extents.
    pub allocated: Option<(u64, u64)>,
}

impl Tally {
    /// Counts one extent.
    pub fn add(&mut self, extent: &DiskExtent) {
        let (extents, direct, shared) = match extent.kind {
            ExtentKind::Data => {
                (Some(&mut self.data), &mut self.data_direct, &mut self.data_shared)
            }
            ExtentKind::TreeBlock { level } => (
                self.tree_blocks.get_mut(usize::from(level)),
                &mut self.tree_direct,
                &mut self.tree_shared,
            ),
        };
        if let Some(extents) = extents {
            extents.count += 1;
            extents.len_bytes = extents.len_bytes.saturating_add(extent.len_bytes);
        }
        for (key, count) in &extent.refs {
            let refs = if key.is_shared() { &mut *shared } else { &mut *direct };
            refs.keys += 1;
            refs.count += u64::from(*count);
            if !key.is_shared() {
                let (roots, others) = (&mut self.roots, &mut self.other_roots);
                add_to_root(roots, others, key.root, (*count).into());
            }
        }
        self.owners += u64::from(extent.owner_root.is_some());
        let (first, last) = self.allocated.unwrap_or((extent.generation, extent.generation));
        self.allocated = Some((first.min(extent.generation), last.max(extent.generation)));
    }

    /// How many extents there are.
    pub fn extents(&self) -> u64 {
        self.data.count + self.tree_blocks.iter().map(|level| level.count).sum::<u64>()
    }
}

fn add_to_root(roots: &mut BTreeMap<u64, u64>, others: &mut u64, root: u64, count: u64) {
    if let Some(sum) = roots.get_mut(&root) {
        *sum += count;
    } else if roots.len() < ROOTS_MAX {
        roots.insert(root, count);
    } else {
        *others += count;
    }
}
