//! An extent in few bytes.
//!
//! An extent is written relative to a [`Context`]: what most extents of one page have in
//! common. Most then need their length and one or two small numbers. The form:
//!
//! ```text
//! entry  = first [length] rest
//! first  = SAME_LEN: as long as the context says; else `length`
//!          | PLAIN: the rest is that of a plain extent, else
//!          | flags: what the rest has
//! rest   = plain:  data: owner relative to the context's, file offset
//!                  tree block: nothing
//!          else:   what the flags announce, in the order of the constants; references
//! ```
//!
//! A plain extent has one reference, held once, direct, from the context's root; kind and
//! from-disk as the context, no action so far, and, for a tree block, its level as owner.

use super::{
    Extent, Refs,
    codes::{kind_code, kind_of_code, put_from_disk, read_from_disk},
    context::Context,
    references::{Last, is_regular},
    varint::{Reader, put_sectors, put_signed, put_signed_sectors, put_varint},
};
use crate::btrfs::{ExtentKind, RefKey};

const PLAIN: u8 = 0x80;
const SAME_LEN: u8 = 0x40;
/// From-disk follows; else it is the context's.
const HAS_FROM_DISK: u8 = 0x01;
/// The kind follows; else it is the context's.
const HAS_KIND: u8 = 0x02;
/// The number of actions follows; else it is 0.
const HAS_ACTIONS: u8 = 0x04;
/// The total follows; else it is the sum of the counts.
const HAS_TOTAL: u8 = 0x08;
/// The number of references follows; else it is 1.
const HAS_REFS: u8 = 0x10;
/// Nothing else is here: the extent is kept elsewhere, whole.
const SPILLED: u8 = 0x20;

/// The largest entry that a page holds; what is larger is spilled.
pub(super) const ENTRY_MAX: usize = 96;

/// Appends an extent.
pub(super) fn put_entry(out: &mut Vec<u8>, extent: &Extent, context: &Context) {
    let first_at = out.len();
    out.push(0);
    let mut first = 0;
    if extent.len_bytes == u64::from(context.len_bytes) {
        first |= SAME_LEN;
    } else {
        put_sectors(out, extent.len_bytes);
    }
    first |= match plain_ref(extent, context) {
        Some(key) => put_plain(out, &key, extent.kind, context),
        None => put_full(out, extent, context),
    };
    out[first_at] = first;
}

/// Appends an entry that says that the extent is kept elsewhere.
pub(super) fn put_spilled(out: &mut Vec<u8>) {
    out.push(SPILLED);
}

fn plain_ref(extent: &Extent, context: &Context) -> Option<RefKey> {
    let &(key, count) = extent.refs.single()?;
    let is_plain = count == 1
        && extent.total_refs == 1
        && extent.actions == 0
        && kind_code(extent.kind) == u64::from(context.kind)
        && extent.from_disk == context.read_at()
        && !key.is_shared()
        && key.root == context.root()
        && is_regular(&key, extent.kind);
    is_plain.then_some(key)
}

fn put_plain(out: &mut Vec<u8>, key: &RefKey, kind: ExtentKind, context: &Context) -> u8 {
    if kind == ExtentKind::Data {
        put_signed(out, key.owner.wrapping_sub(u64::from(context.owner)));
        put_signed_sectors(out, key.offset);
    }
    PLAIN
}

/// Appends what is not plain; returns its flags.
fn put_full(out: &mut Vec<u8>, extent: &Extent, context: &Context) -> u8 {
    let mut flags = 0;
    if extent.from_disk != context.read_at() {
        flags |= HAS_FROM_DISK;
        put_from_disk(out, extent.from_disk);
    }
    if kind_code(extent.kind) != u64::from(context.kind) {
        flags |= HAS_KIND;
        put_varint(out, kind_code(extent.kind));
    }
    if extent.actions != 0 {
        flags |= HAS_ACTIONS;
        put_varint(out, extent.actions);
    }
    let refs = &extent.refs;
    if extent.total_refs != sum_of_counts(refs) {
        flags |= HAS_TOTAL;
        put_varint(out, extent.total_refs);
    }
    if refs.len() != 1 {
        flags |= HAS_REFS;
        put_varint(out, refs.len() as u64);
    }
    let mut last = Last::new(context);
    refs.each(|key, count| last.put_ref(out, key, count, extent.kind));
    flags
}

