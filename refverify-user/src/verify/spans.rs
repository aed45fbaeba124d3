//! Which transactions of a file system were verified, and which were not.

use super::{BlindCause, BlindSpan, Span};

/// The spans of transids, closed ones and the one that is open.
#[derive(Debug, Default)]
pub(crate) struct Spans {
    verified_from: Option<u64>,
    blind_from: Option<(u64, BlindCause)>,
    verified: Vec<Span>,
    blind: Vec<BlindSpan>,
}

impl Spans {
    /// Everything from `transid` on is verified: blindness, if it lasted, ends before it.
    pub(crate) fn see(&mut self, transid: u64) {
        self.end_blindness(transid.saturating_sub(1));
        self.verified_from = Some(transid);
    }

    /// Nothing after `verified_upto` is verified.
    pub(crate) fn go_blind(&mut self, verified_upto: u64, cause: BlindCause) {
        self.close(verified_upto);
        self.blind_from = Some((verified_upto.saturating_add(1), cause));
    }

    /// Whether nothing is verified now for a reason that was told.
    pub(crate) const fn is_blind(&self) -> bool {
        self.blind_from.is_some()
    }

    /// Ends what is open: `last` is the newest transaction.
    pub(crate) fn close(&mut self, last: u64) {
        if let Some(first) = self.verified_from.take()
            && first <= last
        {
            self.verified.push(Span { first, last });
        }
        self.end_blindness(last);
    }

    fn end_blindness(&mut self, last: u64) {
        if let Some((first, cause)) = self.blind_from.take() {
            self.blind.push(BlindSpan { span: Span { first, last: last.max(first) }, cause });
        }
    }

    /// What was verified, in order, of what is closed.
    pub(crate) fn verified(&self) -> Vec<Span> {
        self.verified.clone()
    }

    /// What was not, and why.
    pub(crate) fn blind(&self) -> Vec<BlindSpan> {
        self.blind.clone()
    }
}
