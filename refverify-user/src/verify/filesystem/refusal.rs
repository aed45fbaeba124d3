//! What cannot be verified: in this mount, as it is now, or within its share.

use super::{Effects, FileSystem, FsState};
use crate::{
    btrfs::reader::KnownTree,
    verify::{Notice, Share, cut::Cut, ledger::Ledger as _},
};

/// How long after a refusal that may pass it is tried again; doubled each time.
const TRY_AGAIN_NS: u64 = 100_000_000;
const TRY_AGAIN_DOUBLINGS: u32 = 12;
/// What a block met or a fault told takes, at most.
const HELD_BYTES: usize = 128;

/// Why it was refused in this mount, and whether that may pass.
#[derive(Default)]
pub(super) struct Refusals {
    count: u32,
    /// Not to be tried again before; `None` is never.
    try_again_ns: Option<u64>,
}

impl FileSystem {
    /// It cannot be verified, in this mount.
    pub(super) fn refuse(&mut self, reason: String, fx: &mut Effects) {
        self.refusals.try_again_ns = None;
        self.check.forget();
        self.spans.close(self.newest_transid, FsState::Refused);
        self.counts.mounts_unverified += 1;
        self.stop_reading();
        self.state = FsState::Refused;
        fx.notices.push(Notice::Refused { fs: self.slot, reason });
    }

    /// It cannot be verified as it is now on disk, which the next commit may mend: the kernel may
    /// be using older roots than the superblock names (`usebackuproot`).
    pub(super) fn refuse_for_now(&mut self, reason: String, fx: &mut Effects) {
        self.refuse(reason, fx);
        let wait_ns = TRY_AGAIN_NS << self.refusals.count.min(TRY_AGAIN_DOUBLINGS);
        self.refusals.count += 1;
        self.refusals.try_again_ns = Some(self.time_ns.saturating_add(wait_ns));
    }

    /// A file system that was refused has made a commit: two transactions at most are under way
    /// beyond it, of which events have not been kept.
    pub(super) fn try_again(&mut self, committed: u64, fx: &mut Effects) {
        if self.refusals.try_again_ns.is_some_and(|at| at <= self.time_ns) {
            let first_usable = committed.saturating_add(2);
            self.begin(first_usable);
            self.wait_for_commit(first_usable, fx);
        }
    }

    /// Refuses the file system where it would take more than its share.
    pub(crate) fn keep_within(&mut self, share: Share, fx: &mut Effects) {
        let kept = self.ledger.kept();
        // What explains findings is given up by itself.
        let in_use_bytes = kept.total_bytes.saturating_sub(kept.history_bytes);
        let held = self.known.len() + self.told_on_disk.len();
        let held_bytes = in_use_bytes + (held * HELD_BYTES) as u64;
        let ranges = self.cut.ranges();
        if held_bytes > share.memory_max_bytes {
            self.over_share(&format!("{held_bytes} bytes of what is known of extents"), fx);
        } else if ranges > share.waiting_max {
            self.over_share(&format!("{ranges} ranges that are to be read again"), fx);
        }
    }

    /// Refuses it, and lets go what is held of it.
    pub(crate) fn over_share(&mut self, what: &str, fx: &mut Effects) {
        if self.is_watching() {
            self.ledger = self.new_ledger.begin();
            self.cut = Cut::new(0);
            self.told_on_disk.clear();
            self.refuse(format!("{what} are more than its share"), fx);
            self.known = KnownTree::default();
        }
    }
}
