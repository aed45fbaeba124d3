//! Reading the extent tree: what is to be read next, and what comes of what was read.

use std::{mem, ops::Range};

use crate::{
    btrfs::{
        DiskFinding,
        format::Superblock,
        reader::{Known, MirrorFault},
    },
    feed::BlockAnswer,
    verify::{
        Cause, Finding, FindingKind, FsState, Notice,
        audit::Audit,
        cut::Unread,
        filesystem::{Effects, FileSystem, READING_SHIFT, SuperblockCheck, at_rest::AtRest},
        gate::Gate,
        ledger::Ledger as _,
        seeder::{Progress, Seeder},
    },
};

impl FileSystem {
    /// The answer to a read.
    pub(crate) fn answer(&mut self, answer: BlockAnswer, gate: &mut Gate, fx: &mut Effects) {
        if SuperblockCheck::is_for(answer.id) {
            self.take_superblock(&answer, fx);
            return;
        }
        if AtRest::is_for(answer.id) {
            self.answer_at_rest(answer, gate, fx);
            return;
        }
        if answer.id >> READING_SHIFT != self.reading {
            return;
        }
        if let Some(seeder) = &mut self.seeder {
            seeder.answer(answer.id & ((1 << READING_SHIFT) - 1), answer.data);
        }
        self.step(gate, fx);
    }

    pub(super) fn start_reading(&mut self, unread: Unread, fx: &mut Effects) {
        self.stop_reading();
        let seeder = if unread.range == (0..u64::MAX) {
            let tree = mem::take(&mut self.known);
            let look_at = self.look_at.clone();
            // What was met by an audit that was given up was not compared.
            let since = self.exact_upto.min(self.taken_upto);
            let known = Known { tree, since, look_at };
            Seeder::since(unread.min_generation, known)
        } else {
            Seeder::new(unread.range, unread.min_generation)
        };
        self.begin_reading(seeder, fx);
    }

    pub(super) fn begin_reading(&mut self, seeder: Seeder, fx: &mut Effects) {
        self.reading += 1;
        self.moved_ns = self.time_ns;
        self.is_behind = false;
        self.seeder = Some(seeder);
        self.request_blocks(fx);
    }

    /// What was met of the whole tree is kept.
    pub(super) fn stop_reading(&mut self) {
        if let Some(known) = self.seeder.take().and_then(Seeder::into_known) {
            self.known = known;
        }
    }

    pub(super) fn request_blocks(&mut self, fx: &mut Effects) {
        let Some(seeder) = &mut self.seeder else { return };
        for mut read in seeder.requests(self.slot) {
            read.id |= self.reading << READING_SHIFT;
            fx.reads.push(read);
        }
    }

    /// Not while an audit is under way: what it has read is compared with what is known now.
    pub(super) fn read_next_unread(&mut self, fx: &mut Effects) {
        let is_auditing = self.audit.as_ref().is_some_and(Audit::is_busy);
        if is_auditing || !self.is_watching() || self.at_rest.is_beginning() {
            return;
        }
        if let Some(unread) = self.cut.first_unread(self.durable) {
            self.start_reading(unread, fx);
        }
    }

    /// Takes all that reading has led to so far, and asks for more.
    pub(super) fn step(&mut self, gate: &mut Gate, fx: &mut Effects) {
        while let Some(progress) = self.seeder.as_mut().and_then(Seeder::next) {
            if self.is_auditing() {
                self.take_for_audit(progress, gate, fx);
            } else {
                self.take(progress, gate, fx);
            }
        }
        self.request_blocks(fx);
    }

    pub(super) fn take(&mut self, progress: Progress, gate: &mut Gate, fx: &mut Effects) {
        match progress {
            Progress::At { generation, superblock, rest } => {
                self.reading_at(generation, &superblock, rest, fx);
            }
            Progress::Read { range, generation, extents } => {
                self.ledger.read(range.clone(), generation, &extents);
                if let Some(seeder) = &mut self.seeder {
                    seeder.reuse(extents);
                }
                self.release(range, generation, gate);
            }
            // Whatever was done there since was undone there since.
            Progress::Unchanged { range, generation } => self.release(range, generation, gate),
            Progress::Wrong { generation, finding } => {
                self.wrong_on_disk(generation, finding, gate);
            }
            Progress::MirrorFailed(fault) => self.mirror_failed(&fault, fx),
            Progress::Waits { durable } => self.waits(durable, fx),
            Progress::WentBack { before, now } => self.writes_are_dropped(before, now, fx),
            Progress::Failed { reason, may_pass: true } => self.refuse_for_now(reason, fx),
            Progress::Failed { reason, may_pass: false } => self.refuse(reason, fx),
            Progress::Done { generation } => self.range_read(generation, fx),
        }
    }

