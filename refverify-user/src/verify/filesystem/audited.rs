//! How a file system is audited: when, with which reading, and what comes of a difference.

use crate::{
    btrfs::reader::Known,
    verify::{
        Cause, ExtentDump, Finding, FindingKind, FsState,
        audit::{self, Difference, Part},
        cut::Ruling,
        filesystem::{Effects, FileSystem},
        gate::Gate,
        ledger::{Extent, Ledger as _},
        seeder::{Progress, Seeder},
    },
};

impl FileSystem {
    /// Compares what was read and can be compared now: a drain ended without loss, so all events up
    /// to the last commit that was signalled have come.
    pub(super) fn compare_with_disk(&mut self, gate: &mut Gate) {
        let known_upto = self.signalled;
        let Some(audit) = self.audit.as_ref().filter(|audit| audit.is_busy()) else { return };
        if audit.base_max() <= known_upto {
            self.ledger.arrange();
        }
        while let Some(part) = self.audit.as_mut().and_then(|audit| audit.next_part(known_upto)) {
            for difference in audit::differences(&self.ledger, &part) {
                self.differs(difference, part.generation, gate);
            }
        }
        if let Some(audit) = self.audit.as_mut().filter(|audit| audit.is_compared()) {
            audit.end(self.time_ns);
            // What is not on disk yet was not compared, though it was looked at.
            for bytenr in self.ledger.touched(u64::MAX) {
                audit.touch(bytenr);
            }
            self.taken_upto = self.read_upto;
        }
    }

    /// An extent that is distrusted already is told of once.
    fn differs(&mut self, difference: Difference, generation: u64, gate: &mut Gate) {
        let Difference { bytenr, expected, on_disk } = difference;
        if self.cut.ruling(bytenr, u64::MAX) != Ruling::Apply {
            return;
        }
        self.distrust(bytenr, generation);
        let cause = Cause::Audit { generation, bytenr, on_disk };
        let extent = self.expected(bytenr, expected.as_ref());
        gate.hold(Finding::new(FindingKind::DiskDiffers, self.slot, cause, extent));
    }

    /// The extent as of a generation, with what is known of its history; a tombstone where it was
    /// freed.
    fn expected(&self, bytenr: u64, expected: Option<&Extent>) -> Option<ExtentDump> {
        let known = self.ledger.dump(bytenr);
        let Some(expected) = expected else { return known.filter(|known| known.total_refs == 0) };
        let mut dump = expected.dump(bytenr);
        if let Some(known) = known {
            (dump.actions, dump.actions_given_up) = (known.actions, known.actions_given_up);
        }
        Some(dump)
    }

    /// Begins an audit where one is due and nothing else is being read.
    pub(super) fn audit_if_due(&mut self, fx: &mut Effects) {
        let is_quiet = self.state == FsState::Live && self.seeder.is_none();
        // What was met of the tree at a newer superblock than the last signalled one would be taken
        // for known.
        if !is_quiet || self.signalled <= self.read_upto {
            return;
        }
        let (time_ns, generation) = (self.time_ns, self.signalled);
        let Some(audit) = self.audit.as_mut().filter(|audit| audit.is_due(time_ns)) else { return };
        let look_at = audit.begin(generation);
        let tree = std::mem::take(&mut self.known);
        let since = if look_at.is_some() { self.taken_upto } else { 0 };
        let known = Known { tree, since, look_at: look_at.unwrap_or_default() };
        self.begin_reading(Seeder::since(generation, known), fx);
    }

    /// Whether what is read is for an audit.
    pub(super) fn is_auditing(&self) -> bool {
        self.audit.as_ref().is_some_and(audit::Audit::is_reading)
    }

    /// Takes what reading for an audit has led to.
    pub(super) fn take_for_audit(&mut self, progress: Progress, gate: &mut Gate, fx: &mut Effects) {
        let Some(audit) = &mut self.audit else { return };
        match progress {
            Progress::At { generation, .. } => {
                audit.reading_at(generation);
                self.read_upto = self.read_upto.max(generation);
                self.durable = self.durable.max(generation);
            }
            Progress::Read { range, generation, extents } => {
                audit.take(Part { range, generation, extents });
            }
            Progress::Unchanged { .. } => {}
            Progress::Wrong { generation, finding } => {
                self.wrong_on_disk(generation, finding, gate);
            }
            Progress::MirrorFailed(fault) => self.mirror_failed(&fault, fx),
            Progress::Done { .. } => {
                audit.all_read();
                self.stop_reading();
            }
            Progress::Waits { durable } => {
                tracing::debug!("{}: an audit met superblock {durable}", self.device);
                self.give_up_audit();
                self.check.is_due = true;
            }
            Progress::WentBack { before, now } => self.writes_are_dropped(before, now, fx),
            Progress::Failed { reason, .. } => {
                tracing::warn!("{}: an audit could not be made: {reason}", self.device);
                self.give_up_audit();
            }
        }
    }

    /// What stands is no basis for a comparison any more.
    pub(super) fn give_up_audit(&mut self) {
        if let Some(audit) = &mut self.audit {
            audit.give_up(self.time_ns);
        }
        self.stop_reading();
    }
}
