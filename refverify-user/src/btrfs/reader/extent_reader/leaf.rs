//! What is taken of a leaf, and of what need not be read.

use std::ops::Range;

use super::{EXTENT_ROOT_KEY, ExtentReader, Stage};
use crate::btrfs::{
    format::{ChunkMap, DeviceItem, Item, Key, Leaf, item_type, parse_root_item},
    objectid,
    reader::{ReaderError, ReaderStep, found::Found},
};

impl ExtentReader {
    pub(super) fn take_leaf(&mut self, leaf: &Leaf) -> Result<(), ReaderError> {
        let Some(superblock) = &self.found.superblock else { return Ok(()) };
        let (generation, sectorsize) = (superblock.generation, superblock.sectorsize);
        match &mut self.stage {
            Stage::Chunks { chunks, .. } => {
                let found = &mut self.found;
                leaf.items().try_for_each(|item| take_chunk_tree_item(&item, found, chunks))
            }
            Stage::Root { walk } => {
                let found_in = walk.root();
                let Some(item) = leaf.items().find(|item| item.key == EXTENT_ROOT_KEY) else {
                    return Ok(());
                };
                let root = parse_root_item(objectid::EXTENT_TREE, item.body, sectorsize)
                    .map_err(|reason| ReaderError::RootItem { generation, reason })?;
                self.found.extent_root = Some((found_in, root));
                Ok(())
            }
            Stage::Extents => {
                self.take_extent_leaf(leaf, generation);
                Ok(())
            }
            Stage::Superblock { .. } | Stage::TooOld | Stage::Ended => Ok(()),
        }
    }

    fn take_extent_leaf(&mut self, leaf: &Leaf, generation: u64) {
        let (Some(walk), Some(assembler)) = (&self.extents, &mut self.assembler) else { return };
        for item in leaf.items().filter(|item| walk.range().contains(&item.key)) {
            assembler.add(leaf.bytenr(), &item, &mut self.steps);
        }
        self.suspect = None;
        if let Some(upto_bytenr) = assembler.open_bytenr().filter(|&open| open > self.complete_upto)
        {
            self.complete_upto = upto_bytenr;
            self.steps.push_back(ReaderStep::Complete { upto_bytenr, generation });
        }
    }

    pub(super) fn pass_over(&mut self, keys: &Range<Key>) {
        let (Some(generation), Some(assembler)) = (self.told_generation, &mut self.assembler)
        else {
            return;
        };
        let range =
            keys.start.objectid.max(self.complete_upto)..keys.end.objectid.min(self.range.end);
        // Told at an older generation, and it is only the gap behind it that is not.
        if range.is_empty() {
            return;
        }
        assembler.pass_over(&mut self.steps);
        self.suspect = None;
        if range.start > self.complete_upto {
            let upto_bytenr = range.start;
            self.steps.push_back(ReaderStep::Complete { upto_bytenr, generation });
        }
        self.complete_upto = range.end;
        self.steps.push_back(ReaderStep::Unchanged { range, generation });
    }
}

/// Devices and chunks; the chunk tree holds nothing else.
fn take_chunk_tree_item(
    item: &Item,
    found: &mut Found,
    chunks: &mut ChunkMap,
) -> Result<(), ReaderError> {
    let Some(superblock) = &found.superblock else { return Ok(()) };
    let (generation, sectorsize) = (superblock.generation, superblock.sectorsize);
    match item.key.item_type {
        item_type::CHUNK_ITEM => chunks
            .insert(item.key, item.body, sectorsize)
            .map_err(|reason| ReaderError::Chunk { generation, reason }),
        item_type::DEV_ITEM => {
            let cut_off = ReaderError::Device { generation, devid: item.key.offset };
            found.add_device(DeviceItem::parse(item.body).ok_or(cut_off)?);
            Ok(())
        }
        _ => Ok(()),
    }
}
