//! What the superblock says when it is read for its own sake: whether what is committed reaches
//! the disk, and what became of transactions that did not end as they should.
//!
//! A commit is signalled after its superblocks are written. If no device has one of that
//! generation, writes are being dropped (dm-flakey does so), or another image was put in place. And
//! where a transaction is aborted, where the file system is shut down or its superblocks cannot be
//! written, the superblock on disk alone decides which transactions were.

use crate::{
    btrfs::{
        format::{SUPERBLOCK_LEN_BYTES, SUPERBLOCK_OFFSET, Superblock},
        reader::{KnownTree, NAMED_DEVICE},
    },
    feed::{BlockAnswer, BlockRequest},
    verify::{
        BlindCause, FsState, Notice, Span,
        cut::Unread,
        filesystem::{Effects, FileSystem},
        ledger::Ledger as _,
    },
};

/// Marks the id of a request that no reading of the tree has made.
const CHECK: u64 = 1 << 63;

/// Between two checks.
const PERIOD_NS: u64 = 1_000_000_000;

/// How often all devices are asked before it is believed that none has what is looked for: a
/// superblock may be read while it is being written.
const ROUNDS: usize = 2;

/// The question to the disk, if one is open.
#[derive(Default)]
pub(super) struct SuperblockCheck {
    /// Something has happened since the last question.
    pub(super) is_due: bool,
    number: u64,
    asked_ns: u64,
    open: Option<Question>,
    /// The devices of the file system, as the tree was read last.
    devids: Vec<u64>,
}

/// Which devices are still to be asked, and what those before have said.
struct Question {
    /// The last commit that was signalled before the first was asked.
    signalled: u64,
    left: Vec<u64>,
    /// Whose answer is waited for; [`NAMED_DEVICE`] is the one by which it is mounted.
    asked: u64,
    on_disk: Option<u64>,
}

impl SuperblockCheck {
    /// Whether an answer is to such a question.
    pub(super) const fn is_for(id: u64) -> bool {
        id & CHECK != 0
    }

    /// What was asked is of no interest any more.
    pub(super) fn forget(&mut self) {
        self.is_due = false;
        self.open = None;
    }

    /// All these may have a superblock.
    pub(super) fn expect_devices(&mut self, devids: Vec<u64>) {
        self.devids = devids;
    }
}

impl FileSystem {
    /// After a commit, and while it is not known what became of an aborted transaction.
    pub(super) fn check_superblock_if_due(&mut self, fx: &mut Effects) {
        let is_time = self.time_ns.saturating_sub(self.check.asked_ns) >= PERIOD_NS;
        if self.check.is_due && is_time && self.check.open.is_none() {
            self.ask_for_superblock(fx);
        }
    }

    /// The file system has ended, or a transaction of it: asks which ones are on disk, unless their
    /// commits have told.
    pub(super) fn ask_what_became(&mut self, fx: &mut Effects) {
        if self.newest_transid > self.signalled || self.is_dropping() {
            self.ask_for_superblock(fx);
        } else {
            self.spans.close(self.last_ended(), self.state);
        }
    }

    fn ask_for_superblock(&mut self, fx: &mut Effects) {
        let check = &mut self.check;
        check.is_due = false;
        check.asked_ns = self.time_ns;
        // The device that is named comes first.
        let round = std::iter::once(NAMED_DEVICE).chain(check.devids.iter().copied());
        let mut left: Vec<u64> = round.collect::<Vec<_>>().repeat(ROUNDS);
        left.reverse();
        let (signalled, asked) = (self.signalled, NAMED_DEVICE);
        check.open = Some(Question { signalled, left, asked, on_disk: None });
        self.ask_next_device(fx);
    }

    /// Asks the next device; when all were asked, what they said counts.
    fn ask_next_device(&mut self, fx: &mut Effects) {
        let check = &mut self.check;
        let Some(question) = &mut check.open else { return };
        let is_as_it_should = question.on_disk.is_some_and(|it| it >= question.signalled);
        let next = if is_as_it_should { None } else { question.left.pop() };
        if let Some(devid) = next {
            check.number += 1;
            question.asked = devid;
            let id = CHECK | check.number;
            self.read_superblock(id, devid, fx);
        } else if let Some(Question { signalled, on_disk, .. }) = check.open.take() {
            self.superblock_is(on_disk, signalled, fx);
        }
    }

    /// Wants the primary superblock of a device, apart from any reading of the tree.
    pub(super) fn read_superblock(&self, id: u64, devid: u64, fx: &mut Effects) {
        fx.reads.push(BlockRequest {
            fs: self.slot,
            id,
            devid,
            offset: SUPERBLOCK_OFFSET,
            len_bytes: SUPERBLOCK_LEN_BYTES,
        });
    }

