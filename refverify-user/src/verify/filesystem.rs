//! One watched file system: its ledger, its cut, and where it stands.

use std::{collections::HashSet, ops::Range};

use uuid::Uuid;

use super::{
    Cause, Coverage, ExtentDump, Finding, FindingKind, FsState, Notice, Share, Span, Symbols,
    cut::{Cut, Ruling, Unread, Waiting, place},
    gate::{Gate, LastEvent},
    ledger::{Ledger, RefChange},
    seeder::{Progress, Seeder},
};
use crate::{
    btrfs::{DiskFinding, DiskFindingKind, format::Superblock},
    feed::{BlockAnswer, BlockRequest, Change, Event, FsSlot, Loss},
};

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
    fsid: Option<Uuid>,
    state: FsState,
    ledger: Ledger,
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
    newest_transid: u64,
    /// Everything up to this transid had come when a drain ended without loss.
    clean: u64,
    /// Where the current span of verified transactions begins.
    verified_from: Option<u64>,
    /// Where the current blind span begins.
    blind_from: Option<u64>,
    verified: Vec<Span>,
    blind: Vec<Span>,
    told_on_disk: HashSet<(DiskFindingKind, u64)>,
    counts: Counts,
}

#[derive(Default)]
struct Counts {
    seen: u64,
    applied: u64,
    on_disk: u64,
    retracted: u64,
    mounts_unverified: u64,
}

/// How often reading goes on at a newer superblock, so that fewer events have to wait.
const MOVE_ON_NS: u64 = 3_000_000_000;
/// How often progress is told.
const TELL_NS: u64 = 500_000_000;
/// Where the reading's number sits in a request's id.
const READING_SHIFT: u32 = 40;

impl FileSystem {
    /// A device that is watched; nothing is mounted yet.
    pub(crate) fn new(slot: FsSlot, device: String) -> Self {
        Self {
            slot,
            device,
            fsid: None,
            state: FsState::Unmounted,
            ledger: Ledger::default(),
            cut: Cut::new(0),
            seeder: None,
            reading: 0,
            first_generation: 0,
            moved_ns: 0,
            told_ns: 0,
            durable: 0,
            signalled: 0,
            newest_transid: 0,
            clean: 0,
            verified_from: None,
            blind_from: None,
            verified: Vec::new(),
            blind: Vec::new(),
            told_on_disk: HashSet::new(),
            counts: Counts::default(),
        }
    }

    /// Where it stands.
    pub(crate) const fn state(&self) -> FsState {
        self.state
    }

    /// It is mounted: everything known of an earlier mount is void.
    pub(crate) fn mounted(&mut self, device: String, first_usable: u64, fx: &mut Effects) {
        self.leave();
        self.device = device;
        self.first_generation = 0;
        self.ledger = Ledger::default();
        self.begin_cut(first_usable);
        self.durable = 0;
        self.signalled = 0;
        self.newest_transid = 0;
        self.clean = 0;
        self.told_on_disk.clear();
        self.state = FsState::Seeding;
        fx.notices.push(Notice::Mounted { fs: self.slot, armed_before: first_usable == 0 });
        self.start_reading(Unread { range: 0..u64::MAX, min_generation: first_usable }, fx);
    }

    /// What stood before ends. A mount that made changes before its tree was read is one of
    /// which nothing was verified.
    fn leave(&mut self) {
        self.close_spans();
        if self.state == FsState::Seeding && self.newest_transid != 0 {
            self.counts.mounts_unverified += 1;
        }
    }

    /// Nothing counts as read any more.
    fn begin_cut(&mut self, min_generation: u64) {
        self.counts.on_disk += self.cut.left_to_disk();
        self.cut = Cut::new(min_generation);
    }

    /// It is gone from the kernel.
    pub(crate) fn unmounted(&mut self, fx: &mut Effects) {
        if self.state == FsState::Unmounted {
            return;
        }
        self.leave();
        self.seeder = None;
        self.state = FsState::Unmounted;
        fx.notices.push(Notice::Unmounted { fs: self.slot });
    }

