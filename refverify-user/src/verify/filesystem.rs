//! One watched file system: its ledger, its cut, and where it stands.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    mem,
};

use uuid::Uuid;

use super::{
    BlindCause, Disorder, FsState, Notice, Span,
    audit::{Audit, AuditConfig},
    cut::{Cut, Unread},
    gate::Gate,
    giving_up::GivingUp,
    ledger::{Ledger as _, Limits, ShardedLedger},
    order::Order,
    seeder::Seeder,
    spans::Spans,
};
use crate::{
    btrfs::{DiskFindingKind, reader::KnownTree},
    feed::{BlockRequest, Event, FsSlot, HookMode, Loss},
};

mod at_rest;
mod audited;
mod judging;
mod reading;
mod refusal;
mod superblock;
mod telling;

use at_rest::AtRest;
use refusal::Refusals;
use superblock::SuperblockCheck;

/// What a file system wants and tells while a message is handled.
#[derive(Default)]
pub(crate) struct Effects {
    /// Blocks wanted.
    pub(crate) reads: Vec<BlockRequest>,
    /// Notices, in order.
    pub(crate) notices: Vec<Notice>,
}

/// One watched file system.
pub(crate) struct FileSystem {
    slot: FsSlot,
    device: String,
    mode: HookMode,
    fsid: Option<Uuid>,
    state: FsState,
    new_ledger: NewLedger,
    audits: Option<AuditConfig>,
    ledger: ShardedLedger,
    giving_up: GivingUp,
    /// Events that are to be judged, in the order in which they came.
    ready: Vec<Event>,
    cut: Cut,
    seeder: Option<Seeder>,
    /// Told apart from those of earlier seeders, whose answers may still come.
    reading: u64,
    first_generation: u64,
    moved_ns: u64,
    told_ns: u64,
    /// The last superblock known to be on disk, by its signal or by reading it.
    durable: u64,
    /// The last one announced by a commit's signal: all events up to it have come.
    signalled: u64,
    order: Order,
    newest_transid: u64,
    /// Everything up to this transid had come when a drain ended without loss.
    clean: u64,
    /// Up to where pending changes have become the ledger's base.
    folded_upto: u64,
    /// The ledger's base is what superblock `exact_upto` contains, but for what is distrusted: no
    /// event up to it was lost. 0 is nothing.
    exact_upto: u64,
    /// The tree as it was read last, for a reading of what has changed since.
    known: KnownTree,
    /// What was distrusted when events were lost.
    look_at: BTreeSet<u64>,
    spans: Spans,
    check: SuperblockCheck,
    at_rest: AtRest,
    /// The transaction that was aborted.
    aborted: Option<u64>,
    /// How many findings were made, by transaction; of those that are not on disk yet.
    found_in: BTreeMap<u64, u64>,
    undone: Vec<Span>,
    refusals: Refusals,
    audit: Option<Audit>,
    /// The newest superblock of which anything was read.
    read_upto: u64,
    /// The superblock of the last reading of the whole tree that was taken or compared to its end.
    taken_upto: u64,
    /// The superblock on disk was older than one that was signalled: it is read again at the next
    /// tick.
    is_behind: bool,
    time_ns: u64,
    told_on_disk: HashSet<(DiskFindingKind, u64)>,
    /// Devices that failed to give something, by number.
    told_mirrors: HashSet<u64>,
    counts: Counts,
}

/// How to begin a ledger that knows nothing.
#[derive(Clone, Copy)]
pub(crate) struct NewLedger {
    /// How much it may remember.
    pub(crate) limits: Limits,
    /// How many cores work on it.
    pub(crate) cores: usize,
}

impl NewLedger {
    fn begin(self) -> ShardedLedger {
        ShardedLedger::new(self.limits, self.cores)
    }
}

#[derive(Default)]
struct Counts {
    seen: u64,
    applied: u64,
    on_disk: u64,
    retracted: u64,
    mounts_unverified: u64,
    audits: u64,
}

/// How often reading goes on at a newer superblock, so that fewer events have to wait.
const MOVE_ON_NS: u64 = 3_000_000_000;
/// How often progress is told.
const TELL_NS: u64 = 500_000_000;
/// Where the reading's number sits in a request's id.
const READING_SHIFT: u32 = 40;

