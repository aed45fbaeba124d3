//! The references of an extent in few bytes, each relative to the one before it.

use super::{
    context::Context,
    varint::{Reader, put_signed, put_signed_sectors, put_varint},
};
use crate::btrfs::{ExtentKind, RefKey};

/// The count follows; else it is 1.
const REF_COUNT: u8 = 0x01;
const REF_SHARED: u8 = 0x02;
/// As the direct reference before, or the context's.
const REF_SAME_ROOT: u8 = 0x04;
/// As the direct reference before; else relative to it, or to the context's. The owner of a
/// tree block's reference is its level, and needs no telling.
const REF_SAME_OWNER: u8 = 0x08;
/// As the direct reference before, or 0.
const REF_SAME_OFFSET: u8 = 0x10;
/// Of no shape that btrfs has: its four numbers follow.
const REF_IRREGULAR: u8 = 0x20;

/// What the next reference is written relative to.
pub(super) struct Last {
    root: u64,
    owner: u64,
    offset: u64,
    parent: u64,
}

impl Last {
    pub(super) fn new(context: &Context) -> Self {
        Self {
            root: context.root(),
            owner: u64::from(context.owner),
            offset: 0,
            parent: context.parent(),
        }
    }

    /// Appends a reference and its count.
    pub(super) fn put_ref(
        &mut self,
        out: &mut Vec<u8>,
        key: &RefKey,
        count: u64,
        kind: ExtentKind,
    ) {
        let head_at = out.len();
        out.push(0);
        let mut head = if !is_regular(key, kind) {
            for value in [key.root, key.parent, key.owner, key.offset] {
                put_varint(out, value);
            }
            REF_IRREGULAR
        } else if key.is_shared() {
            put_signed_sectors(out, key.parent.wrapping_sub(self.parent));
            self.parent = key.parent;
            REF_SHARED
        } else {
            self.put_direct(out, key, kind)
        };
        if count != 1 {
            head |= REF_COUNT;
            put_varint(out, count);
        }
        out[head_at] = head;
    }

    fn put_direct(&mut self, out: &mut Vec<u8>, key: &RefKey, kind: ExtentKind) -> u8 {
        let mut head = 0;
        if key.root == self.root {
            head |= REF_SAME_ROOT;
        } else {
            put_signed(out, key.root);
            self.root = key.root;
        }
        if kind != ExtentKind::Data {
            return head;
        }
        if key.owner == self.owner {
            head |= REF_SAME_OWNER;
        } else {
            put_signed(out, key.owner.wrapping_sub(self.owner));
            self.owner = key.owner;
        }
        if key.offset == self.offset {
            head |= REF_SAME_OFFSET;
        } else {
            put_signed_sectors(out, key.offset);
            self.offset = key.offset;
        }
        head
    }

    /// Reads what [`Self::put_ref`] wrote.
    pub(super) fn read_ref(
        &mut self,
        reader: &mut Reader<'_>,
        kind: ExtentKind,
    ) -> Option<(RefKey, u64)> {
        let head = reader.byte()?;
        let key = if head & REF_IRREGULAR != 0 {
            RefKey {
                root: reader.varint()?,
                parent: reader.varint()?,
                owner: reader.varint()?,
                offset: reader.varint()?,
            }
        } else if head & REF_SHARED != 0 {
            self.parent = self.parent.wrapping_add(reader.signed_sectors()?);
            RefKey { root: 0, parent: self.parent, owner: level_of(kind), offset: 0 }
        } else {
            self.read_direct(reader, head, kind)?
        };
        let count = if head & REF_COUNT == 0 { 1 } else { reader.varint()? };
        Some((key, count))
    }

    fn read_direct(
        &mut self,
        reader: &mut Reader<'_>,
        head: u8,
        kind: ExtentKind,
    ) -> Option<RefKey> {
        if head & REF_SAME_ROOT == 0 {
            self.root = reader.signed()?;
        }
        if kind != ExtentKind::Data {
            return Some(RefKey { root: self.root, parent: 0, owner: level_of(kind), offset: 0 });
        }
        if head & REF_SAME_OWNER == 0 {
            self.owner = self.owner.wrapping_add(reader.signed()?);
        }
        if head & REF_SAME_OFFSET == 0 {
            self.offset = reader.signed_sectors()?;
        }
        Some(RefKey { root: self.root, parent: 0, owner: self.owner, offset: self.offset })
    }
}

/// Whether btrfs has references of this shape (see [`RefKey`]), so that what the shape tells
/// need not be written.
pub(super) const fn is_regular(key: &RefKey, kind: ExtentKind) -> bool {
    match kind {
        ExtentKind::Data if key.parent == 0 => true,
        ExtentKind::Data => key.root == 0 && key.owner == 0 && key.offset == 0,
        ExtentKind::TreeBlock { level } => {
            key.owner == level as u64 && key.offset == 0 && (key.parent == 0 || key.root == 0)
        }
    }
}

const fn level_of(kind: ExtentKind) -> u64 {
    match kind {
        ExtentKind::Data => 0,
        ExtentKind::TreeBlock { level } => level as u64,
    }
}
