//! Which transactions of a file system were verified, and which were not.

use super::Span;

/// The spans of transids, closed ones and the one that is open.
#[derive(Debug, Default)]
pub(crate) struct Spans {
    verified_from: Option<u64>,
    blind_from: Option<u64>,
    verified: Vec<Span>,
    blind: Vec<Span>,
}

impl Spans {
    /// Everything from `transid` on is verified: blindness, if it lasted, ends before it.
    pub(crate) fn see(&mut self, transid: u64) {
        if let Some(first) = self.blind_from.take() {
            self.blind.push(Span { first, last: transid.saturating_sub(1).max(first) });
        }
        self.verified_from = Some(transid);
    }

    /// Nothing after `verified_upto` is verified.
    pub(crate) fn go_blind(&mut self, verified_upto: u64) {
        self.close(verified_upto);
        self.blind_from = Some(verified_upto.saturating_add(1));
    }

    /// Ends what is open: `last` is the newest transaction.
    pub(crate) fn close(&mut self, last: u64) {
        if let Some(first) = self.verified_from.take()
            && first <= last
        {
            self.verified.push(Span { first, last });
        }
        if let Some(first) = self.blind_from.take() {
            self.blind.push(Span { first, last: last.max(first) });
        }
    }

    /// What was verified, in order, of what is closed.
    pub(crate) fn verified(&self) -> Vec<Span> {
        self.verified.clone()
    }

    /// What was not.
    pub(crate) fn blind(&self) -> Vec<Span> {
        self.blind.clone()
    }
}
