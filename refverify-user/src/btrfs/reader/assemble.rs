//! From items to whole extents: a reference may be in a later leaf than its extent.

use std::collections::VecDeque;

use super::ReaderStep;
use crate::btrfs::{
    DiskExtent, ExtentKind, RefKey,
    checks::{self, CheckContext, DiskFault, DiskFinding},
    format::{BackRef, ExtentItem, Item, item_type, parse_keyed_ref},
};

/// How many findings about one extent are told one by one.
const FINDINGS_PER_EXTENT_MAX: usize = 32;

/// The item that findings are about.
#[derive(Clone, Copy, Debug)]
struct Place {
    leaf: u64,
    slot: u32,
}

/// All that is known so far of one bytenr. It is told only once the next bytenr begins, so
/// that nothing is told twice when the reader has to read this bytenr again.
///
/// The extent stays where it is until it is told: it is large, and moving it costs as much as
/// looking at it.
#[derive(Debug)]
struct OpenExtent {
    extent: Option<(DiskExtent, Place)>,
    inline_sum: u64,
    findings: Findings,
}

/// What is wrong with one bytenr.
#[derive(Debug)]
struct Findings {
    bytenr: u64,
    list: Vec<DiskFinding>,
    /// So many more were found than are listed.
    left_out: u64,
    /// Something of the extent was left out, so that sums mean nothing.
    is_partial: bool,
}

/// So many lists of references are kept for the next extents; a leaf has fewer.
const SPARE_LISTS_MAX: usize = 4096;
/// Longer ones are rare, and not kept.
const SPARE_LIST_LEN_MAX: usize = 64;

/// Puts the items of the extent tree together, in key order.
#[derive(Debug)]
pub(super) struct Assembler {
    context: CheckContext,
    open: Option<OpenExtent>,
    /// The extent before, if it was read at the same generation.
    previous: Option<(u64, u64)>,
    /// Item types that were told to be unknown, one bit each.
    unknown_types: [u128; 2],
    /// Empty lists with room for references.
    spare_lists: Vec<Vec<(RefKey, u32)>>,
}

impl Assembler {
    pub(super) fn new(context: CheckContext) -> Self {
        let (open, previous, spare_lists) = (None, None, Vec::new());
        Self { context, open, previous, unknown_types: [0; 2], spare_lists }
    }

    /// Takes back an extent that was told, for its memory.
    pub(super) fn reuse(&mut self, extent: DiskExtent) {
        let mut refs = extent.refs;
        let is_worth_it = (1..=SPARE_LIST_LEN_MAX).contains(&refs.capacity());
        if is_worth_it && self.spare_lists.len() < SPARE_LISTS_MAX {
            refs.clear();
            self.spare_lists.push(refs);
        }
    }

    /// Goes on with a newer tree: what is open will be read again, and what was read before
    /// cannot be compared with what comes.
    pub(super) fn move_on(&mut self, context: CheckContext) {
        self.context = context;
        self.open = None;
        self.previous = None;
    }

    /// Goes on with the same tree under a newer superblock.
    pub(super) fn keep_on(&mut self, context: CheckContext) {
        self.context = context;
    }

    /// The bytenr of which more may come.
    pub(super) fn open_bytenr(&self) -> Option<u64> {
        self.open.as_ref().map(|open| open.findings.bytenr)
    }

    /// Takes the next item.
    pub(super) fn add(&mut self, leaf: u64, item: &Item, steps: &mut VecDeque<ReaderStep>) {
        if self.open_bytenr() != Some(item.key.objectid) {
            self.close(steps);
        }
        let open = self.open.get_or_insert_with(|| OpenExtent::new(item.key.objectid));
        let place = Place { leaf, slot: item.slot };
        match item.key.item_type {
            item_type::EXTENT_ITEM | item_type::METADATA_ITEM => {
                let refs = self.spare_lists.pop().unwrap_or_default();
                open.add_extent(&self.context, item, place, refs);
            }
            item_type::BLOCK_GROUP_ITEM => {}
            item_type::EXTENT_REF_V0 => open.findings.leave_out(place, DiskFault::OldKeyedRef),
            other => match parse_keyed_ref(item.key, item.body) {
                Some(Ok(back_ref)) => open.add_keyed_ref(&self.context, &back_ref, place),
                Some(Err(reason)) => {
                    open.findings.leave_out(place, DiskFault::BadKeyedRef { reason });
                }
                None => {
                    let (word, bit) = (usize::from(other >> 7), 1 << (other & 127));
                    if self.unknown_types[word] & bit == 0 {
                        self.unknown_types[word] |= bit;
                        let fault = DiskFault::UnknownItemType { item_type: other };
                        open.findings.add(place, fault);
                    }
                }
            },
        }
    }

    /// Passes over a part that is known: what is open is complete, and what comes next has another
    /// neighbour.
    pub(super) fn pass_over(&mut self, steps: &mut VecDeque<ReaderStep>) {
        self.close(steps);
        self.previous = None;
    }

