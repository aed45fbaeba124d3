//! Which transactions of a file system were verified, and which were not.

use super::{BlindCause, BlindSpan, FsState, Span};

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
        self.end_blindness(transid.saturating_sub(1), FsState::Live);
        self.verified_from = Some(transid);
    }

    /// Nothing after `verified_upto` is verified.
    pub(crate) fn go_blind(&mut self, verified_upto: u64, cause: BlindCause) {
        self.close(verified_upto, FsState::Blind);
        self.blind_from = Some((verified_upto.saturating_add(1), cause));
    }

    /// Why nothing is verified now, where that was told.
    pub(crate) fn blind_cause(&self) -> Option<&BlindCause> {
        self.blind_from.as_ref().map(|(_, cause)| cause)
    }

    /// Ends what is open: `last` is the newest transaction, and `then` is where the file system
    /// stands after it.
    pub(crate) fn close(&mut self, last: u64, then: FsState) {
        if let Some(first) = self.verified_from.take()
            && first <= last
        {
            self.verified.push(Span { first, last });
        }
        self.end_blindness(last, then);
    }

    fn end_blindness(&mut self, last: u64, then: FsState) {
        if let Some((first, cause)) = self.blind_from.take() {
            let span = Span { first, last: last.max(first) };
            self.blind.push(BlindSpan { span, cause, then });
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
