//! The calls of each watched file system, counted twice: see [`CrossCheck`] for what that proves.
//! A miss counts as a loss as soon as it shows.

use refverify_common::{CrossCheck, missed_index};

use crate::{maps::CALLS, record};

/// A call of a watched file system has entered.
#[inline(always)]
pub(crate) fn entered(slot: u32, transid: u64) {
    if let Some(calls) = calls_of(slot) {
        calls.enter(transid);
    }
}

/// A call's tracepoint has fired.
#[inline(always)]
pub(crate) fn fired(slot: u32) {
    if calls_of(slot).is_some_and(CrossCheck::fire) {
        record::count_loss(missed_index(slot));
    }
}

/// A call has failed, before its tracepoint.
#[inline(always)]
pub(crate) fn failed(slot: u32) {
    if let Some(calls) = calls_of(slot) {
        calls.fail();
    }
}

/// The file system in this slot is another one from now on.
#[inline(always)]
pub(crate) fn forget(slot: u32) {
    if let Some(calls) = calls_of(slot) {
        calls.forget();
    }
}

#[inline(always)]
fn calls_of(slot: u32) -> Option<&'static CrossCheck> {
    CALLS.get(slot)
}
