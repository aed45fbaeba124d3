//! Which fields a journal entry has. `docs/journal.md` lists them for users.

use super::{
    journal::Entry,
    label::Label,
    sentence::sentence,
    text,
    watched::{Name, Watched},
};
use crate::{
    btrfs::RefKey,
    feed::{Change, Event, FsSlot},
    verify::{Cause, Finding, Notice},
};

/// What journalctl shows as the program's name.
const SYSLOG_IDENTIFIER: &str = "refverify-monitor";

/// A finding, whole.
pub(super) fn finding(finding: &Finding, label: Label, watched: &Watched) -> Entry {
    let name = watched.name(finding.fs);
    let message = format!("{name}: {}: {}", finding.kind, sentence(finding));
    let mut entry = entry(label, &message);
    entry.field("REFVERIFY_KIND", finding.kind.name());
    identity(&mut entry, &name);
    entry.field("REFVERIFY_BYTENR", &finding.bytenr().to_string());
    match &finding.cause {
        Cause::Event(event) => cause(&mut entry, event, finding),
        Cause::Disk { generation, .. } | Cause::Audit { generation, .. } => {
            entry.field("REFVERIFY_TRANSID", &generation.to_string());
        }
    }
    if finding.withheld > 0 {
        entry.field("REFVERIFY_WITHHELD", &finding.withheld.to_string());
    }
    entry.field("REFVERIFY_DUMP", &text::finding(finding, &name));
    entry
}

/// Any other notice: its line, and the file system it is about.
pub(super) fn life_cycle(notice: &Notice, label: Label, line: &str, watched: &Watched) -> Entry {
    let mut entry = entry(label, line);
    match (slot(notice), watched.vm()) {
        (Some(fs), _) => identity(&mut entry, &watched.name(fs)),
        (None, Some(vm)) => entry.field("REFVERIFY_VM", vm),
        (None, None) => {}
    }
    entry
}

fn entry(label: Label, message: &str) -> Entry {
    let mut entry = Entry::default();
    entry.field("MESSAGE", message);
    entry.field("PRIORITY", &(label.priority as u8).to_string());
    entry.field("MESSAGE_ID", &label.message_id.simple().to_string());
    entry.field("SYSLOG_IDENTIFIER", SYSLOG_IDENTIFIER);
    entry
}

fn identity(entry: &mut Entry, name: &Name) {
    if let Some(vm) = &name.vm {
        entry.field("REFVERIFY_VM", vm);
    }
    entry.field("REFVERIFY_DEVICE", &name.device);
    if let Some(fsid) = name.fsid {
        entry.field("REFVERIFY_FSID", &fsid.to_string());
    }
}

fn cause(entry: &mut Entry, event: &Event, finding: &Finding) {
    entry.field("REFVERIFY_TRANSID", &event.transid.to_string());
    if let Change::Ref { key: RefKey { root, parent, owner, offset }, .. } = event.change {
        entry.field("REFVERIFY_ROOT", &root.to_string());
        entry.field("REFVERIFY_OWNER", &owner.to_string());
        entry.field("REFVERIFY_OFFSET", &offset.to_string());
        entry.field("REFVERIFY_PARENT", &parent.to_string());
    }
    entry.field("REFVERIFY_PID", &event.pid.to_string());
    entry.field("REFVERIFY_COMM", &event.comm.to_string());
    if !event.stack.is_empty() {
        let mut stack = String::new();
        text::stack(&mut stack, &event.stack, &finding.symbols);
        entry.field("REFVERIFY_STACK", stack.trim_end_matches('\n'));
    }
}

/// The file system that a notice is about, if it is about one.
fn slot(notice: &Notice) -> Option<FsSlot> {
    match notice {
        Notice::WaitingForMount { fs }
        | Notice::Mounted { fs, .. }
        | Notice::WaitingForCommit { fs, .. }
        | Notice::Named { fs, .. }
        | Notice::Seeding { fs, .. }
        | Notice::Seeded { fs, .. }
        | Notice::Blind { fs, .. }
        | Notice::OutOfOrder { fs, .. }
        | Notice::Aborted { fs, .. }
        | Notice::Undone { fs, .. }
        | Notice::GaveUp { fs, .. }
        | Notice::MirrorFailed { fs, .. }
        | Notice::Refused { fs, .. }
        | Notice::Unmounted { fs } => Some(*fs),
        Notice::Finding(finding) => Some(finding.fs),
        Notice::Started(_) | Notice::Dump(_) | Notice::Summary(_) => None,
    }
}