    /// Tells what is open, the extent first and then what is wrong with it.
    pub(super) fn close(&mut self, steps: &mut VecDeque<ReaderStep>) {
        let Some(open) = &mut self.open else { return };
        if let Some((extent, place)) = &open.extent {
            let found = &mut open.findings;
            check_whole(extent, *place, open.inline_sum, self.previous, found);
            self.previous = Some((extent.bytenr, extent.len_bytes));
        }
        steps.extend(open.extent.take().map(|(extent, _)| ReaderStep::Extent(extent)));
        steps.extend(open.findings.list.drain(..).map(ReaderStep::Finding));
        self.open = None;
    }
}

impl OpenExtent {
    fn new(bytenr: u64) -> Self {
        let findings = Findings { bytenr, list: Vec::new(), left_out: 0, is_partial: false };
        Self { extent: None, inline_sum: 0, findings }
    }

    fn add_extent(
        &mut self,
        context: &CheckContext,
        item: &Item,
        place: Place,
        refs: Vec<(RefKey, u32)>,
    ) {
        let found = &mut self.findings;
        if self.extent.is_some() {
            return found.leave_out(place, DiskFault::SecondExtentItem);
        }
        let parsed = match ExtentItem::parse(item.key, item.body, context.nodesize) {
            Ok(parsed) => parsed,
            Err(reason) => return found.leave_out(place, DiskFault::BadExtentItem { reason }),
        };
        let extent = DiskExtent {
            bytenr: found.bytenr,
            len_bytes: parsed.len_bytes,
            kind: parsed.kind,
            total_refs: parsed.total_refs,
            generation: parsed.generation,
            owner_root: None,
            refs,
        };
        let (extent, _) = self.extent.insert((extent, place));
        context.check_form(item.key.item_type, &parsed, |fault| found.add(place, fault));
        context.check_item(extent, |fault| found.add(place, fault));
        let mut inline_refs = 0;
        for back_ref in parsed.inline.clone() {
            let back_ref = match back_ref {
                Ok(back_ref) => back_ref,
                Err(reason) => {
                    found.leave_out(place, DiskFault::BadInlineRef { reason });
                    break;
                }
            };
            add_ref(context, extent, &back_ref, place, found);
            inline_refs += 1;
        }
        if inline_refs > 1 {
            checks::check_order(parsed.inline, |fault| found.add(place, fault));
        }
        self.inline_sum = checks::sum_of_counts(&extent.refs);
    }

    fn add_keyed_ref(&mut self, context: &CheckContext, back_ref: &BackRef, place: Place) {
        if let Some((extent, _)) = &mut self.extent {
            add_ref(context, extent, back_ref, place, &mut self.findings);
        } else {
            let ref_type = back_ref.item_type();
            self.findings.leave_out(place, DiskFault::KeyedRefWithoutExtent { ref_type });
        }
    }
}

impl Findings {
    fn add(&mut self, place: Place, fault: DiskFault) {
        let Place { leaf, slot } = place;
        let finding = DiskFinding { fault, bytenr: self.bytenr, leaf, slot };
        if self.list.len() < FINDINGS_PER_EXTENT_MAX {
            self.list.push(finding);
            return;
        }
        self.left_out += 1;
        let fault = DiskFault::More { count: self.left_out };
        self.list.truncate(FINDINGS_PER_EXTENT_MAX);
        self.list.push(DiskFinding { fault, ..finding });
    }

    fn leave_out(&mut self, place: Place, fault: DiskFault) {
        self.is_partial = true;
        self.add(place, fault);
    }
}

fn add_ref(
    context: &CheckContext,
    extent: &mut DiskExtent,
    back_ref: &BackRef,
    place: Place,
    found: &mut Findings,
) {
    if let Some((key, count)) = back_ref.of_kind(extent.kind) {
        if let Some(fault) = context.check_ref(key, back_ref) {
            found.add(place, fault);
        }
        extent.refs.push((key, count));
    } else if let (BackRef::Owner { root }, ExtentKind::Data) = (back_ref, extent.kind) {
        if !context.has_simple_quota {
            found.add(place, DiskFault::OwnerWithoutSimpleQuota);
        }
        extent.owner_root = Some(*root);
    } else {
        let ref_type = back_ref.item_type();
        found.leave_out(place, DiskFault::RefOfOtherKind { ref_type });
    }
}

/// What can be said only once every reference is there.
fn check_whole(
    extent: &DiskExtent,
    place: Place,
    inline_sum: u64,
    previous: Option<(u64, u64)>,
    found: &mut Findings,
) {
    if let Some((previous, previous_len_bytes)) = previous
        && previous.saturating_add(previous_len_bytes) > extent.bytenr
    {
        found.add(place, DiskFault::OverlapsPrevious { previous, previous_len_bytes });
    }
    for key in checks::duplicates(&extent.refs) {
        found.add(place, DiskFault::DuplicateRef { key });
    }
    let total = extent.total_refs;
    let sum = checks::sum_of_counts(&extent.refs);
    if inline_sum > total {
        found.add(place, DiskFault::InlineRefsExceedTotal { sum: inline_sum, total });
    } else if sum != total && !found.is_partial {
        found.add(place, DiskFault::TotalDiffers { sum, total });
    }
}
