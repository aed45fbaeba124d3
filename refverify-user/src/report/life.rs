//! The life of one extent, as text.

use std::{collections::BTreeMap, fmt::Write, sync::Arc};

use super::{text, watched::Watched};
use crate::{
    feed::{Change, Event, FsSlot, ToVerifier},
    verify::{ExtentDump, Notice, Symbols},
};

/// Follows one logical address through the messages and notices of a run.
#[derive(Debug)]
pub struct Life {
    bytenr: u64,
    watched: Watched,
    symbols: Symbols,
    /// For each file system, the extent as it was last told.
    told: BTreeMap<FsSlot, Option<ExtentDump>>,
    /// Transactions that changed it and are not on disk yet.
    pending: Vec<(FsSlot, u64)>,
    /// How many events were about it.
    pub events: u64,
}

impl Life {
    /// Follows the extent at, or around, this logical address. Stacks are told with these
    /// texts.
    pub fn new(bytenr: u64, symbols: BTreeMap<u64, Arc<str>>) -> Self {
        Self {
            bytenr,
            watched: Watched::default(),
            symbols: Symbols(symbols),
            told: BTreeMap::new(),
            pending: Vec::new(),
            events: 0,
        }
    }

    /// What a message says of the extent.
    pub fn message(&mut self, message: &ToVerifier) -> String {
        let mut out = String::new();
        match message {
            ToVerifier::Events(events) => {
                let address = self.bytenr;
                for event in events.iter().filter(|event| is_about(event, address)) {
                    self.event(&mut out, event);
                }
            }
            ToVerifier::Commit { fs, transid } => {
                let before = self.pending.len();
                self.pending.retain(|(of, pending)| of != fs || pending > transid);
                if self.pending.len() < before {
                    let device = self.watched.name(*fs);
                    let _ = writeln!(out, "{device}: transaction {transid} is on disk");
                }
            }
            _ => {}
        }
        out
    }

    fn event(&mut self, out: &mut String, event: &Event) {
        self.events += 1;
        let pending = (event.fs, event.transid);
        if !self.pending.contains(&pending) {
            self.pending.push(pending);
        }
        let device = self.watched.name(event.fs);
        let _ = match event.change {
            Change::Ref { bytenr, len_bytes, .. } => {
                write!(out, "{device}: extent {bytenr} len {len_bytes}: ")
            }
            Change::RemoveGroup { .. } => write!(out, "{device}: "),
        };
        text::event(out, event, &self.symbols);
    }

    /// What a notice says of the extent, or of how much of it is known.
    pub fn notice(&mut self, notice: &Notice) -> String {
        self.watched.observe(notice);
        match notice {
            Notice::Finding(finding) if finding.bytenr() == self.bytenr => {
                format!("finding: {}", text::finding(finding, &self.watched.name(finding.fs)))
            }
            Notice::Mounted { .. }
            | Notice::Seeded { .. }
            | Notice::Blind { .. }
            | Notice::Aborted { .. }
            | Notice::Undone { .. }
            | Notice::Unmounted { .. } => {
                super::lifecycle::line(notice, &self.watched).map_or_else(String::new, |l| l + "\n")
            }
            _ => String::new(),
        }
    }

    /// The extent as it is known after a message. It is told where no event explains how it
    /// changed: when it was read from disk.
    pub fn state(&mut self, fs: FsSlot, known: Option<&ExtentDump>, explained: bool) -> String {
        let before = self.told.insert(fs, known.cloned()).flatten();
        if explained || same(before.as_ref(), known) {
            return String::new();
        }
        let device = self.watched.name(fs);
        match known {
            Some(extent) => format!("{device}: {}", as_known(extent)),
            None => format!("{device}: nothing is known at {} any more\n", self.bytenr),
        }
    }

    /// The extent of each file system as it was known at the end.
    pub fn end(&self) -> String {
        let mut out = String::new();
        for (fs, known) in &self.told {
            let device = self.watched.name(*fs);
            let _ = match known {
                Some(extent) => write!(out, "at the end, {device}: {}", as_known(extent)),
                None => writeln!(out, "at the end, {device}: no extent is known there"),
            };
        }
        out
    }
}

/// Without the history, which has been told.
fn as_known(extent: &ExtentDump) -> String {
    let mut out = String::new();
    text::extent_without_history(&mut out, extent);
    out
}

fn is_about(event: &Event, address: u64) -> bool {
    let (Change::Ref { bytenr: start, len_bytes, .. } | Change::RemoveGroup { start, len_bytes }) =
        event.change;
    address.checked_sub(start).is_some_and(|offset| offset == 0 || offset < len_bytes)
}

/// But for the history.
fn same(a: Option<&ExtentDump>, b: Option<&ExtentDump>) -> bool {
    let facts = |extent: &ExtentDump| {
        (extent.len_bytes, extent.kind, extent.total_refs, extent.from_disk, extent.refs.clone())
    };
    a.map(facts) == b.map(facts)
}
