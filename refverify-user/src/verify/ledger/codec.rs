//! An extent in few bytes.
//!
//! An extent is written relative to a [`Context`]: what most extents of one page have in
//! common. Most then need their place and one or two small numbers. The form:
//!
//! ```text
//! entry  = head body
//! head   = first [size] [distance] [length]
//! first  = size of the entry in the low five bits (0: the next byte is the size)
//!          | ADJACENT: begins where the entry before ends; else `distance` from its begin
//!          | SAME_LEN: as long as the context says; else `length`
//!          | PLAIN: the body is that of a plain extent
//! body   = plain:  data: owner relative to the context's, file offset
//!                  tree block: nothing
//!          else:   flags, then what they announce: see the constants
//! ```
//!
//! A plain extent has one reference, held once, direct, from the context's root; kind and
//! from-disk as the context, no action so far, and, for a tree block, its level as owner.

use super::{
    Extent, Refs,
    varint::{Reader, Short, put_sectors, put_signed, put_signed_sectors, put_varint, sectors_len},
};
use crate::btrfs::{ExtentKind, RefKey};

/// What the extents of one page most likely have in common. It may be anything: it only
/// makes what agrees with it small.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Context {
    /// The kind, as [`kind_code`] has it.
    pub(super) kind: u8,
    pub(super) len_bytes: u32,
    /// The root of direct references, as a signed number.
    pub(super) root: i32,
    /// The generation at which they were read, and one; 0 is not from disk.
    pub(super) from_disk: u32,
    /// About this owner, as direct references of data have it.
    pub(super) owner: u32,
    /// Parents of shared references lie near this sector.
    pub(super) parent_sector: u32,
}

impl Context {
    /// How many bytes it takes in a page.
    pub(super) const SIZE: usize = 21;

    /// The context in which this extent is small.
    pub(super) fn of(extent: &Extent) -> Self {
        let mut context = Self {
            kind: kind_code(extent.kind).try_into().unwrap_or(0),
            len_bytes: extent.len_bytes.try_into().unwrap_or(0),
            from_disk: from_disk_code(extent.from_disk)
                .and_then(|code| code.try_into().ok())
                .unwrap_or(0),
            ..Self::default()
        };
        for (key, _) in extent.refs.iter().take(8) {
            if key.is_shared() {
                context.parent_sector = (key.parent >> 12).try_into().unwrap_or(0);
            } else {
                context.root = key.root.cast_signed().try_into().unwrap_or(0);
                context.owner = key.owner.try_into().unwrap_or(0);
            }
        }
        context
    }

    pub(super) fn bytes(&self) -> [u8; Self::SIZE] {
        let mut bytes = [0; Self::SIZE];
        bytes[0] = self.kind;
        bytes[1..5].copy_from_slice(&self.len_bytes.to_le_bytes());
        bytes[5..9].copy_from_slice(&self.root.to_le_bytes());
        bytes[9..13].copy_from_slice(&self.from_disk.to_le_bytes());
        bytes[13..17].copy_from_slice(&self.owner.to_le_bytes());
        bytes[17..21].copy_from_slice(&self.parent_sector.to_le_bytes());
        bytes
    }

    pub(super) fn of_bytes(bytes: &[u8; Self::SIZE]) -> Self {
        let word = |at: usize| [bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]];
        Self {
            kind: bytes[0],
            len_bytes: u32::from_le_bytes(word(1)),
            root: i32::from_le_bytes(word(5)),
            from_disk: u32::from_le_bytes(word(9)),
            owner: u32::from_le_bytes(word(13)),
            parent_sector: u32::from_le_bytes(word(17)),
        }
    }

    const fn root(&self) -> u64 {
        (self.root as i64).cast_unsigned()
    }

    fn parent(&self) -> u64 {
        u64::from(self.parent_sector) << 12
    }

    fn read_at(&self) -> Option<u64> {
        from_disk_of_code(u64::from(self.from_disk))
    }
}

const SIZE_MASK: u8 = 0x1f;
const ADJACENT: u8 = 0x20;
const SAME_LEN: u8 = 0x40;
const PLAIN: u8 = 0x80;

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

/// The largest entry that a page holds; what is larger is spilled.
pub(super) const ENTRY_MAX: usize = 96;

/// No head is longer: first, size, distance and length.
pub(super) const HEAD_MAX: usize = 1 + 1 + 10 + 10;

/// Where an entry begins, relative to which the next is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Before {
    pub(super) bytenr: u64,
    pub(super) len_bytes: u64,
}

/// The head of an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Head {
    /// Of the whole entry.
    pub(super) size: usize,
    /// Where its body begins, from its first byte.
    pub(super) body: usize,
    pub(super) bytenr: u64,
    pub(super) len_bytes: u64,
    pub(super) is_plain: bool,
}