fn sum_of_counts(refs: &Refs) -> u64 {
    let mut sum = 0_u64;
    refs.each(|_, count| sum = sum.wrapping_add(count));
    sum
}

/// What an entry says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Found {
    /// The extent is all here.
    Here,
    /// It is kept elsewhere.
    Spilled,
}

/// Reads an entry into `extent`, which keeps what it has allocated. `None` is no entry.
pub(super) fn read_entry(bytes: &[u8], context: &Context, extent: &mut Extent) -> Option<Found> {
    let mut reader = Reader::new(bytes, 0);
    let first = reader.byte()?;
    extent.refs.clear();
    if first == SPILLED {
        return Some(Found::Spilled);
    }
    extent.len_bytes =
        if first & SAME_LEN != 0 { u64::from(context.len_bytes) } else { reader.sectors()? };
    if first & PLAIN != 0 {
        read_plain(&mut reader, context, extent)?;
    } else {
        read_full(&mut reader, first, context, extent)?;
    }
    Some(Found::Here)
}

fn read_plain(reader: &mut Reader<'_>, context: &Context, extent: &mut Extent) -> Option<()> {
    extent.kind = kind_of_code(u64::from(context.kind))?;
    extent.from_disk = context.read_at();
    extent.total_refs = 1;
    extent.actions = 0;
    let (owner, offset) = match extent.kind {
        ExtentKind::Data => {
            (u64::from(context.owner).wrapping_add(reader.signed()?), reader.signed_sectors()?)
        }
        ExtentKind::TreeBlock { level } => (u64::from(level), 0),
    };
    extent.refs.add(RefKey { root: context.root(), parent: 0, owner, offset }, 1);
    Some(())
}

fn read_full(
    reader: &mut Reader<'_>,
    flags: u8,
    context: &Context,
    extent: &mut Extent,
) -> Option<()> {
    let has = |flag: u8| flags & flag != 0;
    extent.from_disk =
        if has(HAS_FROM_DISK) { read_from_disk(reader).ok()? } else { context.read_at() };
    let kind = if has(HAS_KIND) { reader.varint()? } else { u64::from(context.kind) };
    extent.kind = kind_of_code(kind)?;
    extent.actions = if has(HAS_ACTIONS) { reader.varint()? } else { 0 };
    let total = if has(HAS_TOTAL) { Some(reader.varint()?) } else { None };
    let count = if has(HAS_REFS) { reader.varint()? } else { 1 };
    let mut last = Last::new(context);
    for _ in 0..count {
        let (key, count) = last.read_ref(reader, extent.kind)?;
        extent.refs.add(key, count);
    }
    extent.total_refs = total.unwrap_or_else(|| sum_of_counts(&extent.refs));
    Some(())
}

/// Reads whatever the bytes are as an entry, for fuzzing: nothing may panic, and what is read
/// must come back when it is written again.
pub(super) fn read_anything(bytes: &[u8]) {
    let Some((context, bytes)) = bytes.split_first_chunk() else { return };
    let context = Context::of_bytes(context);
    let mut extent = Extent::default();
    if read_entry(bytes, &context, &mut extent) == Some(Found::Here) {
        let mut again = Vec::new();
        put_entry(&mut again, &extent, &context);
        let mut found = Extent::default();
        let read = read_entry(&again, &context, &mut found);
        assert_eq!((read, &found), (Some(Found::Here), &extent), "an extent changed on its way");
    }
}

#[cfg(test)]
mod tests;
