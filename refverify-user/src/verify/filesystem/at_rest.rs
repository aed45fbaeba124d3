//! Keeps what is known of a file system while it is not mounted.
//!
//! All changes up to the last commit are in the ledger, so it holds in the next mount too, if that
//! begins where this one ended. Whether it does the superblock says: it must be the same, to the
//! last byte. Besides the generation and the roots it holds those of the three commits before, and
//! how many bytes are in use. An image that was put in place of it, what was made anew, and what
//! another kernel or btrfs-progs have changed have another one; then everything is read again.

use std::mem;

use bytes::Bytes;

use crate::{
    btrfs::{
        format::Superblock,
        reader::{KnownTree, NAMED_DEVICE},
    },
    feed::BlockAnswer,
    verify::{
        FsState,
        cut::Unread,
        filesystem::{Effects, FileSystem},
        gate::Gate,
        ledger::{Ledger as _, ShardedLedger},
    },
};

/// Marks the id of a request that is made here.
const AT_REST: u64 = 1 << 62;

/// Where a file system stands between two mounts.
#[derive(Default)]
pub(super) struct AtRest {
    /// Told apart from earlier requests, whose answers may still come.
    number: u64,
    stage: Stage,
}

#[derive(Default)]
enum Stage {
    /// Nothing is kept.
    #[default]
    Nothing,
    /// Unmounted; the superblock of the last commit is asked for.
    Ends { generation: u64 },
    /// Unmounted, with this superblock.
    Rests { generation: u64, superblock: Bytes },
    /// Mounted; the superblock is asked for again.
    Begins(Box<Kept>),
}

/// What is known as of a generation.
pub(super) struct Kept {
    generation: u64,
    superblock: Bytes,
    ledger: ShardedLedger,
    known: KnownTree,
    read_upto: u64,
    taken_upto: u64,
}

impl AtRest {
    /// Whether an answer is to a request that was made here.
    pub(super) const fn is_for(id: u64) -> bool {
        id & AT_REST != 0 && id >> 63 == 0
    }

    /// Whether the tree is not to be read, because it may be known already.
    pub(super) const fn is_beginning(&self) -> bool {
        matches!(self.stage, Stage::Begins(_))
    }

    /// Nothing may be kept any more.
    pub(super) fn forget(&mut self) {
        self.stage = Stage::Nothing;
    }
}

impl FileSystem {
    /// Before a mount ends: what is known is kept, if it is all there is to know.
    pub(super) fn come_to_rest(&mut self, fx: &mut Effects) {
        let is_whole = self.state == FsState::Live && self.cut.unread_ranges().next().is_none();
        // Every change is in a commit that was signalled.
        if is_whole && self.newest_transid == self.signalled && self.signalled != 0 {
            self.at_rest.stage = Stage::Ends { generation: self.signalled };
            self.ask_at_rest(fx);
        } else {
            self.at_rest.forget();
        }
    }

    /// A mount begins: takes what was kept out of the ledger's place, before that is made anew.
    pub(super) fn take_kept(&mut self) -> Option<Box<Kept>> {
        let Stage::Rests { generation, superblock } = mem::take(&mut self.at_rest.stage) else {
            return None;
        };
        let ledger = mem::replace(&mut self.ledger, self.new_ledger.begin());
        Some(Box::new(Kept {
            generation,
            superblock,
            ledger,
            known: mem::take(&mut self.known),
            read_upto: self.read_upto,
            taken_upto: self.taken_upto,
        }))
    }

    /// Asks whether the mount began where the one before ended.
    pub(super) fn begin_with(&mut self, kept: Box<Kept>, fx: &mut Effects) {
        self.at_rest.stage = Stage::Begins(kept);
        self.ask_at_rest(fx);
    }

    fn ask_at_rest(&mut self, fx: &mut Effects) {
        self.at_rest.number += 1;
        self.read_superblock(AT_REST | self.at_rest.number, NAMED_DEVICE, fx);
    }

    /// The superblock, as it is on disk now.
    pub(super) fn answer_at_rest(
        &mut self,
        answer: BlockAnswer,
        gate: &mut Gate,
        fx: &mut Effects,
    ) {
        if answer.id != AT_REST | self.at_rest.number {
            return;
        }
        let on_disk = answer.data.ok();
        match mem::take(&mut self.at_rest.stage) {
            Stage::Ends { generation } => {
                let is_it = |data: &Bytes| {
                    Superblock::parse(data).is_ok_and(|it| it.generation == generation)
                };
                if let Some(superblock) = on_disk.filter(is_it) {
                    self.at_rest.stage = Stage::Rests { generation, superblock };
                }
            }
            Stage::Begins(kept) if on_disk.as_ref() == Some(&kept.superblock) => {
                self.go_on_with(*kept, gate, fx);
            }
            Stage::Begins(_) => {
                self.start_reading(Unread { range: 0..u64::MAX, min_generation: 0 }, fx);
            }
            other => self.at_rest.stage = other,
        }
    }

    /// As after reading everything at the generation that is kept.
    fn go_on_with(&mut self, kept: Kept, gate: &mut Gate, fx: &mut Effects) {
        let Kept { generation, superblock, ledger, known, read_upto, taken_upto } = kept;
        if let Ok(superblock) = Superblock::parse(&superblock) {
            self.learn_fsid(superblock.fsid, fx);
        }
        self.ledger = ledger;
        self.ledger.commit(generation);
        self.known = known;
        self.read_upto = read_upto;
        self.folded_upto = generation;
        self.exact_upto = generation;
        self.durable = self.durable.max(generation);
        self.signalled = self.signalled.max(generation);
        self.newest_transid = self.newest_transid.max(generation);
        self.release(0..u64::MAX, generation, gate);
        self.first_generation = generation;
        self.go_live(generation, fx);
        self.taken_upto = taken_upto;
    }
}