    /// A device has answered. One that was removed from the file system has none of its
    /// superblocks any more, or one of another file system.
    pub(super) fn take_superblock(&mut self, answer: &BlockAnswer, fx: &mut Effects) {
        if answer.id != CHECK | self.check.number {
            return;
        }
        let is_watching = self.is_watching();
        let Some(question) = &mut self.check.open else { return };
        let superblock = answer.data.as_ref().ok().and_then(|data| Superblock::parse(data).ok());
        let is_its = |it: &Superblock| self.fsid.is_none_or(|fsid| fsid == it.fsid);
        let is_named = question.asked == NAMED_DEVICE;
        if let Some(other) = superblock.as_ref().filter(|it| is_watching && is_named && !is_its(it))
        {
            // What is mounted has another fsid since it was read: a seed has sprouted. Its old
            // devices keep their old superblocks, so nothing follows from them. Else the mount may
            // be gone, and another one not told yet.
            let is_sprout = other.generation >= question.signalled && !other.is_seed();
            let fsid = other.fsid;
            self.check.forget();
            if is_sprout {
                self.learn_fsid(fsid, fx);
            }
            return;
        }
        question.on_disk = question.on_disk.max(superblock.filter(is_its).map(|it| it.generation));
        self.ask_next_device(fx);
    }

    /// `on_disk` is the newest superblock of all devices.
    fn superblock_is(&mut self, on_disk: Option<u64>, signalled: u64, fx: &mut Effects) {
        let is_mounted = self.state != FsState::Unmounted;
        if let Some(on_disk) = on_disk.filter(|&on_disk| is_mounted && on_disk < signalled) {
            self.writes_are_dropped(signalled, on_disk, fx);
        }
        match (self.state, on_disk) {
            (FsState::Aborted, Some(on_disk)) if on_disk < self.last_ended() => {
                // The transaction before may still be on its way.
                self.check.is_due = true;
            }
            (FsState::Aborted, Some(on_disk)) => self.settle(on_disk, fx),
            (FsState::Unmounted, Some(on_disk)) => {
                // After the unmount anyone may have put back an older image.
                let floor = if self.is_dropping() { 0 } else { self.signalled };
                self.settle(on_disk.max(floor), fx);
            }
            (FsState::Aborted, None) => {
                self.nobody_knows(fx);
                self.check.is_due = true;
            }
            (FsState::Unmounted, None) => self.nobody_knows(fx),
            // A commit that was signalled was written; the device that is named may have left.
            _ => {}
        }
    }

    fn is_dropping(&self) -> bool {
        matches!(self.spans.blind_cause(), Some(BlindCause::WritesDropped { .. }))
    }

    /// What was committed is not on disk. What is read of it now may be of any age.
    pub(super) fn writes_are_dropped(&mut self, signalled: u64, on_disk: u64, fx: &mut Effects) {
        let is_watching = self.is_watching();
        if self.state != FsState::Blind && self.spans.blind_cause().is_none() {
            self.tell_blind(on_disk, BlindCause::WritesDropped { signalled, on_disk }, fx);
        }
        if !is_watching {
            return;
        }
        self.state = FsState::Blind;
        self.first_generation = 0;
        self.give_up_audit();
        self.ledger.undo_above(self.folded_upto);
        self.exact_upto = 0;
        self.taken_upto = 0;
        self.known = KnownTree::default();
        self.begin_cut(signalled);
        self.start_reading(Unread { range: 0..u64::MAX, min_generation: signalled }, fx);
    }

    /// No device says which transactions are on disk.
    fn nobody_knows(&mut self, fx: &mut Effects) {
        if self.newest_transid > self.signalled && self.spans.blind_cause().is_none() {
            self.tell_blind(self.signalled, BlindCause::NoSuperblock, fx);
        }
        if self.state == FsState::Unmounted {
            self.spans.close(self.newest_transid, self.state);
        }
    }

    /// Transactions above `on_disk` never were.
    fn settle(&mut self, on_disk: u64, fx: &mut Effects) {
        let newest = self.newest_transid;
        // What is blind is so to its end.
        let last = if self.spans.blind_cause().is_some() {
            newest
        } else {
            self.last_ended().min(on_disk)
        };
        self.spans.close(last, self.state);
        if on_disk >= newest {
            return;
        }
        if on_disk >= self.folded_upto {
            self.ledger.undo_above(on_disk);
        } else {
            self.ledger = self.new_ledger.begin();
        }
        (self.durable, self.signalled, self.newest_transid) = (on_disk, on_disk, on_disk);
        let undone = Span { first: on_disk.saturating_add(1), last: newest };
        self.undone.push(undone);
        let findings = self.found_in.split_off(&undone.first).values().sum();
        fx.notices.push(Notice::Undone { fs: self.slot, on_disk, undone, findings });
    }
}