    /// A range is known as of a generation: the events that waited for it are ruled on again.
    pub(super) fn release(&mut self, range: Range<u64>, generation: u64, gate: &mut Gate) {
        for waiting in self.cut.read(range, generation) {
            self.event_again(waiting, gate);
        }
    }

    /// Told once for each device of a mount, however often it is read.
    pub(super) fn mirror_failed(&mut self, fault: &MirrorFault, fx: &mut Effects) {
        let MirrorFault { devid, .. } = *fault;
        if self.told_mirrors.insert(devid) {
            let reason = fault.to_string();
            fx.notices.push(Notice::MirrorFailed { fs: self.slot, devid, reason });
        }
    }

    pub(super) fn reading_at(
        &mut self,
        generation: u64,
        sb: &Superblock,
        rest: Range<u64>,
        fx: &mut Effects,
    ) {
        self.durable = self.durable.max(generation);
        self.read_upto = self.read_upto.max(generation);
        self.fsid = Some(sb.fsid);
        self.cut.reading_moved(rest, generation);
        if self.state != FsState::Live {
            if self.first_generation == 0 {
                self.first_generation = generation;
            }
            self.tell_progress(fx);
        }
    }

    pub(super) fn tell_progress(&self, fx: &mut Effects) {
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

    pub(super) fn wrong_on_disk(&mut self, generation: u64, finding: DiskFinding, gate: &mut Gate) {
        let Some(kind) = finding.kind() else {
            tracing::warn!("{}: generation {generation}: {finding}", self.device);
            return;
        };
        if !self.told_on_disk.insert((kind, finding.bytenr)) {
            return;
        }
        let extent = self.ledger.dump(finding.bytenr);
        let cause = Cause::Disk { generation, finding };
        gate.hold(Finding::new(FindingKind::Disk(kind), self.slot, cause, extent));
    }

    /// The disk is too old for what is to be read.
    pub(super) fn waits(&mut self, durable: u64, fx: &mut Effects) {
        self.durable = self.durable.max(durable);
        let Some(unread) = self.cut.unread_ranges().next() else { return };
        if unread.min_generation == u64::MAX {
            // After a loss: at most two transactions were under way beyond the one on disk,
            // one committing and one running, and what was lost belongs to them or is older.
            // Events that came since were not kept.
            let generation = durable.saturating_add(2).max(self.newest_transid);
            self.begin_cut(generation);
            self.stop_reading();
            self.wait_for_commit(generation, fx);
        } else if self.durable >= unread.min_generation {
            // The commit has come before the answer of the disk, or what is written is dropped.
            self.is_behind = true;
        } else if self.state != FsState::Live {
            self.wait_for_commit(unread.min_generation, fx);
        }
    }

    pub(super) fn wait_for_commit(&self, generation: u64, fx: &mut Effects) {
        fx.notices.push(Notice::WaitingForCommit { fs: self.slot, generation });
    }

    /// The seeder's range is read; there may be others, for extents that are distrusted.
    pub(super) fn range_read(&mut self, generation: u64, fx: &mut Effects) {
        if let Some(seeder) = &self.seeder {
            self.check.expect_devices(seeder.devids());
        }
        self.stop_reading();
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
    pub(super) fn covers_all_but_distrusted(&self) -> bool {
        self.cut.unread_ranges().count() == self.distrusted().count()
    }

    /// The extents that are to be read again.
    pub(super) fn distrusted(&self) -> impl Iterator<Item = u64> {
        let ranges = self.cut.unread_ranges().map(|unread| unread.range);
        ranges.filter(|range| range.end - range.start == 1).map(|range| range.start)
    }

    pub(super) fn go_live(&mut self, generation: u64, fx: &mut Effects) {
        self.state = FsState::Live;
        self.look_at.clear();
        self.taken_upto = generation;
        if self.first_generation == generation {
            // All of it was read at one superblock, of which the base is the content.
            self.exact_upto = self.exact_upto.max(generation);
        }
        self.spans.see(generation.saturating_add(1));
        fx.notices.push(Notice::Seeded {
            fs: self.slot,
            first_generation: self.first_generation,
            generation,
            extents: self.ledger.live(),
        });
        self.first_generation = 0;
    }
}
