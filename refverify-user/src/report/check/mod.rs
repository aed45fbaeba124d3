//! What `check` tells: what is wrong as it is read, and at the end what the extent tree holds.

use std::{
    collections::BTreeMap,
    io::{self, Write},
    ops::Range,
    sync::Arc,
};

use super::{
    printable::Printable,
    progress::{Progress, Reached},
};
use crate::{
    btrfs::{
        DiskFinding, Tally,
        format::{BlockFault, BlockPointer, Superblock},
        reader::MirrorFault,
    },
    feed::FsSlot,
};

mod dump;
mod json;
mod text;

pub use dump::CheckDump;

/// What a bad tree block is called.
const BAD_TREE_BLOCK: &str = "bad-tree-block";
/// The only file system that is checked at a time.
const SLOT: FsSlot = FsSlot(0);

/// What was read of an extent tree.
#[derive(Clone, Debug, Default)]
pub struct Checked {
    /// The newest superblock that was used; `None` if there was none.
    pub superblock: Option<Arc<Superblock>>,
    /// Which extents were read, by their bytenr, and at which generation.
    pub read: Vec<(Range<u64>, u64)>,
    /// Which could not be read.
    pub unread: Vec<Range<u64>>,
    /// Why reading ended before its time.
    pub failed: Option<String>,
    /// What was read.
    pub tally: Tally,
}

impl Checked {
    fn is_whole(&self) -> bool {
        self.failed.is_none() && self.unread.is_empty()
    }
}

/// A tree block that no mirror has.
#[derive(Debug)]
pub struct BadBlock<'a> {
    /// The superblock's generation.
    pub generation: u64,
    /// What should be there.
    pub pointer: &'a BlockPointer,
    /// What is wrong, mirror by mirror.
    pub faults: &'a [BlockFault],
}

impl BadBlock<'_> {
    /// A device that gives no bytes says nothing about the file system.
    fn is_violation(&self) -> bool {
        let unread = |fault: &BlockFault| {
            matches!(fault, BlockFault::Unreadable(_) | BlockFault::NotRebuilt { .. })
        };
        !self.faults.iter().all(unread)
    }
}

/// Writes what `check` finds, as text or as JSON lines.
#[derive(Debug)]
pub struct CheckReporter<W> {
    json: bool,
    device: String,
    /// `None` after a write failed.
    out: Option<W>,
    output_failed: bool,
    progress: Progress,
    findings: BTreeMap<&'static str, u64>,
}

impl<W: Write> CheckReporter<W> {
    /// Writes to `out`. The device is as the user named it.
    pub fn new(json: bool, device: String, out: W, progress: Progress) -> Self {
        let findings = BTreeMap::new();
        Self { json, device, out: Some(out), output_failed: false, progress, findings }
    }

    /// So far it is read.
    pub fn reached(&mut self, permille: u32, extents: u64) {
        let reached = Reached { permille, extents, events_waiting: None };
        self.progress.update(SLOT, &self.device, reached);
    }

    /// Something is wrong, or strange, in the extent tree of a generation.
    pub fn finding(&mut self, generation: u64, finding: &DiskFinding) {
        if let Some(kind) = finding.kind() {
            *self.findings.entry(kind.name()).or_default() += 1;
        }
        self.write(&if self.json {
            json::finding(generation, finding)
        } else {
            text::finding(generation, finding)
        });
    }

    /// A tree block is bad; what lies below it is not known.
    pub fn bad_block(&mut self, bad: &BadBlock) {
        if bad.is_violation() {
            *self.findings.entry(BAD_TREE_BLOCK).or_default() += 1;
        }
        self.write(&if self.json { json::bad_block(bad) } else { text::bad_block(bad) });
    }

    /// A device failed to give what another one had.
    pub fn mirror_failed(&mut self, fault: &MirrorFault) {
        self.write(&if self.json {
            json::mirror_failed(fault)
        } else {
            format!("warning: {}\n", Printable(&fault.to_string()))
        });
    }

    /// All that can be read has been read. Returns the exit status: a mask of 1 (the output
    /// failed), 2 (findings) and 4 (not everything could be read).
    pub fn end(mut self, checked: &Checked) -> u8 {
        self.progress.end(SLOT);
        let end = if self.json {
            json::end(&self.device, checked, &self.findings)
        } else {
            text::end(&self.device, checked, &self.findings)
        };
        self.write(&end);
        let findings = if self.findings.is_empty() { 0 } else { 2 };
        let gaps = if checked.is_whole() { 0 } else { 4 };
        u8::from(self.output_failed) | findings | gaps
    }

    fn write(&mut self, report: &str) {
        let Some(out) = &mut self.out else { return };
        let written =
            self.progress.beside(|| out.write_all(report.as_bytes()).and_then(|()| out.flush()));
        if let Err(error) = written {
            self.out = None;
            // A reader that has gone has read enough.
            if error.kind() != io::ErrorKind::BrokenPipe {
                self.output_failed = true;
                tracing::error!("a report could not be written: {error}");
            }
        }
    }
}