    /// A transaction was aborted: from it on, nothing reaches the disk.
    pub(crate) fn aborted(&mut self, transid: u64, errno: i32, fx: &mut Effects) {
        if !self.is_watching() {
            return;
        }
        self.newest_transid = transid.saturating_sub(1);
        self.leave();
        self.seeder = None;
        self.state = FsState::Aborted;
        fx.notices.push(Notice::Aborted { fs: self.slot, transid, errno });
    }

    const fn is_watching(&self) -> bool {
        matches!(self.state, FsState::Seeding | FsState::Live | FsState::Blind)
    }

    /// One event has come.
    pub(crate) fn event(&mut self, event: Event, gate: &mut Gate) {
        self.counts.seen += 1;
        if !self.is_watching() {
            return;
        }
        self.newest_transid = self.newest_transid.max(event.transid);
        gate.saw(&event);
        match event.change {
            Change::Ref { bytenr, .. } => match self.cut.ruling(bytenr, event.transid) {
                Ruling::OnDisk => self.counts.on_disk += 1,
                Ruling::Wait => self.cut.wait(bytenr, event),
                Ruling::Apply => self.apply(event, gate),
            },
            Change::RemoveGroup { .. } => self.remove_group(&event, None, gate),
        }
    }

    /// An event that waited is ruled on again, now that its range has been read.
    fn event_again(&mut self, waiting: Waiting, gate: &mut Gate) {
        let event = &waiting.event;
        match event.change {
            Change::Ref { bytenr, .. } => match self.cut.ruling(bytenr, event.transid) {
                Ruling::OnDisk => self.counts.on_disk += 1,
                Ruling::Wait => self.cut.wait_again(bytenr, waiting),
                Ruling::Apply => self.apply(waiting.event, gate),
            },
            Change::RemoveGroup { .. } => {
                self.remove_group(&waiting.event, Some(waiting.arrival()), gate);
            }
        }
    }

    fn apply(&mut self, event: Event, gate: &mut Gate) {
        self.counts.applied += 1;
        let Change::Ref { action, kind, bytenr, len_bytes, key, .. } = event.change else { return };
        let change = RefChange { action, kind, bytenr, len_bytes, key };
        let Err(violation) = self.ledger.apply(&change, &event) else { return };
        self.distrust(bytenr, event.transid);
        gate.hold(Finding {
            kind: violation.kind,
            fs: self.slot,
            cause: Cause::Event(event),
            extent: violation.extent,
            symbols: Symbols::default(),
        });
    }

    /// What the disk says of the extent after `transid` is what counts.
    fn distrust(&mut self, bytenr: u64, transid: u64) {
        self.cut.unread(bytenr..bytenr.saturating_add(1), transid);
    }

    /// A block group goes, piece by piece where its range was read at different times.
    fn remove_group(&mut self, event: &Event, arrival: Option<u64>, gate: &mut Gate) {
        let range = place(&event.change);
        let pieces = self.cut.split(range.clone());
        let rulings: Vec<Ruling> =
            pieces.iter().map(|piece| self.cut.ruling(piece.start, event.transid)).collect();
        if rulings.iter().all(|ruling| *ruling == Ruling::Apply) {
            self.report_crossing(event, &range, gate);
        }
        let mut is_applied = false;
        for (piece, ruling) in pieces.into_iter().zip(rulings) {
            match ruling {
                Ruling::OnDisk => {}
                Ruling::Apply => {
                    self.ledger.remove(piece);
                    is_applied = true;
                }
                Ruling::Wait => self.wait_with_piece(event, piece, arrival),
            }
        }
        self.counts.applied += u64::from(is_applied);
    }

