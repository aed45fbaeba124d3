//! What is told of it: what was verified, what was given up, and what is known of its extents.

use super::{Effects, FileSystem, FsState};
use crate::verify::{
    Coverage, ExtentDump, Notice, audit::Audit, dump, giving_up::given_up_to, ledger::Ledger as _,
};

impl FileSystem {
    pub(super) fn tell_given_up(&mut self, fx: &mut Effects) {
        let news = self.giving_up.news(&self.ledger.kept());
        fx.notices.extend(news.into_iter().map(|what| Notice::GaveUp { fs: self.slot, what }));
    }

    /// What was verified, at the end.
    pub(crate) fn coverage(&mut self) -> Coverage {
        self.spans.close(self.last_ended(), self.state);
        let kept = self.ledger.kept();
        Coverage {
            fs: self.slot,
            device: self.device.clone(),
            fsid: self.fsid,
            state: self.state,
            verified: self.spans.verified(),
            blind: self.spans.blind(),
            undone: self.undone.clone(),
            events_seen: self.counts.seen,
            events_applied: self.counts.applied,
            events_on_disk: self.counts.on_disk + self.cut.left_to_disk(),
            events_retracted: self.counts.retracted,
            mounts_unverified: self.counts.mounts_unverified,
            audits: self.counts.audits + self.audit.as_ref().map_or(0, Audit::done),
            extents: self.ledger.live(),
            histories_given_up: given_up_to(kept.history_after),
            freed_given_up: given_up_to(kept.tombstones_after),
        }
    }

    /// What is known of one extent.
    pub(crate) fn extent(&self, bytenr: u64) -> Option<ExtentDump> {
        self.ledger.dump(bytenr)
    }

    /// The ledger as text, as `docs/ledger-dump.md` describes it.
    pub(crate) fn dump(&self, out: &mut String) {
        dump::write(
            out,
            self.slot,
            &self.device,
            self.dump_state(),
            self.signalled_or_read(),
            &self.ledger,
        );
    }

    /// An extent that is yet to be read again is no basis for a comparison.
    fn dump_state(&self) -> FsState {
        match self.state {
            FsState::Live if self.cut.unread_ranges().next().is_some() => FsState::Seeding,
            state => state,
        }
    }
}