impl Head {
    /// Reads the head of the entry at `at`.
    #[inline]
    pub(super) fn read(bytes: &[u8], at: usize, before: Before, context: &Context) -> Option<Self> {
        let len_bytes = u64::from(context.len_bytes);
        if let Some(&near) = bytes.get(at..)?.first_chunk()
            && let Some(near) = Near::read(near, before, len_bytes)
            && at + near.size <= bytes.len()
        {
            let Near { first, size, body, next: Before { bytenr, len_bytes } } = near;
            return Some(Self { size, body, bytenr, len_bytes, is_plain: first & PLAIN != 0 });
        }
        Self::read_any(bytes, at, before, context)
    }

    #[inline(never)]
    fn read_any(bytes: &[u8], at: usize, before: Before, context: &Context) -> Option<Self> {
        let mut reader = Reader::new(bytes, at);
        let first = reader.byte()?;
        let size = match first & SIZE_MASK {
            0 => usize::from(reader.byte()?),
            size => usize::from(size),
        };
        let distance = if first & ADJACENT != 0 { before.len_bytes } else { reader.sectors()? };
        let len_bytes =
            if first & SAME_LEN != 0 { u64::from(context.len_bytes) } else { reader.sectors()? };
        let body = reader.at() - at;
        (body <= size && at + size <= bytes.len()).then_some(Self {
            size,
            body,
            bytenr: before.bytenr.wrapping_add(distance),
            len_bytes,
            is_plain: first & PLAIN != 0,
        })
    }

    /// As what the next entry is written relative to.
    pub(super) const fn before_next(&self) -> Before {
        Before { bytenr: self.bytenr, len_bytes: self.len_bytes }
    }
}

/// What it takes to go on from an entry whose head takes few bytes, as nearly all do.
#[derive(Clone, Copy, Debug)]
pub(super) struct Near {
    first: u8,
    /// Of the whole entry.
    pub(super) size: usize,
    body: usize,
    /// As what the next entry is written relative to.
    pub(super) next: Before,
}

impl Near {
    /// Reads a head that has its size in the first byte, and distance and length in at most
    /// two each. There is no telling which of these are there, so all is computed and nothing
    /// is jumped over.
    #[inline]
    pub(super) fn read(near: [u8; 8], before: Before, context_len_bytes: u64) -> Option<Self> {
        let word = u64::from_le_bytes(near);
        let first = near[0];
        let size = usize::from(first & SIZE_MASK);
        let has_distance = u64::from(first & ADJACENT == 0);
        let has_len = u64::from(first & SAME_LEN == 0);
        let distance = Short::read(word >> 8);
        let len = Short::read(word >> 8 >> (distance.taken_bits * has_distance));
        let is_odd = (distance.is_odd & has_distance) | (len.is_odd & has_len);
        let head_bits = 8 + distance.taken_bits * has_distance + len.taken_bits * has_len;
        let body = head_bits as usize / 8;
        if is_odd != 0 || body > size {
            return None;
        }
        let moved = if has_distance != 0 { distance.value } else { before.len_bytes };
        let bytenr = before.bytenr.wrapping_add(moved);
        let len_bytes = if has_len != 0 { len.value } else { context_len_bytes };
        Some(Self { first, size, body, next: Before { bytenr, len_bytes } })
    }
}

/// Appends an entry whose body is written already.
pub(super) fn put_entry(
    out: &mut Vec<u8>,
    bytenr: u64,
    len_bytes: u64,
    before: Before,
    context: &Context,
    (is_plain, body): (bool, &[u8]),
) {
    let distance = bytenr.wrapping_sub(before.bytenr);
    let mut first = 0;
    let mut size = 1 + body.len();
    if distance == before.len_bytes {
        first |= ADJACENT;
    } else {
        size += sectors_len(distance);
    }
    if len_bytes == u64::from(context.len_bytes) {
        first |= SAME_LEN;
    } else {
        size += sectors_len(len_bytes);
    }
    if is_plain {
        first |= PLAIN;
    }
    match u8::try_from(size) {
        Ok(size) if size <= SIZE_MASK => out.push(first | size),
        // No entry is larger than a page.
        _ => out.extend_from_slice(&[first, (size + 1).try_into().unwrap_or(u8::MAX)]),
    }
    if first & ADJACENT == 0 {
        put_sectors(out, distance);
    }
    if first & SAME_LEN == 0 {
        put_sectors(out, len_bytes);
    }
    out.extend_from_slice(body);
}

/// Appends the body of an extent. Returns whether it is a plain one.
pub(super) fn put_body(out: &mut Vec<u8>, extent: &Extent, context: &Context) -> bool {
    if let Some(key) = plain_ref(extent, context) {
        if extent.kind == ExtentKind::Data {
            put_signed(out, key.owner.wrapping_sub(u64::from(context.owner)));
            put_signed_sectors(out, key.offset);
        }
        return true;
    }
    put_full_body(out, extent, context);
    false
}