    fn wait_with_piece(&mut self, event: &Event, piece: Range<u64>, arrival: Option<u64>) {
        let change = Change::RemoveGroup { start: piece.start, len_bytes: piece.end - piece.start };
        let event = Event { change, ..event.clone() };
        match arrival {
            Some(arrival) => self.cut.wait_again(piece.start, Waiting::new(arrival, event)),
            None => self.cut.wait(piece.start, event),
        }
    }

    fn report_crossing(&self, event: &Event, range: &Range<u64>, gate: &mut Gate) {
        for extent in self.ledger.crossing(range) {
            gate.hold(Finding {
                kind: FindingKind::BlockGroupOverlap,
                fs: self.slot,
                cause: Cause::Event(event.clone()),
                extent: Some(extent),
                symbols: Symbols::default(),
            });
        }
    }

    /// A call failed: what it was to change is not known until the disk has been read again.
    pub(crate) fn retracted(&mut self, void: &LastEvent) {
        self.counts.retracted += 1;
        if self.is_watching() {
            self.distrust(void.bytenr, void.transid);
        }
    }

    /// Events were lost. Nothing is judged until the whole tree has been read at a generation
    /// that contains whatever was lost.
    pub(crate) fn lost(&mut self, loss: Loss, fx: &mut Effects) {
        if !self.is_watching() {
            return;
        }
        if self.state != FsState::Blind {
            self.go_blind(loss, fx);
        }
        self.begin_cut(u64::MAX);
        // No superblock is that new: the reader tells which is on disk now, see `waits`.
        self.start_reading(Unread { range: 0..u64::MAX, min_generation: u64::MAX }, fx);
    }

    /// What was lost belongs to the transaction that ran when the last drain ended without
    /// loss, or to a later one.
    fn go_blind(&mut self, loss: Loss, fx: &mut Effects) {
        let verified_upto = self.clean.saturating_sub(1);
        self.close_spans_at(verified_upto);
        self.blind_from = Some(verified_upto.saturating_add(1));
        self.state = FsState::Blind;
        self.first_generation = 0;
        fx.notices.push(Notice::Blind { fs: self.slot, loss, verified_upto });
    }

    /// Superblock `transid` is on disk, and all events of the transactions up to it have come.
    pub(crate) fn committed(&mut self, transid: u64, gate: &mut Gate, fx: &mut Effects) {
        if !self.is_watching() {
            return;
        }
        self.durable = self.durable.max(transid);
        self.signalled = self.signalled.max(transid);
        self.newest_transid = self.newest_transid.max(transid);
        self.cut.settle(transid);
        match &mut self.seeder {
            Some(seeder) => seeder.committed(),
            None => self.read_next_unread(fx),
        }
        self.step(gate, fx);
    }

