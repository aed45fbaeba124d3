//! What becomes of an event: judged now, kept until its range is read, or left to the disk.

use std::{mem, ops::Range};

use crate::{
    feed::{Change, Event},
    verify::{
        Cause, Disorder, Finding, FindingKind,
        cut::{Ruling, Waiting, place},
        filesystem::FileSystem,
        gate::{Gate, LastEvent},
        ledger::{Ledger as _, Violation},
    },
};

impl FileSystem {
    /// One event has come.
    pub(crate) fn event(&mut self, event: Event, gate: &mut Gate) -> Result<(), Disorder> {
        self.counts.seen += 1;
        if !self.is_watching() {
            return Ok(());
        }
        if let Err(disorder) = self.order.event(event.transid) {
            self.newest_transid = event.transid;
            self.counts.on_disk += 1;
            return Err(disorder);
        }
        self.newest_transid = self.newest_transid.max(event.transid);
        gate.saw(&event);
        match event.change {
            Change::Ref { bytenr, .. } => match self.cut.ruling(bytenr, event.transid) {
                Ruling::OnDisk => self.counts.on_disk += 1,
                Ruling::Wait => self.cut.wait(bytenr, event),
                Ruling::Apply => self.ready.push(event),
            },
            Change::RemoveGroup { .. } => {
                self.judge_ready(gate);
                self.remove_group(&event, None, gate);
            }
        }
        Ok(())
    }

    /// Judges the events that are ready, all at once: the ledger is quicker so.
    pub(crate) fn judge_ready(&mut self, gate: &mut Gate) {
        let mut events = mem::take(&mut self.ready);
        for event in &events {
            self.touched(event);
        }
        self.counts.applied += events.len() as u64;
        let judged = self.ledger.apply_all(&events);
        for (place, violation) in judged.wrong {
            self.found(events[place].clone(), *violation, gate);
        }
        for place in judged.left {
            // Its extent is distrusted since: it waits, or the disk will answer for it.
            self.counts.applied -= 1;
            let event = events[place].clone();
            if let Change::Ref { bytenr, .. } = event.change {
                match self.cut.ruling(bytenr, event.transid) {
                    Ruling::Wait => self.cut.wait(bytenr, event),
                    Ruling::OnDisk | Ruling::Apply => self.counts.on_disk += 1,
                }
            }
        }
        events.clear();
        self.ready = events;
    }

    /// An event that waited is ruled on again, now that its range has been read.
    pub(super) fn event_again(&mut self, waiting: Waiting, gate: &mut Gate) {
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

    pub(super) fn apply(&mut self, event: Event, gate: &mut Gate) {
        self.counts.applied += 1;
        self.touched(&event);
        if let Err(violation) = self.ledger.apply(&event) {
            self.found(event, *violation, gate);
        }
    }

    pub(super) fn touched(&mut self, event: &Event) {
        if let Some(audit) = &mut self.audit {
            audit.touch(place(&event.change).start);
        }
    }

    pub(super) fn found(&mut self, event: Event, violation: Violation, gate: &mut Gate) {
        if let Change::Ref { bytenr, .. } = event.change {
            self.distrust(bytenr, event.transid);
        }
        *self.found_in.entry(event.transid).or_insert(0) += 1;
        let cause = Cause::Event(event);
        gate.hold(Finding::new(violation.kind, self.slot, cause, violation.extent));
    }

    /// What the disk says of the extent after `transid` is what counts.
    pub(super) fn distrust(&mut self, bytenr: u64, transid: u64) {
        self.cut.unread(bytenr..bytenr.saturating_add(1), transid);
    }

    /// A block group goes, piece by piece where its range was read at different times.
    pub(super) fn remove_group(&mut self, event: &Event, arrival: Option<u64>, gate: &mut Gate) {
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
                    self.ledger.remove(piece, event.transid);
                    is_applied = true;
                }
                Ruling::Wait => self.wait_with_piece(event, piece, arrival),
            }
        }
        self.counts.applied += u64::from(is_applied);
    }

    pub(super) fn wait_with_piece(
        &mut self,
        event: &Event,
        piece: Range<u64>,
        arrival: Option<u64>,
    ) {
        let change = Change::RemoveGroup { start: piece.start, len_bytes: piece.end - piece.start };
        let event = Event { change, ..event.clone() };
        match arrival {
            Some(arrival) => self.cut.wait_again(piece.start, Waiting::new(arrival, event)),
            None => self.cut.wait(piece.start, event),
        }
    }

    pub(super) fn report_crossing(&self, event: &Event, range: &Range<u64>, gate: &mut Gate) {
        for extent in self.ledger.crossing(range) {
            let cause = Cause::Event(event.clone());
            let kind = FindingKind::BlockGroupOverlap;
            gate.hold(Finding::new(kind, self.slot, cause, Some(extent)));
        }
    }

    /// A call failed: what it was to change is not known until the disk has been read again.
    pub(crate) fn retracted(&mut self, void: &LastEvent) {
        self.counts.retracted += 1;
        if self.is_watching() {
            self.distrust(void.bytenr, void.transid);
        }
    }
}