/// Appends the body that says that the extent is kept elsewhere.
pub(super) fn put_spilled_body(out: &mut Vec<u8>) {
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

/// Appends the body of an extent in the form that need not be plain.
pub(super) fn put_full_body(out: &mut Vec<u8>, extent: &Extent, context: &Context) {
    let flags_at = out.len();
    let mut flags = 0;
    out.push(0);
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
    out[flags_at] = flags;
    let mut last = Last::new(context);
    refs.each(|key, count| last.put_ref(out, key, count, extent.kind));
}

fn sum_of_counts(refs: &Refs) -> u64 {
    let mut sum = 0_u64;
    refs.each(|_, count| sum = sum.wrapping_add(count));
    sum
}

/// What the next reference is written relative to.
struct Last {
    root: u64,
    owner: u64,
    offset: u64,
    parent: u64,
}

impl Last {
    fn new(context: &Context) -> Self {
        Self {
            root: context.root(),
            owner: u64::from(context.owner),
            offset: 0,
            parent: context.parent(),
        }
    }

    fn put_ref(&mut self, out: &mut Vec<u8>, key: &RefKey, count: u64, kind: ExtentKind) {
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

    fn read_ref(&mut self, reader: &mut Reader<'_>, kind: ExtentKind) -> Option<(RefKey, u64)> {
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

/// What an entry's body says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Body {
    /// The extent is all here.
    Here,
    /// It is kept elsewhere.
    Spilled,
}

/// Reads an entry's body into `extent`, which keeps what it has allocated. `None` is no body.
pub(super) fn read_body(
    bytes: &[u8],
    head: &Head,
    context: &Context,
    extent: &mut Extent,
) -> Option<Body> {
    extent.len_bytes = head.len_bytes;
    extent.refs.clear();
    let mut reader = Reader::new(bytes, head.body);
    if head.is_plain {
        read_plain(&mut reader, context, extent)?;
        return Some(Body::Here);
    }
    read_full(&mut reader, context, extent)
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

fn read_full(reader: &mut Reader<'_>, context: &Context, extent: &mut Extent) -> Option<Body> {
    let flags = reader.byte()?;
    if flags & SPILLED != 0 {
        return Some(Body::Spilled);
    }
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
    Some(Body::Here)
}

/// Whether btrfs has references of this shape (see [`RefKey`]), so that what the shape tells
/// need not be written.
const fn is_regular(key: &RefKey, kind: ExtentKind) -> bool {
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

/// The kind as a number: 0 is data, else the level and one.
pub(super) const fn kind_code(kind: ExtentKind) -> u64 {
    match kind {
        ExtentKind::Data => 0,
        ExtentKind::TreeBlock { level } => 1 + level as u64,
    }
}

/// The kind of a number; `None` is none.
pub(super) fn kind_of_code(code: u64) -> Option<ExtentKind> {
    match code.checked_sub(1) {
        None => Some(ExtentKind::Data),
        Some(level) => Some(ExtentKind::TreeBlock { level: level.try_into().ok()? }),
    }
}

/// The largest generation has no code: it is written in full.
fn from_disk_code(from_disk: Option<u64>) -> Option<u64> {
    from_disk.map_or(Some(0), |generation| generation.checked_add(1))
}

const fn from_disk_of_code(code: u64) -> Option<u64> {
    code.checked_sub(1)
}

/// Appends from-disk.
pub(super) fn put_from_disk(out: &mut Vec<u8>, from_disk: Option<u64>) {
    match from_disk {
        None => put_varint(out, 0),
        Some(generation) => {
            out.push(1);
            put_varint(out, generation);
        }
    }
}

/// Reads what [`put_from_disk`] wrote.
pub(super) fn read_from_disk(reader: &mut Reader<'_>) -> Result<Option<u64>, NoCode> {
    match reader.byte() {
        Some(0) => Ok(None),
        Some(1) => reader.varint().map(Some).ok_or(NoCode),
        _ => Err(NoCode),
    }
}

/// These bytes are no code of what is asked for.
#[derive(Clone, Copy, Debug)]
pub(super) struct NoCode;

/// Reads whatever the bytes are as the entries of a page, for fuzzing: nothing may panic, and
/// what is read must come back when it is written again.
pub(super) fn read_anything(bytes: &[u8]) {
    let Some((context, bytes)) = bytes.split_first_chunk() else { return };
    let context = Context::of_bytes(context);
    let mut before = Before::default();
    let mut at = 0;
    let mut extent = Extent::default();
    while let Some(head) = Head::read(bytes, at, before, &context) {
        let entry = &bytes[at..at + head.size];
        if read_body(entry, &head, &context, &mut extent) == Some(Body::Here) {
            assert_comes_back(&extent);
        }
        at += head.size;
        before = head.before_next();
    }
}

fn assert_comes_back(extent: &Extent) {
    let mut bytes = Vec::new();
    put_full_body(&mut bytes, extent, &Context::default());
    let len_bytes = extent.len_bytes;
    let head = Head { size: bytes.len(), body: 0, bytenr: 0, len_bytes, is_plain: false };
    let mut again = Extent::default();
    let read = read_body(&bytes, &head, &Context::default(), &mut again);
    assert_eq!((read, &again), (Some(Body::Here), extent), "an extent changed on its way");
}

#[cfg(test)]
mod tests;