impl FileSystem {
    /// A device that is watched; nothing is mounted yet.
    pub(crate) fn new(
        slot: FsSlot,
        device: String,
        mode: HookMode,
        new_ledger: NewLedger,
        audits: Option<AuditConfig>,
    ) -> Self {
        Self {
            slot,
            device,
            mode,
            fsid: None,
            state: FsState::Unmounted,
            new_ledger,
            audits,
            ledger: new_ledger.begin(),
            giving_up: GivingUp::default(),
            ready: Vec::new(),
            cut: Cut::new(0),
            seeder: None,
            reading: 0,
            first_generation: 0,
            moved_ns: 0,
            told_ns: 0,
            durable: 0,
            signalled: 0,
            order: Order::new(mode),
            newest_transid: 0,
            clean: 0,
            folded_upto: 0,
            exact_upto: 0,
            known: KnownTree::default(),
            look_at: BTreeSet::new(),
            spans: Spans::default(),
            check: SuperblockCheck::default(),
            at_rest: AtRest::default(),
            aborted: None,
            found_in: BTreeMap::new(),
            undone: Vec::new(),
            refusals: Refusals::default(),
            audit: None,
            read_upto: 0,
            taken_upto: 0,
            is_behind: false,
            time_ns: 0,
            told_on_disk: HashSet::new(),
            told_mirrors: HashSet::new(),
            counts: Counts::default(),
        }
    }

    /// Where it stands.
    pub(crate) const fn state(&self) -> FsState {
        self.state
    }

    /// It is mounted: everything known of an earlier mount is void, unless that ended where this
    /// one begins.
    pub(crate) fn mounted(&mut self, device: String, first_usable: u64, fx: &mut Effects) {
        self.leave();
        self.spans.close(self.last_ended(), self.state);
        self.device = device;
        self.fsid = None;
        self.refusals = Refusals::default();
        self.told_on_disk.clear();
        self.told_mirrors.clear();
        fx.notices.push(Notice::Mounted { fs: self.slot, armed_before: first_usable == 0 });
        // Of what was missed nothing is known.
        let kept = if first_usable == 0 { self.take_kept() } else { None };
        self.begin(first_usable);
        if let Some(kept) = kept {
            self.begin_with(kept, fx);
        } else {
            let all = Unread { range: 0..u64::MAX, min_generation: first_usable };
            self.start_reading(all, fx);
        }
    }

    /// Nothing is known of it yet, and generations from `first_usable` on will do.
    fn begin(&mut self, first_usable: u64) {
        self.state = FsState::Seeding;
        self.first_generation = 0;
        self.ledger = self.new_ledger.begin();
        self.giving_up = GivingUp::default();
        self.begin_cut(first_usable);
        self.durable = 0;
        self.signalled = 0;
        self.order = Order::new(self.mode);
        self.newest_transid = 0;
        self.clean = 0;
        self.folded_upto = 0;
        self.exact_upto = 0;
        self.known = KnownTree::default();
        self.look_at.clear();
        self.counts.audits += self.audit.as_ref().map_or(0, Audit::done);
        self.audit = self.audits.map(Audit::new);
        self.read_upto = 0;
        self.taken_upto = 0;
        self.check.forget();
        self.at_rest.forget();
        self.aborted = None;
        self.found_in.clear();
    }

    /// What stood before ends. A mount that made changes before its tree was read is one of
    /// which nothing was verified.
    fn leave(&mut self) {
        self.give_up_audit();
        self.stop_reading();
        if self.state == FsState::Seeding && self.newest_transid != 0 {
            self.counts.mounts_unverified += 1;
        }
    }

    /// Nothing counts as read any more.
    fn begin_cut(&mut self, min_generation: u64) {
        self.counts.on_disk += self.cut.left_to_disk();
        self.cut = Cut::new(min_generation);
    }

    /// It is gone from the kernel. If that is told again, btrfs itself is: what is kept has
    /// addresses in it that will mean something else.
    pub(crate) fn unmounted(&mut self, fx: &mut Effects) {
        if self.state == FsState::Unmounted {
            self.at_rest.forget();
            return;
        }
        self.come_to_rest(fx);
        self.leave();
        let was_refused = mem::replace(&mut self.state, FsState::Unmounted) == FsState::Refused;
        fx.notices.push(Notice::Unmounted { fs: self.slot });
        if !was_refused {
            self.ask_what_became(fx);
        }
    }

    /// A transaction was aborted. What becomes of it the superblock on disk decides: an error may
    /// have come after it was written, and the transaction before may still be on its way.
    pub(crate) fn aborted(&mut self, transid: u64, errno: i32, fx: &mut Effects) {
        if !self.is_watching() {
            return;
        }
        self.at_rest.forget();
        self.leave();
        self.state = FsState::Aborted;
        // Perhaps it has made no change that is told of.
        self.newest_transid = self.newest_transid.max(transid);
        self.aborted = Some(transid);
        fx.notices.push(Notice::Aborted { fs: self.slot, transid, errno });
        self.ask_what_became(fx);
    }

    /// The newest transaction that may have ended as it should.
    fn last_ended(&self) -> u64 {
        let before_abort = self.aborted.map_or(u64::MAX, |aborted| aborted.saturating_sub(1));
        self.newest_transid.min(before_abort)
    }

    const fn is_watching(&self) -> bool {
        matches!(self.state, FsState::Seeding | FsState::Live | FsState::Blind)
    }