    /// Time passes.
    pub(crate) fn tick(&mut self, time_ns: u64, gate: &mut Gate, fx: &mut Effects) {
        let Some(seeder) = &mut self.seeder else { return };
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
    pub(crate) fn drained(&mut self) {
        self.clean = self.newest_transid;
    }

    /// The answer to a read.
    pub(crate) fn answer(&mut self, answer: BlockAnswer, gate: &mut Gate, fx: &mut Effects) {
        if answer.id >> READING_SHIFT != self.reading {
            return;
        }
        if let Some(seeder) = &mut self.seeder {
            seeder.answer(answer.id & ((1 << READING_SHIFT) - 1), answer.data);
        }
        self.step(gate, fx);
    }

    fn start_reading(&mut self, unread: Unread, fx: &mut Effects) {
        self.reading += 1;
        self.seeder = Some(Seeder::new(unread.range, unread.min_generation));
        self.request_blocks(fx);
    }

    fn request_blocks(&mut self, fx: &mut Effects) {
        let Some(seeder) = &mut self.seeder else { return };
        for mut read in seeder.requests(self.slot) {
            read.id |= self.reading << READING_SHIFT;
            fx.reads.push(read);
        }
    }

    fn read_next_unread(&mut self, fx: &mut Effects) {
        if let Some(unread) = self.cut.first_unread(self.durable) {
            self.start_reading(unread, fx);
        }
    }

    /// Takes all that reading has led to so far, and asks for more.
    fn step(&mut self, gate: &mut Gate, fx: &mut Effects) {
        while let Some(progress) = self.seeder.as_mut().and_then(Seeder::next) {
            self.take(progress, gate, fx);
        }
        self.request_blocks(fx);
    }

    fn take(&mut self, progress: Progress, gate: &mut Gate, fx: &mut Effects) {
        match progress {
            Progress::At { generation, superblock, rest } => {
                self.reading_at(generation, &superblock, rest, fx);
            }
            Progress::Read { range, generation, extents } => {
                self.ledger.clear(range.clone());
                for extent in &extents {
                    self.ledger.take_from_disk(extent, generation);
                }
                for waiting in self.cut.read(range, generation) {
                    self.event_again(waiting, gate);
                }
            }
            Progress::Wrong { generation, finding } => {
                self.wrong_on_disk(generation, finding, gate);
            }
            Progress::MirrorFailed(fault) => fx.notices.push(Notice::MirrorFailed {
                fs: self.slot,
                devid: fault.devid,
                reason: fault.to_string(),
            }),
            Progress::Waits { durable } => self.waits(durable, fx),
            Progress::Failed(reason) => self.refuse(reason, fx),
            Progress::Done { generation } => self.range_read(generation, fx),
        }
    }

    fn reading_at(&mut self, generation: u64, sb: &Superblock, rest: Range<u64>, fx: &mut Effects) {
        self.durable = self.durable.max(generation);
        self.fsid = Some(sb.fsid);
        self.cut.reading_moved(rest, generation);
        if self.state != FsState::Live {
            if self.first_generation == 0 {
                self.first_generation = generation;
            }
            self.tell_progress(fx);
        }
    }

    fn tell_progress(&self, fx: &mut Effects) {
        let (Some(seeder), Some(fsid)) = (&self.seeder, self.fsid) else { return };
        fx.notices.push(Notice::Seeding {
            fs: self.slot,
            fsid,
            generation: self.durable,
            done_permille: seeder.done_permille(),
            extents: self.ledger.live(),
            events_waiting: self.cut.waiting() as u64,
        });
    }

    fn wrong_on_disk(&mut self, generation: u64, finding: DiskFinding, gate: &mut Gate) {
        let Some(kind) = finding.kind() else {
            tracing::warn!("{}: generation {generation}: {finding}", self.device);
            return;
        };
        if !self.told_on_disk.insert((kind, finding.bytenr)) {
            return;
        }
        gate.hold(Finding {
            kind: FindingKind::Disk(kind),
            fs: self.slot,
            extent: self.ledger.dump(finding.bytenr),
            cause: Cause::Disk { generation, finding },
            symbols: Symbols::default(),
        });
    }

    /// The disk is too old for what is to be read.
    fn waits(&mut self, durable: u64, fx: &mut Effects) {
        self.durable = self.durable.max(durable);
        let Some(unread) = self.cut.unread_ranges().next() else { return };
        if unread.min_generation == u64::MAX {
            // After a loss: at most two transactions were under way beyond the one on disk,
            // one committing and one running, and what was lost belongs to them or is older.
            // Events that came since were not kept.
            let generation = durable.saturating_add(2).max(self.newest_transid);
            self.begin_cut(generation);
            self.seeder = None;
            self.wait_for_commit(generation, fx);
        } else if let Some(seeder) = &mut self.seeder
            && self.durable >= unread.min_generation
        {
            // The commit has come before the answer of the disk.
            seeder.committed();
        } else if self.state != FsState::Live {
            self.wait_for_commit(unread.min_generation, fx);
        }
    }

    fn wait_for_commit(&self, generation: u64, fx: &mut Effects) {
        fx.notices.push(Notice::WaitingForCommit { fs: self.slot, generation });
    }

    fn refuse(&mut self, reason: String, fx: &mut Effects) {
        self.close_spans();
        self.counts.mounts_unverified += 1;
        self.seeder = None;
        self.state = FsState::Refused;
        fx.notices.push(Notice::Refused { fs: self.slot, reason });
    }

    /// Refuses the file system where it would take more than its share.
    pub(crate) fn keep_within(&mut self, share: Share, fx: &mut Effects) {
        let entries = self.ledger.entries() + self.told_on_disk.len() as u64;
        let ranges = self.cut.ranges();
        if entries > share.entries_max {
            self.over_share(&format!("{entries} extents, references and actions"), fx);
        } else if ranges > share.waiting_max {
            self.over_share(&format!("{ranges} ranges that are to be read again"), fx);
        }
    }

    /// Refuses it, and lets go what is held of it.
    pub(crate) fn over_share(&mut self, what: &str, fx: &mut Effects) {
        if self.is_watching() {
            self.ledger = Ledger::default();
            self.cut = Cut::new(0);
            self.told_on_disk.clear();
            self.refuse(format!("{what} are more than its share"), fx);
        }
    }

    /// The seeder's range is read; there may be others, for extents that are distrusted.
    fn range_read(&mut self, generation: u64, fx: &mut Effects) {
        self.seeder = None;
        if self.state != FsState::Live && !self.covers_all_but_distrusted() {
            self.read_next_unread(fx);
            return;
        }
        if self.state != FsState::Live {
            self.go_live(generation, fx);
        }
        self.read_next_unread(fx);
    }

    /// Whether what is still unread are single extents only.
    fn covers_all_but_distrusted(&self) -> bool {
        self.cut.unread_ranges().all(|unread| unread.range.end - unread.range.start == 1)
    }

    fn go_live(&mut self, generation: u64, fx: &mut Effects) {
        if let Some(first) = self.blind_from.take() {
            self.blind.push(Span { first, last: generation.max(first) });
        }
        self.state = FsState::Live;
        self.verified_from = Some(generation.saturating_add(1));
        fx.notices.push(Notice::Seeded {
            fs: self.slot,
            first_generation: self.first_generation,
            generation,
            extents: self.ledger.live(),
        });
        self.first_generation = 0;
    }

    /// Ends the spans that are open at the newest transaction seen.
    fn close_spans(&mut self) {
        self.close_spans_at(self.newest_transid);
    }

    fn close_spans_at(&mut self, last: u64) {
        if let Some(first) = self.verified_from.take()
            && first <= last
        {
            self.verified.push(Span { first, last });
        }
        if let Some(first) = self.blind_from.take() {
            self.blind.push(Span { first, last: last.max(first) });
        }
    }

    /// What was verified, at the end.
    pub(crate) fn coverage(&mut self) -> Coverage {
        self.close_spans();
        Coverage {
            fs: self.slot,
            device: self.device.clone(),
            fsid: self.fsid,
            state: self.state,
            verified: self.verified.clone(),
            blind: self.blind.clone(),
            events_seen: self.counts.seen,
            events_applied: self.counts.applied,
            events_on_disk: self.counts.on_disk + self.cut.left_to_disk(),
            events_retracted: self.counts.retracted,
            mounts_unverified: self.counts.mounts_unverified,
            extents: self.ledger.live(),
        }
    }

    /// What is known of one extent.
    pub(crate) fn extent(&self, bytenr: u64) -> Option<ExtentDump> {
        self.ledger.dump(bytenr)
    }

    /// The ledger as text, as `docs/ledger-dump.md` describes it.
    pub(crate) fn dump(&self, out: &mut String) {
        super::dump::write(
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

    const fn signalled_or_read(&self) -> u64 {
        if self.signalled > self.durable { self.signalled } else { self.durable }
    }
}