    /// Events were lost. Nothing is judged until what has changed of the tree since nothing was
    /// lost has been read at a generation that contains whatever was lost.
    pub(crate) fn lost(&mut self, loss: Loss, fx: &mut Effects) {
        self.at_rest.forget();
        if !self.is_watching() {
            return;
        }
        if self.state != FsState::Blind {
            self.go_blind(loss, fx);
        }
        self.give_up_audit();
        self.counts.on_disk += self.ready.len() as u64;
        self.ready.clear();
        let distrusted: Vec<u64> = self.distrusted().collect();
        self.look_at.extend(distrusted);
        self.ledger.undo_above(self.exact_upto);
        self.begin_cut(u64::MAX);
        // No superblock is that new: the reader tells which is on disk now, see `waits`.
        self.start_reading(Unread { range: 0..u64::MAX, min_generation: u64::MAX }, fx);
    }

    /// What was lost belongs to the transaction that ran when the last drain ended without
    /// loss, or to a later one.
    fn go_blind(&mut self, loss: Loss, fx: &mut Effects) {
        self.state = FsState::Blind;
        self.first_generation = 0;
        self.tell_blind(self.clean.saturating_sub(1), BlindCause::Lost(loss), fx);
    }

    fn tell_blind(&mut self, verified_upto: u64, cause: BlindCause, fx: &mut Effects) {
        self.spans.go_blind(verified_upto, cause.clone());
        fx.notices.push(Notice::Blind { fs: self.slot, cause, verified_upto });
    }

    /// What is told contradicts itself; a loss follows. Of no change since is it known whether it
    /// was made, also of those that have become the ledger's base: all is read anew.
    pub(crate) fn doubt(&mut self, disorder: Disorder, fx: &mut Effects) {
        if self.state != FsState::Blind {
            fx.notices.push(Notice::OutOfOrder { fs: self.slot, disorder });
        }
        self.clean = self.clean.min(disorder.doubted_from());
        self.exact_upto = 0;
    }

    /// Superblock `transid` is on disk, and all events of the transactions up to it have come.
    pub(crate) fn committed(
        &mut self,
        transid: u64,
        gate: &mut Gate,
        fx: &mut Effects,
    ) -> Result<(), Disorder> {
        if self.state == FsState::Refused {
            self.try_again(transid, fx);
        }
        if !self.is_watching() {
            return Ok(());
        }
        self.order.commit(transid)?;
        self.check.is_due = true;
        self.durable = self.durable.max(transid);
        self.signalled = self.signalled.max(transid);
        self.newest_transid = self.newest_transid.max(transid);
        self.cut.settle(transid);
        match &mut self.seeder {
            Some(seeder) => seeder.committed(),
            None => self.read_next_unread(fx),
        }
        self.step(gate, fx);
        Ok(())
    }

    /// Its fsid is known, without a reading of its tree.
    fn learn_fsid(&mut self, fsid: Uuid, fx: &mut Effects) {
        self.fsid = Some(fsid);
        fx.notices.push(Notice::Named { fs: self.slot, fsid });
    }

    /// Time passes.
    pub(crate) fn tick(&mut self, time_ns: u64, gate: &mut Gate, fx: &mut Effects) {
        self.time_ns = time_ns;
        self.check_superblock_if_due(fx);
        let Some(seeder) = &mut self.seeder else { return };
        if mem::take(&mut self.is_behind) {
            seeder.committed();
        }
        if time_ns.saturating_sub(self.moved_ns) > MOVE_ON_NS {
            self.moved_ns = time_ns;
            seeder.move_on();
        }
        if self.state != FsState::Live && time_ns.saturating_sub(self.told_ns) > TELL_NS {
            self.told_ns = time_ns;
            self.tell_progress(fx);
        }
        self.step(gate, fx);
    }

    /// A drain ended, and the loss counters read after it showed none.
    pub(crate) fn drained(&mut self, gate: &mut Gate, fx: &mut Effects) {
        self.clean = self.newest_transid;
        // While it is blind, the base stays what it was when nothing was lost yet.
        if !matches!(self.state, FsState::Seeding | FsState::Live) {
            return;
        }
        self.compare_with_disk(gate);
        self.fold();
        self.tell_given_up(fx);
        // First, so that audits one after the other do not keep it waiting.
        if self.seeder.is_none() {
            self.read_next_unread(fx);
        }
        self.audit_if_due(fx);
    }

    /// What is durable becomes the ledger's base.
    fn fold(&mut self) {
        let upto = self.audit.as_ref().map_or(u64::MAX, Audit::base_max).min(self.signalled);
        if upto <= self.folded_upto {
            return;
        }
        self.ledger.commit(upto);
        self.folded_upto = upto;
        self.found_in = self.found_in.split_off(&upto.saturating_add(1));
        if self.state == FsState::Live {
            self.exact_upto = upto;
        }
    }

    const fn signalled_or_read(&self) -> u64 {
        if self.signalled > self.durable { self.signalled } else { self.durable }
    }
}
